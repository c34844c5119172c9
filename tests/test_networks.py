"""The networks that people have: parity with published code, names and shapes of every tensor, what is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import checkpoints, integrators, schedules
from dmcmc_core.checkpoints import convert, load_model, load_noise_level, persistent, published, read_card, score_sde
from dmcmc_core.errors import UserError
from dmcmc_core.guidance import Conditioned
from dmcmc_core.nets import scalings
from dmcmc_core.nets.blocks import Block
from dmcmc_core.nets.noise_level_classifier import PublishedClassifier
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.song import UNet
from dmcmc_core.runs.make import run
from dmcmc_core.workbench import cli

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
SCORE_SDE = (
    "ve_cifar10_ncsnpp_continuous_small",
    "ve_celebahq_256_ncsnpp_continuous_small",
    "vp_cifar10_ddpmpp_continuous_small",
)
EDM = ("edm_song_ddpmpp_small", "edm_song_ve_ncsnpp_small")
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"reference outputs are not at {PARITY}")


def reference(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(PARITY / f"{name}.npz").items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# ---- parity


@pytest.mark.parametrize("name", SCORE_SDE)
def test_networks_of_score_sde_answer_as_published(name):
    """With the averaged weights; the raw ones, which the file holds too, answer otherwise."""
    model, r = load_model(PARITY / f"{name}.pth"), reference(name)
    x, label, output = r["x"], r["label"], r["output"]
    with torch.no_grad():
        if name.startswith("ve"):
            score = (model(x, label) - x) / label[:, None, None, None] ** 2
            assert relative(score, output) < 1e-5 and model.data_range == (0.0, 1.0)
        else:  # label is 999 t: asked at the noise level of that time, of x over alpha
            sigma = torch.tensor([scalings.vp_sigma(t) for t in (label.double() / 999).tolist()])
            scaled = x * (1 + sigma**2).sqrt()[:, None, None, None].float()
            epsilon = (scaled - model(scaled, sigma.float())) / sigma[:, None, None, None].float()
            assert relative(epsilon, output) < 1e-5 and model.data_range == (-1.0, 1.0)


@pytest.mark.parametrize("name", EDM)
def test_networks_of_edm_answer_as_published(name):
    model, r = load_model(PARITY / f"{name}.pkl"), reference(name)
    assert relative(model(r["x"].float(), r["sigma"].float()), r["output"].float()) < 1e-5
    assert model.data_range == (-1.0, 1.0) and model.sigma_min > 0 and model.sigma_max < np.inf


@pytest.mark.parametrize("name", [*SCORE_SDE, *EDM])
def test_converted_they_answer_the_same_bits(name, tmp_path):
    source = next(PARITY.glob(f"{name}.p[tk][hl]"))
    card = convert(source, tmp_path / "own.safetensors")
    assert card == read_card(tmp_path / "own.safetensors") and len(card["source_sha256"]) == 64
    assert card["source"] == source.name and [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]
    one, other = load_model(source), load_model(tmp_path / "own.safetensors")
    x = torch.randn(3, *one.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x, torch.tensor(1.5)), other(x, torch.tensor(1.5)))
    assert (one.sigma_min, one.sigma_max, one.data_range) == (other.sigma_min, other.sigma_max, other.data_range)


def test_a_checkpoint_samples():
    model = load_model(PARITY / f"{SCORE_SDE[0]}.pth")
    x = model.sigma_max * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    images = integrators.heun(model, x, schedules.karras(3, model.sigma_max, model.sigma_min))
    assert images.shape == x.shape and torch.isfinite(images).all()


def test_a_user_converts_samples_and_lists(tmp_path, capsys):
    """A score_sde file in exp/ve: convert, sample, models."""
    folder = tmp_path / "exp" / "ve"
    folder.mkdir(parents=True)
    for ending in (".pth", ".json"):
        shutil.copy(PARITY / f"{SCORE_SDE[2]}{ending}", folder / f"a{ending}")
    own = folder / "own.safetensors"
    assert cli.main(["convert", str(folder / "a.pth"), str(own)]) == 0
    assert "SHA-256" in capsys.readouterr().out
    words = f"sample --model {own} --sampler dpmpp_2m --nfe 2 --num 3 --out {tmp_path / 'images'}".split()
    assert cli.main(words) == 0
    assert np.load(tmp_path / "images" / "shard-00000000.npz")["arr_0"].shape == (3, 32, 32, 3)
    names = {m["name"]: m for m in checkpoints.known(tmp_path)}
    assert names["exp/ve/own.safetensors"]["here"] and names["digits"]["here"]
    assert "goes to exp/paper/" in names["ve_cifar10_ncsnpp_continuous"]["about"]
    capsys.readouterr()
    for arguments, message in (
        (["convert", str(own), str(tmp_path / "b.safetensors")], "is no checkpoint to convert"),
        (["convert", str(folder / "a.pth"), str(tmp_path / "b.bin")], "must end in .safetensors"),
        (["convert", str(folder / "none.pth"), str(tmp_path / "b.safetensors")], "no such file"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err and not list(tmp_path.glob("b.*"))


# ---- names and shapes


LISTED = sorted(path.name.removesuffix(".shapes.json") for path in PARITY.glob("*.shapes.json"))


@pytest.mark.parametrize("name", [name for name in LISTED if name in published.CONFIGS])
def test_published_sizes_have_every_tensor_in_its_place(name):
    listed = json.loads((PARITY / f"{name}.shapes.json").read_text())
    with torch.device("meta"):
        net, card = score_sde.build(published.CONFIGS[name])
        assert score_sde.build(listed["config"])[0].config == net.config, (
            "what is known of it here is what is published"
        )
    own, entries = net.net.state_dict(), list(score_sde.entries(net.net))
    found = [(f"module.{e.name}", list(e.shape(own[e.own]))) for e in entries]
    assert found == [(key, shape) for key, shape in listed["state"].items() if key != "module.sigmas"]
    assert [f"module.{e.name}" for e in entries if e.trained] == listed["trainable"]
    assert sum(p.numel() for p in net.parameters()) == listed["parameters"]
    used = [(e.own, e.part) for e in entries]
    assert len(used) == len(set(used)) and {own_name for own_name, _ in used} == set(own)


def config(**model) -> dict:
    """A small network for CIFAR-10, its options changed."""
    made = copy.deepcopy(published.CONFIGS["ve_cifar10_ncsnpp_continuous"])
    made["model"] |= {"nf": 8, "num_res_blocks": 1, "ch_mult": [1, 2], "attn_resolutions": [8]} | model
    made["data"]["image_size"] = 16
    return made


def written(path: Path, made: dict, prefix: str = "module.", scales: int = 7) -> ScaledUNet:
    """A file of score_sde for a random network of that configuration; its raw weights are not the averaged ones."""
    torch.manual_seed(0)
    net, _ = score_sde.build(made)
    own = net.net.state_dict()
    state, averaged = {f"{prefix}sigmas": torch.ones(scales)}, []
    for e in score_sde.entries(net.net):
        value = own[e.own] if e.part is None else own[e.own].chunk(3)[e.part]
        value = value[:, :, 0, 0].T.contiguous() if e.matrix else value.clone()
        state[prefix + e.name] = value + 1 if e.trained else value
        averaged += [value] if e.trained else []
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": averaged}
    torch.save({"model": state, "ema": ema, "optimizer": {}, "step": 3}, path)
    return net.eval()


VP = {"scale_by_sigma": False}


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({}, {}),
        ({"progressive": "output_skip", "progressive_input": "input_skip"}, {}),
        ({"fir": False, "progressive_input": "none"}, {}),
        ({"skip_rescale": False}, {}),
        ({"resblock_type": "ddpm", "fir": False, "progressive_input": "none"}, {}),
        ({"name": "ddpm", "nf": 32} | VP, {"sde": "vpsde"}),
        ({"embedding_type": "positional", "num_scales": 9}, {}),
        ({"fir": False}, {}),
        ({"fir": False, "resblock_type": "ddpm"}, {}),
        (VP, {"sde": "subvpsde"}),
        (VP | {"embedding_type": "positional"}, {"sde": "vpsde", "continuous": False}),
    ],
)
def test_every_option_of_the_family_is_read(tmp_path, model, training, prefix):
    """With or without the prefix of DataParallel, and whatever the length of the buffer that nothing needs."""
    made = config(**model)
    made["training"] |= training
    net = written(tmp_path / "a.pth", made, prefix)
    (tmp_path / "a.json").write_text(json.dumps(made))
    loaded = load_model(tmp_path / "a.pth")
    x, sigma = torch.rand(64, 3, 16, 16), torch.full((64,), 0.7)
    with torch.no_grad():
        assert relative(loaded(x, sigma), net(x, sigma)) < 1e-5
    assert loaded.card["step"] == 3 and loaded.name == "a"


def test_published_networks_make_images_of_their_size():
    for name, made in published.CONFIGS.items():
        with torch.device("meta"):
            net, card = score_sde.build(made)
        assert net.shape == (3, made["data"]["image_size"], made["data"]["image_size"]), name
        assert card["data_range"] == ([0.0, 1.0] if name.startswith("ve_") else [-1.0, 1.0])
    assert published.config_of(Path("a.pth"), "subvp/cifar10_ddpmpp_continuous")["training"]["sde"] == "subvpsde"


def test_a_residual_encoder_without_filter_strides_in_its_convolution():
    """Its tensors have other names than those of the filtered one, and the published padding is below and right."""
    net, _ = score_sde.build(config(fir=False))
    names = [e.name for e in score_sde.entries(net.net) if "down.1.pyramid" in e.own]
    assert [name.split(".", 2)[2] for name in names] == ["Conv_0.weight", "Conv_0.bias"]
    pyramid, x = net.net.down[1].pyramid, torch.randn(2, 3, 16, 16)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, pyramid.weight, pyramid.bias, stride=2)
    torch.testing.assert_close(pyramid(x), expected)


# ---- scalings


@pytest.mark.parametrize("scales", [1000, 30])
def test_networks_of_discrete_times_are_told_the_index_of_their_level(scales):
    """sigma_i^2 = (1 - abar_i) / abar_i, abar the product of 1 - beta; log sigma between two is linear in the index."""
    kept = np.cumprod(1 - np.linspace(0.1 / scales, 20.0 / scales, scales))
    levels = torch.from_numpy(np.sqrt((1 - kept) / kept))
    c = scalings.ddpm(levels, scales=scales)
    torch.testing.assert_close(c.c_noise, torch.arange(scales, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(c.c_in, torch.from_numpy(np.sqrt(kept)), rtol=1e-9, atol=0)
    between = (levels[7] * levels[8]).sqrt()[None]
    assert abs(scalings.ddpm(between, scales=scales).c_noise.item() - 7.5) < 1e-9
    outside = scalings.ddpm(torch.tensor([1e-3, 1e6]), scales=scales)
    assert outside.c_noise.tolist() == [0, scales - 1]
    made = config(embedding_type="positional", num_scales=scales, **VP)
    made["training"] |= {"sde": "vpsde", "continuous": False}
    net, card = score_sde.build(made)
    assert net.kind == "ddpm" and abs(card["sigma_max"] / levels[-1].item() - 1) < 1e-9


def test_waves_of_a_fourier_embedding_see_the_log_of_times():
    made = config(**VP)
    for sde, kind in (("vpsde", scalings.vp), ("subvpsde", scalings.sub_vp)):
        net, _ = score_sde.build(made | {"training": {"sde": sde, "continuous": True}})
        sigma = torch.tensor([0.1, 3.0])
        torch.testing.assert_close(kind(sigma, **net.options).c_noise, kind(sigma).c_noise.log())
    with pytest.raises(UserError, match="the first discrete one is 0"):
        score_sde.build(made | {"training": {"sde": "vpsde", "continuous": False}})


def test_few_channels_of_adm_have_no_heads():
    net = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 32, "multipliers": [1, 2], "blocks": 1, "adm": True}
    made = ScaledUNet("edm", {}, net | {"attention": [8, 4]}).net
    heads = [module.attention for module in made.modules() if isinstance(module, Block)]
    assert sum(h is not None for h in heads) == 4  # of 64 channels: one on the way down, the middle, two on the way up


@pytest.mark.parametrize("sub", [False, True])
def test_times_and_noise_levels_of_variance_preserving_processes_are_inverse(sub):
    times = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    sigma = torch.tensor([scalings.vp_sigma(t, sub=sub) for t in times.tolist()], dtype=torch.float64)
    c = (scalings.sub_vp if sub else scalings.vp)(sigma, steps=1.0)
    torch.testing.assert_close(c.c_noise, times, rtol=1e-9, atol=0)
    alpha, spread = c.c_in, sigma * c.c_in  # x_t = alpha x0 + spread noise
    torch.testing.assert_close(spread, 1 - alpha**2 if sub else (1 - alpha**2).sqrt(), rtol=1e-9, atol=0)


def test_a_network_that_counts_its_levels_is_told_the_nearest():
    levels = [10.0, 1.0, 0.1]
    c = scalings.ve_index(torch.tensor([20.0, 9.0, 3.0, 3.3, 0.01]), levels)
    assert c.c_noise.tolist() == [0, 0, 1, 0, 2]
    c = scalings.improved_ddpm(torch.tensor([9.0, 0.9, 0.01]), [10.0, 1.0, 0.1, 0.0])
    assert c.c_noise.tolist() == [2, 1, -1]


def test_labels_reach_the_networks_that_take_them():
    torch.manual_seed(0)
    net = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 16, "multipliers": [1], "blocks": 1, "labels": 3}
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    for adm in (False, True):
        model = ScaledUNet("edm", {}, net | {"adm": adm}).eval()
        none, first = model(x, sigma), model(x, sigma, torch.tensor([0, 0]))
        assert not torch.equal(none, first)
        assert torch.equal(first, model(x, sigma, torch.eye(3)[[0, 0]]))
        for labels in (torch.tensor([0, 3]), torch.tensor([0.0, 1.0]), torch.zeros(2, 2)):
            with pytest.raises(UserError, match="labels must be"):
                model(x, sigma, labels)
    with pytest.raises(UserError, match="this network has no classes"):
        ScaledUNet("edm", {}, net | {"labels": 0})(x, sigma, torch.tensor([0, 0]))


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_guidance_is_for_networks_of_edm_that_were_trained_without_labels_too(tmp_path, monkeypatch, dropout):
    """A network of theirs with labels; where it never went without, zeros mean nothing to it. Converted, it is both."""
    content = persistent.load(PARITY / f"{EDM[0]}.pkl")
    inner = (content["ema"] if isinstance(content, dict) else content).state["_modules"]["model"]
    inner.state["_init_kwargs"] |= {"label_dim": 4, "label_dropout": dropout}
    map_label = {"weight": torch.randn(16, 4), "bias": torch.randn(16)}
    inner.state["_modules"]["map_label"] = persistent.Inert("Linear", {"_parameters": map_label})
    monkeypatch.setattr(persistent, "load", lambda path: content)
    convert(PARITY / f"{EDM[0]}.pkl", tmp_path / "own.safetensors")
    for path in (PARITY / f"{EDM[0]}.pkl", tmp_path / "own.safetensors"):
        model, x, sigma = load_model(path), torch.randn(2, 3, 16, 16), torch.tensor([0.5, 2.0])
        one, none = model(x, sigma, torch.eye(4)[[2, 2]]), model(x, sigma, torch.zeros(2, 4))
        assert torch.equal(Conditioned(model, 2)(x, sigma), one) and not torch.equal(one, none)
        if not dropout:
            with pytest.raises(UserError, match="guidance needs a network that was trained without labels too"):
                Conditioned(model, 2, 2.0)
            continue
        torch.testing.assert_close(Conditioned(model, 2, 2.0)(x, sigma), none + 2 * (one - none))
        assert torch.equal(Conditioned(model, 2, 0)(x, sigma), none)
        out = tmp_path / f"{path.suffix[1:]}-samples"
        manifest = run(str(path), "euler", 4, 2, 0, out, {"label": 2, "guidance": 2}, progress=False)
        assert manifest["nfe_full"] == 4 and manifest["plan"]["levels"] == 2


# ---- the noise-level classifier of the authors


@pytest.mark.parametrize(("size", "strides"), [(32, (2, 2, 2, 2)), (256, (4, 4, 4, 2))])
def test_the_published_classifiers_are_read(tmp_path, size, strides):
    torch.manual_seed(0)
    net = PublishedClassifier((3, size, size), strides=strides).eval()
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({"epoch": 3, "opt": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "net": state}, tmp_path / "a.pth")

    class Model:
        shape, sigma_min, sigma_max = (3, size, size), 0.01, 50.0

    loaded, levels, card = load_noise_level(tmp_path / "a.pth", like=Model)
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    assert levels[0] == 50.0 and len(levels) == 1000 and card["epoch"] == 3
    with pytest.raises(UserError, match="for images of which size"):
        load_noise_level(tmp_path / "a.pth")
    del state["module.last.bias"]
    torch.save({"epoch": 3, "opt": {}, "net": state}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="is not a noise-level classifier of DMCMC"):
        load_noise_level(tmp_path / "b.pth", like=Model)


# ---- what is refused


def test_a_checkpoint_without_its_configuration_lists_what_it_could_be(tmp_path):
    shutil.copy(PARITY / f"{SCORE_SDE[0]}.pth", tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"there is no a.json beside it: name one by config= in Python or convert --config, .* ve_ffhq"
    ):
        load_model(tmp_path / "a.pth")
    with pytest.raises(UserError, match="unknown configuration 've_cifar10': did you mean"):
        load_model(tmp_path / "a.pth", config="ve_cifar10")
    with pytest.raises(UserError, match="does not fit its configuration"):
        load_model(tmp_path / "a.pth", config="ve_cifar10_ncsnpp_continuous")
    shutil.copy(PARITY / f"{SCORE_SDE[0]}.json", tmp_path / "other.json")
    assert load_model(tmp_path / "a.pth", config=tmp_path / "other.json").shape == (3, 32, 32)
    for text, message in (("[1]", "must hold a mapping"), ("{", "cannot be read"), ("{}", "lacks the section 'model'")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "ncsnv2"}, "config: name must be 'ncsnpp' or 'ddpm', not 'ncsnv2'"),
        ({"nonlinearity": "elu"}, "config: nonlinearity must be 'swish', not 'elu'"),
        ({"progressive": "residual"}, "config: progressive must be 'none' or 'output_skip', not 'residual'"),
        ({"resblock_type": "ddpm"}, "fir with resblock_type 'ddpm' is not known"),
        ({"ch_mult": [1] * 8}, "size must be divisible by 128"),
    ],
)
def test_configurations_that_are_not_known_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        score_sde.build(config(**change))


class Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["top", "inside"])
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_no_code_of_a_file_is_run(tmp_path, ending, where):
    mark, file = tmp_path / "written", tmp_path / f"a{ending}"
    shutil.copy(PARITY / f"{SCORE_SDE[0]}.json", tmp_path / "a.json")
    content = Evil(mark) if where == "top" else {"model": {}, "ema": Evil(mark)}
    if ending == ".pth":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="cannot be read as"):
        load_model(file)
    assert not mark.exists()


def test_source_inside_a_pickle_of_edm_is_not_looked_at(tmp_path):
    """A network like any other, whose embedded source would write a file."""
    mark = tmp_path / "written"
    data = (PARITY / f"{EDM[0]}.pkl").read_bytes()
    source = "# source text removed\n"
    evil = f"open({str(mark)!r}, 'w')\n"

    def text(s: str) -> bytes:
        return b"\x8c" + bytes([len(s)]) + s.encode()

    assert data.count(text(source)) == 1 and len(evil) < 256
    body = data.replace(text(source), text(evil))
    (tmp_path / "a.pkl").write_bytes(_with_longer_frame(body, len(evil) - len(source)))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(
        load_model(tmp_path / "a.pkl")(x, torch.ones(1)), load_model(PARITY / f"{EDM[0]}.pkl")(x, torch.ones(1))
    )
    assert not mark.exists()


def _with_longer_frame(data: bytes, longer: int) -> bytes:
    """The first frame, in which the source stands, made as long as it now is."""
    at = data.index(b"\x95")
    length = int.from_bytes(data[at + 1 : at + 9], "little") + longer
    return data[: at + 1] + length.to_bytes(8, "little") + data[at + 9 :]


def test_storages_inside_a_pickle_of_edm_are_data_too(tmp_path):
    mark, buffer = tmp_path / "written", io.BytesIO()
    torch.save(Evil(mark), buffer)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (buffer.getvalue(),)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": Storage()}))
    with pytest.raises(UserError, match="cannot be read as a pickle of EDM"):
        load_model(tmp_path / "a.pkl")
    assert not mark.exists()


def test_sizes_of_another_network_take_no_memory(tmp_path):
    """A configuration of terabytes, or one whose values are no sizes, is refused before a network is made of it."""
    written(tmp_path / "a.pth", config())
    for change, match in (
        ({"nf": 2**15}, "does not fit its configuration"),
        ({"nf": 2**40}, "width must be a whole number"),
        ({"num_res_blocks": 10**9}, "blocks must be a whole number"),
        ({"ch_mult": [1] * 10**4}, "the number of multipliers"),
        ({"num_scales": 10**12}, "num_scales must be"),
        ({"dropout": "x"}, "dropout must be a finite number"),
        ({"dropout": float("nan")}, "dropout must be a finite number, at least 0 and at most 1, not nan"),
        ({"name": ["ncsnpp"]}, "config: name must be"),
        ({"sigma_max": float("nan")}, "sigma_min and sigma_max of .* that rise"),
    ):
        with pytest.raises(UserError, match=match):
            load_model(tmp_path / "a.pth", config=config(**change))


def test_what_is_not_finite_is_refused_by_name(tmp_path):
    written(tmp_path / "a.pth", config())
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    for value, match in ((float("nan"), "holds NaN or infinity"), (1e300, "holds NaN or infinity")):
        tensors = list(content["ema"]["shadow_params"])
        tensors[4] = tensors[4].double()
        tensors[4].view(-1)[0] = value
        torch.save(content | {"ema": {"shadow_params": tensors}}, tmp_path / "b.pth")
        with pytest.raises(UserError, match=f"tensor 'all_modules.3.weight' .* {match}"):
            load_model(tmp_path / "b.pth", config=config())
    tensors = list(content["ema"]["shadow_params"])
    tensors[4] = tensors[4].to(torch.complex64)
    torch.save(content | {"ema": {"shadow_params": tensors}}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="is no dense tensor of floating-point numbers"):
        load_model(tmp_path / "b.pth", config=config())


def test_a_part_of_an_archive_is_not_larger_than_it(tmp_path):
    written(tmp_path / "a.pth", config())
    with (
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
        zipfile.ZipFile(tmp_path / "a.pth") as sound,
    ):
        for member in sound.infolist():
            bomb.writestr(member.filename, bytes(2**25) if member.filename.endswith("/data/3") else sound.read(member))
    with pytest.raises(UserError, match="claims to be larger than the whole"):
        load_model(tmp_path / "b.pth", config=config())


def test_a_published_place_tells_configuration_and_classifier(tmp_path, monkeypatch):
    """As the paper profile finds them: neither a .json nor a classifier's path has to be given."""
    from dmcmc_core import files
    from dmcmc_core.runs.plan import Request

    name = "ve_cifar10_ncsnpp_continuous"
    made = config()
    made["data"]["image_size"] = 32
    monkeypatch.setitem(published.CONFIGS, name, made)
    monkeypatch.setattr(files, "root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    path = Path(published.FILES[name])
    path.parent.mkdir(parents=True)
    net = written(path, made)
    model = load_model(path)
    x = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        assert relative(model(x, torch.tensor(0.7)), net(x, torch.tensor(0.7))) < 1e-5
    assert model.name == name and Request(model, "dlg+heun").best_posterior() == "residual"
    with pytest.raises(UserError, match="it goes to .*cifar10-noise-level.pth"):
        load_noise_level(model.name, like=model)
    state = PublishedClassifier((3, 32, 32)).state_dict()
    torch.save({"epoch": 1, "opt": {}, "net": state}, published.CLASSIFIERS[name])
    assert Request(model, "dlg+heun").best_posterior() == "classifier"
    shutil.copy(path, tmp_path / "copy.pth")  # the same weights under another name
    assert Request(load_model(tmp_path / "copy.pth", config=made), "dlg+heun").best_posterior() == "classifier"
    path.rename(tmp_path / "other.pth")
    with pytest.raises(UserError, match="carries no configuration"):
        load_model(tmp_path / "other.pth")


# ---- the epsilon of the normalisations


def by_formula(net: torch.nn.Module, eps: float) -> torch.nn.Module:
    """The network in double precision, its normalisations written out with an epsilon of the caller's."""

    class Written(torch.nn.Module):
        def __init__(self, norm: torch.nn.GroupNorm) -> None:
            super().__init__()
            self.groups, self.weight, self.bias = norm.num_groups, norm.weight, norm.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grouped = x.reshape(len(x), self.groups, -1)
            centred = grouped - grouped.mean(2, keepdim=True)
            scaled = (centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()).reshape(x.shape)
            return scaled * self.weight[:, None, None] + self.bias[:, None, None]

    net = copy.deepcopy(net).double()
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, Written(child))
    return net


