"""What training on one picture or a few has in common: the pictures, the network and its first weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.data.pictures import load_pictures
from dmcmc_core.errors import UserError, number, one_of
from dmcmc_core.metrics.similarity import WINDOW
from dmcmc_core.nets.blocks import Attention, Block
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.song import begin
from dmcmc_core.training.config import PicturesConfig

STARTS = ("unconditional", "conditional")
PUBLISHED = {
    "width": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention": (16,),
    "rescale": False,
    "dropout": 0.1,
}
"""Arguments of :class:`dmcmc_core.nets.song.UNet` in the published comparison, all but how it takes the time, and how
resolutions change: in convolutions unless the config's ``net`` is ``plain``."""


def training_pictures(config: PicturesConfig) -> Tensor:
    """Return what a run trains on, (n, C, H, H) in [0, 1].

    Raises:
        UserError: for a value of the config out of its range, and as :func:`dmcmc_core.data.pictures.load_pictures`.
    """
    for key in ("data", "validation", "augment"):
        if getattr(config, key):
            raise UserError(
                f"{key} is not for training on pictures, which sees those of its set as they are: leave it out"
            )
    number("images", config.images, least=1, whole=True)
    if config.images > 1 and math.gcd(config.images, config.log_every) > 1:
        raise UserError(
            f"log_every={config.log_every} and images={config.images} must have no common factor: pictures take turns, "
            "and some would never be logged"
        )
    number("size", config.size, least=WINDOW, whole=True)  # SSIM needs as many
    number("lr", config.lr, above=0)
    number("warmup", config.warmup, least=0, whole=True)
    number("clip", config.clip, least=0)
    number("ema", config.ema, least=0, below=1)
    one_of("start", config.start, *STARTS)
    number("weight", config.weight, least=0, most=1)
    number("profile_every", config.profile_every, above=0)
    number("profile_steps", config.profile_steps, least=0, whole=True)
    checkpoints.check_device(config.device)
    return load_pictures(config.pictures, config.images, config.size, config.picture_seed)


def make_net(config: PicturesConfig, images: Tensor, kind: str, options: Mapping[str, Any], **waves: Any) -> ScaledUNet:
    """Return the network of a run with its first weights: the published one but for what ``net`` in the config says.

    Args:
        config: of the run.
        images: (n, C, H, H).
        kind: of its scalings, with their ``options``, see :class:`dmcmc_core.nets.scalings.ScaledUNet`.
        waves: arguments of :class:`dmcmc_core.nets.song.UNet`, how it takes the time.
    """
    net = ScaledUNet(kind, dict(options), arguments(config, images, **waves), centre=True)
    draw_weights(net.net)
    return net.to(config.device, memory_format=torch.channels_last)


def arguments(config: PicturesConfig, images: Tensor, **waves: Any) -> dict[str, Any]:
    """Return the arguments of :class:`dmcmc_core.nets.song.UNet` for a run."""
    channels, size = images.shape[1:3]
    sizes = {"size": size, "in_channels": channels, "out_channels": channels}
    return {**sizes, **PUBLISHED, "convolved": not config.net.get("plain"), **waves, **config.net}


def draw_weights(net: nn.Module) -> None:
    """Draw first weights as the published comparison does, which took its network from Song et al. 2021.

    Uniform, of variance 1 over the mean of fan-in and fan-out, a tenth of it for shortcuts and what attention compares;
    biases are 0, and so is what residual blocks end in.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, Attention):
            for part in module.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part, gain=0.1**0.5)
        if isinstance(module, Block) and isinstance(module.skip, nn.Conv2d):
            nn.init.xavier_uniform_(module.skip.weight, gain=0.1**0.5)
    begin(net)


def raw(net: ScaledUNet, x: Tensor, time: Tensor) -> Tensor:
    """Return F(2 x - 1, time), the network without its scalings, for x (B, C, H, H) and time (B,)."""
    return net.net(2 * x - 1, time)
