"""Runge-Kutta methods: the classical ones in sigma, and Dormand-Prince 5(4) in log sigma with steps from the error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.integrate import RK45, solve_ivp
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, epsilon, like, total
from dmcmc_core.errors import UserError, number, one_of
from dmcmc_core.gradients import without_gradients
from dmcmc_core.integrators.one_step import tweedie
from dmcmc_core.integrators.registry import Callback, Noise, at_zero, report, state, steps
from dmcmc_core.samplers import INTEGRATORS

RUNGE_KUTTA = {
    "2heun": (((1.0,),), (1 / 2, 1 / 2)),
    "3kutta": (((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "4rk": (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""What each stage after the first takes of those before it, and the step of all."""


@without_gradients
def rho_rk(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    method: str = "4rk",
) -> Tensor:
    """Integrate by a classical Runge-Kutta method in sigma: rhoRK-DEIS.

    Zhang & Chen 2023 (arXiv 2204.13902), section 3.3. As many calls a step as ``method`` has stages, one for a step to
    0 (plain Euler): by ``4rk`` 4 N - 3 for N levels followed by 0.

    Args:
        method: ``2heun``, :func:`dmcmc_core.integrators.heun`; ``3kutta``; or ``4rk``. The number is stages and order.
    """
    INTEGRATORS["rho_rk"].check(method=method)
    x = state(denoiser, x, sigmas)
    for i, now, after in steps(x, sigmas.double()):
        dt, slopes = after - now, [epsilon(denoiser, x, now)]
        rows, weights = ((), (1.0,)) if at_zero(after) else RUNGE_KUTTA[method]
        for row in rows:
            inside = now + sum(row) * dt if sum(row) < 1 else after
            slopes.append(epsilon(denoiser, x + like(dt, x) * _combination(row, slopes), inside))
        x = x + like(dt, x) * _combination(weights, slopes)
        report(callback, i, sigmas, x)
    return x


