"""Networks of EDM (Karras et al. 2022), out of what :mod:`dmcmc_core.checkpoints.persistent` reads of their pickles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.checkpoints import persistent
from dmcmc_core.checkpoints.persistent import Inert, averaged
from dmcmc_core.checkpoints.weights import check_finite, without_memory
from dmcmc_core.errors import UserError
from dmcmc_core.nets.blocks import Block
from dmcmc_core.nets.scalings import ScaledUNet, vp_sigma
from dmcmc_core.nets.song import Level, UNet

START = 80.0
"""Where sampling from networks of discrete levels starts, as published: their largest level is 20,291."""


def read(content: Any, path: Path) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the averaged network in the content of a pickle, and its card.

    Raises:
        UserError: for a network of another kind, or tensors that do not fit it; arguments of another kind bring about
            other errors too, see :func:`dmcmc_core.checkpoints.persistent.using`.
    """
    outer = averaged(content)
    inner = (outer.state.get("_modules") or {}).get("model") if outer is not None else None
    if outer is None or not isinstance(inner, Inert):
        raise UserError(f"{path} holds no network of EDM under 'ema'")
    if outer.name not in OUTER:
        raise UserError(f"{path} holds a {outer.name}; known are {', '.join(OUTER)} and EDM2's Precond")
    kind, options, levels = OUTER[outer.name](outer, dict(outer.tensors()))
    arguments = _network(inner, path)
    tensors = {name: t for name, t in inner.tensors() if not name.endswith("resample_filter")}
    with without_memory():  # so that arguments of another network, however large, take no memory
        check(ScaledUNet(kind, options, arguments).net, tensors, path)
    net = ScaledUNet(kind, options, arguments)
    fill(net.net, tensors, path)
    dropout = {"label_dropout": float(_arguments(inner).get("label_dropout", 0))} if net.classes else {}
    low, high = (
        float(outer.state.get(name, level)) for name, level in zip(("sigma_min", "sigma_max"), levels, strict=True)
    )
    card = {"architecture": "preconditioned", "sigma_min": max(low, levels[0]), "sigma_max": min(high, levels[1])}
    if kind == "improved_ddpm" and card["sigma_max"] > START:
        card["start"] = START
    return net, card | {"data_range": [-1.0, 1.0]} | dropout


def _arguments(inner: Inert) -> dict[str, Any]:
    """Return the arguments of a U-Net of theirs by name."""
    first = (
        "img_resolution in_channels out_channels label_dim augment_dim model_channels channel_mult channel_mult_emb "
    )
    first += "num_blocks attn_resolutions dropout label_dropout"
    song = " embedding_type channel_mult_noise encoder_type decoder_type resample_filter"
    return inner.arguments(first + (song if inner.name == "SongUNet" else ""))


def _network(inner: Inert, path: Path) -> dict[str, Any]:
    """Return the arguments of our U-Net that make theirs."""
    if inner.name not in ("SongUNet", "DhariwalUNet"):
        raise UserError(f"{path} holds a {inner.name}; known are SongUNet and DhariwalUNet")
    adm, a = inner.name == "DhariwalUNet", _arguments(inner)
    width = a.get("model_channels", 192 if adm else 128)
    return {
        "size": a["img_resolution"],
        "in_channels": a["in_channels"],
        "out_channels": a["out_channels"],
        "width": width,
        "multipliers": list(a.get("channel_mult", [1, 2, 3, 4] if adm else [1, 2, 2, 2])),
        "blocks": a.get("num_blocks", 3 if adm else 4),
        "attention": list(a.get("attn_resolutions", [32, 16, 8] if adm else [16])),
        "waves": a.get("embedding_type", "positional"),
        "wave_width": width * a.get("channel_mult_noise", 1),
        "encoder": a.get("encoder_type", "standard"),
        "decoder": a.get("decoder_type", "standard"),
        "taps": list(a.get("resample_filter", [1, 1])),
        "labels": a.get("label_dim", 0),
        "augment": a.get("augment_dim", 0),
        "dropout": a.get("dropout", 0.1),
        "embedding": a.get("channel_mult_emb", 4),
        "adm": adm,
    }


Scaled = tuple[str, dict[str, Any], tuple[float, float]]
"""Kind and options of scalings, and the smallest and largest noise level."""


def _edm(outer: Inert, tensors: dict[str, Tensor]) -> Scaled:
    return "edm", {"sigma_data": float(outer.state.get("sigma_data", 0.5))}, (0.002, 80.0)


def _ve(outer: Inert, tensors: dict[str, Tensor]) -> Scaled:
    return "ve", {"unit": 0.5}, (0.02, 100.0)


