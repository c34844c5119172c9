"""Where integration from pure noise begins."""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, walk
from dmcmc_core.errors import UserError
from dmcmc_core.streams import Randomness


def centre(denoiser: Denoiser, start: str, device: str | torch.device = "cpu") -> Tensor:
    """Return what noise is centred on, (*shape): 0, or the data's mean.

    Raises:
        UserError: for ``mean`` where the model knows none.
    """
    m = torch.zeros(denoiser.shape, device=device)
    if start != "mean":
        return m
    mean = getattr(denoiser, "mean", None)
    if mean is None:
        raise UserError("start='mean' needs a model that knows its data's mean; use start='zero'")
    return mean.to(m)


def prior(
    denoiser: Denoiser,
    rng: Randomness,
    rows: int,
    start: str,
    device: str | torch.device = "cpu",
    preconditioned: bool = False,
) -> Tensor:
    """Draw where integration from pure noise begins: N(m, sigma_max^2 I), (rows, *shape), m = 0 or the data's mean.

    ``preconditioned`` begins with m + sigma_max M z instead, where the denoiser has an M (Ma et al. 2022).
    """
    m = centre(denoiser, start, device)
    z = rng(m.expand(rows, *denoiser.shape))
    return m + denoiser.sigma_max * (walk(denoiser).apply(z) if preconditioned else z)
