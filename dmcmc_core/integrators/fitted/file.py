"""Fitted solvers from safetensors: those of several budgets, or from several first levels, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmcmc_core import schedules
from dmcmc_core.errors import UserError, number
from dmcmc_core.integrators.fitted.from_levels import FromLevels
from dmcmc_core.integrators.fitted.modes import Modes
from dmcmc_core.integrators.fitted.solver import Fitted
from dmcmc_core.integrators.gaussian_split import Spectrum


def load_fitted(path: str | Path, nfe: int | None = None) -> Fitted:
    """Return the solver of a file that :meth:`Fitted.save` or the command ``fit`` wrote.

    Args:
        path: of the file.
        nfe: its network calls, where the file has solvers of several budgets.

    Raises:
        UserError: for a file that is missing, damaged or of another kind, and a budget that it has not.
    """
    solvers = load_all(path)
    if nfe is not None:
        number("nfe", nfe, least=1, whole=True)
    if nfe is None and len(solvers) > 1:
        raise UserError(f"{path} has solvers of {listed(solvers)} calls: choose one by nfe")
    if nfe is not None and nfe not in solvers:
        raise UserError(f"{path} has solvers of {listed(solvers)} calls, not of {nfe:g}")
    return solvers[next(iter(solvers)) if nfe is None else nfe]


def listed(solvers: Iterable[int]) -> str:
    """Return the budgets of some solvers as text."""
    return ", ".join(map(str, sorted(solvers)))


def load_all(path: str | Path) -> dict[int, Fitted]:
    """Return the solvers of a file from noise by their network calls; errors as :func:`load_fitted`."""
    found = {_calls(one): one for one in _solvers(path) if one.card.get("first") is None}
    if not found:
        raise UserError(f"{path} has solvers for the states of chains: dlg+fitted takes it, fitted needs another")
    return found


def load_from_levels(path: str | Path) -> dict[int, FromLevels]:
    """Return the solvers of a file from several levels by their network calls; errors as :func:`load_fitted`."""
    found: dict[int, list[Fitted]] = {}
    for one in _solvers(path):
        if one.card.get("first") is not None:
            found.setdefault(_calls(one), []).append(one)
    if not found:
        raise UserError(f"{path} has solvers from noise alone: dlg+fitted needs a file of fit --chains")
    return {calls: FromLevels(tuple(sorted(some, key=lambda s: s.sigmas[0]))) for calls, some in found.items()}


def _calls(solver: Fitted) -> int:
    return int(solver.card.get("budget", solver.nfe))


def _solvers(path: str | Path) -> list[Fitted]:
    from safetensors import safe_open

    if not isinstance(path, str | Path):
        raise UserError(f"a file of fitted solvers is a path, not a {type(path).__name__}")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["fitted"])
            names = set(file.keys())
            solvers = [_read(file, names, name, held) for name, held in about.items()]
            if not solvers:
                raise ValueError("no solver in it")
    except Exception as error:  # whatever a broken file brings about
        raise UserError(f"{path} is no file of fitted solvers, or it is damaged: Fitted.save writes one") from error
    return solvers


def _read(file: Any, names: set[str], name: str, held: dict[str, Any]) -> Fitted:
    tensors = {
        what: file.get_tensor(full).clone() for full in names for start, what in [full.rsplit(".", 1)] if start == name
    }
    known = {"sigmas", "coefficients", "group", "mean", "variances", "axes"}
    if not tensors.keys() <= known or not all(tensors[n].is_floating_point() for n in tensors.keys() - {"group"}):
        raise ValueError("numbers of another kind")
    sigmas, coefficients = tensors["sigmas"].double(), tensors["coefficients"].double()
    schedules.check(sigmas[[0, -1]])  # between them a level may be asked twice, as by Heun's method
    if (sigmas.diff() > 0).any() or not sigmas.isfinite().all():
        raise ValueError("levels that rise")
    modes = None
    if "group" in tensors:
        spectrum = Spectrum(tensors["mean"], tensors["variances"], tensors.get("axes"))
        modes = Modes(spectrum, tensors["group"], bool(held["split"]))
    shape = coefficients.shape[:1] + (coefficients.shape[1:2] if modes else ())
    if coefficients.ndim != 2 + bool(modes) or shape != (len(sigmas) - 1, *([modes.groups] if modes else [])):
        raise ValueError("coefficients that do not fit the levels")
    if coefficients.shape[-1] < 2 or not coefficients.isfinite().all():
        raise ValueError("coefficients that are not finite, or none of a denoised image")
    card, jump = held["card"], held["jump"]
    if held["start"] not in ("zero", "mean") or not isinstance(card, dict) or not isinstance(jump, bool):
        raise ValueError("an unknown start, jump or card")
    solver = Fitted(sigmas, coefficients, jump, held["start"], card, modes)
    number("nfe", solver.nfe, least=1)
    number("budget", card.get("budget", solver.nfe), least=solver.nfe, whole=True)
    return solver
