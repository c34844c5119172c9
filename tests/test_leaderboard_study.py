"""The leaderboard: cells are of the noise and the chains that they say, and claims can fail."""

import statistics
from typing import Any, NamedTuple

import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.errors import TooFew
from dmcmc_core.report import testbed
from dmcmc_core.report.beds import Beds
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import leaderboard as study
from dmcmc_core.workbench.studies import leaderboard_claims as claims
from dmcmc_core.workbench.studies.fitted_solvers import FITTED, TWO_M, rms
from dmcmc_core.workbench.studies.leaderboard import DLG, MEAN, ZERO, Board, Entry

N, SEEDS, HEUN = 70, range(2), "Heun (KAR1)"
WALK = {"chains": 35, "n_skip": 1, "step": "sigma2", "eta": 1.0, "renoise": 2.0, "warmup_steps": 0, "warmup_levels": 2}


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    means = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = GaussianMixture(means, torch.full((3,), 0.02), torch.ones(3), sigma_max=10.0, data_range=(0.0, 1.0))
    images = model.sample(80, seed=5).clamp(0, 1)
    reference = metrics.make_reference(images, "random-conv", "eighty")
    return testbed.Testbed("mixture", model, reference, images, None, tmp_path_factory.mktemp("bed"))


@pytest.fixture(scope="module")
def fit(bed):
    return study.fit(bed, [3, 6], 16, say=lambda line: None)


def measured(bed, solver, arm, budget, fit=None, walk=None) -> Any:
    return study.measure(bed, "toy", Entry(solver, arm), budget, N, SEEDS, walk or {}, fit)


def test_entries_start_where_they_can():
    some = study.entries(["heun", "unipc", "fitted"], ["heun", "fitted"], ["fitted"])
    assert [str(e) for e in some] == [
        "Heun (KAR1), zero mean",
        "Heun (KAR1), data mean",
        "UniPC, data mean",
        "fitted, data mean",
        "DLG + fitted",
    ]
    assert [e.sampler for e in some] == ["heun", "heun", "unipc", "fitted", "dlg+fitted"]


def test_a_fit_is_made_once_and_from_noise_that_no_row_has(bed, fit, monkeypatch):
    seeds = []
    real = study.fitting.solvers
    monkeypatch.setattr(study.fitting, "solvers", lambda *a, **k: seeds.append(k["seed"]) or real(*a, **k))
    said = []
    assert study.fit(bed, [3, 6], 16, say=said.append) == fit and not seeds
    assert f"the fit took {fit.cost} evaluations" in said[0]
    study.fit(bed, [3], 16, say=said.append)
    assert seeds == [study.FIT_SEED] and study.FIT_SEED not in SEEDS


@pytest.mark.parametrize(("solver", "arm"), [(TWO_M, MEAN), (HEUN, ZERO), (FITTED, MEAN)])
def test_pairs_are_of_the_noise_of_the_row(bed, fit, solver, arm):
    rows, errors = measured(bed, solver, arm, 6, fit)
    assert errors.shape == (2, N) and [row["seed"] for row in rows] == [0, 1]
    assert [row["paired_error"] for row in rows] == pytest.approx(rms(errors).tolist())
    fine, _ = measured(bed, "UniPC", arm, 40)
    assert all(row["paired_error"] < 0.01 for row in fine), "from other noise it would be that of other images"
    assert all("file" not in row["settings"] for row in rows)
    assert [row.get("fit_nfe") for row in rows] == [fit.cost if solver == FITTED else None] * 2


def test_a_fitted_solver_is_nearer_than_the_classical_one(bed, fit):
    """Of most images: between two modes of so narrow a mixture any solver may end at the other one."""
    near, far = (measured(bed, solver, MEAN, 6, fit)[1].median(1).values for solver in (FITTED, TWO_M))
    assert (near < far / 2).all()


