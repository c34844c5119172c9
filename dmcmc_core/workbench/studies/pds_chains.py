"""Preconditioned chains of Denoising Langevin Gibbs: the distance of what is made from them, and how they mix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dmcmc_core import adaptation, data, dmcmc, mcmc, preconditioning
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.denoiser import count_nfe, like
from dmcmc_core.errors import UserError
from dmcmc_core.noise_level import ExactPosterior, draw, log_levels
from dmcmc_core.preconditioning import Preconditioner, WithPreconditioner
from dmcmc_core.report.tables import Spread, mean_and_spread, spread_of
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.pds import VANILLA, Gains, Rows, Sampling, constant, walked

GROUP = 21
"""Chains of a group, over whose groups mixing has its spread."""
KERNELS = ("langevin", "mala")
Made = dict[tuple[str, str, float, int], Spread]
"""Test-bed, gains, eta and budget -> distance."""


def scaled(m: Preconditioner, alpha: float) -> Preconditioner:
    """Return gains of frequencies whose largest is that of one published filter, alpha / (alpha - 1)."""
    frequency = m.frequency
    assert frequency is not None
    return Preconditioner(frequency=frequency * (alpha / (alpha - 1) / frequency.max()))


def gains_of_chains(sampling: Sampling, bed: Testbed, kind: str) -> Gains:
    """Return the gains of chains, those from the covariance :func:`scaled`; ``as NAME`` has :func:`constant` ones."""
    if kind.startswith("as "):
        of = gains_of_chains(sampling, bed, kind.removeprefix("as "))
        assert isinstance(of, Preconditioner), f"{kind}: no gains"
        return constant(of)
    m = sampling.preconditioner(bed, kind)
    return scaled(m, sampling.alpha) if kind == "covariance" and isinstance(m, Preconditioner) else m


def distances(
    sampling: Sampling,
    kinds: Sequence[str],
    etas: Sequence[float],
    budgets: Sequence[int],
    chain: Mapping[str, Mapping[str, Any]],
) -> Rows:
    """Return rows of DLG + Heun for each test-bed, gains, eta and budget; what diverges is said and left out."""
    rows, beds = [], sampling.beds
    for name, bed in beds.loaded.items():
        for kind in kinds:
            for eta in etas:
                for budget in budgets:
                    settings = dict(chain[name]) | {"eta": eta, "step": "sigma2"}
                    about = {"bed": name, "kind": kind, "eta": eta}
                    try:
                        of = walked(bed, gains_of_chains(sampling, bed, kind))
                        rows += [of.row("dlg+heun", budget, beds.n[name], s, settings, **about) for s in beds.seeds]
                    except UserError as reason:
                        print(f"left empty: {about | {'budget': budget, 'why': str(reason)}}")
    return rows


def made_of(rows: Rows) -> Made:
    """Return the distances of such rows."""
    found = mean_and_spread(rows, "frechet", ("bed", "kind", "eta", "budget"))
    return {(g["bed"], g["kind"], g["eta"], g["budget"]): g["frechet"] for g in found}


class Mixed(NamedTuple):
    """How chains mix, over groups of them.

    ``gained``: independent draws beyond the first that would miss the shares of the classes by as much, per 100 calls;
    ``drift``: how far the mean of log sigma is from that of the law, over the second half; ``acceptance``: its mean.
    """

    gained: Spread
    drift: Spread
    acceptance: float


class Truth(NamedTuple):
    """Digits with their exact score and posterior of the noise level."""

    digits: data.Images
    model: EmpiricalData
    posterior: ExactPosterior

    @property
    def shares(self) -> Tensor:
        """Shares of the classes, (K,) float64."""
        return torch.bincount(self.digits.labels).double() / len(self.digits.labels)

    @property
    def mean_log_sigma(self) -> float:
        """Mean of log sigma in the law of chains: levels are uniform over it."""
        return self.posterior.levels.log().mean().item()


def truth(sigma_max: float = 10.0) -> Truth:
    """Return the training digits, exactly."""
    digits = data.digits("train")
    model = EmpiricalData(digits.images, sigma_max=sigma_max)
    return Truth(digits, model, ExactPosterior(model, log_levels(model.sigma_max, model.sigma_min, 221)))


def mixing_gains(of: Truth, alpha: float, images: int) -> dict[str, Preconditioner | None]:
    """Return the gains whose chains are compared: published ones and those of the covariance, each beside one gain."""
    some = torch.randperm(len(of.digits.images), generator=torch.Generator().manual_seed(0))[:images]
    own = Preconditioner.from_images(of.digits.images[some], alpha)
    fit = scaled(Preconditioner.from_covariance(preconditioning.moments(of.digits.images), sigma=0.5), alpha)
    return {VANILLA: None, "both": own, "as both": constant(own), "covariance": fit, "as covariance": constant(fit)}


@torch.no_grad()
def mixing(  # noqa: PLR0913  a cell of the table
    of: Truth, m: Preconditioner | None, kernel: str, eta: float, groups: int, seed: int, calls: int
) -> Mixed:
    """Walk chains that begin with exact draws of (x, sigma) for some network calls each.

    The class of a state is that of an image drawn from p(x0 | x, sigma). ``mala`` first adapts its steps to one
    acceptance, from ``eta`` on.

    Raises:
        UserError: for chains that diverge.
    """
    chains, labels, shares = GROUP * groups, of.digits.labels, of.shares
    counted = count_nfe(of.model if m is None else WithPreconditioner(of.model, m))
    rng, fate = Streams(seed, f"mixing {kernel}", range(chains)), Streams(seed, "fate", range(chains))
    state = _drawn(of, rng, chains)
    size = adaptation.LevelSteps(of.model.sigma_max, of.model.sigma_min, eta) if kernel == "mala" else eta
    settings = dmcmc.ChainSettings(kernel=kernel, chains=chains)
    step = dmcmc.kernel(counted, of.posterior, settings, size)
    if kernel == "mala":
        own = Streams(seed, "adapting", range(chains))
        state = adaptation.adapt(step, size, state, own, max(10, calls // 8))
    counted.reset()
    missed, levels, accepted = [], [], []
    for _ in range(calls // settings.step_calls()):
        state, info = step(state, rng)
        accepted.append(info.acceptance.mean().item())
        levels.append(state.sigma.double().log())
        log_p = (of.model.squared_distances(state.x) / (-2 * state.sigma[:, None] ** 2)).log_softmax(1)
        missed.append(one_hot(labels[draw(log_p, fate)], len(shares)).double() - shares)
    miss = torch.stack(missed).mean(0).square().sum(1)  # (chains,)
    drift = torch.stack(levels[len(levels) // 2 :]).mean(0) - of.posterior.levels.log().mean()
    variance = (shares * (1 - shares)).sum()
    gained = [100 * (variance / part.mean() - 1) / counted.nfe for part in miss.split(GROUP)]
    return Mixed(
        spread_of(gained), spread_of(part.mean() for part in drift.split(GROUP)), sum(accepted) / len(accepted)
    )


def _drawn(of: Truth, rng: Streams, chains: int) -> mcmc.ChainState:
    """Return exact draws of (x, sigma)."""
    u, levels = rng.uniform(torch.empty(chains, 2)), of.posterior.levels
    sigma = levels[(u[:, 1] * len(levels)).long()].float()
    x = of.digits.images[(u[:, 0] * len(of.digits.images)).long()]
    return mcmc.ChainState(x + like(sigma, x) * rng(x), sigma)


Mixing = dict[tuple[str, str, float], Mixed]
"""Kernel, gains and eta -> how the chains mix."""


def all_mixing(
    of: Truth,
    gains: Mapping[str, Preconditioner | None],
    etas: Mapping[str, Sequence[float]],
    groups: int,
    seed: int,
    calls: int,
) -> tuple[Mixing, Rows]:
    """Return :func:`mixing` for each of :data:`KERNELS` at its etas and gains, and a table of it."""
    mixed, lines = {}, []
    for kernel in KERNELS:
        adapted = kernel == "mala"
        for kind, m in gains.items():
            for eta in etas[kernel]:
                about = {"kernel": kernel, "kind": kind, "eta": "adapted" if adapted else eta}
                try:
                    mixed[kernel, kind, eta] = made = mixing(of, m, kernel, eta, groups, seed, calls)
                except UserError as reason:
                    print(f"left empty: {about}: {reason}")
                    lines.append(about | {"gained": None, "drift": None, "acceptance": None})
                    continue
                lines.append(about | made._asdict() | {"acceptance": made.acceptance if adapted else None})
    return mixed, lines


def highest_drift(of: Truth) -> float:
    """Return by how much the mean of log sigma would be off at the highest level."""
    return math.log(of.model.sigma_max) - of.mean_log_sigma
