"""How gains are made of second moments: the published recipes, their control, and the covariance itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, is_number, unknown
from dmcmc_core.preconditioning.gain_files import read_mask
from dmcmc_core.preconditioning.moments import Moments, axes_of


def _published(statistic: Tensor, alpha: float) -> Tensor:
    return 1 / _inverse(statistic, alpha)


def _inverse(statistic: Tensor, alpha: float) -> Tensor:
    if not statistic.max() > 0:
        raise UserError("the images are 0 everywhere: there is nothing to normalise their statistics by")
    return (statistic / statistic.max() + alpha - 1) / alpha


def _raw(statistic: Tensor, alpha: float) -> Tensor:
    if not (statistic > 0).all():
        raise UserError(
            "some pixel is 0 in all images, which the recipe 'before-2023' divides by: choose another, or pixel=False"
        )
    return 1 / statistic


RECIPES = {
    "published": (_published, _published),
    "log": (_published, lambda square, alpha: _published(square.log1p(), alpha)),
    "before-2023": (lambda power, alpha: alpha / (power + alpha - 1), _raw),
    "inverse": (_inverse, _inverse),
}
"""How gains come from the statistics P and Q: a function of each and alpha."""


def check_recipe(recipe: Any) -> None:
    """Raise UserError for a recipe that there is not."""
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise unknown("recipe for gains", recipe, RECIPES)


def gains_from_moments(of: Moments, alpha: float, frequency: bool, pixel: bool, recipe: str) -> dict[str, Tensor]:
    """Return the gains of a recipe, none for an infinite alpha; see ``Preconditioner.from_moments``."""
    if not is_number(alpha) or not alpha > 1:
        raise UserError(f"alpha must be a number above 1 (infinity, .inf in YAML, is the identity), not {alpha!r}")
    for name, flag in (("frequency", frequency), ("pixel", pixel)):
        if not isinstance(flag, bool):
            raise UserError(f"{name} must be True or False, whether to make such gains, not {flag!r}")
    check_recipe(recipe)
    if alpha == math.inf:
        return {}
    of_frequency, of_pixel = RECIPES[recipe]
    gains = {"frequency": of_frequency(of.power.log1p(), alpha)} if frequency else {}
    return gains | ({"pixel": of_pixel(of.square, alpha)} if pixel else {})


def gains_from_covariance(of: Moments, sigma: float, by: str) -> Tensor:
    """Return gains whose squares are the variances of noisy data, scaled to a mean of 1."""
    if not isinstance(of, Moments):
        raise UserError(f"the covariance is that of moments(images), not of {type(of).__name__}")
    if not is_number(sigma) or not 0 <= sigma < math.inf:
        raise UserError(f"sigma must be a finite number, at least 0, not {sigma!r}")
    if by not in ("frequency", "pixel"):
        raise UserError(f"by must be 'frequency' or 'pixel', not {by!r}")
    variance = (of.spectrum if by == "frequency" else of.variance) + sigma**2
    if not (variance > 0).all():
        raise UserError(f"the data do not vary in some {by}: give a sigma above 0")
    return (variance / variance.mean()).sqrt()


def moments_of_masks(frequency: str | Path | None, pixel: str | Path | None) -> Moments:
    """Return the moments that masks of the authors' tool were made of; UserError for what are no such masks."""
    masks = {name: read_mask(path) for name, path in (("frequency", frequency), ("pixel", pixel)) if path is not None}
    if not masks:
        raise UserError("name a mask for frequency, for pixel, or for both")
    first = next(iter(masks.values()))
    power = masks.get("frequency", torch.ones_like(first))
    if power.max() > 700:
        raise UserError(f"a mask of frequencies has log(1 + power), which is below 700, not {power.max().item():g}")
    axes = axes_of(first.shape)
    middle = power[(..., *(power.shape[a] // 2 for a in axes))]
    if (middle == power.amax(axes)).all() and (middle > power[(..., *(0 for _ in axes))]).all():
        raise UserError("a mask of frequencies has the constant one first, as fft2 has it: undo fftshift")
    return Moments(power.expm1(), masks.get("pixel", torch.ones_like(first)), None)
