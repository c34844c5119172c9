"""Small classifiers of digits and of glyphs; what stands before the last layer is a feature space of the same name."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.errors import UserError, sentence
from dmcmc_core.nets.shipped import NETS

Kind = TypeVar("Kind", bound="Classifier")
SHIPPED = NETS / "digits-cnn.safetensors"


class Classifier(nn.Module):
    """A classifier whose call gives features: (N, *shape) in [0, 1] -> (N, features).

    ``logits`` and ``classify`` go on from the features to the classes.

    Args:
        shape: (C, S, S) of the images, S a power of 2 and at least 4.
        width: channels of the first convolution, half of those of all others.
        features: number of features.
        dropout: before each of the two linear layers; in training only.
        outputs: number of classes.
    """

    def __init__(self, shape: Sequence[int], width: int, features: int, dropout: float, outputs: int = 10) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.config = {"width": width, "features": features, "dropout": dropout}
        channels, side, _ = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.GELU()]
        channels = width
        while side > 2:
            layers += [nn.Conv2d(channels, 2 * width, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)]
            channels, side = 2 * width, side // 2
        layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * channels, features), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(2 * images - 1)

    def logits(self, images: Tensor) -> Tensor:
        """Return unnormalised log probabilities of the classes, (N, outputs)."""
        return self.last(self(images))

    def classify(self, images: Tensor) -> Tensor:
        """Return the most probable class of each image, (N,) int64."""
        return self.logits(images).argmax(1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of labels (N,)."""
        return F.cross_entropy(self.logits(images), labels)

    def measured(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return what the log of a training has of images held out."""
        accuracy = (self.classify(images) == labels).float().mean().item()
        return {"held_out_loss": float(self.loss(images, labels)), "held_out_accuracy": accuracy}


class DigitsCNN(Classifier):
    """A classifier of 8x8 digits, (1, 8, 8); see :class:`Classifier`."""

    def __init__(self, width: int = 32, features: int = 64, dropout: float = 0.3) -> None:
        super().__init__((1, 8, 8), width, features, dropout)


class GlyphsCNN(Classifier):
    """A classifier of the characters of glyphs, (3, 32, 32), in the order of ``data.CHARACTERS``."""

    def __init__(self, width: int = 16, features: int = 64, dropout: float = 0.3) -> None:
        super().__init__((3, 32, 32), width, features, dropout)


def load_digits_cnn(path: Path = SHIPPED) -> DigitsCNN:
    """Load the shipped classifier of digits in eval mode: its call gives (N, 1, 8, 8) in [0, 1] -> features (N, 64).

    Raises:
        UserError: when the file is missing or is not a whole one of this architecture.
    """
    return load_classifier(DigitsCNN, path)


def load_glyphs_cnn(path: Path = NETS / "glyphs-cnn.safetensors") -> GlyphsCNN:
    """Load the shipped classifier of glyphs in eval mode: its call gives (N, 3, 32, 32) in [0, 1] -> features (N, 64).

    Raises:
        UserError: as :func:`load_digits_cnn`.
    """
    return load_classifier(GlyphsCNN, path)


@functools.cache
def load_classifier(architecture: type[Kind], path: Path) -> Kind:
    """Load a classifier that ships, in eval mode; UserError as :func:`load_digits_cnn`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net = architecture()
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"the {path.stem} features cannot be read from {path}: {sentence(error)}") from error
    return net.eval().requires_grad_(False)


@torch.no_grad()
def classify(images: Tensor) -> Tensor:
    """Return which digit the shipped classifier sees in images (N, 1, 8, 8) in [0, 1], (N,) int64."""
    return load_digits_cnn().classify(images)
