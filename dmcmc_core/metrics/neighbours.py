"""Precision, recall, density and coverage: which rows lie within the nearest neighbours of which others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.metrics.rows import ROWS, Table, table_pair, tiles

NEIGHBOURS = 5
"""The k of precision, recall, density and coverage, as in Naeem et al. 2020."""


class Prdc(NamedTuple):
    """Precision, recall, density and coverage, as :func:`prdc` returns them."""

    precision: float
    """Share of generated rows inside the ball of at least one reference row (Kynkäänniemi et al. 2019)."""
    recall: float
    """Share of reference rows inside the ball of at least one generated row."""
    density: float
    """Mean number of reference balls that a generated row is in, divided by k (Naeem et al. 2020); may exceed 1."""
    coverage: float
    """Share of reference balls that hold at least one generated row."""


def radii(x: Table, k: int = NEIGHBOURS, rows: int = ROWS) -> Tensor:
    """Return the distance of each row of features (n, d) to its k-th nearest other row, (n,) float64.

    Raises:
        UserError: for k below 1, and fewer than k + 1 rows.
    """
    if k < 1:
        raise UserError(f"the k-th nearest neighbour needs k of at least 1, not {k}")
    if len(x) <= k:
        raise UserError(f"the k-th nearest neighbour of each row needs at least {k + 1} rows for k={k}, not {len(x)}")
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
    """Compute precision, recall (arXiv 1904.06991), density, coverage (arXiv 2002.09797) of features (n, d), (m, d).

    A row's ball reaches to its k-th nearest neighbour in its own set and is open, as in the authors' package ``prdc``.
    Wherever it could make a difference, distances are sums of squared differences in float64 without the shortcut
    through inner products, so that copies are at distance 0 and ties are ties. ``generated_radii`` and
    ``reference_radii`` may carry ``radii(generated, k)`` and ``radii(reference, k)`` from an earlier call.

    Raises:
        UserError: unless 1 <= k < n, m; for different numbers of features, or features that are not finite.
    """
    x, y = table_pair(generated, reference, least=k + 1)
    radius_x = radii(x, k, rows) if generated_radii is None else generated_radii
    radius_y = radii(y, k, rows) if reference_radii is None else reference_radii
    balls = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # reference balls that each generated row is in
    recalled = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    covered = torch.zeros_like(recalled)
    for i, j in tiles(len(x), len(y), rows):
        closer = _comparison(x[i], y[j])
        inside = closer(radius_y[j].expand(len(radius_x[i]), -1))
        balls[i] += inside.sum(1)
        covered[j] |= inside.any(0)
        recalled[j] |= closer(radius_x[i, None].expand(-1, len(radius_y[j]))).any(0)
    precision, recall, depth, coverage = (t.double().mean().item() for t in (balls > 0, recalled, balls, covered))
    return Prdc(precision, recall, depth / k, coverage)


_FEW = 64  # rows for which inner products are not worth their trouble


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the roots of sums of squared differences, (n, m) float64: exact to rounding, and slow."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _squared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances (n, m) by inner products, ten times faster, and by how much each may be wrong.

    A sum of d products is off by at most d eps times the sum of their sizes; two norms, the product and the distance
    that it stands for make four of them, and a few roundings more.
    """
    middle = y.double().mean(0)  # inner products of centred rows lose fewer digits
    x, y = x.double() - middle, y.double() - middle
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2), norms * ((4 * x.shape[1] + 16) * torch.finfo(torch.float64).eps)


def _between(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the same numbers as ``_distances(x, y)[i, j]``, for indices i (p,) and j (p, q): (p, q)."""
    pieces = zip(i.split(64), j.split(64), strict=True)
    return torch.cat([_distances(x[a, None], y[b])[:, 0] for a, b in pieces]) if len(i) else x.new_empty(j.shape)


def _nearest(x: Tensor, y: Tensor, count: int) -> Tensor:
    """Return the ``count`` smallest of ``_distances(x, y)`` in each row, or all where there are not so many."""
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
    """Return radius (n, m) -> ``_distances(x, y) < radius``, by inner products wherever these are sure enough."""
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
