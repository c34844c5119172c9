"""Networks by name or from a file: denoisers, and networks of linear diffusions.

Readers of other projects' files are imported where such a file is met, so that what ships loads without them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.checkpoints import mixtures, safetensors
from dmcmc_core.checkpoints.card import EPSILON, SCORE_NETWORKS, check_card, read_card
from dmcmc_core.checkpoints.catalogue import NETS, SHIPPED, epsilon_names, is_epsilon, shipped_epsilon
from dmcmc_core.checkpoints.safetensors import ARCHITECTURES
from dmcmc_core.checkpoints.weights import check_device, to_device
from dmcmc_core.compiled import compiled
from dmcmc_core.data import glyphs32
from dmcmc_core.denoiser import BLOCK, Adapter, Denoiser, InBlocks
from dmcmc_core.errors import LOG, UserError, switch
from dmcmc_core.memory_format import laid_out
from dmcmc_core.nets.linear import EpsilonNet, PublishedEpsilonNet
from dmcmc_core.nets.scalings import NO_CLASS, ScaledUNet, label_rows


def load_model(
    name_or_path: str | Path,
    device: str = "cpu",
    config: str | Path | dict | None = None,
    *,
    compile: bool = False,
    layout: str | None = None,
) -> Denoiser:
    """Load a denoiser by name, such as ``digits``, ``glyphs32-ddpm`` or ``glyphs32-mixture``, or from a file.

    Args:
        name_or_path: a name of ``MODELS``, or the path of a safetensors file written by
            :func:`dmcmc_core.checkpoints.save`, of a checkpoint of score_sde or of score embedding (``.pth``,
            or Flax's without an ending), of a state of improved- or guided-diffusion (``.pt``) or of the PyTorch port
            of DDPM (``.ckpt``), of a pickle of EDM or EDM2 (``.pkl``), or of a folder of diffusers (see
            :func:`dmcmc_core.checkpoints.diffusers.read`). What a file holds decides, not its ending.
        device: where to compute; ``meta`` makes a published network by its name without its file, for its shapes.
        config: for a file that carries none, its configuration: a name of
            :data:`dmcmc_core.checkpoints.published.CONFIGS` or of
            :mod:`dmcmc_core.checkpoints.published_states`, or a dict, a JSON or a YAML file; by default the file of
            the same name that ends in ``.json``, the published one of the file's place (see
            :data:`dmcmc_core.checkpoints.published.FILES`), or the only published one with the file's shapes. For
            a safetensors file without a card the card: ``architecture``, ``config``, ``sigma_min``, ``sigma_max``,
            ``data_range``, and optionally ``name``.
            For a folder of diffusers the configuration of its scheduler, if not the one in it.
        compile: whether torch compiles the network at its first call, see :mod:`dmcmc_core.compiled`.
        layout: ``channels_last``, as networks are laid out by default, ``contiguous``, or ``auto`` for the faster one
            by a short trial, see :mod:`dmcmc_core.memory_format`.

    Returns:
        A denoiser with ``shape``, ``data_range``, ``sigma_min``, ``sigma_max``, ``mean`` (*shape; None where the file
        does not tell), ``card``, ``name``. A network is in eval mode, without gradients for its weights, and evaluated
        in blocks of 64 rows; one with ``classes`` takes ``labels``, and :class:`dmcmc_core.guidance.Conditioned` holds
        it to one of them.

    Raises:
        UserError: for an unknown name, and for a file that is missing, truncated, of another format, or whose tensors
            do not fit the architecture that its card names; for compile or a layout of a model without a network.
    """
    model = _loaded(name_or_path, device, config)
    model = model if layout is None else laid_out(model, layout)
    return compiled(model) if switch("compile", compile) else model


def _loaded(name_or_path: str | Path, device: str, config: str | Path | dict | None) -> Denoiser:
    """Load a model as it is."""
    check_device(device)
    if not isinstance(name_or_path, str | Path):
        raise UserError(
            f"load_model takes a name or a path, not a {type(name_or_path).__name__}: dmcmc_core.denoiser.Adapter "
            "makes a denoiser of a network, and dmcmc_core.sample takes it as it is"
        )
    name = str(name_or_path)
    if name in MODELS:
        if config is not None:
            raise UserError(f"config is for files without a card; the model {name!r} has one")
        return MODELS[name](device)
    from dmcmc_core.checkpoints import diffusers, families, published

    if name in published.FILES and device == "meta":
        net, card = families.build(name)
        return _denoiser(net.eval().requires_grad_(False), card | {"name": name})
    if name in published.FILES:
        name = str(published.place_of(name))
    if Path(name).is_dir():
        net, card = diffusers.read(name, config)
        check_card(card, Path(name))
        return _denoiser(to_device(net, device), card)
    path = shipped_epsilon(name) or families.file_of(name, [*MODELS, *published.FILES], "model")
    foreign = families.is_foreign(path)
    if not foreign:
        _check_score_network(name, read_card(path).get("architecture"))
    net, card = (families if foreign else safetensors).read(path, config)
    if card["architecture"] not in SCORE_NETWORKS:
        raise UserError(f"{name} holds {card['architecture']!r}, which is no score network")
    return _denoiser(to_device(net, device), card)


class Bare(nn.Module):
    """A network without its scalings, as its own project calls it: (x, t) or (x, t, y) -> all that it answers with."""

    def __init__(self, scaled: ScaledUNet) -> None:
        super().__init__()
        self.scaled = scaled

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the answer for x (B, C, H, W), times t (B,) as the network takes them and classes y (B,)."""
        return self.scaled.net(x, t.to(x), label_rows(y, self.scaled.classes, x))


