"""Solvers fitted to a model as a run takes it, kept by the model's identity: one fit serves all runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmcmc_core import files
from dmcmc_core.errors import LOG, TooFew, UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.integrators.fitted import (
    Fitted,
    FromLevels,
    fit_all,
    fit_from_levels,
    load_all,
    load_from_levels,
    save_all,
)
from dmcmc_core.integrators.fitted.fit import FIRSTS
from dmcmc_core.integrators.fitted.job import PEERS, PROBE, PROBED
from dmcmc_core.integrators.fitted.options import Options
from dmcmc_core.runs.kinds import ChainedFittedPlan, FittedPlan, Plan, split
from dmcmc_core.runs.model import Model, prepared
from dmcmc_core.runs.plan import Request, calls_of_fitted
from dmcmc_core.runs.settings import OF_MODEL
from dmcmc_core.samplers import FITTED

LEAST = 2
"""Network calls of a fitted solver, at least."""
TRAJECTORIES = 64
"""Accurate trajectories of a fit."""


def solvers(
    model: Model,
    budgets: Sequence[int],
    settings: dict[str, Any] | None = None,
    *,
    chains: bool = False,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int, list[Fitted]]:
    """Return solvers fitted to a model of the class, guidance and levels of the settings, by network calls.

    Args:
        model: as loaded.
        budgets: network calls of an image.
        settings: those of a run that belong to the model, see :func:`dmcmc_core.runs.model.conditioned`.
        chains: whether the solvers are for states of chains, from several levels; else one from noise.
        cache_dir: keeps what an interrupted fit has computed; exp/cache of the checkout when None.
        say: takes a line for each solver.
        options: see :func:`dmcmc_core.integrators.fit_all`.

    Raises:
        UserError: see there; for a setting that does not belong to the model.
    """
    request, rest = prepared(model, FITTED.name, settings)
    if rest:
        raise UserError(f"{next(iter(rest))} does not belong to the model: a fit takes {', '.join(OF_MODEL)}")
    how: dict[str, Any] = {"keep": _folder(cache_dir), "say": say} | options
    denoiser: Any = request
    found: dict[int, Any] = fit_from_levels(denoiser, budgets, **how) if chains else fit_all(denoiser, budgets, **how)
    return {calls: list(one.solvers) if isinstance(one, FromLevels) else [one] for calls, one in found.items()}


def solver_file(
    model: Model,
    nfe: float,
    settings: dict[str, Any] | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    **where: Any,
) -> Path:
    """Return the file of a solver for a budget of network evaluations; it is fitted unless it is there.

    Args:
        model, nfe, settings, where: see :func:`place`.
        say: takes a line for each part that is done.

    Raises:
        UserError: see :func:`solvers` and :func:`place`; for a model without weights that could name it.
    """
    settings, sampler, cache_dir = settings or {}, where.get("sampler", FITTED.name), where.get("cache_dir")
    (path, calls), chained = place(model, nfe, settings, **where), split(sampler)[0]
    if not _whole(path, chained):
        say(f"{sampler}: a solver of {calls} calls is fitted once to this model, and kept in {path}")
        of_model = {name: value for name, value in settings.items() if name in OF_MODEL}
        how: dict[str, Any] = {"chains": chained, "cache_dir": cache_dir, "say": say, "trajectories": TRAJECTORIES}
        found = solvers(model, [calls], of_model, **how)
        save_all(path, found[calls])
        say(cost_of(found))
    return path


def _whole(path: Path, chained: bool) -> bool:
    """Tell whether a file of solvers is there and can be read; a damaged one is made again."""
    try:
        return bool((load_from_levels if chained else load_all)(path))
    except UserError:
        return False


def place(  # noqa: PLR0913  a run as it is asked for
    model: Model,
    nfe: float,
    settings: dict[str, Any] | None = None,
    *,
    sampler: str = FITTED.name,
    num: int = 1,
    cache_dir: str | Path | None = None,
) -> tuple[Path, int]:
    """Return where the solver for a budget is kept once it is fitted, and its network calls.

    Args:
        nfe: network evaluations of an image.
        settings: of the run.
        sampler: ``fitted`` or ``dlg+fitted``, whose chains leave the solver what they do not take themselves.
        num: images of the run, which share the warm-up of chains.
        cache_dir: exp/cache of the checkout when None.

    Raises:
        UserError: for a budget that leaves the solver fewer than two calls.
    """
    request = Request(model, sampler, settings)
    calls = calls_of_fitted(request, nfe, num)
    if calls < LEAST:
        why = f": more than that goes to the chains, whose warm-up {num} images share" if split(sampler)[0] else ""
        raise TooFew(f"{nfe:g} NFE leave a fitted solver {max(calls, 0)} calls, and it needs at least {LEAST}{why}")
    kind = "chains-" if split(sampler)[0] else ""
    return _folder(cache_dir) / f"{fingerprint(request.model)[:16]}-{kind}{calls}.safetensors", calls


def cost_at_most(calls: int, chained: bool = False) -> int:
    """Return the network calls that a fit takes, from noise or for chains, if every classical solver comes near it."""
    held_out, solvers = Options().held_out, 1 + len(FIRSTS) if chained else 1
    accurate = (TRAJECTORIES + held_out) * max(32, 2 * calls)
    tried = 2 * TRAJECTORIES + held_out * (1 + len(PEERS))  # two grids are fitted, and the better one is tried
    return accurate + PROBE * PROBED + solvers * calls * tried


def say_unused(request: Request, plan: Plan, nfe: float, num: int) -> None:
    """Say where a file of solvers has none of as many calls as the budget pays for."""
    if not isinstance(plan, FittedPlan | ChainedFittedPlan) or plan.levels is None:
        return
    calls = calls_of_fitted(request, nfe, num)
    if calls > plan.levels:
        LOG.warning(
            f"{calls} network calls are paid for, and the largest solver in {plan.file} takes {plan.levels}: "
            f"fit one of {calls}, or leave file out"
        )


def _folder(cache_dir: str | Path | None) -> Path:
    return (files.root() / "exp" / "cache" if cache_dir is None else Path(cache_dir)) / "fitted"


def cost_of(found: dict[int, list[Fitted]]) -> str:
    """Say what fits cost, and, where budgets were fitted together, after how many images that is paid."""
    from_noise = {calls: some[-1] for calls, some in found.items()}  # the last one is from sigma_max
    cost = next(iter(from_noise.values())).cost
    text = f"the fit took {cost} evaluations"
    best = {calls: min(one.card["peers"].values()) for calls, one in from_noise.items()}
    for calls, one in sorted(from_noise.items()):
        text += f"; as many as {cost / calls:.0f} images at {calls} calls"
        equal = [other for other, error in sorted(best.items()) if other > calls and error <= one.card["held_out"]]
        if equal:
            text += f", and paid after {cost / (equal[0] - calls):.0f}, as classical solvers need {equal[0]} calls"
    return text
