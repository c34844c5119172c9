"""The mean that a run is told of: numbers, images, the model's own; part of the model; said where none is known."""

import numpy as np
import pytest
import torch
from exact import classes, images_mixture

from dmcmc_core import UserError, files
from dmcmc_core.data import digits, to_uint8
from dmcmc_core.denoiser import Adapter, InBlocks
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs import means, tuning
from dmcmc_core.runs.fitting import solvers
from dmcmc_core.runs.folder import load_images
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import conditioned
from dmcmc_core.runs.plan import plan
from dmcmc_core.runs.tuning import chains

SHAPE = (1, 2, 2)


class Exact(torch.nn.Module):
    """The denoiser of :func:`images_mixture` as a network, which knows no mean."""

    def __init__(self, shape=SHAPE):
        super().__init__()
        self.model = images_mixture()
        self.register_buffer("means", self.model.means)

    def forward(self, x, sigma):
        return self.model(x, sigma)


def unknown(data_range=(0.0, 1.0), mean=None):
    model = Adapter(Exact(), SHAPE, data_range, sigma_min=0.01, sigma_max=4.0, mean=mean)
    return InBlocks(model)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "root", lambda: tmp_path)
    return tmp_path / "exp" / "cache" / "means"


@pytest.fixture
def anew():
    """What is said once in a process is said once in this test."""
    means._say.cache_clear()


def mean_of(setting, model=None):
    return conditioned(model or unknown(), {"mean": setting})[0].mean


def sampled(model, out, settings=None, **more):
    manifest = run(model, "dpmpp_2m", 3, 8, 0, out, settings, progress=False, **more)
    return manifest, load_images(out)


def test_a_number_and_images(tmp_path):
    assert torch.equal(mean_of(0.25), torch.full(SHAPE, 0.25))
    images = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))
    levels = to_uint8(images, (0.0, 1.0))
    np.savez(tmp_path / "images.npz", arr_0=levels)
    np.save(tmp_path / "images.npy", levels)
    wanted = torch.from_numpy(np.asarray(levels)).permute(0, 3, 1, 2).double().mean(0) / 255
    for name in ("images.npz", "images.npy"):
        torch.testing.assert_close(mean_of(str(tmp_path / name)), wanted.float())
    centred = mean_of(str(tmp_path / "images.npy"), unknown((-1.0, 1.0)))
    torch.testing.assert_close(centred, 2 * wanted.float() - 1)
    net = Adapter(lambda x, sigma: x, (1, 8, 8))
    torch.testing.assert_close(mean_of("digits-train", net), digits("train").images.mean(0))


def test_a_value_for_each_channel_and_known_ones():
    model = Adapter(lambda x, sigma: x, (3, 2, 2), data_range=(-1.0, 1.0))
    assert mean_of([0.25, -0.5, 0.0], model)[:, 0, 1].tolist() == [0.25, -0.5, 0.0]
    torch.testing.assert_close(mean_of("cifar10", model)[:, 1, 1], 2 * torch.tensor([0.4914, 0.4822, 0.4465]) - 1)
    with pytest.raises(UserError, match="mean has 3 values, and an image of the model 1 channels"):
        mean_of("imagenet")
    with pytest.raises(UserError, match="mean must be a finite number, at least -1 and at most 1, not 2"):
        mean_of([0.25, 2, 0.0], model)


def test_a_folder_of_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for value in (0, 51):
        image.fromarray(np.full((2, 2), value, np.uint8)).save(tmp_path / f"{value}.png")
    torch.testing.assert_close(mean_of(str(tmp_path)), torch.full(SHAPE, 0.1))


def test_a_run_starts_around_it_as_one_that_knows_it(tmp_path):
    """The same images as those of an adapter that was given it, bit for bit, and others than around 0."""
    known = unknown(mean=torch.full(SHAPE, 0.25))
    manifest, images = sampled(unknown(), tmp_path / "told", {"mean": 0.25})
    assert manifest["plan"]["start"] == "mean" and manifest["asked"]["settings"] == {"mean": 0.25}
    assert torch.equal(images, sampled(known, tmp_path / "known")[1])
    assert not torch.equal(images, sampled(unknown(), tmp_path / "zero")[1])
    chains = {"mean": 0.25, "chains": 2, "n_skip": 1, "warmup_levels": 2, "levels": 2}
    assert plan(unknown(), "dlg+heun", 30, 8, chains).chain.start == "mean"


def test_it_is_part_of_the_model(tmp_path):
    model = unknown()
    told = [conditioned(model, {"mean": value})[0] for value in (0.25, 0.5)]
    assert len({fingerprint(model), *map(fingerprint, told)}) == 3
    own = unknown(mean=torch.full(SHAPE, 0.25))
    assert fingerprint(conditioned(own, {"mean": 0.25})[0]) == fingerprint(own)
    name = tmp_path / "images.npy"
    np.save(name, np.zeros((3, 2, 2, 1), np.uint8))
    sampled(model, tmp_path / "run", {"mean": str(name)})
    np.save(name, np.ones((3, 2, 2, 1), np.uint8))
    with pytest.raises(UserError, match="model_sha256|another"):  # another mean under the same name
        sampled(model, tmp_path / "run", {"mean": str(name)})


