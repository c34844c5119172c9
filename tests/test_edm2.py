"""EDM2: its networks, guidance by another one, post-hoc EMA; parity with the published code where it is at hand."""

import itertools
import json
import math
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import sound_files  # noqa: E402

from dmcmc_core import integrators, schedules  # noqa: E402
from dmcmc_core.checkpoints import (  # noqa: E402
    convert,
    edm2,
    load_model,
    persistent,
    posthoc_ema,
    published,
    published_edm2,
    read_card,
)
from dmcmc_core.denoiser import Adapter, count_nfe  # noqa: E402
from dmcmc_core.errors import LOG, UserError  # noqa: E402
from dmcmc_core.fingerprint import fingerprint  # noqa: E402
from dmcmc_core.guidance import Conditioned, Guided  # noqa: E402
from dmcmc_core.nets.edm2 import MagnitudePreservingNet, mp_cat, mp_silu, mp_sum, normalise  # noqa: E402
from dmcmc_core.runs.make import run  # noqa: E402
from dmcmc_core.runs.model import conditioned  # noqa: E402
from dmcmc_core.workbench import cli  # noqa: E402

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
SMALL = ("edm2_uncond_small", "edm2_cond_small", "edm2_ema_only_float32_small")
COND, UNCOND = PARITY / "edm2_cond_small.pkl", PARITY / "edm2_uncond_small.pkl"
parity = pytest.mark.skipif(not PARITY.is_dir(), reason=f"reference outputs are not at {PARITY}")


def reference(name):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(PARITY / f"{name}.npz").items()}


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def loaded(path):
    """A network evaluated in blocks of 4 rows, so as not to wait for 64."""
    model = load_model(path)
    model.block = 4
    return model


def written(path, **changes):
    """A sound file of a random network; its path and content, changed."""
    content = sound_files.edm2_content()
    content |= changes
    path.write_bytes(sound_files.edm_bytes(content))
    return path


# ---- networks


@parity
@pytest.mark.parametrize("name", SMALL)
def test_networks_of_edm2_answer_as_published(name):
    """D, the U-Net's own answer and the log variance, with labels and without."""
    model, r = loaded(PARITY / f"{name}.pkl"), reference(name)
    x, sigma, labels, kind = r["x"], r["sigma"], r.get("class_labels"), "_float32" * ("output_float32" in r)
    total = (sigma**2 + 0.25).sqrt()
    with torch.no_grad():
        answers = {
            "output": model(x, sigma, labels=labels),
            "raw": model.net.unet(x / total[:, None, None, None], sigma.log() / 4, labels),
            "logvar": model.net.log_variance(sigma)[:, None, None, None],
        }
        if labels is not None:
            answers["output_no_label"] = model(x, sigma)
            assert torch.equal(model(x, sigma, torch.full((len(x),), -1)), answers["output_no_label"])
    for key, answer in answers.items():
        assert relative(answer, r[key + kind]) < 5e-6, key
        assert relative(answer, r[key]) < 1e-3, key
    assert (model.data_range, model.sigma_min, model.sigma_max) == ((-1.0, 1.0), 0.002, 80.0)
    assert model.unconditional is None and {p.dtype for p in model.net.parameters()} == {torch.float32}


@parity
def test_labels_of_edm2_are_numbers_or_rows():
    model, x, sigma = loaded(COND), torch.randn(2, 3, 16, 16), torch.tensor([0.5, 2.0])
    assert model.classes == 10
    assert torch.equal(model(x, sigma, torch.tensor([3, 7])), model(x, sigma, labels=torch.eye(10)[[3, 7]]))
    for labels in (torch.tensor([0, 10]), torch.zeros(2, 9), torch.tensor([0.0, 1.0])):
        with pytest.raises(UserError, match="labels must be"):
            model(x, sigma, labels)
    with pytest.raises(UserError, match="no classes"):
        load_model(UNCOND)(x, sigma, torch.tensor([0, 0]))


