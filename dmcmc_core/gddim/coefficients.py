"""Coefficients of gDDIM's steps: integrals over the diffusion alone, known before a step starts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmcmc_core.gddim.checks import check, check_root
from dmcmc_core.linear_sde import LinearSDE
from dmcmc_core.quadrature import gauss

PANELS = 6
"""Pieces of a step, even in sqrt(t), for each of which the integrals have a Gauss rule of their own."""


def predictor_coefficients(sde: LinearSDE, grid: Tensor, degree: int, root: str = "R") -> list[Tensor]:
    """Return C_ij of eq. 19, the weights of the last epsilons: u_s = Psi(s, t) u_t + sum_j C_j epsilon_j.

    Args:
        grid: (N + 1,) descending times.
        degree: of the polynomial through the last ``degree`` + 1 values; the first steps, which have fewer, take all.
        root: ``R``, or ``L`` to extrapolate epsilon in the Cholesky coordinates instead (paper, Table 1).

    Returns:
        N tensors (degree_used + 1, *block) float64, the newest value first.

    Raises:
        UserError: a grid that does not descend or leaves the diffusion's times, a degree below 0.
    """
    grid = check(sde, grid, degree)
    root = check_root(sde, root)
    return list(predictor_weights(sde, tuple(grid.tolist()), degree, root))


def corrector_coefficients(sde: LinearSDE, grid: Tensor, degree: int, root: str = "R") -> list[Tensor]:
    """Return those of a polynomial that also goes through the value at the end of the step.

    Returns:
        N tensors (degree_used + 1, *block) float64, the predicted point first, then the newest value.
    """
    grid = check(sde, grid, degree)
    root = check_root(sde, root)
    return list(corrector_weights(sde, tuple(grid.tolist()), degree, root))


@functools.lru_cache(maxsize=256)  # by value: a diffusion is equal to one with equal constants
def predictor_weights(sde: LinearSDE, grid: tuple[float, ...], degree: int, root: str) -> tuple[Tensor, ...]:
    """Return the coefficients of :func:`predictor_coefficients`, kept for the next sampling."""
    return tuple(
        _weights(sde, t, s, grid[max(0, i - degree) : i + 1][::-1], root)
        for i, (t, s) in enumerate(itertools.pairwise(grid))
    )


@functools.lru_cache(maxsize=256)
def corrector_weights(sde: LinearSDE, grid: tuple[float, ...], degree: int, root: str) -> tuple[Tensor, ...]:
    """Return the coefficients of :func:`corrector_coefficients`, kept for the next sampling."""
    return tuple(
        _weights(sde, t, s, (s, *grid[max(0, i - degree + 1) : i + 1][::-1][:degree]), root)
        for i, (t, s) in enumerate(itertools.pairwise(grid))
    )


@functools.lru_cache(maxsize=4096)
def transition(sde: LinearSDE, s: float, t: float) -> Tensor:
    """Return Psi(s, t), kept for the next sampling."""
    return sde.Psi(s, t)


def _weights(sde: LinearSDE, t: float, s: float, nodes: Sequence[float], root: str) -> Tensor:
    """Integrate 1/2 Psi(s, tau) G G^T(tau) K(tau)^-T l_j(tau) from t to s, l_j the Lagrange polynomials of the nodes.

    With K = R the integrand is d(Psi(s, tau) R(tau)) / dtau times l_j, and by parts no inverse is left. Integrals are
    taken in sqrt(tau), as R grows like it where a diffusion knows its data exactly at 0.
    """
    points, weights = gauss()
    edges = torch.linspace(math.sqrt(t), math.sqrt(s), PANELS + 1, dtype=torch.float64)
    at = (edges[:-1, None] + edges.diff()[:, None] * points).flatten()
    weights, tau = (edges.diff()[:, None] * weights).flatten() * 2 * at, at**2
    ends = torch.tensor([t, s], dtype=torch.float64)
    of_step = sde.product(sde.Psi(s, ends), sde.R(ends))
    if root == "R":
        inside = sde.product(sde.Psi(s, tau), sde.R(tau))
    else:
        inside = sde.product(sde.Psi(s, tau), sde.GG(tau)) / 2
        inside = sde.product(inside, sde.transpose(sde.inverse(getattr(sde, root)(tau))))
    integrals = []
    for j in range(len(nodes)):
        if root == "R":
            first, last = sde.weigh(_lagrange(nodes, j, ends), of_step)
            integrals.append(last - first - sde.weigh(weights * _lagrange_slope(nodes, j, tau), inside).sum(0))
        else:
            integrals.append(sde.weigh(weights * _lagrange(nodes, j, tau), inside).sum(0))
    return torch.stack(integrals)


def _lagrange(nodes: Sequence[float], j: int, t: Tensor, without: Sequence[int] = ()) -> Tensor:
    """Return the polynomial that is 1 at node j and 0 at the others, but for the factors ``without``."""
    others = [node for k, node in enumerate(nodes) if k != j and k not in without]
    return math.prod(((t - node) / (nodes[j] - node) for node in others), start=torch.ones_like(t))


def _lagrange_slope(nodes: Sequence[float], j: int, t: Tensor) -> Tensor:
    others = [k for k in range(len(nodes)) if k != j]
    return sum((_lagrange(nodes, j, t, (k,)) / (nodes[j] - nodes[k]) for k in others), start=torch.zeros_like(t))
