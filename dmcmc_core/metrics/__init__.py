"""How far one set of images is from another: distances between features, between distributions, between neighbours.

All of it is arithmetic on tables of numbers, a row for an image, done in float64 and in blocks, so that 50,000 rows
fit. What turns images into such rows: :mod:`dmcmc_core.metrics.features`; a folder of images against a reference:
:mod:`dmcmc_core.metrics.evaluation`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.data import ImageSet
from dmcmc_core.errors import UserError

ROWS = 1024
"""Rows of a tile: pairs are always looked at in tiles of at most ROWS x ROWS (8 MB in float64)."""

NEIGHBOURS = 5
"""The k of precision, recall, density and coverage, as in Naeem et al. 2020."""

# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """A table (n, d) whose rows are read when they are asked for; everything here takes it in place of a tensor.

    Attributes:
        shape: (n, d).
        read: a slice or integers (r,) -> rows (r, d) float32, finite, on ``device``.
    """

    shape: tuple[int, int]
    read: Callable[[slice | Tensor], Tensor]
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self.read(rows)

    def split(self, size: int) -> Iterator[Tensor]:
        return (self.read(slice(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def narrow(self, _: int, start: int, length: int) -> Rows:
        """Those from ``start`` on, as a tensor's ``narrow(0, start, length)``."""
        return replace(
            self, shape=(length, self.shape[1]), read=lambda rows: self.read(torch.arange(start, start + length)[rows])
        )


Table = Tensor | Rows


def table(x: Table, name: str, first: int = 0) -> Table:
    """``x``, checked to be a table (n, d) of finite numbers; UserError if it is not. Rows were checked when written.

    ``first``: the number of its first row, for the message.
    """
    if isinstance(x, Rows):
        return x
    x = torch.as_tensor(x)
    if x.ndim != 2:
        raise UserError(f"{name} must have the shape (n, d), not {tuple(x.shape)}")
    if not x.isfinite().all():
        row = first + (~x.isfinite().all(1)).nonzero()[0].item()
        raise UserError(f"{name} are not finite, first in row {row}")
    return x


def _pair(x: Table, y: Table, least: int) -> tuple[Table, Table]:
    x, y = table(x, "features"), table(y, "reference features")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"rows of the same length are needed, not of {x.shape[1]} and {y.shape[1]} features")
    if min(len(x), len(y)) < least:
        raise UserError(f"at least {least} rows are needed in both sets, not {len(x)} and {len(y)}")
    return x, y


def _tiles(n: int, m: int, rows: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n, rows):
        for j in range(0, m, rows):
            yield slice(i, i + rows), slice(j, j + rows)


# ---- Fréchet distance ------------------------------------------------------------------------------------------------


