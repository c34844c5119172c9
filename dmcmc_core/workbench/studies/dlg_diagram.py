"""Denoising MCMC drawn on a line, as its conceptual diagram: chains that hop between modes, short and long paths.

Metropolis-adjusted Langevin steps in x and exact draws of sigma given x leave the joint distribution invariant, so that
nothing here is a matter of bias. Control: the same steps at the lowest noise level, sigma never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import dmcmc, integrators, mcmc, noise_level, schedules
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.mcmc import ChainState, Kernel
from dmcmc_core.report import plots
from dmcmc_core.report.tables import Spread, spread_of
from dmcmc_core.streams import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANGES, STILL = "changes", "changes without noise levels"
LOWEST, ABOVE, OTHERS_ABOVE = (
    "lowest level of a change",
    "share of changes above half of that where modes merge",
    "share of other steps there",
)
LENGTH, WAY = "length of paths", "way in x"
"""Quantities of the table; the last two are measured "from chains" and "from noise"."""


class Run(NamedTuple):
    """Chains as they went: x and sigma (steps + 1, chains), and the level of each step in x (steps, chains)."""

    x: Tensor
    sigma: Tensor
    ran_at: Tensor


class Paths(NamedTuple):
    """Ways down from some states: x and sigma (levels, chains) without the last step, to 0, and where that ends."""

    x: Tensor
    sigma: Tensor
    end: Tensor


class Measured(NamedTuple):
    """What one seed tells: quantities, visits of modes by chain (chains, modes), and paths from chains and noise."""

    quantities: dict[str, float]
    visits: Tensor
    short: Paths
    long: Paths


@dataclass(frozen=True)
class Line:
    """A Gaussian mixture on the line, and the chains that walk it.

    Attributes:
        means, scale, weights: of the modes, which are equally wide.
        sigma_min, sigma_max: noise levels of the model.
        eta: step in x, in units of the variance of a noised mode.
        chains, steps: how many, and how far they go; all begin in the first mode, at ``sigma_min``.
        shown: states of one chain that the diagram draws.
        n_skip: steps of a window, from whose calmest state a path begins.
        levels: of Heun on each path.
    """

    means: Sequence[float]
    scale: float
    weights: Sequence[float]
    sigma_min: float
    sigma_max: float
    eta: float
    chains: int
    steps: int
    shown: int
    n_skip: int
    levels: int

    @cached_property
    def modes(self) -> Tensor:
        """The means as a tensor (modes,)."""
        return torch.tensor(self.means, dtype=torch.float64)

    @cached_property
    def width(self) -> Tensor:
        """The scale as a tensor ()."""
        return torch.tensor(self.scale, dtype=torch.float64)

    @cached_property
    def shares(self) -> Tensor:
        """The weights as a tensor (modes,)."""
        return torch.tensor(self.weights, dtype=torch.float64)

    @cached_property
    def model(self) -> GaussianMixture:
        """The mixture as a model of one number."""
        ends = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return GaussianMixture(self.modes[:, None], self.width.expand(len(self.modes)), self.shares, **ends)

    @property
    def merge(self) -> float:
        """Noise level at which the two nearest modes become one peak: half their distance, of two equal Gaussians."""
        return float((self.modes[1:] - self.modes[:-1]).min()) / 2

    def in_x(self) -> Kernel:
        """Return the adjusted Langevin step; the width of a noised mode sets its size."""
        return mcmc.mala(self.model, lambda sigma: self.eta * (sigma**2 + self.width**2))

    def joint(self) -> Kernel:
        """Return that step and an exact draw of sigma after it."""
        return mcmc.then(self.in_x(), mcmc.gibbs(noise_level.ExactPosterior(self.model)))

    def mode(self, x: Tensor) -> Tensor:
        """Return the index of the nearest mode, of the shape of ``x``."""
        return (x[..., None] - self.modes).abs().argmin(-1)

    def visits(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return each chain's share of visits by mode (chains, modes), of x and sigma (steps, chains).

        A visit counts by p(mode | x, sigma), whose mean is the weights at any noise level.
        """
        variance = (self.width**2 + sigma**2)[..., None]
        logits = self.shares.log() - (x[..., None] - self.modes) ** 2 / (2 * variance)
        return logits.softmax(-1).mean(0)

    def run(self, kernel: Kernel, seed: int) -> Run:
        """Walk all chains of a seed from the first mode."""
        rng = Streams(seed, "chain", range(self.chains))
        x = self.modes[0].expand(self.chains, 1).clone()
        state = ChainState(x, torch.full((self.chains,), self.sigma_min, dtype=torch.float64))
        xs, sigmas, ran_at = [x], [state.sigma], []
        for _ in range(self.steps):
            state, info = kernel(state, rng)
            xs.append(state.x)
            sigmas.append(state.sigma)
            ran_at.append(info.sigma)
        return Run(torch.stack(xs)[..., 0], torch.stack(sigmas), torch.stack(ran_at))

    def paths(self, start: ChainState) -> Paths:
        """Return what Heun makes of some states, x (chains, 1) and sigma (chains,), level by level."""
        grid = schedules.karras(self.levels, start.sigma, self.sigma_min)
        seen = [start.x[:, 0]]
        integrators.heun(self.model, start.x, grid, callback=lambda i, m, level, y: seen.append(y[:, 0]))
        return Paths(torch.stack(seen[:-1]), grid[:, :-1].T, seen[-1])

    def from_noise(self, seed: int) -> ChainState:
        """Return pure noise around the data's mean, a state for each chain."""
        x = dmcmc.prior(self.model, Streams(seed, "noise", range(self.chains)), self.chains, "mean").double()
        return ChainState(x, x.new_full((self.chains,), self.sigma_max))

    def calmest(self, run: Run, first: int) -> ChainState:
        """Return the least noisy state of each chain in the window that begins with state ``first``."""
        window = slice(first, first + self.n_skip + 1)
        calm = run.sigma[window].argmin(0, keepdim=True)
        return ChainState(run.x[window].gather(0, calm).T, run.sigma[window].gather(0, calm)[0])


