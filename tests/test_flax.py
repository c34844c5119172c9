"""Checkpoints of Flax, written here by its rules: the network comes back, and what is no such state is refused."""

import json
import math
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from dmcmc_core import gddim
from dmcmc_core.checkpoints import convert, flax, load_epsilon, load_model, published
from dmcmc_core.errors import UserError
from dmcmc_core.linear_sde import CLD, make_sde
from dmcmc_core.nets.linear import PublishedEpsilonNet
from dmcmc_core.nets.song import UNet
from dmcmc_core.workbench import cli

msgpack = pytest.importorskip("msgpack", reason="needs msgpack: pip install 'dmcmc-core[flax]'")

LARGE = {"progressive": "output_skip", "progressive_input": "input_skip"}
PLAIN = {"progressive_input": "none", "fir": False, "embedding_type": "positional"}


def configuration(sde="CLD", **model):
    made = published._config("CIFAR10", 8, "vpsde", nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4])
    del made["training"]
    return {**made, "model": made["model"] | {"m_inv": 4.0, "beta_0": 4.0} | model, "sde": {"name": sde}}


def randomised(net):
    """What starts as zero or one would hide mistakes."""
    torch.manual_seed(0)
    for tensor in net.state_dict().values():
        tensor += 0.2 * torch.randn_like(tensor)
    return net.eval().requires_grad_(False)


# ---- Flax's rules ----------------------------------------------------------------------------------------------------


class Scope(dict):
    """Parameters of a module: those within are numbered for each class, in the order in which they are called."""

    def __init__(self, old=False):
        super().__init__()
        self.called, self.old = Counter(), old

    def module(self, kind):
        name = f"{kind}_{self.called[kind]}"
        self.called[kind] += 1
        self[name] = Scope(self.old)
        return self[name]

    def conv(self, layer):
        self.module("Conv").update(kernel=layer.weight.permute(2, 3, 1, 0), bias=layer.bias)

    def dense(self, layer):
        self.module("Dense").update(kernel=layer.weight.T, bias=layer.bias)

    def norm(self, layer):
        shape = (1, 1, 1, -1) if self.old else (-1,)
        self.module("GroupNorm").update(scale=layer.weight.reshape(shape), bias=layer.bias.reshape(shape))

    def nin(self, weight, bias):
        self.module("NIN").update(W=weight[:, :, 0, 0].T, b=bias)

    def residual(self, block):
        inside = self.module("ResnetBlockBigGANpp")
        inside.norm(block.norm0)
        inside.conv(block.conv0)
        inside.dense(block.affine)
        inside.norm(block.norm1)
        inside.conv(block.conv1)
        if hasattr(block.skip, "weight"):
            inside.conv(block.skip)
        if block.attention is not None:
            inside, width = self.module("AttnBlockpp"), block.attention.proj.out_channels
            inside.norm(block.attention.norm)
            qkv = block.attention.qkv
            for weight, bias in zip(qkv.weight.split(width), qkv.bias.split(width), strict=True):
                inside.nin(weight, bias)
            inside.nin(block.attention.proj.weight, block.attention.proj.bias)


def parameters(net, old=False):
    """The tree of NCSN++'s parameters, its calls one after the other."""
    top = Scope(old)
    if net.config["waves"] == "fourier":
        top.module("GaussianFourierProjection")["W"] = net.embed.waves.frequencies
    top.dense(net.embed.first)
    top.dense(net.embed.second)
    top.conv(net.stem)
    for level in net.down:
        if level.resample is not None:
            top.residual(level.resample)
        if net.config["encoder"] == "skip" and level.pyramid is not None:
            top.module("Combine").conv(level.pyramid)
        elif level.pyramid is not None:
            inside, layer = top.module("Downsample").module("Conv2d"), level.pyramid
            inside.update(weight=layer.weight.permute(2, 3, 1, 0), bias=layer.bias)
        for block in level.blocks:
            top.residual(block)
    for block in net.middle:
        top.residual(block)
    for level in net.up:
        if level.resample is not None:
            top.residual(level.resample)
        for block in level.blocks:
            top.residual(block)
        if level.out is not None:
            top.norm(level.out[0])
            top.conv(level.out[2])
    return top


def mapped(tree, change):
    return {k: mapped(v, change) if isinstance(v, dict) else change(v) for k, v in tree.items()}


def array(values):
    values = np.asarray(values)
    return msgpack.packb((values.shape, values.dtype.name, values.tobytes()), use_bin_type=True)