def statistics(features: Table, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64; that of ``numpy.cov``.

    Raises:
        UserError: for fewer than two rows, or features that are not finite.
    """
    x = table(features, "features")
    if len(x) < 2:
        raise UserError(f"a covariance needs at least 2 rows of features, not {len(x)}")
    mu = sum(part.double().sum(0) for part in x.split(rows)) / len(x)
    centred = ((part.double() - mu) for part in x.split(rows))
    return mu, sum(part.T @ part for part in centred) / (len(x) - 1)


def frechet_distance(mu1, cov1, mu2, cov2) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, |mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).

    Dowson & Landau 1982; of Inception features it is the FID of Heusel et al. 2017 (arXiv 1706.08500, eq. 6). The trace
    of the root is the sum of the roots of the eigenvalues of the symmetric product F^T cov F with F F^T the covariance
    of the lower rank. Working in the range of that covariance keeps singular ones exact: directions in which nothing
    varies cannot contribute the root of a rounding error.

    Args:
        mu1, mu2: means (d,), tensors or arrays.
        cov1, cov2: covariances (d, d), symmetric, singular ones included.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        UserError: for shapes that do not fit, values that are not finite, or matrices that are no covariances.
    """
    mu1, mu2 = vector(mu1, "mu1"), vector(mu2, "mu2")
    if mu1.shape != mu2.shape:
        raise UserError(f"means of the same number of features are needed, not mu1 {len(mu1)} and mu2 {len(mu2)}")
    cov1, factor1 = covariance(cov1, "cov1", len(mu1))
    cov2, factor2 = covariance(cov2, "cov2", len(mu1))
    factor, cov = (factor1, cov2) if factor1.shape[1] <= factor2.shape[1] else (factor2, cov1)
    product = factor.T @ cov @ factor
    root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return max(0.0, ((mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * root).item())


def bootstrap_frechet(
    x: Table, mu, cov, *, resamples: int = 100, groups: Tensor | None = None, seed: int = 0, rows: int = ROWS
) -> Tensor:
    """Fréchet distances of resamples of features (n, d), drawn with replacement, from a Gaussian (``mu``, ``cov``).

    A resample holds fewer different rows than the set itself, and distances grow as there are fewer: the values lie
    above that of the whole set. Their spread is what they are good for.

    Args:
        groups: (n,) int64, the group of each row, from 0; whole groups are drawn then, as rows within one (images of
            one Markov chain) are not independent. None: every row is drawn by itself.

    Returns:
        (resamples,) float64.
    """
    groups = torch.arange(len(x)) if groups is None else groups
    n_groups, generator = int(groups.max()) + 1, torch.Generator().manual_seed(seed)
    centre = statistics(x, rows)[0]
    values = []
    for _ in range(resamples):
        drawn = torch.randint(n_groups, (n_groups,), generator=generator).bincount(minlength=n_groups)
        weights = drawn[groups].double().to(x.device)
        total, first, second = weights.sum(), 0, 0
        for part, weight in zip(x.split(rows), weights.split(rows), strict=True):
            centred = part.double() - centre
            first, second = first + weight @ centred, second + (weight[:, None] * centred).T @ centred
        mean = first / total
        resampled = (second - total * mean.outer(mean)) / (total - 1)
        values.append(frechet_distance(centre + mean, resampled, mu, cov))
    return torch.tensor(values, dtype=torch.float64)


def _float64(values, name: str) -> Tensor:
    values = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values, dtype=np.float64))
    values = values.detach().cpu().double()
    if not values.isfinite().all():
        raise UserError(f"{name} holds values that are not finite")
    return values


def vector(values, name: str) -> Tensor:
    values = torch.atleast_1d(_float64(values, name))
    if values.ndim != 1:
        raise UserError(f"{name} must have the shape (d,), not {tuple(values.shape)}")
    return values


def covariance(values, name: str, d: int) -> tuple[Tensor, Tensor]:
    """A checked covariance C (d, d), made exactly symmetric, and F (d, rank) with F F^T = C."""
    cov = torch.atleast_2d(_float64(values, name))
    if cov.shape != (d, d):
        raise UserError(f"{name} must have the shape {(d, d)} as its mean has {d} features, not {tuple(cov.shape)}")
    scale = cov.abs().max()
    if (cov - cov.T).abs().max() > 1e-5 * scale:  # float32 covariances of thousands of features pass
        raise UserError(f"{name} must be symmetric")
    cov = (cov + cov.T) / 2
    values, vectors = torch.linalg.eigh(cov)
    if values[0] < -1e-4 * scale:
        raise UserError(f"{name} must be positive semidefinite: its least eigenvalue is {values[0].item():.3g}")
    kept = values > values[-1].clamp(min=0) * d * torch.finfo(torch.float64).eps
    return cov, vectors[:, kept] * values[kept].sqrt()


# ---- kernel distance -------------------------------------------------------------------------------------------------


def kid(x: Table, y: Table, *, within_x: float | None = None, within_y: float | None = None, rows: int = ROWS) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (x . y / d + 1)^3, all pairs.

    Binkowski et al. 2018 (arXiv 1801.01401, Section 4), of Inception features the KID. Its mean over draws from equal
    distributions is 0, so single values may be negative. The value itself, where many tables print it times 1000;
    :func:`kid_subsets` averages over subsets as they do. ``within_x`` and ``within_y`` may carry ``within(x)`` and
    ``within(y)`` from an earlier call.

    Raises:
        UserError: for fewer than two rows, different numbers of features, or features that are not finite.
    """
    x, y = _pair(x, y, least=2)
    within_x = within(x, rows) if within_x is None else within_x
    within_y = within(y, rows) if within_y is None else within_y
    return within_x + within_y - 2 * _kernel_sum(x, y, rows) / (len(x) * len(y))


def within(x: Table, rows: int = ROWS) -> float:
    """Mean of KID's kernel over all pairs of different rows of features (n, d)."""
    itself = sum(_kernel(part, part, paired=True) for part in x.split(rows))
    return (_kernel_sum(x, x, rows) - itself) / (len(x) * (len(x) - 1))


