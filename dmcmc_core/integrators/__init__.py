"""Integrators of the reverse diffusion, one readable function per published algorithm.

Each takes images at noise level ``sigmas[..., 0]`` to level ``sigmas[..., -1]``::

    heun(denoiser, x, sigmas, *, noise=None, callback=None, ...) -> x

with ``x`` of shape (B, *shape), distributed as data + sigmas[..., 0] * normal, and ``sigmas`` of shape (N + 1,) or
(B, N + 1), strictly descending, ending at any level >= 0. ``noise`` maps a tensor to standard normals like it (None:
torch's global generator); ``callback(step, steps, sigma, x)`` is called after every step. The state is kept in float32
at least. No graph of the operations is kept, unless by ``grad=True``, as guidance by gradients needs it. All raise
UserError for a grid that :func:`dmcmc_core.schedules.check` refuses or that leaves the levels of the model, and for an
option outside its range (:data:`dmcmc_core.samplers.OPTIONS`).

The probability-flow ODE in these terms is dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, arXiv 2206.00364,
eq. 4 with s = 1); the reverse SDE of the variance-exploding diffusion is in Song et al. 2021 (arXiv 2011.13456).
"""

from __future__ import annotations

from dataclasses import replace

from dmcmc_core import samplers
from dmcmc_core.integrators.fitted import Fitted, fit, fit_all, load_fitted
from dmcmc_core.integrators.gaussian_split import Spectrum, gaussian_split
from dmcmc_core.integrators.multistep import deis, dpmpp_2m, dpmpp_3m, ipndm, unipc
from dmcmc_core.integrators.one_step import euler, heun, heun_churn, heun_step, tweedie
from dmcmc_core.integrators.reverse_diffusion import (
    ancestral,
    euler_maruyama,
    langevin_correction,
    predictor_corrector,
    probability_flow,
    reverse_diffusion,
)
from dmcmc_core.integrators.runge_kutta import rho_rk, rk45
from dmcmc_core.samplers import OPTIONS, Integrator, Registry

FUNCTIONS = (
    euler, heun, heun_churn, probability_flow, reverse_diffusion, euler_maruyama, ancestral, dpmpp_2m,
    predictor_corrector, rk45, deis, ipndm, rho_rk, dpmpp_3m, unipc,
)  # fmt: skip
INTEGRATORS = Registry((f.__name__, replace(samplers.INTEGRATORS[f.__name__], function=f)) for f in FUNCTIONS)
"""The entries of :data:`dmcmc_core.samplers.INTEGRATORS` with their functions: these can be called."""

__all__ = [
    "FUNCTIONS", "Fitted", "INTEGRATORS", "OPTIONS", "Integrator", "Registry", "Spectrum", "fit", "fit_all",
    "gaussian_split", "heun_step", "langevin_correction", "load_fitted", "tweedie",
    *(f.__name__ for f in FUNCTIONS),
]  # fmt: skip
