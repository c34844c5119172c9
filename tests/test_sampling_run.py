"""Runs on disk: the same image in any division and after any interruption, budgets kept, nothing mixed up."""

import copy
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import classes, images_mixture
from forks import status_of_fork

from dmcmc_core import gddim, load_model
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.data import to_uint8
from dmcmc_core.denoiser import Adapter, InBlocks, count_nfe
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import Conditioned
from dmcmc_core.integrators import INTEGRATORS
from dmcmc_core.linear_sde import make_sde
from dmcmc_core.nets import linear
from dmcmc_core.nets.linear import EpsilonNet
from dmcmc_core.runs import cache
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.folder import finished, load_images, read_manifest
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import conditioned
from dmcmc_core.runs.plan import default_n_skip, load_posterior, plan
from dmcmc_core.runs.tolerance import pilot_start
from dmcmc_core.schedules import karras
from dmcmc_core.streams import Streams

CHAINS = {"chains": 6, "warmup_levels": 2, "warmup_steps": 2}
PLAIN, CHAINED = "heun_churn", "dlg+heun_churn"
SETTINGS = {PLAIN: {}, CHAINED: CHAINS}
SAMPLERS = [*INTEGRATORS, *(f"dlg+{name}" for name in INTEGRATORS)]


@pytest.fixture
def model():
    return images_mixture()


@pytest.fixture
def evaluated(monkeypatch):
    """Rows that any mixture was asked for, counted below everything that the run itself counts."""
    rows, inner = [], GaussianMixture.__call__
    monkeypatch.setattr(
        GaussianMixture, "__call__", lambda self, x, sigma: rows.append(len(x)) or inner(self, x, sigma)
    )
    return rows


def make(model, sampler, out, nfe=12, num=20, seed=0, settings=None, **options):
    settings = SETTINGS.get(sampler, {}) if settings is None else settings
    return run(model, sampler, nfe, num, seed, out, settings, progress=False, **options)


def files(folder, pattern="*"):
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(Path(folder).rglob(pattern)) if p.is_file()
    }


# Image i


@pytest.mark.parametrize("sampler", [PLAIN, CHAINED])
def test_image_i_is_the_same_in_any_number_and_any_shards(model, sampler, tmp_path):
    """Levels are fixed, as a budget would pay for other numbers of them where warm-up is shared out differently."""
    settings = SETTINGS[sampler] | {"levels": 3} | ({"n_skip": 3} if sampler == CHAINED else {})
    make(model, sampler, tmp_path / "whole", num=20, settings=settings)
    whole = load_images(tmp_path / "whole")
    assert len(whole.flatten(1).unique(dim=0)) > 15
    for num, shard in ((20, 7), (20, 1), (5, 256), (13, 4)):
        out = tmp_path / f"{num}-{shard}"
        make(model, sampler, out, num=num, shard=shard, settings=settings)
        assert torch.equal(load_images(out), whole[:num]), (num, shard)
    make(model, sampler, tmp_path / "other", num=20, seed=1, settings=settings)
    assert not torch.equal(load_images(tmp_path / "other")[1], whole[0])
    assert not (load_images(tmp_path / "other") == whole).all()


def test_the_best_posterior_there_is_is_taken(model):
    """The exact one, the classifier that ships, else none that would have to be trained."""
    bare = Adapter(model, model.shape, sigma_max=4.0, mean=model.mean)
    for net, expected in ((model, "exact"), (load_model("digits"), "classifier"), (bare, "residual")):
        assert plan(net, "dlg+heun", 60, 18, CHAINS).posterior == expected


@pytest.mark.parametrize("kernel", ["langevin", "underdamped"])
def test_the_residual_posterior_is_counted_and_saved_exactly(model, kernel, evaluated, tmp_path):
    """No classifier: its calibration and its calls are in the count, and windows go on from what is on disk."""
    settings = CHAINS | {"posterior": "residual", "kernel": kernel, "n_skip": 2, "levels": 2}
    whole = make(model, "dlg+heun", tmp_path / "whole", 60, num=18, settings=settings)
    the = plan(model, "dlg+heun", 60, 18, settings)
    assert whole["nfe_full"] == pytest.approx(the.chain_cost(18) + 3)
    assert sum(evaluated) == sum(whole["rows"].values())
    make(model, "dlg+heun", tmp_path / "parts", 60, num=6, settings=settings)
    parts = make(model, "dlg+heun", tmp_path / "parts", 60, num=18, settings=settings)
    assert torch.equal(load_images(tmp_path / "parts"), load_images(tmp_path / "whole"))
    assert parts["nfe_full"] == whole["nfe_full"]


def test_images_are_those_of_the_integrator(model, tmp_path):
    """From N(mean, sigma_max^2), image i with stream i, rounded to uint8."""
    make(model, "heun_churn", tmp_path / "a", num=3, nfe=9, seed=4)
    rng = Streams(4, "image", range(3))
    x = model.mean + model.sigma_max * rng(torch.zeros(3, 1, 2, 2))
    expected = INTEGRATORS["heun_churn"](model, x, karras(5, 4.0, 0.01), noise=rng)
    (path,) = (tmp_path / "a").glob("shard-*.npz")
    stored = np.load(path)["arr_0"]
    assert stored.dtype == np.uint8 and stored.shape == (3, 2, 2, 1)
    assert np.array_equal(stored, to_uint8(expected, model.data_range))
    assert torch.equal(load_images(tmp_path / "a"), expected.clamp(0, 1).mul(255).round() / 255)


