"""The class that a classifier which ships sees in an image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dmcmc_core.metrics import extract, load_features

DIGIT = 1, 8, 8


@functools.cache
def _digits() -> Any:
    return load_features("digits-cnn")


@torch.no_grad()
def classes_of(model: str, sets: Sequence[np.ndarray]) -> list[list[int]] | None:
    """Return the class of every image of some sets (k, C, H, W) uint8; None for a model whose classes nobody knows."""
    if not model.startswith("digits") or not len(sets) or sets[0].shape[1:] != DIGIT:
        return None
    extractor = _digits()
    images = torch.from_numpy(np.concatenate(sets)).float() / 255
    labels = extractor.head(extract(images, extractor)).argmax(1)
    return [part.tolist() for part in labels.split([len(one) for one in sets])]
