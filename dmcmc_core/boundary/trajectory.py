"""Deterministic inversion of images by DDIM, and the way back, with as much noise as asked for.

Song, Meng & Ermon 2021 (arXiv 2010.02502), eq. 12; on the times of Zhu et al. 2023 (arXiv 2302.08357).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, like
from dmcmc_core.errors import UserError, number
from dmcmc_core.evaluation_mode import modules_of, to_evaluation

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""(x (B, *shape), t (B,)) -> the predicted noise, of the shape of x; channels beyond those of x are left out."""
STEPS = 1000
"""Times of the published networks, whose betas rise evenly from 1e-4 to 0.02."""


def kept_shares(betas: Tensor | None = None) -> Tensor:
    """Return alpha bar at each time, (T,) float64, of betas (T,); None: those of :data:`STEPS` published times."""
    betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64) if betas is None else torch.as_tensor(betas).double()
    if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
        raise UserError("betas must be a list of numbers above 0 and below 1")
    return (1 - betas).cumprod(0)


def grid(last: int, count: int) -> list[int]:
    """Return the published times, ``count`` whole numbers rising from 0 to ``last``."""
    number("last", last, least=1, whole=True)
    number("count", count, least=2, most=last + 1, whole=True)
    return [int(share * last) for share in torch.linspace(0, 1, count, dtype=torch.float64).tolist()]


@torch.no_grad()
def invert(
    epsilon: Epsilon,
    x0: Tensor,
    times: Sequence[int],
    *,
    betas: Tensor | None = None,
    callback: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return the latent of images at the last of some times: deterministic steps of DDIM against the noise.

    The noise of a step is that which the network sees at the lower of its times, so that it is asked once less than
    there are times, and never at the last one. Images enter as states of the first time, as published.

    Args:
        x0: (B, *shape), in [-1, 1].
        times: rising whole numbers; see :func:`grid`.
        betas: (T,) of all times; None: the published ones.
        callback: gets the state at each time, x0 first.

    Returns:
        (B, *shape), in the dtype of x0.

    Raises:
        UserError: for times that do not rise within those of the betas, images that are not finite floats, and an
            epsilon of another shape.
    """
    bars, x = _at(kept_shares(betas), times), _floats(x0)
    if callback:
        callback(x)
    for i in range(len(times) - 1):
        e = _noise(epsilon, x, times[i])
        x = _move(x, e, bars[i], bars[i + 1])
        if callback:
            callback(x)
    return x


@torch.no_grad()
def reverse(
    epsilon: Epsilon,
    latent: Tensor,
    times: Sequence[int],
    eta: float = 0.0,
    noise: Callable[[Tensor], Tensor] | Tensor | None = None,
    *,
    betas: Tensor | None = None,
    callback: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return images of latents at the last of some times: steps of DDIM to the first time, and one to the image.

    Args:
        latent: (B, *shape).
        times: rising whole numbers; the network is asked at each, from the last one down.
        eta: from 0, deterministic, to 1, as much noise as ancestral sampling adds.
        noise: maps a tensor to standard normals like it, or (B, N, *shape), a draw for each step; None: torch's own.
        betas, callback: as for :func:`invert`; the callback gets the state after each step.

    Returns:
        (B, *shape), in the dtype of the latent.

    Raises:
        UserError: for an eta outside [0, 1], draws of another shape, and as :func:`invert`.
    """
    number("eta", eta, least=0, most=1)
    bars, x = [1.0, *_at(kept_shares(betas), times)], _floats(latent)
    if isinstance(noise, Tensor) and (noise.shape[:1], noise.shape[2:]) != (x.shape[:1], x.shape[1:]):
        raise UserError(f"noise must have shape (B, N, *shape) for latents {tuple(x.shape)}, not {tuple(noise.shape)}")
    for step, i in enumerate(reversed(range(len(times)))):
        now, after = bars[i + 1], bars[i]
        e = _noise(epsilon, x, times[i])
        deviation = eta * ((1 - now / after) * (1 - after) / (1 - now)) ** 0.5
        x = _move(x, e, now, after, deviation)
        if deviation:
            x = x + deviation * _draw(noise, x, step)
        if callback:
            callback(x)
    return x


def epsilon_of(denoiser: Denoiser, betas: Tensor | None = None) -> Epsilon:
    """Return epsilon of any denoiser at the times of a diffusion that preserves variance, for images in [-1, 1].

    x_t = sqrt(bar) x0 + sqrt(1 - bar) e is sqrt(bar) (x0 + sigma e) with sigma = sqrt(1 / bar - 1), here in units of
    half the denoiser's data range; data without ends are taken as they are. Below its sigma_min it is asked at that.

    Raises:
        UserError: when asked at a time whose noise is beyond the denoiser's sigma_max.
    """
    bars, (low, high) = kept_shares(betas), denoiser.data_range
    middle, half = ((low + high) / 2, (high - low) / 2) if math.isfinite(high - low) else (0.0, 1.0)

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        bar = like(bars.to(x.device)[t.long()], x)
        sigma = half * (1 / bar - 1).sqrt()
        if sigma.max() > denoiser.sigma_max:
            raise UserError(
                f"at time {int(t.max())} the noise is {sigma.max().item():.3g}, beyond the model's sigma_max = "
                f"{denoiser.sigma_max:g}: choose earlier times"
            )
        asked = sigma.flatten().clamp(min=denoiser.sigma_min)
        x0 = (denoiser(middle + half * x / bar.sqrt(), asked) - middle) / half
        return (x - bar.sqrt() * x0) / (1 - bar).sqrt()

    return epsilon


def _at(bars: Tensor, times: Sequence[int]) -> list[float]:
    times = [number("a time", t, least=0, below=len(bars), whole=True) for t in map(_plain, times)]
    if len(times) < 2 or times != sorted(set(times)):
        raise UserError("times must be two or more whole numbers that rise")
    return bars[times].tolist()


def _plain(time: Any) -> Any:
    return time.item() if hasattr(time, "item") else time


def _floats(x: Tensor) -> Tensor:
    if not x.is_floating_point() or not x.isfinite().all():
        raise UserError(f"images and latents must be finite floats, not {x.dtype}, or with NaN or infinity")
    return x


def _noise(epsilon: Epsilon, x: Tensor, time: Any) -> Tensor:
    to_evaluation(modules_of(epsilon))
    answer = epsilon(x, x.new_full((len(x),), float(time)))[:, : x.shape[1]]
    if answer.shape != x.shape:
        raise UserError(f"epsilon must have the shape of x, {tuple(x.shape)}, not {tuple(answer.shape)}")
    return answer


def _move(x: Tensor, e: Tensor, now: float, after: float, deviation: float = 0.0) -> Tensor:
    """Return sqrt(after) x0 + sqrt(1 - after - deviation^2) e, where x = sqrt(now) x0 + sqrt(1 - now) e."""
    x0 = (x - (1 - now) ** 0.5 * e) / now**0.5
    return after**0.5 * x0 + (1 - after - deviation**2) ** 0.5 * e


def _draw(noise: Any, x: Tensor, step: int) -> Tensor:
    if noise is None:
        return torch.randn_like(x)
    if not isinstance(noise, Tensor):
        return noise(x)
    if step >= noise.shape[1]:
        raise UserError(f"noise must have a draw for each step with noise, more than {noise.shape[1]}")
    return noise[:, step].to(x)


def radius(x: Tensor) -> Tensor:
    """Return the norm of each latent, (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
