"""Files of score_sde's JAX code and of gDDIM: a state of `flax.training.checkpoints`, for NCSN++ of BigGAN blocks.

The file is MessagePack: a map of ``step``, ``optimizer``, ``params_ema`` and more, arrays as extensions of type 1, in
chunks where they are large. Only the step and the averaged weights are taken, and nothing of the file is executed.
Names are Flax's, modules numbered within their class in the order of their first call.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.checkpoints import score_sde
from dmcmc_core.checkpoints.entries import Entry
from dmcmc_core.checkpoints.weights import check_finite, check_numbers, without_memory
from dmcmc_core.errors import UserError, sentence
from dmcmc_core.linear_sde import make_sde
from dmcmc_core.nets.linear import PublishedEpsilonNet
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.song import UNet

WEIGHTS = "params_ema"
CHUNKED = "__msgpack_chunked_array__"
DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "uint32", "bool")
}
LIMITS = {"max_array_len": 32, "max_map_len": 2**16, "max_str_len": 1024}
"""What no state exceeds: its lists are shapes alone, and a list takes memory before its values are seen."""
DEPTH = 16
CONSTANTS = {
    "CLD": {"m_inv": "inverse_mass", "beta_0": "beta", "vv_gamma": "gamma"},
    "BDM": {"sigma_blur_max": "sigma_blur_max"},
    "VP": {"beta_min": "beta_min", "beta_max": "beta_max"},
}
"""Diffusion -> field of ``model`` in a published configuration -> constant of the diffusion here."""


def is_one(path: Path) -> bool:
    """Tell whether a file begins as a state does: a map whose first key is a short name."""
    with path.open("rb") as file:
        head = file.read(34)
    if len(head) < 3 or not 0x81 <= head[0] <= 0x8F or not 0xA1 <= head[1] <= 0xBF:
        return False
    key = head[2 : 2 + head[1] - 0xA0]
    return key.isascii() and key.decode().isidentifier()


def read(path: Path, config: dict[str, Any]) -> tuple[ScaledUNet | PublishedEpsilonNet, dict[str, Any]]:
    """Return the averaged network of a file, and its card.

    Raises:
        UserError: for a file that is truncated, holds anything but such a state, or does not fit its configuration;
            with the first tensor that does not.
    """
    with without_memory():  # so that a configuration of another network, however large, takes no memory
        wanted, own = places(build(config)[0].net), build(config)[0].net.state_dict()
    found, step = load(path)
    for name, entry in wanted.items():
        shape = _shape_in_file(name, entry, own[entry.own])
        if name not in found:
            raise UserError(f"{path} does not fit its configuration: tensor {name!r} is missing, of shape {shape}")
        check_numbers(found[name], name, path)
        if "/GroupNorm_" in f"/{name}" and found[name].shape == (1, 1, 1, *shape):  # Flax until 2021
            found[name] = found[name].reshape(shape)
        if found[name].shape != shape:
            raise UserError(
                f"{path} does not fit its configuration: tensor {name!r} has shape {tuple(found[name].shape)}, the "
                f"network needs {shape}"
            )
    surplus = sorted(found.keys() - wanted.keys())
    if surplus:
        raise UserError(f"{path} does not fit its configuration: it holds the unknown tensor {surplus[0]!r}")
    net, card = build(config)
    loaded = {name: torch.empty_like(tensor) for name, tensor in net.net.state_dict().items()}
    for name, entry in wanted.items():
        whole = loaded[entry.own]
        target = whole if entry.part is None else whole.chunk(3)[entry.part]
        target.copy_(_as_in_torch(found[name], entry))
        check_finite(target, name, path)
    net.net.load_state_dict(loaded)
    return net, card | ({} if step is None else {"step": step})


def build(config: dict[str, Any]) -> tuple[ScaledUNet | PublishedEpsilonNet, dict[str, Any]]:
    """Return the network that a configuration describes, its weights untrained, and the card of its checkpoint.

    Args:
        config: the sections ``model``, ``data`` and ``training`` of a published configuration of score_sde. With a
            section ``sde``, ``name`` and constants of a linear diffusion, the network is its epsilon, and ``training``
            is not needed; constants that ``sde`` does not name are those of gDDIM's fields of ``model``.

    Raises:
        UserError: for a section or field that is missing, or an option that no published configuration uses.
    """
    model = score_sde.section(config, "model")
    for name, value in (("name", "ncsnpp"), ("resblock_type", "biggan")):
        score_sde.choice(model, name, {value: value})
    if "sde" not in config:
        return score_sde.build(config)
    with score_sde.config_errors():
        return _build_epsilon(config)


def _build_epsilon(config: dict[str, Any]) -> tuple[PublishedEpsilonNet, dict[str, Any]]:
    model, data, sde = (score_sde.section(config, name) for name in ("model", "data", "sde"))
    if model.get("beta_1"):
        raise UserError(f"config: beta_1 must be 0, the rate of CLD being constant here, not {model['beta_1']!r:.40}")
    score_sde.choice(data, "centered", {True: True})  # else the network has images in [0, 1], and states have not
    score_sde.choice(model, "scale_by_sigma", {False: False}, False)
    mixed = score_sde.choice(model, "mixed_score", {True: "mixed", False: "epsilon"}, False)
    published = CONSTANTS.get(str(sde.get("name")), {})
    constants = {ours: model[theirs] for theirs, ours in published.items() if theirs in model}
    about = constants | sde | ({"image_size": data.get("image_size")} if sde.get("name") == "BDM" else {})
    if "name" not in about:
        raise UserError("config: sde lacks 'name', that of a linear diffusion: CLD, BDM or VP")
    for name, value in about.items():
        if name != "name" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"config: {name} of sde must be a number, not {value!r:.40}")
    diffusion = make_sde(**about)
    net = PublishedEpsilonNet(about, score_sde.network(config, diffusion.parts), mixed)
    card = {"architecture": "epsilon-published", "data_range": [-1.0, 1.0], "data": data.get("dataset")}
    return net, card | {"t_min": diffusion.t_min, "t_max": diffusion.t_max}


# ---- names -----------------------------------------------------------------------------------------------------------

CLASSES = (
    (r"embed\.waves\.", "GaussianFourierProjection"),
    (r"embed\.", "Dense"),
    (r"stem\.", "Conv"),
    (r".*\.out\.0\.", "GroupNorm"),
    (r".*\.out\.2\.", "Conv"),
    (r".*\.attention\.", "AttnBlockpp"),
    (r".*\.pyramid\.", "Combine"),
    ("", "ResnetBlockBigGANpp"),
)
"""How our name of a tensor begins -> the class of Flax's outermost module around it."""


