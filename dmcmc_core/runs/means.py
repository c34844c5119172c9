"""The mean that noise is centred on, of a model that knows none: a number, or that of images, its own among them."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import files, integrators, schedules
from dmcmc_core.data import ImageSet, open_images
from dmcmc_core.denoiser import Denoiser, Wrapper
from dmcmc_core.errors import LOG, UserError, is_number, number
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import of_images
from dmcmc_core.starts import prior
from dmcmc_core.streams import Streams

OWN = "samples"
"""The name of a mean that comes from a model's own images."""
IMAGES, LEVELS, SEED = 64, 50, -4
"""How many those are, their noise levels, and their seed, which no run has."""
AT_ONCE = 512
KNOWN = {"cifar10": (0.4914, 0.4822, 0.4465), "imagenet": (0.485, 0.456, 0.406)}
"""Means of the channels of published data, in [0, 1], as classifiers are normalised by."""


class Centred(Wrapper):
    """A denoiser whose data have another mean than it knows, or one that it does not know; its answers stay.

    Args:
        mean: (*shape,), in units of the data.
    """

    def __init__(self, denoiser: Denoiser, mean: Tensor) -> None:
        super().__init__(denoiser)
        self.mean = mean

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the denoiser, and the hash of the mean where it is not its own."""
        own, digest = getattr(self.denoiser, "mean", None), hashlib.sha256(self.mean.cpu().numpy().tobytes())
        return (self.denoiser,), () if own is not None and torch.equal(own, self.mean) else (digest.hexdigest(),)

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return D(x, sigma) of the denoiser inside."""
        return self.denoiser(x, sigma, *labels)


def centred(model: Denoiser, mean: Any, device: torch.device) -> Centred:
    """Return the model with the mean of a setting.

    Args:
        mean: a number within the data range, or one for each channel; a name of :data:`KNOWN`; ``samples``; or what
            :func:`dmcmc_core.data.open_images` takes.

    Raises:
        UserError: for another one, and images that are not there or of another shape.
    """
    low, high = model.data_range
    if isinstance(mean, str) and mean in KNOWN:
        mean = [low + (high - low) * channel for channel in KNOWN[mean]]
    if is_number(mean):
        found = torch.full(model.shape, float(number("mean", mean, least=low, most=high)))
    elif isinstance(mean, list | tuple) and len(mean) > 0:
        found = _of_channels(mean, model)
    elif isinstance(mean, str) and mean == OWN:
        found = _of_samples(model, device)
    elif isinstance(mean, str | Path) and str(mean):
        found = _of_images(open_images(mean), str(mean), model)
    else:
        raise UserError(
            f"mean must be a number, one for each channel, {' or '.join(KNOWN)}, the name of a reference, a file or "
            f"folder of images, or {OWN}, not {' '.join(repr(mean).split()):.60}"
        )
    return Centred(model, found.to(device))


def _of_channels(values: Sequence[Any], model: Denoiser) -> Tensor:
    """Return the image (*shape,) whose channels have these values."""
    low, high = model.data_range
    if len(values) != model.shape[0]:
        raise UserError(f"mean has {len(values)} values, and an image of the model {model.shape[0]} channels")
    channels = torch.tensor([float(number("mean", value, least=low, most=high)) for value in values])
    return channels.reshape(-1, *[1] * (len(model.shape) - 1)).expand(model.shape).clone()


def _of_images(images: Tensor | ImageSet, name: str, model: Denoiser) -> Tensor:
    """Return the mean of images, over the model's data range, (*shape,) float32."""
    if tuple(images.shape[1:]) != tuple(model.shape):
        raise UserError(
            f"mean={name}: its images have shape {tuple(images.shape[1:])}, those of the model {tuple(model.shape)}"
        )
    total = sum(block.double().sum(0) for block in images.split(AT_ONCE))
    low, high = model.data_range
    return (low + (high - low) * total / len(images)).float()


def _of_samples(model: Denoiser, device: torch.device) -> Tensor:
    """Return the mean of the model's own images, made once and kept, (*shape,) float32.

    They are ancestral samples, which forget that they began around 0.
    """
    path = files.root() / "exp" / "cache" / "means" / f"{fingerprint(model)[:16]}-{IMAGES}-{LEVELS}.npy"
    if not path.is_file():
        rows = getattr(model, "rows_per_image", 1) * IMAGES * LEVELS
        LOG.warning(
            f"mean={OWN}: {IMAGES} images of the model are made once for their mean, {rows:,} evaluations, and it is "
            f"kept in {path}"
        )
        noise = Streams(SEED, "image", range(IMAGES))
        grid = schedules.karras(LEVELS, model.sigma_max, model.sigma_min)
        x = prior(model, noise, IMAGES, "zero", device)
        x = integrators.ancestral(of_images(model, noise), x, grid, noise=noise)
        low, high = model.data_range
        mean = x.double().clamp(low, high).mean(0).float().cpu()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as part, open(part, "wb") as file:
            np.save(file, mean.numpy())
    return torch.from_numpy(np.load(path))  # as it is kept, whichever process was last


def say_start(model: Any, plan: Any, asked: dict[str, Any]) -> None:
    """Say once, if at all, where a run starts around 0 as nobody told a mean, and 0 is not the middle of its data."""
    low, high = model.data_range
    known = getattr(model, "mean", None) is not None
    if getattr(plan, "start", None) == "zero" and "start" not in asked and not known and not math.isclose(-low, high):
        _say("starts around 0: no mean is known (mean=NUMBER, cifar10, imagenet, images or samples tells one)")


@functools.cache
def _say(sentence: str) -> None:
    """Say a sentence once in a process."""
    LOG.warning(sentence)
