"""The posterior of the noise level given the noisy image, p(sigma | x), over a grid of levels with a uniform prior.

DMCMC draws from it in every Gibbs step (Kim & Ye 2023, arXiv 2209.14593, Section 3): by a trained classifier, exactly
where the model is exact, or with nothing but the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.denoiser import BLOCK, Denoiser, apply_in_blocks
from dmcmc_core.errors import UserError
from dmcmc_core.evaluation_mode import modules_of, to_evaluation
from dmcmc_core.streams import Randomness


def log_levels(sigma_max: float, sigma_min: float, n: int = 1000) -> Tensor:
    """Return n levels, (n,) float64: sigma_min (sigma_max / sigma_min)^t, t evenly from 1 to 1/1000.

    Those of the DMCMC code, Kim & Ye 2023 (arXiv 2209.14593). Evenly spaced in log sigma: the uniform prior over them
    is p(sigma) ~ 1 / sigma. Class 0 is sigma_max, the last just above sigma_min.

    Raises:
        UserError: unless 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise UserError(f"0 < sigma_min < sigma_max is needed, not sigma_min={sigma_min}, sigma_max={sigma_max}")
    t = torch.linspace(1, 1e-3, n, dtype=torch.float64, device="cpu")
    return sigma_min * (sigma_max / sigma_min) ** t


class NoiseLevelPosterior(Protocol):
    """p(level | x) under a uniform prior over ``levels``."""

    levels: Tensor  # (L,), descending

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log p(levels | x), (B, *shape) -> (B, L), normalised over L."""
        ...


class ExactPosterior:
    """The posterior of an exact model: log p(x; sigma), normalised over the levels."""

    def __init__(self, model: Any, levels: Tensor | None = None) -> None:
        if not hasattr(model, "log_prob_levels"):
            raise UserError("an exact noise-level posterior needs a model with log_prob_levels, as exact models have")
        self.model = model
        self.levels = log_levels(model.sigma_max, model.sigma_min) if levels is None else levels

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log p(levels | x), (B, *shape) -> (B, L)."""
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
        """Return log p(levels | x), (B, *shape) -> (B, L)."""
        to_evaluation(modules_of(self.net))
        return apply_in_blocks(self.net, self.block, x.to(torch.float32)).log_softmax(-1)


class ResidualPosterior:
    """p(sigma | x) from the denoiser alone: the size of its residual x - D(x, sigma) against the size to expect.

    Noised densities obey the heat equation, d p / d(sigma^2 / 2) = div grad p; with Tweedie's score in it

        d log p(x; sigma) / d log sigma = |x - D|^2 / sigma^2 - (d - tr dD/dx).

    The first term is the residual, measured by one network call at a level near by, where the chain was; the second
    hardly depends on x, and its mean is the size to expect of the first: m(sigma) = E |x - D|^2 / sigma^2. Integrated,

        log p(sigma | x) = -|x - D|^2 / (2 sigma^2) - integral of m(sigma) d log sigma + const,

    exact where D does not change with sigma, as far below the distance between images, or far above all of them.

    Args:
        levels: (L,), descending.
        expected: (L,), m at each of them; :func:`expected_residual` measures it.
    """

    def __init__(self, levels: Tensor, expected: Tensor) -> None:
        if levels.shape != expected.shape:
            raise UserError(f"{len(levels)} levels need as many expected residuals, not {tuple(expected.shape)}")
        if not torch.isfinite(expected).all():
            raise UserError(
                "the expected residuals must be finite: the denoiser gave NaN or infinity for noised images"
            )
        self.levels, self.expected = levels, expected
        self._integral = torch.cat([expected.new_zeros(1), torch.cumulative_trapezoid(expected, levels.log())])

    def log_probs(self, residual: Tensor) -> Tensor:
        """Return log p(levels | x), (B, L) float64, given the residual x - D(x, sigma near by), (B, *shape)."""
        square = residual.flatten(1).double().square().sum(1, keepdim=True)
        levels, integral = (t.to(square) for t in (self.levels, self._integral))
        return (-square / (2 * levels**2) - integral).log_softmax(-1)


def expected_residual(denoiser: Denoiser, images: Tensor, levels: Tensor, rng: Randomness, nodes: int = 8) -> Tensor:
    """Measure the mean of d - tr dD/dx over noised ``images`` (n, *shape) at ``levels`` (L,): (L,) float64.

    By Stein's lemma it is d - E z.(D(x, sigma) - x0) / sigma, which has no spread where D recovers x0; for a posterior
    mean it is E |x - D(x, sigma)|^2 / sigma^2, the residual's own size. Measured at
    ``nodes`` levels evenly in log sigma, in between interpolated: ``nodes`` network calls.
    """
    d = images[0].numel()
    low, high = levels[[-1, 0]].log10().tolist()
    at = torch.logspace(low, high, nodes, dtype=torch.float64)
    values = []
    for sigma in at.to(images):
        z = rng(images)
        error = denoiser(images + sigma * z, sigma) - images
        values.append(d - (z * error).flatten(1).double().sum(1).mean().item() / sigma.item())
    interpolated = np.interp(levels.log().cpu(), at.log(), values)
    return torch.from_numpy(interpolated).to(levels.device)


def draw(log_probs: Tensor, rng: Randomness) -> Tensor:
    """Draw indices (B,) with the probabilities of ``log_probs`` (B, L), by one uniform per row."""
    cumulative = log_probs.softmax(-1).cumsum(-1)  # exp of what underflows takes ten times as long
    total = cumulative[:, -1:]
    reached = (1 - rng.uniform(total)) * total  # above 0, so that no index without probability is ever the first
    return torch.searchsorted(cumulative, reached)[:, 0]


def argmax(log_probs: Tensor, rng: Randomness | None = None) -> Tensor:
    """Return the most likely index, (B,): what the DMCMC code does instead of drawing."""
    return log_probs.argmax(-1)


RULES = {"draw": draw, "argmax": argmax}


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy in nats of rows of normalised log probabilities, (B, L) -> (B,)."""
    return torch.special.entr(log_probs.double().exp()).sum(-1)
