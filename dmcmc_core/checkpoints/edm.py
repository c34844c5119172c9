"""Pickles of EDM (Karras et al. 2022): objects that carry their own source code; only names and numbers are read.

The file is unpickled with a list of what may be made of it: tensors, plain containers, numbers, and *inert* stand-ins
for everything else that EDM's networks are made of. The source text inside is never looked at.
"""

from __future__ import annotations

import io
import mmap
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.checkpoints.card import sentence
from dmcmc_core.checkpoints.weights import check_finite, check_numbers, without_memory
from dmcmc_core.errors import UserError
from dmcmc_core.nets.blocks import Block
from dmcmc_core.nets.scalings import ScaledUNet, vp_sigma
from dmcmc_core.nets.song import Level, UNet


class Inert:
    """An object of the file: the name of its class, and its state, a dictionary."""

    def __init__(self, name: str = "", state: Any = None) -> None:
        self.name = name if isinstance(name, str) else type(name).__name__
        self.state = state if isinstance(state, dict) else {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def tensors(self, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors of a module and those in it, as in ``state_dict``; UserError for one met twice."""
        seen = set() if seen is None else seen
        if id(self) in seen:
            raise UserError(f"module {prefix!r} stands in two places")
        seen.add(id(self))
        for kind in ("_parameters", "_buffers"):
            for name, value in (self.state.get(kind) or {}).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value.detach()
        for name, module in (self.state.get("_modules") or {}).items():
            if isinstance(module, Inert):
                yield from module.tensors(f"{prefix}{name}.", seen)

    def arguments(self, names: str) -> dict[str, Any]:
        """Return the object's arguments by name; ``names`` are those of its positional arguments, in order."""
        given = self.state.get("_init_args") or ()
        return dict(zip(names.split(), given, strict=False)) | dict(self.state.get("_init_kwargs") or {})


def _persistent(meta: Any, *_: Any) -> Inert:
    if not isinstance(meta, dict):
        raise UserError("it holds a persistent object without a description")
    return Inert(meta.get("class_name"), meta.get("state"))


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """Return a tensor as torch rebuilds it, but never larger than its numbers, for which torch would make room."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise UserError(
            f"it holds a tensor of shape {tuple(size)!r:.60} that reaches beyond its {len(storage)} numbers"
        )
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, *rest)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _scalar(dtype: np.dtype, data: bytes) -> float:
    if dtype.kind not in "biuf" or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise UserError("it holds a numpy scalar that is no number")
    return np.frombuffer(data, dtype)[0].item()


def _dtype(name: str, *_: Any) -> np.dtype:
    return np.dtype(str(name))


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("dnnlib.util", "EasyDict"): dict,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): _dtype,
    ("torch.nn.modules.container", "ModuleDict"): Inert,
    ("torch.nn.modules.container", "ModuleList"): Inert,
    ("torch.nn.modules.container", "Sequential"): Inert,
}
"""What a pickle may name, and what that is here."""


class _Unpickler(pickle._Unpickler):
    """An unpickler in Python: that in C makes room for all that a file claims to have, and sets attributes of anything.

    What is read is in few and large pieces, so that it takes no longer.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], Inert | np.dtype):
            raise UserError(f"it changes a {type(self.stack[-2]).__name__}, which no network of EDM does")
        super().load_build()

    def load_bytearray8(self) -> None:
        raise UserError("it holds bytes that can be changed, which no network of EDM does")

    dispatch |= {pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UserError(f"it names {module}.{name}, which no network of EDM needs: it was not executed") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("it refers to objects outside itself")


def load(path: Path) -> Any:
    """Return what a pickle of EDM holds.

    Raises:
        UserError: for a file that is truncated, no pickle, or names anything that is not in :data:`ALLOWED`.
    """
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # which is what these files hold
            return _Unpickler(data).load()
    except Exception as error:  # whatever a broken file brings about
        why = "it is no sound pickle" if isinstance(error, KeyError) else sentence(error)  # of an unknown opcode
        raise UserError(
            f"{path} cannot be read as a pickle of EDM, it is truncated, of another format, or unsafe: {why}"
        ) from error


def read(path: Path) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the averaged network of a file, and its card.

    Raises:
        UserError: for what :func:`load` refuses, a network of another kind, or tensors that do not fit it.
    """
    content = load(path)
    try:
        return _read(content, path)
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path} cannot be used: {error}") from error
    except Exception as error:  # whatever arguments and tensors of another kind bring about
        raise UserError(f"the arguments in {path} do not make a network of EDM: {sentence(error)}") from error


def _read(content: Any, path: Path) -> tuple[ScaledUNet, dict[str, Any]]:
    outer = content.get("ema") if isinstance(content, dict) else content
    inner = (outer.state.get("_modules") or {}).get("model") if isinstance(outer, Inert) else None
    if not isinstance(inner, Inert):
        raise UserError(f"{path} holds no network of EDM under 'ema'")
    if outer.name not in OUTER:
        raise UserError(f"{path} holds a {outer.name}; known are {', '.join(OUTER)}")
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


def check(net: UNet, tensors: dict[str, Tensor], path: Path) -> list[tuple[str, str]]:
    """Return each tensor's name in a file and in the network; UserError for the first that does not fit."""
    own, left, found_at = net.state_dict(), dict(tensors), []
    for theirs, mine in names(net):
        pairs = [(theirs, mine)] if mine in own else [(f"{theirs}.{p}", f"{mine}.{p}") for p in ("weight", "bias")]
        for name, place in pairs:
            if place not in own:
                continue
            found = left.pop(name, None)
            if found is None or found.shape != own[place].shape:
                has = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                raise UserError(
                    f"{path} does not fit its own arguments: tensor {name!r} {has}, the network needs "
                    f"{tuple(own[place].shape)}"
                )
            check_numbers(found, name, path)
            found_at.append((name, place))
    if left:
        raise UserError(f"{path} does not fit its own arguments: it holds the unknown tensor {sorted(left)[0]!r}")
    return found_at


def fill(net: UNet, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy a file's tensors into a network; UserError for what :func:`check` refuses, and for NaN and infinity."""
    own = net.state_dict()
    for name, place in check(net, tensors, path):
        found = tensors[name]
        if ".qkv." in place:  # channels by head, then by place in it, then query, key, value: ours begin with those
            heads = net.get_submodule(place.rpartition(".qkv.")[0]).heads
            found = found.unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)
        own[place].copy_(found)
        check_finite(own[place], name, path)
