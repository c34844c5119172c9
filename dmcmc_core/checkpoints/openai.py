"""U-Nets of OpenAI's improved- and guided-diffusion (Nichol & Dhariwal 2021, Dhariwal & Nichol 2021): bare states.

A ``.pt`` holds tensors alone. Widths, levels, blocks, attention, classes and the learned variance are told by their
shapes; heads, their order, size of the images, schedule and time scale are not, and come from the published flags.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from dmcmc_core.checkpoints.entries import CONV1D, SAME, TRANSPOSED, Entry, by_head, check, fill, pair
from dmcmc_core.checkpoints.published_states import CLASSES, SIZES
from dmcmc_core.checkpoints.published_states import OPENAI as CONFIGS
from dmcmc_core.checkpoints.torch_files import TorchFile
from dmcmc_core.checkpoints.weights import without_memory
from dmcmc_core.errors import UserError, check_whole, number, switch, unknown
from dmcmc_core.nets.blocks import Block
from dmcmc_core.nets.scalings import ScaledUNet, discrete_levels
from dmcmc_core.nets.song import UNet

FAMILIES = ("improved-diffusion", "guided-diffusion")
DEFAULTS: dict[str, Any] = {
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "dropout": 0.0,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
}
"""Flags that may be left out, and what both projects then take."""
RESCALED = {"improved-diffusion": True, "guided-diffusion": False}
"""Family -> its default of ``rescale_timesteps``."""
TOLD = {
    "num_channels": "width",
    "num_res_blocks": "blocks",
    "learn_sigma": "learned",
    "class_cond": "conditional",
    "use_scale_shift_norm": "adaptive",
    "resblock_updown": "resampling",
    "attention_resolutions": "attention",
}
"""Flag -> what a file itself says of the same."""
UNUSED = (
    "use_fp16",
    "use_checkpoint",
    "use_kl",
    "rescale_learned_sigmas",
    "sigma_small",
    "timestep_respacing",
    "channel_mult",
    "large_size",
    "small_size",
)
"""Flags of training or sampling, and one that the file tells better."""
LARGEST = 8192
"""Pixels of a side."""
START = 164.0
"""Where grids of cosine betas begin: their last levels, to 20,291, are far beyond what images need."""


def is_one(state: dict[str, Any]) -> bool:
    """Tell whether tensors are those of such a U-Net."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= state.keys()


def told(state: dict[str, Any]) -> dict[str, Any]:
    """Return what the shapes of a file's tensors tell of its network.

    Raises:
        UserError: for shapes that are those of no such network.
    """
    try:
        return _told(state)
    except KeyError as error:
        raise UserError(f"its tensors are not those of a U-Net of OpenAI: it has no {error.args[0]!r:.100}") from None
    except (IndexError, ValueError, ZeroDivisionError):
        raise UserError("its tensors are not those of a U-Net of OpenAI: their shapes make no levels") from None


