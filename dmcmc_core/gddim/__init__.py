"""gDDIM: exponential integrators for any linear diffusion (Zhang, Tao & Chen 2023, arXiv 2206.05564).

A network tells epsilon(u, t), in the coordinates R of :mod:`dmcmc_core.linear_sde`: score = -R^-T epsilon. Each
step from time t to an earlier s is exact in the linear part of the diffusion, and takes epsilon for

* a polynomial in time through its last values (:func:`sample` with ``degree``; eq. 19), which a corrector may pass
  through the value at the predicted point as well;
* or what it would be for a single datum, with fresh noise of size lambda (``lam``; eq. 22).

Every step's coefficients are known before it starts: they are integrals over the diffusion alone.
"""

from __future__ import annotations

from dmcmc_core.gddim.baselines import ancestral, euler_maruyama, heun, rk45, sscs
from dmcmc_core.gddim.checks import check
from dmcmc_core.gddim.coefficients import PANELS, corrector_coefficients, predictor_coefficients
from dmcmc_core.gddim.covariance import released_covariance, stochastic_covariance
from dmcmc_core.gddim.draw import (
    SAMPLERS,
    Draws,
    check_options,
    count,
    draw,
    images,
    options_of,
    prior,
    steps_of,
    times,
)
from dmcmc_core.gddim.model import Epsilon, FromDenoiser, Noise, evaluate, finish, from_denoiser, slope
from dmcmc_core.gddim.sampler import sample

__all__ = [
    "PANELS",
    "SAMPLERS",
    "Draws",
    "Epsilon",
    "FromDenoiser",
    "Noise",
    "ancestral",
    "check",
    "check_options",
    "corrector_coefficients",
    "count",
    "draw",
    "euler_maruyama",
    "evaluate",
    "finish",
    "from_denoiser",
    "heun",
    "images",
    "options_of",
    "predictor_coefficients",
    "prior",
    "released_covariance",
    "rk45",
    "sample",
    "slope",
    "sscs",
    "steps_of",
    "stochastic_covariance",
    "times",
]
