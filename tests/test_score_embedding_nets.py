"""Networks of score embedding and its baselines: parity with the published code, what files hold, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import load_model, score_embedding
from dmcmc_core.checkpoints import convert, score_sde
from dmcmc_core.checkpoints import score_embedding as files
from dmcmc_core.checkpoints.torch_files import TorchFile
from dmcmc_core.errors import UserError
from dmcmc_core.nets.blocks import Sinusoids
from dmcmc_core.nets.scalings import KINDS, ScaledUNet
from dmcmc_core.nets.song import UNet
from dmcmc_core.score_embedding.ddpm import alpha_bars, linear_betas

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
SMALL = ("linear", "fourier_avgpool", "baseline")
here = pytest.mark.skipif(not PARITY.is_dir(), reason=f"reference outputs are not at {PARITY}")
TINY = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 8, "multipliers": [1, 1], "blocks": 1, "attention": []}


def path(name: str) -> Path:
    return PARITY / f"score_embedding_net_{name}_small.pth"


def reference(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(path(name).with_suffix(".npz")).items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def small() -> dict:
    """What a file of the linear network holds."""
    return torch.load(path("linear"), map_location="cpu", weights_only=False)


# ---- parity


@here
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_networks_answer_as_published(name):
    """On ordinary and on nearly constant images; the latter in rows of channels.

    PyTorch normalises groups of channels in the layout that networks are loaded in without their mean taken off first,
    which leaves 1 % there.
    """
    net, r = load_model(path(name)).net.net, reference(name)
    assert relative(net(2 * r["x"] - 1, r["label"]), r["output"]) < 1e-5
    net = net.to(memory_format=torch.contiguous_format)
    assert relative(net(2 * r["x_flat"] - 1, r["label"][:2]), r["output_flat"]) < 5e-4


@here
@torch.no_grad()
def test_the_raw_weights_answer_as_published(tmp_path):
    """They serve where nothing was averaged."""
    content, r = torch.load(path("baseline"), weights_only=False), reference("baseline")
    torch.save(content | {"ema": None}, tmp_path / "model.pth")
    net = load_model(tmp_path / "model.pth").net.net
    assert relative(net(2 * r["x"] - 1, r["label"]), r["output_raw"]) < 1e-5
    assert relative(r["output"], r["output_raw"]) > 1e-2, "averaged and raw weights differ"


@here
@pytest.mark.parametrize(("name", "parameters"), [("cifar1", 35_218_947), ("celeb1", 32_120_963)])
def test_published_sizes_have_every_tensor_in_its_place(name, parameters):
    listed = json.loads((PARITY / f"score_embedding_net_{name}.shapes.json").read_text())
    with torch.device("meta"):
        net, card = files.build(listed["config"])
    entries, own = score_sde.entries_of(net.net)
    assert [(e.name, list(e.shape(own[e.own]))) for e in entries] == list(listed["state_dict"].items())
    assert [e.name for e in entries if e.trained] == listed["trainable"]
    assert sum(p.numel() for p in net.parameters()) == listed["num_parameters"] == parameters
    largest = score_embedding.std(torch.tensor(1.0), listed["config"]["diffusion"]["sigma"]).item()
    assert card["sigma_max"] == pytest.approx(largest)


# ---- as denoisers


@here
@torch.no_grad()
def test_a_denoiser_of_score_embedding_has_the_score_that_its_sampler_uses():
    """The linear file: sigma 5, one picture, so that the network gets t - 1/2 at noise std(t)."""
    model, x = load_model(path("linear")), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.001, 0.4, 1.0])
    sigma = score_embedding.std(t, 5.0)
    score = (model(x, sigma) - x) / sigma[:, None, None, None] ** 2
    assert relative(score, model.net.net(2 * x - 1, t - 0.5)) < 2e-4
    assert (model.sigma_min, model.sigma_max) == pytest.approx((sigma[0].item(), sigma[2].item()), rel=1e-4)
    assert model.data_range == (0.0, 1.0) and model.name == "score_embedding_net_linear_small"


@here
@torch.no_grad()
def test_a_denoiser_of_a_baseline_answers_with_its_noise():
    """At the noise level of time 400 the network gets 400 and the image as its diffusion has it."""
    model, x = load_model(path("baseline")), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bar = alpha_bars(linear_betas(1e-4, 0.02))[400].item()
    sigma = torch.tensor(math.sqrt(1 / bar - 1))
    epsilon = model.net.net(2 * x - 1, torch.full((2,), 400.0))
    assert relative(model(x / math.sqrt(bar), sigma), x / math.sqrt(bar) - sigma * epsilon) < 1e-4
    assert model.data_range == (-1.0, 1.0) and model.sigma_max == pytest.approx(157.407, abs=1e-3)


@here
@pytest.mark.parametrize("name", SMALL)
def test_converted_they_answer_the_same_bits(name, tmp_path):
    card = convert(path(name), tmp_path / "own.safetensors")
    assert card["source"] == path(name).name and card["config"]["centre"]
    one, other = load_model(path(name)), load_model(tmp_path / "own.safetensors")
    x = torch.randn(3, *one.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x, torch.tensor(0.7)), other(x, torch.tensor(0.7)))
    assert (one.sigma_min, one.sigma_max, one.data_range) == (other.sigma_min, other.sigma_max, other.data_range)


@pytest.mark.parametrize(
    ("embedding", "multiplier", "images", "image", "expected"),
    [("linear", 1, 1, 0, 0.3 - 0.5), ("linear", 4, 3, 2, 0.3 + 4 * 0.5), ("fourier", 1000, 3, 1, 300.0)],
)
def test_networks_are_told_the_time_of_their_level(embedding, multiplier, images, image, expected):
    sigma = score_embedding.std(torch.tensor([0.3]), 2.0)
    options = {"base": 2.0, "embedding": embedding, "multiplier": multiplier, "images": images, "image": image}
    c = KINDS["score_embedding"](sigma, **options)
    assert c.c_noise.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(c.c_out, sigma**2) and c.c_in.item() == c.c_skip.item() == 1


# ---- options of the one U-Net


def test_plain_resolutions_change_without_weights():
    """The mean of four pixels, and each pixel four times; as many weights less as the convolutions have."""
    plain, convolved = (UNet(**TINY, **{option: True}) for option in ("plain", "convolved"))
    count = [sum(p.numel() for p in net.parameters()) for net in (plain, convolved)]
    assert count[1] - count[0] == 2 * (8 * 8 * 9 + 8)
    x = torch.rand(2, 8, 4, 4)
    assert torch.allclose(plain.down[1].resample(x), x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)))
    assert torch.equal(plain.up[1].resample(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_waves_have_a_period_or_are_the_time_itself():
    net = UNet(**TINY, waves="constant")
    assert torch.equal(net.embed.waves(torch.tensor([0.3, -2.0])), torch.tensor([[0.3], [-2.0]]).expand(-1, 8))
    assert Sinusoids(8, period=1000).frequencies.tolist() == pytest.approx([1, 0.1, 0.01, 0.001])
    assert torch.equal(UNet(**TINY).embed.waves.frequencies, Sinusoids(8, period=10000).frequencies)
    for options, message in (({"waves": "sines"}, "waves must be one of"), ({"period": 0}, "period must be")):
        with pytest.raises(UserError, match=message):
            UNet(**TINY, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 1.0, "embedding": "linear"}, "sigma must not be 1"),
        ({"base": -2.0, "embedding": "linear"}, "sigma must be a finite number, above 0"),
        ({"base": 2.0, "embedding": "waves"}, "embedding must be one of 'linear', 'fourier'"),
        (
            {"base": 2.0, "embedding": "linear", "images": 3, "image": 3},
            "image must be a whole number, at least 0 and below 3",
        ),
    ],
)
def test_scalings_of_no_network_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ScaledUNet("score_embedding", options, TINY, centre=True)


# ---- files


class Evil:
    """A pickle of it makes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@here
