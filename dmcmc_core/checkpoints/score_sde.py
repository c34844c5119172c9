"""Files of score_sde (Song et al. 2021): a dictionary of ``model``, ``ema`` and ``step``, a configuration beside it.

The weights that sample are the averaged ones, a list in the order of the trainable parameters. Names of tensors are
translated into those of :class:`dmcmc_core.nets.song.UNet`, one entry for each; nothing of the file is executed.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core.checkpoints.entries import MATRIX, Entry, check, fill, fits, pair
from dmcmc_core.checkpoints.torch_files import TorchFile, whole
from dmcmc_core.checkpoints.weights import check_numbers, without_memory, without_prefix
from dmcmc_core.errors import UserError, check_whole, is_number, sentence, switch
from dmcmc_core.nets.blocks import Block, FilteredDown, Resample
from dmcmc_core.nets.scalings import ScaledUNet, ddpm_levels, vp_sigma
from dmcmc_core.nets.song import UNet

EARLIEST = 1e-3
"""Time at which the published samplers of the variance-preserving networks stop."""


def entries(net: UNet) -> Iterator[Entry]:
    """Yield the tensors of a file in its order, but for the buffer ``sigmas``, without a prefix."""
    number = (f"all_modules.{i}" for i in count())
    if net.config["waves"] == "fourier":
        yield Entry(f"{next(number)}.W", "embed.waves.frequencies", trained=False)
    for own in ("embed.first", "embed.second", "stem"):
        yield from _layer(number, own)
    for i, level in enumerate(net.down):
        yield from _resample(number, f"down.{i}.resample", level.resample, net)
        if level.pyramid is not None:
            inside = ".Conv2d_0" if isinstance(level.pyramid, FilteredDown) else ".Conv_0"
            yield from _layer(number, f"down.{i}.pyramid", inside)
        for k, part in enumerate(level.blocks):
            yield from _block(number, f"down.{i}.blocks.{k}", part, net)
    for k, part in enumerate(net.middle):
        yield from _block(number, f"middle.{k}", part, net)
    for i, level in enumerate(net.up):
        yield from _resample(number, f"up.{i}.resample", level.resample, net)
        for k, part in enumerate(level.blocks):
            yield from _block(number, f"up.{i}.blocks.{k}", part, net)
        if level.out is not None:
            yield from _layer(number, f"up.{i}.out.0")
            yield from _layer(number, f"up.{i}.out.2")


def _layer(number: Iterator[str], own: str, inside: str = "") -> Iterator[Entry]:
    yield from pair(next(number) + inside, own)


def _matrix(name: str, own: str, part: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.W", f"{own}.weight", MATRIX, part)
    yield Entry(f"{name}.b", f"{own}.bias", part=part)


def _resample(number: Iterator[str], own: str, part: nn.Module | None, net: UNet) -> Iterator[Entry]:
    if isinstance(part, Block):
        yield from _block(number, own, part, net)
    elif isinstance(part, Resample):
        next(number)  # a module without tensors
    elif part is not None:
        yield from _layer(number, own, ".Conv_0")


def _block(number: Iterator[str], own: str, part: Block, net: UNet) -> Iterator[Entry]:
    """Yield the tensors of a block, and of the attention after it, which has a number of its own."""
    name = next(number)
    pairs = [("GroupNorm_0", "norm0"), ("Conv_0", "conv0"), ("Dense_0", "affine"), ("GroupNorm_1", "norm1")]
    for theirs, ours in [*pairs, ("Conv_1", "conv1")]:
        yield from pair(f"{name}.{theirs}", f"{own}.{ours}")
    if isinstance(part.skip, nn.Conv2d) and (net.config["convolved"] or net.config["plain"]):
        yield from _matrix(f"{name}.NIN_0", f"{own}.skip")
    elif isinstance(part.skip, nn.Conv2d):
        yield from pair(f"{name}.Conv_2", f"{own}.skip")
    if part.attention is not None:
        name, own = next(number), f"{own}.attention"
        yield from pair(f"{name}.GroupNorm_0", f"{own}.norm")
        for k in range(3):
            yield from _matrix(f"{name}.NIN_{k}", f"{own}.qkv", k)
        yield from _matrix(f"{name}.NIN_3", f"{own}.proj")


def entries_of(net: UNet) -> tuple[list[Entry], dict[str, Tensor]]:
    """Return the entries of a network, and its own tensors by name."""
    return list(entries(net)), net.state_dict()


def is_one(content: Any) -> bool:
    """Tell whether the content of a PyTorch file is a checkpoint of score_sde."""
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in ("model", "ema")):
        return False
    return "shadow_params" in content["ema"] or any("all_modules." in str(name) for name in content["model"])


def read(file: TorchFile, config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the averaged network of a file, and its card.

    Raises:
        UserError: for a file that is damaged or does not fit its configuration, with the first tensor that does not.
    """
    with without_memory():  # a configuration that makes no network should not wait for the file
        told = build(config)[0]
    averaged = file.content["ema"].get("shadow_params")
    if not isinstance(averaged, list) or not whole(averaged):
        raise UserError(
            f"{file.path} is not a checkpoint of score_sde: its 'ema' holds no list of tensors 'shadow_params'"
        )
    check_levels(file, config, told)
    net, card = filled(lambda: build(config), file.content["model"], averaged, file)
    step = file.content.get("step")
    return net, card | ({"step": int(step)} if isinstance(step, int) else {})


