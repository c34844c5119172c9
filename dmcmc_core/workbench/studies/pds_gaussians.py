"""Preconditioned Langevin chains on Gaussians, exactly: a chain is followed by its covariance, without random numbers.

On data of covariance K one step of size e with M and S maps the covariance C of a chain to A C A^T + e M M^T, with
A = 1 - (e / 2) (M M^T + S) K^-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import mcmc, preconditioning
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.preconditioning import Preconditioner, WithPreconditioner
from dmcmc_core.streams import Streams

F64 = torch.float64
SIZE, LEAST = 64, 0.01
"""Points of the ring, and its smallest variance; the largest is 1."""
BIAS, NEAR = 0.05, 0.1
"""Relative errors of the worst variance: of the largest step, and of a chain that has arrived."""
STATIONARY, SCALED = "stationary", "pixels scaled"


class Relaxed(NamedTuple):
    """What chains do on the way to a Gaussian: a row for each arm, errors against steps, variances by frequency."""

    summary: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    spectra: list[dict[str, Any]]


def spectrum(size: int = SIZE) -> Tensor:
    """Return the variance of each frequency of the ring, (size,), in the order of ``fftfreq``."""
    frequency = torch.fft.fftfreq(size, dtype=F64).abs()
    return LEAST + (1 - LEAST) * torch.exp(-12 * frequency)


def gaussians(size: int = SIZE) -> dict[str, Tensor]:
    """Return covariances (size, size): a stationary one, and that with pixels scaled, which couples frequencies."""
    unit = torch.eye(size, dtype=F64)
    K = torch.fft.ifft(spectrum(size)[:, None] * torch.fft.fft(unit, dim=0), dim=0).real
    scale = torch.exp(0.7 * torch.sin(2 * math.pi * torch.arange(size, dtype=F64) / size))
    return {STATIONARY: K, SCALED: scale[:, None] * K * scale}


def per_frequency(C: Tensor) -> Tensor:
    """Return the variance that each frequency has in a covariance (size, size)."""
    wave = torch.fft.fft(torch.eye(len(C), dtype=F64), dim=0)
    return (wave @ C.to(wave) @ wave.conj().T).diagonal().real / len(C)


def arms(K: Tensor, alpha: float) -> dict[str, Preconditioner]:
    """Return preconditioners for a covariance: none, the published ones and their inverse, that of K, two with S."""
    size = len(K)
    moments = preconditioning.Moments(per_frequency(K) * size, K.diagonal().clone(), torch.zeros(size, dtype=F64))
    plain, fitting = Preconditioner(pixel=torch.ones(size)), Preconditioner.from_covariance(moments, sigma=0.0)
    return {
        "plain": plain,
        "published gains": Preconditioner.from_moments(moments, alpha, pixel=False),
        "inverse gains": Preconditioner.from_moments(moments, alpha, pixel=False, recipe="inverse"),
        "covariance": fitting,
        "plain + S": plain.with_skew(1.0),
        "covariance + S": fitting.with_skew(1.0),
    }


def transition(m: Preconditioner, e: float, K: Tensor) -> tuple[Tensor, Tensor]:
    """Return A, which one step multiplies by, and the covariance of its noise."""
    unit = torch.eye(len(K), dtype=F64)
    return unit - e / 2 * m.drift(unit).T @ torch.linalg.inv(K), e * m.squared(unit).T


def worst_error(C: Tensor, K: Tensor) -> float:
    """Return by how much the variance of the worst direction is off, relative to K."""
    L = torch.linalg.cholesky(K)
    inner = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, C, upper=False).T, upper=False)
    return (torch.linalg.eigvalsh((inner + inner.T) / 2) - 1).abs().max().item()


def stationary_error(m: Preconditioner, e: float, K: Tensor) -> float:
    """Return :func:`worst_error` where the chain ends, infinite where it diverges: C = sum A^k Q A^k^T, by doubling."""
    A, C = transition(m, e, K)
    for _ in range(60):
        if not torch.isfinite(C).all() or C.abs().max() > 1e6:
            return math.inf
        C, A = C + A @ C @ A.T, A @ A
        if A.abs().max() < 1e-9:
            break
    return worst_error(C, K)


def largest_step(m: Preconditioner, K: Tensor) -> float:
    """Return the largest step whose bias is below :data:`BIAS`, by bisection of its logarithm."""
    low, high = 1e-6, 10.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if stationary_error(m, middle, K) < BIAS else (low, middle)
    return low


def covariances(m: Preconditioner, e: float, K: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the covariance of a chain before each step, from noise of a tenth of the largest standard deviation."""
    (A, Q), C = transition(m, e, K), 0.01 * torch.eye(len(K), dtype=F64)
    for _ in range(steps):
        yield C
        C = A @ C @ A.T + Q