@pytest.mark.parametrize("where", ["metrics", "config"])
def test_no_code_of_a_file_is_run(tmp_path, where):
    content = small()
    content[where]["evil"] = Evil(tmp_path / "mark")
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "model.pth")
    assert "\n" not in str(error.value) and not (tmp_path / "mark").exists()
    torch.load(tmp_path / "model.pth", weights_only=False)
    assert (tmp_path / "mark").exists(), "the attack is a real one"


@here
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("all_modules.2.bias"), "tensor 'all_modules.2.bias' is missing"),
        (lambda c: c["model"].update(embedding=torch.zeros(3)), "unknown tensor 'embedding'"),
        (lambda c: c["model"]["all_modules.0.bias"].fill_(torch.nan), "all_modules.0.bias' of .* holds NaN"),
        (lambda c: c["config"]["model"].update(ch=64), "does not fit its configuration"),
        (lambda c: c["config"]["model"].update(embedding_method="sines"), "embedding_method must be 'linear' or"),
        (lambda c: c["config"]["model"].pop("ch_mult"), "config: model lacks 'ch_mult'"),
        (lambda c: c["config"]["diffusion"].update(sigma="five"), "could not convert string to float: 'five'"),
        (
            lambda c: c["config"]["diffusion"].update(sigma=-5),
            "sigma must be a finite number, above 0 and at most 1e\\+06, not -5",
        ),
        (lambda c: c.update(model=3), "holds no configuration and tensors"),
        (lambda c: c.update(ema={"shadow_params": [torch.zeros(1)]}), "averages 1 tensors"),
        (lambda c: c.update(ema={"decay": 0.9}), "without a list of tensors 'shadow_params'"),
    ],
)
def test_files_of_no_network_are_refused(tmp_path, change, message):
    content = small()
    change(content)
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "model.pth")
    assert "\n" not in str(error.value)


@here
def test_a_file_that_describes_itself_takes_no_configuration(tmp_path):
    with pytest.raises(UserError, match="describes itself"):
        load_model(path("linear"), config="ve_cifar10_ncsnpp_continuous")
    damaged = bytearray(path("linear").read_bytes())
    damaged[len(damaged) // 2] ^= 1  # within a tensor
    (tmp_path / "damaged.pth").write_bytes(damaged)
    (tmp_path / "cut.pth").write_bytes(damaged[:-2000])
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path / "damaged.pth")
    with pytest.raises(UserError):
        load_model(tmp_path / "cut.pth")


@here
def test_numbers_of_numpy_are_passed_over(tmp_path):
    """Of whatever kind: a run that writes other metrics has a network all the same."""
    odd = {"names": np.array(["a"]), "objects": np.array([None, {}]), "half": np.float16(1), "whole": np.arange(3)}
    torch.save(small() | {"metrics": odd}, tmp_path / "model.pth")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(
        load_model(tmp_path / "model.pth")(x, torch.tensor(1.0)), load_model(path("linear"))(x, torch.tensor(1.0))
    )


@here
def test_files_of_score_sde_are_none_of_these():
    assert all(files.is_one(TorchFile(path(name)).content) for name in SMALL)
    for other in ("ve_cifar10_ncsnpp_continuous_small.pth", "ddim_cifar10_train_state_small.pth"):
        assert not files.is_one(TorchFile(PARITY / other).content)
