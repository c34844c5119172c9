"""The diffusion dx = sigma^t dW of score embedding: its noise, and the times of the solve and of training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, number

EPSILON = 1e-3
"""The first time, published."""


def check_sigma(sigma: float) -> float:
    """Return sigma; UserError unless it is above 0, at most a million, and not 1, where sigma^t does not change."""
    number("sigma", sigma, above=0, most=1e6)
    if sigma == 1:
        raise UserError("sigma must not be 1, at which the diffusion sigma^t is constant and ln sigma is 0")
    return sigma


def std(t: Tensor, sigma: float) -> Tensor:
    """Return the standard deviation of the diffusion's noise at times t: ((sigma^(2 t) - 1) / (2 ln sigma))^(1/2)."""
    return ((sigma ** (2 * t) - 1) / (2 * math.log(check_sigma(sigma)))).sqrt()


def time_of_std(level: Tensor, sigma: float) -> Tensor:
    """Return the time at which the noise has a standard deviation; the inverse of :func:`std`."""
    return torch.log1p(2 * math.log(check_sigma(sigma)) * level**2) / (2 * math.log(sigma))


def training_times(uniform: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Return the times that training is at, (..., N), for draws (..., N) from U(0, 1).

    tau_i = epsilon + i (1 - dt / 2 - epsilon) / N + (U_i - epsilon) dt / 2, dt = 1 / N: half of each interval, and
    nothing above tau_(N-1), though sampling starts at 1.
    """
    n = uniform.shape[-1]
    i = torch.arange(n, dtype=uniform.dtype, device=uniform.device)
    return epsilon + i * (1 - 1 / (2 * n) - epsilon) / n + (uniform - epsilon) / (2 * n)


def times(steps: int, epsilon: float = EPSILON) -> Tensor:
    """Return the N times of the solve, from epsilon to 1, float64; N at least 2."""
    number("steps", steps, least=2, whole=True)
    return torch.linspace(epsilon, 1, steps, dtype=torch.float64)
