"""Where sampling starts, and which classifier tells noise levels: never by a name, never where no data is left."""

import math
import shutil

import pytest
import torch
from exact import classes, images_mixture

from dmcmc_core import checkpoints, gddim, load_model
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.checkpoints import load_noise_level, published
from dmcmc_core.checkpoints.safetensors import read, save
from dmcmc_core.data import digits
from dmcmc_core.denoiser import Adapter, InBlocks, Narrowed
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.linear_sde import make_sde
from dmcmc_core.nets.noise_level_classifier import LightClassifier
from dmcmc_core.nets.shipped import NETS
from dmcmc_core.noise_level import ExactPosterior
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.folder import load_images
from dmcmc_core.runs.levels import narrowed
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import conditioned
from dmcmc_core.runs.plan import Request, load_posterior, plan

CHAINS = {"chains": 4, "n_skip": 1, "warmup_levels": 2, "levels": 2}


def data(sigma_max, count=50):
    return EmpiricalData(2 * digits("train").images[:count] - 1, data_range=(-1, 1), sigma_max=sigma_max)


def sampled(model, sampler, out, settings=None, num=8, nfe=60):
    manifest = run(model, sampler, nfe, num, 0, out, settings, progress=False, trial=True)
    return manifest, load_images(out)


# Where sampling starts


@pytest.mark.parametrize("sigma_max", [20291.3, 4096.0, 2254.0])
def test_a_grid_does_not_start_where_no_data_is_left(sigma_max, tmp_path, capsys):
    """Images are those of a model that ends at 164, bit for bit, and it is said once."""
    model = data(sigma_max)
    for sampler, settings in (("dpmpp_2m", {}), ("dlg+heun", CHAINS)):
        assert plan(model, sampler, 60, 8, settings).grid(model)["sigmas"][0] == 164
        manifest, images = sampled(model, sampler, tmp_path / sampler, settings)
        assert manifest["sigmas"][0] == manifest["sigma_max"] == manifest["plan"]["sigma_max"] == 164
        expected, other = sampled(data(164.0), sampler, tmp_path / f"{sampler}-164", settings)
        assert torch.equal(images, other) and manifest["sigmas"] == expected["sigmas"]
    said = capsys.readouterr().err
    assert said.count(f"sampling starts at sigma_max=164 and not at the model's last level, {sigma_max:g}") == 1


def test_few_steps_from_the_networks_last_level_are_far_from_the_data(tmp_path):
    """What the rule is for: ten steps from 20,291 err 1.9 times as much as ten from 164, each beside 200 from there."""
    model, errors = data(20291.3, 1347), []
    for settings in ({}, {"sigma_max": 20291.3}):
        few, many = (
            sampled(model, "dpmpp_2m", tmp_path / f"{len(errors)}-{nfe}", settings, 64, nfe)[1] for nfe in (10, 200)
        )
        errors.append((few - many).square().mean().sqrt())
    assert errors[1] > 1.5 * errors[0]


def test_no_model_that_ships_and_no_published_network_starts_elsewhere():
    for name in ("digits", "glyphs32", "glyphs32-exact", "digits-mixture"):
        model = load_model(name)
        assert narrowed(model) is model and "sigma_max" not in plan(model, "heun", 11, 8).record()
    for name, config in published.CONFIGS.items():
        size, channels, centred = (config["data"][key] for key in ("image_size", "num_channels", "centered"))
        exploding = config["training"]["sde"] == "vesde"
        variance = math.expm1((config["model"]["beta_min"] + config["model"]["beta_max"]) / 2)
        model = Adapter(
            lambda x, sigma: x,
            (channels, size, size),
            (-1.0, 1.0) if centred else (0.0, 1.0),
            sigma_max=config["model"]["sigma_max"] if exploding else variance**0.5,
        )
        assert narrowed(model) is model, name


def test_a_large_image_starts_where_two_can_be_apart():
    model = Adapter(lambda x, sigma: x, (3, 512, 512), (-1.0, 1.0), sigma_max=20291.0)
    assert narrowed(model).sigma_max == 2 * math.sqrt(3 * 512 * 512)


def test_the_start_in_a_card_is_taken_and_said(tmp_path, capsys):
    model = data(1000.0)
    model.card = {"start": 80}
    assert plan(model, "heun", 11, 8).grid(model)["sigmas"][0] == 80
    assert "starts at sigma_max=80 and not at the model's last level, 1000, as its card says" in capsys.readouterr().err
    assert plan(model, "heun", 11, 8, {"sigma_max": 500}).grid(model)["sigmas"][0] == 500
    for start in ("80", 2000, True, math.nan):
        model.card = {"start": start}
        with pytest.raises(UserError, match="start in the model's card must be a finite number"):
            plan(model, "heun", 11, 8)