def test_a_wide_run_of_more_chains_than_a_block(model, tmp_path):
    """Groups of 64 chains: image i comes from window i // C and chain i mod C, whatever the group."""
    settings = {"chains": 70, "n_skip": 1, "warmup_levels": 1, "warmup_steps": 0, "levels": 1}
    make(model, "dlg+euler", tmp_path / "wide", num=150, settings=settings)
    names = [p.name for p in sorted((tmp_path / "wide").glob("shard-*.npz"))]
    assert names == [f"shard-{i:08d}.npz" for i in (0, 64, 70, 134, 140)]
    make(model, "dlg+euler", tmp_path / "narrow", num=67, settings=settings)
    assert torch.equal(load_images(tmp_path / "narrow"), load_images(tmp_path / "wide")[:67])


def test_windows_of_few_chains_are_integrated_together(model, evaluated, tmp_path):
    """A call takes as many windows as fill a block: 20 images of 6 chains need 1 call of each level, not 4."""
    settings = CHAINS | {"n_skip": 2, "levels": 3}
    calls = {}
    for shard in (64, 6):
        evaluated.clear()
        make(model, "dlg+euler", tmp_path / str(shard), settings=settings, shard=shard)
        calls[shard] = len(evaluated)
    assert calls[6] - calls[64] == 3 * 3
    assert len(list((tmp_path / "64").glob("shard-*.npz"))) == 1
    assert torch.equal(load_images(tmp_path / "64"), load_images(tmp_path / "6"))


@pytest.mark.parametrize("sampler", [PLAIN, CHAINED, "rk45"])
def test_two_processes_make_the_same_images(model, sampler, tmp_path, monkeypatch):
    settings = {"chains": 70, "n_skip": 1, "warmup_levels": 1, "warmup_steps": 0} if sampler == CHAINED else {}
    nfe, num = {"rk45": (60, 20), PLAIN: (12, 20), CHAINED: (12, 150)}[sampler]
    make(model, sampler, tmp_path / "one", nfe, num, settings=settings, shard=4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        manifest = make(model, sampler, tmp_path / "two", nfe, num, settings=settings, shard=4)
        assert manifest["complete"] == (rank == "0")
        if rank == "1":
            assert 0 < manifest["images"] < num
            with pytest.raises(UserError, match="is not complete"):
                load_images(tmp_path / "two")
    assert torch.equal(load_images(tmp_path / "two"), load_images(tmp_path / "one"))
    alone = read_manifest(tmp_path / "one")
    assert {k: manifest[k] for k in ("nfe_full", "nfe_paper", "rows")} == {
        k: alone[k] for k in ("nfe_full", "nfe_paper", "rows")
    }


KILL = """
import os, signal
from exact import images_mixture
from dmcmc_core.runs.make import run
replace, left = os.replace, [{after}]
def dying(a, b):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)  # the new file is whole but does not have its name yet
    replace(a, b)
os.replace = dying
run(images_mixture(), {sampler!r}, 12, 20, 0, {out!r}, {settings!r}, progress=False, shard=4)
"""


@pytest.mark.parametrize(("sampler", "after"), [(PLAIN, 1), (PLAIN, 4), (CHAINED, 2), (CHAINED, 3), (CHAINED, 6)])
def test_a_killed_run_goes_on_to_the_same_images(model, sampler, after, tmp_path):
    """Killed while it writes its manifest, its shards, its chains; what was whole is not made again."""
    make(model, sampler, tmp_path / "whole", shard=4)
    out = tmp_path / "killed"
    code = KILL.format(after=after, sampler=sampler, out=str(out), settings=SETTINGS[sampler])
    assert status_of_fork(lambda: exec(code, {})) == -signal.SIGKILL
    left = files(out, "*.npz")
    assert (out / "manifest.json").is_file() == (after > 1)
    if after > 1:
        assert not read_manifest(out)["complete"]
        with pytest.raises(UserError, match="is not complete"):
            load_images(out)
    make(model, sampler, out, shard=4)
    assert torch.equal(load_images(out), load_images(tmp_path / "whole"))
    assert files(out, "*.npz").items() >= left.items()
    assert read_manifest(out) == read_manifest(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(model, tmp_path, evaluated):
    first = make(model, CHAINED, tmp_path / "a")
    before = files(tmp_path / "a")
    assert finished(tmp_path / "a", 20) and not finished(tmp_path / "a", 21)
    evaluated.clear()
    assert make(model, CHAINED, tmp_path / "a") == first
    assert not evaluated and files(tmp_path / "a") == before
    shard = max((tmp_path / "a").glob("shard-*"))
    shard.unlink()
    assert not finished(tmp_path / "a", 20)
    assert make(model, CHAINED, tmp_path / "a") == first and shard.is_file()


@pytest.mark.parametrize("damaged", ["shard-00000006.npz", "window-000001.npz", "warmup.npz"])
def test_what_is_damaged_is_made_again(model, damaged, tmp_path):
    """Cut short or with other bytes: the run goes on as if the file were not there."""
    manifest, before = make(model, CHAINED, tmp_path, shard=6), load_images(tmp_path)
    for cut in (True, False):
        (path,) = tmp_path.rglob(damaged)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if cut else content[:80] + b"\x80" + content[81:])
        if "shard" not in damaged:  # else nothing would ask for the chains
            for shard in tmp_path.glob("shard-*.npz"):
                shard.unlink()
        assert make(model, CHAINED, tmp_path, shard=6) == manifest and torch.equal(load_images(tmp_path), before)


def test_more_images_are_added_to_those_there(model, tmp_path, evaluated):
    make(model, "heun", tmp_path / "a", num=10, shard=4)
    before = files(tmp_path / "a", "*.npz")
    evaluated.clear()
    make(model, "heun", tmp_path / "a", num=20, shard=4)
    make(model, "heun", tmp_path / "b", num=20, shard=4)
    assert torch.equal(load_images(tmp_path / "a"), load_images(tmp_path / "b"))
    kept = dict(list(before.items())[:2])  # 0 to 3 and 4 to 7; the third had only two images
    assert files(tmp_path / "a", "*.npz").items() >= kept.items()
    with pytest.raises(UserError, match="already holds a run of 20 images: num=10 would take some away"):
        make(model, "heun", tmp_path / "a", num=10, shard=4)


# Budgets


@pytest.mark.parametrize("nfe", [10, 16.5])
@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not s.endswith("rk45")])
def test_the_full_count_is_the_largest_within_the_budget(model, sampler, nfe, tmp_path, evaluated):
    """Counted where the mixture is evaluated; 25 images are no multiple of 6 chains. One level more would cost more."""
    settings, num = CHAINS if sampler.startswith("dlg") else {}, 25
    manifest = make(model, sampler, tmp_path / "a", nfe, num, settings=settings)
    assert manifest["nfe_full"] == sum(evaluated) / num <= nfe
    assert manifest["nfe_paper"] <= manifest["nfe_full"]
    assert sum(manifest["rows"].values()) == sum(evaluated)
    levels, calls = manifest["plan"]["levels"], INTEGRATORS[sampler.removeprefix("dlg+")].calls
    assert calls(levels + 1) - calls(levels) > nfe - manifest["nfe_full"]
    with pytest.raises(UserError, match=f"levels={levels + 1} is not a whole number that .* can pay for"):
        plan(model, sampler, nfe, num, settings | {"levels": levels + 1})
    assert plan(model, sampler, nfe, num, settings | {"levels": 1}).levels == 1


