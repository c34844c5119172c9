"""What gDDIM is compared with: Euler-Maruyama, Heun, RK45, symmetric splitting, ancestral sampling."""

from __future__ import annotations

import itertools
import math

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.gddim.checks import check, check_choice, check_lam
from dmcmc_core.gddim.model import Epsilon, Noise, evaluate, finish, score_of, slope
from dmcmc_core.linear_sde import CLD, LinearSDE


@torch.no_grad()
def euler_maruyama(
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    lam: float = 1.0,
    last: str | None = None,
    released: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """Sample by Euler-Maruyama on du = [F u - (1 + lam^2) / 2 G G^T score] dt + lam G dw (paper, eq. 6).

    One call a step.

    Args:
        released: (1 + lam) / 2 in the place of (1 + lam^2) / 2, as in the published code.

    Other arguments, and errors, as for :func:`sample`.
    """
    check_lam(lam)
    check_choice("released", released)
    sde.check_state(u)
    grid, noise = check(sde, grid, 0), noise or torch.randn_like
    share = (1 + (lam if released else lam**2)) / 2
    for t, s in itertools.pairwise(grid.tolist()):
        score = score_of(sde, evaluate(sde, epsilon_model, u, t), t)
        drift = sde.apply(sde.F(t), u) - share * sde.apply(sde.GG(t), score)
        u = u + (s - t) * drift
        if lam:
            u = u + lam * math.sqrt(t - s) * sde.apply(sde.G(t), noise(u))
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


@torch.no_grad()
def heun(
    sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, grid: Tensor, *, last: str | None = None, noise=None
) -> Tensor:
    """Integrate by Heun's method on the probability flow, in t. Two calls a step."""
    sde.check_state(u)
    grid = check(sde, grid, 0)
    for t, s in itertools.pairwise(grid.tolist()):
        d = slope(sde, epsilon_model, u, t)
        u = u + (s - t) / 2 * (d + slope(sde, epsilon_model, u + (s - t) * d, s))
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


@torch.no_grad()
def rk45(
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    tol: float = 1e-5,
    last: str | None = None,
    noise=None,
) -> Tensor:
    """Integrate by Dormand-Prince 5(4) on the probability flow, in t, as published: one step size for the whole batch.

    Of the grid only the ends count. Every row depends on its batch mates.
    """
    if not 0 < tol < 1:
        raise UserError(f"tol must be above 0 and below 1, not {tol:g}")
    sde.check_state(u)
    grid = check(sde, grid, 0)

    def rate(t: float, y):
        state = torch.from_numpy(y).reshape(u.shape).to(u)
        return slope(sde, epsilon_model, state, float(t)).double().cpu().numpy().ravel()

    ends = grid[0].item(), grid[-1].item()
    solution = solve_ivp(rate, ends, u.double().cpu().numpy().ravel(), method="RK45", rtol=tol, atol=tol)
    if not solution.success:
        raise UserError(f"rk45 did not arrive at tol={tol:g}: {solution.message}")
    u = torch.from_numpy(solution.y[:, -1]).reshape(u.shape).to(u)
    return u if last is None else finish(sde, epsilon_model, u, ends[1], last)


@torch.no_grad()
def sscs(
    sde: CLD, epsilon_model: Epsilon, u: Tensor, grid: Tensor, *, last: str | None = None, noise: Noise | None = None
) -> Tensor:
    """Sample by symmetric splitting for CLD: half a step of what is linear, exact; a step of the score; the other half.

    Dockhorn, Vahdat & Kreis 2022 (arXiv 2112.07068), Section 4. One call a step. Seen backwards, the linear part is the
    forward diffusion with velocities reversed, so it has that one's transition and noise with the signs of v turned.
    """
    if not isinstance(sde, CLD):
        raise UserError(f"sscs splits the velocities of CLD, which {type(sde).__name__} has not")
    sde.check_state(u)
    grid, noise = check(sde, grid, 0), noise or torch.randn_like
    turn = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    rest = torch.linalg.inv(sde.prior @ sde.prior)  # of the stationary covariance

    def half(u: Tensor, width: float) -> Tensor:
        added = turn * sde.added(torch.tensor(width, dtype=torch.float64))
        return sde.apply(turn * sde.Psi(width, 0.0), u) + sde.apply(sde.root(added), noise(u))

    for t, s in itertools.pairwise(grid.tolist()):
        u = half(u, (t - s) / 2)
        middle = (t + s) / 2
        score = score_of(sde, evaluate(sde, epsilon_model, u, middle), middle)
        u = u + (t - s) * sde.apply(sde.GG(middle), score + sde.apply(rest, u))
        u = half(u, (t - s) / 2)
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


@torch.no_grad()
def ancestral(
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    last: str | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Sample ancestrally: from the posterior of u_s given u_t and the predicted datum, for each coefficient by itself.

    Hoogeboom & Salimans 2023 (arXiv 2209.05557), eq. 17-19, for BDM; DDPM's for VP. One call a step. The last step, as
    published, is the mean.
    """
    if isinstance(sde, CLD):
        raise UserError("ancestral sampling needs coefficients that commute, which those of CLD do not: use sscs")
    sde.check_state(u)
    grid, noise = check(sde, grid, 0), noise or torch.randn_like
    pairs = list(itertools.pairwise(grid.tolist()))
    for t, s in pairs:
        epsilon, psi = evaluate(sde, epsilon_model, u, t), sde.Psi(t, s)
        added = sde.Sigma(t) - psi**2 * sde.Sigma(s)  # variance of u_t given u_s
        kept = psi * sde.Sigma(s) / sde.Sigma(t)  # of u_t in the mean of u_s
        clean = sde.apply(sde.Psi(s, t), u - sde.apply(sde.R(t), epsilon))  # Psi(s, 0) times the predicted datum
        u = sde.apply(kept, u) + sde.apply(added / sde.Sigma(t), clean)
        if (t, s) != pairs[-1]:
            u = u + sde.apply((added * sde.Sigma(s) / sde.Sigma(t)).sqrt(), noise(u))
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)