def test_a_start_stays_in_the_card_of_a_file(tmp_path):
    net, card = read(NETS / "digits.safetensors")
    save(net, tmp_path / "a.safetensors", card | {"start": 5.0})
    manifest, _ = sampled(str(tmp_path / "a.safetensors"), "euler", tmp_path / "a", nfe=2)
    assert manifest["sigmas"] == pytest.approx([5, 0.01, 0]) and manifest["model_sha256"] != fingerprint(
        load_model("digits")
    )


@pytest.mark.parametrize("sampler", ["heun", "euler_maruyama", "dlg+heun"])
def test_the_levels_of_a_run_are_those_asked_for(sampler, tmp_path):
    """The model is asked at no level outside them, warm-up and chains included; the same as a model of these levels."""
    asked = []

    class Watched(EmpiricalData):
        def __call__(self, x, sigma):
            asked.append(torch.as_tensor(sigma).reshape(-1))
            return super().__call__(x, sigma)

    images, settings = digits("train").images[:50], CHAINS if sampler.startswith("dlg") else {}
    ends = {"sigma_min": 0.05, "sigma_max": 8.0}
    manifest, made = sampled(Watched(images), sampler, tmp_path / "a", settings | ends)
    assert {name: manifest[name] for name in ends} == {name: manifest["plan"][name] for name in ends} == ends
    assert manifest["asked"]["settings"]["sigma_max"] == 8
    assert manifest["sigmas"][0] == 8 and manifest["sigmas"][-2] == pytest.approx(0.05)
    levels = torch.cat(asked)
    assert levels.max() <= 8.001 and (levels.min() >= 0.049 or sampler.startswith("dlg"))
    _, other = sampled(EmpiricalData(images, **ends), sampler, tmp_path / "b", settings)
    assert torch.equal(made, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_max": 60}, "sigma_max must be a finite number, at least 0.01 and at most 4, not 60"),
        ({"sigma_min": 0.001}, "sigma_min must be a finite number, at least 0.01 and at most 4, not 0.001"),
        ({"sigma_max": "high"}, "sigma_max must be a finite number"),
        ({"sigma_max": 1, "sigma_min": 2}, "sigma_min=2 must lie below sigma_max=1"),
        ({"sigma_max": 1, "tweedie": 2}, "tweedie must be .* at most 1, not 2"),
    ],
)
def test_levels_that_the_model_has_not_leave_no_folder(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(images_mixture(), "heun", 12, 8, out=tmp_path / "a", settings=settings, progress=False)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="renoise must be .* at most 1, not 2.0"):
        plan(images_mixture(), "dlg+heun", 60, 8, CHAINS | {"sigma_max": 1})


def test_other_levels_are_another_run_and_the_models_own_are_the_same(tmp_path):
    model = images_mixture()
    sampled(model, "heun", tmp_path / "a", {"sigma_max": 2})
    with pytest.raises(UserError, match="holds another run: its sigma_max is 2, not 3"):
        sampled(model, "heun", tmp_path / "a", {"sigma_max": 3})
    prints = [fingerprint(conditioned(model, ends)[0]) for ends in ({}, {"sigma_max": 4.0}, {"sigma_max": 2.0})]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint(InBlocks(Narrowed(model, sigma_max=2.0))) == prints[2]
    for settings in ({}, {"sigma_max": 4}, {"sigma_max": 2}):
        cached(model, "dlg+heun", 60, 8, 0, CHAINS | {"renoise": 1} | settings, tmp_path / "cache")
    assert [len(list(place.iterdir())) for place in tmp_path.glob("cache/*/*")] == [2, 2]


def test_a_linear_diffusion_asks_a_denoiser_within_the_levels_of_the_run(tmp_path):
    """Its grid is of times: no start of a grid of levels changes it, and levels asked for do."""
    model, sde = data(20291.3), make_sde("VP")
    manifest, images = sampled(model, "gddim", tmp_path / "a", {"sde": "VP"}, nfe=8)
    assert manifest["sigma_max"] == 20291.3
    ends = {"sigma_min": 1.0, "sigma_max": 20.0}
    _, other = sampled(model, "gddim", tmp_path / "b", {"sde": "VP"} | ends, nfe=8)
    model = EmpiricalData(model.images, data_range=(-1, 1), **ends)
    _, expected = sampled(model, "gddim", tmp_path / "c", {"sde": "VP"}, nfe=8)
    assert torch.equal(other, expected) and not torch.equal(other, images)
    net = load_model("digits")
    with pytest.raises(UserError, match="goes between times, not noise levels: leave sigma_max out"):
        plan(gddim.from_denoiser(sde, net), "gddim", 8, 8, {"sigma_max": 2})