def test_rows_are_told_apart(model, tmp_path):
    """7 chains for 20 images, 3 windows of 4 steps; 3 + 2 calls of warm-up; Heun at 4 levels; one Tweedie step."""
    settings = {"chains": 7, "n_skip": 4, "warmup_levels": 3, "warmup_steps": 2, "tweedie": 0.01, "levels": 4}
    manifest = make(model, "dlg+heun", tmp_path / "a", 40, settings=settings)
    assert manifest["rows"] == {"integrator": 20 * 7, "tweedie": 20, "chains": 7 * 3 * 4, "warmup": 7 * 5}
    assert manifest["nfe_paper"] == (140 + 84) / 20 and manifest["nfe_full"] == (140 + 20 + 84 + 35) / 20


@pytest.mark.parametrize("sampler", ["heun", "dlg+heun"])
def test_options_that_cost_are_paid_for(model, sampler, tmp_path):
    """A Tweedie step, the adjusted kernel and corrections leave less for levels."""
    settings = CHAINS | {"n_skip": 5} if sampler.startswith("dlg") else {}
    bare = plan(model, sampler, 15, 60, settings).levels
    assert plan(model, sampler, 15, 60, settings | {"tweedie": 0.01}).levels < bare
    if settings:
        assert plan(model, sampler, 15, 60, settings | {"kernel": "mala"}).levels < bare
    corrected = sampler.replace("heun", "predictor_corrector")
    manifest = make(model, corrected, tmp_path / "a", 20, 60, settings=settings | {"corrections": 3})
    assert 16 < manifest["nfe_full"] <= 20


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["rk45", "dlg+rk45"])
def test_adaptive_integrators_get_the_smallest_tolerance_that_fits(model, sampler, tmp_path):
    """In a trial on other seeds; what the run then used is in the manifest."""
    settings = CHAINS if sampler.startswith("dlg") else {}
    used, tolerances = [], []
    for nfe in (40, 80):
        manifest = make(model, sampler, tmp_path / str(nfe), nfe, 40, settings=settings)
        used.append(manifest["nfe_full"])
        tolerances.append(manifest["plan"]["options"]["tol"])
        assert 0.6 * nfe < manifest["nfe_full"] <= nfe
    assert tolerances[1] < tolerances[0] and used[1] > used[0]
    manifest = make(model, sampler, tmp_path / "given", 40, 40, settings=settings | {"tol": 0.5})
    assert manifest["plan"]["options"]["tol"] == 0.5
    with pytest.raises(UserError, match="uses 21.0 NFE at its loosest tolerance 1: 9.* is too small"):
        make(model, "rk45", tmp_path / "few", 9)
    assert not (tmp_path / "few").exists()


def test_a_tolerance_is_tried_on_windows_early_and_late(model, tmp_path):
    """Chains that climb cost an adaptive integrator more from window to window."""
    climbing = {"chains": 16, "n_skip": 3, "step": "constant", "eta": 1.0, "renoise": 0.3, "warmup_levels": 4}
    make(model, "dlg+heun", tmp_path, 20, 160, settings=climbing)
    begun = [np.log(np.load(p)["start_sigma"]).mean() for p in sorted(tmp_path.rglob("window-*.npz"))]
    the = plan(model, "dlg+rk45", 50, 160, climbing)
    _, sigma = pilot_start(model, the, len(begun), load_posterior(model, the))
    assert len(begun) == 10 and begun[0] < np.mean(begun) - 1
    assert abs(sigma.log().mean() - np.mean(begun)) < 0.5


def test_a_classifier_is_read_once_for_a_cell(tmp_path, monkeypatch):
    from dmcmc_core import checkpoints

    read, load = [], checkpoints.load_noise_level
    monkeypatch.setattr(checkpoints, "load_noise_level", lambda *a, **b: read.append(a) or load(*a, **b))
    settings = {"chains": 4, "n_skip": 1, "warmup_levels": 2, "eta": 0.3, "levels": 2}
    samples = cached(load_model("digits"), "dlg+heun", 60, 8, 0, settings, tmp_path)
    assert samples.manifest["plan"]["posterior"] == "classifier" and len(read) == 1


def test_a_third_of_the_budget_goes_to_the_chains():
    assert [default_n_skip(nfe) for nfe in (1, 9, 10, 50)] == [1, 3, 3, 17]
    assert default_n_skip(20, step_calls=2) == 3


