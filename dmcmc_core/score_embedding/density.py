"""The field that the Fokker-Planck equation starts from: the log density of an image's pixel pairs.

Each channel of an H x H image gives H^2 points (value at the transposed pixel, value at the pixel); the field is the
log of their density at each of them. Values are paired with those across the diagonal, so the field is symmetric.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage, stats
from torch import Tensor

from dmcmc_core.errors import UserError, one_of

BINS = 256
"""Of a side of the histogram, over [0, 1]."""
DENSITIES = ("gaussian", "histogram")


def initial_field(image: Tensor, density: str = "gaussian") -> Tensor:
    """Return the field at the first time, (C, H, W) float64; Na, Gao & Wan 2024 (arXiv 2404.06661).

    Args:
        image: (C, H, W) in [0, 1], H = W.
        density: ``gaussian``, a kernel density with Scott's bandwidth over the covariance of the points, as published
            in April 2024; or ``histogram``, as in the code of June 2026: counts smoothed by Scott's factor in units of
            the whole range, whatever the data's spread, and read off between bins.

    Raises:
        UserError: for an image that is not square, not in [0, 1], of one value in a channel, or whose pairs lie on a
            line, as those of a symmetric one.
    """
    one_of("density", density, *DENSITIES)
    channels = check_image(image).double().cpu().numpy()
    log_density = _gaussian if density == "gaussian" else _histogram
    fields = [log_density(np.stack([c.T.ravel(), c.ravel()])).reshape(c.shape) for c in channels]
    return torch.from_numpy(np.stack(fields))


def check_image(image: Tensor) -> Tensor:
    """Return an image (C, H, W) as a tensor; UserError unless it is square, finite, in [0, 1] and not constant."""
    try:
        image = torch.as_tensor(image).detach()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"an image must be a tensor or an array of numbers, not {type(image).__name__}") from None
    if image.is_complex():
        raise UserError("an image must be of real numbers, not complex ones")
    if image.ndim != 3 or not len(image) or image.shape[1] != image.shape[2] or image.shape[1] < 2:
        raise UserError(
            f"an image must be (C, H, H) with H at least 2, as its pixels are paired across the diagonal, not "
            f"{tuple(image.shape)}"
        )
    if not torch.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise UserError(f"an image must lie in [0, 1], not from {image.min().item():g} to {image.max().item():g}")
    for number, channel in enumerate(image):
        if channel.min() == channel.max():
            raise UserError(f"channel {number} of the image has one value, {channel.min().item():g}: it has no density")
    return image


def _gaussian(points: np.ndarray) -> np.ndarray:
    """Return the log of a Gaussian kernel density at its own points (2, n)."""
    if np.linalg.cond(np.cov(points)) > 1e10:
        raise UserError(
            "the image's pixels lie on a line with those across the diagonal, as those of a symmetric image do: their "
            "pairs have no density in the plane"
        )
    return stats.gaussian_kde(points).logpdf(points)


def _histogram(points: np.ndarray) -> np.ndarray:
    """Return the log of a smoothed histogram at the points (2, n) that it counts."""
    counts, *_ = np.histogram2d(*points, bins=BINS, range=((0, 1), (0, 1)), density=True)
    smooth = ndimage.gaussian_filter(counts, points.shape[1] ** (-1 / 6) * BINS)
    return np.log(ndimage.map_coordinates(smooth, points * BINS - 0.5, order=1, mode="nearest"))
