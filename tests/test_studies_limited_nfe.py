"""The study of few evaluations: shares of DLG's gain, what is said of them, and claims that can hold and fail."""

from typing import NamedTuple

import pytest

from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import limited_nfe as study
from dmcmc_core.workbench.studies import limited_nfe_claims as claims
from dmcmc_core.workbench.studies.limited_nfe import DLG, MEAN, ZERO

TWO_M = "DPM-Solver++(2M), data mean"


def rows(budget=10, **means):
    """A row for each method and three seeds, whose distances lie around the mean."""
    return [
        {"bed": "toy", "method": method, "budget": budget, "seed": s, "levels": levels, "frechet": mean + 0.1 * (s - 1)}
        | {"nfe": 9.0, "nfe_paper": 8.0, "kid": 0.1, "precision": 1.0, "recall": 1.0, "n": 8, "seconds": {}}
        for levels, (method, mean) in enumerate(means.pop("of").items(), 4)
        for s in range(3)
    ]


def said(of, searches=(), budgets=(10,), published=()):
    made = rows(of=of)
    cells = study.cells_of(made)
    shares = study.shares(made, cells, ["toy"], budgets)
    return claims.of_bed(cells, "toy", budgets, list(searches), shares, "toy, n = 8, 3 seeds", published)


FAR = {ZERO: 9.0, MEAN: 6.0, TWO_M: 5.0, DLG: 3.0}


def test_cells_tables_and_points_leave_out_what_is_empty():
    cells = study.cells_of(rows(of=FAR))
    assert cells.best("toy", study.PLAIN, 10)[0] == TWO_M and cells.best("toy", study.TUNED, 20) is None
    (row,) = study.table(cells, ["toy"], [DLG], [5, 10])
    assert row["nfe5"] is None and row["nfe10"].mean == pytest.approx(3.0)
    assert [p["line"] for p in study.points(cells, ["toy"], [DLG, "auto"], [5, 10])] == [DLG]


def test_the_share_that_remains():
    made = rows(of=FAR)
    cells = study.cells_of(made)
    (line,) = study.shares(made, cells, ["toy"], [10])
    assert line["of_means"] == pytest.approx(0.5) and line["share"].mean == pytest.approx(0.5)
    assert line["verdict"] == "DLG: better than the data-mean start"
    text = study.sentence([line], "toy (n = 8)")
    assert text.startswith(
        "On toy (n = 8) 50 % (seed by seed 50 ± 0 %) of DLG's gain on Heun around 0 remains at 10 NFE"
    )
    worse = rows(of=FAR | {DLG: 12.0})
    (line,) = study.shares(worse, study.cells_of(worse), ["toy"], [10])
    assert line["share"] is None and line["verdict"] == "no gain: DLG is worse"
    assert study.sentence([line], "toy").endswith("gains nothing sure on Heun around 0 at 10 NFE.")
    without = rows(of={k: v for k, v in FAR.items() if k != DLG})
    (line,) = study.shares(without, study.cells_of(without), ["toy"], [10])
    assert line["verdict"] == "DLG needs more than the budget"
    assert study.listed([{"budget": b} for b in (5, 10, 20)]) == "5, 10 and 20"


class Published(NamedTuple):
    what: str
    value: float
    source: str


def test_claims_on_chains_hold_and_fail():
    paper = [Published("CIFAR-10, about 10 NFE: DLG", 3.86, "a paper"), Published("CelebA", 1.0, "another")]
    first, remains = said(FAR, published=paper)
    assert (
        first["holds"]
        and first["here"] == "DLG + Heun 3 ± 0.1 against DPM-Solver++(2M), data mean 5 ± 0.1 (toy, n = 8, 3 seeds)"
    )
    assert first["published"] == "3.86 (about 10 NFE: DLG)" and first["source"] == "a paper" and not first["note"]
    assert not remains["holds"] and remains["note"] == "surely better than the data-mean start at 10 NFE"
    first, remains = said(FAR | {DLG: 5.0, MEAN: 8.0})
    assert not first["holds"] and first["note"].startswith("no sure difference; the chains leave 7 levels to the")
    assert remains["holds"]
    (remains,) = said({k: v for k, v in FAR.items() if k != DLG})
    assert not remains["holds"] and remains["here"].startswith("no sure gain on the published start at any budget (toy")


def test_claims_on_searches_hold_and_fail():
    search = {"bed": "toy", "budget": 10, "rows": 99, "per_image": 1.5, "sampler": "heun", "settings": {}}
    searches = [search | {"search": kind} for kind in study.SEARCHES]
    tuned, plain = said(FAR | {"dlg+auto": 3.0, "auto": 4.0}, searches)[1:3]
    assert tuned["holds"] and not plain["holds"]
    assert tuned["claim"].endswith("dlg+auto is at least as good as the best DLG with hand-tuned chains")
    assert "the search cost 99 evaluations, 1.5 for each image; it chose heun {}" in plain["note"]
    tuned, plain = said(FAR | {"dlg+auto": 4.0, "auto": 3.0}, searches)[1:3]
    assert not tuned["holds"] and plain["holds"]


def test_a_figure_of_time_says_where_none_is_recorded(monkeypatch):
    titles = []
    monkeypatch.setattr(study.plots, "distance_lines", lambda rows, y, r, title, **how: titles.append(title))
    beds = study.Beds({}, {}, range(3), {})
    drawn = [{"panel": "toy", "line": DLG, "budget": 10}]
    made = [row | {"seconds": {"chains": 0.4, "integrator": 0.4}} for row in rows(of={DLG: 1.0})]
    _, timed = study.figure_of_time(beds, drawn, made)
    assert timed[0]["ms"] == pytest.approx(100.0)
    _, timed = study.figure_of_time(beds, drawn, rows(of={DLG: 1.0}))
    assert timed[0]["ms"] is None and titles == ["; 3 seeds", "no cell here has its time recorded"]
    assert isinstance(study.cells_of(made).distance("toy", DLG, 10), Spread)