@pytest.mark.parametrize(("num", "n_skip"), [(20, 5), (600, 7)])
def test_warm_up_that_few_images_share_leaves_the_integrator_its_levels(model, num, n_skip):
    """Six levels for each of 64 chains are 6 NFE of each of 20 images, and 0.64 of each of 600."""
    the = plan(model, "dlg+euler", 21, num)
    assert the.chain.n_skip == n_skip and the.levels >= 10


@pytest.mark.parametrize(
    ("sampler", "nfe", "settings", "message"),
    [
        ("heun", 10, {"n_skip": 3}, "n_skip is a setting of the chains.* use dlg.heun"),
        ("predictor_corrector", 1, {}, "1 NFE are too few for predictor_corrector, which needs at least 2.00"),
        ("heun", 0.5, {}, "0.5 NFE are too few for heun, which needs at least 1.00"),
        ("dlg+heun", 3, CHAINS, "3 NFE are too few for dlg.heun, which needs at least 3.40 .* 2.40 for the chains"),
        ("dlg+heun", 3, CHAINS, "share; 4 NFE with n_skip=1 would do, and more images or fewer chains would cost less"),
        ("dlg+heun", 2, CHAINS | {"chains": 1}, "share; 3 NFE with n_skip=1 would do, and more images would cost less"),
        ("dlg+predictor_corrector", 10, CHAINS | {"n_skip": 6}, "at least 10.40 per image: 8.40 for the chains"),
        (
            "dlg+predictor_corrector",
            10,
            CHAINS | {"n_skip": 6},
            "11 NFE with n_skip=6 would do, and more images or fewer chains or a smaller n_skip would cost less",
        ),
    ],
)
def test_too_small_a_budget(model, sampler, nfe, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(model, sampler, tmp_path / "a", nfe, settings=settings)
    assert not (tmp_path / "a").exists()


# The manifest, and what may be in a folder


def test_manifest(model, tmp_path):
    make(model, CHAINED, tmp_path / "a", num=20, seed=3)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["asked"] == {"sampler": CHAINED, "settings": dict(sorted(CHAINS.items()))}
    assert manifest["seed"] == 3 and manifest["nfe"] == 12 and manifest["num"] == manifest["images"] == 20
    assert manifest["model"] == "GaussianMixture" and manifest["model_sha256"] == fingerprint(model)
    assert manifest["block"] == 64 and manifest["complete"] and manifest["shape"] == [1, 2, 2]
    assert manifest["data_range"] == [0.0, 1.0] and manifest["versions"]["torch"] == torch.__version__
    chosen = manifest["plan"]
    assert chosen["chain"]["chains"] == 6 and chosen["chain"]["n_skip"] == 4 and chosen["posterior"] == "exact"
    assert chosen["schedule"] == "karras" and chosen["start"] == chosen["chain"]["start"] == "mean"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"nfe": 13}, "its nfe is 12, not 13"),
        ({"sampler": "euler"}, "its sampler is 'heun_churn', not 'euler'"),
        ({"settings": {"s_churn": 2.0}}, "its s_churn is the default, not 2.0"),
        ({"model": images_mixture(5.0)}, "its model_sha256 is"),
        ({"shard": 3}, "its shard is 64, not 3"),
    ],
)
def test_a_folder_with_another_run_is_refused(model, change, message, tmp_path):
    make(model, PLAIN, tmp_path / "a")
    before = files(tmp_path / "a")
    with pytest.raises(UserError, match=f"holds another run: {message}"):
        make(**{"model": model, "sampler": PLAIN, "out": tmp_path / "a"} | change)
    assert files(tmp_path / "a") == before


def test_of_all_settings_the_one_that_differs_is_named(model, tmp_path):
    make(model, CHAINED, tmp_path / "a", num=6)
    for change, message in (
        ({"eta": 0.5}, "its eta is the default, not 0.5"),
        ({"chains": 7}, "its chains is 6, not 7"),
    ):
        with pytest.raises(UserError, match=f"holds another run: {message}; choose a new folder"):
            make(model, CHAINED, tmp_path / "a", num=6, settings=CHAINS | change)
    fewer = {name: value for name, value in CHAINS.items() if name != "warmup_steps"}
    with pytest.raises(UserError, match="its warmup_steps is 2, not the default"):
        make(model, CHAINED, tmp_path / "a", num=6, settings=fewer)


