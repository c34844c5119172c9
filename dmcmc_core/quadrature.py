"""Gauss rules: nodes and weights of integrals on [0, 1], and the Runge-Kutta method that they make."""

from __future__ import annotations

import functools

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor


@functools.cache
def gauss(n: int = 20) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the Gauss-Legendre rule on [0, 1], each (n,) float64."""
    nodes, weights = leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@functools.cache
def collocation(n: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Return the implicit Runge-Kutta method of Gauss: nodes (n,), matrix (n, n), weights (n,); of order 2n."""
    nodes, weights = gauss(n)
    powers = torch.arange(n, dtype=torch.float64)
    vandermonde = nodes[:, None] ** powers
    antiderivative = nodes[:, None] ** (powers + 1) / (powers + 1)
    return nodes, antiderivative @ torch.linalg.inv(vandermonde), weights