def relax(alpha: float, steps: int) -> Relaxed:
    """Follow every arm on both Gaussians at its largest step."""
    found = Relaxed([], [], [])
    for name, K in gaussians().items():
        for arm, m in arms(K, alpha).items():
            e, own = largest_step(m, K), []
            for t, C in enumerate(covariances(m, e, K, steps)):
                if t % 5 == 0:
                    own.append({"panel": name, "arm": arm, "x": t, "y": worst_error(C, K)})
                if name == STATIONARY and t in (10, 100, steps - 1):
                    found.spectra.extend(_by_frequency(per_frequency(C), f"after {t} steps", arm))
            found.errors.extend(own)
            needed = next((row["x"] for row in own if row["y"] < NEAR), None)
            about = {"of": name, "arm": arm} | _rates(m, K) | {"step": e, "bias": stationary_error(m, e, K)}
            found.summary.append(about | {"steps": needed})
    for panel in dict.fromkeys(row["panel"] for row in found.spectra):
        found.spectra.extend(row | {"expected": True} for row in _by_frequency(spectrum(), panel, "plain"))
    return found


def _by_frequency(variances: Tensor, panel: str, arm: str) -> list[dict[str, Any]]:
    some = variances[: len(variances) // 2 + 1].tolist()
    return [{"panel": panel, "arm": arm, "x": k / len(variances), "y": v} for k, v in enumerate(some)]


def _rates(m: Preconditioner, K: Tensor) -> dict[str, float]:
    """Return the condition of M M^T K^-1, and the rate of the slowest mode: least real part of (M M^T + S) K^-1 / 2."""
    unit, inverse = torch.eye(len(K), dtype=F64), torch.linalg.inv(K)
    curvature = torch.linalg.eigvals(m.squared(unit).T @ inverse).real
    drift = torch.linalg.eigvals(m.drift(unit).T @ inverse).real
    return {"condition": (curvature.max() / curvature.min()).item(), "rate": drift.min().item() / 2}


def trajectories(alpha: float, seed: int, steps: int = 200) -> tuple[list[dict[str, Any]], Tensor]:
    """Return paths of two chains for each of four arms on three coordinates, of which the first two are given.

    Three is the smallest number that an S couples. Each arm walks at its largest step. Beside the rows stands the
    covariance of those two, (2, 2).
    """
    unit, scale = torch.eye(3, dtype=F64), torch.diag(torch.tensor([1.0, 1.25, 0.8], dtype=F64))
    K = scale @ (0.02 * unit + 0.98 / 3) @ scale
    data = GaussianMixture(torch.zeros(1, 3, dtype=F64), K[None], torch.ones(1))
    moments, plain = preconditioning.exact_moments(data), Preconditioner(pixel=torch.ones(3))
    kinds = {
        "plain": plain,
        "published gains": Preconditioner.from_moments(moments, alpha, pixel=False),
        "covariance": Preconditioner.from_covariance(moments, 0.0),
        "plain + S": plain.with_skew(1.0),
    }
    rows = []
    for name, m in kinds.items():
        x = torch.tensor([[1.3, 1.4, 1.1], [-1.2, -1.6, -0.9]], dtype=F64)
        state, rng = mcmc.ChainState(x, torch.full((2,), 0.01, dtype=F64)), Streams(seed, "three", range(2))
        kernel = mcmc.langevin(WithPreconditioner(data, m), largest_step(m, K + 1e-4 * unit))
        for _ in range(steps):
            for c, (first, second, _) in enumerate(state.x.tolist()):
                rows.append({"panel": name, "arm": f"chain {c + 1}", "x": first, "y": second})
            state, _ = kernel(state, rng)
    return rows, K[:2, :2]
