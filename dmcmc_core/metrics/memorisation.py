"""Memorisation: the nearest member of a data set to each image, and whether a model copies what it has seen."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.data import ImageSet
from dmcmc_core.errors import UserError
from dmcmc_core.metrics.classes import class_histogram
from dmcmc_core.metrics.rows import ROWS, Rows, Table, table_pair, tiles


class Nearest(NamedTuple):
    """The nearest member of a data set to each image."""

    distance: Tensor
    """(n,) float64, L2 over all pixels, in units of the pixels."""
    index: Tensor
    """(n,) int64 into the data set."""


def distance_to_set(
    images: Tensor | ImageSet, data: Tensor | ImageSet, *, exclude_self: bool = False, rows: int = ROWS
) -> Nearest:
    """Find the nearest member of ``data`` (K, *shape) to each of ``images`` (n, *shape), by L2 over the pixels.

    Found through inner products in the dtype of the images; the distance itself is then computed from the difference in
    float64, so a copy is at exactly 0. With ``exclude_self`` image i is not compared with member i: the two sets are
    the same one.

    Raises:
        UserError: for different shapes, an empty set, or values that are not finite.
    """
    if images.shape[1:] != data.shape[1:]:
        raise UserError(f"images of shape {tuple(images.shape[1:])} cannot be compared with {tuple(data.shape[1:])}")
    x, y = table_pair(_pixels(images), _pixels(data), least=1)
    if exclude_self and not (len(x) == len(y) > 1):
        raise UserError(f"exclude_self compares a set of at least 2 with itself, not {len(x)} images with {len(y)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    device = x.device
    middle = sum(part.to(device, dtype).sum(0) for part in y.split(rows)) / len(y)  # centred rows lose fewer digits
    best = torch.full((len(x),), torch.inf, dtype=dtype, device=device)
    index = torch.zeros(len(x), dtype=torch.int64, device=device)
    for i, j in tiles(len(x), len(y), rows):
        a, b = x[i].to(dtype) - middle, y[j].to(device, dtype) - middle
        squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        if exclude_self and i == j:
            squared.fill_diagonal_(torch.inf)
        least, at = squared.min(1)
        index[i] = torch.where(least < best[i], at + j.start, index[i])
        best[i] = torch.minimum(best[i], least)
    pieces = zip(x.split(rows), index.split(rows), strict=True)
    distance = [(part.double() - y[at].to(device).double()).norm(dim=1) for part, at in pieces]
    return Nearest(torch.cat(distance), index)


def _pixels(images: Tensor | ImageSet) -> Table:
    """Return images (n, *shape) as rows of pixels, those of a set in [0, 1]."""
    if isinstance(images, Tensor):
        return images.flatten(1)
    images = images.in_range(0.0, 1.0)
    return Rows((len(images), math.prod(images.shape[1:])), lambda rows: images[rows].flatten(1))


def coverage_of_set(index: Tensor, size: int) -> float:
    """Return the share of a data set of ``size`` members that is nearest (``Nearest.index``) to at least one image."""
    return class_histogram(index, size).bool().double().mean().item()


def expected_coverage(n: int, size: int) -> float:
    """Return the mean of :func:`coverage_of_set` for n exact independent draws: 1 - (1 - 1/size)^n, size at least 1."""
    if size < 1:
        raise UserError(f"a data set needs at least 1 member, not {size}")
    return 1 - (1 - 1 / size) ** n


class Memorisation(NamedTuple):
    """Shares and distances of :func:`memorisation`; ``fresh`` ones are of held-out images, unseen in training."""

    nearer_train: float
    """Share of generated images that are nearer to some training image than to any held-out one."""
    nearer_train_fresh: float
    """The same share for the held-out images, each compared with the training images and the other held-out ones."""
    to_train: float
    """Median distance of generated images to their nearest training image."""
    to_heldout: float
    """Median distance of generated images to their nearest held-out image."""
    to_train_fresh: float
    """Median distance of held-out images to their nearest training image."""
    to_heldout_fresh: float
    """Median distance of held-out images to their nearest other held-out image."""
    copies: float
    """Share of generated images nearer to a training image than 99 % of the held-out images are; 0.01 by chance."""
    error: float
    """Standard error of ``nearer_train - nearer_train_fresh``, from the binomial spread of the two shares."""


def memorisation(generated: Tensor | ImageSet, train: Tensor | ImageSet, heldout: Tensor | ImageSet) -> Memorisation:
    """Tell whether a model copies its training images: the nearest of these against the nearest held-out image, by L2.

    How to read it. If training and held-out images are draws from one distribution and the model has learned that
    distribution and not the images, a generated image is to both sets what a held-out image is: ``nearer_train`` is
    ``nearer_train_fresh`` up to about three times ``error``, and ``to_train / to_heldout`` is its fresh counterpart.
    A model that copies every image has nearer_train = 1, to_train = 0 and copies = 1.

    The fresh share is about T / (T + H) for T training and H held-out images, since the larger set is more often the
    nearer one; as the held-out images are compared with sets of the same sizes (but for the image itself), the two
    shares may be compared whatever T and H are. One distance alone does not tell: a blurry image is near to everything.

    Args:
        generated: (n, *shape). train: (T, *shape). heldout: (H, *shape), H at least 2. All in the same units.

    Raises:
        UserError: for different shapes, fewer than two held-out images, or values that are not finite.
    """
    if len(heldout) < 2:
        raise UserError(f"memorisation needs at least 2 held-out images, not {len(heldout)}")
    to_train, to_heldout = (distance_to_set(generated, data).distance for data in (train, heldout))
    fresh_train = distance_to_set(heldout, train).distance
    fresh_heldout = distance_to_set(heldout, heldout, exclude_self=True).distance
    shares = [
        (near < far).double().mean().item() for near, far in ((to_train, to_heldout), (fresh_train, fresh_heldout))
    ]
    medians = [d.median().item() for d in (to_train, to_heldout, fresh_train, fresh_heldout)]
    copies = (to_train < fresh_train.quantile(0.01)).double().mean().item()
    error = sum(p * (1 - p) / n for p, n in zip(shares, (len(generated), len(heldout)), strict=True)) ** 0.5
    return Memorisation(*shares, *medians, copies, error)
