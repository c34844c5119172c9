"""Which grid: candidates are ranked on inner products of accurate trajectories, without a network call.

What a network answers off the trajectory is modelled: D moves by gamma(sigma) times the error of x, and by an unknown
part of rho(sigma) times its size, which is taken for noise in a direction of its own. Least squares then knows that
answers at states with errors are worth less, and does not build on cancellation that the network would not give.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.integrators.fitted.trajectories import Levels, Trajectories

STEP, ITERATIONS = 1e-4, 100
"""Of the differences that gradients are made of; of a search at most."""


class Response(NamedTuple):
    """How denoised images follow errors of x: gamma and rho at some log sigma, rising; between them linear."""

    log: np.ndarray
    gamma: np.ndarray
    rho: np.ndarray

    def at(self, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gamma and rho at some levels."""
        at = np.log(sigma)
        return np.interp(at, self.log, self.gamma), np.interp(at, self.log, self.rho)


class Products(NamedTuple):
    """Inner products (2, 2 L + 1, 2 L + 1) of halves of the trajectories: each judges what is fitted to the other."""

    levels: Levels
    halves: np.ndarray
    ridge: float


class Form(NamedTuple):
    """What a solver may use: its network calls, past values at most, and whether its first step makes no call."""

    nfe: int
    past: int
    jump: bool


def assumed(spread: float, sigmas: Tensor) -> Response:
    """Return a response before any was seen: D follows below about twice the data's spread, half of it unknown."""
    sigma = sigmas[:-1].flip(0).numpy()
    return Response(np.log(sigma), 1 / (1 + (sigma / (2 * spread)) ** 2), np.full(len(sigma), 0.5))


def measured(trajectories: Trajectories, levels: Levels, visited: list[tuple[float, Tensor, Tensor]]) -> Response:
    """Return the response that a solver met.

    Args:
        trajectories: accurate ones.
        levels: theirs.
        visited: level, state and denoised image (k, p) of the first k starts, as :class:`Trajectories` has them, at
            each call but the first, in their order.
    """
    rows = []
    for sigma, x, d in visited:
        some = slice(len(x))
        error = x.double() - trajectories.combined(levels.x(sigma), some)
        moved = d.double() - trajectories.combined(levels.d(sigma), some)
        size = float(error.square().sum())
        gamma = float((moved * error).sum()) / size
        rows.append((math.log(sigma), gamma, math.sqrt(float((moved - gamma * error).square().sum()) / size)))
    return Response(*np.array(rows[::-1]).T)


def least_squares(matrix: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
    """Solve normal equations (..., k, k) with right sides (..., k), all terms scaled to length 1, with a ridge."""
    length = np.sqrt(np.einsum("...ii->...i", matrix)) + 1e-300
    matrix = matrix / (length[..., :, None] * length[..., None, :]) + ridge * np.eye(length.shape[-1])
    return np.linalg.solve(matrix, (right / length)[..., None])[..., 0] / length


def expected_errors(sigmas: np.ndarray, form: Form, products: Products, response: Response) -> np.ndarray:
    """Return the mean squared errors at 0 that grids would have, (B,), by what is fitted to half of the trajectories.

    A state is a sum of the trajectories' terms, and of a term of its own for the unknown part of each D, whose squared
    length is rho^2 times that of the error it answers.

    Args:
        sigmas: (B, S + 1), the last ones 0.
        form: of the solver.
        products: of the trajectories.
        response: of the network.
    """
    levels, steps = products.levels, sigmas.shape[1] - 1
    own, judge = products.halves, products.halves[::-1]
    x, d = levels.x(sigmas), levels.d(sigmas[:, :-1])
    gammas, rhos = response.at(sigmas[:, :-1])
    state = np.stack([x[:, 0]] * 2)  # (2, B, 2 L + 1), of either half
    unknown = np.zeros((2, len(sigmas), steps))
    known_by_own, known_by_judge = np.zeros((2, *unknown.shape))
    past: list[tuple[np.ndarray, np.ndarray]] = []

    def squared(error: np.ndarray, half: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.maximum(((error @ half) * error).sum(-1) + (unknown**2 * lengths).sum(-1), 0)

    for i in range(steps):
        if i or not form.jump:
            error, gamma = state - x[:, i], gammas[:, i, None]
            known_by_own[..., i] = rhos[:, i] ** 2 * squared(error, own, known_by_own)
            known_by_judge[..., i] = rhos[:, i] ** 2 * squared(error, judge, known_by_judge)
            answer = gamma * unknown
            answer[..., i] = 1
            past = [(d[:, i] + gamma * error, answer), *past][: form.past]
        terms, unknowns = (np.stack([first, *(p[k] for p in past)], 2) for k, first in enumerate((state, unknown)))
        weighted = (terms.reshape(2, -1, levels.size) @ own).reshape(terms.shape)
        matrix = weighted @ terms.swapaxes(-1, -2)
        matrix += (unknowns * known_by_own[:, :, None]) @ unknowns.swapaxes(-1, -2)
        right = (weighted @ x[:, i + 1, :, None])[..., 0]
        c = least_squares(matrix, right, products.ridge)[:, :, None]
        state, unknown = (c @ terms)[:, :, 0], (c @ unknowns)[:, :, 0]
    return squared(state - x[:, -1], judge, known_by_judge).mean(0)


def grid(form: Form, products: Products, response: Response, ends: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Search the levels of a solver by L-BFGS from two grids, with gradients from differences.

    The gaps of log sigma between the ends are softmax(p), so that levels descend whatever p is.

    Args:
        form: of the solver.
        products: of the trajectories.
        response: of the network.
        ends: sigma_max, where it starts, and sigma_min, below which it does not ask.

    Returns:
        (S + 1,) levels, and the root mean square error that they are expected to have.
    """
    high, low = ends
    width, free = math.log(high / low), form.nfe - (not form.jump)

    def levels_of(p: np.ndarray) -> np.ndarray:
        gaps = np.exp(p - p.max(-1, keepdims=True))
        share = (gaps / gaps.sum(-1, keepdims=True)).cumsum(-1)[..., :-1]
        flat = np.ones((*p.shape[:-1], 1))
        return np.concatenate([high * flat, high * np.exp(-width * share), 0 * flat], -1)

    def error(p: np.ndarray) -> tuple[float, np.ndarray]:
        moved = np.concatenate([p[None], p + STEP * np.eye(len(p)), p - STEP * np.eye(len(p))])
        logs = np.log(expected_errors(levels_of(moved), form, products, response) + 1e-300)
        up, down = np.split(logs[1:], 2)
        return logs[0], (up - down) / (2 * STEP)

    top = max(0.3 * high, math.sqrt(high * low)) if form.jump else high
    inner = min(max(1.1 * low, min(5 * low, top / 4)), math.sqrt(top * low))  # between the ends, however near they are
    found = []
    for build in (schedules.karras, schedules.log_uniform):
        levels = build(form.nfe, top, inner)[:-1].numpy()
        inside = np.log(np.concatenate([[high], levels[form.nfe - free :], [low]]))
        p = np.log(-np.diff(inside))
        found.append(minimize(error, p, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}))
    best = min(found, key=lambda result: result.fun)
    return levels_of(best.x), math.exp(best.fun / 2)
