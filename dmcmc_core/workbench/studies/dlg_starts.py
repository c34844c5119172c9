"""Figure 1 on test-beds: noise and states of chains, with their noise levels, and what Heun makes of each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import dmcmc
from dmcmc_core.mcmc import ChainState
from dmcmc_core.report.tables import grouped
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs.cache import code_key
from dmcmc_core.runs.plan import load_posterior, plan
from dmcmc_core.runs.windows import starts
from dmcmc_core.streams import Streams

COLUMNS = 5
"""Starting points that are shown of each arm."""
ROWS = 64
"""Chains whose levels are told, at most: a group of those that runs keep."""
ZERO, MEAN, DLG, CONSTANT = "zero mean", "data mean", "with DLG", "with DLG, constant step"
Panel = tuple[Tensor, Tensor, Tensor]
"""Starts (COLUMNS, C, H, W), their noise levels (COLUMNS,), and the images that they become."""


@dataclass(frozen=True)
class Case:
    """A test-bed, and Heun from noise and from two kinds of chains at one cost.

    Attributes:
        name, bed: the test-bed.
        nfe: full count per image.
        n, seeds: images of a cell, and the seeds; the first one is shown.
        chain: settings that serve well.
        published_chain: those that are as near to the published ones as is known.
    """

    name: str
    bed: Testbed
    nfe: float
    n: int
    seeds: range
    chain: Mapping[str, Any]
    published_chain: Mapping[str, Any]

    @cached_property
    def arms(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Arm -> sampler and its settings."""
        mine = {"start": "mean", "warmup_steps": 0} | dict(self.chain)
        same = {key: value for key, value in mine.items() if key == "chains"}
        constant = {"start": "mean", "warmup_steps": 0} | same | dict(self.published_chain)
        return {
            ZERO: ("heun", {"start": "zero"}),
            MEAN: ("heun", {"start": "mean"}),
            DLG: ("dlg+heun", mine),
            CONSTANT: ("dlg+heun", constant),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each arm and seed."""
        return [
            self.bed.row(sampler, self.nfe, self.n, seed, settings, bed=self.name, arm=arm)
            for arm, (sampler, settings) in self.arms.items()
            for seed in self.seeds
        ]

    def from_noise(self, arm: str) -> Panel:
        """Return the first starts of an arm without chains."""
        sampler, settings = self.arms[arm]
        seed = self.seeds[0]
        noise = Streams(seed, "image", range(COLUMNS))
        x = dmcmc.prior(self.bed.model, noise, COLUMNS, settings["start"])
        images = self.bed.samples(sampler, self.nfe, self.n, seed, settings).images[:COLUMNS]
        return x, x.new_full((COLUMNS,), self.bed.model.sigma_max), images

    @torch.no_grad()
    def from_chains(self, arm: str) -> tuple[Panel, list[dict[str, Any]]]:
        """Return the starts of chain 0 in the first windows, and a row of levels for each of these windows.

        The chains are those of the cell's images, from the cache.
        """
        sampler, settings = self.arms[arm]
        model, seed = self.bed.model, self.seeds[0]
        known = plan(model, sampler, self.nfe, self.n, settings)
        kept = self.bed.cache_dir / code_key() / "chains"
        group = range(min(ROWS, known.chain.chains, self.n))
        begun = list(itertools.islice(starts(model, known, load_posterior(model, known), seed, group, kept), COLUMNS))
        state = ChainState(torch.stack([b.x[0] for b in begun]), torch.stack([b.sigma[0] for b in begun]))
        noise = Streams(seed, "image", [window * known.chain.chains for window in range(len(begun))])
        images = dmcmc.denoise(model, state, known.integrator, known.levels, noise, schedule=known.schedule)
        levels = [
            {"bed": self.name, "arm": arm, "window": w, "sigma of chain 0": float(b.sigma[0])}
            | {"median sigma": float(b.sigma.median())}
            | {"at sigma_max": (b.sigma > 0.99 * model.sigma_max).float().mean().item()}
            for w, b in enumerate(begun)
        ]
        return (state.x, state.sigma, images), levels

    @cached_property
    def panels(self) -> dict[str, Panel]:
        """The figure's panels: two of noise, two of chains."""
        noise = {f"from noise, {arm}": self.from_noise(arm) for arm in (ZERO, MEAN)}
        return noise | {arm: panel for arm, (panel, _) in self._chained.items()}

    @cached_property
    def levels(self) -> list[dict[str, Any]]:
        """Noise levels of starting points: a row for each arm with chains and window."""
        return [row for _, rows in self._chained.values() for row in rows]

    @cached_property
    def _chained(self) -> dict[str, tuple[Panel, list[dict[str, Any]]]]:
        return {arm: self.from_chains(arm) for arm in (DLG, CONSTANT)}

    def shown(self) -> list[dict[str, Any]]:
        """Return the figure's rows: the noise level of each start."""
        levels = {arm: level for arm, (_, level, _) in zip(self.arms, self.panels.values(), strict=True)}
        return [
            {"arm": arm, "column": c, "sigma": float(s)} for arm, level in levels.items() for c, s in enumerate(level)
        ]

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"{self.name}, {self.nfe} NFE: images 0 to {COLUMNS - 1} from noise, and chain 0 in consecutive windows"


def cells(rows: Sequence[Mapping[str, Any]], cases: Mapping[str, Case]) -> dict[tuple, dict[str, Any]]:
    """Return a row for each test-bed and arm, with its distance beside that of images nothing is wrong with."""
    found = grouped(rows, ("nfe", "frechet", "kid", "recall"), ("bed", "arm"))
    floors = {name: case.bed.floor(case.n, case.seeds) for name, case in cases.items()}
    for row in found.values():
        case = cases[row["bed"]]
        row |= {"n": case.n, "distance": case.bed.distance, "floor": floors[case.name]}
    return found
