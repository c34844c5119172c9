"""The covariance of the noise of a stochastic step: the paper's, in closed form, and that of the released code."""

from __future__ import annotations

from typing import Any

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dmcmc_core.gddim.checks import check, check_lam, one_time
from dmcmc_core.linear_sde import CLD, LinearSDE


def stochastic_covariance(sde: LinearSDE, t: float, s: float, lam: float) -> Tensor:
    """Return P of eq. 22-23, the covariance of the noise of a step from s down to t: R(t) (1 - X X^T) R(t)^T, (*block).

    X is :meth:`dmcmc_core.linear_sde.LinearSDE.stretch`; the paper leaves P as an ordinary differential equation. P = 0
    at lam = 0; at lam = 1 on VP it is the variance of DDPM's ancestral sampling.

    Raises:
        UserError: a time that is no number or outside the diffusion's, t not below s, lam below 0.
    """
    check_lam(lam)
    times = check(sde, [one_time("s", s), one_time("t", t)], 0)
    stretch, root = sde.stretch(times[1], times[0], lam), sde.R(times[1])
    return sde.product(sde.product(root, sde.one - sde.product(stretch, sde.transpose(stretch))), sde.transpose(root))


def released_covariance(sde: CLD, t: float, s: float, lam: float) -> Tensor:
    """Return what the published code has in the place of P for CLD, with no transpose: P' = F^ P + P F^ - noise.

    Not symmetric; drawn from by its singular values, so that noise has the covariance (P P^T)^(1/2), which is returned.
    That is far too much at low noise. ``sample(..., released=True)`` draws from it, and adds none in the last step.
    """
    check_lam(lam)
    s, t = check(sde, [one_time("s", s), one_time("t", t)], 0).tolist()

    def rate(tau: float, flat) -> Any:
        p = torch.from_numpy(flat.reshape(2, 2))
        noise, sigma = sde.GG(tau), sde.Sigma(tau)
        drift = sde.F(tau) + (1 + lam**2) / 2 * noise @ torch.linalg.inv(sigma)
        return (drift @ p + p @ drift - lam**2 * noise).numpy().ravel()

    solution = solve_ivp(rate, (s, t), [0.0] * 4, method="DOP853", rtol=1e-9, atol=1e-14)
    left, size, _ = torch.linalg.svd(torch.from_numpy(solution.y[:, -1].reshape(2, 2)))
    return left @ size.diag() @ left.mT
