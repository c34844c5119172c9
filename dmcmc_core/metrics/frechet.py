"""The Fréchet distance: mean and covariance of features, the distance of two Gaussians, its bootstrap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.metrics.rows import ROWS, Table, table


def statistics(features: Table, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and unbiased covariance (d, d) of features (n, d), in float64; that of ``numpy.cov``.

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
    """Return the squared 2-Wasserstein distance of two Gaussians.

    That is |mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), Dowson & Landau 1982. Of Inception features it is the
    FID of Heusel et al. 2017 (arXiv 1706.08500, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric product F^T cov F, with F F^T the
    covariance of the lower rank. Working in the range of that covariance keeps singular ones exact: directions in which
    nothing varies cannot contribute the root of a rounding error.

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
    """Return distances of resamples of features (n, d), drawn with replacement, from a Gaussian (``mu``, ``cov``).

    A resample holds fewer different rows than the set itself, and distances grow as there are fewer: the values lie
    above that of the whole set. Their spread is what they are good for.

    Args:
        groups: (n,) int64, the group of each row, from 0; whole groups are drawn then, as rows within one (images of
            one Markov chain) are not independent. None: every row is drawn by itself.

    Returns:
        (resamples,) float64.

    Raises:
        UserError: for fewer than two rows, and as :func:`frechet_distance`.
    """
    centre = statistics(x, rows)[0]
    groups = torch.arange(len(x)) if groups is None else groups
    n_groups, generator = int(groups.max()) + 1, torch.Generator().manual_seed(seed)
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
        why = ": all are NaN, as those of a single image are, and at least 2 are needed" if values.isnan().all() else ""
        raise UserError(f"{name} holds values that are not finite{why}")
    return values


def vector(values, name: str) -> Tensor:
    """Check finite numbers (d,), or a single one, and return them as float64 on the CPU; UserError for others."""
    values = torch.atleast_1d(_float64(values, name))
    if values.ndim != 1 or not len(values):
        raise UserError(f"{name} must have the shape (d,), d at least 1, not {tuple(values.shape)}")
    return values


def covariance(values, name: str, d: int) -> tuple[Tensor, Tensor]:
    """Check a covariance C (d, d); return it exactly symmetric, and F (d, rank) with F F^T = C.

    Raises:
        UserError: for another shape, numbers that are not finite, and matrices that are no covariances.
    """
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
