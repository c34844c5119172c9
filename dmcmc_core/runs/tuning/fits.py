"""Whether a search may fit a solver: unless that costs more than the images it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmcmc_core.errors import TooFew
from dmcmc_core.integrators.fitted import FromLevels, load_all, load_from_levels
from dmcmc_core.runs.fitting import cost_at_most, place, solver_file
from dmcmc_core.runs.kinds import split
from dmcmc_core.runs.plan import CHAIN_SETTINGS
from dmcmc_core.runs.settings import OF_MODEL
from dmcmc_core.runs.tuning.notes import Notes

OF_CHAINS = {"integrator", "posterior", "levels"} | CHAIN_SETTINGS - {"start"}
"""Settings that a plain sampler does not share with the chains."""
OF_FITTED = ("block", "cast")
"""Settings that a fitted solver leaves to the user."""


def fitted_file(  # noqa: PLR0913  a run as it is asked for, and where the search tells of itself
    model: Any,
    sampler: str,
    settings: Mapping[str, Any],
    asked: Mapping[str, Any],
    notes: Notes,
    say: Callable[[str], None],
    cache_dir: str | Path | None,
) -> tuple[Path | None, int, str]:
    """Return the file of a solver, or None where it is not considered; what its fit cost this search; and why so.

    Args:
        model: as loaded.
        sampler: ``fitted`` or ``dlg+fitted``.
        settings: of the run, those of the model among them.
        asked: ``nfe``, ``num`` and the settings that the user has ``fixed``.
        cache_dir: keeps the solver, see :func:`dmcmc_core.runs.fitting.solver_file`.
    """
    nfe, num, fixed = asked["nfe"], asked["num"], asked["fixed"]
    others = fixed.keys() - {*OF_MODEL, *OF_FITTED} - (OF_CHAINS - {"integrator", "levels"})
    if others:
        return None, 0, f"{sampler} was not considered, as {min(others)} is set"
    where: dict[str, Any] = {"sampler": sampler, "num": num, "cache_dir": cache_dir}
    try:
        path, calls = place(model, nfe, dict(settings), **where)
    except TooFew as reason:
        return None, 0, f"{sampler} was not considered: {reason}"
    name, chained = f"fit of {sampler}", split(sampler)[0]
    if name not in notes.content:
        most = getattr(model, "rows_per_image", 1) * cost_at_most(calls, chained)
        if not path.is_file() and most > num * nfe:
            return (
                None, 0,
                f"{sampler} was not considered: its fit may cost {most} evaluations, and {num} images at this "
                f"budget cost {num * nfe:g}",
            )  # fmt: skip
        notes.keep(**{name: "there" if path.is_file() else "made"})
    path = solver_file(model, nfe, dict(settings), say=say, **where)
    if notes.content[name] == "there":
        return path, 0, "it was fitted before"
    one = next(iter((load_from_levels if chained else load_all)(path).values()))
    cost = (one.solvers[-1] if isinstance(one, FromLevels) else one).cost
    return path, cost, f"its fit cost {cost} evaluations, {num} images cost {num * nfe:g}"
