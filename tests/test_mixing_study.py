"""How chains mix: what a chain is worth is what it is by definition, and each claim can fail."""

import pytest
import torch

from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import mixing as study
from dmcmc_core.workbench.studies import mixing_claims as claims
from dmcmc_core.workbench.studies import mixing_measures as measures
from dmcmc_core.workbench.studies.mixing import CONSTANT, RESTARTS, SIGMA2
from dmcmc_core.workbench.studies.mixing_measures import Covered

PLAN = study.Plan(0, 2, 3, 3, 0.9, 8, 10, 5, 10, 5)
ETA = {"constant": 0.8, "sigma2": 1.0, "mala": 0.18, "hamiltonian": 0.1, "underdamped": 0.15, "adapted": 0.18}


@pytest.fixture(scope="module")
def bed():
    return study.make_bed("glyphs, exact", ETA, "glyphs32-exact", "glyphs32", "labels", 4)


def run_of(labels, sigmas, calls=None):
    steps = len(labels)
    return study.Run(list(calls or range(0, 2 * steps, 2)), sigmas, labels, torch.rand(labels.shape), None, 8.0, 2)


def still(bed, steps=5):
    """Chains that never move, begun exactly."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2]).expand(steps, 6)
    return run_of(labels, torch.full((steps, 6), 0.02))


def test_every_kernel_is_walked_at_the_same_calls_from_the_same_states(bed):
    assert bed.kernels == list(study.KERNELS) and len(bed.class_names) == len(bed.weights)
    runs = {kernel: study.run(bed, kernel, PLAN) for kernel in (CONSTANT, "mala", study.ADAPTED)}
    begun = [run.sigmas[0] for run in runs.values()]
    assert all(torch.equal(sigma, begun[0]) for sigma in begun)
    assert [run.cost for run in runs.values()] == [1, 2, 2] and all(run.nfe == 4 for run in runs.values())
    assert runs[CONSTANT].acceptance is None and 0 <= runs["mala"].acceptance <= 1
    assert not torch.equal(runs["mala"].sigmas, runs[study.ADAPTED].sigmas)
    assert PLAN.given(CONSTANT) == {"kernel": "langevin", "step": "constant"} and PLAN.given("mala") == {
        "kernel": "mala"
    }


def test_a_chain_that_never_moves_is_worth_one_draw_and_gains_nothing(bed):
    one = still(bed)
    weights = bed.weights
    worth = measures.worth(bed, one, 3)["class"]
    missed = torch.stack([(torch.eye(len(weights))[k] - weights).square().sum() for k in (0, 1, 2)]).mean()
    assert worth == pytest.approx([float((weights * (1 - weights)).sum() / missed)] * 2)
    table, measured = measures.table({bed.name: bed}, {(bed.name, CONSTANT): one}, PLAN)
    row = table[bed.name, CONSTANT]
    assert row["never"].mean == 1 and row["low"].mean == row["high"].mean == 0 and row["records low"].mean == 1
    assert row["drift"].mean == 0 and row["gain"].mean == pytest.approx(100 * (worth[0] - 1) / 8)
    assert [m["seed"] for m in measured] == [0, 1] and measured[0]["worth, class"] == pytest.approx(worth[0])


def test_changes_are_told_apart_by_the_level_before_them(bed):
    labels, sigmas = torch.zeros(3, 6, dtype=torch.long), torch.full((3, 6), 0.02)
    labels[2], sigmas[1] = 1, 40.0
    run = run_of(labels, sigmas)
    row = measures.table({bed.name: bed}, {(bed.name, CONSTANT): run}, PLAN)[0][bed.name, CONSTANT]
    assert row["low"].mean == 0 and row["high"].mean == 1 and row["never"].mean == 0
    assert row["records low"].mean == 0.5 and row["drift"].mean == -0.5


def test_autocorrelation_of_chains_that_stay_is_that_of_lag_zero(bed):
    rows = measures.autocorrelation({bed.name: bed}, {(bed.name, CONSTANT): still(bed)}, 3)
    ys = [row["y"].mean for row in rows if row["panel"].endswith(": class")]
    assert len(ys) == 3 and ys == pytest.approx([ys[0]] * 3)
    assert not measures.autocorrelation({bed.name: bed}, {(bed.name, RESTARTS): still(bed)}, 3)


def test_coverage_counts_records_of_a_group(bed):
    rows, last = measures.coverage({bed.name: bed}, {(bed.name, CONSTANT): still(bed)}, PLAN)
    covered = last[bed.name, CONSTANT]
    third = torch.zeros(len(bed.weights), dtype=torch.float64).index_fill(0, torch.arange(3), 1 / 3)
    assert covered.distance.mean == pytest.approx(float((third - bed.weights).abs().sum() / 2))
    assert covered.n == 12 and covered.independent < covered.bound and len(rows) == 8


def row(**changed):
    values = {"high": 0.8, "low": 0.1, "gain": 2.0, "never": 0.0, "records low": 0.5, "drift": 0.0, "class": 3.0}
    return {k: Spread(v, 0.05, 3) for k, v in (values | changed).items()} | {"middle 80 %": "1 to 2"}


def test_claims_on_changes_and_gains_can_fail():
    good, bad = row(), row(high=0.1, low=0.8, gain=0.5, never=0.9)
    assert claims.of_changes("toy", {"mala": good}, "here")["holds"]
    made = claims.of_changes("toy", {"mala": good, "other": bad}, "here")
    assert not made["holds"] and made["note"] == "not so: other, whose records are at low σ to 50.0%"
    assert claims.of_gain("toy", {"mala": good}, row(gain=1.0), 10, "here")["holds"]
    assert not claims.of_gain("toy", {"mala": bad}, row(gain=1.0), 10, "here")["holds"]
    assert claims.of_gain("toy", {"a": bad, "b": good}, row(gain=1.0), 10, "here")["holds"], "any of them"


def test_claims_on_coverage_and_drift_can_fail():
    near, far = (Covered(Spread(v, 0.01, 3), 60, 0.1, 0.2) for v in (0.15, 0.25))
    assert claims.of_coverage("toy", SIGMA2, 20, near, row(), "here")["holds"]
    made = claims.of_coverage("toy", SIGMA2, 20, far, row(), "here")
    assert not made["holds"] and made["note"] == "a chain is worth 3 ± 0.05 draws, not 3"
    assert claims.of_drift("toy", SIGMA2, row(drift=-0.01), "here")["holds"]
    assert not claims.of_drift("toy", SIGMA2, row(drift=-0.5), "here")["holds"]


def test_a_bed_has_every_claim_and_restarts_are_its_control(bed):
    rows = {(bed.name, k): row() for k in study.KERNELS} | {(bed.name, RESTARTS): row(gain=9.0)}
    covered = {(bed.name, k): Covered(Spread(0.1, 0.01, 3), 60, 0.1, 0.2) for k in study.KERNELS}
    made = claims.of_bed(bed, rows, covered, PLAN)
    assert [c["holds"] for c in made] == [True, False, False, False, True, True, True, True]
    assert made[3]["claim"].startswith("glyphs, exact: mala; mala, adapted; hamiltonian; underdamped, any of them")
