"""Fitted solvers in modes, and from any level: exact flows, chains, files, bad input."""

import json

import numpy as np
import pytest
import torch
from exact import images_mixture, noise, rms

from dmcmc_core import UserError, integrators, schedules
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.denoiser import Adapter, count_nfe
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.integrators import Spectrum, fitted
from dmcmc_core.integrators.fitted.modes import Modes
from dmcmc_core.metrics.paired import paired_folders
from dmcmc_core.runs.fitting import solver_file
from dmcmc_core.runs.make import run
from dmcmc_core.runs.plan import plan
from dmcmc_core.workbench.cli import main

SMALL = {"trajectories": 24, "held_out": 8, "accurate": 24}


@pytest.fixture(scope="module")
def model():
    return images_mixture(10.0)


@pytest.fixture(scope="module")
def ladder(model):
    return fitted.fit_from_levels(model, [2, 4], [0.5, 1.5])


def gaussian(shape=(1, 3, 3)):
    d = 9
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = torch.linspace(0.2, 0.8, d, dtype=torch.float64).reshape(1, *shape)
    return GaussianMixture(mean, (0.05 * root @ root.T)[None], torch.ones(1), sigma_min=0.01, sigma_max=10.0)


# modes


@pytest.mark.parametrize("nfe", [2, 3])
def test_a_gaussian_is_exact_at_two_calls_with_the_split(nfe):
    exact = gaussian()
    spectrum = Spectrum.of_model(exact)
    solver = integrators.fit(exact, nfe, covariance=spectrum, split=True, **SMALL)
    x = noise(exact, 32).double()
    modes, images = spectrum.transforms(x)
    v = spectrum.variances
    wanted = images((v / (v + solver.sigmas[0] ** 2)).sqrt() * modes(x))
    assert solver.nfe == nfe
    assert solver.modes.split
    assert rms(solver(exact, x), wanted) < 1e-6


def test_bands_and_the_split_are_tried_on_the_noise_held_out(model):
    spectrum = Spectrum.of_model(model)
    plain = integrators.fit(model, 4, split=False, **SMALL)
    banded = integrators.fit(model, 4, covariance=spectrum, bands=2, **SMALL)
    assert banded.coefficients.shape[1] == banded.modes.groups == 2
    ways = [integrators.fit(model, 4, covariance=spectrum, bands=2, split=s, **SMALL) for s in (True, False)]
    assert banded.card["held_out"] == min(one.card["held_out"] for one in ways)
    assert banded.card["held_out"] < 1.5 * plain.card["held_out"]
    assert {one.modes.split for one in ways} == {True, False}


def test_one_band_without_a_split_is_the_fit_of_pixels(model):
    spectrum = Spectrum.of_model(model)
    of_modes = integrators.fit(model, 4, covariance=spectrum, split=False, **SMALL)
    of_pixels = integrators.fit(model, 4, **SMALL)
    x = noise(model, 16)
    assert rms(of_modes(model, x), of_pixels(model, x)) < 1e-3


def test_bands_have_falling_variance_and_equal_parts():
    spectrum = Spectrum(torch.zeros(1, 2, 4), torch.tensor([1.0, 16, 4, 1, 1, 1, 9, 0]))
    group = Modes.grouped(spectrum, 3, True).group.tolist()
    assert group == [2, 0, 2, 2, 2, 2, 1, 2]  # standard deviations 4 | 3 | 2, 1, 1, 1, 1, 0
    assert Modes.grouped(spectrum, 1, True).groups == 1


def test_modes_come_back_from_a_file(model, tmp_path):
    solver = integrators.fit(model, 3, covariance=Spectrum.of_model(model), bands=2, split=True, **SMALL)
    solver.save(tmp_path / "m.safetensors")
    again, x = integrators.load_fitted(tmp_path / "m.safetensors"), noise(model, 8)
    if solver.card["solver"] == "fitted":
        assert again.modes.split
    assert torch.equal(again(model, x), solver(model, x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bands": 3}, "bands needs covariance"),
        ({"split": True}, "split needs covariance"),
        ({"covariance": 3}, "covariance must be a Spectrum"),
        ({"bands": 0}, "bands must be"),
        ({"grid": "cosine"}, "grid must be"),
    ],
)
def test_bad_options_are_told(model, options, words):
    with pytest.raises(UserError, match=words):
        integrators.fit(model, 4, **SMALL, **options)


@pytest.mark.parametrize("grid", ["karras", "log_uniform"])
def test_a_grid_may_be_left_as_it_is(model, grid):
    solver = integrators.fit(model, 5, grid=grid, **SMALL)
    if solver.card["solver"] == "fitted":
        np.testing.assert_allclose(solver.sigmas, schedules.SCHEDULES[grid](5, 10.0, 0.01))
    assert solver.card["held_out"] <= min(solver.card["peers"].values())


