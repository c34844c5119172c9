"""Whether images lie in the range that they are said to have."""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core.errors import UserError

SOME = 1000
"""Images that are looked at together."""


def outside(images: Tensor, data_range: tuple[float, float], margin: float) -> float:
    """Return the share of numbers that lie outside a range by more than a margin, in units of the range."""
    low, high = data_range
    over = margin * (high - low)
    low, high = low - over, high + over
    if not images.numel() or all(low <= end <= high for end in (images.min().item(), images.max().item())):
        return 0.0
    some = images.split(SOME)  # the comparisons of all images at once would take as much memory as they
    return sum(((part < low) | (part > high)).count_nonzero().item() for part in some) / images.numel()


def in_unit_range(images: Tensor) -> Tensor:
    """Return images of uint8, or of floats in [0, 1] that may leave it a little as samplers do, as floats.

    Raises:
        UserError: where more than a twentieth of the numbers lies outside by more than a tenth.
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    if outside(images, (0.0, 1.0), 0.1) > 0.05:
        low, high = (value.item() for value in images.aminmax())
        raise UserError(
            f"images must be uint8, or floats in [0, 1], and these go from {low:.4g} to {high:.4g}: bring them there "
            "by (images - low) / (high - low), with the data_range of their model"
        )
    return images
