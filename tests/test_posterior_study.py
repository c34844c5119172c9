"""The noise-level posterior without a classifier: what judges an answer is right, and each claim can fail."""

import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.report import testbed
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import posterior as study
from dmcmc_core.workbench.studies import posterior_claims as claims
from dmcmc_core.workbench.studies.posterior import CLASSIFIER, EXACT, IDEAL, IN_A_CHAIN, RESIDUAL, Answer, Noised

CHAIN = {"chains": 35, "n_skip": 1, "step": "sigma2", "eta": 0.3, "renoise": 2.0, "warmup_levels": 2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = EmpiricalData(images, sigma_max=10.0)
    reference = metrics.make_reference(images, "random-conv", "eighty")
    bed = testbed.Testbed("toy", model, reference, images, None, tmp_path_factory.mktemp("bed"))
    return study.Case("toy", bed, 0, 60, CHAIN)


def test_images_have_the_levels_that_they_say(case):
    images = case.images
    assert torch.equal(images.levels[images.index].float(), images.sigma) and images.x.shape == (60, 1, 8, 8)
    nearest = case.exact.squared_distances(images.x).min(1).values.sqrt() / images.sigma
    assert ((nearest - 8).abs() < 3.2).all(), "the norm of 64 normals"


def test_calls_are_as_far_off_as_they_say(case):
    calls, sigma = case.calls(), case.images.sigma
    inside = (sigma * 2 < 10) & (sigma / 2 > case.exact.sigma_min)
    ratios = (calls["factor 2 off"] / sigma)[inside]
    assert set(ratios.tolist()) == {2.0, 0.5}
    near = (calls[IN_A_CHAIN] / sigma).log().abs()
    assert near.median() < 0.5 and near.max() > 0


def test_answers_of_an_exact_model_agree(case):
    answers = case.answers()
    assert list(answers) == [(EXACT, ""), (RESIDUAL, IN_A_CHAIN), (RESIDUAL, "20 % off"), (RESIDUAL, "factor 2 off")]
    assert all(a.nfe == 1 and a.calibration > 0 for (title, _), a in answers.items() if title == RESIDUAL)
    rows = study.judge("toy", case.images, answers, 0).rows
    exact, residual = (study.row_of(rows, "toy", *what) for what in ((EXACT,), (RESIDUAL, IN_A_CHAIN)))
    assert exact["total_variation"] == 0 < residual["total_variation"] < 0.2
    assert abs(exact["cross_entropy"] - exact["entropy"]) < 0.4


def test_a_sure_and_right_answer_has_no_error_and_a_uniform_one_covers():
    levels = torch.logspace(1, -1, 10, dtype=torch.float64)
    index = torch.arange(400) % 10
    images = Noised(torch.zeros(400, 1), index, levels[index].float(), levels)
    sure = torch.full((400, 10), -1e9).scatter(1, index[:, None], 0.0).log_softmax(1)
    even = torch.zeros(400, 10).log_softmax(1)
    judged = study.judge("toy", images, {(EXACT, ""): Answer(sure), (CLASSIFIER, ""): Answer(even)}, 0)
    right, vague = judged.rows
    assert right["error"] == pytest.approx(0, abs=1e-9) and right["total_variation"] == 0
    assert vague["total_variation"] == pytest.approx(0.9) and vague["cross_entropy"] == pytest.approx(2.3026, rel=1e-3)
    assert vague["inside_90"] == pytest.approx(0.9, abs=0.05), "each level is as likely as the posterior says"
    assert {row["panel"] for row in judged.by_level} == {"error", "total variation"}
    assert [row["x"] for row in judged.coverage[:2]] == [0.1, 0.2]


def means(own, other, levels=4.0):
    made = {}
    for kind, value, count in ((RESIDUAL, own, levels), (EXACT, other, 4.0)):
        row = {"frechet": Spread(value, 0.1, 3), "levels": count, "warmup": 1.0 + (kind == RESIDUAL), "n": 60}
        made["toy", f"DLG, {kind}", 10] = row
    return made


def answer(posterior, call="", **changed):
    values = {"total_variation": 0.1, "cross_entropy": 4.0, "inside_90": 0.9, "n": 100}
    return {"bed": "toy", "posterior": posterior, "call": call} | values | changed


def test_claims_on_chains_can_fail():
    rows = [answer(RESIDUAL, IN_A_CHAIN)]
    assert claims.of_chains("toy", 10, EXACT, means(1.05, 1.0), rows, "here")["holds"]
    made = claims.of_chains("toy", 10, EXACT, means(2.0, 1.0), rows, "here")
    assert not made["holds"] and "surely worse" in made["here"] and made["note"].endswith("posterior is 0.1")
    made = claims.of_chains("toy", 10, EXACT, means(2.0, 1.0, levels=3.0), rows, "here")
    assert made["note"].startswith("Heun has 3 levels instead of 4: calibration for 60 images")
    assert claims.of_cost([{"posterior": RESIDUAL, "calls_per_step": 1.0}])["holds"]
    assert not claims.of_cost([{"posterior": RESIDUAL, "calls_per_step": 2.0}])["holds"]


def test_claims_on_answers_can_fail():
    rows = [answer(EXACT), answer(RESIDUAL, IN_A_CHAIN), answer(CLASSIFIER, total_variation=0.2, cross_entropy=4.1)]
    assert claims.of_classifier("toy", rows)[0]["holds"] and claims.of_classifier("toy", rows[:2]) == []
    assert not claims.of_classifier("toy", [*rows[:2], answer(CLASSIFIER, total_variation=0.2)])[0]["holds"]
    assert claims.of_calibration("toy", IN_A_CHAIN, rows)["holds"]
    off = [answer(EXACT), answer(RESIDUAL, IN_A_CHAIN, inside_90=0.5), answer(IDEAL, IN_A_CHAIN, inside_90=0.88)]
    made = claims.of_calibration("toy", IN_A_CHAIN, off)
    assert not made["holds"] and made["note"].endswith("with the exact denoiser 0.880: it is the net that changes")
    assert claims.of_calibration("toy", IN_A_CHAIN, off[:2])["note"].endswith("for a residual")
