"""The noise-level posterior without a classifier: how well it tells known levels, and what chains with it reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import dmcmc, mcmc, noise_level
from dmcmc_core.denoiser import count_nfe, like
from dmcmc_core.report import plots
from dmcmc_core.report.beds import Beds
from dmcmc_core.report.tables import grouped
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs.classifiers import load as load_classifier
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.exact_models import exact_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXACT, RESIDUAL, IDEAL, CLASSIFIER = "exact", "residual", "residual, exact denoiser", "classifier"
IN_A_CHAIN = "as in a chain"
OFF = {"20 % off": 1.2, "factor 2 off": 2.0}
"""How far the call is off, up for one half of the images and down for the other."""
INTERVALS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Probabilities of central intervals."""
EDGES = 6
"""Bins of log sigma."""
CAP = 1e3
"""Of a single cross-entropy, in nats."""
SHOWN = {
    EXACT: "exact",
    "residual, as in a chain": "residual, as in a chain",
    "residual, 20 % off": "residual, 20 % off",
    "residual, factor 2 off": "residual, factor 2 off",
    "residual, exact denoiser, as in a chain": "residual of the exact denoiser, as in a chain",
    CLASSIFIER: "classifier",
}
"""Answers that the figure has -> what its lines are called."""
ANSWER_HEADS = {
    "bed": "test-bed",
    "posterior": "posterior",
    "call": "level of the call",
    "n": "n",
    "nfe": "NFE per answer",
    "calibration": "calls of the calibration",
    "error": "mean abs. error of log σ",
    "bias": "bias of log σ",
    "cross_entropy": "cross-entropy",
    "entropy": "entropy of the exact posterior",
    "total_variation": "total variation to it",
    "inside_50": "inside central 50 %",
    "inside_90": "inside central 90 %",
}
DLG_HEADS = {
    "panel": "test-bed",
    "line": "sampler",
    "budget": "budget",
    "nfe": "NFE, full",
    "n": "n",
    "frechet": "Fréchet distance",
    "recall": "recall",
    "levels": "levels of Heun",
    "warmup": "warm-up and calibration, NFE per image",
    "calls_per_step": "calls per chain step",
}
"""Columns of both tables: key -> heading."""


class Noised(NamedTuple):
    """Images at known levels: x (n, *shape), the index of the level in ``levels``, the level itself (n,)."""

    x: Tensor
    index: Tensor
    sigma: Tensor
    levels: Tensor


class Answer(NamedTuple):
    """A posterior's log p(levels | x), (n, levels), with network calls of an answer, and rows of its calibration."""

    log_probs: Tensor
    nfe: float = 0.0
    calibration: int = 0


Question = tuple[str, str]
"""A posterior, and how far off its call is; empty where it has none."""


