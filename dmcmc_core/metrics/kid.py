"""The kernel distance: the unbiased squared maximum mean discrepancy of features, of which KID is one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError, number
from dmcmc_core.metrics.rows import ROWS, Rows, Table, table_pair


def kid(x: Table, y: Table, *, within_x: float | None = None, within_y: float | None = None, rows: int = ROWS) -> float:
    """Estimate the squared maximum mean discrepancy of features (n, d) and (m, d), without bias, from all pairs.

    The kernel is (x . y / d + 1)^3; of Inception features the value is the KID of Binkowski et al. 2018 (arXiv
    1801.01401, Section 4). Its mean over draws from equal distributions is 0, so single values may be negative. Many
    tables print it times 1000, which this is not; :func:`kid_subsets` averages over subsets as they do.

    Args:
        x, y: features (n, d) and (m, d).
        within_x, within_y: ``within(x)`` and ``within(y)`` of an earlier call, to save their time.

    Raises:
        UserError: for fewer than two rows, different numbers of features, or features that are not finite.
    """
    x, y = table_pair(x, y, least=2)
    within_x = within(x, rows) if within_x is None else within_x
    within_y = within(y, rows) if within_y is None else within_y
    return within_x + within_y - 2 * _kernel_sum(x, y, rows) / (len(x) * len(y))


def kid_error(x: Table, y: Table, groups: int = 16, rows: int = ROWS) -> float:
    """Return the standard error of :func:`kid` by which rows of x there are: the jackknife that leaves out groups.

    Row i is in group i mod ``groups``, so that with chains (row i of chain i mod C), C a multiple of it, whole chains
    are left out. Of equal distributions it is too large.

    Raises:
        UserError: as :func:`kid`; for fewer than two groups, and groups that leave fewer than two rows.
    """
    x, y = table_pair(x, y, least=2)
    number("groups", groups, least=2, most=len(x) // 2, whole=True)
    parts = [_every(x, torch.arange(g, len(x), groups)) for g in range(groups)]
    sums = np.zeros((groups, groups))
    for i, one in enumerate(parts):
        for j, other in enumerate(parts[: i + 1]):
            sums[i, j] = sums[j, i] = _kernel_sum(one, other, rows)
    itself = np.array([sum(_kernel(some, some, paired=True) for some in part.split(rows)) for part in parts])
    cross = np.array([_kernel_sum(part, y, rows) for part in parts])
    left = len(x) - np.array([len(part) for part in parts])
    within_left = sums.sum() - 2 * sums.sum(1) + sums.diagonal() - (itself.sum() - itself)
    without = within_left / (left * (left - 1)) - 2 * (cross.sum() - cross) / (left * len(y))
    return float(np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum()))


def _every(x: Table, index: Tensor) -> Rows:
    return Rows((len(index), x.shape[1]), lambda rows: x[index[rows]], x.device)


def within(x: Table, rows: int = ROWS) -> float:
    """Return the mean of KID's kernel over all pairs of different rows of features (n, d).

    Raises:
        UserError: for fewer than two rows.
    """
    if len(x) < 2:
        raise UserError(f"pairs of different rows need at least 2 rows of features, not {len(x)}")
    itself = sum(_kernel(part, part, paired=True) for part in x.split(rows))
    return (_kernel_sum(x, x, rows) - itself) / (len(x) * (len(x) - 1))


def kid_subsets(x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020) -> tuple[float, float]:
    """Return mean and standard deviation of :func:`kid` over random subsets, as published tables have it.

    The same subsets as torch-fidelity's for the same seed: drawn without replacement by NumPy's RandomState.

    Raises:
        UserError: for subsets larger than either set, and as :func:`kid`.
    """
    x, y = table_pair(x, y, least=2)
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
    """Sum the kernel over all pairs of rows, or over rows paired one with one."""
    x, y = x.double(), y.double()
    products = (x * y).sum(1) if paired else x @ y.T
    return products.div_(x.shape[1]).add_(1).pow_(3).sum().item()  # in place: tiles are what memory goes to


def _kernel_sum(x: Table, y: Table, rows: int) -> float:
    return sum(_kernel(a, b) for a in x.split(rows) for b in y.split(rows))
