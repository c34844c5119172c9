"""The made part ``<!-- differences ... -->`` of a page: what so many seeds tell of two means, and would have told."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError
from dmcmc_core.report import detectable
from dmcmc_core.report.tables import Spread, in_words, spread_of

HEADS = ("compared", "here", "test", "p", "seen from")
"""Columns; the last is the least difference that would have been found in 80 of 100 repeats."""

Rows = list[dict[str, str]]


def differences(folder: Path, given: Mapping[str, Any]) -> Rows:
    """Return a row for each two means that are compared.

    Args:
        folder: ``figures/published``.
        given: ``from``, a CSV of the folder without its ending; ``rows``: name -> two filters, column -> value, or one
            where the file has differences itself; ``value``: the column of numbers. ``where`` is part of every filter.
            ``paired`` is true where rows of one seed share their noise. Rows of seeds have a column ``seed``; else the
            file has the spread beside the mean, as ``value_spread`` and ``value_n``. A row may end with its own value.

    Raises:
        UserError: for a file, column or row that is not there, and for fewer than two seeds.
    """
    rows = _read(folder / f"{given['from']}.csv")
    made = []
    for name, which in given["rows"].items():
        filters = [given.get("where", {}) | one for one in which if isinstance(one, dict)]
        value = next((one for one in which if not isinstance(one, dict)), given.get("value"))
        made.append({"compared": name} | _compared([_chosen(rows, one) for one in filters], value, given))
    return made


def _compared(sides: Sequence[Rows], value: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the other cells of a row."""
    spreads = [_spread(side, value) for side in sides]
    if len(sides) == 1:
        found, test = detectable.paired(spreads[0]), "paired"
        here = in_words(spreads[0])
    elif given.get("paired"):
        one, other = ({row["seed"]: float(row[value]) for row in side} for side in sides)
        gaps = spread_of(one[seed] - other[seed] for seed in one if seed in other)
        found, test = detectable.paired(gaps), "paired"
        here = f"{in_words(spreads[0])} against {in_words(spreads[1])}, difference {in_words(gaps)}"
    else:
        found, test = detectable.welch(*spreads), "Welch"
        here = f"{in_words(spreads[0])} against {in_words(spreads[1])}"
    return {
        "here": here,
        "test": f"{test}, {spreads[0].n} seeds",
        "p": f"{found.p:.2g}",
        "seen from": f"{found.least:.2g}",
    }


def _read(path: Path) -> Rows:
    if not path.is_file():
        raise UserError(f"{path} is not published")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _chosen(rows: Rows, which: Mapping[str, Any]) -> Rows:
    for column in which:
        if column not in rows[0]:
            raise UserError(f"there is no column {column!r}, only {', '.join(rows[0])}")
    found = [row for row in rows if all(row[column] == str(value) for column, value in which.items())]
    if not found:
        raise UserError(f"no row has {', '.join(f'{column} {value}' for column, value in which.items())}")
    return found


def _spread(rows: Rows, value: str) -> Spread:
    """Return mean and spread of a side: of its seeds, or as they stand in its one row."""
    if value not in rows[0]:
        raise UserError(f"there is no column {value!r}, only {', '.join(rows[0])}")
    if f"{value}_spread" in rows[0]:
        if len(rows) > 1:
            raise UserError(f"{len(rows)} rows of {value!r} are of one side, which has one mean")
        (row,) = rows
        return Spread(float(row[value]), float(row[f"{value}_spread"]), int(row[f"{value}_n"]))
    seeds = [row["seed"] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{len(seeds)} rows of {len(set(seeds))} seeds are of one side: each seed has one")
    return spread_of(float(row[value]) for row in rows)
