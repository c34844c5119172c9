"""Solvers fitted to a model as a run takes it, kept by the model's identity: one fit serves all runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmcmc_core import files
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.integrators.fitted import Fitted, fit_all, save_all
from dmcmc_core.runs.model import Model, prepared
from dmcmc_core.samplers import FITTED


def solvers(
    model: Model,
    budgets: Sequence[int],
    settings: dict[str, Any] | None = None,
    *,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int, Fitted]:
    """Return solvers fitted to a model of the class, guidance and levels of the settings, by network calls.

    Args:
        model: as loaded.
        budgets: network calls of an image.
        settings: those of a run that belong to the model, see :func:`dmcmc_core.runs.model.conditioned`.
        cache_dir: keeps what an interrupted fit has computed; exp/cache of the checkout when None.
        say: takes a line for each budget.
        options: see :func:`dmcmc_core.integrators.fit_all`.

    Raises:
        UserError: see there; for a setting that does not belong to the model.
    """
    request, rest = prepared(model, FITTED.name, settings)
    if rest:
        raise UserError(f"{next(iter(rest))} does not belong to the model: a fit takes its class, guidance and levels")
    folder = files.root() / "exp" / "cache" if cache_dir is None else Path(cache_dir)
    return fit_all(request, budgets, keep=folder / "fitted", say=say, **options)  # pyright: ignore[reportArgumentType]


def solver_file(
    model: Model,
    nfe: int,
    settings: dict[str, Any] | None = None,
    *,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the file of a solver for a budget of network evaluations; it is fitted unless it is there.

    Raises:
        UserError: see :func:`solvers`; for a model without weights that could name it.
    """
    request, _ = prepared(model, FITTED.name, settings)
    calls = int(nfe / getattr(request, "rows_per_image", 1))
    folder = files.root() / "exp" / "cache" if cache_dir is None else Path(cache_dir)
    path = folder / "fitted" / f"{fingerprint(request)[:16]}-{calls}.safetensors"
    if not path.is_file():
        say(f"fitted: a solver of {calls} calls is fitted once to this model, and kept in {path}")
        found = solvers(model, [calls], settings, cache_dir=cache_dir, say=say)
        save_all(path, list(found.values()))
        say(cost_of(found))
    return path


def cost_of(found: dict[int, Fitted]) -> str:
    """Say what fits cost, and, where budgets were fitted together, after how many images that is paid."""
    cost = next(iter(found.values())).cost
    text = f"the fit took {cost} evaluations"
    best = {calls: min(one.card["peers"].values()) for calls, one in found.items()}
    for calls, one in sorted(found.items()):
        text += f"; as many as {cost / calls:.0f} images at {calls} calls"
        equal = [other for other, error in sorted(best.items()) if other > calls and error <= one.card["held_out"]]
        if equal:
            text += f", and paid after {cost / (equal[0] - calls):.0f}, as classical solvers need {equal[0]} calls"
    return text
