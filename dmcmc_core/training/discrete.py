"""DDPM on data sets: networks that answer with the noise, or with v, at whole times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.denoiser import like
from dmcmc_core.errors import UserError, one_of
from dmcmc_core.nets.scalings import ScaledUNet, discrete_levels
from dmcmc_core.nets.song import begin
from dmcmc_core.score_embedding import ddpm
from dmcmc_core.training import datasets
from dmcmc_core.training.config import DiscreteConfig
from dmcmc_core.training.loop import fit, make_task

PORT = {"convolved": True, "rescale": False, "attend_up": True}
"""Arguments of :class:`dmcmc_core.nets.song.UNet` in which the PyTorch port of DDPM differs from its defaults."""
TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x0, z, a: z,
    "v_prediction": lambda x0, z, a: a.sqrt() * z - (1 - a).sqrt() * x0,
}
"""What a network predicts, of :data:`dmcmc_core.nets.scalings.PREDICTIONS` -> (x_0, z, a) -> its target."""


def train_discrete(config: DiscreteConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """Train a network: min E |F(x_t, t) - target|^2, images in [-1, 1] (Ho et al. 2020, arXiv 2006.11239, eq. 14).

    The target is the noise z, or v = sqrt(a) z - sqrt(1 - a) x_0 (Salimans & Ho 2022, arXiv 2202.00512), with a what is
    kept of the image's variance: errors of v are not amplified where little of the image is left.

    Raises:
        UserError: for betas that are none, a ``config`` with ``augment``, another target, and arguments that make no
            network.
    """
    one_of("predicts", config.predicts, *TARGETS)
    if config.augment:
        raise UserError("augment is not for the kind discrete, whose networks take no labels of it: leave it out")
    betas = ddpm.linear_betas(config.beta_min, config.beta_max, config.times)
    bars = ddpm.alpha_bars(betas)
    schedule = {"schedule": "linear", "steps": config.times, "first": config.beta_min, "last": config.beta_max}
    seen, unseen = (2 * part.images - 1 for part in datasets.seen_and_unseen(config))

    def make() -> nn.Module:
        channels, _, side = seen.shape[1:]
        sizes = {"size": side, "in_channels": channels, "out_channels": channels}
        net = ScaledUNet("discrete", {"betas": schedule, "predicts": config.predicts}, {**sizes, **PORT, **config.net})
        begin(net.net)
        if config.init:
            checkpoints.load_weights(net, out_dir / config.init, partly=True)
        return net.to(memory_format=torch.channels_last)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        return torch.randint(config.times, (n,)), torch.randn(n, *seen.shape[1:])

    def squared(net: nn.Module, x0: Tensor, t: Tensor, z: Tensor) -> Tensor:
        a = like(bars[t], x0)
        return (net.net(ddpm.noised(x0, t, z, betas), t.to(x0)) - TARGETS[config.predicts](x0, z, a)).square().mean()

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
