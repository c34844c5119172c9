"""The published sampler: the probability flow of dx = sigma^t dW by SciPy's RK45, from pure noise or near an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dmcmc_core.errors import UserError, number
from dmcmc_core.score_embedding.diffusion import EPSILON, check_sigma, std

Score = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, H, W), t (B,)) -> the score at noise std(t), (B, C, H, W)."""
FRAMES = 50
"""Frames that are kept of a trajectory, published."""


class Trajectory(NamedTuple):
    """Samples (B, C, H, W) at the last time, ``frames`` (F, B, C, H, W) on the way, all float64; ``nfev`` calls."""

    samples: Tensor
    frames: Tensor
    nfev: int


def unconditional_start(z: Tensor, sigma: float, matched: bool = False) -> Tensor:
    """Return where sampling begins, for standard normals z: z itself as published, or with the noise of t = 1.

    ``matched``: std(1) z, the noise that the diffusion has at its end.
    """
    return z * std(torch.ones((), dtype=z.dtype), sigma).to(z) if matched else z


def conditional_start(image: Tensor, z: Tensor, sigma: float, weight: float) -> Tensor:
    """Return w x + (1 - w) sigma z, x the true image: the published conditional start, w in [0, 1]."""
    number("weight", weight, least=0, most=1)
    return weight * image + (1 - weight) * check_sigma(sigma) * z


@torch.no_grad()
def sample(
    score: Score,
    x: Tensor,
    *,
    sigma: float,
    tol: float = 1e-3,
    frames: int = FRAMES,
    epsilon: float = EPSILON,
) -> Trajectory:
    """Integrate dx/dt = -sigma^(2 t) score(x, t) / 2 from t = 1 to epsilon, all samples in one step size.

    Args:
        score: gets x in float32, on the device of ``x``.
        x: (B, C, H, W) at t = 1.
        sigma: of the diffusion.
        tol: relative and absolute, above 0.
        frames: how many states are kept, evenly among the solver's own steps, so that some repeat; at least 2.

    Raises:
        UserError: for an argument out of its range, and a score that is not finite.
    """
    check_sigma(sigma)
    number("tol", tol, above=0)
    number("frames", frames, least=2, whole=True)

    def derivative(t: float, flat: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(flat).to(x.device, torch.float32).reshape(x.shape)
        s = score(now, torch.full((len(x),), t, dtype=torch.float32, device=x.device))
        if not torch.isfinite(s).all():
            raise UserError(f"sampling cannot go on: the score has values that are not finite at t = {t:g}")
        return -0.5 * sigma ** (2 * t) * s.double().cpu().numpy().ravel()

    start = x.double().cpu().numpy().ravel()
    solution = solve_ivp(derivative, (1.0, epsilon), start, method="RK45", rtol=tol, atol=tol)
    if not solution.success:
        raise UserError(f"RK45 did not arrive at t = {epsilon:g} with tol = {tol:g}: {solution.message}")
    kept = np.linspace(0, len(solution.t) - 1, frames).astype(int)
    path = torch.from_numpy(solution.y.T[kept]).reshape(frames, *x.shape)
    return Trajectory(path[-1], path, int(solution.nfev))


def exact_score(image: Tensor, sigma: float) -> Score:
    """Return the score of a data set of one image, (x_0 - x) / std(t)^2: no training reaches more."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return (image.to(x) - x) / std(t, sigma).square().reshape(-1, *[1] * (x.ndim - 1))

    return score
