"""What training minimises: denoising score matching around the shifted image, with the inputs that were published."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.errors import one_of
from dmcmc_core.score_embedding.diffusion import std, training_times
from dmcmc_core.score_embedding.embedding import embed

EMBEDDINGS = ("linear", "fourier")
"""How the published networks take the time: as it is in every feature, or in waves."""


class Batch(NamedTuple):
    """Noised rows: ``x`` and ``z`` (B, C, H, W), ``tau`` (B,)."""

    x: Tensor
    z: Tensor
    tau: Tensor


def draw_batch(image: Tensor, score: Tensor, size: int, *, sigma: float) -> Batch:
    """Return a batch of one image, from torch's global generator.

    Rounds of all N times, each with jitter of its own, are shifted; ``size`` of their rows are kept and noised.

    Args:
        image: (C, H, W).
        score: (N, C, H, W).
        size: B, at least 1.
        sigma: of the diffusion.
    """
    rounds = -(-size // len(score))
    tau = training_times(torch.rand(rounds, len(score), device=image.device))
    shifted = embed(image, score, sigma=sigma, tau=tau).flatten(0, 1)
    rows = torch.randperm(len(shifted), device=image.device)[:size]
    z, tau = torch.randn_like(shifted[rows]), tau.flatten()[rows]
    return Batch(shifted[rows] + std(tau, sigma)[:, None, None, None] * z, z, tau)


def loss(answer: Tensor, batch: Batch, *, sigma: float) -> Tensor:
    """Return the mean over rows of |std(tau) s + z|^2 / (2 sigma^(2 tau)), for the network's answers s."""
    error = std(batch.tau, sigma)[:, None, None, None] * answer + batch.z
    return (error.square().flatten(1).sum(1) / (2 * sigma ** (2 * batch.tau))).mean()


def network_time(
    t: Tensor, number: int, images: int, *, embedding: str, multiplier: float, sampling: bool, released: bool = True
) -> Tensor:
    """Return what the network gets for times t (B,) of image ``number`` (from 0) of so many.

    ``linear`` puts images apart by an offset. As released, training and ``sampling`` do not agree where the multiplier
    is not 1: linear has multiplier (t + offset) and t + multiplier offset, fourier (multiplier - 1) t and multiplier t,
    so that a multiplier of 1 trains without any time. ``released=False`` gives both what sampling gives.
    """
    offset = number - images / 2
    training = released and not sampling
    if one_of("embedding", embedding, *EMBEDDINGS) == "linear":
        return multiplier * (t + offset) if training else t + multiplier * offset
    return (multiplier - 1 if training else multiplier) * t