def chunked(values, most=100):
    if values.size <= most:
        return values
    parts = [values.reshape(-1)[i : i + most] for i in range(0, values.size, most)]
    shape = {str(i): n for i, n in enumerate(values.shape)}
    chunks = {str(i): part for i, part in enumerate(parts)}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}


def packed(tree):
    return msgpack.packb(tree, default=lambda leaf: msgpack.ExtType(1, array(leaf)), strict_types=True)


def state(net, old=False, change=lambda values: values):
    """A training's state, whose optimizer holds other weights than the averaged ones."""
    tree = mapped(parameters(net, old), lambda tensor: np.ascontiguousarray(tensor.numpy()))
    other = mapped(tree, np.zeros_like)
    return {
        "step": np.asarray(750_000, np.int32),
        "optimizer": {"target": other, "state": {"step": msgpack.ExtType(3, array(3)), "param_states": other}},
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.9999,
        "params_ema": mapped(tree, change),
        "rng": np.asarray([0, 42], np.uint32),
    }


@pytest.fixture
def net():
    return randomised(flax.build(configuration())[0])


@pytest.fixture
def path(tmp_path, net):
    path = tmp_path / "checkpoint_15"
    path.write_bytes(packed(state(net.net)))
    path.with_suffix(".json").write_text(json.dumps(configuration()))
    return path


def ask(net):
    torch.manual_seed(1)
    return net(torch.randn(3, *net.state_shape), torch.tensor([0.9, 0.2, 1e-3]))


# ---- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, LARGE, PLAIN, {"mixed_score": True}], ids=str)
@pytest.mark.parametrize("written", ["now", "by Flax 0.3", "in chunks", "float64"])
def test_the_averaged_network_comes_back(tmp_path, model, written):
    net = randomised(flax.build(configuration(**model))[0])
    change = {"in chunks": chunked, "float64": np.float64}.get(written, np.asarray)
    (tmp_path / "checkpoint_15").write_bytes(packed(state(net.net, written == "by Flax 0.3", change)))
    read, card = flax.read(tmp_path / "checkpoint_15", configuration(**model))
    assert card["step"] == 750_000 and card["architecture"] == "epsilon-published"
    assert read.state_shape == (6, 8, 8) and read.shape == (3, 8, 8) and read.sde == CLD()
    assert torch.equal(ask(read.eval()), ask(net))
    ours = net.net.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in read.net.state_dict().items())


def test_converted_it_answers_the_same_bits_and_samples(path, net, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    assert cli.main(["convert", str(path), str(own), "--config", str(path.with_suffix(".json"))]) == 0
    assert "parameters, t 0.001 to 1, data in [-1.0, 1.0], from checkpoint_15 (SHA-256 " in capsys.readouterr().out
    grid = torch.linspace(1, 1e-3**0.5, 4, dtype=torch.float64) ** 2
    truth = ask(net.to(memory_format=torch.channels_last))
    for found in (load_epsilon(own), load_epsilon(path), load_epsilon(path, config=configuration())):
        assert torch.equal(ask(found), truth) and found.data_range == (-1.0, 1.0) and found.card["step"] == 750_000
        u = gddim.sample(found.sde, found, torch.randn(2, *found.state_shape), grid)
        assert u.shape == (2, 6, 8, 8) and u.isfinite().all()


def test_a_network_of_noise_levels_is_a_denoiser(tmp_path):
    """score_sde's own: the configuration has no linear diffusion."""
    config = published._config("CIFAR10", 8, nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4])
    net = flax.build(config)[0]
    randomised(net.net)
    (tmp_path / "checkpoint_26").write_bytes(packed(state(net.net)))
    model = load_model(tmp_path / "checkpoint_26", config=config)
    x, sigma = torch.rand(2, 3, 8, 8), torch.tensor([0.5, 20.0])
    torch.testing.assert_close(model(x, sigma), net.eval()(x, sigma), atol=1e-3, rtol=1e-3)
    assert (model.sigma_max, model.card["step"]) == (50, 750_000)
    convert(tmp_path / "checkpoint_26", tmp_path / "own.safetensors", config)
    assert torch.equal(load_model(tmp_path / "own.safetensors")(x, sigma), model(x, sigma))


