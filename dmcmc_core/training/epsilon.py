"""Networks of linear diffusions, which answer with epsilon: score matching at uniform times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core.errors import UserError
from dmcmc_core.linear_sde import make_sde
from dmcmc_core.nets.linear import EpsilonNet
from dmcmc_core.training import datasets
from dmcmc_core.training.augmentation import make_augmentation
from dmcmc_core.training.config import EpsilonConfig
from dmcmc_core.training.loop import fit, make_task


def train_epsilon(config: EpsilonConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """Train the network of a linear diffusion: min E |answer - target|^2, images in [-1, 1].

    gDDIM (arXiv 2206.05564), eq. 5 where the network ``predicts: epsilon``; for ``data`` the target has unit variance
    at all times. Noise in the coordinates R; as the diffusion's covariance counts what is not known of the velocities
    at t = 0, this is the hybrid score matching of CLD.
    """
    if "name" not in config.sde:
        raise UserError("the epsilon config lacks sde: {name: CLD}, or BDM or VP, with its constants")
    sde = make_sde(**config.sde)  # a wrong one should not wait for the data
    train_set, test_set = datasets.seen_and_unseen(config)
    seen, unseen = (2 * part.images - 1 for part in (train_set, test_set))
    mean = seen.mean(0)
    sigma_data = float((seen - mean).square().mean().sqrt())
    augment = make_augmentation(config.augment)

    def make() -> nn.Module:
        labels = len(augment.labels) if augment.probability else 0
        net = EpsilonNet(seen.shape[1:], config.sde, sigma_data, config.predicts, augment=labels, **config.net)
        net.mean.copy_(mean)
        return net.to(memory_format=torch.channels_last)

    def draw_times(n: int) -> Tensor:
        uniform = config.t_min + (1 - config.t_min) * torch.rand(n, dtype=torch.float64)
        log = (math.log(config.t_min) * (1 - torch.rand(n, dtype=torch.float64))).exp()
        return torch.where(torch.rand(n) < config.p_log, log, uniform)

    def squared(net: nn.Module, x0: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        epsilon = torch.randn(len(x0), *net.state_shape)
        u, around = net.sde.forward(x0, t, epsilon), net.around(t)
        return (net.answer(around, u, t, labels) - net.target(around, u, x0, epsilon)).square().mean()

    def loss(net: nn.Module, _: int) -> Tensor:
        x0, labels = augment((datasets.draw_batch(seen, config.batch) + 1) / 2)
        t = draw_times(config.batch)
        return squared(net, 2 * x0 - 1, t, labels if augment.probability else None)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fixed = [images.repeat(2, 1, 1, 1) for images in (unseen, seen[: len(unseen)])]
        times = draw_times(len(fixed[0]))

    def measure(net: nn.Module) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            unseen_loss, seen_loss = (float(squared(net, x0, times)) for x0 in fixed)
        return {"held_out_loss": unseen_loss, "train_loss": seen_loss}

    card = {"data_range": [-1.0, 1.0], "sigma_data": sigma_data, "t_min": sde.t_min, "t_max": sde.t_max}
    return fit("epsilon", config, make_task(config, make, loss, measure, card), out_dir, progress, track)
