"""Noise-level classifiers: ours by the name of their model or from a file, and the files of the authors of DMCMC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmcmc_core import files
from dmcmc_core.checkpoints import safetensors
from dmcmc_core.checkpoints.catalogue import NETS
from dmcmc_core.checkpoints.weights import check_finite, check_numbers, to_device
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.errors import Absent, UserError
from dmcmc_core.nets.noise_level_classifier import PublishedClassifier
from dmcmc_core.noise_level import log_levels

ENDING = "-noise-level.safetensors"
STRIDES = {32: (2, 2, 2, 2), 256: (4, 4, 4, 2)}
"""Pixels of a side -> strides of the published classifier."""


def load_noise_level(
    name_or_path: str | Path, device: str = "cpu", like: Denoiser | None = None
) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Load a noise-level classifier by the name of its model (``digits``), from a safetensors file, or the authors'.

    Args:
        name_or_path: the name of the model, or the path of a file.
        device: where to compute.
        like: the model that it serves, whose images it has to fit and whose noise levels a file of the authors
            (``.pth``) does not tell; that file is also found by the name of a published model.

    Returns:
        The network (B, *shape) -> (B, 1000) logits in eval mode; the levels (1000,) float64, descending from sigma_max;
        and the card.

    Raises:
        UserError: as :func:`dmcmc_core.checkpoints.load_model`; and for one of other images than the model's.
    """
    path = _file_of(str(name_or_path))
    if path.suffix == ".pth":
        net, card = _read_authors(path, like)
        net = net.to(device).eval().requires_grad_(False)
    else:
        net, card = safetensors.read(path)
        net = to_device(net, device)
    if not card["architecture"].startswith("noise-level"):
        raise UserError(f"{path} holds {card['architecture']!r}, which is no noise-level classifier")
    for end in ("sigma_min", "sigma_max"):
        if net.config.get(end, card[end]) != card[end]:
            raise UserError(
                f"{path} says two things of {end}: {card[end]} in its card, {net.config[end]} in its config"
            )
    if like is not None:
        _check_fits(path, net.config["shape"], card["data_range"], like)
    return net, log_levels(card["sigma_max"], card["sigma_min"], net.config["n_levels"]).to(device), card


def _file_of(name: str) -> Path:
    """Return the file of a classifier by the name of its model, shipped or published, or by its path."""
    from dmcmc_core.checkpoints import families, published

    if name in published.CLASSIFIERS or (os.sep not in name and os.path.lexists(NETS / f"{name}{ENDING}")):
        return place_of(name)
    known = [p.name.removesuffix(ENDING) for p in NETS.glob(f"*{ENDING}")]
    return families.file_of(name, known, "noise-level classifier")


def place_of(name: str) -> Path:
    """Return the file of the classifier of a network that ships or is published.

    Raises:
        Absent: where nothing is there; UserError for what is no file, as a link to nowhere.
    """
    from dmcmc_core.checkpoints import published

    path = files.root() / published.CLASSIFIERS[name] if name in published.CLASSIFIERS else NETS / f"{name}{ENDING}"
    if not os.path.lexists(path):
        origin = published.AUTHORS
        raise Absent(f"the noise-level classifier of {name} is not here: it goes to {path}, comes from {origin}")
    if not path.is_file():
        raise UserError(f"{path}, the noise-level classifier of {name}, is no file: put the file there")
    return path


def _check_fits(path: Path, shape: Any, data_range: Any, like: Denoiser) -> None:
    """Raise UserError for a classifier of images of another shape or range than the model's."""
    of_like = getattr(like, "data_range", data_range)
    for what, own, other in (("shape", shape, like.shape), ("range", data_range, of_like)):
        if tuple(own) != tuple(other):
            raise UserError(f"{path} is for images of {what} {tuple(own)}, the model's are of {what} {tuple(other)}")


def _read_authors(path: Path, like: Denoiser | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a file of the authors: ``epoch``, ``opt`` and ``net``, ten tensors in the layers' order."""
    from dmcmc_core.checkpoints.torch_files import TorchFile

    strides = STRIDES.get(like.shape[-1] if like is not None else None)
    if strides is None:
        raise UserError(
            f"{path} does not tell for images of which size it is: give the model that it serves, of 32 or 256 pixels"
        )
    file = TorchFile(path)
    content = file.content
    found = content.get("net") if isinstance(content, dict) else None
    net = PublishedClassifier(like.shape, strides=strides)
    own = net.state_dict()
    tensors = list(found.values()) if isinstance(found, dict) else []
    if [getattr(t, "shape", None) for t in tensors] != [t.shape for t in own.values()]:
        raise UserError(f"{path} is not a noise-level classifier of DMCMC: it needs {len(own)} tensors under 'net'")
    for key, name, tensor in zip(own, found, tensors, strict=True):
        tensor = file.numbers(tensor)
        check_numbers(tensor, str(name), path)
        own[key].copy_(tensor)
        check_finite(own[key], str(name), path)
    card = {"architecture": "noise-level-published", "sigma_min": like.sigma_min, "sigma_max": like.sigma_max}
    card |= {"data_range": (0.0, 1.0)}
    return net, card | {"name": path.stem, "epoch": content.get("epoch")}