def test_a_folder_of_other_things_is_refused(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run of this program"):
        make(model, PLAIN, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(UserError, match="holds no manifest.json"):
        load_images(tmp_path)


def test_chains_of_more_images_cost_less_and_so_need_another_folder(model, tmp_path):
    make(model, CHAINED, tmp_path / "a", num=6)
    with pytest.raises(UserError, match="600 images at 12 NFE need other settings than the 6"):
        make(model, CHAINED, tmp_path / "a", num=600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "huen"}, "unknown sampler 'huen': did you mean 'heun'"),
        ({"sampler": "dlg+huen"}, "did you mean 'dlg.heun'"),
        ({"sampler": "dlq+heun"}, "did you mean 'dlg.heun'"),
        ({"sampler": "dlg+aut"}, "did you mean 'dlg.auto'"),
        ({"sampler": "dlg+auto"}, "dlg.auto has to find its integrator first"),
        ({"sampler": "nothing"}, "known are .*dlg.auto"),
        ({"sampler": "heun", "seed": -1}, "seed must be a whole number, at least 0, not -1"),
        ({"sampler": "heun", "seed": 1.5}, "seed must be a whole number, at least 0, not 1.5"),
        ({"sampler": "heun", "settings": {"schedule": ["karras"]}}, "unknown schedule"),
        (
            {"sampler": "heun", "settings": {"tweedie": "abc"}},
            "tweedie must be .* at least 0.01 and at most 4, not 'abc'",
        ),
        (
            {"sampler": "heun", "settings": {"tweedie": 0.001}},
            "tweedie must be .* at least 0.01 and at most 4, not 0.001",
        ),
        ({"sampler": "heun", "settings": {"levels": "all"}}, "levels must be a whole number, at least 1, not 'all'"),
        ({"sampler": "rk45", "settings": {"levels": 0}}, "levels must be a whole number, at least 1, not 0"),
        ({"sampler": "rk45", "settings": {"tol": "abc"}}, "tol must be a finite number, above 0, not 'abc'"),
        ({"sampler": "heun_churn", "settings": {"s_churn": -5}}, "s_churn must be a finite number, at least 0, not -5"),
        ({"sampler": "dlg+heun", "settings": {"eta": "abc"}}, "eta must be a finite number, above 0, not 'abc'"),
        ({"sampler": "dlg+heun", "settings": {"renoise": 5}}, "renoise must be .* above 0 and at most 4, not 5"),
        (
            {"sampler": "dlg+reverse_diffusion", "settings": {"last": "men"}},
            "last must be one of None, 'mean', 'sample'",
        ),
        (
            {"sampler": "heun_churn", "settings": {"s_chrn": 1}},
            "unknown setting of heun_churn 's_chrn': did you mean 's_churn'",
        ),
        ({"sampler": "heun", "settings": {"n_skip": 3}}, "n_skip is a setting of the chains"),
        ({"sampler": "dlg+heun", "settings": {"nskip": 3}}, "did you mean 'n_skip'"),
        ({"sampler": "heun", "settings": {"schedule": "karas"}}, "did you mean 'karras'"),
        ({"sampler": "heun", "settings": {"start": "one"}}, "start must be one of 'zero', 'mean', not 'one'"),
        ({"sampler": "heun", "num": 0}, "num must be a whole number of images, at least 1, not 0"),
        ({"sampler": "heun", "shard": 0}, "shard must be a whole number of images, at least 1, not 0"),
        ({"sampler": "predictor_corrector", "settings": {"corrections": -1}}, "corrections must be a whole number"),
        ({"sampler": "dlg+heun", "settings": {"posterior": "exakt"}}, "posterior must be one of 'exact', 'classifier'"),
        (
            {"sampler": "dlg+heun", "settings": CHAINS | {"posterior": "classifier"}},
            "posterior=.classifier. needs a trained one",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(model, arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(model, out=tmp_path / "a", nfe=40, **arguments)
    assert not (tmp_path / "a").exists()


def broken(below, value=torch.nan):
    """A network whose answers are NaN below a level."""
    model = Adapter(lambda x, sigma: torch.where(sigma[:, None, None, None] > below, x / 2, value), (1, 2, 2))
    model.means = torch.zeros(1)  # what tells it from others
    return model


@pytest.mark.parametrize("where", ["nothing", "tuning.json", "chains"])
@pytest.mark.parametrize(
    ("make_model", "sampler", "settings", "message"),
    [
        (lambda: broken(1.0), "karras", {"levels": 3}, "the network's answer is not finite at sigma = 0.01"),
        (lambda: broken(100.0), "dlg", {}, "the network's answer is not finite at sigma = 50"),
        (images_mixture, "dlg", {"eta": 1e6, "n_skip": 20}, "the chains diverged, x reached .*: choose a smaller eta"),
        (images_mixture, "dlg", {"eta": 1e6, "n_skip": 20, "posterior": "residual"}, "the chains diverged"),
        (images_mixture, "karras", {"s_noise": 1e300}, "the sampler gave values that are not finite from image 0 on"),
    ],
)
def test_values_that_are_not_finite_are_named_and_leave_nothing(
    make_model, sampler, settings, message, where, tmp_path
):
    """But what was there before: the settings that trials found, and chains that are kept elsewhere."""
    out, options = tmp_path / "a", {"chains_dir": tmp_path / "chains"} if where == "chains" else {}
    if where == "tuning.json":
        out.mkdir()
        (out / where).write_text("{}")
    name = {"karras": "heun_churn", "dlg": "dlg+heun"}[sampler]
    with pytest.raises(UserError, match=message):
        make(make_model(), name, out, 60, settings=(CHAINS if sampler == "dlg" else {}) | settings, **options)
    assert not out.exists() or os.listdir(out) == ["tuning.json"]


def test_a_run_that_fails_later_keeps_its_images(model, tmp_path, monkeypatch):
    """Only what failed before its first images is taken away: a run that was begun earlier is not."""
    make(model, "euler", tmp_path / "a", 5, num=4, shard=4)
    before = files(tmp_path / "a")
    monkeypatch.setattr(GaussianMixture, "__call__", lambda self, x, sigma: x * torch.nan)
    with pytest.raises(UserError, match="not finite from image 4 on"):
        make(model, "euler", tmp_path / "a", 5, num=8, shard=4)
    assert files(tmp_path / "a").keys() == before.keys()


# Sharing


def test_integrators_share_the_chains(model, tmp_path, evaluated):
    """Window files are written once; the second integrator pays only for itself, but both count the chains."""
    settings = CHAINS | {"n_skip": 4}
    first = make(model, "dlg+heun", tmp_path / "a", settings=settings, chains_dir=tmp_path / "chains")
    before = files(tmp_path / "chains")
    assert sum("window" in name for name in before) == 4 and sum("warmup" in name for name in before) == 1
    evaluated.clear()
    second = make(model, "dlg+euler", tmp_path / "b", settings=settings, chains_dir=tmp_path / "chains")
    assert files(tmp_path / "chains") == before
    assert sum(evaluated) == second["rows"]["integrator"]
    assert first["rows"]["chains"] == second["rows"]["chains"] == 6 * 4 * 4
    assert first["rows"]["warmup"] == second["rows"]["warmup"] > 0
    make(model, "dlg+euler", tmp_path / "c", settings=settings)
    assert torch.equal(load_images(tmp_path / "c"), load_images(tmp_path / "b"))
    make(model, "dlg+euler", tmp_path / "d", settings=settings | {"eta": 0.7}, chains_dir=tmp_path / "chains")
    assert len(files(tmp_path / "chains")) == 2 * len(before)


def test_cached_runs_once(model, tmp_path, evaluated):
    first = cached(model, CHAINED, 12, 20, 0, CHAINS, tmp_path)
    assert first.images.shape == (20, 1, 2, 2) and first.manifest["complete"]
    evaluated.clear()
    again = cached(images_mixture(), CHAINED, 12, 20, 0, CHAINS, tmp_path)
    assert not evaluated and torch.equal(again.images, first.images) and again.manifest == first.manifest
    assert not torch.equal(cached(model, CHAINED, 12, 20, 1, CHAINS, tmp_path).images, first.images)
    assert evaluated


def test_a_default_that_is_spelled_out_names_the_same_cell(model, tmp_path, evaluated):
    plain, chained = (cached(model, s, 12, 20, 0, SETTINGS[s], tmp_path) for s in (PLAIN, CHAINED))
    evaluated.clear()
    spelled = {"start": "mean", "schedule": "karras"}
    assert torch.equal(cached(model, PLAIN, 12, 20, 0, spelled, tmp_path).images, plain.images)
    spelled = CHAINS | {"n_skip": plan(model, CHAINED, 12, 20, CHAINS).chain.n_skip, "posterior": "exact", "eta": 0.3}
    assert torch.equal(cached(model, CHAINED, 12, 20, 0, spelled, tmp_path).images, chained.images)
    assert not evaluated
    assert not torch.equal(cached(model, PLAIN, 12, 20, 0, {"start": "zero"}, tmp_path).images, plain.images)
    assert evaluated


def test_trials_of_tolerances_are_remembered(model, tmp_path, evaluated):
    """By another seed altogether, by another budget as far as they serve it; they never change what is chosen."""
    for num, nfe in ((20, 40), (20, 80)):
        cached(model, "rk45", nfe, num, 0, None, tmp_path)
    evaluated.clear()
    cached(model, "rk45", 40, 20, 1, None, tmp_path)
    assert 64 not in evaluated  # rows of a trial
    fresh = cached(model, "rk45", 80, 20, 0, None, tmp_path / "fresh")
    assert fresh.manifest["plan"] == cached(model, "rk45", 80, 20, 0, None, tmp_path).manifest["plan"]


def test_cached_depends_on_the_code(model, tmp_path, monkeypatch, evaluated):
    cached(model, "euler", 3, 4, 0, None, tmp_path)
    evaluated.clear()
    monkeypatch.setattr(cache, "code_key", lambda: "other")
    cached(model, "euler", 3, 4, 0, None, tmp_path)
    assert evaluated


def test_fingerprints_tell_models_apart():
    eye, turned = torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([2.0, 1.0]))
    models = [
        images_mixture(),
        images_mixture(5.0),
        *(GaussianMixture(torch.zeros(1, 2), c[None], torch.ones(1)) for c in (eye, turned)),
        GaussianMixture(torch.zeros(1, 2), eye[None], torch.ones(1), data_range=(0.0, 1.0)),
        GaussianMixture(torch.zeros(1, 2).double(), eye[None], torch.ones(1)),
    ]
    assert len({fingerprint(m) for m in models}) == len(models)
    assert fingerprint(images_mixture()) == fingerprint(models[0])
    with pytest.raises(UserError, match="this one has no weights"):
        fingerprint(Adapter(lambda x, sigma: x, (2,)))


# Classes


@pytest.mark.parametrize("label", [0, 1, 2])
def test_images_are_of_the_class_asked_for(label, tmp_path):
    """With and without chains; the classes' means are five standard deviations apart and more."""
    model = classes()
    for sampler, settings in (("heun", {}), ("dlg+heun", CHAINS)):
        make(model, sampler, tmp_path / sampler, 60, settings=settings | {"label": label, "guidance": 2})
        images = load_images(tmp_path / sampler).flatten(1)
        assert (torch.cdist(images, model.net.means).argmin(1) == label).all()


@pytest.mark.parametrize("posterior", ["residual", None])
@pytest.mark.parametrize(("guidance", "each"), [(1, 1), (0, 1), (3.0, 2)])
def test_both_halves_of_a_guided_call_are_paid_for(guidance, each, posterior, tmp_path):
    """The counter below everything has seen what the manifest says; a budget pays for half as many guided calls."""
    model = count_nfe(classes())
    settings = {"label": 1, "guidance": guidance, "tweedie": 0.02}
    sampler = "dlg+euler" if posterior else "euler"
    settings |= CHAINS | {"posterior": posterior, "n_skip": 2} if posterior else {}
    manifest = make(model, sampler, tmp_path / "a", 60, 18, settings=settings)
    assert sum(manifest["rows"].values()) == model.rows == 18 * manifest["nfe_full"]
    assert manifest["rows"]["tweedie"] == 18 * each and manifest["plan"]["rows_per_image"] == each
    assert manifest["nfe_full"] <= 60 < manifest["nfe_full"] + each
    the = plan(model, sampler, 60, 18, settings)
    plain = plan(model, sampler, 60 / each, 18, {k: v for k, v in settings.items() if k not in ("label", "guidance")})
    assert (the.levels, the.chain) == (plain.levels, plain.chain)
    if not posterior:
        assert manifest["nfe_full"] == 60 and the.levels == 60 / each - 1


def test_a_tolerance_keeps_to_the_budget_of_guided_calls_too(tmp_path):
    manifest = make(classes(), "rk45", tmp_path / "a", 90, 20, settings={"label": 0, "guidance": 2, "tweedie": 0.02})
    assert 45 < manifest["nfe_full"] <= 90


def test_classes_share_neither_images_nor_chains(tmp_path):
    model, chains = classes(), CHAINS | {"n_skip": 1, "levels": 2}
    asked = [{}, {"label": 1}, {"label": 1, "guidance": 2}, {"label": 2}, {"label": 2, "guidance": 0}]
    for settings in [*asked, {"label": 1, "guidance": 1.0}]:  # the last is the second again
        if settings:
            cached(model, "dlg+euler", 60, 6, 0, chains | settings, tmp_path)
    for kind in ("samples", "chains"):
        (folder,) = tmp_path.glob(f"*/{kind}")
        assert len(list(folder.iterdir())) == len(asked) - 1, kind
    models = [conditioned(model, settings)[0] for settings in asked]
    assert len({fingerprint(m) for m in models}) == len(asked)
    assert all(fingerprint(count_nfe(m)) == fingerprint(m) for m in models)  # counting makes no other model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": 3}, "label must be a whole number from 0 to 2, not 3"),
        ({"guidance": 2}, "guidance is a setting of a class: choose one by label"),
        ({"label": 1, "guidence": 2}, "unknown setting of heun 'guidence': did you mean 'guidance'"),
        ({"label": 1, "guidance": 3, "levels": 6}, "levels=6 is not .* can pay for: 12.00 NFE are left for it"),
    ],
)
def test_a_class_that_cannot_be_had_leaves_no_folder(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(classes(), "heun", tmp_path / "a", settings=settings)
    assert not (tmp_path / "a").exists()


def test_a_folder_of_another_class_is_refused(tmp_path):
    make(classes(), "heun", tmp_path / "a", settings={"label": 1})
    for settings, message in (({"label": 2}, "its label is 1, not 2"), ({}, "its label is 1, not the default")):
        with pytest.raises(UserError, match=f"holds another run: {message}"):
            make(classes(), "heun", tmp_path / "a", settings=settings)


def test_a_plan_of_a_class_needs_a_model_held_to_it():
    model, settings = classes(), CHAINS | {"label": 1}
    the = plan(model, "dlg+heun", 60, 18, settings)
    with pytest.raises(UserError, match=r"the plan is for \{'label': 1\} and the model for no class"):
        load_posterior(model, the)
    assert load_posterior(Conditioned(model, 1), the) is None


class Small(torch.nn.Module):
    """A network on a device that has memory for so many rows."""

    def __init__(self, fits):
        super().__init__()
        self._fits, self.weight = fits, torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x, sigma):
        if len(x) > self._fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.weight * x