@dataclass(frozen=True)
class Case:
    """A test-bed with its posteriors.

    Attributes:
        name, bed: the test-bed.
        seed: of the noised images.
        noised: how many of them.
        chain: settings of the chains, whose step is that "as in a chain".
    """

    name: str
    bed: Testbed
    seed: int
    noised: int
    chain: Mapping[str, Any]

    @cached_property
    def exact(self) -> Any:
        """The model whose images the noised ones are: itself, or the ideal denoiser of what it has learned from."""
        return exact_model(self.bed)

    @property
    def trained(self) -> bool:
        """Whether the model is a network, which has a classifier."""
        return not hasattr(self.bed.model, "images")

    @property
    def posteriors(self) -> list[str]:
        """The posteriors that chains can have here."""
        return [EXACT, RESIDUAL, CLASSIFIER] if self.trained else [EXACT, RESIDUAL]

    @cached_property
    def images(self) -> Noised:
        """Images that the model has learned from, each at a level drawn evenly from the grid: the prior."""
        rng, levels = Streams(self.seed, "noised", range(self.noised)), self._levels
        u = rng.uniform(torch.empty(self.noised))
        index = (rng.uniform(u) * len(levels)).long()
        clean, sigma = self.exact.images[(u * len(self.exact.images)).long()], levels[index].float()
        return Noised(clean + like(sigma, clean) * rng(clean), index, sigma, levels)

    @property
    def _levels(self) -> Tensor:
        return noise_level.log_levels(self.exact.sigma_max, self.exact.sigma_min)

    def in_a_chain(self) -> Tensor:
        """Return levels (n,) drawn from the exact posterior of the state one Langevin step away."""
        x, _, sigma, levels = self.images
        rng = Streams(self.seed, "neighbour", range(len(x)))
        step = mcmc.langevin(self.exact, self.chain["eta"], self.chain["step"])
        near, _ = step(mcmc.ChainState(x, sigma), rng)
        return mcmc.gibbs(noise_level.ExactPosterior(self.exact, levels))(near, rng)[0].sigma

    def calls(self) -> dict[str, Tensor]:
        """Return the levels (n,) at which a residual's one call is made, by what they stand for."""
        sigma = self.images.sigma
        side = 1 - 2 * (torch.arange(len(sigma)) % 2)
        ends = self.exact.sigma_min, self.exact.sigma_max
        return {IN_A_CHAIN: self.in_a_chain()} | {off: (sigma * by**side).clamp(*ends) for off, by in OFF.items()}

    @torch.no_grad()
    def answers(self) -> dict[Question, Answer]:
        """Return what every posterior says of the noised images."""
        x, levels, calls = self.images.x, self.images.levels, self.calls()
        found = {(EXACT, ""): Answer(noise_level.ExactPosterior(self.exact, levels).log_probs(x))}
        denoisers = {IDEAL: self.exact, RESIDUAL: self.bed.model} if self.trained else {RESIDUAL: self.exact}
        for title, denoiser in denoisers.items():
            counted = count_nfe(denoiser)
            posterior = dmcmc.calibrated(counted, dmcmc.ChainSettings(**self.chain), self.seed)
            calibration = counted.rows
            for off, at in calls.items():
                counted.reset()
                log_probs = posterior.log_probs(x - counted(x, at))
                found[title, off] = Answer(log_probs, counted.rows / len(x), calibration)
        if self.trained:
            net, own, _ = load_classifier(self.bed.model)
            assert torch.allclose(own.double(), levels.double(), rtol=1e-5)
            found[CLASSIFIER, ""] = Answer(noise_level.ClassifierPosterior(net, own).log_probs(x))
        return found

    def rows(self, n: int, seeds: Sequence[int], budgets: Mapping[float, int]) -> Iterator[dict[str, Any]]:
        """Yield rows of DLG with each posterior, and of Heun alone, at each budget -> steps of a window.

        ``exact`` beside a network is the posterior of its training images.
        """
        bed: Any = self.bed
        if self.trained:
            bed.model.log_prob_levels = self.exact.log_prob_levels
        for budget, skip in budgets.items():
            for kind in self.posteriors:
                settings = dict(self.chain) | {"n_skip": skip, "posterior": kind}
                about = {"panel": self.name, "line": f"DLG, {kind}", "posterior": kind}
                for seed in seeds:
                    row = bed.row("dlg+heun", budget, n, seed, settings, **about)
                    spent = bed.samples("dlg+heun", budget, n, seed, settings).manifest["rows"]
                    steps = skip * -(-n // settings["chains"]) * min(settings["chains"], n)
                    yield row | {"calls_per_step": spent["chains"] / steps, "warmup": spent["warmup"] / n}
            about = {"panel": self.name, "line": "Heun", "posterior": "none"}
            yield from (bed.row("heun", budget, n, seed, **about) for seed in seeds)


class Judged(NamedTuple):
    """Of all answers of a test-bed: rows of the table, points of the panels by level, and of coverage."""

    rows: list[dict[str, Any]]
    by_level: list[dict[str, Any]]
    coverage: list[dict[str, Any]]


def judge(name: str, images: Noised, found: Mapping[Question, Answer], seed: int) -> Judged:
    """Hold answers against the known levels, and against the exact posterior among them.

    The rank of the true level among drawn ones is uniform if a posterior is calibrated: ties are broken by chance.
    """
    n, index, exact = len(images.sigma), images.index, found[EXACT, ""].log_probs
    log_levels, each = images.levels.log().double(), torch.arange(n)
    bins = ((1 - index / len(images.levels)) * EDGES).long().clamp(max=EDGES - 1)
    chance = Streams(seed, "rank", each.tolist()).uniform(torch.empty(n, dtype=torch.float64))
    made = Judged([], [], [])
    for (title, off), (log_probs, calls, calibration) in found.items():
        p = log_probs.double().exp()
        error = (p * log_levels).sum(1) - log_levels[index]
        far = (p - exact.double().exp()).abs().sum(1) / 2
        rank = p.cumsum(1)[each, index] - chance * p[each, index]
        inside = {q: ((2 * rank - 1).abs() <= q).double().mean().item() for q in INTERVALS}
        about = {"bed": name, "posterior": title, "call": off, "line": f"{title}, {off}" if off else title}
        row = about | {"n": n, "nfe": calls, "calibration": calibration}
        row |= {"error": error.abs().mean().item(), "bias": error.mean().item()}
        row |= {"cross_entropy": (-log_probs[each, index].double()).clamp(max=CAP).mean().item()}
        row |= {"entropy": noise_level.entropy(exact).mean().item(), "total_variation": far.mean().item()}
        made.rows.append(row | {"inside_50": inside[0.5], "inside_90": inside[0.9]})
        made.coverage.extend(about | {"panel": "coverage", "x": q, "y": share} for q, share in inside.items())
        for at in (bins == k for k in range(EDGES)):
            if at.any():
                where = about | {"x": images.sigma[at].log().mean().exp().item(), "n": int(at.sum())}
                made.by_level.append(where | {"panel": "error", "y": error[at].abs().mean().item()})
                made.by_level.append(where | {"panel": "total variation", "y": far[at].mean().item()})
    return made


def together(judged: Sequence[Judged]) -> Judged:
    """Return what was found on several test-beds as one."""
    rows, by_level, coverage = ([row for one in judged for row in one[k]] for k in range(3))
    return Judged(rows, by_level, coverage)


def figure(judged: Judged, noised: Mapping[str, int]) -> tuple[Figure, list[dict[str, Any]]]:
    """Return the figure of the answers that are shown, and the numbers of all."""
    every = judged.by_level + judged.coverage
    drawn = [row | {"line": SHOWN[row["line"]]} for row in every if row["line"] in SHOWN]
    sizes = ", ".join(f"{name} n = {n}" for name, n in noised.items())
    return plots.posterior_panels(drawn, f"Residual of one call against exact posterior: {sizes}"), every


def row_of(rows: Sequence[Mapping[str, Any]], bed: str, posterior: str, call: str = "") -> Any:
    """Return the row of an answer, None where there is none."""
    return next((r for r in rows if (r["bed"], r["posterior"], r["call"]) == (bed, posterior, call)), None)


def means(rows: Sequence[Mapping[str, Any]], n: Mapping[str, int]) -> dict[tuple, dict[str, Any]]:
    """Return a row for each test-bed, sampler and budget, its distance and recall over the seeds."""
    quantities = ("nfe", "levels", "frechet", "recall", "calls_per_step", "warmup")
    found = grouped(rows, quantities, ("panel", "line", "budget"))
    for row in found.values():
        row |= {key: row[key].mean for key in ("nfe", "levels", "calls_per_step", "warmup") if key in row}
        row |= {"distance": row["frechet"], "n": n[row["panel"]]}
    return found


def caption(beds: Beds) -> str:
    """Return distance, reference and floor of every test-bed."""
    return "; ".join(
        f"{name}: {bed.distance} to {bed.reference.name} (n = {bed.reference.n}), "
        f"same-n floor {beds.floor[name].mean:.3g}"
        for name, bed in beds.loaded.items()
    )
