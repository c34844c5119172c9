"""Checks of what samplers and coefficients of linear diffusions are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, is_number
from dmcmc_core.linear_sde import CLD, LinearSDE, as_time


def check(sde: LinearSDE, grid: Any, degree: int) -> Tensor:
    """Return the grid in float64, if a sampler can walk it; UserError if not."""
    try:
        grid = torch.as_tensor(grid, dtype=torch.float64).cpu()
    except (TypeError, ValueError) as error:
        raise UserError(f"grid must be descending times, (N + 1,), not {grid!r:.60}") from error
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError(f"grid must be descending times, (N + 1,) with N at least 1, not of shape {tuple(grid.shape)}")
    grid = as_time(grid, 0.0, 1.0)
    if not (grid.diff() < 0).all():
        raise UserError(f"grid must descend from the last time to the first, not go {grid[:3].tolist()} ...")
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
        raise UserError(f"degree must be a whole number from 0, not {degree!r}")
    if degree > len(grid) - 2:
        raise UserError(
            f"degree {degree} needs at least {degree + 1} steps, and the grid has {len(grid) - 1}: "
            f"at most {len(grid) - 2} is possible"
        )
    return grid


def check_root(sde: LinearSDE, root: str) -> str:
    """Return the root that a name means: ``R`` too where L is the same."""
    if root not in ("R", "L"):
        raise UserError(f"root must be 'R' or 'L', not {root!r}")
    return root if isinstance(sde, CLD) else "R"


def check_choice(name: str, value: bool) -> None:
    """Raise UserError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {value!r:.40}")


def one_time(name: str, t: Any) -> float:
    """Return one number of Python, NumPy or torch, as a float."""
    one = t.item() if getattr(t, "ndim", None) == 0 else t
    if not is_number(one):
        raise UserError(f"{name} must be one time, a number between 0 and 1, not {t!r:.60}")
    return float(one)


def check_lam(lam: float) -> None:
    """Raise UserError for a lambda that is no number, or below 0."""
    if not is_number(lam) or not 0 <= lam < float("inf"):
        raise UserError(f"lambda must be at least 0 and finite, not {lam!r:.60}")