def test_a_plan_of_other_levels_needs_a_model_of_them():
    model = images_mixture()
    the = plan(model, "dlg+heun", 60, 8, CHAINS | {"sigma_max": 2})
    with pytest.raises(UserError, match=r"the plan is for other noise levels, \(None, 2.0\), than the model"):
        load_posterior(model, the)
    levels = load_posterior(narrowed(model, sigma_max=2), the).levels
    assert levels[0] == 2 and levels[-1] > 0.01


# Which classifier serves a model


def renamed(model, name):
    model.denoiser.name = name
    return model


def stranger(name="digits"):
    """A network of the shape, range and levels of ``digits`` with weights of its own."""
    net = torch.nn.Module()
    net.weight = torch.nn.Parameter(torch.tensor(0.5))
    model = Adapter(lambda x, sigma: net.weight * x, (1, 8, 8), sigma_max=10.0)
    model.net, model.name = net, name
    return InBlocks(model)


def test_the_same_weights_have_the_same_images_under_any_name(tmp_path):
    net, card = read(NETS / "digits.safetensors")
    save(net, tmp_path / "mine.safetensors", card | {"name": "mine"})
    found = [
        sampled(model, "dlg+heun", tmp_path / str(i), CHAINS)
        for i, model in enumerate(["digits", str(tmp_path / "mine.safetensors")])
    ]
    assert torch.equal(found[0][1], found[1][1])
    again, _ = sampled(str(tmp_path / "mine.safetensors"), "dlg+heun", tmp_path / "0", CHAINS)
    assert again == found[0][0]
    assert {manifest["plan"]["posterior"] for manifest, _ in found} == {"classifier"}
    assert found[0][0]["classifier_sha256"] == found[1][0]["classifier_sha256"]


@pytest.mark.parametrize(
    "name", ["digits", "ve_cifar10_ncsnpp_continuous", str(NETS / "digits-noise-level.safetensors")]
)
def test_no_name_lends_a_network_the_classifier_of_another(name):
    model = stranger(name)
    assert Request(model, "dlg+heun").best_posterior() == "residual"
    with pytest.raises(UserError, match="posterior='classifier' needs a trained one"):
        plan(model, "dlg+heun", 60, 8, CHAINS | {"posterior": "classifier"})


def test_a_class_takes_no_classifier_of_the_whole():
    assert Request(classes(), "dlg+heun", {"label": 1}).best_posterior() == "residual"


def classifier_file(path, shape=(1, 2, 2), low=0.01, high=4.0, data_range=(0.0, 1.0)):
    torch.manual_seed(0)
    card = {"architecture": "noise-level-light", "sigma_min": low, "sigma_max": high, "data_range": list(data_range)}
    save(LightClassifier(shape, low, high, width=8), path, card)
    return str(path)


