"""epsilon(u, t) of a linear diffusion: a network's, or that of any denoiser, and the score that it means."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import RUNAWAY, Denoiser, Wrapper
from dmcmc_core.errors import UserError, all_finite
from dmcmc_core.evaluation_mode import modules_of, to_evaluation
from dmcmc_core.linear_sde import BDM, LinearSDE

Noise = Callable[[Tensor], Tensor]
Epsilon = Callable[[Tensor, Tensor], Tensor]
"""(u of shape (B, ...), t of shape ()) -> epsilon like u."""


class FromDenoiser(Wrapper):
    """What :func:`from_denoiser` returns: (u, t) -> epsilon, with all that the denoiser tells of itself."""

    def __init__(self, sde: LinearSDE, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.sde = sde
        low, high = getattr(denoiser, "data_range", (-1.0, 1.0))
        self.low, high = (low, high) if math.isfinite(high - low) else (-1.0, 1.0)  # a mixture has no bounds
        self.scale, self.about = (high - self.low) / 2, getattr(denoiser, "mean", None)
        self.coefficients = functools.lru_cache(maxsize=1024)(lambda t: (sde.inverse(sde.R(t)), sde.gain(t)))

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the denoiser, and the diffusion."""
        return (self.denoiser,), (self.sde,)

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        """Return epsilon of states (B, ...) at a time ()."""
        sde, denoiser = self.sde, self.denoiser
        x, sigma = sde.observation(u, t)
        x, sigma = self.low + self.scale * (x + 1), self.scale * sigma
        beyond = min(1.0, denoiser.sigma_max / sigma.item())
        sigma = sigma.clamp(min=getattr(denoiser, "sigma_min", 0.0))
        about = 0.0 if self.about is None else self.about.to(x)
        clean = denoiser(about + beyond * (x - about), (beyond * sigma).to(x).expand(len(x)))
        clean = (about + beyond * (clean - about) - self.low) / self.scale - 1
        inverse, gain = self.coefficients(float(t))  # a sampler asks for the same times with the next images
        return sde.apply(inverse, u - sde.apply(gain, sde.lift(clean)))


def from_denoiser(sde: LinearSDE, denoiser: Denoiser) -> FromDenoiser:
    """Make epsilon of a diffusion on images in [-1, 1] from a denoiser of variance-exploding noise, trained or exact.

    Nothing is trained, nor approximated: E[x_0 | u] is D of :meth:`dmcmc_core.linear_sde.LinearSDE.observation`, and
    epsilon = R^-1 (u - Psi E[x_0 | u]). Beyond the denoiser's levels alone it is not: above sigma_max, where noise has
    long drowned the data, D is taken for linear in x - mean, as it is of Gaussian data; below sigma_min, for D there.

    Raises:
        UserError: for BDM, whose noise is not that of any denoiser.
    """
    if isinstance(sde, BDM):
        raise UserError("BDM has noise of its own in every frequency, which no denoiser of white noise knows")
    return FromDenoiser(sde, denoiser)


def evaluate(sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, t: float) -> Tensor:
    """Return epsilon(u, t) in the dtype of the state, found to be finite and of its shape."""
    to_evaluation(modules_of(epsilon_model))
    epsilon = epsilon_model(u, torch.tensor(t, dtype=torch.float64))
    if not isinstance(epsilon, Tensor) or not epsilon.is_floating_point():
        got = f"numbers of {epsilon.dtype}" if isinstance(epsilon, Tensor) else f"a {type(epsilon).__name__}"
        raise UserError(f"the network must answer with a tensor of floating-point numbers like the state, not {got}")
    if epsilon.shape != u.shape:
        raise UserError(
            f"the network must answer a state of shape {tuple(u.shape)} with one epsilon of that shape, "
            f"{sde.parts} channels for each of the images, not {tuple(epsilon.shape)}"
        )
    if not all_finite(epsilon) and u.abs().max() < RUNAWAY:  # a state that has run away is no fault of the network
        raise UserError(
            f"the network's epsilon is not finite at t = {t:g}, for a finite state: mend the network, or keep to the "
            "times it was trained on"
        )
    return epsilon.to(u)


def finish(sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, t: float, how: str) -> Tensor:
    """Go from t to 0 in one call: ``clean``, the datum in (u - R eps), or ``euler``, u - t (F u + G G^T R^-T eps)."""
    if how not in ("clean", "euler"):
        raise UserError(f"last must be None, 'clean' or 'euler', not {how!r}")
    epsilon = evaluate(sde, epsilon_model, u, t)
    if how == "clean":
        return sde.apply(sde.inverse(sde.gain(t)), u - sde.apply(sde.R(t), epsilon))
    return u - t * (sde.apply(sde.F(t), u) - sde.apply(sde.GG(t), score_of(sde, epsilon, t)))


def score_of(sde: LinearSDE, epsilon: Tensor, t: float) -> Tensor:
    """Return the score that an epsilon means, -R^-T epsilon."""
    return -sde.apply(sde.transpose(sde.inverse(sde.R(t))), epsilon)


def slope(sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, t: float) -> Tensor:
    """Return du/dt of the probability flow, F u + 1/2 G G^T R^-T epsilon (eq. 7)."""
    score = score_of(sde, evaluate(sde, epsilon_model, u, t), t)
    return sde.apply(sde.F(t), u) - sde.apply(sde.GG(t), score) / 2