@pytest.mark.parametrize("waves", ["fourier", "positional"])
def test_epsilon_is_the_answer_of_the_network_in_pixels(waves):
    net = randomised(flax.build(configuration("BDM", sigma_blur_max=5.0, embedding_type=waves))[0])
    assert net.sde == make_sde("BDM", sigma_blur_max=5.0, image_size=8)
    u, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.7])
    told = (999 * t).log() if waves == "fourier" else 999 * t
    torch.testing.assert_close(net.sde.pixels(net(u, t)), net.net(net.sde.pixels(u), told), atol=1e-4, rtol=1e-4)
    assert torch.equal(net(u, t[0])[:1], net(u[:1], t[:1]))


def test_the_mixed_score_is_added():
    plain, mixed = (randomised(flax.build(configuration(mixed_score=m))[0]) for m in (False, True))
    mixed.load_state_dict(plain.state_dict())
    u, t = torch.randn(2, 6, 8, 8), torch.tensor([0.3, 0.7])
    velocity = torch.stack([torch.zeros_like(u[:, :3]), u[:, 3:]], 1)
    added = torch.einsum("bij,bjchw->bichw", CLD().R(t).inverse().float(), velocity).flatten(1, 2)
    torch.testing.assert_close(mixed(u, t), plain(u, t) + added, atol=1e-4, rtol=1e-4)
    assert torch.equal(mixed(u, t[0])[:1], mixed(u[:1], t[:1]))


def test_a_network_has_the_channels_of_its_diffusion():
    for channels in ((3, 3), (6, 3)):
        arguments = configuration_of_net() | dict(zip(("in_channels", "out_channels"), channels, strict=True))
        with pytest.raises(UserError, match=r"a network for CLD has 2 channels in and out for each of the images, not"):
            PublishedEpsilonNet({"name": "CLD"}, arguments)
    with pytest.raises(UserError, match=r"u must be \(B, 6, 8, 8\)"):
        flax.build(configuration())[0](torch.zeros(1, 3, 8, 8), torch.tensor(0.5))


def configuration_of_net():
    return flax.build(configuration())[0].net.config


def test_the_published_network_has_the_published_size():
    """gDDIM, headline configuration: eight blocks of width 128 at each resolution."""
    config = published._config("CIFAR10", 32, "vpsde", num_res_blocks=8) | {"sde": {"name": "CLD"}}
    with torch.device("meta"):
        net = flax.build(config)[0]
    assert net.state_shape == (6, 32, 32) and math.isclose(
        sum(p.numel() for p in net.parameters()), 108e6, rel_tol=0.01
    )
    assert len(flax.places(net.net)) == len(set(flax.places(net.net)))


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(path, content, sentence, config=None):
    path.write_bytes(content if isinstance(content, bytes) else packed(content))
    with pytest.raises(UserError, match=sentence) as caught:
        flax.read(path, config or configuration())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_state_that_is_cut_short_or_goes_on_is_refused(path):
    whole = path.read_bytes()
    for share in (0.001, 0.3, 0.6, 0.9, 0.999):
        refused(path, whole[: int(share * len(whole))], "is truncated, damaged or of another format")
    refused(path, whole[:-1], "truncated")
    refused(path, whole + b"\xc0", "more follows where the state ends")
    for other in (b"\x93\x01\x02\x03", b"PK\x03\x04 an archive", b"\x80\x02."):
        refused(path, other, "of another format|it holds no 'params_ema'")


def test_arrays_that_are_none_are_refused(path, net):
    good = state(net.net)
    top = good["params_ema"]

    def put(leaf):
        return good | {"params_ema": top | {"Conv_0": top["Conv_0"] | {"bias": leaf}}}

    bias = top["Conv_0"]["bias"]
    float64 = array(bias).replace(b"float32", b"float64")
    refused(path, put(msgpack.ExtType(1, float64)), r"an array of float64 and shape \(8,\) takes 64 bytes, not 32")
    refused(path, put(msgpack.ExtType(1, array(bias).replace(b"float32", b"float33"))), "an array of 'float33'")
    refused(path, put(np.ones(8, np.int32)), "'Conv_0/bias' of .* is no dense tensor of floating-point numbers")
    refused(path, put(msgpack.ExtType(7, array(bias))), "an extension of type 7, which Flax does not write")
    refused(path, put(msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))), "'Conv_0/bias' of params_ema is no array")
    refused(path, put(bias * np.nan), "'Conv_0/bias' of .* holds NaN or infinity")
    refused(path, put(msgpack.ExtType(1, msgpack.packb(((-1, -8), "float32", bias.tobytes())))), r"shape \(-1, -8\)")
    refused(path, put(list(range(100))), "of another format")
    refused(path, put(chunked(bias, 3) | {"chunks": {"0": bias[:3]}}), "of another format")
    deep = "leaf"
    for _ in range(50):
        deep = {"a": deep}
    refused(path, put(deep), "is no array")


