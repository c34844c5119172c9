"""Figure, tables and claims of the bias budget, from the cells of :mod:`.bias_budget`.

A difference counts where Welch's t test over the seeds puts it below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dmcmc_core.report import plots
from dmcmc_core.report.tables import Spread, claim, compare, grouped, in_words, spread_of
from dmcmc_core.workbench.studies.bias_budget import Case, Parts, Rows, contribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORWARD, BACK = "forward: right parts come in", "back: published parts come in"
DIRECTIONS = {FORWARD: "forward", BACK: "back"}
MEAN_OF = ("nfe", "sigma_median", "accepted", "repeats")
"""Quantities of a cell whose spread the table leaves out."""
HEADS = {
    "bed": "test-bed",
    "right": "parts that are right",
    "frechet": "distance",
    "nfe": "NFE, full",
    "sigma_median": "median σ of the starts",
    "accepted": "accepted",
    "repeats": "repeats",
}
"""Columns of the table of cells: key -> heading."""


@dataclass(frozen=True)
class Budget:
    """All that was measured on a test-bed: cells by their right parts, the repaired setting, and Heun alone."""

    case: Case
    cells: Mapping[Parts, Rows]
    repaired: Rows
    zero: Rows
    mean: Rows

    @cached_property
    def floor(self) -> Spread:
        """The distance of as many images that nothing is wrong with."""
        return self.case.bed.floor(self.case.n, self.case.seeds)

    @property
    def published(self) -> Rows:
        """The cell with nothing right."""
        return self.cells[()]

    @property
    def right(self) -> Rows:
        """The cell with everything right."""
        return self.cells[self.case.parts]

    @cached_property
    def bars(self) -> list[dict[str, Any]]:
        """What each part contributes in each direction: its distance as published less that with it right."""
        parts, made = self.case.parts, []
        for direction in DIRECTIONS:
            for k, part in enumerate(parts):
                ends = (parts[:k], parts[: k + 1]) if direction == FORWARD else (parts[k + 1 :], parts[k:])
                about = {"bed": self.case.name, "part": part, "direction": direction}
                made.append(about | contribution(*(self.cells[right] for right in ends)))
        return made

    def of(self, direction: str) -> dict[str, Spread]:
        """Return what each part contributes in a direction."""
        return {bar["part"]: bar["contribution"] for bar in self.bars if bar["direction"] == direction}

    def ranked(self, direction: str) -> list[tuple[str, Spread]]:
        """Return the same, the largest first."""
        return sorted(self.of(direction).items(), key=lambda item: -item[1].mean)

    @property
    def where(self) -> str:
        """Test-bed, n and seeds, for a claim."""
        return f"{self.case.name}, n = {self.case.n}, {len(self.case.seeds)} seeds"


def distance(rows: Sequence[Mapping[str, Any]]) -> Spread:
    """Return the distance of a cell over its seeds."""
    return spread_of([row["frechet"] for row in rows])


def figure(budgets: Mapping[str, Budget]) -> tuple[Figure, list[dict[str, Any]]]:
    """Return the figure of contributions, a panel for each test-bed, and its rows."""
    lines = {
        name: {"same-n floor": b.floor.mean, "Heun alone, around the mean": distance(b.mean).mean}
        for name, b in budgets.items()
    }
    bars = [bar for b in budgets.values() for bar in b.bars]
    titles = {name: f"{name}: n = {b.case.n}, {len(b.case.seeds)} seeds" for name, b in budgets.items()}
    return plots.waterfall(bars, "distance", lines, titles), bars


def contributions(b: Budget) -> list[dict[str, Any]]:
    """Return the table of a test-bed: from everything as published to everything right, and what is left."""
    forward, back = b.of(FORWARD), b.of(BACK)
    remains = contribution(b.right, [{"frechet": b.floor.mean}] * len(b.right))["contribution"]
    rows = {"distance, everything as published": (distance(b.published),) * 2}
    rows |= {part: (forward[part], back[part]) for part in b.case.parts}
    rows |= {"distance, everything right": (distance(b.right),) * 2, "same-n floor": (b.floor,) * 2}
    rows |= {"unexplained (right less floor)": (remains,) * 2}
    return [{"bed": b.case.name, "part": part, "forward": f, "back": k} for part, (f, k) in rows.items()]


def behind(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every cell, of the rows of all."""
    found = grouped(rows, ("frechet", *MEAN_OF), ("bed", "right")).values()
    return [row | {key: row[key].mean for key in MEAN_OF if key in row} for row in found]


