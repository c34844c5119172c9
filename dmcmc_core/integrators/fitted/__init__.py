"""Solvers fitted to a network: the grid and the coefficients that come nearest to its accurate solution.

Linear least squares against accurate trajectories from the same noise, and a search of grids that asks no network. By
gradients through the network such solvers were fitted before: BNS (Shaul et al. 2024, arXiv 2403.01329), S4S (Frankel
et al. 2025, arXiv 2502.17423); by dynamic programming on pairs of levels, the grid of DDIM: GITS (arXiv 2405.11326).
"""

from __future__ import annotations

from dmcmc_core.integrators.fitted.fit import Options, fit, fit_all, told
from dmcmc_core.integrators.fitted.solver import Fitted, load_all, load_fitted, save_all, tabulate

__all__ = ["Fitted", "Options", "fit", "fit_all", "load_all", "load_fitted", "save_all", "tabulate", "told"]
