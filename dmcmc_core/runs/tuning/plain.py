"""The plain sampler nearest to the accurate solution: integrators on their grids, and a fitted solver where that pays.

Integrators that add no noise go from the same noise to the same image, up to their errors: far fewer images tell these
apart than distributions. All are tried on a few images first, and those that come near on all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError
from dmcmc_core.runs.plan import plan
from dmcmc_core.runs.settings import OF_MODEL
from dmcmc_core.runs.tuning.fits import OF_CHAINS, OF_FITTED, fitted_file
from dmcmc_core.runs.tuning.paired import ALL, FIRST, Paired
from dmcmc_core.samplers import FITTED, INTEGRATORS

GRIDS = ("karras", "log_uniform")
NEAR = 1.5
"""Samplers within so many times the least error on the first images are tried on all."""
Plans = list[tuple[dict[str, Any], Any]]


def candidates(model: Any, nfe: float, num: int, fixed: Mapping[str, Any]) -> Plans:
    """Return settings and plan of every integrator that adds no noise on each grid, as far as the settings allow.

    Raises:
        UserError: the first reason, where they allow none.
    """
    common = {name: value for name, value in fixed.items() if name not in OF_CHAINS}
    grids = [fixed["schedule"]] if "schedule" in fixed else GRIDS
    found, reasons = [], []
    for name, entry in INTEGRATORS.items():
        if entry.calls is None or entry.stochastic or fixed.get("integrator", name) != name:
            continue
        for grid in grids:
            settings = common | {"schedule": grid}
            try:  # an option may be another integrator's, a budget too small for this one
                found.append((settings, plan(model, name, nfe, num, settings)))
            except UserError as reason:
                reasons.append(reason)
    if reasons and not found:
        raise reasons[0]
    return found


def ranked(paired: Paired, plans: Plans) -> list[dict[str, Any]]:
    """Return a row for each plan, see :meth:`Paired.row`: those tried on all images first, the nearest first."""
    first = [paired.row(made, settings, FIRST) for settings, made in plans]
    near = NEAR * min(row["error"] for row in first)
    rows = [
        paired.row(made, settings, ALL) if row["error"] <= near else row
        for row, (settings, made) in zip(first, plans, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row["images"], row["error"]))


def consider_fitted(
    paired: Paired, model: Any, asked: Mapping[str, Any], cache_dir: str | Path | None
) -> tuple[dict[str, Any] | None, int, str]:
    """Return the row of a fitted solver, unless its fit may cost more than the images; its cost; and why so.

    Args:
        model, asked, cache_dir: see :func:`dmcmc_core.runs.tuning.fits.fitted_file`.
    """
    nfe, fixed = asked["nfe"], asked["fixed"]
    kept = {name: fixed[name] for name in (*OF_MODEL, *OF_FITTED) if name in fixed}
    file, cost, why = fitted_file(model, FITTED.name, kept, asked, paired.notes, paired.say, cache_dir)
    if file is None:
        return None, 0, why
    settings = {name: kept[name] for name in OF_FITTED if name in kept} | {"file": str(file)}
    row = paired.row(plan(paired.model, FITTED.name, nfe, asked["num"], settings), settings, ALL)
    return row, cost, f"{FITTED.name} is at {row['error']:.3g}, and {why}"
