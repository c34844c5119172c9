"""What the distance of Denoising Langevin Gibbs is made of: approximate parts are replaced by what they stand for.

Right parts cost whatever they cost: errors are taken apart here, and no methods compared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import data, dmcmc, integrators, metrics
from dmcmc_core.denoiser import Denoiser, Wrapper, count_nfe, like
from dmcmc_core.dmcmc import ChainSettings
from dmcmc_core.mcmc import ChainState
from dmcmc_core.noise_level import ExactPosterior
from dmcmc_core.report.tables import spread_of
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs.plan import load_posterior, plan
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.exact_models import exact_model, fine_levels

PARTS = ("start", "correlation", "kernel", "posterior", "pick", "integrator", "network")
"""In the order in which they are replaced; the network is a part where it was trained."""
SAMPLER, HEUN = "dlg+heun", integrators.INTEGRATORS["heun"]
WALKS = 8
"""Chains that are kept for the next cell, which may differ in the integrator alone: as many as there are seeds."""
Parts = tuple[str, ...]
Rows = list[dict[str, Any]]


class WithDensity(Wrapper):
    """A denoiser that answers as before, beside the exact density of the data that it was trained on.

    An adjusted kernel is exact for the density whatever the drift, as leapfrog steps are reversible and keep volume for
    any force.
    """

    def __init__(self, denoiser: Denoiser, exact: Any) -> None:
        super().__init__(denoiser)
        self.log_prob = exact.log_prob

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x, sigma)


class Walk(NamedTuple):
    """Starting points of all images, window after window; the share accepted, and the rows evaluated."""

    starts: list[ChainState]
    accepted: float
    rows: int


@dataclass(frozen=True, eq=False)
class Case:
    """A test-bed with the published setting, and what its right parts need.

    Attributes:
        name, bed: the test-bed.
        budget: full NFE per image of the published setting and of the controls.
        n, seeds: images of a cell, and the seeds.
        chain: settings of the published chains, ``posterior`` among them.
        adjusted_eta: step of the adjusted kernel in units of sigma², small enough to be accepted.
        fine: levels of the right integrator.
    """

    name: str
    bed: Testbed
    budget: float
    n: int
    seeds: range
    chain: Mapping[str, Any]
    adjusted_eta: float
    fine: int

    @cached_property
    def plan(self) -> Any:
        """The plan of the published setting."""
        return plan(self.bed.model, SAMPLER, self.budget, self.n, dict(self.chain))

    @property
    def parts(self) -> Parts:
        """The parts that this test-bed has."""
        return PARTS if self.bed.train is not None else PARTS[:-1]

    @cached_property
    def exact(self) -> Any:
        """The ideal denoiser of the images that the model has seen."""
        return exact_model(self.bed)

    def denoiser(self, right: Parts) -> Any:
        """Return what is asked for images: the network, or the ideal denoiser."""
        return self.exact if "network" in right else self.bed.model

    def settings(self, right: Parts, start: str | None) -> ChainSettings:
        """Return the settings of chains with some parts right."""
        changed: dict[str, dict[str, Any]] = {
            "correlation": {"chains": self.n},
            "kernel": {"kernel": "mala", "step": "sigma2", "eta": self.adjusted_eta},
            "posterior": {"rule": "draw"},
            "pick": {"pick": "last", "published": False},
        }
        own = vars(self.plan.chain) | ({} if start is None else {"start": start})
        for part, settings in changed.items():
            own |= settings if part in right else {}
        return ChainSettings(**own)

    def posterior(self, right: Parts, seed: int, start: str | None) -> tuple[Any, int]:
        """Return the posterior of the noise level, and the rows that its calibration took."""
        if "posterior" in right:
            return ExactPosterior(self.exact, fine_levels(self.exact)), 0
        if self.plan.posterior == "residual":
            return calibrated(self, tuple(p for p in right if p == "network"), seed, start)
        return load_posterior(self.bed.model, self.plan), 0

    def cells(self) -> dict[Parts, Rows]:
        """Return the rows of every cell of both directions, those whose chains are the same one after the other."""
        every = [*back(self.parts), *forward(self.parts)]
        return {right: [cell(self, right, seed) for seed in self.seeds] for right in every}

    def repaired(self) -> Rows:
        """Return the published setting, but for a warm-up that starts around the data's mean."""
        about = {"right": "none, but warm-up starts around the data's mean"}
        return [cell(self, (), seed, "mean") | about for seed in self.seeds]

    def control(self, start: str) -> Rows:
        """Return Heun alone at the budget, from around 0 (``zero``) or the data's ``mean``."""
        about = {"bed": self.name, "right": f"Heun alone, around {start}"}
        return [self.bed.row("heun", self.budget, self.n, s, {"start": start}, **about) for s in self.seeds]


