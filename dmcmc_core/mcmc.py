"""Markov chain Monte Carlo on (x, sigma): kernels with explicit state, that compose.

A kernel is ``step(state, rng) -> (state, info)``. Those on x leave p(x; sigma) at fixed sigma invariant, those on sigma
p(sigma | x); one after the other they leave the joint p(x, sigma) invariant: Gibbs sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, like, score
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.noise_level import RULES, NoiseLevelPosterior
from dmcmc_core.streams import Randomness


class ChainState(NamedTuple):
    """Where a chain is: ``x`` (B, *shape) and its noise level ``sigma`` (B,)."""

    x: Tensor
    sigma: Tensor


class Info(NamedTuple):
    """What a step did, each (B,): acceptance probability, step size in squared data units, noise level it ran at."""

    acceptance: Tensor
    step_size: Tensor
    sigma: Tensor


Kernel = Callable[[ChainState, Randomness], tuple[ChainState, Info]]


def langevin(denoiser: Denoiser, eta: float, step: str = "constant") -> Kernel:
    """Unadjusted Langevin in x: x + (e / 2) score(x, sigma) + sqrt(e) z, as in Kim & Ye 2023 (arXiv 2209.14593).

    One network call a step.

    Args:
        eta: e itself in squared data units (``constant``, the paper's), or e / sigma^2 (``sigma2``).
        step: ``constant`` or ``sigma2``.
    """
    size = step_size(eta, step)

    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        x, sigma = state
        e = size(sigma)
        x = x + like(e, x) / 2 * score(denoiser, x, sigma) + like(e.sqrt(), x) * rng(x)
        return ChainState(x, sigma), Info(torch.ones_like(sigma), e, sigma)

    return kernel


def mala(model, eta: float, step: str = "constant") -> Kernel:
    """Metropolis-adjusted Langevin in x, exact for any step: the proposal of :func:`langevin`, then the test.

    Roberts & Tweedie 1996, Section 1.4.1. Needs ``model.log_prob(x, sigma)``. Two network calls a step.
    """
    if not hasattr(model, "log_prob"):
        raise UserError("the adjusted kernel needs a model with log_prob(x, sigma), as exact models have; use langevin")
    size = step_size(eta, step)

    def log_q(to: Tensor, x: Tensor, s: Tensor, e: Tensor) -> Tensor:
        return -(to - x - like(e, x) / 2 * s).flatten(1).pow(2).sum(1) / (2 * e)

    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        x, sigma = state
        e = size(sigma)
        s = score(model, x, sigma)
        log_p = model.log_prob(x, sigma)
        y = x + like(e, x) / 2 * s + like(e.sqrt(), x) * rng(x)
        s_y = score(model, y, sigma)
        log_ratio = model.log_prob(y, sigma) - log_p + log_q(x, y, s_y, e) - log_q(y, x, s, e)
        acceptance = log_ratio.clamp(max=0).exp()
        accepted = rng.uniform(sigma) < acceptance
        return ChainState(torch.where(like(accepted, x) > 0, y, x), sigma), Info(acceptance, e, sigma)

    return kernel


def gibbs(posterior: NoiseLevelPosterior, rule: str = "draw") -> Kernel:
    """The noise level anew, x as it is: sigma ~ p(sigma | x), or its most likely value (``argmax``), as in the code."""
    if rule not in RULES:
        raise unknown("rule for the noise level", rule, RULES)

    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        sigma = RULES[rule](posterior, state.x, rng)
        return ChainState(state.x, sigma), Info(torch.ones_like(sigma), torch.zeros_like(sigma), state.sigma)

    return kernel


def then(first: Kernel, second: Kernel) -> Kernel:
    """Both kernels, one after the other; the info is the first one's."""

    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        state, info = first(state, rng)
        return second(state, rng)[0], info

    return kernel


def langevin_gibbs(
    denoiser: Denoiser, posterior: NoiseLevelPosterior, eta: float, step: str = "constant", rule: str = "draw"
) -> Kernel:
    """Denoising Langevin Gibbs: a Langevin step in x, then the noise level; Kim & Ye 2023 (arXiv 2209.14593)."""
    return then(langevin(denoiser, eta, step), gibbs(posterior, rule))


def step_size(eta: float, step: str) -> Callable[[Tensor], Tensor]:
    """sigma (B,) -> step size (B,) in squared data units."""
    if not 0 < eta < float("inf"):
        raise UserError(f"eta must be positive and finite, not {eta}")
    if step not in ("constant", "sigma2"):
        raise UserError(f"step must be 'constant' or 'sigma2', not {step!r}")
    return (lambda sigma: eta * sigma**2) if step == "sigma2" else (lambda sigma: torch.full_like(sigma, eta))
