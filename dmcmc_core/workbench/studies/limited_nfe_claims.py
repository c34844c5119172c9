"""What is claimed at few network evaluations; sure is what Welch's t test over seeds puts below 5 %."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmcmc_core.report.tables import Spread, claim, compare, in_words
from dmcmc_core.runs import tuning
from dmcmc_core.workbench.studies.limited_nfe import DLG, PLAIN, SEARCHES, TUNED, Cells, Rows, listed

Claim = dict[str, Any]
PAPER = {10: ("10 NFE",), 20: ("20 NFE", "16 NFE")}
"""Budget -> what published numbers beside it say."""


def of_bed(
    cells: Cells,
    name: str,
    budgets: Sequence[int],
    searches: Rows,
    shares: Rows,
    where: str,
    published: Sequence[Any] = (),
) -> list[Claim]:
    """Return the claims on a test-bed.

    Args:
        cells: what was measured.
        name: of the test-bed.
        budgets: full NFE.
        searches, shares: of all test-beds.
        where: test-bed, n and seeds.
        published: published values, with ``what``, ``value`` and ``source``.
    """
    made = [one for b in budgets if (one := _chains(cells, name, b, where, published))]
    made += [_search(cells, search, where) for search in searches if search["bed"] == name]
    return [*made, _remains([line for line in shares if line["bed"] == name], name, where)]


def _chains(cells: Cells, name: str, b: int, where: str, published: Sequence[Any]) -> Claim | None:
    chained, plain = cells.best(name, TUNED, b), cells.best(name, PLAIN, b)
    if chained is None:
        return None
    assert plain, f"{name} at {b} NFE: nothing was measured without chains"
    sign = compare(chained[1], plain[1])
    paper = [p for p in published if p.what.startswith("CIFAR-10") and any(x in p.what for x in PAPER.get(b, ()))]
    left, its = (cells.levels[name, label, b] for label, _ in (chained, plain))
    note = f"; the chains leave {left} levels to the integrator, {plain[0]} has {its}"
    verdict = {0: "no sure difference", -1: "worse"}.get(sign, "")
    return claim(
        f"{name}, {b} NFE: the best DLG with hand-tuned chains is better than the best plain solver",
        sign == 1,
        f"{_words(*chained)} against {_words(*plain)} ({where})",
        "; ".join(f"{p.value} ({p.what.removeprefix('CIFAR-10, ')})" for p in paper) or None,
        "; ".join(dict.fromkeys(p.source for p in paper)) or None,
        verdict + note if verdict else "",
    )


def _search(cells: Cells, search: dict[str, Any], where: str) -> Claim:
    name, kind, b = search["bed"], search["search"], search["budget"]
    mine, hand = cells.distance(name, kind, b), cells.best(name, SEARCHES[kind], b)
    assert mine and hand, f"{name} at {b} NFE: the search has nothing beside it"
    others = "DLG with hand-tuned chains" if kind == tuning.AUTO else "of all other rows"
    cost = f"the search cost {search['rows']} evaluations, {search['per_image']:.1f} for each image"
    return claim(
        f"{name}, {b} NFE: {kind} is at least as good as the best {others}",
        compare(mine, hand[1]) >= 0,
        f"{_words(kind, mine)} against {_words(*hand)} ({where})",
        note=f"{cost}; it chose {search['sampler']} {search['settings']}",
    )


def _remains(lines: Rows, name: str, where: str) -> Claim:
    gains = [line for line in lines if line["share"] is not None]
    surely = [line for line in gains if compare(line["dlg"], line["mean"]) == 1]
    told = "; ".join(
        f"{x['of_means']:.2g} (seed by seed {x['share'].mean:.2g} ± {x['share'].spread:.2g}) at {x['budget']} NFE"
        for x in gains
    )
    return claim(
        f"{name}: where {DLG} gains on Heun around 0, more than half of that remains against the data mean",
        bool(gains) and all(line["of_means"] > 0.5 for line in gains),
        f"{told or 'no sure gain on the published start at any budget'} ({where})",
        note=f"surely better than the data-mean start at {f'{listed(surely)} NFE' if surely else 'no budget'}",
    )


def _words(label: str, value: Spread) -> str:
    return f"{label} {in_words(value)}"