@pytest.mark.parametrize("sampler", ["heun", "dlg+heun"])
def test_blocks_that_do_not_fit_are_halved(tmp_path, capsys, sampler):
    settings = {"chains": 4, "warmup_levels": 2, "n_skip": 1, "posterior": "residual"} if "+" in sampler else {}

    def sampled(fits, out, num=20):
        model = InBlocks(Adapter(Small(fits), (1, 2, 2), sigma_max=2.0))
        return make(model, sampler, tmp_path / out, 60, num, settings=settings | {"levels": 4})

    whole = sampled(64, "whole")
    assert "block_halved" not in whole and "at once" not in capsys.readouterr().err
    halved = sampled(9, "halved")
    assert halved["block_halved"] == read_manifest(tmp_path / "halved")["block_halved"] == 8
    assert capsys.readouterr().err.count("64 images at once do not fit in the memory of cpu: 8 are taken") == 1
    assert torch.equal(load_images(tmp_path / "whole"), load_images(tmp_path / "halved"))
    if "+" not in sampler:  # going on with more memory: in the blocks of the images that are there
        assert sampled(64, "halved", num=90)["block_halved"] == 8
    with pytest.raises(UserError, match="not even one image of shape"):
        sampled(0, "none")
    assert not (tmp_path / "none").exists()


