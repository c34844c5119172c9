"""The tolerance of an adaptive integrator that keeps to a budget, found by trial on other seeds."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import torch
from torch import Tensor

from dmcmc_core import dmcmc
from dmcmc_core.denoiser import Denoiser, count_nfe
from dmcmc_core.dmcmc import AnyPosterior
from dmcmc_core.errors import TooFew
from dmcmc_core.runs.kinds import ChainedPlan, IntegratorPlan
from dmcmc_core.runs.model import device_of
from dmcmc_core.streams import Streams

TOLERANCES = tuple(10 ** (-k / 4) for k in range(25))
"""1 to 1e-6, in the order in which they are tried."""
PILOT, PILOT_WINDOWS = 64, 8
"""Images that a trial integrates, and windows that it waits for at most."""


def with_tolerance(
    model: Denoiser,
    plan: IntegratorPlan,
    nfe: float,
    num: int,
    posterior: AnyPosterior | None,
    tried: dict[str, float] | None = None,
) -> IntegratorPlan:
    """Return the plan of an adaptive integrator with the smallest tolerance that keeps to ``nfe`` in a trial.

    The trial takes 64 images of other seeds, from windows early and late, and leaves 3 % of the budget as a margin, as
    other images need a little more or less.

    Args:
        tried: NFE of the integrator by tolerance, as far as known from trials at other budgets; more are added.

    Raises:
        UserError: when not even the loosest tolerance does.
    """
    fixed = (plan.chain_cost(num) if isinstance(plan, ChainedPlan) else 0.0) + (plan.tweedie is not None)
    fixed *= plan.rows_per_image
    counted, tried = count_nfe(model), {} if tried is None else tried
    start = functools.cache(lambda: pilot_start(model, plan, plan.windows(num), posterior))

    def used(tol: float) -> float:
        name = f"{tol:.6g}"
        if name not in tried:
            counted.reset()
            trial = replace(plan, options={**plan.options, "tol": tol})
            x, sigma = start()
            trial.integrate(counted, x, trial.levels_from(model, sigma), Streams(0, "pilot", range(PILOT)))
            tried[name] = counted.nfe
        return fixed + tried[name]

    low, high = 0, len(TOLERANCES)  # bisection: tolerances before low keep to the budget, those from high on do not
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if used(TOLERANCES[middle]) <= 0.97 * nfe else (low, middle)
    if low == 0:
        raise TooFew(
            f"{plan.sampler} uses {used(TOLERANCES[0]):.1f} NFE at its loosest tolerance {TOLERANCES[0]:g}: "
            f"{nfe:g}, less a margin of 3 %, is too small"
        )
    return replace(plan, options={**plan.options, "tol": TOLERANCES[low - 1]})


def pilot_start(
    model: Denoiser, plan: IntegratorPlan, windows: int, posterior: AnyPosterior | None
) -> tuple[Tensor, Tensor]:
    """Return x and sigma that 64 images of other seeds begin from, spread over the windows: chains may climb."""
    rng, device = Streams(0, "pilot", range(PILOT)), device_of(model)
    if not isinstance(plan, ChainedPlan):
        x = dmcmc.prior(model, rng, PILOT, plan.start, device)
        return x, x.new_full((PILOT,), model.sigma_max)
    posterior = posterior or dmcmc.calibrated(model, plan.chain, 0, device)
    chain = dmcmc.warm_up(model, posterior, plan.chain, rng, device)
    step = dmcmc.kernel(model, posterior, plan.chain, plan.chain.eta)
    walk = dmcmc.windows(step, chain, plan.chain, rng)
    starts = [window.start for window, _ in itertools.islice(walk, min(windows, PILOT_WINDOWS))]
    which = (torch.arange(PILOT) * windows // PILOT).clamp(max=len(starts) - 1)
    x, sigma = (torch.stack([getattr(s, name) for s in starts])[which, range(PILOT)] for name in ("x", "sigma"))
    return x, sigma
