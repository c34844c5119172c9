"""A small digit classifier; what stands before its last layer is the feature space `digits-cnn`."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core.errors import UserError

SHIPPED = Path(__file__).resolve().parents[2] / "exp" / "nets" / "digits-cnn.safetensors"


class DigitsCNN(nn.Module):
    """(N, 1, 8, 8) in [0, 1] -> (N, features), at most 64 of them; ``logits`` and ``classify`` go on to the digits."""

    def __init__(self, width: int = 32, features: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.config = {"width": width, "features": features, "dropout": dropout}
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * width, features),
            nn.GELU(),
        )
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(2 * images - 1)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 10) unnormalised log probabilities of the digits."""
        return self.last(self(images))

    def classify(self, images: Tensor) -> Tensor:
        """(N,) int64, the most probable digit."""
        return self.logits(images).argmax(1)


@functools.cache
def load_digits_cnn(path: Path = SHIPPED) -> DigitsCNN:
    """The shipped feature extractor, in eval mode: (N, 1, 8, 8) in [0, 1] -> (N, 64).

    Raises:
        UserError: when the file is missing or is not a whole one of this architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net = DigitsCNN()
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"the digits-cnn features cannot be read from {path}: {str(error).splitlines()[0]}") from error
    return net.eval().requires_grad_(False)


@torch.no_grad()
def classify(images: Tensor) -> Tensor:
    """(N,) int64: which digit the shipped classifier sees in images (N, 1, 8, 8) in [0, 1]."""
    return load_digits_cnn().classify(images)