def test_chains_leave_a_fitted_solver_what_they_do_not_take(bed):
    with pytest.raises(TooFew, match="fewer than 2 calls"):
        measured(bed, FITTED, DLG, 3, study.fit_chained(bed, N, {3: WALK}), WALK)
    found = study.fit_chained(bed, N, {3: WALK, 5: WALK}, 16, say=lambda line: None)
    rows, errors = measured(bed, FITTED, DLG, 5, found, WALK)
    assert errors is None and all("paired_error" not in row and 4 < row["nfe"] <= 5 for row in rows)


def test_a_board_has_mean_and_spread_of_cells_and_ranks_them(bed, fit):
    contest = {"toy": study.entries(["heun", "dpmpp_2m", "fitted"], ["heun"], [])}
    rows, errors = [], {}
    for e in contest["toy"]:
        made, errors["toy", e, 6] = study.measure(bed, "toy", e, 6, N, SEEDS, {}, fit)
        rows += made
    board = study.board(rows, errors, [])
    two_m = Entry(TWO_M, MEAN)
    values = [row["frechet"] for row in rows if row["solver"] == TWO_M]
    assert board.distance("toy", two_m, 6) == pytest.approx((statistics.fmean(values), statistics.stdev(values), 2))
    assert board.details["toy", Entry(FITTED, MEAN), 6]["fit_nfe"] == fit.cost
    assert "fit_nfe" not in board.details["toy", two_m, 6]
    assert set(board.paired("toy")) == {(HEUN, 6), (TWO_M, 6), (FITTED, 6)}
    assert torch.equal(board.paired("toy")[HEUN, 6], errors["toy", Entry(HEUN, MEAN), 6])
    lines = study.table(board, contest, [6], "paired_error")
    assert len(lines) == 4 and lines[-1]["nfe6"].mean == pytest.approx(rms(errors["toy", contest["toy"][-1], 6]).mean())
    means = [board.details["toy", e, 6]["frechet"].mean for e in contest["toy"]]
    assert [line["mean6"] for line in study.ranks(board, contest, [6])] == [1 + sorted(means).index(m) for m in means]
    figure, points = study.figure(board, {"toy": bed}, {"toy": Spread(1.0, 0.1, 2)}, "toy")
    assert len(figure.axes) == 2 and len(points) == 6
    assert {p["start"] for p in points if "start" in p} <= {MEAN}, "the line of the other start lies on it"
    heun = [p["nfe"] for p in points if p["line"] == HEUN]
    assert heun == [5, 5], "at the calls that it makes"


def test_what_a_budget_is_too_small_for_is_left_empty_with_its_reason(bed):
    """A long warm-up leaves Heun nothing of 3 calls."""
    said, contest = [], [Entry(TWO_M, MEAN), Entry(HEUN, DLG)]
    walks = {3: WALK | {"warmup_levels": 6}, 9: WALK}
    found = study.compete(bed, "toy", contest, [4], N, SEEDS, walks, {}, said.append)
    assert [(row["solver"], row["budget"]) for row in found.rows] == [(TWO_M, 4)] * 2 + [(HEUN, 9)] * 2
    assert list(found.errors) == [("toy", Entry(TWO_M, MEAN), 4)]
    (empty,) = found.empty
    assert (empty["solver"], empty["arm"], empty["budget"]) == (HEUN, DLG, 3) and empty["why"] in said[1]
    board = study.board(found.rows, found.errors, found.empty)
    assert "Some entries need more" in study.caption(
        Beds({"toy": bed}, {"toy": N}, SEEDS, {"toy": Spread(1.0, 0.1, 2)}), board
    )
    rows, heads = study.details(board)
    assert len(rows) == 2 and "fit_nfe" not in heads and "paired_error" in heads


class Row(NamedTuple):
    what: str
    value: float
    source: str


