"""The test-beds of a notebook: what captions say of them, and what a row must keep to."""

import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.errors import UserError
from dmcmc_core.report import beds, testbed
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench import experiments


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    model = GaussianMixture(torch.zeros(1, 1, 8, 8), torch.full((1,), 0.1), torch.ones(1), sigma_max=10.0)
    images = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = metrics.make_reference(images, "random-conv", "seventy")
    bed = testbed.Testbed("mixture", model, reference, images, None, tmp_path_factory.mktemp("beds"))
    n = {"one": 66, "other": 68}
    return beds.Beds({"one": bed, "other": bed}, n, range(5, 8), {"one": Spread(2.5, 0.5, 3), "other": Spread(1, 0, 3)})


def test_captions_name_n_seeds_reference_and_floor(two):
    assert two.caption.startswith("one: Fréchet distance (random-conv features), n = 66 against seventy (n = 70), ")
    assert "same-n floor 2.5 ± 0.5; other: " in two.caption
    assert two.title == "one n = 66, other n = 68; 3 seeds" and two.where("other") == "other, n = 68, 3 seeds"
    assert two.features == "random-conv features (one) and random-conv features (other)"
    assert two.floors == {"one": 2.5, "other": 1}
    assert str(two).splitlines()[1] == "  n = 66 against seventy (n = 70); 3 seeds"


def test_a_row_keeps_to_budget_n_and_reference(two):
    row = {"bed": "one", "sampler": "heun", "nfe": 9.0, "nfe_paper": 8.0, "budget": 10, "n": 66, "tol": None}
    row |= {"reference_n": 70}
    two.check([row])
    for wrong in ({"nfe": 11.0}, {"nfe_paper": 9.5}, {"reference_n": 71}):
        with pytest.raises(AssertionError):
            two.check([row | wrong])
    with pytest.raises(UserError):
        two.check([row | {"n": 68}])
    two.check([row | {"nfe": 11.0, "tol": 0.1}], adaptive=True)
    with pytest.raises(AssertionError):
        two.check([row | {"nfe": 11.0, "tol": 0.1}])


def test_published_numbers_of_an_item():
    assert any(p.what == "heun" for p in experiments.published_of("figure3-digits"))
    with pytest.raises(UserError, match="unknown item 'figure3-digit'.*did you mean 'figure3-digits'"):
        experiments.published_of("figure3-digit")