def sizes(budgets: Mapping[str, Budget]) -> str:
    """Return distance, reference and n of every test-bed, for a caption."""
    said = (
        f"{name}: {b.case.bed.distance} to {b.case.bed.reference.name}, n = {b.case.n} against {b.case.bed.reference.n}"
        for name, b in budgets.items()
    )
    return f"{'; '.join(said)}; {len(next(iter(budgets.values())).case.seeds)} seeds"


def claims(b: Budget) -> list[dict[str, Any]]:
    """Return the claims on a test-bed; none is the paper's."""
    largest = [of_largest(b, direction) for direction in DIRECTIONS]
    return [*largest, of_directions(b), of_helpers(b), of_repeats(b), of_rest(b), of_repair(b)]


def of_largest(b: Budget, direction: str) -> dict[str, Any]:
    """Return the claim that one part is surely the largest in a direction."""
    (first, a), (second, other), *_ = b.ranked(direction)
    sure = compare(a, other, lower=False) == 1
    said = ", ".join(f"{part} {in_words(c)}" for part, c in b.ranked(direction))
    text = f"{b.case.name}, {DIRECTIONS[direction]}: one part is surely the largest"
    return claim(
        text, sure, f"{said} ({b.where})", note=first if sure else f"{first} and {second} cannot be told apart"
    )


def of_directions(b: Budget) -> dict[str, Any]:
    """Return the claim that both directions agree on the largest part."""
    one, other = (b.ranked(direction)[0][0] for direction in DIRECTIONS)
    note = "" if one == other else "what a part costs depends on the parts around it"
    text = f"{b.case.name}: both directions name the same largest part"
    return claim(text, one == other, f"{one} forward, {other} back ({b.where})", note=note)


def of_helpers(b: Budget) -> dict[str, Any]:
    """Return the claim that no approximation lowers the distance by more than two standard errors."""
    helpers = [
        f"{part} ({word}, {in_words(c)})"
        for direction, word in DIRECTIONS.items()
        for part, c in b.of(direction).items()
        if c.mean < -2 * c.spread / math.sqrt(c.n)
    ]
    note = "an approximation that lowers the distance makes up for another one's error" if helpers else ""
    text = f"{b.case.name}: no published part surely helps, in either direction"
    return claim(text, not helpers, f"{', '.join(helpers) or 'none does'} ({b.where})", note=note)


def of_repeats(b: Budget) -> dict[str, Any]:
    """Return the claim that chains mix as well from exact draws of (x, sigma).

    Among these there is more little noise than the chains ever come to in so few steps.
    """
    warm, exact = (sum(row["repeats"] for row in b.cells[right]) / len(b.case.seeds) for right in ((), ("start",)))
    note = "" if exact <= warm else "states of little noise hardly move: their chain makes the same image again"
    text = f"{b.case.name}: chains that begin with exact draws of (x, σ) mix as well as those begun by warm-up"
    return claim(text, exact <= warm, f"repeats {exact:.3f} against {warm:.3f} ({b.where})", note=note)


def of_rest(b: Budget) -> dict[str, Any]:
    """Return the claim that the parts explain all of the distance."""
    ideal = distance(b.right)
    text = f"{b.case.name}: with everything right nothing is left to explain"
    said = f"{in_words(ideal)} against a floor of {in_words(b.floor)} ({b.where})"
    return claim(text, compare(ideal, b.floor) == 0, said)


def of_repair(b: Budget) -> dict[str, Any]:
    """Return the claim that the one repair that costs nothing helps."""
    before, after = distance(b.published), distance(b.repaired)
    sign = compare(after, before)
    text = f"{b.case.name}: starting warm-up around the data's mean surely lowers the published distance"
    note = {1: "", 0: "the seeds cannot tell", -1: "it raises it"}[sign]
    return claim(text, sign == 1, f"{in_words(after)} against {in_words(before)} ({b.where})", note=note)