def measure(line: Line, run: Run, fixed: Run, seed: int) -> Measured:
    """Return what one seed tells of chains, and of chains ``fixed`` at the lowest level; levels are geometric means."""
    half = line.steps // 2
    changes, still = (line.mode(one.x[1:]) != line.mode(one.x[:-1]) for one in (run, fixed))
    at_changes, at_others = run.ran_at[changes], run.ran_at[~changes]
    starts, noise = line.calmest(run, half), line.from_noise(seed)
    short, long = line.paths(starts), line.paths(noise)
    quantities = {
        CHANGES: int(changes.sum()),
        STILL: int(still.sum()),
        "level of changes": at_changes.log().mean().exp().item() if changes.any() else math.nan,
        LOWEST: at_changes.min().item() if changes.any() else math.nan,
        ABOVE: (at_changes > line.merge / 2).double().mean().item(),
        OTHERS_ABOVE: (at_others > line.merge / 2).double().mean().item(),
        "level of other steps": at_others.log().mean().exp().item(),
        f"{LENGTH} from chains": (starts.sigma / line.sigma_min).log().mean().item(),
        f"{LENGTH} from noise": math.log(line.sigma_max / line.sigma_min),
        f"{WAY} from chains": (short.end - starts.x[:, 0]).abs().mean().item(),
        f"{WAY} from noise": (long.end - noise.x[:, 0]).abs().mean().item(),
    }
    return Measured(quantities, line.visits(run.x[half:], run.sigma[half:]), short, long)


def over_seeds(found: Sequence[Measured]) -> dict[str, Spread]:
    """Return each quantity over the seeds."""
    return {name: spread_of([one.quantities[name] for one in found]) for name in found[0].quantities}


def visited(found: Sequence[Measured]) -> list[Spread]:
    """Return the share of visits of each mode; its spread is over the chains of all seeds, which are independent."""
    every = torch.cat([one.visits for one in found])
    return [spread_of(share.tolist()) for share in every.T]


def table(line: Line, quantities: Mapping[str, Spread], shares: Sequence[Spread]) -> list[dict[str, Any]]:
    """Return a row for each quantity, and for the visits of each mode."""
    named = {f"share of visits of the mode at {m:g}, weight {w:g}": v for m, w, v in _by_mode(line, shares)}
    return [{"quantity": name, "here": value} for name, value in (quantities | named).items()]


def _by_mode(line: Line, shares: Sequence[Spread]) -> list[tuple[float, float, Spread]]:
    return list(zip(line.modes.tolist(), line.shares.tolist(), shares, strict=True))


def caption(line: Line, where: str) -> str:
    """Return what stands above that table; ``where`` names chains, steps and seeds."""
    return (
        f"The diagram in numbers: {where}. Levels are geometric means, lengths are in log sigma; the spread of visits "
        f"is over chains, the others over seeds. The two nearest modes merge into one peak at sigma = {line.merge:g}; "
        f"the level at which all steps would run on average is {math.sqrt(line.sigma_min * line.sigma_max):.3g}."
    )


def density(line: Line) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (X,), noise levels (L,) and the density there (L, X), each level's divided by its largest."""
    x = torch.linspace(-12, 13, 240, dtype=torch.float64)
    levels = torch.logspace(math.log10(line.sigma_min), math.log10(line.sigma_max), 160, dtype=torch.float64)
    log_density = line.model.log_prob_levels(x[:, None], levels).T
    return x, levels, (log_density - log_density.amax(1, keepdim=True)).exp()


def figure(line: Line, run: Run, found: Measured) -> tuple[Figure, list[dict[str, Any]]]:
    """Return the diagram of a seed's chain that hops early enough to be seen, and its rows."""
    first_change = (line.mode(run.x[1:]) != line.mode(run.x[:-1])).int().argmax(0)
    watched = int((first_change - line.shown // 3).abs().argmin())
    x, sigma = run.x[:, watched], run.sigma[:, watched]
    begins = range(0, line.shown - line.n_skip, line.n_skip)
    calm = [begin + int(sigma[begin : begin + line.n_skip + 1].argmin()) for begin in begins]
    short, long = line.paths(ChainState(x[calm][:, None], sigma[calm])), found.long
    some = torch.linspace(0, line.chains - 1, 5).int()
    shown = {
        "chain": [(x[: line.shown], sigma[: line.shown])],
        "denoising from the chains": [(short.x[:, c], short.sigma[:, c]) for c in range(len(calm))],
        "denoising from noise": [(long.x[:, c], long.sigma[:, c]) for c in some],
    }
    rows = [
        {"what": what, "path": i, "step": t, "x": float(a), "sigma": float(b)}
        for what, lines in shown.items()
        for i, path in enumerate(lines)
        for t, (a, b) in enumerate(zip(*path, strict=True))
    ]
    return plots.concept(*density(line), shown), rows
