"""Markov chain Monte Carlo on (x, sigma): kernels with explicit state, that compose.

A kernel is ``step(state, rng) -> (state, info)``. Those on x leave p(x; sigma) at fixed sigma invariant, those on sigma
p(sigma | x); one after the other they leave the joint p(x, sigma) invariant: Gibbs sampling. Kernels on x walk a
:class:`dmcmc_core.preconditioning.WithPreconditioner` with its M (and S): positions move by M, gradients come by M^T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core.denoiser import RUNAWAY, Denoiser, like, score, walk
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.gradients import without_gradients
from dmcmc_core.noise_level import RULES, NoiseLevelPosterior, ResidualPosterior
from dmcmc_core.streams import Randomness


class ChainState(NamedTuple):
    """Where a chain is: ``x`` (B, *shape) and its noise level ``sigma`` (B,).

    Some kernels leave more for the next step: ``denoised``, D of this very x at the level before this one
    (:func:`residual_gibbs`), and ``momentum`` (:func:`hamiltonian`); both as x.
    """

    x: Tensor
    sigma: Tensor
    denoised: Tensor | None = None
    momentum: Tensor | None = None


class Info(NamedTuple):
    """What a step did, each (B,): acceptance probability, step size in squared data units, noise level it ran at."""

    acceptance: Tensor
    step_size: Tensor
    sigma: Tensor


Kernel = Callable[[ChainState, Randomness], tuple[ChainState, Info]]


StepSize = float | Callable[[Tensor], Tensor]
"""A step size: a number, see :func:`step_size`, or any function of sigma (B,) -> squared data units (B,)."""


def langevin(denoiser: Denoiser, eta: StepSize, step: str = "constant") -> Kernel:
    """Unadjusted Langevin in x: x + (e / 2) score(x, sigma) + sqrt(e) z, as in Kim & Ye 2023 (arXiv 2209.14593).

    Preconditioned: x + (e / 2) (M M^T + S) score(x, sigma) + sqrt(e) M z, as in Ma et al. 2022 (arXiv 2207.02196). One
    network call a step; none where the state brings its ``denoised`` along.

    Args:
        eta: e itself in squared data units (``constant``, the paper's), or e / sigma^2 (``sigma2``).
        step: ``constant`` or ``sigma2``.
    """
    size, m = step_size(eta, step), walk(denoiser)

    @without_gradients
    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        x, sigma, denoised, _ = state
        if denoised is None:
            denoised = denoiser(x, sigma)
        e = size(sigma)
        x = m.move(x, like(e / (2 * sigma**2), x) * (denoised - x), like(e.sqrt(), x) * rng(x))
        return ChainState(x, sigma), Info(torch.ones_like(sigma), e, sigma)

    return kernel


def hamiltonian(
    model: Any,
    eta: StepSize,
    step: str = "constant",
    *,
    leapfrogs: int = 1,
    persistence: float = 0.0,
    adjusted: bool = True,
) -> Kernel:
    """Generalized Hamiltonian Monte Carlo in x at fixed sigma: some momentum kept, some new, leapfrogs, the test.

    Horowitz 1991, "A generalized guided Monte Carlo algorithm". With momenta p ~ N(0, I) and h = sqrt(e),

        O    p <- a p + sqrt(1 - a^2) z
        BAB  p <- p + (h / 2) M^T score(x),  x <- x + h M p,  p <- p + (h / 2) M^T score(x),    ``leapfrogs`` times

    then a Metropolis test of the leapfrogs, which turns the momentum round where it rejects: exact for any step.
    a = 0 with one leapfrog is the Metropolis-adjusted Langevin algorithm, with more Hamiltonian Monte Carlo (Duane et
    al. 1987); one leapfrog with a = exp(-friction h) is underdamped Langevin dynamics by OBABO, whose halves of O meet
    between steps. ``leapfrogs`` + 1 network calls a step. M = 1 but for a preconditioned model.

    Args:
        eta, step: e = h^2, as for :func:`langevin`.
        leapfrogs, persistence: at least 1; a, in [0, 1).
        adjusted: test, which needs ``model.log_prob(x, sigma)``; else accept all, with a bias that grows with h.
    """
    if adjusted and not hasattr(model, "log_prob"):
        raise UserError("an adjusted kernel needs a model with log_prob(x, sigma), as exact models have; use langevin")
    if not isinstance(leapfrogs, int) or leapfrogs < 1:
        raise UserError(f"leapfrogs must be a whole number, at least 1, not {leapfrogs!r}")
    if not 0 <= persistence < 1:
        raise UserError(f"persistence must be at least 0 and below 1, not {persistence}")
    size, m = step_size(eta, step), _reversible(model)

    def log_density(x: Tensor, p: Tensor, sigma: Tensor) -> Tensor:
        return model.log_prob(x, sigma) - p.flatten(1).square().sum(1) / 2

    @without_gradients
    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        x, sigma, _, kept = state
        p = rng(x)
        if persistence and kept is not None:
            p = persistence * kept + (1 - persistence**2) ** 0.5 * p
        e = size(sigma)
        h = like(e.sqrt(), x)
        y, q, force = x, p, m.apply_transpose(score(model, x, sigma))
        before: Any = log_density(x, p, sigma) if adjusted else None
        for _ in range(leapfrogs):
            q = q + h / 2 * force
            y = y + h * m.apply(q)
            force = m.apply_transpose(score(model, y, sigma))
            q = q + h / 2 * force
        if not adjusted:
            return ChainState(y, sigma, momentum=q), Info(torch.ones_like(sigma), e, sigma)
        acceptance = (log_density(y, q, sigma) - before).clamp(max=0).exp().nan_to_num(0.0)  # where it diverged
        accepted = like(rng.uniform(sigma) < acceptance, x) > 0
        moved = ChainState(torch.where(accepted, y, x), sigma, momentum=torch.where(accepted, q, -p))
        return moved, Info(acceptance, e, sigma)

    return kernel


def mala(model: Any, eta: StepSize, step: str = "constant") -> Kernel:
    """Metropolis-adjusted Langevin in x, exact for any step: the proposal of :func:`langevin`, then the test.

    Roberts & Tweedie 1996, Section 1.4.1. Needs ``model.log_prob(x, sigma)``. Two network calls a step. A
    skew term S may turn the proposal: the test weighs the noise z that led there against the z' that would lead back.
    """
    m = walk(model)
    if not m.skewed:
        return hamiltonian(model, eta, step)
    if not hasattr(model, "log_prob"):
        raise UserError("an adjusted kernel needs a model with log_prob(x, sigma), as exact models have; use langevin")
    size = step_size(eta, step)

    @without_gradients
    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        x, sigma, z = state.x, state.sigma, rng(state.x)
        e = size(sigma)
        h, s = like(e.sqrt(), x), score(model, x, sigma)
        y = m.move(x, h**2 / 2 * s, h * z)
        both = s + score(model, y, sigma)
        back = -(z + h / 2 * m.inverse(m.drift(both)))
        gained = model.log_prob(y, sigma) - model.log_prob(x, sigma)
        log_ratio = gained + (z.flatten(1).square().sum(1) - back.flatten(1).square().sum(1)) / 2
        acceptance = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
        accepted = like(rng.uniform(sigma) < acceptance, x) > 0
        return ChainState(torch.where(accepted, y, x), sigma), Info(acceptance, e, sigma)

    return kernel


def _reversible(model: Denoiser) -> Any:
    """Return the walk of a model, for kernels that need one without a skew term."""
    m = walk(model)
    if not hasattr(m, "apply_transpose"):
        raise UserError("noise alone through a filter keeps no law, so no test mends it: use langevin for that control")
    if m.skewed:
        raise UserError("a skew term turns gradients, which leapfrogs cannot follow: use langevin or mala")
    return m


def gibbs(posterior: NoiseLevelPosterior, rule: str = "draw") -> Kernel:
    """Draw the noise level anew, x as it is: sigma ~ p(sigma | x), or take the most likely (``argmax``), as the code.

    A step raises UserError where the posterior is NaN: for chains that diverged, or a classifier that is broken. A
    :class:`dmcmc_core.noise_level.ResidualPosterior`, which is not a function of x, is refused.
    """
    if isinstance(posterior, ResidualPosterior):
        raise UserError("this posterior is one of the denoiser's residual, not of x: use residual_gibbs")
    choose = _rule(rule)

    @without_gradients
    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        level = choose(_sound(posterior.log_probs(state.x), state.x, posterior.levels), rng)
        return _at_level(state, posterior.levels, level)

    return kernel


def residual_gibbs(denoiser: Denoiser, posterior: ResidualPosterior, rule: str = "draw") -> Kernel:
    """Draw the noise level anew from the residual of the denoiser at the present one: no classifier, nothing trained.

    One network call, whose answer stays in the state for a Langevin step: both together still cost one. That step then
    divides D(x, sigma before) - x by the new sigma^2: exact where D does not change from the one level to the other.
    """
    choose = _rule(rule)

    @without_gradients
    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        denoised = denoiser(state.x, state.sigma)
        level = choose(_sound(posterior.log_probs(state.x - denoised), state.x, posterior.levels), rng)
        return _at_level(state._replace(denoised=denoised), posterior.levels, level)

    return kernel


def _rule(name: str) -> Callable[[Tensor, Randomness], Tensor]:
    if name not in RULES:
        raise unknown("rule for the noise level", name, RULES)
    return RULES[name]


def _sound(log_probs: Tensor, x: Tensor, levels: Tensor) -> Tensor:
    """Return the log probabilities, unless there are NaN among them; then an error says whose fault that is."""
    if not log_probs.isnan().any():
        return log_probs
    size = x.abs().max().item()
    if size < RUNAWAY * levels.max().item():
        raise UserError("the noise-level posterior gives NaN for a finite x: mend its network or choose another one")
    raise UserError(f"the chains diverged, x reached {size:.3g}: choose a smaller eta")


def _at_level(state: ChainState, levels: Tensor, level: Tensor) -> tuple[ChainState, Info]:
    sigma = levels.to(level.device)[level].to(state.sigma)
    return state._replace(sigma=sigma), Info(torch.ones_like(sigma), torch.zeros_like(sigma), state.sigma)


def then(first: Kernel, second: Kernel) -> Kernel:
    """Return both kernels, one after the other; the info is the first one's."""

    @without_gradients
    def kernel(state: ChainState, rng: Randomness) -> tuple[ChainState, Info]:
        state, info = first(state, rng)
        return second(state, rng)[0], info

    return kernel


def langevin_gibbs(
    denoiser: Denoiser, posterior: NoiseLevelPosterior, eta: StepSize, step: str = "constant", rule: str = "draw"
) -> Kernel:
    """Denoising Langevin Gibbs: a Langevin step in x, then the noise level; Kim & Ye 2023 (arXiv 2209.14593)."""
    return then(langevin(denoiser, eta, step), gibbs(posterior, rule))


def step_size(eta: StepSize, step: str) -> Callable[[Tensor], Tensor]:
    """Return sigma (B,) -> step size (B,) in squared data units; what already is such a function stays as it is."""
    if callable(eta):
        return eta
    if not 0 < eta < float("inf"):
        raise UserError(f"eta must be positive and finite, not {eta}")
    if step not in ("constant", "sigma2"):
        raise UserError(f"step must be 'constant' or 'sigma2', not {step!r}")
    return (lambda sigma: eta * sigma**2) if step == "sigma2" else (lambda sigma: torch.full_like(sigma, eta))
