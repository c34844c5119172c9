"""Classifiers of images, whose features distances are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.nets.classifiers import DigitsCNN, GlyphsCNN
from dmcmc_core.nets.glyph_reader import GlyphReader
from dmcmc_core.training import datasets
from dmcmc_core.training.augmentation import make_augmentation
from dmcmc_core.training.config import FeaturesConfig
from dmcmc_core.training.loop import fit, make_task


def train_features(config: FeaturesConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """Train a classifier of digits, of 32x32 RGB images, or of all attributes of glyphs, by the loss that it has."""
    train_set, test_set = datasets.seen_and_unseen(config)
    augment = make_augmentation(config.augment)

    def loss(net: nn.Module, _: int) -> Tensor:
        index = torch.randint(len(train_set.images), (config.batch,))
        return net.loss(augment(train_set.images[index])[0], train_set.labels[index])

    def measure(net: nn.Module) -> dict[str, float]:
        return net.measured(test_set.images, test_set.labels)

    architecture = {"digits": DigitsCNN, "glyphs32-attributes": GlyphReader}.get(config.data, GlyphsCNN)
    card = {"data_range": [0.0, 1.0], "sigma_min": 0.0, "sigma_max": 0.0}

    def make() -> nn.Module:
        net = architecture(**config.net)
        if config.init:
            checkpoints.load_weights(net, out_dir / config.init, partly=True)
        return net

    task = make_task(config, make, loss, measure, card)
    return fit("features", config, task, out_dir, progress, track)
