"""What all integrators share: the check of a state, the walk down a grid of noise levels, the call after a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.denoiser import Denoiser, check_shape
from dmcmc_core.errors import UserError

Noise = Callable[[Tensor], Tensor] | None
"""A tensor -> standard normals like it; None: torch's global generator."""
Callback = Callable[[int, int, Tensor, Tensor], None] | None
"""(step, steps, sigma, x), called after every step."""


def state(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Return ``x`` in float32 at least, once it, the grid and the model are found to fit each other.

    Only what starts at or below the model's sigma_min, as chains may, goes on below it on its way to 0.
    """
    if not callable(denoiser):
        raise UserError(f"a denoiser is a function (x, sigma) -> D(x, sigma), not a {type(denoiser).__name__}")
    check_numbers(x)
    if getattr(denoiser, "shape", None) is not None:
        check_shape(x, denoiser.shape)
    schedules.check(sigmas, rows=x.shape[0])
    highest, start = getattr(denoiser, "sigma_max", float("inf")), sigmas[..., 0].max().item()
    if start > highest * 1.001:  # a level that went through float32 or a logarithm is still the same
        raise UserError(f"sigmas must start at or below the model's sigma_max = {highest:g}, not at {start:g}")
    lowest = getattr(denoiser, "sigma_min", 0.0)
    below = (sigmas > 0) & (sigmas < 0.999 * lowest) & (sigmas[..., :1] > 1.001 * lowest)
    if below.any():
        raise UserError(
            f"sigmas must not go below the model's sigma_min = {lowest:g} but to 0, not to {sigmas[below][0].item():g}"
        )
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_numbers(x: Any) -> None:
    """Raise UserError unless x is a tensor of real, finite numbers."""
    if not isinstance(x, Tensor) or x.is_complex():
        kind = f"of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UserError(f"x must be a tensor of real numbers, not {kind}")
    if not torch.isfinite(x).all():
        raise UserError("x must be finite: it holds NaN or infinity")


def steps(x: Tensor, sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of each step, from 1, and the noise levels at its ends, each of shape () or (B,)."""
    levels = sigmas.to(x.device).unbind(-1)
    yield from zip(range(1, len(levels)), levels[:-1], levels[1:], strict=True)


def report(callback: Callback, step: int, sigmas: Tensor, x: Tensor) -> None:
    """Call back, if anybody asked for it, that a step is done and ``x`` is at its end."""
    if callback:
        callback(step, sigmas.shape[-1] - 1, sigmas[..., step].to(x.device), x)


def at_zero(sigma: Tensor) -> bool:
    """Tell whether the grid has arrived at 0; all rows do in the same column."""
    return bool((sigma == 0).all())