def load_network(path: str | Path, device: str = "cpu", config: str | Path | dict | None = None) -> Bare:
    """Load the bare network of a file, for what its own project does with it; else see :func:`load_model`.

    Raises:
        UserError: as :func:`load_model`, and for a file whose network has no scalings here.
    """
    from dmcmc_core.checkpoints import families

    check_device(device)
    file = families.file_of(str(path), [], "file")
    net, _ = (families if families.is_foreign(file) else safetensors).read(file, config)
    if not isinstance(net, ScaledUNet):
        raise UserError(f"{path} holds a network that takes noise levels itself: load_model loads it")
    return Bare(net).to(device).eval().requires_grad_(False)


def load(name_or_path: str | Path, device: str = "cpu") -> Denoiser | EpsilonNet | PublishedEpsilonNet:
    """Load a denoiser by :func:`load_model`, or the network of a linear diffusion by :func:`load_epsilon`.

    Raises:
        UserError: as :func:`load_model`.
    """
    if str(name_or_path) in MODELS:
        return load_model(name_or_path, device)
    path = shipped_epsilon(str(name_or_path)) or Path(name_or_path)
    ours = path.suffix == ".safetensors" and path.is_file() and path.stat().st_size
    return (load_epsilon if ours and is_epsilon(path) else load_model)(name_or_path, device)


def load_epsilon(
    name_or_path: str | Path, device: str = "cpu", config: str | Path | dict | None = None
) -> EpsilonNet | PublishedEpsilonNet:
    """Load the network of a linear diffusion by name (``digits-cld``, ``digits-bdm``, ``digits-vp``) or from a file.

    Args:
        name_or_path: the name, or the path of a safetensors file or of a checkpoint of Flax.
        device: where to compute.
        config: of a checkpoint of Flax, see :func:`dmcmc_core.checkpoints.flax.build`; else the file beside it.

    Returns:
        (u, t) -> epsilon in eval mode, evaluated in blocks of 64 rows, with ``sde``, ``shape`` (C, H, W) of its images,
        ``state_shape``, ``data_range`` and ``card``.

    Raises:
        UserError: as :func:`load_model`.
    """
    from dmcmc_core.checkpoints import families

    check_device(device)
    name, names = str(name_or_path), epsilon_names()
    if name in names:
        path = NETS / f"{name}.safetensors"
    else:
        path = families.file_of(name, names, "network of a linear diffusion")
    net, card = (families if families.is_flax(path) else safetensors).read(path, config)
    if card["architecture"] not in EPSILON:
        raise UserError(f"{path} holds {card['architecture']!r}, which is no network of a linear diffusion")
    net.card, net.data_range = card, tuple(card["data_range"])
    return to_device(net, device)


def _check_score_network(name: str, architecture: Any) -> None:
    """Raise UserError for a known architecture that is no denoiser; ``name`` is that of its file."""
    if architecture in tuple(ARCHITECTURES) and architecture not in SCORE_NETWORKS:
        why = ": dmcmc_core.checkpoints.load_epsilon takes it" if architecture in EPSILON else ""
        raise UserError(f"{name} holds {architecture!r}, which is no score network{why}")


def _denoiser(net: nn.Module, card: dict[str, Any]) -> Denoiser:
    mean = getattr(net, "mean", None)
    shape = tuple(net.shape if mean is None else mean.shape)
    if "encoder" in card:
        size = " x ".join(map(str, shape))
        LOG.warning(f"{card['name']} makes latents of {card['encoder']}, {size}, and no images: decode what it makes")
    adapter = Adapter(
        net,
        shape=shape,
        data_range=tuple(card["data_range"]),
        sigma_min=card["sigma_min"],
        sigma_max=card["sigma_max"],
        mean=mean,
        classes=getattr(net, "classes", 0),
        unconditional=NO_CLASS if card.get("label_dropout") else None,
    )
    adapter.card, adapter.name, adapter.net = card, card["name"], net
    return InBlocks(adapter, BLOCK)


def _shipped(name: str, device: str) -> Denoiser:
    path = NETS / f"{name}.safetensors"
    if not path.is_file():
        config = shlex.quote(str(path.with_suffix(".yaml")))
        raise UserError(f"the network {name!r} is not in {NETS}: train it with train {SHIPPED[name]} --config {config}")
    net, card = safetensors.read(path)
    return _denoiser(to_device(net, device), card)


def _glyphs32_exact(device: str) -> Denoiser:
    images = glyphs32(4000).images.to(device)
    model = EmpiricalData(images, sigma_min=0.01, sigma_max=50.0)
    model.name = "glyphs32-exact"
    model.card = {"name": model.name, "architecture": "exact", "data": "glyphs32(n=4000, seed=0)"}
    return model


MODELS: dict[str, Callable[[str], Denoiser]] = {
    **{name: partial(_shipped, name) for name in SHIPPED},
    "glyphs32-exact": _glyphs32_exact,
    **{name: partial(mixtures.load, name) for name in mixtures.MIXTURES},
}
"""Name of a model that ships -> what loads it to a device."""
