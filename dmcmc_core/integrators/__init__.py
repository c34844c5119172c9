"""Integrators of the reverse diffusion, one readable function per published algorithm.

Each takes images at noise level ``sigmas[..., 0]`` to level ``sigmas[..., -1]``::

    heun(denoiser, x, sigmas, *, noise=None, callback=None, ...) -> x

with ``x`` of shape (B, *shape), distributed as data + sigmas[..., 0] * normal, and ``sigmas`` of shape (N + 1,) or
(B, N + 1), strictly descending, ending at any level >= 0. ``noise`` maps a tensor to standard normals like it (None:
torch's global generator); ``callback(step, steps, sigma, x)`` is called after every step. The state is kept in float32
at least. All raise UserError for a grid that :func:`dmcmc_core.schedules.check` refuses or that leaves the levels of
the model, and for an option outside its range (:data:`OPTIONS`).

The probability-flow ODE in these terms is dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, arXiv 2206.00364,
eq. 4 with s = 1); the reverse SDE of the variance-exploding diffusion is in Song et al. 2021 (arXiv 2011.13456).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import RK45, solve_ivp
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Identity, epsilon, like, score, walk
from dmcmc_core.errors import UserError, number, one_of
from dmcmc_core.integrators.registry import (
    INTEGRATORS,
    Callback,
    Noise,
    at_zero,
    integrator,
    state,
    steps,
)
from dmcmc_core.integrators.registry import OPTIONS as OPTIONS
from dmcmc_core.integrators.registry import Integrator as Integrator
from dmcmc_core.integrators.registry import Registry as Registry


def tweedie(denoiser: Denoiser, x: Tensor, sigma: float | Tensor) -> Tensor:
    """x + sigma^2 score(x, sigma) = D(x, sigma): the last step of the DMCMC paper, after any integrator; one call."""
    return denoiser(x, torch.as_tensor(sigma).to(x))


@integrator(order=1, stochastic=False, schedule="karras", calls=lambda n, **_: n)
def euler(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
):
    """Euler's method in sigma, which is DDIM (Song et al. 2021, arXiv 2010.02502). One call a step, order 1."""
    x = state(denoiser, x, sigmas)
    for now, after, done in steps(x, sigmas, callback):
        x = x + like(after - now, x) * epsilon(denoiser, x, now)
        done(x)
    return x


@integrator(order=2, stochastic=False, schedule="karras", calls=lambda n, **_: 2 * n - 1)
def heun(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
):
    """Heun's method in sigma, Karras et al. 2022, Algorithm 1; KAR1 of the DMCMC paper.

    Two calls a step, one for a step to 0 (plain Euler): 2 N - 1 for N levels followed by 0, order 2.
    """
    x = state(denoiser, x, sigmas)
    for now, after, done in steps(x, sigmas, callback):
        x = heun_step(denoiser, x, now, after)
        done(x)
    return x


def heun_step(denoiser: Denoiser, x: Tensor, now: Tensor, after: Tensor) -> Tensor:
    d = epsilon(denoiser, x, now)
    dt = like(after - now, x)
    x_euler = x + dt * d
    if at_zero(after):
        return x_euler
    return x + dt * (d + epsilon(denoiser, x_euler, after)) / 2


