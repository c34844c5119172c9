"""Linear preconditioners M of the Langevin and reverse diffusions: gains per frequency, gains per pixel, a skew term.

Preconditioned Diffusion Sampling (Ma et al. 2022, arXiv 2207.02196; 2023, arXiv 2302.06504) follows

    dx = (M M^T + S) score(x) dt / 2 + M dw,    M z = F^-1 [b . F (a . z)],    S f = F^-1 [i q . F f]

with frequency gains b (real and even), pixel gains a, and a response q (real and odd, so that S is skew). Any M that
can be inverted and any S leave the law that the Langevin diffusion keeps as it is. F is the Fourier transform over the
last two axes of an image, over the only axis of a vector (d,). In coordinates y = M^-1 x this is the plain diffusion,
which is why every kernel can take it: positions move by M, gradients come by M^T.
"""

from __future__ import annotations

from dmcmc_core.preconditioning.model import NoiseOnly, WithPreconditioner, is_preconditioned
from dmcmc_core.preconditioning.moments import Array, Moments, exact_moments, moments
from dmcmc_core.preconditioning.operator import Preconditioner
from dmcmc_core.preconditioning.recipes import RECIPES

__all__ = [
    "RECIPES",
    "Array",
    "Moments",
    "NoiseOnly",
    "Preconditioner",
    "WithPreconditioner",
    "exact_moments",
    "is_preconditioned",
    "moments",
]
