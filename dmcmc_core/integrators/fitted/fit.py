"""Fit solvers to a network, for one budget or several, from noise or from any level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dmcmc_core.denoiser import Denoiser
from dmcmc_core.errors import UserError, native, number
from dmcmc_core.integrators.fitted.from_levels import FromLevels
from dmcmc_core.integrators.fitted.job import Job
from dmcmc_core.integrators.fitted.options import Options
from dmcmc_core.integrators.fitted.solver import Fitted

FIRSTS = (0.25, 0.5, 1, 2, 4, 8)
"""First levels of solvers for states at any level, in units of the data's range; the last one is sigma_max."""


def fit(model: Denoiser, nfe: int, trajectories: int = 64, seed: int = 0, **options: Any) -> Fitted:
    """Return the solver of ``nfe`` network calls that comes nearest to the accurate solution from the same noise.

    Args:
        model: any denoiser; of classes, held to one or more.
        nfe: network calls, at least 2.
        trajectories: accurate ones that it is fitted to.
        seed: of their noise, and of that on which the fit is tried.
        options: fields of :class:`Options`.

    Raises:
        UserError: for a budget below 2, fewer trajectories than unknowns of a step, an option that is not known or out
            of its range, a start at a mean that the model does not know, and a network whose answers are not finite.
    """
    return fit_all(model, [nfe], trajectories, seed, **options)[nfe]


def fit_all(
    model: Denoiser,
    budgets: Iterable[int],
    trajectories: int = 64,
    seed: int = 0,
    *,
    keep: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int, Fitted]:
    """Return a solver for each budget; they share their accurate trajectories. See :func:`fit`.

    Args:
        keep: folder of what was computed, from which an interrupted fit goes on; None: nothing is kept.
        say: takes a line for each part that is done.
    """
    budgets = _numbers(budgets)
    job, solvers = _job(model, budgets, trajectories, seed, keep, options), {}
    for nfe in budgets:
        say(f"{nfe} calls: grids are searched, without the network")
        solvers[nfe] = job.solver(nfe)
        say(told(solvers[nfe]))
    _say_kept(job, say)
    return {nfe: _with_cost(one, job) for nfe, one in solvers.items()}


def fit_from_levels(
    model: Denoiser,
    budgets: Iterable[int],
    levels: Sequence[float] | None = None,
    trajectories: int = 64,
    seed: int = 0,
    *,
    keep: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int, FromLevels]:
    """Return solvers for states at any noise level, such as chains leave, for each budget.

    Args:
        levels: from which solvers are fitted; each becomes the nearest one of the accurate trajectories, and sigma_max
            is always one. None: FIRSTS.
        budgets, trajectories, seed, keep, say, options: as of :func:`fit_all`.

    Raises:
        UserError: as :func:`fit`; for a level that the model has not, and coefficients of modes.
    """
    budgets = _numbers(budgets)
    low, high = getattr(model, "data_range", (0.0, 1.0))
    if levels is None:
        levels = [s for s in ((high - low) * f for f in FIRSTS) if model.sigma_min < s < model.sigma_max]
    for level in levels:
        number("levels", level, above=model.sigma_min, most=model.sigma_max)
    job = _job(model, budgets, trajectories, seed, keep, options, levels)
    if job.forms != [None]:
        raise UserError("solvers from several levels have coefficients of pixels: leave covariance out")
    found = {}
    for nfe in budgets:
        say(f"{nfe} calls: grids are searched, without the network")
        solvers = [job.solver(nfe, first) for first in (*job.firsts[::-1], model.sigma_max)]
        for one in solvers:
            say(f"from level {one.card['first']:.3g}, {told(one)}")
        found[nfe] = solvers
    _say_kept(job, say)
    return {nfe: FromLevels(tuple(_with_cost(one, job) for one in some)) for nfe, some in found.items()}


def _numbers(budgets: Any) -> list[int]:
    """Return budgets of network calls; UserError for none, and for what is no list of them."""
    if not isinstance(budgets, Iterable) or isinstance(budgets, str) or not (found := list(budgets)):
        raise UserError(f"budgets must be a list of network calls, such as [5, 10], not {budgets!r:.60}")
    return [number("nfe", nfe, least=2, whole=True) for nfe in found]


def _job(  # noqa: PLR0913  what a fit may be told
    model: Denoiser,
    budgets: Sequence[int],
    trajectories: int,
    seed: int,
    keep: str | Path | None,
    options: dict[str, Any],
    firsts: Sequence[float] = (),
) -> Job:
    """Return the fit that is asked for, once all of it is checked."""
    if not all(hasattr(model, name) for name in ("shape", "sigma_min", "sigma_max")):
        raise UserError(f"the model, a {type(model).__name__}, is no denoiser: dmcmc_core.denoiser.Adapter makes one")
    known = [field.name for field in dataclasses.fields(Options)]
    for name in options:
        if name not in known:
            raise UserError(f"unknown option of fit {name!r}: known are {', '.join(known)}")
    chosen = Options(**{name: native(value) for name, value in options.items()})
    if keep is not None and not isinstance(keep, str | Path):
        raise UserError(f"keep must be a folder or None, not {keep!r:.60}")
    trajectories, seed = number("trajectories", trajectories, least=2, whole=True), number("seed", seed, whole=True)
    if trajectories < 1 + chosen.past:
        raise UserError(
            f"trajectories={trajectories} are fewer than the {1 + chosen.past} unknowns of a step with past="
            f"{chosen.past}: take more, or fewer past values"
        )
    start = chosen.start or ("mean" if getattr(model, "mean", None) is not None else "zero")
    calls = chosen.accurate or max(32, 2 * max(budgets))
    return Job(model, trajectories, seed, start, calls, chosen, keep, firsts)


def _say_kept(job: Job, say: Callable[[str], None]) -> None:
    """Say how much of a fit was computed before."""
    if job.evaluated < job.rows:
        say(f"{job.rows - job.evaluated} of the fit's {job.rows} evaluations were kept from before")


def _with_cost(solver: Fitted, job: Job) -> Fitted:
    return dataclasses.replace(solver, card=solver.card | {"cost": job.rows})


def told(solver: Fitted) -> str:
    """Return a line of a solver's errors on noise of its own."""
    card = solver.card
    peer = min(card["peers"], key=lambda name: card["peers"][name])
    return (
        f"{card['budget']} calls: {card['solver']}, paired error {card['held_out']:.4f} on {card['held_out_images']} "
        f"images of other noise; the best classical solver is {peer} at {card['peers'][peer]:.4f}"
    )
