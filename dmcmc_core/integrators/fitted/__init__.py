"""Solvers fitted to a network: the grid and the coefficients that come nearest to its accurate solution.

Linear least squares against accurate trajectories from the same noise, and a search of grids that asks no network. By
gradients through the network such solvers were fitted before: BNS (Shaul et al. 2024, arXiv 2403.01329), S4S (Frankel
et al. 2025, arXiv 2502.17423); by dynamic programming on pairs of levels, the grid of DDIM: GITS (arXiv 2405.11326).
"""

from __future__ import annotations

from dmcmc_core.integrators.fitted.file import load_all, load_fitted, load_from_levels
from dmcmc_core.integrators.fitted.fit import fit, fit_all, fit_from_levels, told
from dmcmc_core.integrators.fitted.from_levels import FromLevels
from dmcmc_core.integrators.fitted.modes import Modes
from dmcmc_core.integrators.fitted.options import Options
from dmcmc_core.integrators.fitted.solver import Fitted, save_all
from dmcmc_core.integrators.fitted.table import tabulate

__all__ = [
    "Fitted", "FromLevels", "Modes", "Options", "fit", "fit_all", "fit_from_levels", "load_all", "load_fitted",
    "load_from_levels", "save_all", "tabulate", "told",
]  # fmt: skip