# from any level


def test_states_are_brought_to_a_level_above_and_integrated(model, ladder):
    """States of the exact distribution at any level end in the data's distribution, in so many calls."""
    data = model.sample(4096, seed=1)
    sigma = torch.linspace(0.02, 4.0, len(data))
    generator = torch.Generator().manual_seed(0)
    x = data + sigma.reshape(-1, 1, 1, 1) * torch.randn(data.shape, generator=generator)
    counted = count_nfe(model)
    images = ladder[4](counted, x, sigma, lambda t: torch.randn(t.shape, generator=generator))
    assert counted.nfe == 4
    other = model.sample(4096, seed=2).double()
    for statistic in (lambda t: t.mean(0), lambda t: t.flatten(1).T.cov()):
        assert (statistic(images.double()) - statistic(other)).abs().max() < 0.05


def test_each_row_is_what_its_own_solver_makes_of_it(model, ladder):
    x, sigma = noise(model, 6), torch.tensor([0.1, 0.4, 0.9, 1.2, 5.0, 10.0])
    zero = torch.zeros_like
    together = ladder[2](model, x, sigma, zero)
    chosen = ladder[2].chosen(sigma).tolist()
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 3
    for i, which in enumerate(chosen):
        alone = ladder[2].solvers[which](model, x[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_noise_that_is_added_has_the_missing_variance(model, ladder):
    added = []
    x, sigma = torch.zeros(1, 1, 2, 2), torch.tensor([0.3])
    solver = ladder[2].solvers[0]
    marked = ladder[2](model, x, sigma, lambda t: added.append(1) or torch.ones_like(t))
    s = float(solver.sigmas[0])
    by_hand = solver(model, x + (s**2 - 0.3**2) ** 0.5)
    torch.testing.assert_close(marked, by_hand, rtol=1e-4, atol=1e-5)
    assert added == [1]


def test_a_level_above_all_is_told(model, ladder):
    with pytest.raises(UserError, match="level 11 lies above the last first level, 10"):
        ladder[2](model, noise(model, 1), torch.tensor([11.0]))


def test_levels_out_of_range_and_modes_are_told(model):
    with pytest.raises(UserError, match="levels must be"):
        fitted.fit_from_levels(model, [2], [20.0], **SMALL)
    with pytest.raises(UserError, match="leave covariance out"):
        fitted.fit_from_levels(model, [2], [1.0], covariance=Spectrum.of_model(model), **SMALL)


def test_files_of_the_two_kinds_are_not_mixed_up(model, ladder, tmp_path):
    path = tmp_path / "f.safetensors"
    fitted.save_all(path, [one for some in ladder.values() for one in some.solvers])
    again = fitted.load_from_levels(path)
    x, sigma = noise(model, 4), torch.tensor([0.1, 0.7, 2.0, 9.0])
    assert torch.equal(again[4](model, x, sigma, torch.zeros_like), ladder[4](model, x, sigma, torch.zeros_like))
    with pytest.raises(UserError, match="for the states of chains"):
        integrators.load_fitted(path)
    ladder[2].solvers[-1].save(tmp_path / "g.safetensors")
    with pytest.raises(UserError, match="for the states of chains"):
        plan(model, "fitted", 5, 10, {"file": str(tmp_path / "g.safetensors")})


# dlg+fitted


def test_a_run_of_chains_and_fitted_solvers(model, ladder, tmp_path):
    path = tmp_path / "f.safetensors"
    fitted.save_all(path, [one for some in ladder.values() for one in some.solvers])
    settings = {"file": str(path), "chains": 16, "posterior": "exact"}
    manifest = run(model, "dlg+fitted", 6, 256, 0, tmp_path / "out", settings, progress=False)
    assert manifest["plan"]["levels"] == 4
    assert manifest["plan"]["chain"]["n_skip"] == 1
    assert 5 < manifest["nfe_full"] <= 6
    assert manifest["rows"]["integrator"] == 4 * 256
    assert "file" not in manifest["plan"]
    again = run(model, "dlg+fitted", 6, 256, 0, tmp_path / "parts", settings | {}, progress=False, shard=16)
    assert again["complete"]
    one, other = (
        np.concatenate([np.load(p)["arr_0"] for p in sorted((tmp_path / name).glob("shard-*.npz"))])
        for name in ("out", "parts")
    )
    assert np.array_equal(one, other)


def test_a_budget_that_leaves_nothing_is_told(model, ladder, tmp_path):
    path = tmp_path / "f.safetensors"
    fitted.save_all(path, ladder[4].solvers)
    with pytest.raises(UserError, match="of 4 calls after the .* of the chains"):
        plan(model, "dlg+fitted", 4, 256, {"file": str(path), "posterior": "exact"})
    with pytest.raises(UserError, match="leave a fitted solver 1 calls.* whose warm-up 1000 images share"):
        solver_file(model, 3, {"posterior": "exact"}, sampler="dlg+fitted", num=1000, cache_dir=tmp_path)
    with pytest.raises(UserError, match="unknown setting of dlg"):
        solver_file(model, 6, {"ete": 1.0}, sampler="dlg+fitted", num=1000, cache_dir=tmp_path)


def test_solvers_for_chains_are_fitted_once(model, tmp_path):
    said = []
    how = {"sampler": "dlg+fitted", "num": 1000, "cache_dir": tmp_path}
    path = solver_file(model, 4, {"posterior": "exact"}, say=said.append, **how)
    assert sum("from level" in line for line in said) >= 3
    counted = count_nfe(model)
    assert solver_file(counted, 4, {"posterior": "exact"}, **how) == path
    assert counted.rows == 0
    assert set(fitted.load_from_levels(path)) == {2}


def test_the_command_fits_for_chains_and_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ["--out", "f.safetensors"]
    assert main(["fit", "--model", "digits", "--nfe", "2", "--chains", "--trajectories", "8", *out]) == 0
    assert "solvers of 2 calls; the fit took" in capsys.readouterr().out
    sample = ["sample", "--model", "digits", "--sampler", "dlg+fitted", "--set", "file=f.safetensors", "--set"]
    assert main([*sample, "chains=8", "--nfe", "8", "--num", "16", "--out", "images"]) == 0
    assert json.loads((tmp_path / "images" / "manifest.json").read_text())["plan"]["levels"] == 2


# what fresh eyes found


@pytest.mark.parametrize(
    ("x", "sigma", "words"),
    [
        (0.0, float("nan"), "sigma must be at least 0, not nan"),
        (0.0, -1.0, "sigma must be at least 0, not -1"),
        (float("nan"), 1.0, "x must be finite"),
    ],
)
def test_numbers_that_are_none_are_told(model, ladder, x, sigma, words):
    with pytest.raises(UserError, match=words):
        ladder[2](model, torch.full((1, 1, 2, 2), x), torch.tensor([sigma]))


@pytest.mark.parametrize("x", [np.zeros((1, 1, 2, 2)), [1], None, torch.zeros(1, 1, 2, 2, dtype=torch.complex64)])
def test_what_is_no_tensor_of_real_numbers_is_told(model, ladder, x):
    with pytest.raises(UserError, match="x must be a tensor of real numbers, not"):
        ladder[2].solvers[-1](model, x)


@pytest.mark.parametrize("what", ["digits", None, torch.nn.Linear(1, 1), lambda x, sigma: x])
def test_what_is_no_denoiser_is_told(ladder, what):
    with pytest.raises(UserError, match="is no denoiser"):
        integrators.fit(what, 4)
    with pytest.raises(UserError, match="is no denoiser"):
        integrators.Fitted(torch.tensor([1.0, 0.0]), torch.ones(1, 2))(what, torch.zeros(1, 1, 2, 2))


def test_a_damaged_cache_is_made_again(model, tmp_path):
    path = solver_file(model, 3, cache_dir=tmp_path)
    whole = integrators.load_fitted(path)
    path.write_text("junk")
    for kept in (tmp_path / "fitted").glob("*/*.npz"):
        kept.write_bytes(kept.read_bytes()[:100])
    again = integrators.load_fitted(solver_file(model, 3, cache_dir=tmp_path))
    assert torch.equal(again.coefficients, whole.coefficients)


def test_a_network_that_was_trained_on_is_another(tmp_path):
    net = torch.nn.Linear(4, 4)
    own = Adapter(lambda x, sigma: net(x.flatten(1)).reshape(x.shape) / (1 + sigma.reshape(-1, 1, 1, 1)), (1, 2, 2))
    own.net = net
    before = fingerprint(own)
    solver = integrators.fit(own, 3, **SMALL)
    with torch.no_grad():
        net.weight.mul_(-3.0)
    assert fingerprint(own) != before
    with pytest.raises(UserError, match="fitted to another network"):
        solver(own, torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        net.weight.div_(-3.0)


def test_fitted_runs_pair_with_accurate_ones(model, tmp_path):
    integrators.fit(model, 3, **SMALL).save(tmp_path / "f.safetensors")
    run(model, "fitted", 3, 8, 0, tmp_path / "a", {"file": str(tmp_path / "f.safetensors")}, progress=False)
    run(model, "unipc", 60, 8, 0, tmp_path / "b", progress=False)
    assert 0 < paired_folders(tmp_path / "a", tmp_path / "b")["error"] < 0.2
