"""Our own files: safetensors with the model card in the metadata, written and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmcmc_core.checkpoints.card import (
    ENDS,
    EPSILON,
    UNET_2D,
    card_in,
    check_card,
    check_ending,
    given_card,
    unreadable,
)
from dmcmc_core.checkpoints.weights import check_finite, check_numbers, without_memory, without_prefix
from dmcmc_core.errors import UserError, sentence, unknown
from dmcmc_core.files import replacing
from dmcmc_core.nets.classifiers import DigitsCNN, GlyphsCNN
from dmcmc_core.nets.edm2 import MagnitudePreservingNet
from dmcmc_core.nets.glyph_reader import GlyphReader
from dmcmc_core.nets.linear import EpsilonNet, PublishedEpsilonNet
from dmcmc_core.nets.noise_level_classifier import LightClassifier, PublishedClassifier
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.unet import DenoisingUNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": DenoisingUNet,
    "noise-level-published": PublishedClassifier,
    "noise-level-light": LightClassifier,
    "digits-cnn": DigitsCNN,
    "glyphs-cnn": GlyphsCNN,
    "glyphs-attributes": GlyphReader,
    "preconditioned": ScaledUNet,
    "edm2": MagnitudePreservingNet,
    "epsilon": EpsilonNet,
    "epsilon-published": PublishedEpsilonNet,
}
"""Architecture, as the card names it -> the network that its ``config`` makes."""


def save(module: nn.Module, path: str | Path, card: dict[str, Any]) -> None:
    """Write a network and its card; a file of that name is only replaced once the new one is whole.

    Args:
        module: of one of ``ARCHITECTURES``, with a ``config`` that makes it again.
        path: ends in .safetensors.
        card: what is known about it (JSON); ``architecture``, ``config`` and ``parameters`` are added.
    """
    from safetensors.torch import save_file

    name = next((name for name, kind in ARCHITECTURES.items() if type(module) is kind), UNET_2D)
    parameters = sum(p.numel() for p in module.parameters())
    card = {**card, "architecture": name, "config": module.config, "parameters": parameters}
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata={"card": json.dumps(card)})
        part.chmod(0o644)


def read(path: Path, config: str | Path | dict | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a file and its card.

    Args:
        path: of a safetensors file.
        config: the card of a file without one, see :func:`dmcmc_core.checkpoints.load_model`.

    Raises:
        UserError: for a file that is truncated or of another format, a card that is missing or does not make a network,
            and tensors that do not fit it.
    """
    card, tensors = read_tensors(path)
    if card and config is not None:
        raise UserError(f"{path} carries its own card; config is for files without one")
    if not card and config is None:
        raise UserError(
            f"{path} carries no model card; name architecture, sigma_min, sigma_max and data_range by config"
        )
    card = card or given_card(config)
    card.setdefault("name", path.stem)
    ends = ENDS[card.get("architecture") in EPSILON]
    missing = [key for key in ("architecture", "config", *ends, "data_range") if key not in card]
    if missing:
        raise UserError(f"the model card of {path} lacks {', '.join(missing)}")
    check_card(card, path)
    return _build(card, tensors, path), card


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the card (empty if there is none) and the tensors of a safetensors file; UserError for a broken one."""
    from safetensors import safe_open

    check_ending(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = without_prefix({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # whatever a broken file brings about
        raise unreadable(path, error) from error
    return card_in(metadata, path), tensors


def load_weights(net: nn.Module, path: str | Path, partly: bool = False) -> None:
    """Fill a network with the tensors of a safetensors file; UserError where they do not fit it.

    ``partly``: those of another name or shape are left out, and the network keeps its own.
    """
    tensors, own = read_tensors(Path(path))[1], net.state_dict()
    if partly:
        tensors = own | {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    _check(tensors, net.state_dict(), Path(path), type(net).__name__)
    _fill(net, tensors, Path(path))


def _build(card: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Return the network that a card describes, filled."""
    known = ARCHITECTURES | {UNET_2D: _of_diffusers}
    if str(card["architecture"]) not in known:
        raise unknown(f"architecture in the card of {path},", card["architecture"], known)
    make, arguments = known[str(card["architecture"])], card["config"]
    try:
        with without_memory():  # so that a card of another network, however large, takes no memory
            wanted = make(**arguments).state_dict()
    except Exception as error:  # whatever arguments of another type or size bring about
        raise UserError(f"the card of {path} does not make a {card['architecture']!r}: {sentence(error)}") from error
    _check(tensors, wanted, path, card["architecture"])
    net = make(**arguments)
    _fill(net, tensors, path)
    return net


def _of_diffusers(**config: Any) -> nn.Module:
    """Return the network of what was a folder of diffusers."""
    from dmcmc_core.checkpoints import diffusers

    return diffusers.from_recipe(**config)


def _fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    net.load_state_dict(tensors)
    for key, tensor in net.state_dict().items():
        check_finite(tensor, key, path)


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, architecture: str) -> None:
    for key in wanted:
        if key not in found:
            raise UserError(f"{path} is not a {architecture!r} as its card says: tensor {key!r} is missing")
        if found[key].shape != wanted[key].shape:
            raise UserError(
                f"{path} does not fit its architecture {architecture!r}: tensor {key!r} has shape "
                f"{tuple(found[key].shape)}, the network needs {tuple(wanted[key].shape)}"
            )
        if wanted[key].is_floating_point():
            check_numbers(found[key], key, path)
    extra = sorted(found.keys() - wanted.keys())
    if extra:
        raise UserError(f"{path} is not a {architecture!r} as its card says: it holds the unknown tensor {extra[0]!r}")