def forward(parts: Parts) -> list[Parts]:
    """Return which parts are right as they come in one after the other, from none to all."""
    return [parts[:k] for k in range(len(parts) + 1)]


def back(parts: Parts) -> list[Parts]:
    """Return which are right as the published parts come in, between all and none."""
    return [parts[k:] for k in range(1, len(parts))]


def exact_draws(images: Tensor, levels: Tensor, rng: Streams) -> ChainState:
    """Draw (x, sigma) from the joint distribution: a level, an image, noise."""
    one = torch.empty(len(rng.indices), 1)
    sigma = levels[(rng.uniform(one)[:, 0] * len(levels)).long()].to(images)
    clean = images[(rng.uniform(one)[:, 0] * len(images)).long()]
    return ChainState(clean + like(sigma, clean) * rng(clean), sigma)


@functools.cache  # two chains of the same denoiser share it
@torch.no_grad()
def calibrated(case: Case, right: Parts, seed: int, start: str | None) -> tuple[Any, int]:
    """Return the posterior from a denoiser's residual, and the rows that its calibration took."""
    model = count_nfe(case.denoiser(right))
    return dmcmc.calibrated(model, case.settings((), start), seed), model.rows


@functools.lru_cache(WALKS)
@torch.no_grad()
def walked(case: Case, right: Parts, seed: int, start: str | None) -> Walk:
    """Walk the chains for all images with some parts right; the integrator is none of them."""
    model = case.denoiser(right)
    model = count_nfe(WithDensity(model, case.exact) if "kernel" in right else model)
    settings = case.settings(right, start)
    posterior, rows = case.posterior(right, seed, start)
    rng = Streams(seed, "chain", range(min(settings.chains, case.n)))
    if "start" in right:
        state = exact_draws(case.exact.images, posterior.levels, rng)
        begun = dmcmc.Chain(state, torch.zeros(len(state.x), dtype=torch.bool), rng.state)
    else:
        begun = dmcmc.warm_up(model, posterior, settings, rng)
    windows = dmcmc.windows(dmcmc.kernel(model, posterior, settings, settings.eta), begun, settings, rng)
    starts, accepted = [], []
    for first, (window, _) in zip(range(0, case.n, settings.chains), windows, strict=False):
        used = min(settings.chains, case.n - first)
        starts.append(ChainState(window.start.x[:used], window.start.sigma[:used]))
        accepted.append(window.acceptance.mean().item())
    return Walk(starts, sum(accepted) / len(accepted), rows + model.rows)


@torch.no_grad()
def cell(case: Case, right: Parts, seed: int, start: str | None = None) -> dict[str, Any]:
    """Return a row of images with the parts ``right`` swapped in; ``start`` is that of the warm-up if not the case's.

    ``repeats`` is the share of images whose nearest image of the data is that of the same chain a window before.
    """
    walk = walked(case, tuple(part for part in right if part != "integrator"), seed, start)
    model, images = count_nfe(case.denoiser(right)), []
    levels = case.fine if "integrator" in right else case.plan.levels
    for begun in walk.starts:
        some = range(sum(map(len, images)), sum(map(len, images)) + len(begun.x))
        images.append(dmcmc.denoise(model, begun, HEUN, levels, Streams(seed, "image", some)))
    images = data.from_uint8(data.to_uint8(torch.cat(images), model.data_range), model.data_range)
    swapped = [part for part in case.parts if part in right]
    settings = {"right": swapped} | ({} if start is None else {"start": start})
    row = {"bed": case.name, "right": ", ".join(swapped) or "none", "sampler": SAMPLER, "settings": settings}
    row |= {"budget": case.budget, "seed": seed, "nfe": (walk.rows + model.rows) / case.n}
    sigmas = torch.cat([begun.sigma for begun in walk.starts])
    row |= {"sigma_median": sigmas.median().item(), "accepted": walk.accepted}
    if len(walk.starts) > 1:
        chains, nearest = len(walk.starts[0].x), metrics.distance_to_set(images, case.exact.images).index
        row["repeats"] = (nearest[chains:] == nearest[:-chains]).float().mean().item()
    return row | metrics.measure(images, case.bed.reference)


def in_order(cells: Mapping[Parts, Rows], parts: Parts) -> Iterable[dict[str, Any]]:
    """Yield the rows of all cells, forward and then back."""
    return (row for right in (*forward(parts), *back(parts)) for row in cells[right])


def contribution(wrong: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return of two cells of the same seeds mean and spread of their difference, and where it begins and ends."""
    above, below = ([row["frechet"] for row in rows] for rows in (wrong, right))
    apart = spread_of([a - b for a, b in zip(above, below, strict=True)])
    return {"contribution": apart, "above": spread_of(above).mean, "below": spread_of(below).mean}
