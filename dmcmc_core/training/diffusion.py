"""What score embedding is compared with: DDPM and DDIM on the same pictures, which differ in their samplers alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core.score_embedding import ddpm
from dmcmc_core.streams import Streams
from dmcmc_core.training.config import DiffusionConfig
from dmcmc_core.training.loop import fit, make_task, rise
from dmcmc_core.training.pictures import make_net, raw, training_pictures
from dmcmc_core.training.profile import Draw, Drawn, profiler


def train_diffusion(
    method: str,
    config: DiffusionConfig,
    out_dir: Path,
    progress: bool = True,
    track: Sequence[str] = (),
    profile: bool = False,
) -> Path:
    """Train a network that answers with the noise: min E |F(x_t, t) - z|^2, pictures in [-1, 1], whole times.

    Each step draws its rows from as many copies of every picture, without replacement.

    Args:
        method: ``ddpm`` or ``ddim``, the sampler of the profile.
        config: of the run.
        out_dir: of its files.
        progress: whether to show a bar.
        track: trackers, see :mod:`dmcmc_core.training.trackers`.
        profile: whether to draw samples while it goes on, see :mod:`dmcmc_core.training.profile`.

    Raises:
        UserError: for a value out of its range, before anything is written.
    """
    betas = ddpm.linear_betas(config.beta_min, config.beta_max, config.times)
    images = training_pictures(config)
    signed = 2 * images - 1
    options = {"beta_min": config.beta_min * config.times, "beta_max": config.beta_max * config.times}
    options["scales"] = config.times

    def loss(net: nn.Module, _: int) -> Tensor:
        rows = torch.randperm(len(images) * config.batch)[: config.batch] % len(images)
        t = torch.randint(config.times, (config.batch,))
        z = torch.randn(config.batch, *images.shape[1:])
        x = ddpm.noised(signed[rows], t, z, betas).to(config.device)
        return (raw(net, x, t.to(x)) - z.to(x)).square().mean()

    bars = ddpm.alpha_bars(betas)[[0, -1]]
    low, high = (1 / bars - 1).sqrt().tolist()
    card = {"data": config.pictures, "data_range": [-1.0, 1.0], "sigma_min": low, "sigma_max": high}
    between = profiler(config, images, sampler(method, config, images), out_dir, profile)
    make = functools.partial(make_net, config, images, "ddpm", options, waves="positional")
    task = make_task(config, make, loss, lambda _: {}, card, rate=rise, between=between)
    return fit(method, config, task, out_dir, progress, track)


train_ddpm = functools.partial(train_diffusion, "ddpm")
train_ddim = functools.partial(train_diffusion, "ddim")


def sampler(method: str, config: DiffusionConfig, images: Tensor) -> Draw:
    """Return the published sampler of all pictures at once.

    A conditional start is w image + (1 - w) z as published, with the image in [0, 1] and not in [-1, 1].
    """
    betas = ddpm.linear_betas(config.beta_min, config.beta_max, config.times)

    def draw(net: nn.Module, streams: Streams, frames: int) -> Drawn:
        z = streams(images)
        start = config.weight * images + (1 - config.weight) * z if config.start == "conditional" else z
        keep, kept = _keeper(start, config.times, frames)
        how = {"noise": lambda x: streams(x)} if method == "ddpm" else {}
        loop = ddpm.ddpm if method == "ddpm" else ddpm.ddim
        x = loop(lambda x, t: raw(net, x, t), start.to(config.device), betas, callback=keep, **how)
        return Drawn((x.cpu() + 1) / 2, (torch.stack(kept) + 1) / 2, config.times)

    return draw


def _keeper(start: Tensor, steps: int, frames: int) -> tuple[Callable[[Tensor], None], list[Tensor]]:
    """Return what keeps, of a start and the states after it, as many as are asked for, and the list of them."""
    wanted = {round(i * steps / (frames - 1)) for i in range(frames)}
    kept, seen = [start], iter(range(1, steps + 1))

    def keep(x: Tensor) -> None:
        if next(seen) in wanted:
            kept.append(x.cpu())

    return keep, kept