def _told(state: dict[str, Any]) -> dict[str, Any]:
    shape = {str(name): tuple(tensor.shape) for name, tensor in state.items()}
    count = next(k for k in itertools.count() if f"output_blocks.{k}.0.in_layers.2.weight" not in shape)

    def enlarging(part: str) -> list[int]:
        return [k for k in range(count) for i in (1, 2) if f"output_blocks.{k}.{i}.{part}.weight" in shape]

    resampling = enlarging("in_layers.2")  # a block of a level ends in another that enlarges, or in a convolution
    blocks = min([*resampling, *enlarging("conv"), count - 1])
    first = range(1, count + 1, blocks + 1)
    embedding, width = shape["time_embed.0.weight"]
    widths = [shape[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in first]
    out = shape["out.2.weight"][0]
    return {
        "in_channels": shape["input_blocks.0.0.weight"][1],
        "out_channels": out,
        "learned": out == 2 * shape["input_blocks.0.0.weight"][1],
        "width": width,
        "embedding": embedding // width,
        "multipliers": [w / width if w % width else w // width for w in widths],
        "blocks": blocks,
        "adaptive": shape["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resampling": bool(resampling),
        "attending": [level for level, k in enumerate(first) if f"input_blocks.{k}.1.qkv.weight" in shape],
        "labels": shape.get("label_emb.weight", (0,))[0],
        "conditional": "label_emb.weight" in shape,
    }


def build(config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network of a published configuration, its weights untrained, and the card of its file.

    Raises:
        UserError: as :func:`read`.
    """
    flags = config["flags"]
    multipliers = SIZES[flags["image_size"]]
    found = {"in_channels": 3, "out_channels": 6 if flags["learn_sigma"] else 3, "embedding": 4}
    found |= {name: flags[flag] for flag, name in TOLD.items() if flag in flags and name != "attention"}
    found |= {"multipliers": list(multipliers), "labels": CLASSES if flags["class_cond"] else 0}
    found["resampling"] = flags.get("resblock_updown", False)
    attending = _sizes(flags["attention_resolutions"])
    found["attending"] = [k for k in range(len(multipliers)) if flags["image_size"] >> k in attending]
    make, card = arguments(found, config)
    return ScaledUNet(**make), card


def fitting(state: dict[str, Any]) -> list[str]:
    """Return the names of published networks that a file may be, one of those that are the same but for dropout.

    Raises:
        UserError: for tensors that are those of no such network.
    """
    found = told(state)
    distinct: dict[str, str] = {}
    for name, config in CONFIGS.items():
        classes = CLASSES if config["flags"]["class_cond"] else 0
        if found["labels"] == classes and tuple(found["multipliers"]) == SIZES[config["flags"]["image_size"]]:
            with suppress(UserError):
                make, _ = arguments(found, config)
                make["net"]["dropout"] = 0.0
                distinct.setdefault(repr(make), name)
    return list(distinct.values())


def read(file: TorchFile, state: dict[str, Any], config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network of a file, and its card.

    Args:
        state: the tensors of the file by name.
        config: ``family``, one of :data:`FAMILIES`, and ``flags``, those of the project's scripts.

    Raises:
        UserError: for flags that are missing, unknown or not those of the file, and for tensors that do not fit.
    """
    try:
        make, card = arguments(told(state), config)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    with without_memory():
        made = ScaledUNet(**make)
    new_order = config["flags"].get("use_new_attention_order", False)
    wanted = list(entries(made.net, new_order))
    check(wanted, made.net.state_dict(), state, file.path)
    return fill(lambda: ScaledUNet(**make), wanted, state, file.path, file.numbers, "net."), card


def arguments(found: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of :class:`ScaledUNet` that make the network of a file, and its card.

    Args:
        found: what :func:`told` returns.
        config: as of :func:`read`.

    Raises:
        UserError: as :func:`read`.
    """
    family, flags = config.get("family"), config.get("flags")
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    if not isinstance(flags, dict):
        raise UserError("its configuration lacks 'flags', those of the project's scripts")
    known = [*DEFAULTS, *TOLD, *UNUSED, "image_size", "rescale_timesteps"]
    for name in flags:
        if name not in known:
            raise unknown(f"flag of {family}", name, known)
    size = _whole(flags, "image_size", 1, LARGEST)
    if family == FAMILIES[0] and found["resampling"]:
        raise UserError("blocks that resample are guided-diffusion's, and the family says improved-diffusion")
    found = found | {"attention": [size >> level for level in found["attending"]]}
    _agree(flags, found)
    given = DEFAULTS | {"rescale_timesteps": RESCALED[family]} | flags
    for name in ("rescale_timesteps", "predict_xstart", "use_new_attention_order"):
        if not isinstance(given[name], bool):
            raise UserError(f"the flag {name} must be true or false, not {given[name]!r:.40}")
    steps, schedule = _whole(given, "diffusion_steps", 2, 10**6), given["noise_schedule"]
    if schedule not in ("linear", "cosine"):
        raise unknown("noise_schedule", schedule, ("linear", "cosine"))
    every = [round(found["width"] * m) for m in found["multipliers"]]
    widths = {every[level] for level in (*found["attending"], -1)}
    net = {name: found[name] for name in ("in_channels", "out_channels", "width", "multipliers", "blocks", "attention")}
    net |= {name: found[name] for name in ("labels", "embedding", "adaptive")}
    net |= {"size": size, "adm": True, "convolved": not found["resampling"], "min_group": 1} | _heads(given, widths)
    net |= {"dropout": number("the flag dropout", given["dropout"], least=0, below=1)}
    betas = {"schedule": schedule, "steps": steps}
    unit = 1000 / steps if given["rescale_timesteps"] else 1.0
    options = {"betas": betas, "unit": unit, "predicts": "sample" if given["predict_xstart"] else "epsilon"}
    low, high = discrete_levels(**betas)[[0, -1]].tolist()
    card = {"architecture": "preconditioned", "sigma_min": low, "sigma_max": high, "data_range": [-1.0, 1.0]}
    card |= {"family": family} | ({"start": START} if high > START else {})
    return {"kind": "discrete", "options": options, "net": net}, card


def _whole(flags: dict[str, Any], name: str, least: int, most: int) -> int:
    check_whole(f"the flag {name}", flags.get(name), least, most)
    return flags[name]


def _agree(flags: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UserError for a flag that says something else than the file."""
    if found["out_channels"] not in (found["in_channels"], 2 * found["in_channels"]) or found["in_channels"] > 4:
        raise UserError(
            f"its network makes {found['out_channels']} channels of {found['in_channels']}: upsamplers are not read"
        )
    for flag in ("learn_sigma", "class_cond", "use_scale_shift_norm", "resblock_updown"):
        switch(f"the flag {flag}", flags.get(flag, False))
    if flags.get("channel_mult"):
        said = (
            flags["channel_mult"] if isinstance(flags["channel_mult"], list) else str(flags["channel_mult"]).split(",")
        )
        if [str(m) for m in said] != [f"{m:g}" for m in found["multipliers"]]:
            raise UserError(
                f"the flag channel_mult says {flags['channel_mult']!r:.60}, its tensors {found['multipliers']}"
            )
    if "attention_resolutions" in flags:
        _check_attention(flags, found)
    for flag, name in TOLD.items():
        said = flags.get(flag, found[name])
        alone = flag == "resblock_updown" and len(found["multipliers"]) == 1  # nothing is resampled
        if flag != "attention_resolutions" and said != found[name] and not alone:
            raise UserError(f"the flag {flag} says {flags[flag]!r:.60}, its tensors say {found[name]!r:.60}")


def _check_attention(flags: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UserError for sizes that are attended to in other levels than the tensors say.

    Only with the size of the images do the sizes name levels: either flag may be the wrong one.
    """
    size, said = flags["image_size"], _sizes(flags["attention_resolutions"])

    def levels(size: int) -> list[int]:
        return [level for level in range(len(found["multipliers"])) if size >> level in said]

    attending = found["attending"]
    if levels(size) == attending:
        return
    other = max(said, default=0) << min(attending, default=0)
    fits = f"image_size {other} or " if 0 < other <= LARGEST and levels(other) == attending else ""
    at = ",".join(str(size >> level) for level in attending) or "''"
    raise UserError(
        f"the flags image_size {size} and attention_resolutions {flags['attention_resolutions']!r:.60} together say "
        f"attention in the levels {levels(size)}, its tensors {attending}: {fits}attention_resolutions {at} would fit"
    )


def _sizes(text: Any) -> list[int]:
    """Return the resolutions that ``attention_resolutions`` names, such as 32,16,8."""
    text = ",".join(map(str, text)) if isinstance(text, list) else text
    parts = str(text).replace(" ", "").split(",") if text not in ("", None) else []
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise UserError(f"the flag attention_resolutions must name sizes such as 32,16,8, not {text!r:.60}")
    return [int(part) for part in parts]


def _heads(given: dict[str, Any], widths: Iterable[int]) -> dict[str, Any]:
    """Return how attention has its heads: by their channels, or by their number, which may differ on the way up."""
    for name, least in (("num_heads", 1), ("num_heads_upsample", -1), ("num_head_channels", -1)):
        _whole(given, name, least, 2**16)
    channels = given["num_head_channels"]
    if channels == 0:
        raise UserError("the flag num_head_channels must be -1 or a whole number from 1, not 0")
    if channels > 0:
        for width in widths:
            if width % channels:
                raise UserError(
                    f"{width} channels cannot be attended to by heads of {channels}, as num_head_channels says"
                )
        return {"head_channels": channels}
    up = given["num_heads_upsample"]
    return {"heads": given["num_heads"], "up_heads": max(up, 0)}


# ---- names -----------------------------------------------------------------------------------------------------------


def entries(net: UNet, new_order: bool = False) -> Iterator[Entry]:
    """Yield the tensors of a file.

    ``new_order``: whether queries, keys and values are split before the heads are, as ``use_new_attention_order`` says.
    """
    for theirs, own in (("time_embed.0", "embed.first"), ("time_embed.2", "embed.second")):
        yield from pair(theirs, own)
    if net.embed.label is not None:
        yield Entry("label_emb.weight", "embed.label.weight", TRANSPOSED)
    yield from pair("input_blocks.0.0", "stem")
    place = itertools.count(1)
    for i, level in enumerate(net.down):
        if level.resample is not None:
            yield from _resample(f"input_blocks.{next(place)}.0", f"down.{i}.resample", level.resample, "op", new_order)
        for k, block in enumerate(level.blocks):
            yield from _block(f"input_blocks.{next(place)}", f"down.{i}.blocks.{k}", block, new_order)
    yield from _layers("middle_block.0", "middle.0", net.middle[0])
    yield from _attention("middle_block.1", "middle.0.attention", net.middle[0], new_order)
    yield from _layers("middle_block.2", "middle.1", net.middle[1])
    place, here = itertools.count(), -1
    for i, level in enumerate(net.up):
        if level.resample is not None:  # in the file it ends the level before, after that one's last block
            name = f"output_blocks.{here}.{1 if net.up[i - 1].blocks[-1].attention is None else 2}"
            yield from _resample(name, f"up.{i}.resample", level.resample, "conv", new_order)
        for k, block in enumerate(level.blocks):
            here = next(place)
            yield from _block(f"output_blocks.{here}", f"up.{i}.blocks.{k}", block, new_order)
    yield from pair("out.0", f"up.{len(net.up) - 1}.out.0")
    yield from pair("out.2", f"up.{len(net.up) - 1}.out.2")


def _resample(name: str, own: str, part: Any, layer: str, new_order: bool) -> Iterator[Entry]:
    yield from _layers(name, own, part) if isinstance(part, Block) else pair(f"{name}.{layer}", own)


def _block(name: str, own: str, block: Block, new_order: bool) -> Iterator[Entry]:
    yield from _layers(f"{name}.0", own, block)
    if block.attention is not None:
        yield from _attention(f"{name}.1", f"{own}.attention", block, new_order)


def _layers(name: str, own: str, block: Block) -> Iterator[Entry]:
    layers = {"in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1"}
    for theirs, ours in (layers | {"out_layers.3": "conv1"}).items():
        yield from pair(f"{name}.{theirs}", f"{own}.{ours}")
    if hasattr(block.skip, "weight"):
        yield from pair(f"{name}.skip_connection", f"{own}.skip")


def _attention(name: str, own: str, block: Block, new_order: bool) -> Iterator[Entry]:
    heads = 1 if new_order else block.attention.heads
    yield from pair(f"{name}.norm", f"{own}.norm")
    yield Entry(f"{name}.qkv.weight", f"{own}.qkv.weight", by_head(heads, CONV1D))
    yield Entry(f"{name}.qkv.bias", f"{own}.qkv.bias", by_head(heads, SAME))
    yield from pair(f"{name}.proj_out", f"{own}.proj", CONV1D)