def check_levels(file: TorchFile, config: dict[str, Any], net: ScaledUNet) -> None:
    """Raise UserError where the noise levels of a variance-exploding configuration are not those in the file.

    A network of ``fourier`` waves takes sigma itself: the number of its levels says nothing, published ones differ in
    it. Another takes the index of a level, which every one of them decides. Other networks, and a buffer that does not
    rise or fall, hold levels of nothing.

    ``net``: what ``config`` makes.
    """
    found, path = file.numbers(without_prefix(file.content["model"]).get("sigmas")), file.path
    if net.kind not in ("ve", "ve_index") or not isinstance(found, Tensor) or found.ndim != 1 or len(found) < 2:
        return
    check_numbers(found, "sigmas", path)
    found = found.double().sort(descending=True)[0]
    if not (found.diff() < 0).all() or found[-1] <= 0:
        return
    model = config["model"]
    low, high, scales = model.get("sigma_min", 0.01), model.get("sigma_max", 50.0), model.get("num_scales", 1000)
    wanted = torch.tensor(net.options["levels"] if net.kind == "ve_index" else [high, low], dtype=torch.float64)
    same = found if net.kind == "ve_index" else found[[0, -1]]
    if len(same) != len(wanted) or not torch.allclose(same, wanted, rtol=1e-3, atol=0):
        raise UserError(
            f"{path} does not fit its configuration: its tensor 'sigmas' is {len(found)} levels from {found[0]:g} to "
            f"{found[-1]:g}, the configuration has {scales} from {high:g} to {low:g}"
        )


def filled(
    make: Callable[[], tuple[ScaledUNet, dict[str, Any]]],
    state: dict[Any, Any],
    averaged: list[Any] | None,
    file: TorchFile,
) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network and the card that ``make`` makes, with the tensors of a file.

    Args:
        state: the file's tensors by name.
        averaged: its averaged tensors in the order of those that are trained; None: ``state`` is taken.

    Raises:
        UserError: with the first tensor that does not fit, or is unknown.
    """
    with without_memory():
        made, card = make()
        wanted, own = entries_of(made.net)
    state = without_prefix(state)
    state.pop("sigmas", None)
    check(wanted, own, state, file.path)
    if averaged is not None:
        trained = [entry for entry in wanted if entry.trained]
        if len(averaged) != len(trained):
            raise UserError(
                f"{file.path} does not fit its configuration: it averages {len(averaged)} tensors, the network has "
                f"{len(trained)} that are trained"
            )
        for entry, tensor in zip(trained, averaged, strict=True):
            fits(tensor, entry, own, file.path)
            state[entry.name] = tensor
    return fill(lambda: make()[0], wanted, state, file.path, file.numbers, "net."), card


def build(config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network that a configuration describes, its weights untrained, and the card of its checkpoint.

    Args:
        config: the sections ``model``, ``data`` and ``training`` of a published configuration.

    Raises:
        UserError: for a section or field that is missing, or an option that no published configuration uses.
    """
    with config_errors():
        return _build(config)