def kid_subsets(x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation of :func:`kid` over random subsets, as published tables have it.

    The same subsets as torch-fidelity's for the same seed: drawn without replacement by NumPy's RandomState.

    Raises:
        UserError: for subsets larger than either set, and as :func:`kid`.
    """
    x, y = _pair(x, y, least=2)
    if not 2 <= size <= min(len(x), len(y)) or subsets < 1:
        raise UserError(
            f"subsets of 2 to {min(len(x), len(y))} rows are needed and at least one subset, "
            f"not size={size}, subsets={subsets}"
        )
    random = np.random.RandomState(seed)

    def draw(z: Tensor) -> Tensor:
        return z[torch.from_numpy(random.choice(len(z), size, replace=False)).to(z.device)]

    values = [kid(draw(x), draw(y)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: Tensor, y: Tensor, paired: bool = False) -> float:
    """Sum of the kernel over all pairs of rows, or over rows paired one with one."""
    x, y = x.double(), y.double()
    products = (x * y).sum(1) if paired else x @ y.T
    return products.div_(x.shape[1]).add_(1).pow_(3).sum().item()  # in place: tiles are what memory goes to


def _kernel_sum(x: Table, y: Table, rows: int) -> float:
    return sum(_kernel(a, b) for a in x.split(rows) for b in y.split(rows))


# ---- neighbours ------------------------------------------------------------------------------------------------------


class Prdc(NamedTuple):
    """What :func:`prdc` returns."""

    precision: float
    """Share of generated rows inside the ball of at least one reference row (Kynkäänniemi et al. 2019)."""
    recall: float
    """Share of reference rows inside the ball of at least one generated row."""
    density: float
    """Mean number of reference balls that a generated row is in, divided by k (Naeem et al. 2020); may exceed 1."""
    coverage: float
    """Share of reference balls that hold at least one generated row."""


def radii(x: Table, k: int = NEIGHBOURS, rows: int = ROWS) -> Tensor:
    """Distance of each row of features (n, d) to its k-th nearest other row, (n,) float64.

    Raises:
        UserError: unless 1 <= k < n.
    """
    if not 1 <= k < len(x):
        raise UserError(f"the k-th nearest neighbour needs 1 <= k < number of rows, not k={k} of {len(x)} rows")
    out = []
    for part in x.split(rows):
        nearest = part.new_empty(len(part), 0, dtype=torch.float64)
        for other in x.split(rows):
            both = torch.cat([nearest, _nearest(part, other, k + 1)], 1)
            nearest = both.topk(min(k + 1, both.shape[1]), largest=False).values  # the row itself is one of them
        out.append(nearest[:, k])
    return torch.cat(out)


def prdc(
    generated: Table,
    reference: Table,
    k: int = NEIGHBOURS,
    *,
    generated_radii: Tensor | None = None,
    reference_radii: Tensor | None = None,
    rows: int = ROWS,  # several tiles are held at a time; no number depends on their size
) -> Prdc:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) of features (n, d) and (m, d).

    A row's ball reaches to its k-th nearest neighbour in its own set and is open, as in the authors' package ``prdc``.
    Wherever it could make a difference, distances are sums of squared differences in float64 without the shortcut
    through inner products, so that copies are at distance 0 and ties are ties. ``generated_radii`` and
    ``reference_radii`` may carry ``radii(generated, k)`` and ``radii(reference, k)`` from an earlier call.

    Raises:
        UserError: unless 1 <= k < n, m; for different numbers of features, or features that are not finite.
    """
    x, y = _pair(generated, reference, least=k + 1)
    radius_x = radii(x, k, rows) if generated_radii is None else generated_radii
    radius_y = radii(y, k, rows) if reference_radii is None else reference_radii
    balls = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # reference balls that each generated row is in
    recalled = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    covered = torch.zeros_like(recalled)
    for i, j in _tiles(len(x), len(y), rows):
        closer = _comparison(x[i], y[j])
        inside = closer(radius_y[j].expand(len(radius_x[i]), -1))
        balls[i] += inside.sum(1)
        covered[j] |= inside.any(0)
        recalled[j] |= closer(radius_x[i, None].expand(-1, len(radius_y[j]))).any(0)
    precision, recall, depth, coverage = (t.double().mean().item() for t in (balls > 0, recalled, balls, covered))
    return Prdc(precision, recall, depth / k, coverage)


_FEW = 64  # rows for which inner products are not worth their trouble


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _squared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (n, m) through inner products, ten times faster; and by how much they may be wrong, (n, m).

    A sum of d products is off by at most d eps times the sum of their sizes; two norms, the product and the distance
    that it stands for make four of them, and a few roundings more.
    """
    middle = y.double().mean(0)  # inner products of centred rows lose fewer digits
    x, y = x.double() - middle, y.double() - middle
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2), norms * ((4 * x.shape[1] + 16) * torch.finfo(torch.float64).eps)


def _between(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The same numbers as ``_distances(x, y)[i, j]``, for indices i (p,) and j (p, q): (p, q)."""
    pieces = zip(i.split(64), j.split(64), strict=True)
    return torch.cat([_distances(x[a, None], y[b])[:, 0] for a, b in pieces]) if len(i) else x.new_empty(j.shape)


def _nearest(x: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` smallest of ``_distances(x, y)`` in each row, or all of them where there are not so many."""
    candidates = count + 8
    if len(y) <= max(candidates, _FEW):
        return _distances(x, y).topk(min(count, len(y)), largest=False).values
    squared, error = _squared(x, y)
    near = squared.topk(candidates, largest=False)
    found = _between(x, y, torch.arange(len(x)), near.indices).topk(count, largest=False).values
    others = near.values[:, -1] - error.amax(1)  # at least the squared distance of all that are no candidates
    unsure = found[:, -1].square() >= others
    if unsure.any():
        found[unsure] = _distances(x[unsure], y).topk(count, largest=False).values
    return found


def _comparison(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """radius (n, m) -> ``_distances(x, y) < radius``, computed as such where it is not sure from the inner products."""
    if min(len(x), len(y)) <= _FEW:
        distances = _distances(x, y)
        return lambda radius: distances < radius
    squared, error = _squared(x, y)

    def closer(radius: Tensor) -> Tensor:
        margin = radius.square() - squared
        unsure = margin.abs() <= error
        if unsure.sum() > unsure.numel() / 64:  # many copies
            return _distances(x, y) < radius
        inside = margin > 0
        i, j = unsure.nonzero(as_tuple=True)
        inside[i, j] = _between(x, y, i, j[:, None])[:, 0] < radius[i, j]
        return inside

    return closer


# ---- classes ---------------------------------------------------------------------------------------------------------


def class_histogram(labels: Tensor, n_classes: int) -> Tensor:
    """How often each of ``n_classes`` occurs in integer labels (n,): counts (n_classes,) int64.

    Raises:
        UserError: for labels that are no integers in [0, n_classes).
    """
    labels = torch.as_tensor(labels)
    if (
        labels.is_floating_point()
        or labels.ndim != 1
        or (labels.numel() and not 0 <= labels.min() <= labels.max() < n_classes)
    ):
        raise UserError(f"labels must be integers in [0, {n_classes}) of shape (n,)")
    return labels.long().bincount(minlength=n_classes)


def total_variation(counts: Tensor, reference: Tensor) -> float:
    """Half the sum of |p - q| for two histograms, in [0, 1]: the share of images that would have to change class."""
    p, q = _shares(counts, "counts"), _shares(reference, "reference")
    if p.shape != q.shape:
        raise UserError(f"histograms over the same classes are needed, not over {len(p)} and {len(q)}")
    return ((p - q).abs().sum() / 2).item()


def class_coverage(counts: Tensor, reference: Tensor) -> float:
    """Share of the classes of the reference histogram that occur at all in the other one."""
    p, q = _shares(counts, "counts"), _shares(reference, "reference")
    if p.shape != q.shape:
        raise UserError(f"histograms over the same classes are needed, not over {len(p)} and {len(q)}")
    return (p[q > 0] > 0).double().mean().item()


def _shares(counts: Tensor, name: str) -> Tensor:
    counts = vector(counts, name)
    if (counts < 0).any() or counts.sum() <= 0:
        raise UserError(f"{name} must be a histogram: numbers at least 0, not all of them 0")
    return counts / counts.sum()


# ---- distance to a data set, and memorisation ------------------------------------------------------------------------


class Nearest(NamedTuple):
    """Each image's nearest member of a data set."""

    distance: Tensor
    """(n,) float64, L2 over all pixels, in units of the pixels."""
    index: Tensor
    """(n,) int64 into the data set."""


def distance_to_set(
    images: Tensor | ImageSet, data: Tensor | ImageSet, *, exclude_self: bool = False, rows: int = ROWS
) -> Nearest:
    """Nearest member of ``data`` (K, *shape) to each of ``images`` (n, *shape), by L2 over the pixels.

    Found through inner products in the dtype of the images; the distance itself is then computed from the difference in
    float64, so a copy is at exactly 0. With ``exclude_self`` image i is not compared with member i: the two sets are
    the same one.

    Raises:
        UserError: for different shapes, an empty set, or values that are not finite.
    """
    if images.shape[1:] != data.shape[1:]:
        raise UserError(f"images of shape {tuple(images.shape[1:])} cannot be compared with {tuple(data.shape[1:])}")
    x, y = _pair(_pixels(images), _pixels(data), least=1)
    if exclude_self and not (len(x) == len(y) > 1):
        raise UserError(f"exclude_self compares a set of at least 2 with itself, not {len(x)} images with {len(y)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    device = x.device
    middle = sum(part.to(device, dtype).sum(0) for part in y.split(rows)) / len(y)  # centred rows lose fewer digits
    best = torch.full((len(x),), torch.inf, dtype=dtype, device=device)
    index = torch.zeros(len(x), dtype=torch.int64, device=device)
    for i, j in _tiles(len(x), len(y), rows):
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
    """Images (n, *shape) as rows of pixels, those of a set in [0, 1]."""
    if isinstance(images, Tensor):
        return images.flatten(1)
    images = images.in_range(0.0, 1.0)
    return Rows((len(images), math.prod(images.shape[1:])), lambda rows: images[rows].flatten(1))


def coverage_of_set(index: Tensor, size: int) -> float:
    """Share of a data set of ``size`` members that is the nearest one (``Nearest.index``) of at least one image."""
    return class_histogram(index, size).bool().double().mean().item()


def expected_coverage(n: int, size: int) -> float:
    """What :func:`coverage_of_set` is on average for n exact independent draws: 1 - (1 - 1/size)^n."""
    return 1 - (1 - 1 / size) ** n


class Memorisation(NamedTuple):
    """What :func:`memorisation` returns; ``fresh`` is the same for held-out images, which no training has seen."""

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
    """Does a model copy its training images? Nearest training image against nearest held-out image, L2 over pixels.

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


# ---- results of different n ------------------------------------------------------------------------------------------


def require_equal_n(a: Mapping | int, b: Mapping | int) -> None:
    """Refuse to compare two results (of :func:`measure`, or bare numbers of images) that were made at different n.

    Every one of these estimates is biased or spread by an amount that depends on n (Chong & Forsyth 2020, arXiv
    1911.07023). Results must also share the features, the reference and its number of images.

    Results must not differ in protocol and encoding of their images either, where they tell them.

    Raises:
        UserError: that names what differs.
    """
    a, b = ({"n": r} if isinstance(r, int) else r for r in (a, b))
    for key in ("n", "reference_n", "reference", "features", "protocol", "encoding"):
        if key in a and key in b and a[key] != b[key]:
            raise UserError(f"results of different {key} must not be compared: {a[key]!r} and {b[key]!r}")


def __getattr__(name: str):
    """What moved to the modules above this one keeps the name that notebooks know it by."""
    for module in () if name.startswith("__") else ("dmcmc_core.metrics.features", "dmcmc_core.metrics.evaluation"):
        found = vars(importlib.import_module(module))
        if name in found:
            return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