def places(net: UNet) -> dict[str, Entry]:
    """Return the place in the network of each name in the file, in the order of the network's calls."""
    numbers: Counter[str] = Counter()
    modules: dict[str, str] = {}
    found = {}
    for entry in score_sde.entries(net):
        _, module, inside = entry.name.split(".", 2)
        if module not in modules:
            kind = next(kind for start, kind in CLASSES if re.match(start, entry.own))
            if kind == "Combine" and net.encoder == "residual":
                kind = "Downsample"
            modules[module] = f"{kind}_{numbers[kind]}"
            numbers[kind] += 1
        *layers, leaf = [modules[module], *inside.split(".")]
        kind = layers[-1].rpartition("_")[0]
        if leaf == "weight":
            leaf = {"GroupNorm": "scale", "Conv": "kernel", "Dense": "kernel"}.get(kind, leaf)
        found["/".join([*layers, leaf])] = entry
    return found


def _shape_in_file(name: str, entry: Entry, own: Tensor) -> tuple[int, ...]:
    shape = entry.shape(own)
    if len(shape) == 4:  # OIHW there, HWIO here
        return (*shape[2:], shape[1], shape[0])
    return shape if entry.matrix else shape[::-1]


def _as_in_torch(tensor: Tensor, entry: Entry) -> Tensor:
    if entry.matrix:
        return entry.form.read(tensor)
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


# ---- content ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Return the averaged weights of a file by their names, ``ResnetBlockBigGANpp_0/Conv_0/kernel``, and its step.

    Raises:
        UserError: for a file that is truncated, of another format, or holds no averaged weights; without msgpack.
    """
    try:
        import msgpack
    except ImportError:
        raise UserError(f"{path} is read by msgpack, which is not installed: pip install msgpack") from None

    content: dict[str, Any] = {}
    names, size = [], path.stat().st_size
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file, ext_hook=_extension, raw=False, max_buffer_size=min(size, 2**31 - 1), **LIMITS
            )
            for _ in range(unpacker.read_map_header()):
                names.append(unpacker.unpack())
                if names[-1] in (WEIGHTS, "step"):
                    content[names[-1]] = unpacker.unpack()
                else:
                    unpacker.skip()  # an optimizer takes twice the memory of what is sought
            if unpacker.tell() != size:
                raise ValueError("more follows where the state ends")
            weights = dict(_flattened(content.get(WEIGHTS, {})))
    except Exception as error:  # whatever a broken file brings about
        raise UserError(
            f"{path} cannot be read as a checkpoint of Flax, it is truncated, damaged or of another format: "
            f"{sentence(error)}"
        ) from error
    if not weights:
        held = ", ".join(map(str, names))[:100] or "nothing"
        raise UserError(f"{path} is not a checkpoint of score_sde: it holds no {WEIGHTS!r}, but {held}")
    return weights, _whole(content.get("step"))


def _whole(step: Any) -> int | None:
    if isinstance(step, Tensor) and step.numel() == 1 and not step.is_floating_point():
        step = step.item()
    return step if isinstance(step, int) else None


def _extension(code: int, data: bytes) -> Tensor | complex:
    """Return what Flax has written as type 1 (an array), 2 (a complex number) or 3 (a NumPy scalar)."""
    import msgpack

    if code not in (1, 2, 3):
        raise ValueError(f"it holds an extension of type {code}, which Flax does not write")
    parts = msgpack.unpackb(data, raw=False, **LIMITS)
    if code == 2:
        return complex(*parts)
    shape, name, buffer = parts
    if name not in DTYPES:
        raise ValueError(f"it holds an array of {name!r:.40}; known are {', '.join(DTYPES)}")
    wanted = math.prod(shape) * DTYPES[name].itemsize
    if min(shape, default=0) < 0 or len(buffer) != wanted:
        raise ValueError(f"an array of {name} and shape {tuple(shape)} takes {wanted} bytes, not {len(buffer)}")
    flat = torch.frombuffer(bytearray(buffer), dtype=DTYPES[name]) if buffer else torch.empty(0, dtype=DTYPES[name])
    return flat.reshape(shape)


def _flattened(tree: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays of nested maps, those in chunks put together."""
    if isinstance(tree, dict) and CHUNKED in tree:
        chunks, shape = ([tree[key][str(i)] for i in range(len(tree[key]))] for key in ("chunks", "shape"))
        tree = torch.cat(chunks).reshape(shape)
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, dict) and depth < DEPTH:
        for key, value in tree.items():
            yield from _flattened(value, f"{name}/{key}" if name else str(key), depth + 1)
    else:
        raise ValueError(f"{name[:100]!r} of {WEIGHTS} is no array")
