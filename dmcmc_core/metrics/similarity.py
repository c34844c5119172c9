"""How alike a sample and a picture are: mean squared error, structural similarity, and when a profile crosses a level.

As the published comparison of score embedding measures them: the sample is first scaled so that its least and its
largest value, over all channels, are 0 and 1; the truth is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError, one_of

WINDOW = 7
"""Pixels of a side of the window of structural similarity, and the least that an image must have."""
RANGES = ("minmax", "clip")


def mse(truth: Tensor, sample: Tensor, scaled: str = "minmax") -> float:
    """Return the mean over channels and pixels of the squared difference; arguments as for :func:`ssim`."""
    truth, sample = _pair(truth, sample, scaled)
    return float((truth - sample).square().mean())


def ssim(truth: Tensor, sample: Tensor, scaled: str = "minmax") -> float:
    """Return the structural similarity, scikit-image's with a uniform window of 7 pixels and the range 1.

    Args:
        truth: (C, H, W) in [0, 1], H and W at least 7.
        sample: (C, H, W).
        scaled: ``minmax``, as published, or ``clip`` to [0, 1]. A constant sample is 0 after ``minmax``.

    Raises:
        UserError: for shapes that differ or are too small, and where scikit-image is not installed.
    """
    truth, sample = _pair(truth, sample, scaled)
    if min(truth.shape[1:]) < WINDOW:
        height, width = truth.shape[1:]
        raise UserError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, not {height}x{width}")
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise UserError("SSIM needs scikit-image: pip install scikit-image") from None
    value = structural_similarity(truth.numpy(), sample.numpy(), win_size=WINDOW, data_range=1, channel_axis=0)
    return float(np.asarray(value))


def _pair(truth: Tensor, sample: Tensor, scaled: str) -> tuple[Tensor, Tensor]:
    """Return both in float64 on the CPU, the sample scaled."""
    truth, sample = (torch.as_tensor(image).detach().cpu().double() for image in (truth, sample))
    if truth.ndim != 3 or truth.shape != sample.shape:
        raise UserError(
            f"truth and sample must both be (C, H, W) of one shape, not {tuple(truth.shape)} and {tuple(sample.shape)}"
        )
    if one_of("scaled", scaled, *RANGES) == "clip":
        return truth, sample.clamp(0, 1)
    low, high = sample.min(), sample.max()
    return truth, (sample - low) / torch.where(high > low, high - low, 1.0)


class Crossing(NamedTuple):
    """Where a profile crosses a level; None where it does not."""

    first: float | None
    sustained: float | None


def crossings(x: Sequence[float], values: Sequence[float], level: float, sustained: int = 3) -> Crossing:
    """Return the first upward crossing of a level, and the first after which it holds.

    Between two profiles values are linear; one that begins above the level crosses it at its first x. NaN is below.

    Args:
        x: of the profiles, ascending: seconds or steps.
        values: at them, of the same number.
        level: to be reached.
        sustained: profiles in a row, from the crossing on, that must be at the level or above it.

    Raises:
        UserError: for numbers of x and values that differ.
    """
    if len(x) != len(values):
        raise UserError(f"a profile needs as many x as values, not {len(x)} and {len(values)}")
    above = [value >= level for value in values]
    rises = [i for i in range(len(x)) if above[i] and (i == 0 or not above[i - 1])]
    lasting = [i for i in rises if i + sustained <= len(x) and all(above[i : i + sustained])]
    return Crossing(*(_place(x, values, level, found[0]) if found else None for found in (rises, lasting)))


def _place(x: Sequence[float], values: Sequence[float], level: float, i: int) -> float:
    """Return where the line from profile i - 1 to i reaches the level."""
    if i == 0 or math.isnan(values[i - 1]):
        return float(x[i])
    return float(x[i - 1] + (level - values[i - 1]) / (values[i] - values[i - 1]) * (x[i] - x[i - 1]))