def _vp(outer: Inert, tensors: dict[str, Tensor]) -> Scaled:
    low, rise = float(outer.state.get("beta_min", 0.1)), float(outer.state.get("beta_d", 19.9))
    betas = {"beta_min": low, "beta_max": low + rise}
    levels = vp_sigma(float(outer.state.get("epsilon_t", 1e-5)), **betas), vp_sigma(1.0, **betas)
    return "vp", betas | {"steps": float(outer.state.get("M", 1000)) - 1}, levels


def _improved_ddpm(outer: Inert, tensors: dict[str, Tensor]) -> Scaled:
    if tensors["u"].ndim != 1 or not 3 <= len(tensors["u"]) <= 10**5:
        raise UserError(f"'u' must be 2 or more noise levels and a 0, not of shape {tuple(tensors['u'].shape)}")
    levels = tensors["u"].double().tolist()
    return "improved_ddpm", {"levels": levels}, (levels[-2], levels[0])


OUTER: dict[str, Callable[[Inert, dict[str, Tensor]], Scaled]] = {
    "EDMPrecond": _edm,
    "VEPrecond": _ve,
    "VPPrecond": _vp,
    "iDDPMPrecond": _improved_ddpm,
}
"""Class of the outermost object -> kind and options of its scalings, and its noise levels."""


def names(net: UNet) -> Iterator[tuple[str, str]]:
    """Yield the name of each layer in a file, and in the network."""
    c = net.config
    if c["waves"] == "fourier":
        yield "map_noise.freqs", "embed.waves.frequencies"
    if c["labels"]:
        yield "map_label", "embed.label"
    if c["augment"]:
        yield "map_augment", "embed.augment"
    yield from (("map_layer0", "embed.first"), ("map_layer1", "embed.second"))
    sides = [c["size"] >> level for level in range(len(c["multipliers"]))]
    yield f"enc.{sides[0]}x{sides[0]}_conv", "stem"
    for i, (side, level) in enumerate(zip(sides, net.down, strict=True)):
        theirs, own = f"enc.{side}x{side}", f"down.{i}"
        if level.resample is not None:
            yield from _block_names(f"{theirs}_down", f"{own}.resample", level.resample)
        if level.pyramid is not None:
            yield f"{theirs}_aux_{net.encoder}", f"{own}.pyramid"
        for k, part in enumerate(level.blocks):
            yield from _block_names(f"{theirs}_block{k}", f"{own}.blocks.{k}", part)
    for k, part in enumerate(net.middle):
        yield from _block_names(f"dec.{sides[-1]}x{sides[-1]}_in{k}", f"middle.{k}", part)
    for i, (side, level) in enumerate(zip(reversed(sides), net.up, strict=True)):
        yield from _names_of_up(f"dec.{side}x{side}", f"up.{i}", level, c["adm"])


def _names_of_up(theirs: str, own: str, level: Level, adm: bool) -> Iterator[tuple[str, str]]:
    if level.resample is not None:
        yield from _block_names(f"{theirs}_up", f"{own}.resample", level.resample)
    for k, part in enumerate(level.blocks):
        yield from _block_names(f"{theirs}_block{k}", f"{own}.blocks.{k}", part)
    if level.out is not None:
        norm, conv = ("out_norm", "out_conv") if adm else (f"{theirs}_aux_norm", f"{theirs}_aux_conv")
        yield from ((norm, f"{own}.out.0"), (conv, f"{own}.out.2"))


def _block_names(theirs: str, own: str, part: Block) -> Iterator[tuple[str, str]]:
    for layer in ("norm0", "conv0", "affine", "norm1", "conv1"):
        yield f"{theirs}.{layer}", f"{own}.{layer}"
    if not isinstance(part.skip, torch.nn.Identity):
        yield f"{theirs}.skip", f"{own}.skip"
    if part.attention is not None:
        pairs = (("norm2", "norm"), ("qkv", "qkv"), ("proj", "proj"))
        yield from ((f"{theirs}.{a}", f"{own}.attention.{b}") for a, b in pairs)


def places(net: UNet) -> list[tuple[str, str]]:
    """Return the name of each tensor in a file, and in the network."""
    own, found = net.state_dict(), []
    for theirs, mine in names(net):
        pairs = [(theirs, mine)] if mine in own else [(f"{theirs}.{p}", f"{mine}.{p}") for p in ("weight", "bias")]
        found += [(name, place) for name, place in pairs if place in own]
    return found


def check(net: UNet, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise UserError for the first tensor of a file that does not fit the network."""
    persistent.check(net.state_dict(), places(net), tensors, path)


def fill(net: UNet, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy a file's tensors, which fit, into a network; UserError for NaN and infinity."""
    own = net.state_dict()
    for name, place in places(net):
        found = tensors[name]
        if ".qkv." in place:  # channels by head, then by place in it, then query, key, value: ours begin with those
            heads = net.get_submodule(place.rpartition(".qkv.")[0]).heads
            found = found.unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)
        own[place].copy_(found)
        check_finite(own[place], name, path)
