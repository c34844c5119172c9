"""Images by any sampler of a linear diffusion, at a budget of network evaluations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.errors import TooFew, UserError, is_number, unknown
from dmcmc_core.gddim.baselines import ancestral, euler_maruyama, heun, rk45, sscs
from dmcmc_core.gddim.model import Epsilon, Noise
from dmcmc_core.gddim.sampler import sample
from dmcmc_core.linear_sde import LinearSDE
from dmcmc_core.streams import Streams

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "gddim": sample,
    "euler_maruyama": euler_maruyama,
    "heun": heun,
    "rk45": rk45,
    "sscs": sscs,
    "ancestral": ancestral,
}


class Draws(NamedTuple):
    """Images (n, C, H, W), data in [0, 1] and not yet clipped to it, and the network evaluations for each, counted."""

    images: Tensor
    nfe: float


def draw(
    model: Epsilon,
    sampler: str,
    nfe: int,
    num: int,
    seed: int | Sequence[int],
    *,
    kappa: float = 2.0,
    last: str | None = "clean",
    **options: Any,
) -> Draws:
    """Draw images of a network (or exact epsilon) of images in [-1, 1], by at most ``nfe`` evaluations each.

    Args:
        model: knows ``sde`` and ``shape``: :class:`dmcmc_core.nets.linear.EpsilonNet`, or :func:`from_denoiser`.
        sampler: one of :data:`SAMPLERS`.
        seed: image i depends on (seed, i) alone, but for ``rk45``; of several seeds ``num`` images each, one seed after
            the other and evaluated together, which fills the blocks of a network.
        kappa: of the grid, :func:`dmcmc_core.schedules.power`, from the diffusion's t_max to its t_min.
        last, options: of the sampler.

    Raises:
        UserError: an unknown sampler, or a budget too small for it.
    """
    if sampler not in SAMPLERS:
        raise unknown("sampler of a linear diffusion", sampler, SAMPLERS)
    if not hasattr(model, "sde"):
        raise UserError("the model of a linear diffusion knows it as .sde: load_epsilon or from_denoiser give one")
    for name, value in (("nfe", nfe), ("num", num)):
        if not is_number(value, whole=True) or value < 1:
            raise UserError(f"{name} must be a whole number, at least 1, not {value!r}")
    known = inspect.signature(SAMPLERS[sampler]).parameters
    for name in options:
        if name not in known:
            raise unknown(f"option of {sampler}", name, list(known)[4:])
    counted = count(model)
    steps = steps_of(sampler, nfe // getattr(model, "rows_per_image", 1) - (last is not None), **options)
    if sampler == "rk45" and "tol" not in options:
        options["tol"] = _tolerance(model, nfe, kappa, last)
    seeds: Any = [seed] if is_number(seed, whole=True) else seed
    streams = [Streams(one, "image", range(num)) for one in seeds]

    def noise(like: Tensor) -> Tensor:
        return torch.cat([stream(rows) for stream, rows in zip(streams, like.split(num), strict=True)])

    x = images(counted, sampler, prior(model, len(streams) * num, noise), steps, noise, kappa, last, **options)
    return Draws(x, counted.rows / len(x))


def prior(model: Epsilon, num: int, noise: Noise, device: str | torch.device = "cpu") -> Tensor:
    """Draw states that sampling begins with, (num, parts C, H, W)."""
    sde, shape = model.sde, model.shape
    return sde.apply(sde.prior, noise(torch.empty(num, sde.parts * shape[0], *shape[1:], device=device)))


def images(
    model: Epsilon,
    sampler: str,
    u: Tensor,
    steps: int,
    noise: Noise,
    kappa: float = 2.0,
    last: str | None = "clean",
    **options: Any,
) -> Tensor:
    """Return images (B, C, H, W), data in [0, 1], from states of the prior, by steps of a sampler and ``last``."""
    sde = model.sde
    u = SAMPLERS[sampler](sde, model, u, times(sde, steps, kappa), last=last, noise=noise, **options)
    return (sde.drop(u) + 1) / 2


def times(sde: LinearSDE, steps: int, kappa: float = 2.0) -> Tensor:
    """Return the published grid, (steps + 1,): from the diffusion's t_max to its t_min."""
    if not is_number(kappa):
        raise UserError(f"kappa must be a number above 0, not {kappa!r:.40}")
    return schedules.power(steps, sde.t_max, sde.t_min, kappa)


def steps_of(sampler: str, nfe: int, corrector: bool = False, **_: Any) -> int:
    """Return the most steps that ``nfe`` evaluations pay for, the last denoising aside."""
    steps = (nfe + 1) // 2 if corrector else nfe // 2 if sampler == "heun" else nfe
    if steps < 1:
        least = 2 if sampler == "heun" else 1
        raise TooFew(f"{sampler} needs at least {least} NFE, the last denoising not counted: {nfe} are left for it")
    return steps


def options_of(sampler: str) -> set[str]:
    """Return the options of a sampler that are no state of a walk."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"noise", "history", "earlier"}


def check_options(model: Epsilon, sampler: str, steps: int, **options: Any) -> None:
    """Raise UserError for what :func:`images` would refuse: it walks one state of zeros, and asks no network."""

    def still(u: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(u)

    still.sde = model.sde
    images(still, sampler, prior(model, 1, torch.zeros_like), steps, torch.zeros_like, **options)


def count(model: Epsilon) -> Epsilon:
    """Return the same model, with ``rows``: rows of the network evaluated so far, both halves of a guided call."""

    def counted(u: Tensor, t: Tensor) -> Tensor:
        counted.rows += len(u) * getattr(model, "rows_per_image", 1)
        return model(u, t)

    counted.rows, counted.sde = 0, getattr(model, "sde", None)
    return counted


def _tolerance(model: Epsilon, nfe: int, kappa: float, last: str | None) -> float:
    """Return the smallest of a row of tolerances whose cost is at most ``nfe`` for 64 images of another seed."""
    kept = None
    for tol in (10 ** (-k / 2) for k in range(1, 14)):
        if (used := _trial(model, tol, kappa, last)) > nfe:
            break
        kept = tol
    if kept is None:
        raise UserError(f"rk45 uses {used:.0f} NFE at its loosest tolerance: {nfe} are too few")
    return kept


@functools.lru_cache(maxsize=256)
def _trial(model: Epsilon, tol: float, kappa: float, last: str | None) -> float:
    """Return the NFE of rk45 at a tolerance, the same for all budgets."""
    return draw(model, "rk45", 2, 64, -1, kappa=kappa, last=last, tol=tol).nfe
