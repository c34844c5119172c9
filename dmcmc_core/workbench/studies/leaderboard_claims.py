"""What the leaderboard claims, from the numbers of :mod:`.leaderboard` alone.

By the distance a difference counts where Welch's t test over seeds puts it below 5 %; by the paired error where
:func:`.fitted_solvers.nearer` does, over all pairs of images.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dmcmc_core.report.tables import claim, compare
from dmcmc_core.workbench.studies import fitted_claims
from dmcmc_core.workbench.studies.fitted_solvers import CLASSICAL, FITTED, nearer, spread
from dmcmc_core.workbench.studies.leaderboard import DLG, MEAN, ZERO, Board, Entry, against, best

PLAIN = (ZERO, MEAN)
HEUN = CLASSICAL["heun"]
FAST = [label for name, label in CLASSICAL.items() if name not in ("heun", "euler")]


def of_bed(
    here: Board, name: str, budgets: Sequence[int], chained: Sequence[int], where: str, published: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """Return the claims on a test-bed.

    Args:
        here: what was measured.
        name: of the test-bed.
        budgets: of solvers without chains.
        chained: those of solvers with chains; none where there are none.
        where: n and seeds.
        published: published values, with ``what``, ``value`` and ``source``.
    """
    pairs, told, where, made = here.paired(name), f"{name}, {where}", f"({name}, {where})", []
    for b in budgets:
        made += [_first(here, name, b, where, published), _nearest(here, name, b, where)]
        made.append(_beside_heun(here, name, b, where, published))
        if b in chained and best(here, name, (DLG,), b):
            made.append(_chains(here, name, b, where, published))
    if any(solver == FITTED for solver, _ in pairs):
        made.append(_fitted_distance(here, name, budgets, where))
        made += [c | {"claim": f"{name}: {c['claim']}"} for c in fitted_claims.of_errors(pairs, told)]
    return made + ([_published_start(here, name, chained, where)] if chained else [])


def leading(here: Board, names: Iterable[str], budgets: Sequence[int]) -> dict[tuple[str, int], set[str]]:
    """Return the solvers without chains that are first by the distance, or not to be told from that, by place."""
    found = {}
    for name in names:
        for b in budgets:
            top = best(here, name, PLAIN, b)
            assert top, f"{name} at {b} NFE: nothing was measured"
            found[name, b] = {
                top.solver,
                *(e.solver for e in against(here, name, top, _rivals(here, name, top, b), b)[1]),
            }
    return found


def mean_ranks(here: Board, names: Iterable[str], budgets: Sequence[int]) -> dict[str, float]:
    """Return the mean rank of solvers around the mean by their mean distance, over beds and budgets, best first."""
    places: dict[str, list[int]] = {}
    for name in names:
        for b in budgets:
            some = sorted(here.there(name, b, (MEAN,)), key=lambda e: here.distance(name, e, b))  # pyright: ignore
            for place, e in enumerate(some, 1):
                places.setdefault(e.solver, []).append(place)
    means = {solver: statistics.fmean(found) for solver, found in places.items()}
    return dict(sorted(means.items(), key=lambda one: one[1]))


def of_all(here: Board, names: Sequence[str], budgets: Sequence[int], where: str) -> dict[str, Any]:
    """Return the claim on all test-beds together."""
    first, average = leading(here, names, budgets), mean_ranks(here, names, budgets)
    always = [x for x in average if all(x in some for some in first.values())]
    beatable = [x for x in average if x not in always]
    return claim(
        "One solver without DLG is surely the best at every budget on every test-bed",
        all(len(some) == 1 for some in first.values()) and len(always) == 1,
        f"never surely behind the best: {_listed(always)}; at least once: {_listed(beatable)} ({where})",
        note="mean rank by the mean distance: " + ", ".join(f"{x} {rank:.2g}" for x, rank in average.items()),
    )


def _rivals(here: Board, name: str, top: Entry, budget: int) -> list[Entry]:
    return [e for e in here.there(name, budget, PLAIN) if e.solver != top.solver]


def _first(here: Board, name: str, b: int, where: str, published: Sequence[Any]) -> dict[str, Any]:
    top = best(here, name, PLAIN, b)
    assert top, f"{name} at {b} NFE: nothing was measured"
    rivals = _rivals(here, name, top, b)
    tied = against(here, name, top, rivals, b)[1]
    second = min(rivals, key=lambda e: here.distance(name, e, b))  # pyright: ignore
    return claim(
        f"{name}, {b} NFE: one solver without DLG is better than all others",
        not tied,
        f"first {_words(here, name, top, b)}, next {_words(here, name, second, b)} {where}",
        *_quoted(published, "EDM-VP", f" {b} NFE: "),
        note=f"the seeds cannot tell the first from {_listed(tied)}" if tied else "",
    )


def _nearest(here: Board, name: str, b: int, where: str) -> dict[str, Any]:
    found = {solver: each for (solver, budget), each in here.paired(name).items() if budget == b}
    first, *farther = sorted(found, key=lambda solver: spread(found[solver]).mean)
    alike = [solver for solver in farther if not nearer(found[first], found[solver])]
    told = [f"{solver} {(s := spread(found[solver])).mean:.3g} ± {s.spread:.1g}" for solver in (first, *farther)]
    return claim(
        f"{name}, {b} NFE: by the paired error one solver is better than all others from the same noise",
        not alike,
        f"{'; '.join(told)} {where}",
        note=f"the pairs cannot tell the first from {_listed(alike)}" if alike else "",
    )


def _beside_heun(here: Board, name: str, b: int, where: str, published: Sequence[Any]) -> dict[str, Any]:
    heun, fast = Entry(HEUN, MEAN), [e for e in here.there(name, b, (MEAN,)) if e.solver in FAST]
    worse, same, better = against(here, name, heun, fast, b)
    return claim(
        f"{name}, {b} NFE: every multistep solver is better than Heun from the same start",
        not worse and not same,
        f"{'; '.join(_words(here, name, e, b) for e in (heun, *fast))} {where}",
        *_quoted(published, "EDM-VP", f" {b} NFE: "),
        note=f"surely better: {_listed(better)}; no sure difference: {_listed(same)}; worse: {_listed(worse)}",
    )


def _chains(here: Board, name: str, b: int, where: str, published: Sequence[Any]) -> dict[str, Any]:
    more, same, less = _gains(here, name, MEAN, b)
    chained, top = best(here, name, (DLG,), b), best(here, name, PLAIN, b)
    assert chained and top
    return claim(
        f"{name}, {b} NFE: DLG improves at least one solver started around the data's mean",
        bool(more),
        f"improved: {_listed(more)}; the best with DLG is {_words(here, name, chained, b)}, "
        f"without {_words(here, name, top, b)} {where}",
        *_quoted(published, "DLG", f" {b} NFE: "),
        note=f"no sure difference: {_listed(same)}; made worse: {_listed(less)}",
    )


def _published_start(here: Board, name: str, budgets: Sequence[int], where: str) -> dict[str, Any]:
    helped = {b: _gains(here, name, ZERO, b) for b in budgets}
    solvers = {solver for gains in helped.values() for some in gains for solver in some}
    return claim(
        f"{name}: DLG improves every solver that starts around 0, as published, at some budget",
        bool(solvers) and all(any(x in more for more, _, _ in helped.values()) for x in solvers),
        "; ".join(f"{b} NFE: improved {_listed(more)}" for b, (more, _, _) in helped.items()) + f" {where}",
        note="; ".join(
            f"{b} NFE: no sure difference {_listed(same)}, made worse {_listed(less)}"
            for b, (_, same, less) in helped.items()
        ),
    )


def _fitted_distance(here: Board, name: str, budgets: Sequence[int], where: str) -> dict[str, Any]:
    """Return the claim that a fitted solver is never behind by the distance, the best classical one beside it."""
    mine, said, behind = Entry(FITTED, MEAN), [], []
    for b in budgets:
        others = [e for e in here.there(name, b, PLAIN) if e.solver != FITTED]
        least = min(others, key=lambda e: here.distance(name, e, b))  # pyright: ignore
        said.append(f"{b} NFE: {_words(here, name, mine, b)}, {_words(here, name, least, b)}")
        behind += [str(b)] if against(here, name, mine, others, b)[2] else []
    return claim(
        f"{name}: by the distance no classical solver is surely better than fitted, at any budget",
        not behind,
        f"{'; '.join(said)} {where}",
        note=f"behind at {', '.join(behind)} NFE" if behind else "",
    )


def _gains(here: Board, name: str, arm: str, b: int) -> tuple[list[str], list[str], list[str]]:
    """Return solvers that DLG surely improves on an arm, those not to be told, and those that it makes worse."""
    signs: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for entry in here.there(name, b, (DLG,)):
        chained, without = here.distance(name, entry, b), here.distance(name, Entry(entry.solver, arm), b)
        if chained and without:
            signs[compare(chained, without)].append(entry.solver)
    return signs[1], signs[0], signs[-1]


def _words(here: Board, name: str, entry: Entry, b: int) -> str:
    value = here.distance(name, entry, b)
    return f"{entry} {value.mean:.3g} ± {value.spread:.2g}" if value else f"{entry} nothing"


def _listed(some: Iterable[Any]) -> str:
    return ", ".join(map(str, some)) or "none"


def _quoted(published: Sequence[Any], *marks: str) -> tuple[str | None, str | None]:
    """Return published values of the rows that hold all marks, and their sources, as a claim has them."""
    found = [p for p in published if all(mark in p.what for mark in marks)]
    text = "; ".join(f"{p.value} ({p.what.split(': ')[-1]})" for p in found)
    return text or None, "; ".join(dict.fromkeys(p.source for p in found)) or None