@parity
@pytest.mark.parametrize("name", ["edm2-img512-xs", "edm2-img64-s"])
def test_published_sizes_of_edm2_have_every_key_and_shape(name):
    about = json.loads((PARITY / f"{name}.shapes.json").read_text())
    with torch.device("meta"):
        net = MagnitudePreservingNet(**{edm2.ARGUMENTS[k]: v for k, v in about["init_kwargs"].items()})
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == about["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == about["num_parameters"]
    assert sorted(k for k, _ in net.named_buffers() if k in net.state_dict()) == sorted(about["buffers"])


def test_sums_and_concatenations_keep_magnitudes():
    """Of independent inputs of unit magnitude; a concatenation weighs its parts, whatever their channels."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, c, 64, 64, generator=generator, dtype=torch.float64) for c in (8, 24))
    for t in (0.0, 0.3, 0.5, 1.0):
        both = mp_cat(a, b, t)
        parts = [part.square().sum(1).mean().item() for part in both.split((8, 24), 1)]
        assert both.square().mean().sqrt().item() == pytest.approx(1, abs=0.02)
        assert parts[1] / sum(parts) == pytest.approx(t**2 / ((1 - t) ** 2 + t**2), abs=0.01)
        assert mp_sum(a, b[:, :8], t).square().mean().sqrt().item() == pytest.approx(1, abs=0.02)
    assert mp_silu(a).square().mean().sqrt().item() == pytest.approx(1, abs=0.02)
    assert normalise(7 * b, (1,)).square().mean(1).sqrt().sub(1).abs().max() < 1e-3


def test_the_magnitude_of_stored_weights_changes_no_answer():
    torch.manual_seed(0)
    net = MagnitudePreservingNet(8, 1, width=16, multipliers=(1, 2), blocks=1, attention=(4,), head=8, logvar=8)
    for name, parameter in net.named_parameters():
        parameter.data.add_(0.5) if name.endswith("gain") else None
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        before = net(x, sigma)
        for name, parameter in net.named_parameters():
            parameter.mul_(1 if name.endswith("gain") else 3)
        assert relative(net(x, sigma), before) < 1e-3 and not torch.equal(before, x)


@parity
@pytest.mark.parametrize("name", SMALL)
def test_converted_networks_of_edm2_answer_the_same_bits(name, tmp_path):
    source, own = PARITY / f"{name}.pkl", tmp_path / "own.safetensors"
    card = convert(source, own)
    assert card == read_card(own) and card["architecture"] == "edm2"
    one, other, x = loaded(source), loaded(own), torch.randn(3, 3, 16, 16)
    labels = (torch.tensor([0, 5, 9]),) if one.classes else ()
    assert torch.equal(one(x, torch.tensor(1.5), *labels), other(x, torch.tensor(1.5), *labels))
    assert (one.shape, one.data_range, one.classes) == (other.shape, other.data_range, other.classes)


@parity
@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.bin", "a"])
def test_a_pickle_of_edm2_is_known_by_what_it_holds(name, tmp_path):
    shutil.copy(COND, tmp_path / name)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(tmp_path / name)(x, torch.ones(1)), loaded(COND)(x, torch.ones(1)))


def test_a_network_of_latents_says_so(tmp_path, monkeypatch):
    """The card names the encoder, whose arrays are no part of the network, also in a converted file."""
    said = []
    monkeypatch.setattr(LOG, "warning", said.append)
    encoder = sound_files.Kept("StabilityVAEEncoder", scale=np.ones(4, np.float32), bias=np.float32(0.5))
    path = written(tmp_path / "a.pkl", encoder=encoder)
    convert(path, tmp_path / "own.safetensors")
    for file in (path, tmp_path / "own.safetensors"):
        model = load_model(file)
        assert model.card["encoder"] == "StabilityVAEEncoder" and model.data_range == (-2.0, 2.0)
    assert len(said) == 2 and all("latents of StabilityVAEEncoder" in line for line in said)
    assert "encoder" not in load_model(written(tmp_path / "b.pkl")).card


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"attention_kind": "new"}, "unknown argument of the network in .*, 'attention_kind'"),
        ({"model_channels": 32}, "does not fit its own arguments: tensor '.*' has shape"),
        ({"model_channels": 2**16}, "does not fit its own arguments"),
        ({"num_blocks": 10**9}, "blocks must be a whole number from 0 to 64"),
        ({"num_blocks": 2}, "tensor 'unet.enc.16x16_block1.emb_gain' is missing"),
        ({"channel_mult": [1, 2, 3]}, "does not fit its own arguments"),
        ({"label_balance": 2}, "label_balance must be"),
        ({"img_resolution": 15}, "size must be divisible by 2"),
        ({"img_resolution": "x"}, "size must be a whole number"),
        ({"channels_per_head": 5}, "cannot be shared by"),
        ({"sigma_data": float("nan")}, "sigma_data must be"),
    ],
)
def test_arguments_that_do_not_make_the_network_of_a_file_are_refused(arguments, match, tmp_path):
    content = sound_files.edm2_content()
    content["ema"].meta["state"]["_init_kwargs"] |= arguments
    (tmp_path / "a.pkl").write_bytes(sound_files.edm_bytes(content))
    with pytest.raises(UserError, match=match):
        load_model(tmp_path / "a.pkl")


def test_nothing_of_a_pickle_is_executed_and_nothing_that_is_not_finite_is_taken(tmp_path):
    mark = tmp_path / "written"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    for place in ("encoder", "loss_fn"):
        with pytest.raises(UserError, match="it names .*open, which no checkpoint needs"):
            load_model(written(tmp_path / "a.pkl", **{place: Evil()}))
    assert not mark.exists()
    content = sound_files.edm2_content()
    content["ema"].meta["state"]["_modules"]["unet"].meta["state"]["_parameters"]["out_gain"].data.fill_(math.inf)
    (tmp_path / "a.pkl").write_bytes(sound_files.edm_bytes(content))
    with pytest.raises(UserError, match="tensor 'unet.out_gain' .* holds NaN or infinity"):
        load_model(tmp_path / "a.pkl")


def test_edm_networks_of_discrete_levels_say_where_sampling_starts(tmp_path):
    content = sound_files.edm_content()
    levels = torch.cat([torch.logspace(4.3, -2, 50), torch.zeros(1)])
    content["ema"].meta |= {"class_name": "iDDPMPrecond"}
    content["ema"].meta["state"] |= {"_buffers": {"u": levels}}
    (tmp_path / "a.pkl").write_bytes(sound_files.edm_bytes(content))
    card = load_model(tmp_path / "a.pkl").card
    assert card["start"] == 80.0 and card["sigma_max"] == pytest.approx(10**4.3)
    content["ema"].meta["state"] |= {"_buffers": {"u": levels[10:]}}
    (tmp_path / "a.pkl").write_bytes(sound_files.edm_bytes(content))
    assert ("start" in load_model(tmp_path / "a.pkl").card) == (levels[10].item() > 80)
    (tmp_path / "b.pkl").write_bytes(sound_files.edm_bytes(sound_files.edm_content()))
    assert "start" not in load_model(tmp_path / "b.pkl").card


# ---- guidance by another network


@parity
@pytest.mark.parametrize("case", ["plain6", "guided6"])
def test_the_published_sampler_with_two_networks_is_heun(case):
    r, about = reference("edm2_sampler"), json.loads((PARITY / "edm2_sampler.json").read_text())["cases"][case]
    model, labels = Guided(loaded(COND), loaded(UNCOND), about["guidance"]), r[f"{case}.labels"]
    function = Adapter(lambda x, sigma: model(x, sigma, labels), model.shape, (-1.0, 1.0), 0.002, 80.0)
    grid = schedules.karras(about["num_steps"], 80.0, 0.002)
    with torch.no_grad():
        latents = integrators.heun(function, 80 * r[f"{case}.noise"], grid)
    assert relative(latents, r[f"{case}.latents"]) < 5e-5
    images = (latents * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert (images.int() - r[f"{case}.images_uint8"].int()).abs().max() <= 1


def constant(value, classes=0, shape=(1, 2, 2), **more):
    """A denoiser that answers a number, plus the label of each row."""

    def function(x, sigma, labels=None):
        return torch.full_like(x, value) + (0 if labels is None else labels.reshape(-1, 1, 1, 1).to(x))

    return Adapter(function, shape, (-1.0, 1.0), classes=classes, **more)


@pytest.mark.parametrize(("w", "answer", "rows"), [(0, 1.0, 1), (1, 5.0, 1), (2.5, 11.0, 2)])
def test_guidance_by_another_network_is_its_formula_and_both_are_counted(w, answer, rows):
    model = count_nfe(Conditioned(Guided(constant(3.0, 4), constant(1.0), w), 2))
    assert torch.equal(model(torch.zeros(3, 1, 2, 2), torch.tensor(1.0)), torch.full((3, 1, 2, 2), answer))
    assert model.nfe == rows == model.denoiser.rows_per_image
    assert model.condition == {"label": 2, "guidance": w, "guide": "Adapter"}


def test_a_guide_with_classes_sees_the_same_labels():
    x = torch.zeros(2, 1, 2, 2)
    both = Guided(constant(3.0, 4), constant(1.0, 4), 2.0)(x, torch.tensor(1.0), torch.tensor([0, 3]))
    held = Guided(constant(3.0, 4), Conditioned(constant(1.0, 4), 1), 2.0)(x, torch.tensor(1.0), torch.tensor([0, 3]))
    assert both[:, 0, 0, 0].tolist() == [5.0, 8.0] and held[:, 0, 0, 0].tolist() == [4.0, 10.0]


@pytest.mark.parametrize(
    ("guide", "match"),
    [
        (constant(1.0, shape=(1, 4, 4)), r"the shape of the network it guides, \(1, 2, 2\), not \(1, 4, 4\)"),
        (constant(1.0, 3), "must have 4 classes, as the network it guides, or none, not 3"),
        (constant(1.0, sigma_min=60.0, sigma_max=90.0), "must know noise levels of the network it guides, 0.01 to 50"),
        (Adapter(lambda x, s: x, (1, 2, 2), (0.0, 1.0)), "the data_range of the network it guides"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused(guide, match):
    with pytest.raises(UserError, match=match):
        Guided(constant(3.0, 4), guide, 2.0)


def test_nothing_is_guided_twice():
    guided = Guided(constant(3.0, 4, unconditional=-1), constant(1.0), 2.0)
    for again in (lambda: Conditioned(guided, 1, 3.0), lambda: Guided(guided, constant(1.0), 2.0)):
        with pytest.raises(UserError, match="guided already"):
            again()


@parity
def test_a_run_is_guided_by_the_network_that_a_setting_names(tmp_path):
    """The images of the two networks together; the recipe knows the guide by its weights, not by its name."""
    settings = {"label": 3, "guidance": 2.1, "guide": str(UNCOND), "block": 2}
    manifest = run(str(COND), "heun", 10, 2, out=tmp_path / "a", settings=settings, progress=False)
    assert manifest["nfe_full"] == 10 and manifest["plan"]["levels"] == 3
    assert manifest["plan"]["held_to"] == {"label": 3, "guidance": 2.1, "guide": "edm2_uncond_small"}
    model = Conditioned(Guided(load_model(COND), load_model(UNCOND), 2.1), 3)
    run(model, "heun", 10, 2, out=tmp_path / "b", settings={"block": 2}, progress=False)
    one, other = (np.load(tmp_path / name / "shard-00000000.npz")["arr_0"] for name in "ab")
    assert np.array_equal(one, other)
    shutil.copy(UNCOND, tmp_path / "renamed.pkl")
    hashes = {fingerprint(conditioned(load_model(COND), settings | {"guide": str(path)})[0]) for path in
              (UNCOND, tmp_path / "renamed.pkl")}  # fmt: skip
    others = {"guidance": 2.2}, {"guide": str(PARITY / "edm2_ema_only_float32_small.pkl")}, {"label": 4}
    assert hashes == {manifest["model_sha256"]} == {fingerprint(model)}
    assert not hashes & {fingerprint(conditioned(load_model(COND), settings | other)[0]) for other in others}


@parity
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("guide=nowhere.pkl guidance=2 label=1", "no such file: nowhere.pkl"),
        (f"guide={UNCOND} label=1", "set guidance too"),
        (f"guide={UNCOND} guidance=2", "choose one by label, 0 to 9"),
        (f"guide={UNCOND} guidance=2 label=1 unconditional=2", "unconditional is for guidance without a guide"),
        (f"guide={UNCOND} guidance=-2 label=1", "guidance must be a finite number, at least 0"),
        ("guide=3 guidance=2 label=1", "guide must be a name or a file, not 3"),
        ("guide=digits guidance=2 label=1", "a guide must have the shape of the network it guides"),
        ("guidance=2 label=1", "or another network by guide"),
    ],
)
def test_guides_that_cannot_be_are_said_before_anything_is_written(settings, match, tmp_path, capsys):
    words = ["sample", "--model", str(COND), "--sampler", "heun", "--nfe", "10", "--num", "2"]
    words += ["--out", str(tmp_path / "a"), *itertools.chain(*(("--set", pair) for pair in settings.split()))]
    assert cli.main(words) == 2 and match in capsys.readouterr().err and not (tmp_path / "a").exists()


# ---- post-hoc EMA


@parity
def test_profiles_and_coefficients_are_as_published():
    r = {key: value.numpy() for key, value in reference("edm2_posthoc_ema").items()}
    close = {"rtol": 1e-8, "atol": 0}
    np.testing.assert_allclose(posthoc_ema.exponent_of(r["std"]), r["exponent"], **close)
    np.testing.assert_allclose(posthoc_ema.std_of(r["exponent"]), r["std_back"], **close)
    step = r["beta_case_next_delta"].T
    np.testing.assert_allclose(posthoc_ema.beta(r["std"][:, None], *step), r["beta"], **close)
    times = r["in_nimg"], r["in_std"]
    np.testing.assert_allclose(posthoc_ema.correlation(*times, *times), r["correlation"], **close)
    found = posthoc_ema.coefficients(*times, r["out_nimg"], r["out_std"])
    np.testing.assert_allclose(found, r["coefficients"], **close)


def test_inner_products_of_profiles_are_their_integrals():
    """By quadrature, profiles of different lengths at different times."""
    s, weights = np.polynomial.legendre.leggauss(400)
    for (t, a), (u, b) in itertools.product([(1.0, 0.05), (0.7, 0.1)], [(0.7, 0.2), (1.0, 0.05)]):
        g, h, end = posthoc_ema.exponent_of(a), posthoc_ema.exponent_of(b), min(t, u)
        x = (s + 1) * end / 2
        inner = (weights * (g + 1) * (x / t) ** g / t * (h + 1) * (x / u) ** h / u).sum() * end / 2
        assert posthoc_ema.correlation([t], [a], [u], [b]).item() == pytest.approx(inner, rel=1e-6)


def test_an_average_of_a_training_is_made_again_from_averages_of_two_other_lengths():
    """Weights that wander at random, averaged step by step by beta; the nearest snapshot is much further away."""
    rng, steps, lengths = np.random.default_rng(0), 4000, (0.05, 0.1, 0.075)
    theta, averages, kept = np.zeros(50), np.zeros((3, 50)), []
    for step in range(1, steps + 1):
        theta = theta + rng.standard_normal(50)
        decay = posthoc_ema.beta(lengths, step, 1)[:, None]
        averages = decay * averages + (1 - decay) * theta
        if step % 500 == 0:
            kept += [
                (float(step), length, average.copy()) for length, average in zip(lengths[:2], averages[:2], strict=True)
            ]
    times, stds, values = zip(*kept, strict=True)
    weights = posthoc_ema.coefficients(times, stds, float(steps), [0.075])[:, 0]
    error = np.linalg.norm(weights @ np.array(values) - averages[2])
    assert error < 0.05 * min(np.linalg.norm(values[i] - averages[2]) for i in (-1, -2))


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, float("nan")])
def test_lengths_that_no_profile_has_are_refused(std):
    with pytest.raises(UserError, match="the std of an EMA must be a finite number, above 0 and at most 0.288675"):
        posthoc_ema.exponent_of(std)


def test_the_longest_average_is_of_all_alike():
    assert posthoc_ema.exponent_of(12**-0.5).item() == pytest.approx(0, abs=1e-9)
    assert posthoc_ema.std_of(0.0).item() == pytest.approx(12**-0.5)


@pytest.fixture
def snapshots(tmp_path):
    """Four float16 snapshots of a training, and their folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    for i, (kimg, std) in enumerate(itertools.product((1000, 2000), (0.05, 0.1))):
        content, generator = sound_files.edm2_content(), torch.Generator().manual_seed(i)
        for module in sound_files.kept_modules(content["ema"]):
            for parameter in module["_parameters"].values():
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        path = folder / f"network-snapshot-{kimg:07d}-{std:.3f}.pkl"
        path.write_bytes(sound_files.edm_bytes(content))
    return folder


def test_a_network_of_a_new_length_is_the_sum_of_its_snapshots(snapshots, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    assert cli.main(["convert", str(snapshots), str(own), "--ema-std", "0.075"]) == 0
    assert "parameters" in capsys.readouterr().out
    model, parts = load_model(own), [load_model(path) for path in sorted(snapshots.iterdir())]
    weights = posthoc_ema.coefficients([1e6, 1e6, 2e6, 2e6], [0.05, 0.1] * 2, 2e6, [0.075])[:, 0]
    assert weights.sum() == pytest.approx(1)
    for name, parameter in model.net.named_parameters():
        values = [dict(part.net.named_parameters())[name].double() for part in parts]
        expected = sum(w * value for w, value in zip(weights.tolist(), values, strict=True))
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7)
    about = model.card["ema"]
    assert (about["std"], about["nimg"], about["snapshots"]) == (0.075, 2e6, 4) and about["mismatch"] < 0.1
    assert torch.equal(model.net.unet.emb_fourier.freqs, parts[0].net.unet.emb_fourier.freqs)
    assert model.card["source"] == "run" and len(model.card["source_sha256"]) == 64


def test_the_length_of_a_snapshot_gives_that_snapshot(snapshots):
    net, _ = posthoc_ema.reconstruct(posthoc_ema.snapshots_in(snapshots), 0.1)
    last = load_model(snapshots / "network-snapshot-0002000-0.100.pkl").net
    for own, other in zip(net.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(own, other.cpu(), rtol=1e-6, atol=1e-6)


def test_a_length_that_snapshots_are_far_from_is_said(snapshots, monkeypatch):
    said = []
    monkeypatch.setattr(LOG, "warning", said.append)
    _, card = posthoc_ema.reconstruct(posthoc_ema.snapshots_in(snapshots), 0.01)
    assert card["ema"]["mismatch"] > 0.5 and "with a mismatch of" in said[0]


def test_snapshots_that_do_not_go_together_are_refused(snapshots, tmp_path):
    found = posthoc_ema.snapshots_in(snapshots)
    with pytest.raises(UserError, match="after the 1,500,000 of the network asked for"):
        posthoc_ema.reconstruct(found, 0.075, 1.5e6)
    with pytest.raises(UserError, match="are of the same time and length: leave one out"):
        posthoc_ema.reconstruct([*found, found[0]._replace(path=tmp_path / "again.pkl")], 0.075)
    with pytest.raises(UserError, match="needs snapshots, at least one"):
        posthoc_ema.reconstruct([], 0.075)
    content = sound_files.edm2_content()
    for module in sound_files.kept_modules(content["ema"]):
        if "freqs" in module["_buffers"]:
            module["_buffers"]["freqs"] = module["_buffers"]["freqs"] + 1
    found[-1].path.write_bytes(sound_files.edm_bytes(content))
    with pytest.raises(UserError, match="is not of the same training as .*0001000-0.050.pkl"):
        posthoc_ema.reconstruct(found, 0.075)
    found[-1].path.write_bytes(sound_files.edm_bytes(sound_files.edm_content()))
    with pytest.raises(UserError, match="holds no network of EDM2, whose snapshots"):
        convert(snapshots, tmp_path / "own.safetensors", ema_std=0.075)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no snapshots of EDM2"):
        convert(tmp_path / "empty", tmp_path / "own.safetensors", ema_std=0.075)
    with pytest.raises(UserError, match="made of a folder of snapshots"):
        convert(found[0].path, tmp_path / "own.safetensors", ema_std=0.075)
    assert not (tmp_path / "own.safetensors").exists()


# ---- names


def test_a_published_name_of_edm2_says_where_its_file_goes_and_comes_from(tmp_path, monkeypatch):
    from dmcmc_core import checkpoints, files

    monkeypatch.setattr(files, "root", lambda: tmp_path)
    with pytest.raises(UserError, match="it goes to .*/exp/paper/edm2/edm2-img64-s-1073741-0.075.pkl.*NVlabs/edm2"):
        load_model("edm2-img64-s-fid")
    path = tmp_path / published.FILES["edm2-img64-s-fid"]
    path.parent.mkdir(parents=True)
    written(path)
    assert load_model("edm2-img64-s-fid").card["architecture"] == "edm2"
    rows = {row["name"]: row for row in checkpoints.known(tmp_path)}
    assert rows["edm2-img64-s-fid"]["here"] and "NVlabs/edm2" in rows["edm2-img512-xxl-dino"]["about"]
    assert "with guide=edm2-img512-m-0268435-0.155 and guidance=2.05" in rows["edm2-img512-xxl-autog-fid"]["about"]
    assert {guide for guide, _ in published_edm2.GUIDES.values()} <= rows.keys()


def test_a_pickle_that_is_none_of_edm_is_refused_by_name(tmp_path):
    content = sound_files.edm2_content()
    content["ema"].meta["class_name"] = "Postcond"
    (tmp_path / "a.pkl").write_bytes(sound_files.edm_bytes(content))
    with pytest.raises(UserError, match="holds no network of EDM under 'ema'|holds a Postcond"):
        load_model(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"ema": {"w": 1}}))
    with pytest.raises(UserError, match="holds no network of EDM under 'ema'"):
        load_model(tmp_path / "b.pkl")
    assert not persistent.is_one(tmp_path / "b.pkl")
