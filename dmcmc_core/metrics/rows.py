"""Tables of numbers, a row for an image: in memory, or read from disk when they are asked for.

All metrics are arithmetic on such rows, done in float64 and in blocks, so that 50,000 of them fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dmcmc_core.errors import UserError

ROWS = 1024
"""Rows of a tile: pairs are always looked at in tiles of at most ROWS x ROWS (8 MB in float64)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A table (n, d) whose rows are read when they are asked for; every metric takes it in place of a tensor.

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
        """Yield all rows in order, (at most ``size``, d) at a time."""
        return (self.read(slice(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def narrow(self, _: int, start: int, length: int) -> Rows:
        """Return ``length`` rows from ``start`` on, as a tensor's ``narrow(0, start, length)``."""
        return replace(
            self, shape=(length, self.shape[1]), read=lambda rows: self.read(torch.arange(start, start + length)[rows])
        )


Table = Tensor | Rows
"""Features (n, d), a row for an image."""


def table(x: Table, name: str, first: int = 0) -> Table:
    """Check that ``x`` is a table (n, d) of finite numbers and return it. Rows on disk were checked when written.

    Args:
        name: what the rows are, for the message.
        first: the number of the first row, for the message.

    Raises:
        UserError: for another shape, or numbers that are not finite.
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


def table_pair(x: Table, y: Table, least: int) -> tuple[Table, Table]:
    """Check two tables for equal columns and at least ``least`` rows each, and return them.

    Raises:
        UserError: for other numbers of columns or rows, and as :func:`table`.
    """
    x, y = table(x, "features"), table(y, "reference features")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"rows of the same length are needed, not of {x.shape[1]} and {y.shape[1]} features")
    if min(len(x), len(y)) < least:
        raise UserError(f"at least {least} rows are needed in both sets, not {len(x)} and {len(y)}")
    return x, y


def tiles(n: int, m: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield the slices of all pairs of n and m rows, at most ``rows`` x ``rows`` pairs at a time."""
    for i in range(0, n, rows):
        for j in range(0, m, rows):
            yield slice(i, i + rows), slice(j, j + rows)
