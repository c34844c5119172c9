"""Linear diffusions du = F(t) u dt + G(t) dw, and all that follows from F and G, in float64.

Scalar (VP, sub-VP, VE), one coefficient per frequency (blurring, BDM) and 2x2 blocks of position and velocity
(critically damped Langevin, CLD) behind one interface. With Psi(t, s) the transition matrix of F,

    u_t = Psi(t, 0) u_0 + R(t) epsilon,    R R^T = Sigma,    dR/dt = (F + G G^T Sigma^-1 / 2) R

(Zhang, Tao & Chen 2023, "gDDIM", arXiv 2206.05564, eq. 3-5 and 17; 0 < t < 1). Along a probability-flow trajectory of a
single datum epsilon is constant in this R, and in no other root of Sigma: that is what gDDIM rests on.

Times are numbers or tensors (...); a coefficient has the shape (..., *block): block () for scalars, (H, W) for
frequencies, (2, 2) for CLD. States are (B, ...): of images for scalars, of their DCT coefficients for BDM, of positions
followed by velocities along the channels (B, 2C, H, W) for CLD.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dmcmc_core.cosine_transform import dct
from dmcmc_core.errors import unknown
from dmcmc_core.linear_sde.base import LinearSDE, Time, as_time, check_constants
from dmcmc_core.linear_sde.blurring import BDM
from dmcmc_core.linear_sde.cld import CLD
from dmcmc_core.linear_sde.diagonal import VE, VP, Diagonal, SubVP

__all__ = [
    "BDM", "CLD", "DIFFUSIONS", "VE", "VP", "Diagonal", "LinearSDE", "SubVP", "Time", "as_time", "check_constants",
    "dct", "make_sde",
]  # fmt: skip

DIFFUSIONS: dict[str, Any] = {"VP": VP, "SubVP": SubVP, "VE": VE, "BDM": BDM, "CLD": CLD}


def make_sde(name: str, **constants: float) -> LinearSDE:
    """Make a diffusion by its name, with its constants; UserError for an unknown one of either."""
    if name not in DIFFUSIONS:
        raise unknown("diffusion", name, DIFFUSIONS)
    known = [field.name for field in dataclasses.fields(DIFFUSIONS[name])]
    for constant in constants:
        if constant not in known:
            raise unknown(f"constant of {name}", constant, known)
    return DIFFUSIONS[name](**constants)