@integrator(order=1, stochastic=True, schedule="karras", calls=lambda n, **_: 2 * n - 1)
def heun_churn(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    s_churn: float = 80.0,
    s_tmin: float = 0.05,
    s_tmax: float = 1.0,
    s_noise: float = 1.007,
    published: bool = False,
):
    """Heun's method with noise added before every step, Karras et al. 2022, Algorithm 2; KAR2 of the DMCMC paper.

    The defaults are the DMCMC paper's, for data in [0, 1]. 2 N - 1 calls for N levels followed by 0.

    Args:
        s_churn: noise added in all, shared out over the N steps; a step raises its level by sqrt(2) - 1 at most.
        s_tmin, s_tmax: levels between which noise is added, in units of the data.
        s_noise: standard deviation of the added noise, slightly above 1 against a loss of detail.
        published: share s_churn out over the N + 1 nodes, as the DMCMC code does, instead of the N steps.
    """
    INTEGRATORS["heun_churn"].check(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    share = min(s_churn / (sigmas.shape[-1] - (not published)), 2**0.5 - 1)
    for now, after, done in steps(x, sigmas, callback):
        churned = torch.where((s_tmin <= now) & (now <= s_tmax), now * (1 + share), now)
        x = x + like((churned**2 - now**2).sqrt() * s_noise, x) * noise(x)
        x = heun_step(denoiser, x, churned, after)
        done(x)
    return x


@integrator(order=1, stochastic=False, schedule="log_uniform", calls=lambda n, **_: n)
def probability_flow(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
):
    """The reverse-diffusion predictor without its noise: x + (sigma_i^2 - sigma_{i+1}^2) / 2 * score.

    Song et al. 2021 (arXiv 2011.13456), eq. 46 in its probability-flow form. One call a step, order 1. Its step from
    sigma_min to 0 goes half of the way to the denoised image, as published.
    """
    x = state(denoiser, x, sigmas)
    for now, after, done in steps(x, sigmas, callback):
        x = x + like(now**2 - after**2, x) / 2 * score(denoiser, x, now)
        done(x)
    return x


@integrator(
    order=1,
    stochastic=True,
    schedule="log_uniform",
    calls=lambda n, **_: n,
    lasts=(None, "mean", "sample"),
    preconditioned=True,
)
def reverse_diffusion(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    last: str | None = None,
    diffusion: str = "ve",
):
    """The reverse-diffusion predictor, x + (sigma_i^2 - sigma_{i+1}^2) score + sqrt(sigma_i^2 - sigma_{i+1}^2) z.

    Song et al. 2021 (arXiv 2011.13456), eq. 46 for the variance-exploding diffusion. One call a step. A
    :class:`dmcmc_core.preconditioning.WithPreconditioner` denoiser is walked with its M, as in Ma et al. 2022 (arXiv
    2207.02196): M M^T of the drift, M of the noise.

    Args:
        diffusion: ``ve``, or ``vp`` for the same in u = x / sqrt(1 + sigma^2), whose step is u + (1 - a) u + (1 - a^2)
            score_u + sqrt(1 - a^2) z with a^2 = (1 + sigma_{i+1}^2) / (1 + sigma_i^2); M takes the place of 1 there.
        last: what the last step returns, its ``mean`` without noise (None: if it goes to 0, as published) or the noisy
            ``sample`` (None: if it ends above 0).
    """
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    end = sigmas[..., -1]
    noisy_end = one_of("last", last or ("mean" if at_zero(end) else "sample"), "mean", "sample") == "sample"
    predict = PREDICTORS[one_of("diffusion", diffusion, *PREDICTORS)]
    for i, (now, after, done) in enumerate(steps(x, sigmas, callback), start=2):
        s = score(denoiser, x, now)
        z = noise(x) if noisy_end or i < sigmas.shape[-1] else None
        x = predict(walk(denoiser), x, s, z, now, after)
        done(x)
    return x


def _predict_ve(m: Identity, x: Tensor, s: Tensor, z: Tensor | None, now: Tensor, after: Tensor) -> Tensor:
    variance = now**2 - after**2
    gradient = like(variance, x) * s
    return x + m.drift(gradient) if z is None else m.move(x, gradient, like(variance.sqrt(), x) * z)


def _predict_vp(m: Identity, x: Tensor, s: Tensor, z: Tensor | None, now: Tensor, after: Tensor) -> Tensor:
    scale_now, scale_after = (like((1 + sigma**2).rsqrt(), x) for sigma in (now, after))
    a = scale_now / scale_after
    u = scale_now * x
    gradient = (1 - a) * u + (1 - a**2) * s / scale_now
    u = u + m.drift(gradient) if z is None else m.move(u, gradient, (1 - a**2).sqrt() * z)
    return u / scale_after


PREDICTORS = {"ve": _predict_ve, "vp": _predict_vp}


@integrator(
    order=1,
    stochastic=True,
    schedule="log_uniform",
    calls=lambda n, **_: n,
    lasts=(None, "tweedie"),
    last="tweedie",
)
def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    last: str | None = None,
    published: bool = False,
):
    """Euler-Maruyama on the reverse SDE in log sigma: x + 2 h sigma^2 score + sigma sqrt(2 h) z.

    Song et al. 2021 (arXiv 2011.13456), eq. 6 with sigma(t) = sigma_min (sigma_max / sigma_min)^t, so that a step is
    h = log(sigma_i / sigma_{i+1}). One call a step. It cannot step to 0, where log sigma ends.

    Args:
        last: how a grid that ends at 0 is finished, by the denoised image of its last level above 0 (``tweedie``);
            None refuses such a grid.
        published: on a log-uniform grid of N levels followed by 0, N steps of h = log(sigma_max / sigma_min) / N, one
            from every level, and the mean of the last: the DMCMC code's dt = 1 / N over nodes 1 / (N - 1) apart.
    """
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    to_zero = at_zero(sigmas[..., -1])
    if to_zero and not published and one_of("last", last, None, "tweedie") is None:
        raise UserError(
            "euler_maruyama steps in log sigma and cannot reach 0: end the grid above 0, or choose last='tweedie'"
        )
    if published and not to_zero:
        raise UserError("published=True needs a grid of levels followed by 0")
    n = sigmas.shape[-1] - 1
    for i, (now, after, done) in enumerate(steps(x, sigmas, callback), start=1):
        h = (sigmas[..., 0] / sigmas[..., -2]).log().to(now) / n if published else (now / after).log()
        if to_zero and i == n and not published:
            x = tweedie(denoiser, x, now)
        else:
            x = x + like(2 * h * now**2, x) * score(denoiser, x, now)
            if not (published and i == n):
                x = x + like(now * (2 * h).sqrt(), x) * noise(x)
        done(x)
    return x