@pytest.mark.parametrize(
    ("options", "eps"),
    [
        ({"waves": "fourier", "encoder": "residual", "taps": (1, 3, 3, 1)}, 1e-6),  # NCSN++
        ({"encoder": "skip", "decoder": "skip"}, 1e-6),  # NCSN++ of large images
        ({}, 1e-6),  # DDPM++, as EDM has it too
        ({"convolved": True, "rescale": False, "min_group": 1}, 1e-6),  # DDPM
        ({"adm": True, "head_channels": 16}, 1e-5),  # ADM, as EDM has it
        ({"adm": True, "adaptive": False, "convolved": True, "heads": 2, "min_group": 1}, 1e-5),  # improved-diffusion
    ],
)
def test_faint_images_show_the_epsilon_of_the_normalisations(options, eps):
    """Ordinary images hide it: features there vary by far more than its root."""
    torch.manual_seed(0)
    net = UNet(
        size=16, in_channels=3, out_channels=3, width=32, multipliers=(1, 2), blocks=1, attention=(8,), **options
    )
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(std=0.2 if p.ndim > 1 else 0.5)
            if name.startswith("stem") or ".pyramid." in name:
                p.mul_(1e-3)
    x, c_noise = torch.rand(2, 3, 16, 16), torch.tensor([0.3, 0.7])
    net.eval()
    with torch.no_grad():
        found = net(x, c_noise)
        right, wrong = (by_formula(net, e)(x.double(), c_noise.double()) for e in (eps, 1.1e-5 - eps))
    assert relative(found, right) < 5e-4 and relative(found, wrong) > 0.02
