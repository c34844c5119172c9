"""Classifiers of images, whose features distances are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.nets.classifiers import DigitsCNN, GlyphsCNN
from dmcmc_core.training import datasets
from dmcmc_core.training.augmentation import make_augmentation
from dmcmc_core.training.config import FeaturesConfig
from dmcmc_core.training.loop import fit, make_task


def train_features(config: FeaturesConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """Train a classifier of digits, or of 32x32 RGB images, by the cross-entropy over their classes."""
    train_set, test_set = datasets.seen_and_unseen(config)
    augment = make_augmentation(config.augment)

    def loss(net: nn.Module, _: int) -> Tensor:
        index = torch.randint(len(train_set.images), (config.batch,))
        return F.cross_entropy(net.logits(augment(train_set.images[index])[0]), train_set.labels[index])

    def measure(net: nn.Module) -> dict[str, float]:
        logits = net.logits(test_set.images)
        accuracy = float((logits.argmax(1) == test_set.labels).float().mean())
        return {"held_out_loss": float(F.cross_entropy(logits, test_set.labels)), "held_out_accuracy": accuracy}

    architecture = DigitsCNN if config.data == "digits" else GlyphsCNN
    card = {"data_range": [0.0, 1.0], "sigma_min": 0.0, "sigma_max": 0.0}
    task = make_task(config, lambda: architecture(**config.net), loss, measure, card)
    return fit("features", config, task, out_dir, progress, track)
