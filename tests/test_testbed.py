"""A model beside its reference: what is measured does not depend on the range in which the model has its data."""

from __future__ import annotations

import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.analytic import EmpiricalData, GaussianMixture
from dmcmc_core.errors import UserError
from dmcmc_core.report import testbed


def test_a_range_changes_no_number(tmp_path):
    """The same data in [0, 1] and in [-1, 1], twice as wide, with noise levels to match."""
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    reference = metrics.make_reference(images, "random-conv", "eighty")
    rows, floors = [], []
    for k, (scale, shift) in enumerate(((1.0, 0.0), (2.0, -1.0))):
        ends = {"sigma_min": 0.02 * scale, "sigma_max": 10.0 * scale, "data_range": (shift, shift + scale)}
        model = EmpiricalData(images * scale + shift, **ends)
        bed = testbed.Testbed("bed", model, reference, images, None, tmp_path / str(k))
        rows.append(bed.row("heun", 9, 70, 0))
        floors.append(bed.floor(70, range(2)).mean)
    assert rows[0].keys() == rows[1].keys() and floors[0] == pytest.approx(floors[1], rel=1e-4)
    for name in ("frechet", "kid", "to_data_median", "data_covered"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3, abs=1e-4), name


def test_measures_once(tmp_path, monkeypatch):
    """Cells that two items share are measured by the first; another reference, or another k, is another question."""
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    reference = metrics.make_reference(images, "random-conv", "eighty")
    bed = testbed.Testbed("bed", EmpiricalData(images, sigma_max=10.0), reference, images, images[:40], tmp_path)
    first = bed.measured(images[:70])
    counted = []
    monkeypatch.setattr(testbed.metrics, "measure", lambda *a: counted.append(a) or {"frechet": 0.0})
    assert bed.measured(images[:70]) == first and not counted
    for other in (
        bed._replace(reference=reference._replace(k=4)),
        bed._replace(reference=metrics.make_reference(images[:75], "random-conv", "eighty")),
        bed._replace(train=images[:30]),
        bed._replace(reference=reference._replace(extractor=reference.extractor._replace(weights=""))),
        bed._replace(reference=reference._replace(extractor=reference.extractor._replace(weights=""))),
    ):
        assert other.measured(images[:70])["frechet"] == 0
    bed.measured(images[1:71])
    assert len(counted) == 6


def test_a_model_of_another_shape_is_told_before_its_first_image(tmp_path, monkeypatch):
    model = EmpiricalData(torch.rand(20, 2, 8, 8, generator=torch.Generator().manual_seed(0)), sigma_max=10.0)
    monkeypatch.setattr(testbed.metrics, "make_reference", lambda *a, **k: pytest.fail("features were computed"))
    with pytest.raises(UserError, match=r"\(2, 8, 8\) cannot be .* 'digits-heldout', whose .* \(1, 8, 8\)"):
        testbed.load(model, "random-conv", "digits-heldout", cache_dir=tmp_path)


def test_a_row_is_paired_with_the_accurate_solution_from_its_noise(tmp_path):
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    reference = metrics.make_reference(images, "random-conv", "eighty")
    bed = testbed.Testbed("bed", images_mixture_of(images), reference, images, None, tmp_path)
    errors = {}
    for start in ("mean", "zero"):
        truth = bed.accurate(70, 0, {"start": start})
        rows = [bed.row("heun", nfe, 70, 0, {"start": start}, truth) for nfe in (5, 41)]
        errors[start] = [row["paired_error"] for row in rows]
        assert errors[start][0] > 3 * errors[start][1]
        made = bed.samples("heun", 5, 70, 0, {"start": start}).images
        assert errors[start][0] == metrics.paired_error(made, truth)
    crossed = metrics.paired_error(made, bed.accurate(70, 0, {"start": "mean"}))
    assert crossed > errors["zero"][0]
    assert "paired_error" not in bed.row("heun", 5, 70, 0)


def images_mixture_of(images):
    """A smooth model of shape (1, 8, 8): one wide Gaussian around each of three images."""
    return GaussianMixture(images[:3], torch.full((3,), 0.1), torch.ones(3), sigma_max=10.0, data_range=(0.0, 1.0))


def test_the_floor_of_a_model_to_draw_from_is_that_of_its_own_draws(tmp_path):
    """An exact mixture is not its reference: what nothing is wrong with is as far from that as exact draws are."""
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    reference = metrics.make_reference(images, "random-conv", "eighty")
    model = images_mixture_of(images)
    bed = testbed.Testbed("bed", model, reference, images, None, tmp_path)
    floor = bed.floor(70, range(2))
    draws = [model.sample(70, seed=1000 + seed).clamp(0, 1) for seed in range(2)]
    assert floor.mean == pytest.approx(sum(metrics.measure(x, reference)["frechet"] for x in draws) / 2, rel=1e-6)
    assert floor.mean > 3 * bed._replace(train=images).floor(70, range(2)).mean
    net = testbed.Testbed("net", lambda x, sigma: x, reference, images, None, tmp_path)
    assert net.floor(70, range(2)) == bed._replace(train=images).floor(70, range(2))


def test_a_block_is_that_of_all_samplers_unless_they_say_otherwise(tmp_path):
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = metrics.make_reference(images, "random-conv", "eighty")
    model = EmpiricalData(images, sigma_min=0.05, sigma_max=10.0)
    bed = testbed.Testbed("bed", model, reference, images, None, tmp_path, block=5)
    assert bed.samples("euler", 2, 4, 0).manifest["block"] == 5
    assert bed.samples("euler", 2, 4, 0, {"block": 7}).manifest["block"] == 7
    assert bed._replace(block=None).samples("euler", 2, 4, 0).manifest["block"] == 64