@integrator(order=1, stochastic=True, schedule="karras", calls=lambda n, **_: n)
def ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
):
    """Ancestral sampling: the exact posterior p(x_{i+1} | x_i, x0) with D in the place of x0. One call a step.

    Ho et al. 2020 (arXiv 2006.11239), eq. 6-7; in VE terms Song et al. 2021 (arXiv 2011.13456), eq. 47.
    """
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    for now, after, done in steps(x, sigmas, callback):
        up = after * (1 - (after / now) ** 2).sqrt()
        x = x + like(after**2 / now - now, x) * epsilon(denoiser, x, now)
        if not at_zero(after):
            x = x + like(up, x) * noise(x)
        done(x)
    return x


@integrator(order=2, stochastic=False, schedule="karras", calls=lambda n, **_: n)
def dpmpp_2m(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
):
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), Algorithm 2, in VE terms: lambda = -log sigma.

    One call a step, order 2. The first step and a step to 0 (the denoised image) are of order 1.
    """
    x, h_last, d_last = state(denoiser, x, sigmas), None, None
    for now, after, done in steps(x, sigmas, callback):
        d = denoiser(x, now.to(x))
        h = (now / after).log()
        extrapolated = d
        if d_last is not None and not at_zero(after):
            extrapolated = d + like(h / (2 * h_last), x) * (d - d_last)
        x = like(after / now, x) * x + like(1 - after / now, x) * extrapolated
        h_last, d_last = h, d
        done(x)
    return x


def _with_corrections(n: int, corrections: int = 1, **_: Any) -> int:
    return n * (1 + number("corrections", corrections, least=0, whole=True))


@integrator(
    order=1,
    stochastic=True,
    schedule="log_uniform",
    calls=_with_corrections,
    lasts=(None, "mean", "sample"),
    preconditioned=True,
)
def predictor_corrector(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    snr: float = 0.16,
    corrections: int = 1,
    joint: bool = False,
    last: str | None = None,
    diffusion: str = "ve",
):
    """Langevin corrections at every level, then the reverse-diffusion predictor to the next one.

    Song et al. 2021 (arXiv 2011.13456), Algorithms 2 and 4. ``1 + corrections`` calls a step. A
    :class:`dmcmc_core.preconditioning.WithPreconditioner` makes it Preconditioned Diffusion Sampling (Ma et al. 2022,
    arXiv 2207.02196): predictor and corrector with M, the corrector's norms those of M M^T score and M z.

    Args:
        snr: length of a correction's drift relative to its noise.
        corrections: Langevin steps at each level.
        joint: one step size for the batch, from the means of the norms, as published; else one per sample.
        last, diffusion: as for :func:`reverse_diffusion`; under ``vp`` e is (1 + sigma_{i+1}^2) / (1 + sigma_i^2) times
            as long, as published.
    """
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    INTEGRATORS["predictor_corrector"].check(corrections=corrections, snr=snr, last=last, diffusion=diffusion)
    m = walk(denoiser)
    for i in range(sigmas.shape[-1] - 1):
        now, after = (sigmas[..., j].to(x.device) for j in (i, i + 1))
        shorter = (1 + after**2) / (1 + now**2) if diffusion == "vp" else torch.ones_like(now)
        for _ in range(corrections):
            x = langevin_correction(m, x, score(denoiser, x, now), noise(x), snr, joint, shorter)
        end = last if i == sigmas.shape[-1] - 2 else "sample"
        x = reverse_diffusion(denoiser, x, sigmas[..., i : i + 2], noise=noise, last=end, diffusion=diffusion)
        if callback:
            callback(i + 1, sigmas.shape[-1] - 1, sigmas[..., i + 1], x)
    return x


def langevin_correction(
    m: Identity, x: Tensor, s: Tensor, z: Tensor, snr: float, joint: bool, factor: Tensor | float = 1.0
) -> Tensor:
    """x + e (M M^T + S) s + sqrt(2 e) M z with e = 2 factor (snr |M z| / |(M M^T + S) s|)^2.

    Song et al. 2021, Algorithms 4 and 5, for M = 1 and S = 0.
    """

    def lengths(norm_s: Tensor, norm_z: Tensor) -> tuple[Tensor, Tensor]:
        if joint:
            norm_s, norm_z = norm_s.mean(), norm_z.mean()
        e = 2 * factor * (snr * norm_z / norm_s) ** 2
        return e, (2 * e).sqrt()

    return m.correct(x, s, z, lengths)


@integrator(order=5, stochastic=False, schedule="log_uniform", calls=None, lasts=(None, "tweedie"), last="tweedie")
def rk45(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    tol: float = 1e-3,
    joint: bool = False,
    last: str | None = None,
    max_steps: int = 10_000,
):
    """Dormand-Prince 5(4) in log sigma with steps chosen from the error, for every sample by itself.

    Of ``sigmas`` only the ends count. Integrates dx/du = log(sigma_end / sigma_start) (x - D(x, sigma)) with
    sigma = sigma_start^(1-u) sigma_end^u from u = 0 to 1; it cannot step to 0. Calls: 2 + 6 for every step tried.

    Args:
        tol: relative and absolute tolerance of a step, root mean square over the pixels.
        joint: one step for the whole batch through ``scipy.integrate.solve_ivp``, as published: every sample then
            depends on its batch mates, and all wait for the worst.
        last: how a grid that ends at 0 is finished, by the denoised image of its last level above 0 (``tweedie``, one
            more call); None refuses such a grid.

    Raises:
        UserError: besides the grid's, tol <= 0, more than ``max_steps`` steps, or a denoiser that is not finite.
    """
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
        y = torch.from_numpy(y).to(x).reshape(x.shape)
        return f(torch.full((len(x),), u, dtype=torch.float64, device=x.device), y, rows).double().cpu().numpy().ravel()

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
    return sum(float(c) * s for c, s in zip(coefficients, stages, strict=False) if c)


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).double().pow(2).mean(1).sqrt()


# below, so that the registry lists them after these
from dmcmc_core.integrators.multistep import deis, dpmpp_3m, ipndm, rho_rk, unipc  # noqa: E402, F401