def test_claims_larger_than_the_file_take_no_memory(path):
    head = b"\x81\xaaparams_ema"
    for claim in (
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\x7f\xff\xff\xff\x01",
        b"\xc6\xff\xff\xff\xff",
    ):
        refused(path, head + claim, "truncated, damaged or of another format")


def test_what_does_not_fit_its_configuration_is_named(path, net):
    good = state(net.net)
    top = good["params_ema"]
    without = {k: v for k, v in top.items() if k != "Dense_1"}
    refused(path, good | {"params_ema": without}, r"tensor 'Dense_1/kernel' is missing, of shape \(32, 32\)")
    refused(path, good | {"params_ema": top | {"Conv_7": top["Conv_0"]}}, "the unknown tensor 'Conv_7/bias'")
    turned = top["Dense_0"] | {"kernel": np.ascontiguousarray(top["Dense_0"]["kernel"].T)}
    shape = r"tensor 'Dense_0/kernel' has shape \(32, 16\), the network needs \(16, 32\)"
    refused(path, good | {"params_ema": top | {"Dense_0": turned}}, shape)
    whole = configuration()
    refused(
        path,
        good,
        r"'Conv_0/kernel' has shape \(3, 3, 6, 8\), the network needs \(3, 3, 3, 8\)",
        whole | {"sde": {"name": "VP"}},
    )
    refused(
        path,
        good,
        r"'Dense_0/kernel' has shape \(16, 32\), the network needs \(8",
        configuration(embedding_type="positional"),
    )
    refused(path, good, "'ResnetBlockBigGANpp_2/Conv_0/kernel' has shape", configuration(num_res_blocks=2))


def test_a_state_without_averaged_weights_is_refused(path, net):
    optimizer = {k: v for k, v in state(net.net).items() if k != "params_ema"}
    refused(path, optimizer, "holds no 'params_ema', but step, optimizer, lr, model_state, ema_rate, rng")
    refused(path, state(net.net)["optimizer"], "holds no 'params_ema', but target, state")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sde": {}}, "sde lacks 'name'"),
        ({"sde": {"name": "cld"}}, "unknown diffusion 'cld': did you mean 'CLD'"),
        ({"sde": {"name": "CLD", "mass": 1}}, "unknown constant of CLD 'mass'"),
        ({"sde": {"name": "CLD", "beta": "4"}}, "beta of sde must be a number, not '4'"),
        ({"model": {"resblock_type": "ddpm"}}, "resblock_type must be 'biggan', not 'ddpm'"),
        ({"model": {"name": "ddpm"}}, "name must be 'ncsnpp', not 'ddpm'"),
        ({"model": {"beta_1": 2.0}}, "beta_1 must be 0"),
        ({"model": {"scale_by_sigma": True}}, "scale_by_sigma must be False"),
        ({"model": {"nf": "8"}}, "width must be a whole number|its values do not make a network"),
        ({"data": {"centered": False}}, "centered must be True, not False"),
        ({"sde": {"name": "VP"}, "model": {"mixed_score": True}}, "for the velocities of CLD, which VP has not"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_network_is_refused(change, sentence):
    config = configuration()
    for section, values in change.items():
        config[section] = values if section == "sde" else config[section] | values
    with pytest.raises(UserError, match=re.escape(sentence).replace(r"\|", "|")):
        flax.build(config)


def test_a_user_is_told_what_is_missing(path, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds 'epsilon-published', which is no score network"):
        load_model(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="checkpoint_15 carries no configuration and there is no checkpoint_15.json"):
        load_epsilon(path)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(UserError, match="is read by msgpack, which is not installed: pip install msgpack"):
        convert(path, tmp_path / "own.safetensors", configuration())
    assert not (tmp_path / "own.safetensors").exists()


def test_places_are_those_of_the_network():
    """Every tensor of the network has its place, and attention's three parts of one are all there."""
    net = UNet(**configuration_of_net())
    held = Counter(entry.own for entry in flax.places(net).values())
    assert held.keys() == net.state_dict().keys()
    assert all(n == (3 if ".qkv." in name else 1) for name, n in held.items())
