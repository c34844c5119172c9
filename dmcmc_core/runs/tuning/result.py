"""What a search found, and when one trial counts as better than another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dmcmc_core.runs.settings import SEARCHES

SURELY = 2.0
"""Standard errors that make a difference count."""
MEASURED = ("sampler", "seed", "distance", "rows", "without")
"""What a trial of chains has beside its settings."""


@dataclass
class Tuned:
    """What was chosen, for :func:`dmcmc_core.runs.make.run`, and what it rests on.

    ``paired``: plain samplers with their errors against the accurate solution, the chosen one first, and ``fitted``
    why a fitted solver is or is not among them. ``trials``: of chains, settings, distance and the rows evaluated for
    each, as tried. ``finals``: the chosen chains, then the chosen plain sampler at the same budget, on fresh seeds;
    ``distance`` is of those. Where the budget pays for no chains both are empty, and ``distance`` is a paired error.
    ``rows`` were evaluated for all of it together, ``nfe`` that is per image asked for.
    """

    sampler: str
    settings: dict[str, Any]
    distance: float
    nfe: float
    rows: int
    distance_name: str
    asked: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)
    paired: list[dict[str, Any]] = field(default_factory=list)
    fitted: str = ""
    plain: dict[str, Any] = field(default_factory=dict)
    """Sampler, settings of the chosen plain sampler."""

    def or_plain(self) -> Tuned:
        """Return what ``auto`` makes of the same search: the plain sampler, where chains are not surely better."""
        if surely_less(*self.finals):
            return self
        return replace(self, **self.plain, distance=self.finals[1]["distance"])

    def table(self) -> list[dict[str, Any]]:
        """Return a row for all that was tried: what it was ``measured`` by, its ``value``, whether it was ``chosen``.

        First plain samplers by their paired error, those on most images first; then chains by their distance in trials;
        then the two of the last comparison, on fresh seeds.
        """
        distance = self.distance_name
        rows = [(row, f"paired error, {row['images']} images", row["error"]) for row in self.paired]
        rows += [(row, f"{distance}, in trials", row["distance"]) for row in sorted(self.trials, key=_distance)]
        rows += [(row, f"{distance}, fresh seeds", row["distance"]) for row in self.finals]
        return [
            {"sampler": row["sampler"], "settings": described("", _settings(row)), "measured": measured, "value": value}
            | {"chosen": "chosen" if self._is(row) else ""}
            for row, measured, value in rows
        ]

    def _is(self, row: dict[str, Any]) -> bool:
        """Tell whether a row is of what was chosen; the levels of chains are those that a run's budget pays for."""
        return row["sampler"] == self.sampler and all(
            self.settings.get(name) == value for name, value in _settings(row).items() if name != "levels"
        )

    def __str__(self) -> str:
        text = f"chosen: {described(self.sampler, self.settings)}"
        if self.finals:
            text += f": {self.distance_name} {self.distance:.3g} to slow images of the model itself"
        text += f"; tuning cost {self.rows} evaluations, {self.nfe:.2f} NFE per image asked for"
        if self.finals:
            text += f"; {self._compared()}"
        if self.paired:
            best = self.paired[0]
            text += f"; of {len(self.paired)} plain samplers {described(best['sampler'], best['settings'])} is nearest "
            text += f"to the accurate solution, at a paired error of {best['error']:.3g}"
        return f"{text}; {self.fitted}" if self.fitted else text

    def _compared(self) -> str:
        """Say how chains and the plain sampler compare."""
        chains, plain = self.finals
        if self.sampler == plain["sampler"]:
            return f"{chains['sampler']}, at {chains['distance']:.3g}, is not surely better"
        if surely_less(chains, plain):
            return f"without chains {plain['sampler']} is at {plain['distance']:.3g}, surely worse"
        return (
            f"not surely better than {plain['sampler']} without chains, at {plain['distance']:.3g}: "
            f"--sampler {SEARCHES[1]} would choose a plain sampler"
        )


def described(sampler: str, settings: dict[str, Any]) -> str:
    """Return a sampler with its settings, in words; the settings alone without a sampler."""
    chosen = ", ".join(f"{k}={v}" for k, v in settings.items() if k != "file")
    return " with ".join(part for part in (sampler, chosen) if part)


def _settings(row: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a row, which those of chains have beside their measurements."""
    return row["settings"] if "settings" in row else {k: v for k, v in row.items() if k not in MEASURED}


def _distance(row: dict[str, Any]) -> float:
    return row["distance"]


def surely_less(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether trial a has the lower distance by two standard errors of a jackknife over chains."""
    one, other = torch.tensor(a["without"]), torch.tensor(b["without"])
    parts = [one - other] if len(one) == len(other) else [one, other]  # fewer chains than groups: no pairs
    error = sum((len(part) - 1) * part.var(correction=0) for part in parts).sqrt().item()
    return a["distance"] - b["distance"] < -SURELY * error
