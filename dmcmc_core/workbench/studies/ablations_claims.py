"""What is claimed of single factors, from the numbers of :mod:`.ablations` alone.

A difference counts where Welch's t test over the seeds puts it below 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmcmc_core.report.tables import COMPARED, claim, compare, in_words
from dmcmc_core.workbench.studies.ablations import CHANCE, START, Case, Curves, Twice

Row = Mapping[str, Any]


def of_bed(
    found: Curves, case: Case, table: Sequence[Row], twice: Twice, published: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the claims on a test-bed.

    Args:
        found: the curves.
        case: the test-bed.
        table: rows of :func:`.ablations.table`.
        twice: of :meth:`.ablations.Case.emitted_twice`.
        published: factor -> what the paper says, with ``value`` and ``source``.
    """
    name = case.name
    where = f"{name}, n = {case.n}, {len(case.seeds)} seeds, {case.budget} NFE"
    own = [row for row in table if row["bed"] == name and not row["alone"]]
    said = [of_optimum(name, case.panel(f), found.curve(name, f), where, published[f]) for f in ("eta", "n_skip")]
    return [
        *said,
        of_draw(name, found.curve(name, "rule"), where),
        of_emission(name, twice, where),
        of_base(name, own, where),
        of_chains(name, own, found.distance(name, START, "mean"), where),
        of_start(name, found.curve(name, START), where),
    ]


def _said(points: Sequence[Row]) -> str:
    return ", ".join(f"{point['value']}: {in_words(point['distance'])}" for point in points)


def _at(points: Sequence[Row], value: str) -> Any:
    return next(point["distance"] for point in points if point["value"] == value)


def of_optimum(name: str, factor: str, points: Sequence[Row], where: str, published: Any) -> dict[str, Any]:
    """Return the claim that a factor has a best value inside the range tried, surely better than both its ends."""
    best, ends = min(points, key=lambda point: point["distance"].mean), (points[0], points[-1])
    unsure = [end["value"] for end in ends if compare(best["distance"], end["distance"]) < 1]
    note = ""
    if best in ends:
        note = f"the best value tried is at the end of the range, {best['value']}"
    elif unsure:
        note = f"the best, {best['value']}, is not surely better than the end {' and '.join(unsure)}"
    text = f"{name}: {factor} has an optimum within the values tried, surely better than both ends"
    return claim(text, not note, f"{_said(points)} ({where})", published.value, published.source, note)


def of_draw(name: str, points: Sequence[Row], where: str) -> dict[str, Any]:
    """Return the claim that a drawn noise level is as good as the likeliest one."""
    sign = compare(_at(points, "draw"), _at(points, "argmax"))
    text = f"{name}: drawing the noise level, as in the paper, is at least as good as its argmax, as in the code"
    note = "" if sign > 0 else f"draw against argmax: {COMPARED[sign]}"
    return claim(text, sign >= 0, f"{_said(points)} ({where})", note=note)


def of_emission(name: str, t: Twice, where: str) -> dict[str, Any]:
    """Return the claim that states are emitted twice as often as exchangeable levels would have it, to two errors."""
    near = abs(t.share - t.expected) <= 2 * t.error
    note = "more" if t.share > t.expected else "less"
    note += " often: noise levels drift along the chains, the starts' median from "
    note += f"{t.sigma_first:.3g} in the first window to {t.sigma_last:.3g} in the last"
    text = f"{name}: published emission repeats a state in 1 of 2 n_skip + 1 windows, as exchangeable levels would"
    said = f"{t.share:.3f} of {t.pairs} pairs; expected {t.expected:.3f} ± {t.error:.3f} ({where})"
    return claim(text, near, said, note="" if near else note)


def of_base(name: str, table: Sequence[Row], where: str) -> dict[str, Any]:
    """Return the claim that no change of one factor helps, of all rows of a test-bed with chains."""
    base = next(row["distance"] for row in table if row["base"] == "base")
    others = [row for row in table if row["base"] != "base"]
    better, worse = ([row for row in others if row["sign"] == sign] for sign in (1, -1))
    listed = [", ".join(f"{row['factor']} {row['value']}" for row in some) or "none" for some in (better, worse)]
    return claim(
        f"{name}: no change of one factor is surely better than the hand-tuned setting",
        not better,
        f"base {in_words(base)}; better: {listed[0]}; worse: {listed[1]} ({where})",
        note=f"of {len(others)} comparisons about {CHANCE * len(others):.1f} would differ by chance alone",
    )


def of_chains(name: str, table: Sequence[Row], alone: Any, where: str) -> dict[str, Any]:
    """Return the claim that the best setting of chains is better than Heun alone around the data's mean."""
    best = min(table, key=lambda row: row["distance"].mean)
    sign, tried = compare(best["distance"], alone), 1 + sum(row["base"] != "base" for row in table)
    return claim(
        f"{name}: the best of these settings is surely better than Heun alone around the data's mean",
        sign == 1,
        f"{best['factor']} {best['value']}: {in_words(best['distance'])} against {in_words(alone)} ({where})",
        note=f"{COMPARED[sign]}; the best of {tried} was chosen on these seeds, which flatters it",
    )


def of_start(name: str, points: Sequence[Row], where: str) -> dict[str, Any]:
    """Return the claim that the start around the mean is as good as one that nothing is wrong with."""
    sign = compare(_at(points, "exact"), _at(points, "mean"))
    text = f"{name}: started around the data's mean, Heun alone is as good as from noised images of the data"
    note = "so the mean does not repair all of the start" if sign == 1 else ""
    return claim(text, sign < 1, f"{_said(points)} ({where})", note=note)
