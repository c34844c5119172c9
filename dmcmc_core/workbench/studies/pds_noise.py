"""What the predictor of Preconditioned Diffusion Sampling does to variances, beside recursions that tell it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import dmcmc, integrators, schedules
from dmcmc_core.denoiser import like
from dmcmc_core.preconditioning import Preconditioner, WithPreconditioner
from dmcmc_core.report.tables import spread_of
from dmcmc_core.streams import Streams

PIXELS, TOP, BOTTOM, SNR = 256, 50.0, 0.01, 0.16
SPEED_UPS = (5, 10, 20, 30, 60, 100)


class White:
    """White Gaussian data of one variance around 0, which may be 0: their denoiser."""

    shape, sigma_max, sigma_min = (PIXELS,), TOP, BOTTOM

    def __init__(self, variance: float) -> None:
        self.variance = variance

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the posterior mean, by the share of the variance that is the data's."""
        return self.variance * x / (self.variance + like(sigma, x) ** 2)


def preconditioned(variance: float, c: float) -> WithPreconditioner:
    """Return that denoiser walked with the gain sqrt(c) everywhere."""
    return WithPreconditioner(White(variance), Preconditioner(pixel=torch.full((PIXELS,), c**0.5)))


def predictor_bias(levels: int, seeds: Iterable[int], count: int = 64) -> list[dict[str, Any]]:
    """Return the variance that is made of data of variance 1, a row for each squared gain c.

    ``formula`` is that of infinitely many levels, ``recursion`` that of these, ``made0`` what the sampler makes
    without corrections and ``made1`` with one on each level, over seeds.
    """
    grid, rows = schedules.log_uniform(levels, TOP, BOTTOM)[:-1], []
    for c in (1.0, 1.2, 1.44, 1.5625):
        model, variance = preconditioned(1.0, c), TOP**2 * c
        for now, after in itertools.pairwise(grid.tolist()):
            part = now**2 - after**2
            variance = variance * (1 - c * part / (1 + now**2)) ** 2 + c * part
        row = {"c": c, "formula": c / (2 * c - 1), "recursion": variance}
        for corrections in (0, 1):
            made = []
            for seed in seeds:
                noise = Streams(seed, "bias", range(count))
                x = dmcmc.prior(model, noise, count, "zero", preconditioned=True)
                x = integrators.predictor_corrector(model, x, grid, noise=noise, corrections=corrections)
                made.append(x.var())
            row[f"made{corrections}"] = spread_of(made)
        rows.append(row)
    return rows


def squared_gains(alpha: float) -> dict[str, float]:
    """Return c of no filter, of one published filter where images have least, and of both."""
    strength = (alpha / (alpha - 1)) ** 2
    return {"plain": 1.0, "one": strength, "both": strength**2}


def ratio_after(grid: Tensor, c: float, snr: float = SNR) -> float:
    """Return the variance of the noise over sigma^2 at the end of a grid, from data that are 0 everywhere.

    With r the squared ratio of neighbouring levels, a correction makes (1 - 2 snr^2 / rho)^2 rho + 4 snr^2 / rho of
    rho, and a step of the predictor [(1 - c (1 - r))^2 rho + c (1 - r)] / r.
    """
    rho = c
    for r in (grid[1:] / grid[:-1]).square().tolist():
        rho = (1 - 2 * snr**2 / rho) ** 2 * rho + 4 * snr**2 / rho
        rho = ((1 - c * (1 - r)) ** 2 * rho + c * (1 - r)) / r
    return rho


def noise_left(alpha: float, tops: Sequence[float], base: int, seed: int, count: int = 32) -> list[dict[str, Any]]:
    """Return :func:`ratio_after` for each of :func:`squared_gains`, beside what the sampler makes.

    A row for each highest level and number of iterations; ``part`` is 1 - r.
    """
    rows = []
    for top, speed_up in itertools.product(tops, SPEED_UPS):
        grid = schedules.log_uniform(schedules.sped_up(speed_up, base), top, BOTTOM)[:-1]
        row = {"top": top, "iterations": len(grid), "part": 1 - (grid[1] / grid[0]).item() ** 2}
        for what, c in squared_gains(alpha).items():
            model, noise = preconditioned(0.0, c), Streams(seed, "noise", range(count))
            x = top / TOP * dmcmc.prior(model, noise, count, "zero", preconditioned=True)
            x = integrators.predictor_corrector(model, x, grid, noise=noise, snr=SNR)
            row |= {what: ratio_after(grid, c), f"made_{what}": (x.var() / grid[-1] ** 2).item()}
        rows.append(row)
    return rows
