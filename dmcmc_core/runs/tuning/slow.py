"""Images that stand for the data, made slowly by the model itself."""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core import integrators, schedules
from dmcmc_core.denoiser import Denoiser, count_nfe
from dmcmc_core.dmcmc import prior
from dmcmc_core.guidance import condition_of, of_images
from dmcmc_core.runs.model import device_of
from dmcmc_core.streams import Streams

SLOW = -2
"""Seed of the slow images; those of runs are at least 0."""
FINE, SMOOTH = 50, 20
"""Levels at which a network makes them: by ancestral sampling; by UniPC."""


@torch.no_grad()
def slow_images(model: Denoiser, n: int) -> tuple[Tensor, int]:
    """Return n images that stand for the data, (n, *shape), and the rows evaluated for them.

    An exact model's own draws cost nothing. A network makes them by UniPC from around its mean, the mean of all that
    it makes from its last level; else by ancestral sampling, which forgets its start.
    """
    if hasattr(model, "sample"):
        return model.sample(n, seed=SLOW), 0
    if hasattr(model, "images"):
        draws = torch.randint(len(model.images), (n,), generator=torch.Generator().manual_seed(SLOW + 2**32))
        return model.images[draws], 0
    noise = Streams(SLOW, "image", range(n))
    counted = count_nfe(of_images(model, noise))
    start = "zero" if getattr(model, "mean", None) is None else "mean"
    x = prior(model, noise, n, start, device_of(model))
    if start == "mean" and not condition_of(model) and not hasattr(model, "network_levels"):
        return integrators.unipc(counted, x, schedules.karras(SMOOTH, model.sigma_max, model.sigma_min)), counted.rows
    return integrators.ancestral(
        counted, x, schedules.karras(FINE, model.sigma_max, model.sigma_min), noise=noise
    ), counted.rows