def _combination(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return total(w * v for w, v in zip(weights, values, strict=True) if w)


@without_gradients
def rk45(  # noqa: PLR0913  the paper's arguments
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    tol: float = 1e-3,
    joint: bool = False,
    last: str | None = None,
    max_steps: int = 10_000,
) -> Tensor:
    """Integrate by Dormand-Prince 5(4) in log sigma with steps chosen from the error, for every sample by itself.

    Of ``sigmas`` only the ends count. Integrates dx/du = log(sigma_end / sigma_start) (x - D(x, sigma)) with
    sigma = sigma_start^(1-u) sigma_end^u from u = 0 to 1; it cannot step to 0. Calls: 2 + 6 for every step tried.

    Args:
        tol: relative and absolute tolerance of a step, root mean square over the pixels.
        joint: one step for the whole batch through ``scipy.integrate.solve_ivp``, as published: every sample then
            depends on its batch mates, and all wait for the worst.
        last: how a grid that ends at 0 is finished, by the denoised image of its last level above 0 (``tweedie``, one
            more call); None refuses such a grid.

    Raises:
        UserError: besides the grid's, tol <= 0, more than ``max_steps`` steps, a denoiser that is not finite, or a
            graph that is asked for by grad=True.
    """
    if torch.is_grad_enabled():
        raise UserError("rk45 works in place and keeps no graph: for gradients choose another integrator")
    x = state(denoiser, x, sigmas)
    INTEGRATORS["rk45"].check(tol=number("tol", tol, above=0), max_steps=max_steps)
    to_zero = at_zero(sigmas[..., -1])
    if to_zero and one_of("last", last, None, "tweedie") is None:
        raise UserError("rk45 steps in log sigma and cannot reach 0: end the grid above 0, or choose last='tweedie'")
    end = sigmas[..., -2 if to_zero else -1].to(x.device).expand(len(x)).double()
    start = sigmas[..., 0].to(x.device).expand(len(x)).double()

    def derivative(u: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        ratio = end[rows] / start[rows]
        dy = like(ratio.log(), y) * (y - denoiser(y, (start[rows] * ratio**u).to(y)))
        if not torch.isfinite(dy).all():  # no step would ever be small enough
            raise UserError("rk45 cannot go on: the denoiser gave values that are not finite")
        return dy

    if (end < start).all():  # a single level followed by 0 leaves only the last step
        x = (_rk45_joint if joint else _rk45_rows)(derivative, x, tol, max_steps)
    if to_zero:
        x = tweedie(denoiser, x, end)
    if callback:
        callback(1, 1, sigmas[..., -1], x)
    return x


def _rk45_joint(f: Callable, x: Tensor, tol: float, max_steps: int) -> Tensor:
    rows, calls = torch.arange(len(x), device=x.device), itertools.count()

    def flat(u: float, y: np.ndarray) -> np.ndarray:
        if next(calls) >= 2 + 6 * max_steps:
            raise _too_many(max_steps, tol)
        state = torch.from_numpy(y).to(x).reshape(x.shape)
        return (
            f(torch.full((len(x),), u, dtype=torch.float64, device=x.device), state, rows)
            .double()
            .cpu()
            .numpy()
            .ravel()
        )

    solution = solve_ivp(flat, (0.0, 1.0), x.double().cpu().numpy().ravel(), method="RK45", rtol=tol, atol=tol)
    if not solution.success:
        raise UserError(f"rk45 did not arrive at tol={tol:g}: {solution.message}")
    return torch.from_numpy(solution.y[:, -1]).to(x).reshape(x.shape)


def _rk45_rows(f: Callable, x: Tensor, tol: float, max_steps: int) -> Tensor:
    """Hairer, Norsett & Wanner, Solving ODEs I, II.4: first step, error test and step control, for every row alone."""
    x, u = x.clone(), x.new_zeros(len(x), dtype=torch.float64)
    k = f(u, x, torch.arange(len(x), device=x.device))
    h = _first_step(f, x, k, tol)
    active = torch.arange(len(x), device=x.device)
    grow = torch.full_like(h, 10.0)  # after a rejection a step may not grow again at once
    for _ in range(max_steps):
        if not len(active):
            return x
        step = torch.minimum(h[active], 1 - u[active])
        new, k_new, error = _dormand_prince(f, u[active], x[active], k[active], step, active)
        scale = tol + tol * torch.maximum(x[active].abs(), new.abs())
        size = _rms(error / scale).clamp(min=1e-10)
        accepted = size < 1
        factor = (0.9 * size**-0.2).clamp(min=0.2)
        h[active] = step * torch.where(accepted, torch.minimum(factor, grow[active]), factor.clamp(max=1.0))
        grow[active] = torch.where(accepted, 10.0, 1.0).to(grow)
        moved = active[accepted]
        x[moved], k[moved] = new[accepted], k_new[accepted]
        last = step >= 1 - u[active]
        u[moved] += step[accepted]
        active = active[~(accepted & last)]
    raise _too_many(max_steps, tol)


def _too_many(max_steps: int, tol: float) -> UserError:
    return UserError(f"rk45 did not arrive in {max_steps} steps at tol={tol:g}: raise tol or max_steps")


def _first_step(f: Callable, x: Tensor, k: Tensor, tol: float) -> Tensor:
    """A first step whose error a trial Euler step makes plausible; one call."""
    scale = tol + tol * x.abs()
    d0, d1 = _rms(x / scale), _rms(k / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).clamp(max=1.0)
    k1 = f(h0, x + like(h0, x) * k, torch.arange(len(x), device=x.device))
    d2 = _rms((k1 - k) / scale) / h0
    h1 = (0.01 / torch.maximum(d1, d2).clamp(min=1e-15)) ** 0.2
    return torch.minimum(100 * h0, h1).clamp(max=1.0)


def _dormand_prince(f: Callable, u: Tensor, x: Tensor, k: Tensor, h: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """One step of Dormand & Prince (1980), six calls: the new state, its derivative and the error estimate."""
    stages, dt = [k], like(h, x)
    for a, c in zip(RK45.A[1:], RK45.C[1:], strict=True):
        stages.append(f(u + c * h, x + dt * _combine(a, stages), rows))
    new = x + dt * _combine(RK45.B, stages)
    stages.append(f(u + h, new, rows))
    return new, stages[-1], dt * _combine(RK45.E, stages)


def _combine(coefficients: np.ndarray, stages: list[Tensor]) -> Tensor:
    return total(float(c) * s for c, s in zip(coefficients, stages, strict=False) if c)


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).double().pow(2).mean(1).sqrt()
