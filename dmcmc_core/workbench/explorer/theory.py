"""Exact mixtures in the plane, where all is known: density, score, ways from noise, and chains on (x, sigma)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from dmcmc_core import dmcmc, integrators, schedules
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.chains import ChainSettings
from dmcmc_core.denoiser import score
from dmcmc_core.errors import number, unknown
from dmcmc_core.noise_level import ExactPosterior, log_levels
from dmcmc_core.samplers import INTEGRATORS
from dmcmc_core.streams import Streams

EXTENT, PIXELS, ARROWS = (-3.5, 3.5), 96, 15
ENDS = 0.03, 10.0
"""Lowest and highest noise level."""


def _four() -> GaussianMixture:
    means = torch.tensor([[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5]])
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    return GaussianMixture(means, torch.full((4,), 0.25), weights, sigma_min=ENDS[0], sigma_max=ENDS[1])


def _ring() -> GaussianMixture:
    angle = torch.arange(8) * (math.tau / 8)
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(means, torch.full((8,), 0.15), torch.ones(8), sigma_min=ENDS[0], sigma_max=ENDS[1])


def _cross() -> GaussianMixture:
    wide = torch.tensor([[[1.5, 1.4], [1.4, 1.5]], [[1.5, -1.4], [-1.4, 1.5]]])
    return GaussianMixture(torch.zeros(2, 2), wide, torch.ones(2), sigma_min=ENDS[0], sigma_max=ENDS[1])


MIXTURES = {"four modes": _four, "a ring of eight": _ring, "a cross": _cross}


class View(NamedTuple):
    """What a figure shows: ``density`` (PIXELS, PIXELS) of its largest, at ``sigma``; ``score``: points and arrows
    (k, 2), or None; ``ways``: (steps, 2) each; ``chains``: x (steps, 2) and sigma (steps,) each.
    """

    extent: tuple[float, float]
    sigma: float
    density: np.ndarray
    score: tuple[np.ndarray, np.ndarray] | None
    ways: list[np.ndarray]
    chains: list[tuple[np.ndarray, np.ndarray]]


@torch.no_grad()
def view(  # noqa: PLR0913  all that can be turned
    mixture: str,
    sigma: float,
    sampler: str = "heun",
    levels: int = 12,
    ways: int = 12,
    chains: int = 3,
    steps: int = 60,
    eta: float = 0.3,
    arrows: bool = True,
    seed: int = 0,
) -> View:
    """Compute what is shown of a mixture.

    Args:
        mixture: a name of :data:`MIXTURES`.
        sigma: noise level of density and score, within :data:`ENDS`.
        sampler, levels, ways: an integrator, its noise levels, and how many ways from noise it walks.
        chains, steps, eta: of Denoising Langevin Gibbs with the exact posterior, eta in units of sigma^2.

    Raises:
        UserError: for a name that is not known and numbers out of their range.
    """
    if mixture not in MIXTURES:
        raise unknown("mixture", mixture, MIXTURES)
    model = MIXTURES[mixture]()
    number("sigma", sigma, least=ENDS[0], most=ENDS[1])
    for name, value, least in (("levels", levels, 1), ("ways", ways, 0), ("chains", chains, 0), ("steps", steps, 1)):
        number(name, value, least=least, whole=True)
    number("seed", seed, least=0, whole=True)
    walked = _ways(model, sampler, levels, ways, seed) if ways else []
    return View(
        EXTENT,
        sigma,
        _density(model, sigma),
        _arrows(model, sigma) if arrows else None,
        walked,
        _chains(model, chains, steps, eta, seed) if chains else [],
    )


def _grid(count: int) -> torch.Tensor:
    line = torch.linspace(*EXTENT, count)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)


def _density(model: GaussianMixture, sigma: float) -> np.ndarray:
    log_p = model.log_prob(_grid(PIXELS), torch.tensor(sigma))
    return (log_p - log_p.max()).exp().reshape(PIXELS, PIXELS).numpy()


def _arrows(model: GaussianMixture, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points and the score there, each arrow shortened to at most one: directions matter."""
    points = _grid(ARROWS)
    field = score(model, points, torch.full((len(points),), sigma))
    length = field.norm(dim=1, keepdim=True)
    return points.numpy(), (field / length.clamp(min=1e-12) * length.clamp(max=1.0)).numpy()


def _ways(model: GaussianMixture, sampler: str, levels: int, count: int, seed: int) -> list[np.ndarray]:
    if sampler not in INTEGRATORS:
        raise unknown("sampler", sampler, INTEGRATORS)
    entry, noise = integrators.INTEGRATORS[sampler], Streams(seed, "image", range(count))
    x = dmcmc.prior(model, noise, count, "mean")
    seen = [x]
    grid = schedules.SCHEDULES[entry.schedule](levels, model.sigma_max, model.sigma_min)
    entry(model, x, grid, noise=noise, callback=lambda i, of, sigma, y: seen.append(y.clone()))
    return list(torch.stack(seen, 1).numpy())


def _chains(model: GaussianMixture, count: int, steps: int, eta: float, seed: int) -> list[tuple]:
    settings = ChainSettings(chains=count, eta=eta, step="sigma2", renoise=1.0, warmup_levels=6)
    posterior = ExactPosterior(model, log_levels(model.sigma_max, model.sigma_min))
    rng = Streams(seed, "chain", range(count))
    first = dmcmc.warm_up(model, posterior, settings, rng)
    step, states = dmcmc.kernel(model, posterior, settings, eta), [first.state]
    rng.state = first.drawn
    for _ in range(steps):
        states.append(step(states[-1], rng)[0])
    x, sigma = torch.stack([s.x for s in states], 1).numpy(), torch.stack([s.sigma for s in states], 1).numpy()
    return list(zip(x, sigma, strict=True))