def test_a_classifier_of_ones_own_is_named_by_its_file(tmp_path):
    """Any place will do; another content is another run, and other chains."""
    model, one = images_mixture(), classifier_file(tmp_path / "one.safetensors")
    shutil.copy(one, tmp_path / "same.safetensors")
    same = str(tmp_path / "same.safetensors")
    manifest, images = sampled(model, "dlg+heun", tmp_path / "a", CHAINS | {"posterior": one, "renoise": 1})
    for file in (one, same):
        samples = cached(model, "dlg+heun", 60, 8, 0, CHAINS | {"posterior": file, "renoise": 1}, tmp_path / "cache")
        assert torch.equal(samples.images, images)
    assert len(list(tmp_path.glob("cache/*/chains/*"))) == 1
    net, card = read(tmp_path / "one.safetensors")
    net.basis.data.add_(1.0)
    save(net, tmp_path / "one.safetensors", card)
    with pytest.raises(UserError, match="holds another run: its classifier_sha256 is"):
        sampled(model, "dlg+heun", tmp_path / "a", CHAINS | {"posterior": one, "renoise": 1})
    cached(model, "dlg+heun", 60, 8, 0, CHAINS | {"posterior": one, "renoise": 1}, tmp_path / "cache")
    assert len(list(tmp_path.glob("cache/*/chains/*"))) == 2


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"shape": (1, 4, 4)}, r"is for images of shape \(1, 4, 4\), the model's are of shape \(1, 2, 2\)"),
        ({"data_range": (-1.0, 1.0)}, r"is for images of range \(-1.0, 1.0\), the model's are of range \(0.0, 1.0\)"),
        ({"high": 2.0}, "tells noise levels from 0.01 to 2 apart and the model is asked at 0.01 to 4"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(about, message, tmp_path):
    settings = CHAINS | {"posterior": classifier_file(tmp_path / "one.safetensors", **about)}
    with pytest.raises(UserError, match=message):
        run(images_mixture(), "dlg+heun", 60, 8, out=tmp_path / "a", settings=settings, progress=False)
    assert not (tmp_path / "a").exists()


def test_a_classifier_with_two_levels_that_could_be_meant_is_refused(tmp_path):
    card = {"architecture": "noise-level-light", "sigma_min": 0.01, "sigma_max": 5.0, "data_range": [0, 1]}
    save(LightClassifier((1, 2, 2), 0.01, 4.0, width=8), tmp_path / "a.safetensors", card)
    with pytest.raises(UserError, match="says two things of sigma_max: 5.0 in its card, 4.0 in its config"):
        load_noise_level(tmp_path / "a.safetensors")


def test_of_narrower_levels_a_classifier_tells_those_alone(tmp_path):
    """Its probabilities over them are those that it has, given that the level is one of them."""
    model, file = images_mixture(), classifier_file(tmp_path / "one.safetensors")
    request = Request(model, "dlg+heun", {"sigma_max": 2.0, "sigma_min": 0.1})
    posterior = request.posterior(request.plan(60, 8, CHAINS | {"posterior": file}))
    net, levels, _ = load_noise_level(file)
    inside = (levels <= 2.002) & (levels >= 0.0999)
    x = torch.rand(5, 1, 2, 2)
    assert torch.equal(posterior.levels, levels[inside]) and 0 < len(posterior.levels) < 1000
    torch.testing.assert_close(posterior.log_probs(x), net(x)[:, inside].log_softmax(1))
    assert isinstance(request.posterior(request.plan(60, 8, CHAINS)), ExactPosterior)


def damages(path):
    whole = path.read_bytes()
    yield "no safetensors", lambda: path.write_bytes(b"no safetensors")
    yield "half of it", lambda: path.write_bytes(whole[: len(whole) // 2])
    yield "nothing", lambda: path.write_bytes(b"")
    yield "a folder", lambda: (path.unlink(), path.mkdir())
    yield "a link to nowhere", lambda: (path.rmdir(), path.symlink_to("nowhere"))


def test_a_damaged_classifier_is_an_error_and_an_absent_one_means_the_residual(tmp_path, monkeypatch):
    """Of a network that ships, and of a file that is named; nothing is begun."""
    for name in ("digits", "digits-noise-level"):
        shutil.copy(NETS / f"{name}.safetensors", tmp_path)
    for module in ("runs.classifiers", "checkpoints.noise_level_classifier"):
        monkeypatch.setattr(f"dmcmc_core.{module}.NETS", tmp_path)
    model, path = load_model("digits"), tmp_path / "digits-noise-level.safetensors"
    assert plan(model, "dlg+heun", 60, 8, CHAINS).posterior == "classifier"
    for damage, do in damages(path):
        do()
        for settings in (CHAINS, CHAINS | {"posterior": str(path)}):
            with pytest.raises(UserError, match="digits-noise-level.safetensors"):
                run(model, "dlg+heun", 60, 8, out=tmp_path / "out", settings=settings, progress=False)
            assert not (tmp_path / "out").exists(), damage
    assert plan(model, "dlg+heun", 60, 8, CHAINS | {"posterior": "residual"}).posterior == "residual"
    path.unlink()
    assert plan(model, "dlg+heun", 60, 8, CHAINS).posterior == "residual"
    with pytest.raises(UserError, match="no such file"):
        plan(model, "dlg+heun", 60, 8, CHAINS | {"posterior": str(path)})
    assert checkpoints.NETS == NETS


def test_a_level_as_it_is_printed_is_the_level():
    """Six digits of the last level, which may round above it, are that level; a seventh of another is not."""
    model = Adapter(lambda x, sigma: x, (1, 2, 2), sigma_min=0.010000500037503125, sigma_max=20291.169610019828)
    whole = Narrowed(model, sigma_min=0.0100005, sigma_max=20291.2)
    assert (whole.sigma_min, whole.sigma_max) == (model.sigma_min, model.sigma_max)
    with pytest.raises(UserError, match="sigma_max must be"):
        Narrowed(model, sigma_max=20292.0)
