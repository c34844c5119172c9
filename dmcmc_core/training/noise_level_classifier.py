"""Noise-level classifiers: the level of noised images, all levels alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.denoiser import like
from dmcmc_core.errors import unknown
from dmcmc_core.nets.noise_level_classifier import LightClassifier, PublishedClassifier, cross_entropy
from dmcmc_core.noise_level import log_levels
from dmcmc_core.training import datasets
from dmcmc_core.training.augmentation import make_augmentation
from dmcmc_core.training.config import NoiseLevelConfig
from dmcmc_core.training.loop import fit, make_task

ARCHITECTURES = {"light": LightClassifier, "published": PublishedClassifier}


def train_noise_level(
    config: NoiseLevelConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()
) -> Path:
    """Train a noise-level classifier: min E -log q(level | x0 + sigma_level z), level uniform (Kim & Ye 2023)."""
    if config.architecture not in ARCHITECTURES:
        raise unknown("noise-level architecture", config.architecture, ARCHITECTURES)
    train_set, test_set = datasets.seen_and_unseen(config)
    augment = make_augmentation(config.augment)
    shape, ends = list(train_set.images.shape[1:]), {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
    arguments = {"shape": shape, **(ends if config.architecture == "light" else {}), **config.net}
    sigmas = log_levels(config.sigma_max, config.sigma_min, config.net.get("n_levels", 1000)).float()

    def noisy(x0: Tensor) -> tuple[Tensor, Tensor]:
        level = torch.randint(len(sigmas), (len(x0),))
        return x0 + like(sigmas[level], x0) * torch.randn_like(x0), level

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unseen, seen = (noisy(datasets.draw_batch(images, 10_000)) for images in (test_set.images, train_set.images))

    def loss(net: nn.Module, _: int) -> Tensor:
        return cross_entropy(net, *noisy(augment(datasets.draw_batch(train_set.images, config.batch))[0]))

    def measure(net: nn.Module) -> dict[str, float]:
        return {"held_out_loss": float(cross_entropy(net, *unseen)), "train_loss": float(cross_entropy(net, *seen))}

    exact = _exact_cross_entropy(train_set.images, sigmas, *seen)
    card = {"data_range": [0.0, 1.0], **ends, "exact_posterior_train_loss": exact}
    task = make_task(config, lambda: ARCHITECTURES[config.architecture](**arguments), loss, measure, card)
    return fit("noise-level", config, task, out_dir, progress, track)


def _exact_cross_entropy(images: Tensor, sigmas: Tensor, x: Tensor, level: Tensor) -> float:
    """Return what the exact posterior of the training images reaches on noisy ones of them, which is its entropy.

    No classifier does better on ``train_loss``; on images that were held out the bound is not known.
    """
    log_p = EmpiricalData(images).log_prob_levels(x, sigmas).log_softmax(1)
    return float(-log_p.gather(1, level[:, None]).mean())
