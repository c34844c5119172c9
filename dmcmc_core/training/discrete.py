"""DDPM on data sets: networks that answer with the noise, at whole times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.errors import UserError
from dmcmc_core.nets.scalings import ScaledUNet, discrete_levels
from dmcmc_core.nets.song import begin
from dmcmc_core.score_embedding import ddpm
from dmcmc_core.training import datasets
from dmcmc_core.training.config import DiscreteConfig
from dmcmc_core.training.loop import fit, make_task

PORT = {"convolved": True, "rescale": False, "attend_up": True}
"""Arguments of :class:`dmcmc_core.nets.song.UNet` in which the PyTorch port of DDPM differs from its defaults."""


def train_discrete(config: DiscreteConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """Train a network: min E |F(x_t, t) - z|^2, images in [-1, 1] (Ho et al. 2020, arXiv 2006.11239, eq. 14).

    Raises:
        UserError: for betas that are none, a ``config`` with ``augment``, and arguments that make no network.
    """
    if config.augment:
        raise UserError("augment is not for the kind discrete, whose networks take no labels of it: leave it out")
    betas = ddpm.linear_betas(config.beta_min, config.beta_max, config.times)
    schedule = {"schedule": "linear", "steps": config.times, "first": config.beta_min, "last": config.beta_max}
    seen, unseen = (2 * part.images - 1 for part in datasets.seen_and_unseen(config))

    def make() -> nn.Module:
        channels, _, side = seen.shape[1:]
        sizes = {"size": side, "in_channels": channels, "out_channels": channels}
        net = ScaledUNet("discrete", {"betas": schedule}, {**sizes, **PORT, **config.net})
        begin(net.net)
        if config.init:
            checkpoints.load_weights(net, out_dir / config.init, partly=True)
        return net.to(memory_format=torch.channels_last)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        return torch.randint(config.times, (n,)), torch.randn(n, *seen.shape[1:])

    def squared(net: nn.Module, x0: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return (net.net(ddpm.noised(x0, t, z, betas), t.to(x0)) - z).square().mean()

    def loss(net: nn.Module, _: int) -> Tensor:
        return squared(net, datasets.draw_batch(seen, config.batch), *draw(config.batch))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fixed = draw(len(unseen))

    def measure(net: nn.Module) -> dict[str, float]:
        pairs = {"held_out_loss": unseen, "train_loss": seen[: len(unseen)]}
        return {name: float(squared(net, x0, *fixed)) for name, x0 in pairs.items()}

    low, high = discrete_levels(**schedule)[[0, -1]].tolist()
    card = {"data_range": [-1.0, 1.0], "sigma_min": low, "sigma_max": high}
    return fit("discrete", config, make_task(config, make, loss, measure, card), out_dir, progress, track)
