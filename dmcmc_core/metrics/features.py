"""Feature extractors: networks that turn images into the rows of numbers that distances are computed of.

Only distances in features of the Inception network of 2015-12-05 may be called FID: :func:`distance_name` says what a
number is called.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dmcmc_core.data import ImageSet, from_uint8, to_uint8
from dmcmc_core.denoiser import BLOCK, apply_in_blocks
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.evaluation_mode import modules_of, to_evaluation
from dmcmc_core.metrics.inception_v3 import inception
from dmcmc_core.metrics.random_features import RandomConv, random_conv
from dmcmc_core.metrics.rows import table
from dmcmc_core.ranges import in_unit_range


class Extractor(NamedTuple):
    """A feature extractor and the name under which its numbers are printed."""

    name: str
    network: Callable[[Tensor], Tensor]
    """Images (B, C, H, W) float32 in [0, 1] -> features (B, d)."""
    weights: str = ""
    """SHA-256 of its weights; empty where nobody knows it: what it computes is then never cached."""
    head: Callable[[Tensor], Tensor] | None = None
    """Features (B, d) -> one number for each class, the largest for the class of the image; None without classes."""


def digits_cnn() -> nn.Module:
    """Load the classifier of digits that ships, up to its features: (B, 1, 8, 8) -> (B, at most 64)."""
    from dmcmc_core.nets.classifiers import load_digits_cnn

    return load_digits_cnn()


def glyphs_cnn() -> nn.Module:
    """Load the classifier of glyphs that ships, up to its features: (B, 3, 32, 32) -> (B, 64)."""
    from dmcmc_core.nets.classifiers import load_glyphs_cnn

    return load_glyphs_cnn()


FEATURES: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "digits-cnn": digits_cnn,
    "glyphs-cnn": glyphs_cnn,
    "random-conv": random_conv,
    "inception": inception,
}
"""Feature extractors by name: a function that makes the network. Only ``inception`` takes a weights file."""


def load_features(name: str, weights: str | Path | None = None, *, check_hash: bool = True, device="cpu") -> Extractor:
    """Load the feature extractor of that name, ready to use on ``device``.

    An Inception network whose file was not checked against the published SHA-256 does not carry the name that prints
    as FID.

    Raises:
        UserError: for an unknown name, or what the network needs and does not find.
    """
    if name not in FEATURES:
        raise unknown("features", name, FEATURES)
    if name != "inception":
        network = FEATURES[name]()
    else:
        network = inception(weights, check_hash=check_hash)
        name = name if check_hash else "inception with unchecked weights"
    weights = weights_sha256(network if isinstance(network, nn.Module) else RandomConv(3))
    if isinstance(network, nn.Module):
        network = network.eval().to(device)
    return Extractor(name, network, weights, getattr(network, "last", None))


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors, with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def distance_name(features: str) -> str:
    """Name the Fréchet distance in these features: FID for ``inception`` alone."""
    return "FID" if features == "inception" else f"Fréchet distance ({features} features)"


def extract(images: Tensor | ImageSet, extractor: Extractor, *, device="cpu", block: int = BLOCK) -> Tensor:
    """Compute features (n, d) of images (n, C, H, W) in [0, 1], on ``device`` in padded blocks, and return them on it.

    Raises:
        UserError: as :func:`extract_parts`, whose parts are put together in memory.
    """
    features, done = None, 0
    for values in extract_parts(images, extractor, device=device, block=block):
        if features is None:
            features = values.new_empty(len(images), values.shape[1])
        features[done : done + len(values)] = values
        done += len(values)
    return features


@torch.no_grad()
def extract_parts(
    images: Tensor | ImageSet, extractor: Extractor, *, device="cpu", block: int = BLOCK, start: int = 0
) -> Iterator[Tensor]:
    """Yield features of images (n, C, H, W) in [0, 1] from number ``start`` on, (at most 16 blocks, d) at a time.

    Of an :class:`dmcmc_core.data.ImageSet` no more images than that are in memory.

    Images are first rounded to 256 levels, as files hold them, so that images in memory and the same images on disk
    have the same features.

    Raises:
        UserError: for images of the wrong shape or not finite, or features that are not finite.
    """
    if len(images.shape) != 4 or not len(images):
        raise UserError(f"images of shape (n, C, H, W) are needed, at least one, not {tuple(images.shape)}")
    if isinstance(images, ImageSet):
        images = images.in_range(0.0, 1.0)
    elif not images.isfinite().all():
        raise UserError("the images hold values that are not finite")
    else:
        images = in_unit_range(images)
    to_evaluation(modules_of(extractor.network))
    size = block * max(1, min(16, 2**24 // (block * math.prod(images.shape[1:]))))
    for first in range(start, len(images), size):  # the whole set may not fit on the device
        rounded = from_uint8(to_uint8(images[first : first + size])).to(device)
        try:
            values = apply_in_blocks(extractor.network, block, rounded)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError | torch.OutOfMemoryError):
                raise
            needed = getattr(extractor.network, "shape", None)
            reason = f"images of {needed} are needed" if needed else str(error).splitlines()[0]
            raise UserError(
                f"features {extractor.name!r} do not fit images of shape {tuple(images.shape[1:])}: {reason}"
            ) from error
        yield table(values, f"features {extractor.name!r}", first)
