"""The PyTorch port of DDPM (Ho et al. 2020) that DDIM (Song et al. 2021) and image editors use: ``.ckpt`` files.

Downloaded files are bare states; those of a training are lists, whose last entry holds the averaged weights. Neither
tells its configuration, which has the sections ``data``, ``model`` and ``diffusion`` of the project's YAML files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dmcmc_core.checkpoints import score_sde
from dmcmc_core.checkpoints.entries import SAME, Entry, check, fill, pair
from dmcmc_core.checkpoints.published_states import DDPM as CONFIGS
from dmcmc_core.checkpoints.torch_files import TorchFile
from dmcmc_core.checkpoints.weights import without_memory
from dmcmc_core.nets.blocks import Block
from dmcmc_core.nets.scalings import ScaledUNet, discrete_levels
from dmcmc_core.nets.song import UNet

SECTIONS = ("data", "model", "diffusion")


def is_one(state: dict[str, Any]) -> bool:
    """Tell whether tensors are those of such a network."""
    return {"temb.dense.0.weight", "conv_in.weight", "norm_out.weight"} <= state.keys()


def fitting(state: dict[str, Any]) -> list[str]:
    """Return the names of published networks that a file may be, one of those that are the same but for dropout."""
    distinct: dict[str, str] = {}
    for name, config in CONFIGS.items():
        with without_memory():
            made, _ = build(config)
        own, wanted = made.net.state_dict(), list(entries(made.net))
        if state.keys() == {e.name for e in wanted} and all(
            tuple(state[e.name].shape) == e.shape(own[e.own]) for e in wanted
        ):
            distinct.setdefault(repr([made.options, made.net.config | {"dropout": 0.0}]), name)
    return list(distinct.values())


def read(file: TorchFile, state: dict[str, Any], config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network of a file, and its card.

    Args:
        state: the tensors of the file by name.
        config: with :data:`SECTIONS`, or these under ``config``.

    Raises:
        UserError: for a section or field that is missing, a value that makes no network, and tensors that do not fit.
    """
    config = config.get("config", config)
    with without_memory():
        made, card = build(config)
    wanted = list(entries(made.net))
    check(wanted, made.net.state_dict(), state, file.path)
    return fill(lambda: build(config)[0], wanted, state, file.path, file.numbers, "net."), card


@score_sde.config_errors()
def build(config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network that a configuration describes, its weights untrained, and the card of its checkpoint.

    Raises:
        UserError: for a section or field that is missing, or a value that makes no network.
    """
    data, model, diffusion = (score_sde.section(config, name) for name in SECTIONS)
    need = score_sde.need
    score_sde.choice(model, "type", {"simple": True}, "simple")
    score_sde.choice(data, "logit_transform", {False: False}, False)
    centred = score_sde.choice(data, "rescaled", {True: True, False: False}, True)
    convolved = score_sde.choice(model, "resamp_with_conv", {True: True, False: False}, True)
    net = {
        "size": need(data, "image_size", "data"),
        "in_channels": need(model, "in_channels", "model"),
        "out_channels": need(model, "out_ch", "model"),
        "width": need(model, "ch", "model"),
        "multipliers": need(model, "ch_mult", "model"),
        "blocks": need(model, "num_res_blocks", "model"),
        "attention": need(model, "attn_resolutions", "model"),
        "dropout": model.get("dropout", 0.0),
        "convolved": convolved,
        "plain": not convolved,
        "rescale": False,
        "min_group": 1,
        "attend_up": True,
    }
    betas = {"schedule": need(diffusion, "beta_schedule", "diffusion")}
    betas |= {"steps": need(diffusion, "num_diffusion_timesteps", "diffusion")}
    betas |= {"first": need(diffusion, "beta_start", "diffusion"), "last": need(diffusion, "beta_end", "diffusion")}
    low, high = discrete_levels(**betas)[[0, -1]].tolist()
    card = {"architecture": "preconditioned", "sigma_min": low, "sigma_max": high, "data": data.get("dataset")}
    card |= {"data_range": [-1.0, 1.0] if centred else [0.0, 1.0]}
    return ScaledUNet("discrete", {"betas": betas}, net), card


def entries(net: UNet) -> Iterator[Entry]:
    """Yield the tensors of a file; its level 0 is the finest, also on the way up, where it comes last."""
    yield from pair("temb.dense.0", "embed.first")
    yield from pair("temb.dense.1", "embed.second")
    yield from pair("conv_in", "stem")
    last = len(net.down) - 1
    for i, level in enumerate(net.down):
        for k, block in enumerate(level.blocks):
            yield from _block(f"down.{i}.block.{k}", f"down.{i}.attn.{k}", f"down.{i}.blocks.{k}", block)
        if i < last and hasattr(net.down[i + 1].resample, "weight"):
            yield from pair(f"down.{i}.downsample.conv", f"down.{i + 1}.resample")
    yield from _block("mid.block_1", "mid.attn_1", "middle.0", net.middle[0])
    yield from _block("mid.block_2", "", "middle.1", net.middle[1])
    for i, level in enumerate(net.up):
        for k, block in enumerate(level.blocks):
            name = f"up.{last - i}"
            yield from _block(f"{name}.block.{k}", f"{name}.attn.{k}", f"up.{i}.blocks.{k}", block)
        if i < last and hasattr(net.up[i + 1].resample, "weight"):
            yield from pair(f"up.{last - i}.upsample.conv", f"up.{i + 1}.resample")
    yield from pair("norm_out", f"up.{last}.out.0")
    yield from pair("conv_out", f"up.{last}.out.2")


def _block(name: str, attention: str, own: str, block: Block) -> Iterator[Entry]:
    layers = {"norm1": "norm0", "conv1": "conv0", "temb_proj": "affine", "norm2": "norm1", "conv2": "conv1"}
    for theirs, ours in layers.items():
        yield from pair(f"{name}.{theirs}", f"{own}.{ours}")
    if hasattr(block.skip, "weight"):
        yield from pair(f"{name}.nin_shortcut", f"{own}.skip")
    if block.attention is not None:
        yield from pair(f"{attention}.norm", f"{own}.attention.norm")
        for part, which in enumerate("qkv"):
            yield from pair(f"{attention}.{which}", f"{own}.attention.qkv", SAME, part)
        yield from pair(f"{attention}.proj_out", f"{own}.attention.proj")
