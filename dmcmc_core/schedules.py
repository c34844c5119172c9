"""Noise-level grids: n levels from sigma_max down to sigma_min, then 0; and :func:`power`, of times. All in float64.

``sigma_max`` may be (B,), one start per sample; the grid is then (B, n + 1). Such a start at or below sigma_min keeps
its n levels: its own grid ends at half its start instead, so that it still descends. A single sigma_max below sigma_min
is a mistake and refused.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError

Level = float | Tensor


def karras(n: int, sigma_max: Level, sigma_min: float, rho: float = 7.0) -> Tensor:
    """Return a grid uniform in sigma^(1/rho), Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    Args:
        n: number of levels above 0, at least 1; ``n = 1`` is sigma_max alone.
        sigma_max: () or (B,), the first level, in units of the data.
        sigma_min: the last level above 0.
        rho: larger puts more levels near sigma_min.

    Returns:
        (n + 1,) or (B, n + 1) float64, strictly descending, the last one 0.

    Raises:
        UserError: n < 1, a level that is not positive and finite, a single sigma_max below sigma_min, or rho <= 0.
    """
    if not 0 < rho < float("inf"):
        raise UserError(f"rho must be above 0 and finite, not {rho}")
    return _between(n, sigma_max, sigma_min, lambda s: s ** (1 / rho), lambda u: u**rho)


def log_uniform(n: int, sigma_max: Level, sigma_min: float) -> Tensor:
    """Return a grid uniform in log sigma, Song et al. 2021 (arXiv 2011.13456) for VE. Arguments as :func:`karras`."""
    return _between(n, sigma_max, sigma_min, torch.log, torch.exp)


def time_uniform(n: int, sigma_max: Level, sigma_min: float, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """Return a grid uniform in the time t of the VP diffusion whose beta grows linearly from beta_min to beta_max.

    sigma(t)^2 = exp(beta_min t + (beta_max - beta_min) t^2 / 2) - 1: the grid of DDPM and DDIM in VE terms (Song et al.
    2021, arXiv 2011.13456, eq. 33). Arguments as :func:`karras`.
    """
    time = partial(vp_time, beta_min=beta_min, beta_max=beta_max)
    b = (beta_max - beta_min) / 2
    return _between(n, sigma_max, sigma_min, time, lambda t: torch.expm1(beta_min * t + b * t**2).sqrt())


def vp_time(sigma: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """Return the time t of that diffusion at a noise level of any shape: the inverse of sigma(t)."""
    b, grown = (beta_max - beta_min) / 2, torch.log1p(sigma**2)
    return 2 * grown / (beta_min + (beta_min**2 + 4 * b * grown).sqrt())


def shifted_power(n: int, sigma_max: Level, sigma_min: float, exponent: float = 2.0) -> Tensor:
    """Return sigma_min + (sigma_max - sigma_min) u^exponent, u uniform from 1 to 0; exponent 1 is uniform in sigma."""
    if not exponent > 0:
        raise UserError(f"exponent must be above 0, not {exponent}")
    start, end = _ends(n, sigma_max, sigma_min)
    u = torch.linspace(1, 0, n, dtype=torch.float64) if n > 1 else torch.ones(1, dtype=torch.float64)
    return _then_zero(end[..., None] + (start - end)[..., None] * u.to(start.device) ** exponent, start)


def power(n: int, t_max: float, t_min: float, kappa: float = 2.0) -> Tensor:
    """Return times of a diffusion for n steps, uniform in t^(1/kappa) from t_max to t_min: (n + 1,) float64.

    The grid of gDDIM and DEIS (arXiv 2206.05564, 2204.13902), published with kappa = 2.

    Raises:
        UserError: n < 1, times that are not 0 <= t_min < t_max, or kappa <= 0.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UserError(f"n must be a whole number of steps, at least 1, not {n!r}")
    if not 0 <= t_min < t_max < float("inf"):
        raise UserError(f"times must be 0 <= t_min < t_max, not t_min = {t_min!r} and t_max = {t_max!r}")
    if not 0 < kappa < float("inf"):
        raise UserError(f"kappa must be above 0 and finite, not {kappa!r}")
    grid = torch.linspace(t_max ** (1 / kappa), t_min ** (1 / kappa), n + 1, dtype=torch.float64) ** kappa
    grid[0], grid[-1] = t_max, t_min  # exactly
    return grid


def sped_up(speed_up: float, base: int = 1000) -> int:
    """Return int(base / k), the levels of a predictor-corrector k = ``speed_up`` times as fast as published.

    Preconditioned Diffusion Sampling (arXiv 2207.02196) makes a new grid of so many levels and changes nothing else.

    Raises:
        UserError: for a speed_up that is not above 0, or leaves no level.
    """
    if not isinstance(speed_up, Real) or isinstance(speed_up, bool) or not 0 < speed_up <= base:
        raise UserError(f"speed_up must be a number above 0, at most {base}, not {speed_up!r}")
    return int(base / speed_up)


