"""Accurate trajectories of the probability flow, and their inner products: all that a search of solvers needs.

A linear solver's states are sums of the states x(sigma) and denoised images D(sigma) along accurate trajectories, with
coefficients that all images share. Least squares and errors of such sums are inner products: a matrix of a hundred rows
stands for all pixels of all images, and no candidate costs a network call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.integrators.fitted.modes import View
from dmcmc_core.integrators.multistep import unipc

KEPT = 4096
"""Numbers of an image that are kept: many more than a step has coefficients, few enough for 64 images at all levels."""


class Trajectories(NamedTuple):
    """States and denoised images of n starts, as a solver's coefficients see them, at L levels and at 0.

    ``sigmas`` (L + 1,) float64; ``x`` (L + 1, n, p) and ``d`` (L, n, p): p numbers of each image, at ``kept`` (p,) of
    its flattened ones.
    """

    sigmas: Tensor
    x: Tensor
    d: Tensor
    kept: Tensor

    def combined(self, vector: np.ndarray, rows: slice = slice(None)) -> Tensor:
        """Return the sum over states, then denoised images, by a vector (2 L + 1,): (n, p) float64."""
        total = torch.zeros_like(self.x[0][rows], dtype=torch.float64)
        for c, term in zip(vector.tolist(), (*self.x, *self.d), strict=True):
            if c:
                total += c * term[rows].double()
        return total


class _Recorded:
    def __init__(self, model: Denoiser) -> None:
        self.model, self.answers = model, []
        self.shape, self.sigma_min, self.sigma_max = model.shape, model.sigma_min, model.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.answers.append(self.model(x, sigma))
        return self.answers[-1]


def kept_numbers(model: Denoiser, seed: int) -> Tensor:
    """Return which of an image's flattened numbers are kept, (p,): all, or KEPT of them at random, in their order."""
    d = math.prod(model.shape)
    chosen = torch.randperm(d, generator=torch.Generator().manual_seed(seed))[:KEPT]
    return torch.arange(d) if d <= KEPT else chosen.sort().values


@torch.no_grad()
def accurate(
    model: Denoiser, x: Tensor, calls: int, view: View, kept: Tensor, whole: Sequence[int] = ()
) -> tuple[Trajectories, Tensor, Tensor]:
    """Follow starting points x (n, *shape) at sigma_max by UniPC on a Karras grid of so many calls.

    Args:
        view: what of images is kept, at ``kept`` of its flattened numbers.
        whole: at which levels of the grid whole states are kept.

    Returns:
        the trajectories, the images that they end in (n, *shape), and whole states (levels, n, *shape).
    """
    sigmas = schedules.karras(calls, model.sigma_max, model.sigma_min)
    recorded: Any = _Recorded(model)
    picked, states = [], []

    def seen(step: int, steps: int, sigma: Tensor | None, at: Tensor) -> None:
        picked.append(pick(at))
        if step in whole:
            states.append(at.cpu())

    def pick(t: Tensor) -> Tensor:
        return view.of(t).flatten(1)[:, kept.to(t.device)].cpu()

    seen(0, calls, None, x)
    images = unipc(recorded, x, sigmas, callback=seen)
    d = torch.stack([pick(d) for d in recorded.answers])
    return Trajectories(sigmas, torch.stack(picked), d, kept), images, torch.stack(states or [x[:0].cpu()])


class Levels:
    """What x(sigma) and D(sigma) at any level are in terms of those at the levels of the trajectories."""

    def __init__(self, sigmas: Tensor) -> None:
        self.log = sigmas[:-1].log().numpy()  # descending
        self.count = len(self.log)
        self.size = 2 * self.count + 1

    def x(self, sigma: np.ndarray | float) -> np.ndarray:
        """Return x(sigma), (..., 2 L + 1): cubic in log sigma, with dx / dlog sigma = x - D at both ends."""
        sigma = np.asarray(sigma, dtype=float)
        v = np.zeros((*sigma.shape, self.size))
        zero = sigma == 0
        at = np.log(np.where(zero, math.exp(self.log[-1]), sigma))
        i = self._below(at, 2)
        h = self.log[i + 1] - self.log[i]
        u = (at - self.log[i]) / h
        values, slopes = (2 * u**3 - 3 * u**2 + 1, 3 * u**2 - 2 * u**3), (u**3 - 2 * u**2 + u, u**3 - u**2)
        for k in (0, 1):
            _put(v, i + k, values[k] + h * slopes[k])
            _put(v, self.count + 1 + i + k, -h * slopes[k])
        v[zero] = np.eye(self.size)[self.count]
        return v

    def d(self, sigma: np.ndarray | float) -> np.ndarray:
        """Return D(sigma), (..., 2 L + 1): the cubic in log sigma through four levels."""
        at = np.log(np.asarray(sigma, dtype=float))
        v = np.zeros((*at.shape, self.size))
        i = self._below(at, 4)
        nodes = [self.log[i + j] for j in range(4)]
        for j, node in enumerate(nodes):
            others = [other for k, other in enumerate(nodes) if k != j]
            _put(
                v,
                self.count + 1 + i + j,
                math.prod(((at - other) / (node - other) for other in others), start=np.ones(1)),
            )
        return v

    def _below(self, at: np.ndarray, nodes: int) -> np.ndarray:
        """Return the first of so many neighbouring levels around each."""
        before = np.searchsorted(-self.log, -at, side="right") - nodes // 2
        return np.clip(before, 0, self.count - nodes)


def _put(v: np.ndarray, index: np.ndarray, values: np.ndarray) -> None:
    np.put_along_axis(v, np.asarray(index)[..., None], np.asarray(values)[..., None], -1)


def inner_products(trajectories: Trajectories, rows: slice = slice(None)) -> np.ndarray:
    """Return the mean products of all states and denoised images of some starts, (2 L + 1, 2 L + 1) float64."""
    terms = torch.cat([trajectories.x[:, rows], trajectories.d[:, rows]]).flatten(1).double().numpy()
    # numpy's own loop and not BLAS, whose last digits depend on the number of threads
    return np.einsum("ik,jk->ij", terms, terms) / terms.shape[1]
