"""Which noise-level classifier serves a model: that of the network with the same weights, or the one of a named file.

What a model or its file is called has no part in it: the same weights have the same images under any name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dmcmc_core import checkpoints, files
from dmcmc_core.checkpoints import published, read_card
from dmcmc_core.checkpoints.catalogue import NETS
from dmcmc_core.checkpoints.noise_level_classifier import ENDING, place_of
from dmcmc_core.denoiser import Denoiser, Wrapper
from dmcmc_core.errors import Absent, UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import Conditioned
from dmcmc_core.runs.levels import levels_of
from dmcmc_core.runs.model import device_of


class Classifier(NamedTuple):
    """A network (B, *shape) -> (B, L) logits, the level (L,) of each, and the SHA-256 of the file that it is from."""

    net: Any
    levels: Tensor
    sha256: str


def is_file(posterior: Any) -> bool:
    """Tell whether a posterior is asked for by the file of a classifier."""
    return isinstance(posterior, str) and Path(posterior).suffix in (".safetensors", ".pth")


def load(model: Denoiser, file: str | None = None) -> Classifier:
    """Load the classifier of a model, or that of a file, over those of its levels that the model is asked at.

    Its posterior is then that of a uniform prior over these alone.

    Raises:
        Absent: where none is known of this model's weights, or its file is not here.
        UserError: for a file that is damaged, and for a classifier of images or levels unlike the model's.
    """
    path = place_of(served(model)) if file is None else Path(file)
    network, ends = _network(model), levels_of(model)
    net, levels, card = checkpoints.load_noise_level(path, device=str(device_of(model)), like=network)
    low, high = ends["sigma_min"], ends["sigma_max"]
    if card["sigma_min"] > 1.001 * low or card["sigma_max"] < 0.999 * high:
        raise UserError(
            f"{path} tells noise levels from {card['sigma_min']:g} to {card['sigma_max']:g} apart and the model is "
            f"asked at {low:g} to {high:g}: keep within them by sigma_min and sigma_max, or choose another posterior"
        )
    kept = (levels >= low / 1.001) & (levels <= high * 1.001)
    if not kept.all():
        whole, levels = net, levels[kept]

        def net(x: Tensor) -> Tensor:
            return whole(x)[:, kept]

    return Classifier(net, levels, files.sha256(path))


def served(model: Denoiser) -> str:
    """Return which of the networks with a classifier a model is, told by its weights alone.

    Raises:
        Absent: where it is none of them.
    """
    network = _network(model)
    with suppress(UserError):  # without weights, nothing tells
        known = fingerprint(network)
        for name, file in _networks(network):
            if file.is_file() and _weights(file, file.stat().st_mtime_ns) == known:
                return name
    raise Absent(
        "posterior='classifier' needs a trained one: train it (train noise-level) and give posterior the path of its "
        "file, or choose posterior='residual', which needs no training"
    )


def _network(model: Denoiser) -> Denoiser:
    """Return the network inside: gains, levels and counting change nothing of p(sigma | x), a class does."""
    while isinstance(model, Wrapper) and not isinstance(model, Conditioned):
        model = model.denoiser
    return model


def _networks(like: Denoiser) -> Iterator[tuple[str, Path]]:
    """Yield the name and file of the networks with a classifier that may be this one, as cards and configs tell."""
    for path in sorted(NETS.glob(f"*{ENDING}")):
        file = NETS / f"{path.name.removesuffix(ENDING)}.safetensors"
        if file.is_file() and read_card(file).get("sigma_max") == like.sigma_max:
            yield file.stem, file
    for name in published.CLASSIFIERS:
        model, data = (published.CONFIGS[name][section] for section in ("model", "data"))
        if data["image_size"] == like.shape[-1] and model.get("sigma_max") in (None, like.sigma_max):
            yield name, files.root() / published.FILES[name]


@functools.lru_cache(maxsize=8)
def _weights(file: Path, _mtime: int) -> str | None:
    """Return the fingerprint of a network's file; None where it cannot be read."""
    with suppress(UserError):
        return fingerprint(checkpoints.load_model(file))
    return None
