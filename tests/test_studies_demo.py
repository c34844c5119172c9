"""The study of the demo: what is put beside what, and claims that can hold and fail."""

import pytest
import torch

from dmcmc_core.mcmc import ChainState
from dmcmc_core.workbench.studies import demo


@pytest.fixture(scope="module")
def opened():
    chain = {"chains": 8, "step": "sigma2", "eta": 0.3, "renoise": 2.0, "warmup_levels": 2, "n_skip": 1}
    return demo.open_model("digits", -1, "cpu", 20, 66, chain)


def states(count, chains=2):
    """States whose image is their number in every pixel."""
    return [
        ChainState(torch.full((chains, 1, 8, 8), float(t)), torch.arange(1.0, chains + 1) * (t + 1) / 4)
        for t in range(count)
    ]


def test_a_model_that_knows_its_mean_begins_there(opened):
    assert opened.start == "mean" and str(opened).startswith("digits: images (1, 8, 8) in (0.0, 1.0), noise levels ")
    assert "arch" in opened.card or ":" in opened.card
    some = demo.samplers("zero", {})
    assert list(some) == [demo.ZERO, demo.DLG, "DPM-Solver++(2M), zero mean"]
    assert demo.samplers("mean", {"eta": 1.0})[demo.DLG] == ("dlg+heun", {"start": "mean", "eta": 1.0})


def test_without_a_reference_of_its_shape_a_model_is_not_measured(opened, capsys, monkeypatch):
    assert demo.reference_of(opened, "", "digits-cnn", "cpu") is None
    monkeypatch.setattr(demo.data, "open_images", lambda name: torch.zeros(1, 3, 32, 32))
    assert demo.reference_of(opened, "glyphs32", "random-conv", "cpu") is None
    assert "'glyphs32' holds no images of this shape" in capsys.readouterr().out


def test_states_stand_above_what_they_become(opened):
    seen = demo.see(opened, states(17), 0, count=4)
    assert seen.labels == ["chain 0", "denoised", "chain 1", "denoised"] and seen.images.shape == (4, 4, 1, 8, 8)
    assert seen.images[0, :, 0, 0, 0].tolist() == [0.0, 4.0, 8.0, 12.0]
    assert torch.equal(seen.sigmas[2], seen.sigmas[3]) and seen.sigmas[2].tolist() == [0.5, 2.5, 4.5, 6.5]
    assert seen.images[1].min() > -0.5 and seen.images[1].max() < 3.0, "denoised states are near the data"
    assert seen.rows[5] == {"chain": 1, "state": 1, "sigma": 2.5}


def test_levels_are_those_of_the_first_chains():
    sigmas, rows = demo.levels_of(states(3, chains=4), chains=2)
    assert sigmas.shape == (3, 2) and rows[3] == {"step": 1, "chain": 1, "sigma": 1.0} and len(rows) == 6


def test_a_trajectory_begins_in_noise_and_ends_at_0(opened):
    images, levels = demo.trajectory(opened, "euler", 3, 0, count=2)
    assert images.shape == (2, 4, 1, 8, 8) and levels[0] == pytest.approx(opened.model.sigma_max) and levels[-1] == 0
    assert images[:, 0].std() > 5 > images[:, -1].std()


def rows(dlg=2.0, mean=5.0):
    return [
        {"method": method, "seed": s, "nfe": 20.0, "frechet": far + s, "budget": 20}
        for method, far in ((demo.ZERO, 6.0), (demo.MEAN, mean), (demo.DLG, dlg))
        for s in range(2)
    ]


def test_tables_and_figures_have_what_was_measured():
    lines, heads = demo.table(rows(), "distance")
    assert heads == {"sampler": "sampler", "nfe": "NFE, full", "frechet": "distance"}
    assert lines[2]["sampler"] == demo.DLG and lines[2]["frechet"].mean == 2.5
    assert demo.shown(rows())[0] == {"method": demo.ZERO, "seed": 0, "nfe": 20.0, "frechet": 6.0}


def test_claims_hold_and_fail():
    zero, mean = demo.claims(rows(), "here")
    assert zero["holds"] and mean["holds"] and zero["published"].startswith("2.63") and mean["published"] is None
    assert mean["here"] == "2.5 ± 0.71 against 5.5 ± 0.71 (here)"
    zero, mean = demo.claims(rows(dlg=5.5), "here")
    assert zero["holds"] and not mean["holds"] and mean["note"].startswith("DistanceAgainstNFE.ipynb")
    assert len(demo.claims([r for r in rows() if r["method"] != demo.MEAN], "here")) == 1