def explicit(levels: Sequence[float] | Tensor) -> Tensor:
    """Return any strictly descending list of levels, (N + 1,) or (B, N + 1), as a checked float64 grid."""
    try:
        grid = torch.as_tensor(levels, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"levels must be numbers, (N + 1,) or (B, N + 1), not {reprlib.repr(levels)}") from error
    return check(grid)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "log_uniform": log_uniform,
    "time_uniform": time_uniform,
    "shifted_power": shifted_power,
}


def check(sigmas: Tensor, rows: int | None = None) -> Tensor:
    """Return the grid itself, if an integrator can walk it.

    Args:
        sigmas: (N + 1,) or (B, N + 1).
        rows: B, when known.

    Raises:
        UserError: wrong shape, a level that is not finite or is negative, levels that do not strictly descend, or rows
            of which only some end at 0.
    """
    if not isinstance(sigmas, Tensor):
        raise UserError(f"sigmas must be a tensor, not a {type(sigmas).__name__}: schedules.explicit(...) makes one")
    if sigmas.ndim not in (1, 2) or sigmas.shape[-1] < 2:
        raise UserError(f"sigmas must have shape (N + 1,) or (B, N + 1) with N >= 1, not {tuple(sigmas.shape)}")
    if rows is not None and sigmas.ndim == 2 and len(sigmas) != rows:
        raise UserError(f"sigmas has {len(sigmas)} rows for {rows} samples: give one grid, or one row per sample")
    grid = sigmas.detach().to("cpu")  # one transfer instead of a wait for every comparison
    for name, bad in (("finite", ~torch.isfinite(grid)), ("at least 0", grid < 0)):
        if bad.any():
            raise UserError(f"sigmas must be {name}: found {grid[bad][0].item():g}")
    rises = ~(grid[..., :-1] > grid[..., 1:])
    if rises.any():
        first = rises.nonzero()[0]
        pair = f"{grid[..., :-1][tuple(first)]:g} is followed by {grid[..., 1:][tuple(first)]:g}"
        raise UserError(f"sigmas must strictly descend, but {pair} at position {first[-1].item()}")
    if (grid[..., -1] == 0).any() != (grid[..., -1] == 0).all():
        raise UserError("all rows of sigmas must end at 0, or all above 0; here only some end at 0")
    return sigmas


def _between(n: int, sigma_max: Level, sigma_min: float, to: Callable, back: Callable) -> Tensor:
    """Return n levels whose images under ``to`` are evenly spaced; the two ends are met exactly."""
    start, end = _ends(n, sigma_max, sigma_min)
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=start.device) if n > 1 else start.new_zeros(1)
    levels = back(to(start)[..., None] + (to(end) - to(start))[..., None] * u)
    if n > 1:
        levels[..., -1] = end
    return _then_zero(levels, start)


def _ends(n: int, sigma_max: Level, sigma_min: float) -> tuple[Tensor, Tensor]:
    if not isinstance(n, Real) or isinstance(n, bool) or n < 1 or n != int(n):
        raise UserError(f"n must be a whole number of levels, at least 1, not {n!r}")
    if not isinstance(sigma_max, Tensor | Real | list | tuple | np.ndarray) or not isinstance(sigma_min, Real | Tensor):
        raise UserError(f"sigma_max and sigma_min must be numbers, not {sigma_max!r} and {sigma_min!r}")
    start = torch.as_tensor(sigma_max).to(torch.float64)
    if start.ndim > 1:
        raise UserError(f"sigma_max must have shape () or (B,), not {tuple(start.shape)}")
    if not (torch.isfinite(start) & (start > 0)).all():
        worst = start.reshape(-1)[~(torch.isfinite(start) & (start > 0)).reshape(-1)][0].item()
        raise UserError(f"sigma_max must be positive and finite, not {worst:g}")
    if not 0 < sigma_min < float("inf"):
        raise UserError(f"sigma_min must be positive and finite, not {sigma_min:g}")
    if start.ndim == 0 and start < 0.999 * sigma_min:
        raise UserError(
            f"sigma_max={start.item():g} (where the grid starts) lies below sigma_min={sigma_min:g} (where it ends): "
            "swap them"
        )
    # A thousandth above sigma_min there is still room for a thousand float32 levels.
    return start, torch.where(start > sigma_min * 1.001, torch.full_like(start, sigma_min), start / 2)


def _then_zero(levels: Tensor, start: Tensor) -> Tensor:
    levels[..., 0] = start
    return check(torch.cat([levels, torch.zeros_like(levels[..., :1])], dim=-1))
