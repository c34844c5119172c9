"""What is claimed of the six integrators; sure is what Welch's t test over seeds puts below 5 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmcmc_core.report.tables import claim, compare, in_words
from dmcmc_core.workbench.studies.six_integrators import DLG, INTEGRATORS, MEAN, ZERO, Cells, of

Claim = dict[str, Any]
AROUND = {ZERO: "0", MEAN: "the data's mean"}
"""Arm without chains -> where it starts."""


def at_equal_budgets(
    cells: Cells, bed: str, budgets: Mapping[str, Sequence[int]], where: str, published: Sequence[Any] = ()
) -> list[Claim]:
    """Return the claims of Figure 3.

    Args:
        cells: what was measured.
        bed: name of the test-bed.
        budgets: integrator -> its budgets, ascending.
        where: test-bed, n and seeds.
        published: published values, with ``what``, ``value`` and ``source``.
    """
    by_name = {p.what: p for p in published}
    made = [
        _at_every_budget(cells, bed, integrator, arm, budgets[integrator], where, by_name)
        for integrator in INTEGRATORS
        for arm in AROUND
    ]
    low, high = budgets["heun"][0], budgets["heun"][-1]
    for arm, start in AROUND.items():
        a, b = cells.distance(bed, "heun", DLG, low), cells.distance(bed, "heun", arm, high)
        holds = compare(a, b) >= 0
        made.append(
            claim(
                f"KAR1 with DLG at {low} NFE is at least as good as KAR1 at {high} started around {start}",
                holds,
                f"{in_words(a)} against {in_words(b)} ({where})",
                *_quoted(by_name, "heun at 10 and 1000", arm),
                note="" if holds else "short chains and few levels cost more here than the start does",
            )
        )
    return made


def _quoted(published: Mapping[str, Any], what: str, arm: str) -> tuple[Any, Any]:
    """Return the published number and its source; the paper starts around 0."""
    paper = published.get(what) if arm == ZERO else None
    return (paper.value, paper.source) if paper else (None, None)


def _at_every_budget(  # noqa: PLR0913  a comparison as it is told
    cells: Cells, bed: str, integrator: str, arm: str, budgets: Sequence[int], where: str, published: Mapping[str, Any]
) -> Claim:
    pairs = [(cells.distance(bed, integrator, DLG, b), cells.distance(bed, integrator, arm, b)) for b in budgets]
    signs, note = [compare(a, b) for a, b in pairs], ""
    if min(signs) < 1:
        verdicts = {1: "better", 0: "no difference", -1: "worse"}
        note = "DLG is " + ", ".join(f"{verdicts[s]} at {b}" for s, b in zip(signs, budgets, strict=True)) + " NFE"
    if integrator == "rk45":
        used = [
            f"{cells.nfe(bed, integrator, DLG, b):.0f} and {cells.nfe(bed, integrator, arm, b):.0f}" for b in budgets
        ]
        note = f"{note}; " * bool(note) + f"adaptive: with and without DLG it used {', '.join(used)} NFE"
    told = (f"{a.mean:.3g} against {b.mean:.3g} at {nfe} NFE" for (a, b), nfe in zip(pairs, budgets, strict=True))
    return claim(
        f"{INTEGRATORS[integrator]}: DLG lowers the distance at every budget, against the start around {AROUND[arm]}",
        min(signs) == 1,
        f"{'; '.join(told)} ({where})",
        *_quoted(published, integrator, arm),
        note=note,
    )


def low_against_high(
    cells: Cells,
    bed: str,
    budgets: Mapping[str, Mapping[str, Sequence[int]]],
    where: str,
    published: Sequence[Any] = (),
) -> list[Claim]:
    """Return the claims of Figure 4 on a test-bed: better with DLG at the low budget than without at the high one.

    Args:
        cells, bed, where, published: as of :func:`at_equal_budgets`.
        budgets: test-bed -> integrator or ``default`` -> low and high.
    """
    by_name, made = {p.what: p for p in published}, []
    for arm, start in AROUND.items():
        for integrator, label in INTEGRATORS.items():
            low, high = of(budgets, bed, integrator)
            a, b = cells.distance(bed, integrator, DLG, low), cells.distance(bed, integrator, arm, high)
            sign = compare(a, b)
            verdict = {0: "no sure difference; ", -1: "worse; "}.get(sign, "")
            made.append(
                claim(
                    f"{bed}, {label}: better with DLG at {low} NFE than around {start} at {high}",
                    sign == 1,
                    f"{in_words(a)} against {in_words(b)} ({where})",
                    *_quoted(by_name, integrator, arm),
                    note=verdict + because(cells, bed, integrator, low, high) if verdict else "",
                )
            )
    return made


def because(cells: Cells, bed: str, integrator: str, low: int, high: int) -> str:
    """Return whether it is the budget or DLG: the same comparison with the budgets made equal."""
    dlg, control = (cells.distance(bed, integrator, arm, low) for arm in (DLG, MEAN))
    gain = compare(cells.distance(bed, integrator, MEAN, high), control)
    equal = {1: "better than", 0: "no different from", -1: "worse than"}[compare(dlg, control)]
    left, all_of_it = (cells.levels[bed, INTEGRATORS[integrator], arm, low] for arm in (DLG, MEAN))
    text = f"at {low} NFE DLG is {equal} the data-mean start ({dlg.mean:.3g} against {control.mean:.3g})"
    text += f", which has {all_of_it} levels where the chains leave {left}" if left else ""
    return text + f"; from {low} to {high} NFE that start " + ("gains" if gain == 1 else "gains nothing sure")
