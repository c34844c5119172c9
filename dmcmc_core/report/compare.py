"""How far two tables are from each other: in numbers, verdicts and words, without the columns that hold times."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

VERDICTS = ("holds", "verdict", "base")
"""Columns whose words are conclusions: whether a claim holds, what follows, how a setting is beside the base."""
ROUNDING = 1e-12
"""Numbers that are nearer to each other than this are equal: what is left of a sum that should be 0 has no digits."""


class Difference(NamedTuple):
    """The distance between two tables.

    Attributes:
        number: the largest relative difference of two numbers in one place, infinite where only one of them is finite.
        verdicts: how many cells of the columns :data:`VERDICTS` differ.
        words: how many other cells differ that are not a number in both tables.
        shape: what differs in rows or columns, in words; the cells are then not compared.
    """

    number: float = 0.0
    verdicts: int = 0
    words: int = 0
    shape: str = ""


def is_time(column: str) -> bool:
    """Tell whether a column holds wall times, which differ whenever the same thing is run again."""
    name = column.removesuffix("_spread")
    return name in ("ms", "seconds") or name.startswith("seconds_")


def read_cells(path: str | Path) -> list[list[str]]:
    """Read every cell of a CSV as text, the head first."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def without_times(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the cells of a table, the head first, without the columns that hold times."""
    times = {k for k, column in enumerate(cells[0]) if is_time(column)} if cells else set()
    return [[cell for k, cell in enumerate(row) if k not in times] for row in cells]


def difference(here: str | Path, there: str | Path) -> Difference:
    """Return how far the CSV ``here`` is from the CSV ``there``, cell by cell, without times.

    Raises:
        OSError, ValueError: for a file that cannot be read, and one that is not text.
    """
    ours, theirs = without_times(read_cells(here)), without_times(read_cells(there))
    if len(ours) != len(theirs):
        return Difference(shape=f"rows: {len(ours) - 1}, not {len(theirs) - 1}")
    if ours[:1] != theirs[:1] or list(map(len, ours)) != list(map(len, theirs)):
        return Difference(shape="other columns")
    number, verdicts, words = 0.0, 0, 0
    for row, other in zip(ours[1:], theirs[1:], strict=True):
        for column, a, b in zip(ours[0], row, other, strict=False):  # an empty line has no cell
            x, y = _number(a), _number(b)
            if x is not None and y is not None:
                number = max(number, relative(x, y))
            elif a != b:
                verdicts, words = verdicts + (column in VERDICTS), words + (column not in VERDICTS)
    return Difference(number, verdicts, words)


def relative(a: float, b: float) -> float:
    """Return the distance of two numbers in units of the larger one, infinite where only one of them is finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return 0.0 if abs(a - b) < ROUNDING else abs(a - b) / max(abs(a), abs(b))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