def test_a_network_that_does_not_fit_is_told(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(UserError, match="the network does not fit in the memory of cpu"):
        load_model("digits")


# Linear diffusions


@pytest.fixture(params=["CLD", "BDM", "VP"])
def epsilon_net(request, monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 8)  # of the few rows here, and some in a second one
    constants = {"image_size": 4, "sigma_blur_max": 1.0} if request.param == "BDM" else {}
    torch.manual_seed(0)
    small = {"channels": (8, 8), "blocks": (1, 1), "attention": (False, False), "embedding": 8}
    net = EpsilonNet((1, 4, 4), {"name": request.param} | constants, 0.5, **small).eval().requires_grad_(False)
    net.data_range, net.name = (-1.0, 1.0), "tiny"
    return net


def linear_samplers(net):
    baselines = {"sde+euler_maruyama": {}, "sde+heun": {}}
    baselines |= {"sde+sscs": {}} if net.sde.parts == 2 else {"sde+ancestral": {}}
    return {"gddim": {"degree": 1, "corrector": True, "kappa": 1.5}} | baselines


def test_a_run_of_a_linear_diffusion_has_the_images_that_draw_makes(epsilon_net, tmp_path):
    """However many are made, in whatever shards, and after an interruption; at a cost that is counted and kept to."""
    for sampler, settings in (*linear_samplers(epsilon_net).items(), ("gddim", {"lam": 0.7, "last": "euler"})):
        name, out = sampler.removeprefix("sde+"), tmp_path / f"{sampler}-{len(settings)}"
        manifest = make(epsilon_net, sampler, out, nfe=7, num=9, seed=5, settings=settings, shard=4)
        drawn = gddim.draw(epsilon_net, name, 7, 9, 5, **settings)
        expected = to_uint8(2 * drawn.images - 1, (-1.0, 1.0))
        stored = to_uint8(load_images(out), (-1.0, 1.0))
        assert torch.equal(torch.as_tensor(stored), torch.as_tensor(expected)), sampler
        assert manifest["nfe_full"] == manifest["nfe_paper"] == drawn.nfe <= 7
        assert manifest["times"][0] == epsilon_net.sde.t_max and len(manifest["times"]) == manifest["plan"]["levels"]
        sorted(out.glob("shard-*.npz"))[1].unlink()
        kept = files(out, "shard-*")
        assert make(epsilon_net, sampler, out, nfe=7, num=9, seed=5, settings=settings, shard=4)["complete"]
        assert kept.items() <= files(out, "shard-*").items() and len(files(out, "shard-*")) == 3
        make(epsilon_net, sampler, tmp_path / f"{out.name}-few", nfe=7, num=3, seed=5, settings=settings)
        few = load_images(tmp_path / f"{out.name}-few")
        assert torch.equal(few, load_images(out)[:3]), sampler


def test_a_denoiser_is_asked_through_a_linear_diffusion(model, evaluated, tmp_path):
    for sde in ("vp", "CLD"):
        settings = {"sde": sde, "degree": 0}
        manifest = make(model, "gddim", tmp_path / sde, nfe=5, num=6, settings=settings)
        assert sum(evaluated) == 30 and manifest["nfe_full"] == 5
        free = gddim.from_denoiser(make_sde(sde.upper()), model)
        expected = to_uint8(gddim.draw(free, "gddim", 5, 6, 0, degree=0).images, (0.0, 1.0))
        assert torch.equal(
            torch.as_tensor(to_uint8(load_images(tmp_path / sde), (0.0, 1.0))), torch.as_tensor(expected)
        )
        evaluated.clear()
    with pytest.raises(UserError, match="holds another run: its sde is 'vp', not 'CLD'"):
        make(model, "gddim", tmp_path / "vp", nfe=5, num=6, settings=settings)
    one = cached(model, "gddim", 5, 6, 0, settings, tmp_path / "cache")
    evaluated.clear()
    assert torch.equal(cached(model, "gddim", 5, 6, 0, settings, tmp_path / "cache").images, one.images)
    assert not evaluated


def test_every_network_and_diffusion_is_a_run_of_its_own(model, epsilon_net):
    other = copy.deepcopy(epsilon_net)
    other.mean += 1
    free = [gddim.from_denoiser(make_sde(name), model) for name in ("VP", "CLD")]
    assert len({fingerprint(m) for m in (model, epsilon_net, other, *free)}) == 5


def test_what_a_linear_diffusion_refuses(model, epsilon_net, tmp_path):
    name = type(epsilon_net.sde).__name__
    for asked, sampler, nfe, settings, words in (
        (
            epsilon_net,
            "heun",
            9,
            {},
            f"of the linear diffusion {name}, on which heun does not work: choose one of gddim",
        ),
        (epsilon_net, "dlg+heun", 9, {}, "on which dlg.heun does not work"),
        (epsilon_net, "gddim", 9, {"sde": "VP"}, f"of the linear diffusion {name} already: leave sde out"),
        (epsilon_net, "gddim", 1, {}, "needs at least 1 NFE, the last denoising not counted: 0 are left"),
        (epsilon_net, "sde+heun", 2, {}, "needs at least 2 NFE, the last denoising not counted: 1 are left"),
        (epsilon_net, "gddim", 9, {"degree": 8}, "degree 8 needs at least 9 steps, and the grid has 8"),
        (epsilon_net, "gddim", 9, {"degre": 1}, "unknown setting of gddim 'degre': did you mean 'degree'"),
        (epsilon_net, "gddim", 9, {"start": "mean"}, "unknown setting of gddim 'start'"),
        (epsilon_net, "gddim", 9, {"corrector": "yes"}, "corrector must be True or False, not 'yes'"),
        (epsilon_net, "gddim", 9, {"lam": "x"}, "lambda must be at least 0 and finite"),
        (epsilon_net, "gddim", 9, {"lam": 1, "degree": 1}, "noise of lam=1 goes with degree 0"),
        (epsilon_net, "gddim", 9, {"kappa": "x"}, "kappa must be a number above 0, not 'x'"),
        (epsilon_net, "gddim", 9, {"levels": 12}, "levels must be a whole number, at least 2 and at most 9, not 12"),
        (epsilon_net, "gddim", 9, {"last": "now"}, "last must be one of None, 'clean', 'euler', not 'now'"),
        (epsilon_net, "gddim", 9, {"cast": "up"}, "cast must be one of"),
        (epsilon_net, "sde+rk45", 9, {}, "one step size for all images of a batch"),
        (model, "gddim", 9, {}, "choose one by sde, such as sde=VP"),
        (model, "gddim", 9, {"sde": "bdm"}, "BDM has noise of its own"),
        (model, "gddim", 9, {"sde": "cdl"}, "unknown diffusion 'cdl'"),
        (model, "heun", 9, {"sde": "vp"}, "unknown setting of heun 'sde'"),
        (model, "gdim", 9, {}, "unknown sampler 'gdim': did you mean 'gddim'"),
    ):
        with pytest.raises(UserError, match=words):
            make(asked, sampler, tmp_path / "x", nfe=nfe, settings=settings)
        assert not (tmp_path / "x").exists()


def test_values_that_are_not_finite_end_a_linear_run(epsilon_net, tmp_path):
    epsilon_net.mean[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"epsilon is not finite at t = .* \(gddim, images 0 to 3\)"):
        make(epsilon_net, "gddim", tmp_path / "x", nfe=5, num=8, shard=4, settings={})
    assert not (tmp_path / "x").exists()
