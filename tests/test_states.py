"""Bare states: U-Nets of improved- and guided-diffusion, and of the PyTorch port of DDPM."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core.checkpoints import convert, ddpm, load_model, load_network, openai, published_states, read_card
from dmcmc_core.checkpoints.torch_files import TorchFile
from dmcmc_core.checkpoints.weights import without_memory
from dmcmc_core.errors import UserError
from dmcmc_core.nets.scalings import discrete_betas, discrete_levels

PARITY = Path(__file__).parents[2] / "shared" / "parity"
OPENAI = ("idm_cifar10_small", "idm_plain_eps_small", "gdm_64_cond_small", "gdm_256_uncond_small", "gdm_afhq_dog_small")
FILES = [f"{name}.pt" for name in OPENAI]
FILES += ["ddim_celeba_hq_small.ckpt", "ddim_lsun_wide_small.ckpt", "ddim_cifar10_train_state_small.pth"]
PUBLISHED = {
    "idm_cifar10_uncond_50M_500K": "cifar10_uncond_50M_500K",
    "idm_imagenet64_cond_270M_250K": "imagenet64_cond_270M_250K",
    "gdm_64x64_diffusion": "64x64_diffusion",
    "gdm_256x256_diffusion_uncond": "256x256_diffusion_uncond",
    "gdm_lsun_bedroom": "lsun_bedroom",
    "gdm_afhq_dog_boundarydiffusion": "afhqdog_4m",
    "ddim_bedroom": "ddpm_bedroom",
    "ddim_cifar10": "ddpm_cifar10",
}
"""List of keys -> published name."""
here = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs are not here")


def about(file: str) -> dict:
    return json.loads((PARITY / file).with_suffix(".json").read_text())


def arrays(file: str) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load((PARITY / file).with_suffix(".npz")).items()}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def small_state() -> dict[str, torch.Tensor]:
    return torch.load(PARITY / "idm_plain_eps_small.pt", weights_only=True)


@here
@pytest.mark.parametrize("file", FILES)
def test_bare_networks_answer_as_in_their_own_project(file):
    """Nearly constant images show the epsilon of the normalisations, which others hide."""
    net, wanted = load_network(PARITY / file), arrays(file)
    x, t, y = wanted["x"], wanted["t"], wanted.get("y")
    assert relative(net(x, t, y), wanted["output"]) < 1e-5
    rows = len(wanted["x_flat"])
    assert relative(net(wanted["x_flat"], t[:rows], None if y is None else y[:rows]), wanted["output_flat"]) < 5e-4


@here
@pytest.mark.parametrize("file", FILES)
def test_denoisers_take_the_noise_of_their_own_time(file):
    """At a time of its own, the network is asked at just that, with alpha x; and D = x - sigma epsilon."""
    model, net, wanted = load_model(PARITY / file).denoiser, load_network(PARITY / file), arrays(file)
    net.scaled.to(memory_format=torch.channels_last)
    betas = net.scaled.options["betas"]
    index = torch.tensor([betas["steps"] // 3, betas["steps"] - 2])
    sigma = discrete_levels(**betas)[index].float()
    x = wanted["x"][:2] * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    labels = wanted["y"][:2] if "y" in wanted else None
    more = () if labels is None else (labels,)
    epsilon = net(wanted["x"][:2], index * net.scaled.options.get("unit", 1.0), labels)[:, :3]
    assert relative(x - model(x, sigma, *more), sigma.reshape(-1, 1, 1, 1) * epsilon) < 2e-4
    assert model.data_range == (-1.0, 1.0)


@here
def test_averaged_weights_are_taken_where_a_training_left_both():
    file, wanted = "ddim_cifar10_train_state_small.pth", arrays("ddim_cifar10_train_state_small.pth")
    assert load_model(PARITY / file).card["averaged"] is True
    assert relative(load_network(PARITY / file)(wanted["x"], wanted["t"]), wanted["output_raw"]) > 1e-2


@here
@pytest.mark.parametrize("listed", PUBLISHED)
def test_published_networks_have_the_published_tensors(listed):
    shapes = json.loads((PARITY / f"{listed}.shapes.json").read_text())
    net = load_model(PUBLISHED[listed], "meta").net
    entries = openai.entries if listed[:4] != "ddim" else ddpm.entries
    own = net.net.state_dict()
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries(net.net):
        found[entry.name] = entry.shape(own[entry.own])
    assert found == {name: tuple(shape) for name, shape in shapes["state_dict"].items()}
    assert sum(p.numel() for p in net.net.parameters()) == shapes["num_parameters"]


@here
@pytest.mark.parametrize("listed", PUBLISHED)
def test_the_shapes_of_a_published_file_tell_its_configuration(listed):
    shapes = json.loads((PARITY / f"{listed}.shapes.json").read_text())
    state = {name: torch.empty(*shape, device="meta") for name, shape in shapes["state_dict"].items()}
    family, configs = (ddpm, published_states.DDPM) if listed[:4] == "ddim" else (openai, published_states.OPENAI)
    assert family.is_one(state)
    (name,) = family.fitting(state)
    with without_memory():
        made, wanted = (family.build(configs[n])[0] for n in (name, PUBLISHED[listed]))
    assert made.options == wanted.options
    assert made.net.config | {"dropout": 0} == wanted.net.config | {"dropout": 0}


def test_every_published_network_is_made():
    with pytest.raises(UserError, match="stands in its file alone"):
        load_model("edm2-img64-s-fid", "meta")
    for name in published_states.FILES:
        model = load_model(name, "meta")
        assert model.shape[0] == 3 and model.name == name
        assert (model.card.get("start") == 164.0) == ("cosine" in str(published_states.OPENAI.get(name)))


def test_times_are_those_of_the_published_schedules():
    schedules = np.load(PARITY / "guided_diffusion_schedules.npz") if PARITY.is_dir() else pytest.skip("not here")
    for name, steps in (("linear", 1000), ("cosine", 4000)):
        betas = discrete_betas(name, steps).numpy()
        np.testing.assert_allclose(betas, schedules[f"{name}_{steps}.betas"], rtol=1e-12, atol=1e-15)
        kept = 1 / (1 + discrete_levels(name, steps).numpy() ** 2)
        np.testing.assert_allclose(kept, schedules[f"{name}_{steps}.alphas_cumprod"], rtol=1e-9)


def test_a_last_time_of_noise_alone_is_left_out():
    levels = discrete_levels("jsd", 50)
    assert len(levels) == 49 and levels.isfinite().all() and (levels.diff() > 0).all()


@here
def test_flags_that_the_file_contradicts_are_refused(tmp_path):
    own = about("idm_plain_eps_small.pt")
    for change, match in (
        ({"num_channels": 64}, "the flag num_channels says 64, its tensors say 32"),
        ({"learn_sigma": True}, "the flag learn_sigma says True"),
        ({"class_cond": True}, "the flag class_cond says True"),
        ({"use_scale_shift_norm": True}, "use_scale_shift_norm"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"num_res_blocks": 2}, "num_res_blocks"),
        (
            {"attention_resolutions": "16,8"},
            r"in the levels \[0, 1\], its tensors \[1\]: image_size 32 or attention_resolutions 8 w",
        ),
        ({"attention_resolutions": ""}, r"in the levels \[\], its tensors \[1\]: attention_resolutions 8 would fit"),
        ({"image_size": 32}, "flags image_size 32 and .*: image_size 16 or attention_resolutions 16 would fit"),
        ({"attention_resolutions": "9" * 5000}, "sizes such as"),
        ({"attention_resolutions": "all"}, "sizes such as"),
        ({"image_size": "16"}, "image_size must be a whole number"),
        ({"noise_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"rescale_timesteps": "False"}, "rescale_timesteps must be true or false"),
        ({"num_heads": 5}, "cannot be attended to by 5 heads"),
        ({"num_head": 2}, "did you mean 'num_heads'"),
    ):
        config = {"family": own["family"], "flags": own["flags"] | change}
        with pytest.raises(UserError, match=match) as caught:
            load_model(PARITY / "idm_plain_eps_small.pt", config=config)
        assert "\n" not in str(caught.value)


@here
def test_a_bare_state_of_no_published_shape_needs_a_configuration(tmp_path):
    torch.save(small_state(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="carries no configuration and there is no model.json beside it"):
        load_model(tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(about("idm_plain_eps_small.pt")))
    assert load_model(tmp_path / "model.pt").shape == (3, 16, 16)


@here
def test_wrapped_and_halved_states_are_the_same_network(tmp_path):
    state, config = small_state(), about("idm_plain_eps_small.pt")
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    right = load_network(PARITY / "idm_plain_eps_small.pt")(x, t)
    for name, content in {
        "a.pt": {f"module.module.{k}": v for k, v in state.items()},
        "b.pt": {f"_orig_mod.{k}": v for k, v in state.items()},
        "c.pth": {"model": {k: torch.zeros_like(v) for k, v in state.items()}, "ema": state, "step": 3},
        "d.ckpt": {"state_dict": state},
    }.items():
        torch.save(content, tmp_path / name)
        assert torch.equal(load_network(tmp_path / name, config=config)(x, t), right), name
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "e.pt")
    torch.save({k: v.half().float() for k, v in state.items()}, tmp_path / "f.pt")
    half, full = (load_network(tmp_path / name, config=config)(x, t) for name in ("e.pt", "f.pt"))
    assert torch.equal(half, full)


@here
def test_files_from_before_there_were_archives_are_read(tmp_path):
    torch.save(small_state(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    model = load_model(tmp_path / "a.pt", config=about("idm_plain_eps_small.pt"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(x, torch.tensor(1.0)), load_model(PARITY / "idm_plain_eps_small.pt")(x, torch.tensor(1.0)))


@here
def test_a_converted_state_needs_nothing_beside_it(tmp_path):
    for file in ("gdm_64_cond_small.pt", "ddim_celeba_hq_small.ckpt"):
        card = convert(PARITY / file, tmp_path / "a.safetensors")
        model, own = (load_model(name).denoiser for name in (PARITY / file, tmp_path / "a.safetensors"))
        assert read_card(tmp_path / "a.safetensors").get("start") == card.get("start") == model.card.get("start")
        x, sigma = torch.randn(2, *model.shape), torch.tensor([0.5, 20.0])
        labels = (torch.tensor([1, 7]),) if model.classes else ()
        assert torch.equal(model(x, sigma, *labels), own(x, sigma, *labels))


@here
def test_heads_and_their_order_change_what_a_network_answers():
    """Nothing in a file tells them: they are taken from the configuration and nothing else."""
    config, x = about("gdm_64_cond_small.pt"), torch.randn(1, 3, 32, 32)
    answers = [
        load_network(
            PARITY / "gdm_64_cond_small.pt",
            config={"family": config["family"], "flags": config["flags"] | change},
        )(x, torch.tensor([5]), torch.tensor([2]))
        for change in ({}, {"use_new_attention_order": False}, {"num_head_channels": 32}, {"num_head_channels": -1})
    ]
    assert all(relative(other, answers[0]) > 1e-3 for other in answers[1:])
    heads = [load_network(PARITY / "idm_cifar10_small.pt", config=c) for c in (up(2), up(-1))]
    assert relative(*(net(x, torch.tensor([5])) for net in heads)) > 1e-4


def up(heads: int) -> dict:
    own = about("idm_cifar10_small.pt")
    return {"family": own["family"], "flags": own["flags"] | {"num_heads_upsample": heads}}


FOREIGN = {
    "opt010000.pt": ({"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-4}]}, "an optimizer's state"),
    "training-state-000000.pt": ({"net": {"a": torch.ones(2)}, "optimizer_state": {}}, "take network-snapshot"),
    "last.ckpt": (
        {"state_dict": {"model.conv_in.weight": torch.ones(2)}, "pytorch-lightning_version": "2.0"},
        r"PyTorch Lightning \(model.conv_in.weight, ...\)",
    ),
    "model-10.pt": (
        {"model": {"init_conv.weight": torch.ones(2)}, "ema": {"ema_model.init_conv.weight": torch.ones(2)}},
        "denoising-diffusion-pytorch",
    ),
    "64x64_diffusion.pt": (
        {name: torch.ones(2, 2, 1, 1) for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")},
        "its tensors are not those of a U-Net of OpenAI",
    ),
    "other.ckpt": ({"layer.weight": torch.ones(2)}, r"a bare state of 1 tensors \(layer.weight, ...\)"),
    "list.pth": ([{"module.fc.weight": torch.ones(2)}, {}, 3], r"a list of 3 entries \(module.fc.weight, ...\)"),
    "one.pt": (torch.ones(3), "holds one tensor"),
    "empty.pt": ({}, "a dictionary of nothing"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_is_described_before_anything_is_asked_for(tmp_path, name):
    content, match = FOREIGN[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=match) as caught:
        load_model(tmp_path / name)
    assert "configuration" not in str(caught.value)


def test_an_upsampler_is_no_network_of_images_alone(tmp_path):
    with pytest.raises(UserError, match="upsamplers are not read"):
        found = {"in_channels": 6, "out_channels": 6, "multipliers": [1], "attending": []}
        openai.arguments(found, {"family": "guided-diffusion", "flags": {"image_size": 64}})


def test_numbers_of_a_file_are_compared_with_their_sums(tmp_path):
    torch.save({"a": torch.arange(64.0)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.index(torch.tensor([62.0, 63.0]).numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "b.pt").write_bytes(data)
    file = TorchFile(tmp_path / "b.pt")
    with pytest.raises(UserError, match="part a/data/0 is damaged|part .*data/0 is damaged"):
        file.numbers(file.content["a"])


def test_views_of_one_storage_are_read_as_torch_reads_them(tmp_path):
    whole = torch.randn(4, 6)
    content = {"t": whole.T, "row": whole[2], "part": whole[1:3, 2:5], "none": whole[:0], "b": whole.bfloat16()}
    torch.save(content, tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt")
    for name, tensor in content.items():
        assert torch.equal(file.numbers(file.content[name]), tensor), name


@here
def test_averaged_weights_are_found_where_files_keep_them_and_never_replaced_by_raw_ones(tmp_path):
    state, config = small_state(), about("idm_plain_eps_small.pt")
    raw = {k: torch.zeros_like(v) for k, v in state.items()}
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([3])
    right = load_network(PARITY / "idm_plain_eps_small.pt")(x, t)
    lucid = {"initted": torch.tensor(True)} | {f"online_model.{k}": v for k, v in raw.items()}
    for i, content in enumerate(
        (
            {"model": raw, "ema": {"state_dict": state}},
            {"model": raw, "ema": {"shadow": state, "mu": 0.999}},
            {"model": raw, "model_ema": {"module": state}},
            {"model": raw, "ema_rate_0.9999": state},
            {"net": raw, "ema_net": state, "ema_rate": 0.999},
            {"model": raw, "ema": lucid | {f"ema_model.{k}": v for k, v in state.items()}},
        )
    ):
        torch.save(content, tmp_path / f"{i}.pt")
        assert torch.equal(load_network(tmp_path / f"{i}.pt", config=config)(x, t), right), i
    for content in (
        {"model": raw, "ema": {}},
        {"model": raw, "ema": list(state.values())},
        {"model": raw, "averaged": {"deep": {"er": state}}},
        [raw, {}, 1, 3, {}],
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match="averaged weights in a form that is not known here"):
            load_network(tmp_path / "a.pt", config=config)
    torch.save({"model": raw, "ema": {"other.weight": torch.ones(2)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="averaged weights of another network than its raw ones"):
        load_network(tmp_path / "a.pt", config=config)


@here
@pytest.mark.parametrize("ending", [".pth.tar", ".tar", ".th", ".PT", ".weird", "", ".pkl"])
def test_a_file_of_torch_is_known_under_every_ending(tmp_path, ending):
    config = about("idm_plain_eps_small.pt")
    path = tmp_path / f"net{ending}"
    for legacy in (False, True):
        torch.save(small_state(), path, _use_new_zipfile_serialization=not legacy)
        assert load_model(path, config=config).shape == (3, 16, 16)


@here
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_head_channels": 128}, "channels cannot be attended to by heads of 128"),
        ({"num_head_channels": 24}, "channels cannot be attended to by heads of 24"),
        ({"num_head_channels": 0}, "must be -1 or a whole number from 1, not 0"),
        ({"channel_mult": "1,3"}, "the flag channel_mult says '1,3'"),
        ({"class_cond": "True"}, "the flag class_cond must be true or false, not 'True'"),
    ],
)
def test_flags_that_make_no_sense_of_the_file_are_one_sentence(change, match):
    own = about("gdm_64_cond_small.pt")
    config = {"family": own["family"], "flags": own["flags"] | change}
    with pytest.raises(UserError, match=match) as caught:
        load_model(PARITY / "gdm_64_cond_small.pt", config=config)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the family says improved-diffusion"):
        load_model(
            PARITY / "gdm_64_cond_small.pt", config={"family": "improved-diffusion", "flags": {"image_size": 32}}
        )
