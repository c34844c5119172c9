"""Score networks of variance-exploding noise: denoising score matching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.denoiser import like
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.song import begin
from dmcmc_core.nets.unet import DenoisingUNet
from dmcmc_core.training import datasets
from dmcmc_core.training.augmentation import make_augmentation
from dmcmc_core.training.config import ScoreConfig
from dmcmc_core.training.loop import fit, make_task


def train_score(config: ScoreConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """Train a denoiser: min E |D(x0 + sigma z, sigma) - x0|^2 / c_out^2 (Karras et al. 2022, eq. 8)."""
    train_set, test_set = datasets.seen_and_unseen(config)
    mean = train_set.images.mean(0)
    sigma_data = float((train_set.images - mean).square().mean().sqrt())
    augment = make_augmentation(config.augment)

    def make() -> nn.Module:
        labels = len(augment.labels) if augment.probability else 0
        net = score_net(train_set.images.shape[1:], sigma_data, augment=labels, **config.net)
        if config.init:
            checkpoints.load_weights(net, out_dir / config.init)
        net.mean.copy_(mean)
        return net.to(memory_format=torch.channels_last)

    exact = EmpiricalData(train_set.images)

    def weighted(answer: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        return (weight * (answer - target).square().flatten(1).mean(1)).mean()

    def loss(net: nn.Module, _: int) -> Tensor:
        plain = datasets.draw_batch(train_set.images, config.batch)
        sigma = draw_sigma(config, config.batch)
        high = sigma > config.exact_above
        x0, labels = augment(plain)
        x0, labels = torch.where(like(high, x0) > 0, plain, x0), torch.where(high[:, None], 0.0, labels)
        x = x0 + like(sigma, x0) * torch.randn_like(x0)
        target = x0.clone()
        if high.any():
            target[high] = exact(x[high], sigma[high])
        return weighted(net(x, sigma, labels if augment.probability else None), target, sigma)

    fixed = [_fixed(config, images) for images in (test_set.images, train_set.images[: len(test_set.images)])]

    def measure(net: nn.Module) -> dict[str, float]:
        unseen, seen = (float(weighted(net(x0 + like(s, x0) * z, s), x0, s)) for x0, s, z in fixed)
        return {"held_out_loss": unseen, "train_loss": seen}

    card = {
        "data_range": [0.0, 1.0],
        "sigma_data": sigma_data,
        "sigma_min": config.sigma_min,
        "sigma_max": config.sigma_max,
    }
    return fit("score", config, make_task(config, make, loss, measure, card), out_dir, progress, track)


def score_net(shape: Sequence[int], sigma_data: float, augment: int = 0, kind: str = "unet", **net) -> nn.Module:
    """Return a denoiser to be trained, its buffer ``mean`` still to be filled.

    Args:
        shape: (C, H, W) of the images, whose root mean square about their mean is ``sigma_data``.
        augment: number of augmentation labels.
        kind: ``unet`` for :class:`dmcmc_core.nets.unet.DenoisingUNet`, or ``ncsnpp`` for NCSN++ as in the paper but
            for what ``net`` says, scaled as in Karras et al. 2022 (arXiv 2206.00364).
        net: further arguments of that class or of :class:`dmcmc_core.nets.song.UNet`.

    Raises:
        UserError: for an unknown kind, or for ``ncsnpp`` images that are not square or augmentation labels.
    """
    if kind == "unet":
        return DenoisingUNet(shape, sigma_data, augment=augment, **net)
    if kind != "ncsnpp":
        raise unknown("kind of net", kind, ("unet", "ncsnpp"))
    channels, height, width = shape
    if augment or height != width:
        raise UserError(f"net of kind 'ncsnpp' takes square images and no augment, not {height}x{width} with {augment}")
    published = {"waves": "fourier", "encoder": "residual", "taps": (1, 3, 3, 1)}
    sizes = {"size": height, "in_channels": channels, "out_channels": channels}
    scaled = ScaledUNet("edm", {"sigma_data": sigma_data}, {**sizes, **published, **net}, about_mean=True)
    begin(scaled.net)
    return scaled


def draw_sigma(config: ScoreConfig, n: int) -> Tensor:
    """Return noise levels (n,).

    ln sigma ~ N(p_mean, p_std^2), with probability ``p_uniform`` uniform between the ends.
    """
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    uniform = low + (high - low) * torch.rand(n)
    normal = (config.p_mean + config.p_std * torch.randn(n)).clamp(low, high)
    return torch.where(torch.rand(n) < config.p_uniform, uniform, normal).exp()


def _fixed(config: ScoreConfig, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return images twice, with noise levels and noise that are the same at every measurement."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x0 = images.repeat(2, 1, 1, 1)
        return x0, draw_sigma(config, len(x0)), torch.randn_like(x0)
