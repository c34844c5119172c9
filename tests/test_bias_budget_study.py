"""The bias budget: parts that are right are what they stand for, contributions add up, and each claim can fail."""

from types import SimpleNamespace

import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.report import testbed
from dmcmc_core.report.tables import Spread
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies import bias_budget as study
from dmcmc_core.workbench.studies import bias_budget_tables as shown

CHAIN = {"chains": 35, "n_skip": 2, "step": "sigma2", "eta": 0.3, "renoise": 2.0, "warmup_levels": 2, "warmup_steps": 0}
CHAIN |= {"start": "zero", "rule": "argmax", "published": True, "posterior": "residual"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = EmpiricalData(images, sigma_max=10.0)
    reference = metrics.make_reference(images, "random-conv", "eighty")
    bed = testbed.Testbed("toy", model, reference, images, None, tmp_path_factory.mktemp("bed"))
    return study.Case("toy", bed, 20, 70, range(2), CHAIN, 0.1, 5)


def test_parts_come_in_one_after_the_other(case):
    assert case.parts == study.PARTS[:-1], "an exact model has no network to repair"
    assert study.forward(("a", "b")) == [(), ("a",), ("a", "b")] and study.back(("a", "b")) == [("b",)]
    every = [*study.forward(case.parts), *study.back(case.parts)]
    assert len(set(every)) == len(every) == 2 * len(case.parts)


def test_right_parts_are_set(case):
    published, right = case.settings((), None), case.settings(case.parts, None)
    assert (published.chains, published.kernel, published.rule, published.published) == (35, "langevin", "argmax", True)
    assert (right.chains, right.kernel, right.rule, right.pick, right.published) == (70, "mala", "draw", "last", False)
    assert right.eta == 0.1 and case.settings((), "mean").start == "mean" and published.start == "zero"


def test_exact_draws_have_the_noise_that_they_say():
    images, levels = torch.zeros(3, 1, 16, 16), torch.tensor([4.0, 0.5])
    state = study.exact_draws(images, levels, Streams(0, "toy", range(40)))
    assert set(state.sigma.tolist()) == {4.0, 0.5}
    assert (state.x.flatten(1).std(1) / state.sigma - 1).abs().max() < 0.2


def test_cells_differ_in_the_parts_alone(case):
    published, integrated = (study.cell(case, right, 0) for right in ((), ("integrator",)))
    walk = study.walked(case, (), 0, None)
    assert study.walked(case, (), 0, None) is walk, "the integrator has no part in the chains"
    assert published["right"] == "none" and integrated["right"] == "integrator"
    assert published["nfe"] <= 20 and published["nfe"] != integrated["nfe"] and "repeats" in published
    assert published["sigma_median"] == integrated["sigma_median"]
    alone = study.cell(case, ("correlation",), 0)
    assert "repeats" not in alone and len(study.walked(case, ("correlation",), 0, None).starts) == 1
    adjusted = study.cell(case, ("kernel", "posterior"), 0)
    assert adjusted["accepted"] < published["accepted"] == 1


def budget(means, repeats=(0.1, 0.1), floor=1.0, repaired=9.0):
    """A budget of two parts from distances of its cells, each seed's 0.1 from the next."""
    parts = ("start", "pick")

    def rows(mean, share=0.0):
        return [{"frechet": mean + 0.1 * s, "repeats": share} for s in (-1, 0, 1)]

    cells = {right: rows(mean) for right, mean in means.items()}
    cells |= {(): rows(means[()], repeats[0]), ("start",): rows(means["start",], repeats[1])}
    bed = SimpleNamespace(floor=lambda n, seeds: Spread(floor, 0.1, 3))
    case = SimpleNamespace(name="toy", parts=parts, n=5, seeds=range(3), bed=bed)
    return shown.Budget(case, cells, rows(repaired), rows(9.0), rows(8.0))


GOOD = {(): 9.0, ("start",): 3.0, ("pick",): 7.0, ("start", "pick"): 1.0}


def test_contributions_add_up_to_the_whole():
    b = budget(GOOD)
    assert {part: c.mean for part, c in b.of(shown.FORWARD).items()} == pytest.approx({"start": 6.0, "pick": 2.0})
    assert {part: c.mean for part, c in b.of(shown.BACK).items()} == pytest.approx({"start": 6.0, "pick": 2.0})
    table = {row["part"]: row["forward"].mean for row in shown.contributions(b)}
    assert table["distance, everything as published"] == pytest.approx(9.0)
    assert table["unexplained (right less floor)"] == pytest.approx(0.0)


def verdicts(b):
    return [claim["holds"] for claim in shown.claims(b)]


def test_claims_hold_and_can_fail():
    assert verdicts(budget(GOOD, repaired=8.0)) == [True] * 7
    helps = budget(GOOD | {("start",): 0.5})
    assert verdicts(helps)[3] is False and "pick (forward" in shown.claims(helps)[3]["here"]
    other = budget(GOOD | {("pick",): 2.0})
    assert verdicts(other)[2] is False, "back, the pick is the larger part"
    assert verdicts(budget(GOOD, repeats=(0.1, 0.5)))[4] is False
    assert verdicts(budget(GOOD, floor=0.1))[5] is False
    assert [c["note"] for c in shown.claims(budget(GOOD, repaired=9.5))][6] == "it raises it"


def test_a_part_that_cannot_be_told_is_not_the_largest():
    b = budget({(): 9.0, ("start",): 5.0, ("pick",): 5.0, ("start", "pick"): 1.0})
    forward, back, *_ = shown.claims(b)
    assert not forward["holds"] and not back["holds"] and forward["note"] == "start and pick cannot be told apart"