def test_that_of_its_own_images(cache, capsys):
    exact = images_mixture()
    found = mean_of("samples")
    said = capsys.readouterr().err
    assert "mean=samples: 64 images of the model are made once for their mean, 3,200 evaluations" in said
    spread = exact.sample(4000, seed=0).std(0) / 8  # of the mean of 64 exact draws
    assert ((found - exact.mean).abs() < 4 * spread).all() and (exact.mean.abs() > 6 * spread).all()
    assert torch.equal(mean_of("samples"), found) and not capsys.readouterr().err
    assert len(list(cache.iterdir())) == 1


def test_classes_have_means_of_their_own(cache):
    model = classes()
    for label in (0, 2):
        found = conditioned(model, {"label": label, "mean": "samples"})[0].mean
        assert (found.flatten() - images_mixture().means[label]).abs().max() < 0.1
    assert conditioned(model, {"label": "each", "mean": "samples"})[0].mean.shape == SHAPE
    assert len(list(cache.iterdir())) == 3


def test_solvers_and_trials_take_it(tmp_path):
    options = {"trajectories": 24, "held_out": 8, "accurate": 24}
    found = solvers(unknown(), [2], {"mean": 0.25}, cache_dir=tmp_path, **options)[2][0]
    assert found.start == "mean"
    found.check(conditioned(unknown(), {"mean": 0.25})[0])
    with pytest.raises(UserError, match="fitted to another network or other settings"):
        found.check(conditioned(unknown(), {"mean": 0.5})[0])
    found.save(tmp_path / "solver.safetensors")
    given = {"mean": 0.25, "file": str(tmp_path / "solver.safetensors")}
    assert run(unknown(), "fitted", 2, 4, 0, tmp_path / "out", given, progress=False)["plan"]["start"] == "mean"


def test_a_start_around_0_is_said_once(tmp_path, capsys, anew):
    sentence = "starts around 0: no mean is known (mean="
    for i, (model, settings) in enumerate(
        [
            (unknown((-1.0, 1.0)), {}),
            (unknown(), {"mean": 0.25}),
            (unknown(), {"start": "zero"}),
            (unknown(mean=torch.zeros(SHAPE)), {}),
        ]
    ):
        sampled(model, tmp_path / f"quiet-{i}", settings)
    assert sentence not in capsys.readouterr().err
    for i in range(2):
        sampled(unknown(), tmp_path / f"said-{i}")
    assert capsys.readouterr().err.count(sentence) == 1


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (2, "mean must be a finite number, at least 0 and at most 1, not 2"),
        (float("nan"), "mean must be a finite number"),
        (True, "mean must be a number, one for each channel, cifar10 or imagenet, .*, or samples, not True"),
        ([0.1, 0.2], "mean has 2 values, and an image of the model 1 channels"),
        ([], r"mean must be a number, .*, not \[\]"),
        (np.array([0.1, 0.2]), r"mean must be a number, .*, not array\(\[0.1, 0.2\]\)"),
        (torch.zeros(2, 2), r"mean must be a number, .*, not tensor"),
        ("", "mean must be a number"),
        ("digits-trian", "unknown image set .*: did you mean 'digits-train'?"),
        ("digits-train", r"mean=digits-train: its images have shape \(1, 8, 8\), those of the model \(1, 2, 2\)"),
    ],
)
def test_bad_means(mean, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sampled(unknown(), tmp_path / "out", {"mean": mean})
    assert not (tmp_path / "out").exists()


def test_a_mean_beside_a_start_at_zero_is_refused(tmp_path):
    with pytest.raises(UserError, match="start=zero leaves it out"):
        sampled(unknown(), tmp_path / "out", {"mean": 0.25, "start": "zero"})
    assert not (tmp_path / "out").exists()


def test_a_linear_diffusion_takes_none(tmp_path):
    with pytest.raises(UserError, match="a linear diffusion starts at its prior: leave mean out"):
        plan(unknown(), "gddim", 9, 4, {"sde": "VP", "mean": 0.5})


@pytest.mark.parametrize("plain", [True, False])
def test_trials_keep_it(plain, cache, monkeypatch):
    def law(search, sampler, settings, seed=chains.TRIAL):
        about = {"sampler": sampler, **settings, "rows": 1}
        return about | {"distance": 1.0, "without": [1.0] * chains.GROUPS}

    monkeypatch.setattr(chains.Chains, "measured", law)
    model = Adapter(lambda x, sigma: x / (1 + sigma[:, None, None, None]), (1, 8, 8), sigma_max=4.0)
    model.net = torch.nn.Linear(1, 1)
    found = tuning.auto(model, 12, 80, {"mean": 0.25}, plain=plain)
    assert found.settings["mean"] == 0.25
    told, rest = conditioned(model, found.settings)
    assert plan(told, found.sampler, 12, 80, rest).start == "mean"