def toy(distances, errors):
    """A board of given distances (mean, with a spread of 0.1) by solver, arm and budget, and errors by solver."""
    details = {
        ("toy", Entry(solver, arm), b): {"frechet": Spread(mean, 0.1, 3)}
        for (solver, arm, b), mean in distances.items()
    }
    shared = torch.rand(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = {("toy", Entry(solver, MEAN), b): mean + 0.5 * shared for (solver, b), mean in errors.items()}
    return Board([], details, pairs, [])


def holds(made, text):
    (found,) = [c for c in made if text in c["claim"]]
    return found["holds"]


def of_bed(distances, errors, chained=()):
    published = [Row("CIFAR-10, EDM-VP network, 5 NFE: Heun", 3.0, "a source")]
    return claims.of_bed(toy(distances, errors), "toy", [5], list(chained), "n = 20, 3 seeds", published)


def test_claims_by_the_distance_can_fail():
    far = {(HEUN, MEAN, 5): 9.0, ("DEIS", MEAN, 5): 5.0, (TWO_M, MEAN, 5): 4.0, (FITTED, MEAN, 5): 2.0}
    errors = {(solver, 5): mean for (solver, _, _), mean in far.items()}
    made = of_bed(far, errors)
    assert holds(made, "one solver without DLG is better") and holds(made, "every multistep") and made[0]["published"]
    assert holds(made, "no classical solver is surely better")
    made = of_bed(far | {(FITTED, MEAN, 5): 4.05, ("DEIS", MEAN, 5): 9.5}, errors)
    assert not holds(made, "one solver without DLG is better") and not holds(made, "every multistep")
    assert holds(made, "no classical solver is surely better"), "it cannot be told from the first"
    assert not holds(of_bed(far | {(FITTED, MEAN, 5): 6.0}, errors), "no classical solver is surely better")


def test_claims_on_pairs_can_fail_where_distances_cannot_tell():
    far = {(solver, MEAN, 5): 4.0 for solver in (HEUN, "DEIS", TWO_M, FITTED)}
    errors = {(HEUN, 5): 0.5, ("DEIS", 5): 0.4, (TWO_M, 5): 0.301, (FITTED, 5): 0.3}
    made = of_bed(far, errors)
    assert not holds(made, "one solver without DLG is better") and holds(made, "by the paired error one solver")
    assert holds(made, "fitted is nearer") and not holds(made, "the error of fitted is at most 0.5")
    made = of_bed(far, errors | {(TWO_M, 5): 0.3})
    assert not holds(made, "by the paired error one solver") and not holds(made, "fitted is nearer")
    solvers = [(HEUN, 5), ("DEIS", 5)]
    assert not any(
        "fitted" in c["claim"]
        for c in of_bed({k: v for k, v in far.items() if k[0] in (HEUN, "DEIS")}, {k: errors[k] for k in solvers})
    )


def test_claims_on_chains_can_fail():
    far = {(HEUN, ZERO, 5): 9.0, (HEUN, MEAN, 5): 5.0, (TWO_M, MEAN, 5): 4.0, (HEUN, DLG, 5): 3.0}
    errors = {(HEUN, 5): 0.5, (TWO_M, 5): 0.4}
    made = of_bed(far, errors, [5])
    assert holds(made, "DLG improves at least one") and holds(made, "DLG improves every solver that starts around 0")
    made = of_bed(far | {(HEUN, DLG, 5): 9.0}, errors, [5])
    assert not holds(made, "DLG improves at least one")
    assert not holds(made, "DLG improves every solver that starts around 0")


def test_the_claim_on_all_beds_can_fail():
    far = {(HEUN, MEAN, b): 9.0 for b in (5, 10)} | {(TWO_M, MEAN, 5): 4.0, (TWO_M, MEAN, 10): 4.0}
    made = claims.of_all(toy(far, {}), ["toy"], [5, 10], "here")
    assert made["holds"] and made["note"].endswith("DPM-Solver++(2M) 1, Heun (KAR1) 2")
    assert not claims.of_all(toy(far | {(HEUN, MEAN, 10): 4.0}, {}), ["toy"], [5, 10], "here")["holds"]
    assert not claims.of_all(toy(far | {(HEUN, MEAN, 10): 2.0}, {}), ["toy"], [5, 10], "here")["holds"]
