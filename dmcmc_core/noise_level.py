"""The posterior of the noise level given the noisy image, p(sigma | x), over a grid of levels with a uniform prior.

DMCMC draws from it in every Gibbs step (Kim & Ye 2023, arXiv 2209.14593, Section 3): by a trained classifier, or
exactly where the model is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dmcmc_core.denoiser import BLOCK, apply_in_blocks
from dmcmc_core.errors import UserError
from dmcmc_core.nets.noise_level import log_levels
from dmcmc_core.streams import Randomness


class NoiseLevelPosterior(Protocol):
    """p(level | x) under a uniform prior over ``levels``."""

    levels: Tensor  # (L,), descending

    def log_probs(self, x: Tensor) -> Tensor:
        """log p(levels | x), (B, *shape) -> (B, L), normalised over L."""
        ...


class ExactPosterior:
    """The posterior of an exact model: log p(x; sigma), normalised over the levels."""

    def __init__(self, model, levels: Tensor | None = None) -> None:
        if not hasattr(model, "log_prob_levels"):
            raise UserError("an exact noise-level posterior needs a model with log_prob_levels, as exact models have")
        self.model = model
        self.levels = log_levels(model.sigma_max, model.sigma_min) if levels is None else levels

    def log_probs(self, x: Tensor) -> Tensor:
        return self.model.log_prob_levels(x, self.levels).log_softmax(-1)


class ClassifierPosterior:
    """The published posterior: a classifier of the noisy image over the levels (Kim & Ye 2023, Section 3).

    Args:
        net: (B, *shape) -> (B, L) logits.
        levels: (L,), the level of each class.
        block: rows of one call of the net.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], levels: Tensor, block: int = BLOCK) -> None:
        self.net, self.levels, self.block = net, levels, block

    def log_probs(self, x: Tensor) -> Tensor:
        return apply_in_blocks(self.net, self.block, x.to(torch.float32)).log_softmax(-1)


def draw(posterior: NoiseLevelPosterior, x: Tensor, rng: Randomness) -> Tensor:
    """sigma ~ p(sigma | x), (B,) in the dtype of ``x``: one uniform per row through the cumulative probabilities."""
    cumulative = posterior.log_probs(x).exp().cumsum(-1)
    total = cumulative[:, -1:]
    reached = (1 - rng.uniform(total)) * total  # above 0, so that no level without probability is ever the first
    return at(posterior.levels, torch.searchsorted(cumulative, reached)[:, 0], x)


def argmax(posterior: NoiseLevelPosterior, x: Tensor, rng: Randomness | None = None) -> Tensor:
    """The most likely level, (B,) in the dtype of ``x``: what the DMCMC code does instead of drawing."""
    return at(posterior.levels, posterior.log_probs(x).argmax(-1), x)


def at(levels: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """The levels of those indices, in the dtype and on the device of ``x``."""
    return levels.to(index.device)[index].to(x)


RULES = {"draw": draw, "argmax": argmax}


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of rows of normalised log probabilities, (B, L) -> (B,)."""
    return torch.special.entr(log_probs.double().exp()).sum(-1)
