"""Ablations of Denoising Langevin Gibbs: one factor at a time around one setting, at the same full NFE.

What a chain does not use goes to the integrator, and warm-up is shared out over the images. Controls are Heun alone at
that budget, and Heun from noised images of the data: nothing is wrong with that last start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import data, integrators, metrics, schedules
from dmcmc_core.denoiser import BLOCK, count_nfe
from dmcmc_core.dmcmc import ChainSettings
from dmcmc_core.mcmc import ChainState
from dmcmc_core.report import plots
from dmcmc_core.report.tables import COMPARED, Spread, compare, grouped
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs.cache import code_key
from dmcmc_core.runs.plan import load_posterior, plan
from dmcmc_core.runs.windows import starts
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.exact_models import seen_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLER = "dlg+heun"
START = "start"
"""The factor of the controls: where Heun alone starts."""
KINDS = ("eta_sigma2", "eta_constant")
"""Factors that change the kind of step with its size."""
NAMES = {
    "eta_sigma2": "step η, times σ²",
    "eta_constant": "step η, constant",
    "n_skip": "chain steps per window",
    "rule": "noise level",
    "pick": "start of integration",
    "chains": "chains",
    "warmup_levels": "levels of warm-up",
    "warmup_steps": "chain steps of warm-up",
    "renoise": "noise added in warm-up",
    "published": "published emission",
    "posterior": "posterior of noise level",
    "kernel": "kernel in x",
    START: "Heun alone, around",
}
"""Factor -> what its panel is called."""
CHANCE = 0.05
"""Of two equal means, how often they count as different."""
BY = ("bed", "factor", "value", "base")
HEADS = {
    "bed": "test-bed",
    "factor": "factor",
    "value": "value",
    "levels": "levels of Heun",
    "nfe": "NFE, full",
    "distance": "distance",
    "base": "against the base",
}
"""Columns of the table: key -> heading."""


class Twice(NamedTuple):
    """How often both of two windows that follow each other emit one state.

    Attributes:
        share, pairs: of how many pairs of windows.
        expected: were the noise levels of all candidates exchangeable.
        error: standard error of a share as expected.
        sigma_first, sigma_last: median noise level of the starts, in the first window and in the last.
    """

    share: float
    pairs: int
    expected: float
    error: float
    sigma_first: float
    sigma_last: float


@dataclass(frozen=True)
class Case:
    """A test-bed with the setting that all others are varied from.

    Attributes:
        name, bed: the test-bed.
        budget: full NFE per image.
        n, seeds: images of a cell, and the seeds.
        chain: settings of the chains.
    """

    name: str
    bed: Testbed
    budget: float
    n: int
    seeds: range
    chain: Mapping[str, Any]

    @cached_property
    def plan(self) -> Any:
        """The plan of the setting."""
        return plan(self.bed.model, SAMPLER, self.budget, self.n, dict(self.chain))

    @cached_property
    def base(self) -> dict[str, Any]:
        """Every setting, those too that were not given."""
        return vars(self.plan.chain) | {"posterior": self.plan.posterior}

    @cached_property
    def floor(self) -> Spread:
        """The distance of as many images that nothing is wrong with."""
        return self.bed.floor(self.n, self.seeds)

    def panel(self, factor: str) -> str:
        """Return what a factor is called: ``eta`` alone is the step of the setting's own kind."""
        return NAMES[f"eta_{self.base['step']}" if factor == "eta" else factor]

    def values(self, factor: str, tried: Sequence[Any]) -> list[Any]:
        """Return the values of a panel: those tried beside the setting's own, numbers in order."""
        if factor in (*KINDS, START):
            return list(tried)
        values = [self.base[factor], *(v for v in tried if v != self.base[factor])]
        ordered = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        return sorted(values) if ordered else values

    def varied(self, factor: str, value: Any) -> tuple[dict[str, Any], str]:
        """Return the settings that a value changes, and what it is called.

        A value may be several settings at once. A kernel that needs several calls a step makes fewer steps for them.
        """
        if factor in KINDS:
            return {"step": factor.removeprefix("eta_"), "eta": value}, f"{value:g}"
        changed = value if isinstance(value, dict) else {factor: value}
        label = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in changed.values())
        if factor == "kernel":
            calls = ChainSettings(**changed).step_calls()
            changed = changed | {"n_skip": max(1, self.base["n_skip"] // calls)}
        if factor == "published":
            label = "published" if value else "no state twice"
        return changed, label

    def rows(self, factor: str, value: Any) -> list[dict[str, Any]]:
        """Return a row for each seed of one value."""
        about = {"bed": self.name, "factor": self.panel(factor)}
        if factor != START:
            changed, label = self.varied(factor, value)
            about |= {"value": label, "base": self.base | changed == self.base}
            sampler, settings = SAMPLER, dict(self.chain) | changed
        else:
            about |= {"value": str(value), "base": False}
            if value == "exact":
                return [about | self.from_data(seed) for seed in self.seeds]
            sampler, settings = "heun", {"start": value}
        return [self.bed.row(sampler, self.budget, self.n, seed, settings, **about) for seed in self.seeds]

    @torch.no_grad()
    def from_data(self, seed: int) -> dict[str, Any]:
        """Return a row of Heun at the budget from noised images of the data."""
        model, own, heun = count_nfe(self.bed.model), seen_images(self.bed), integrators.INTEGRATORS["heun"]
        rng = Streams(seed, "exact start", range(self.n))
        clean = own[(rng.uniform(torch.empty(self.n, 1))[:, 0] * len(own)).long()]
        levels = heun.levels(self.budget)
        grid = schedules.SCHEDULES[heun.schedule](levels, model.sigma_max, model.sigma_min)
        images = heun(model, clean + model.sigma_max * rng(clean), grid)
        images = data.from_uint8(data.to_uint8(images, model.data_range), model.data_range)
        row = {"seed": seed, "levels": levels, "budget": self.budget, "nfe": model.nfe, "nfe_paper": model.nfe}
        row |= {"sampler": "heun", "settings": {"start": "exact"}}
        return row | metrics.measure(images, self.bed.reference)

    def emitted_twice(self) -> Twice:
        """Count, over all seeds, pairs of windows that emit one state where the published emission keeps the last.

        Were noise levels exchangeable, the state between two windows would be the least noisy of all their
        2 n_skip + 1 states, and so emitted by both, with probability 1 / (2 n_skip + 1).
        """
        same, pairs, first, last = 0, 0, 0.0, 0.0
        for seed in self.seeds:
            groups = list(self._windows(seed))
            for windows in groups:
                for before, after in zip(windows, windows[1:], strict=False):
                    same += int((before.x == after.x).flatten(1).all(1).sum())
                    pairs += len(before.x)
            first, last = (m + _median(groups, at) for m, at in ((first, 0), (last, -1)))
        expected, count = 1 / (2 * self.base["n_skip"] + 1), len(self.seeds)
        error = math.sqrt(expected * (1 - expected) / pairs)
        return Twice(same / pairs, pairs, expected, error, first / count, last / count)

    def _windows(self, seed: int) -> Iterator[list[ChainState]]:
        """Yield the starts of each group of chains, window after window, from the cache where they are there."""
        known = plan(self.bed.model, SAMPLER, self.budget, self.n, dict(self.chain) | {"published": True})
        posterior, kept = load_posterior(self.bed.model, known), self.bed.cache_dir / code_key() / "chains"
        chains = min(known.chain.chains, self.n)
        for low in range(0, chains, BLOCK):
            group = range(low, min(low + BLOCK, chains))
            every = starts(self.bed.model, known, posterior, seed, group, kept)
            yield list(islice(every, math.ceil(self.n / known.chain.chains)))


def _median(groups: Sequence[Sequence[ChainState]], window: int) -> float:
    sigmas: list[Tensor] = [windows[window].sigma for windows in groups]
    return torch.cat(sigmas).median().item()


class Curves(NamedTuple):
    """Mean and spread over seeds of every value: rows with the keys BY, ``distance``, ``levels`` and ``nfe``."""

    cases: Mapping[str, Case]
    means: list[dict[str, Any]]

    def curve(self, name: str, factor: str) -> list[dict[str, Any]]:
        """Return the values of a factor, in order."""
        return [g for g in self.means if (g["bed"], g["factor"]) == (name, self.cases[name].panel(factor))]

    def distance(self, name: str, factor: str, value: Any) -> Spread:
        """Return that of one value."""
        return next(g["distance"] for g in self.curve(name, factor) if g["value"] == str(value))

    def base(self, name: str) -> Spread:
        """Return that of the setting that all others are varied from."""
        return next(g["distance"] for g in self.means if g["bed"] == name and g["base"])


def curves(cases: Mapping[str, Case], rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Return mean and spread of rows by value."""
    found = grouped(rows, ("frechet", "nfe"), BY)
    levels = {tuple(row[k] for k in BY): row["levels"] for row in reversed(rows)}
    means = [
        {k: g[k] for k in BY} | {"distance": g["frechet"], "nfe": g["nfe"].mean, "levels": levels[key]}
        for key, g in found.items()
    ]
    return Curves(cases, means)


def figure(found: Curves) -> Figure:
    """Return the figure: a block of panels for each test-bed, Heun alone and the floor as lines."""
    lines = {
        name: {
            "same-n floor": case.floor.mean,
            "Heun alone, around the mean": found.distance(name, START, "mean").mean,
            "Heun alone, around 0": found.distance(name, START, "zero").mean,
        }
        for name, case in found.cases.items()
    }
    titles = {
        name: f"{name}: {c.bed.distance}, DLG + Heun at {c.budget} full NFE, n = {c.n}, {len(c.seeds)} seeds"
        for name, c in found.cases.items()
    }
    return plots.ablation(found.means, "distance", lines, titles)


def table(found: Curves) -> list[dict[str, Any]]:
    """Return a row for each value: ``sign`` beside the base, ``base`` in words, and ``alone``: whether a control."""
    rows = []
    for g in found.means:
        sign = compare(g["distance"], found.base(g["bed"]))
        word = "base" if g["base"] else COMPARED[sign]
        rows.append(g | {"sign": sign, "base": word, "alone": g["factor"] == NAMES[START]})
    return rows


def caption(cases: Mapping[str, Case], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what stands above that table."""
    others, first = sum(row["base"] != "base" for row in rows), next(iter(cases.values()))
    measured = "; ".join(
        f"{name}: {c.bed.distance} to {c.bed.reference.name}, n = {c.n} against {c.bed.reference.n}, "
        f"floor {c.floor.mean:.3g}"
        for name, c in cases.items()
    )
    return (
        f"DLG + Heun at {first.budget} full NFE, one factor changed at a time. {measured}; {len(first.seeds)} seeds. "
        f"Of {others} comparisons with the base about {CHANCE * others:.1f} would differ by chance alone."
    )
