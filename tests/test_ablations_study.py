"""Ablations: a value changes what it says and nothing else, and each claim can fail."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.report import testbed
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import ablations as study
from dmcmc_core.workbench.studies import ablations_claims as claims
from dmcmc_core.workbench.studies.ablations import Curves, Twice

CHAIN = {"chains": 35, "n_skip": 2, "step": "sigma2", "eta": 0.3, "renoise": 2.0, "warmup_levels": 2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = EmpiricalData(images, sigma_max=10.0)
    bed = testbed.Testbed(
        "toy",
        model,
        metrics.make_reference(images, "random-conv", "eighty"),
        images,
        None,
        tmp_path_factory.mktemp("b"),
    )
    return study.Case("toy", bed, 12, 70, range(2), CHAIN)


def test_values_stand_beside_the_settings_own_in_order(case):
    assert case.values("eta", [1.0, 0.1]) == [0.1, 0.3, 1.0]
    assert case.values("rule", ["argmax"]) == ["draw", "argmax"] and case.values("published", [True]) == [False, True]
    assert case.values("eta_constant", [3.0, 1.0]) == [3.0, 1.0], "another kind of step has no value of the setting"
    assert case.panel("eta") == case.panel("eta_sigma2") != case.panel("eta_constant")


def test_a_value_changes_what_it_says(case):
    assert case.varied("eta_constant", 0.5) == ({"step": "constant", "eta": 0.5}, "0.5")
    assert case.varied("kernel", "mala") == ({"kernel": "mala", "n_skip": 1}, "mala"), "a step of two calls"
    assert case.varied("kernel", {"kernel": "mala", "eta": 0.1})[1] == "mala, 0.1"
    assert case.varied("published", True)[1] == "published"


def test_rows_are_of_the_budget_and_the_base_is_known(case):
    base, other = (case.rows("eta", eta) for eta in (0.3, 1.0))
    assert [row["base"] for row in (*base, *other)] == [True, True, False, False]
    assert all(row["nfe"] <= 12 and row["n"] == 70 for row in base)
    exact = case.rows("start", "exact")
    assert [row["value"] for row in exact] == ["exact"] * 2 and exact[0]["nfe"] <= 12 and not exact[0]["base"]
    assert exact[0]["frechet"] == case.from_data(0)["frechet"] != exact[1]["frechet"]


def test_a_state_emitted_twice_is_counted(case):
    twice = case.emitted_twice()
    assert twice.pairs == 2 * 35 and 0 <= twice.share <= 1 and twice.expected == pytest.approx(0.2)
    assert twice.error == pytest.approx((0.2 * 0.8 / 70) ** 0.5) and 0 < twice.sigma_first <= 10


class Published(NamedTuple):
    value: str
    source: str


SAYS = Published("has an optimum", "a summary")


def point(value, mean, factor="step η, times σ²", base=False):
    return {"bed": "toy", "factor": factor, "value": value, "base": base, "distance": Spread(mean, 0.1, 3)}


@pytest.mark.parametrize(
    ("means", "holds", "note"),
    [
        ((5.0, 1.0, 4.0), True, ""),
        ((5.0, 1.0, 1.01), False, "the best, b, is not surely better than the end c"),
        ((1.0, 2.0, 3.0), False, "the best value tried is at the end of the range, a"),
    ],
)
def test_the_claim_on_an_optimum_can_fail(means, holds, note):
    points = [point(value, mean) for value, mean in zip("abc", means, strict=True)]
    made = claims.of_optimum("toy", "step", points, "here", SAYS)
    assert (made["holds"], made["note"], made["published"]) == (holds, note, "has an optimum")


def test_claims_on_draws_and_starts_can_fail():
    def drawn(draw, argmax):
        return claims.of_draw("toy", [point("draw", draw), point("argmax", argmax)], "here")

    assert drawn(1.0, 2.0)["holds"] and not drawn(1.0, 2.0)["note"]
    assert drawn(1.0, 1.01)["note"] == "draw against argmax: cannot tell"
    assert not drawn(2.0, 1.0)["holds"]
    assert claims.of_start("toy", [point("mean", 1.0), point("exact", 1.01)], "here")["holds"]
    assert not claims.of_start("toy", [point("mean", 2.0), point("exact", 1.0)], "here")["holds"]


def test_the_claim_on_emission_can_fail():
    near, far = (Twice(share, 100, 0.1, 0.03, 1.0, 2.0) for share in (0.15, 0.2))
    assert claims.of_emission("toy", near, "here")["holds"]
    made = claims.of_emission("toy", far, "here")
    assert not made["holds"] and made["note"].startswith("more often: noise levels drift")


def test_claims_on_all_settings_can_fail():
    def table(best):
        means = [point("0.3", 3.0, base=True), point("1", best), point("zero", 0.5, study.NAMES[study.START])]
        cases = {"toy": SimpleNamespace(panel=lambda factor: study.NAMES[factor])}
        return study.table(Curves(cases, means))

    own, better = ([row for row in table(best) if not row["alone"]] for best in (9.0, 1.0))
    assert [row["base"] for row in table(1.0)] == ["base", "better", "better"]
    assert (
        claims.of_base("toy", own, "here")["holds"]
        and "worse: step η, times σ² 1" in claims.of_base("toy", own, "x")["here"]
    )
    assert not claims.of_base("toy", better, "here")["holds"]
    assert claims.of_chains("toy", better, Spread(2.0, 0.1, 3), "here")["holds"]
    made = claims.of_chains("toy", own, Spread(2.0, 0.1, 3), "here")
    assert not made["holds"] and made["note"].startswith("worse; the best of 2 was chosen")