@contextmanager
def config_errors() -> Iterator[None]:
    """Turn into UserError whatever values of another type or size bring about where a network is made of them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config: its values do not make a network: {sentence(error)}") from error


def _build(config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    model, data, training = (section(config, name) for name in ("model", "data", "training"))
    kind = {"vesde": "ve", "vpsde": "vp", "subvpsde": "sub_vp"}
    net, sde = network(config), choice(training, "sde", kind)
    by_sigma, centred = truth(model, "scale_by_sigma", "model", False), truth(data, "centered", "data")
    continuous = truth(training, "continuous", "training", True)
    low, high = (quantity(model, name, default) for name, default in (("sigma_min", 0.01), ("sigma_max", 50.0)))
    scales = model.get("num_scales", 1000)
    check_whole("num_scales", scales, 2, 10**6)
    if sde == "ve":
        levels = low, high
        options: dict[str, Any] = {"by_sigma": by_sigma}
        if net["waves"] == "positional":
            spaced = torch.linspace(*(math.log(s) for s in reversed(levels)), scales, dtype=torch.float64, device="cpu")
            sde, options = "ve_index", options | {"levels": spaced.exp().tolist()}
    else:
        if by_sigma:
            raise UserError("config: scale_by_sigma belongs to variance-exploding networks, not to " + training["sde"])
        betas = {"beta_min": quantity(model, "beta_min", 0.1), "beta_max": quantity(model, "beta_max", 20.0)}
        levels = tuple(vp_sigma(t, *betas.values(), sub=sde == "sub_vp") for t in (EARLIEST, 1.0))
        options = betas | ({"log": True} if net["waves"] == "fourier" else {})
        if sde == "vp" and not continuous:
            if net["waves"] == "fourier":
                raise UserError("config: embedding_type 'fourier' takes the log of times, the first discrete one is 0")
            sde, options = "ddpm", betas | {"scales": scales}
            levels = tuple(ddpm_levels(**options)[[0, -1]].tolist())
    scaled = ScaledUNet(sde, options, net, centre=not centred)
    card = {"architecture": "preconditioned", "sigma_min": levels[0], "sigma_max": levels[1]}
    return scaled, card | {"data_range": [-1.0, 1.0] if centred else [0.0, 1.0], "data": data.get("dataset")}


def network(config: dict[str, Any], parts: int = 1) -> dict[str, Any]:
    """Return the arguments of :class:`dmcmc_core.nets.song.UNet` for a configuration.

    Args:
        config: its sections ``model`` and ``data``.
        parts: channels in and out for each of the images.

    Raises:
        UserError: as :func:`build`.
    """
    model, data = (section(config, name) for name in ("model", "data"))
    ddpm = choice(model, "name", {"ncsnpp": False, "ddpm": True})
    fixed = {"nonlinearity": "swish", "normalization": "GroupNorm", "conditional": True, "resamp_with_conv": True}
    for name, value in (fixed | ({} if ddpm else {"progressive_combine": "sum"})).items():
        choice(model, name, {value: value}, value)
    convolved = ddpm or choice(model, "resblock_type", {"biggan": False, "ddpm": True})
    fir, rescale = truth(model, "fir", "model", False), truth(model, "skip_rescale", "model", True)
    fir = fir and not ddpm
    if fir and convolved:
        raise UserError("config: fir with resblock_type 'ddpm' is not known here: 'biggan' is what was published")
    waves = "positional" if ddpm else choice(model, "embedding_type", {k: k for k in ("positional", "fourier")})
    channels = data.get("num_channels", 3) * parts
    net = {
        "size": need(data, "image_size", "data"),
        "in_channels": channels,
        "out_channels": channels,
        "width": need(model, "nf", "model"),
        "multipliers": need(model, "ch_mult", "model"),
        "blocks": need(model, "num_res_blocks", "model"),
        "attention": need(model, "attn_resolutions", "model"),
        "waves": waves,
        "wave_width": (2 if waves == "fourier" else 1) * model["nf"],
        "taps": model.get("fir_kernel", [1, 3, 3, 1]) if fir else [1, 1],
        "rescale": rescale and not ddpm,
        "convolved": convolved,
        "min_group": 1 if ddpm else 4,
        "dropout": model.get("dropout", 0.0),
    }
    if not ddpm:
        encoders = {"none": "standard", "input_skip": "skip", "residual": "residual"}
        net["encoder"] = choice(model, "progressive_input", encoders)
        net["decoder"] = choice(model, "progressive", {"none": "standard", "output_skip": "skip"})
        net["fourier_scale"] = quantity(model, "fourier_scale", 16)
        net["strided"] = not fir
    return net


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a configuration; UserError where there is none."""
    if not isinstance(config.get(name), dict):
        raise UserError(f"config lacks the section {name!r} of a configuration of score_sde")
    return config[name]


def need(section: dict[str, Any], name: str, of: str) -> Any:
    """Return a field of a section; UserError where there is none."""
    if name not in section:
        raise UserError(f"config: {of} lacks {name!r}")
    return section[name]


def truth(section: dict[str, Any], name: str, of: str, default: bool | None = None) -> bool:
    """Return a field that is true or false; UserError for text, and where there is none and no ``default``."""
    return switch(f"config: {name} in {of}", need(section, name, of) if default is None else section.get(name, default))


def quantity(section: dict[str, Any], name: str, default: float) -> float:
    """Return a field of ``model`` that is a number; UserError for text."""
    value = section.get(name, default)
    if not is_number(value):
        raise UserError(f"config: {name} in model must be a number, not {value!r:.40}")
    return value


def choice(section: dict[str, Any], name: str, known: dict[Any, Any], default: Any = None) -> Any:
    """Return what ``known`` holds for a field of a section; UserError for another value of the field."""
    value = section.get(name, default)
    if not isinstance(value, str | bool) or value not in known:
        raise UserError(f"config: {name} must be {' or '.join(repr(k) for k in known)}, not {reprlib.repr(value)}")
    return known[value]
