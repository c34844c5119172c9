"""The paired error: how far images are from the accurate solution of the same equation from the same noise.

Images of two solvers of one network that share their starting noise are compared one by one. Pairing makes a few
hundred images tell solvers apart that a distance between distributions cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.data import ImageSet, open_generated
from dmcmc_core.errors import UserError
from dmcmc_core.samplers import FITTED, INTEGRATORS

_ROWS = 1024  # images in memory at a time
_DETERMINISTIC = ("gddim", "sde+heun")  # samplers of linear diffusions that add no noise unless lam asks for it


def paired_error(images: Tensor | ImageSet, accurate: Tensor | ImageSet) -> float:
    """Return the root of the mean, over all images and their numbers, of the squared difference of pairs.

    Args:
        images: (n, *shape) floats, in units of the data.
        accurate: the accurate solutions from the same starting noise, in the same order: of the same shape and units.

    Returns:
        The error in units of the data; 0 where all pairs are equal.

    Raises:
        UserError: for shapes that differ, no images, values that are no floats (uint8 has units of its own) and values
            that are not finite.
    """
    return paired_errors(images, accurate).square().mean().sqrt().item()


def paired_errors(images: Tensor | ImageSet, accurate: Tensor | ImageSet) -> Tensor:
    """Return the same of each pair alone, (n,) float64 on the CPU; arguments and errors as of :func:`paired_error`."""
    one, other = _checked(images, accurate)
    parts = (slice(start, start + _ROWS) for start in range(0, len(one), _ROWS))
    return torch.cat(
        [_root_mean_square(_finite(one[part], "images") - _finite(other[part], "accurate")) for part in parts]
    )


def _checked(*both: Tensor | ImageSet) -> list[Tensor | ImageSet]:
    """Return both, arrays as tensors; UserError unless they are floats of one shape (n, *shape)."""
    sides = [side if isinstance(side, ImageSet) else torch.as_tensor(side) for side in both]
    for name, side in zip(("images", "accurate"), sides, strict=True):
        if isinstance(side, Tensor) and not side.is_floating_point():
            raise UserError(
                f"{name} must be floats in units of the data, not {str(side.dtype).removeprefix('torch.')}: "
                "dmcmc_core.data.from_uint8 makes them of 256 levels"
            )
    shapes = [tuple(side.shape) for side in sides]
    if shapes[0] != shapes[1] or len(shapes[0]) < 2 or not math.prod(shapes[0]):
        raise UserError(
            f"images and accurate must both be (n, *shape), n at least 1 and the same, not {shapes[0]} and {shapes[1]}"
        )
    return sides


def _finite(images: Tensor, name: str) -> Tensor:
    """Return images as rows (n, d) in float64 on the CPU; UserError where some are not finite."""
    rows = images.detach().cpu().double().flatten(1)
    broken = int((~rows.isfinite()).any(1).sum())
    if broken:
        raise UserError(f"{name} must be finite: {broken} of {len(rows)} hold NaN or infinity")
    return rows


def _root_mean_square(rows: Tensor) -> Tensor:
    return rows.square().mean(1).sqrt()


def paired_folders(directory: str | Path, accurate: str | Path, first: int | None = None) -> dict[str, Any]:
    """Compare two folders of samples pair by pair, those images that both have: image i of one with image i of other.

    Args:
        directory: a folder that a run wrote.
        accurate: that of the accurate solution: of the same model, seed and start, by another sampler or budget.
        first: how many images of the folder, from the first on; all when None.

    Returns:
        ``with``, the other folder; ``n``, the pairs; ``error`` (:func:`paired_error`) in units of the data, ``mean``,
        ``median`` and ``largest`` of the error of an image; ``rounding``, what two roundings to 256 levels add up to
        where nothing else differs: below about this an error says nothing. Values were clipped to the data range.

    Raises:
        UserError: for a folder that is no complete run of ours, runs that do not begin with the same noise of the same
            model, and samplers that add noise of their own on their way.
    """
    sides = [open_generated(folder) for folder in (directory, accurate)]
    low, high = check_begun(sides[0].manifest, sides[1].manifest, directory, accurate)["data_range"]
    if first is not None:
        sides[0] = sides[0]._replace(images=sides[0].images.first(first))
    n = min(len(side.images) for side in sides)
    pairs = (side.images.in_range(low, high).first(n) for side in sides)
    errors = paired_errors(*pairs)
    return {
        "with": str(accurate),
        "n": n,
        "error": errors.square().mean().sqrt().item(),
        "mean": errors.mean().item(),
        "median": errors.median().item(),
        "largest": errors.max().item(),
        "rounding": rounding((low, high)),
    }


def rounding(data_range: Sequence[float]) -> float:
    """Return the paired error that two roundings to 256 levels make of equal images, in units of the data."""
    low, high = data_range
    return (high - low) / 255 / math.sqrt(6)


def check_begun(
    manifest: Mapping[str, Any], accurate: Mapping[str, Any], directory: str | Path, other: str | Path
) -> dict[str, Any]:
    """Return what runs that begin with the same noise of one model agree on; UserError where these do not."""
    ours, theirs = _begun(manifest, directory), _begun(accurate, other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"{directory} and {other} cannot be paired: {name} is {value!r} there and {theirs[name]!r} here"
            )
    return ours


def _begun(manifest: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Return what two runs have to agree on to be of the same equation and noise, by name.

    Raises:
        UserError: for a manifest that does not tell, and a sampler that adds noise on its way.
    """
    try:
        plan = manifest["plan"]
        begun = {name: manifest[name] for name in ("seed", "shape", "data_range")}
        begun |= {name: manifest.get(name) for name in ("sigma_min", "sigma_max")}
        begun |= {name: plan[name] for name in ("start", "held_to", "chain", "posterior", "preconditioned_by", "cast")}
        begun |= {"classifier": plan.get("classifier"), "block": plan["block"] if plan["chain"] else None}
        begun["model_sha256"] = manifest["model_sha256"]  # last, as others change it
        stochastic = adds_noise(plan)
    except (KeyError, TypeError):
        raise UserError(
            f"{folder} does not tell the seed, the start and the model of its run: only sample does"
        ) from None
    if stochastic:
        raise UserError(f"{folder} was made by {plan['sampler']}, which adds noise on its way: nothing pairs with that")
    return begun


def adds_noise(plan: Mapping[str, Any]) -> bool:
    """Tell whether the sampler of a manifest's plan draws noise after the start (and, with chains, after these)."""
    name = plan["sampler"].removeprefix("dlg+")
    if name == FITTED.name:  # after chains it begins with noise up to its first level
        return name != plan["sampler"]
    if name in INTEGRATORS:
        return INTEGRATORS[name].stochastic
    return plan["options"].get("lam", 0.0 if name in _DETERMINISTIC else 1.0) > 0
