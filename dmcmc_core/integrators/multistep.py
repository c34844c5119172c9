"""Fast integrators of the probability flow in few network calls: multistep ones, and Runge-Kutta in sigma.

Called as those of :mod:`dmcmc_core.integrators`, which enters them in the registry. In x = data + sigma * normal the
flow is dx/dsigma = epsilon(x, sigma), or d(x / sigma)/d lambda = e^lambda D(x, sigma) with lambda = -log sigma: the
exponential integrators of any diffusion of scalars are polynomials in the past values of epsilon, or of D, on it.

Coefficients are float64, a set for each row. The first steps have fewer past values, and a lower order: an error of
order 2 in the size of the first step (3 with UniPC's corrector) is left, which is small where that is short, or where
the noise is far above the data and epsilon hardly changes. A step to 0 gives the denoised image D in all of them, as
log sigma ends there and a polynomial would go far beyond the levels that it was made from.

Their grids in the registry are those with the smallest errors on the shipped digits; on one uniform in the time of VP,
which the papers use too, the last steps divide sigma by too much for high orders.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, epsilon, like
from dmcmc_core.errors import one_of
from dmcmc_core.integrators.registry import INTEGRATORS, Callback, Noise, at_zero, integrator, state, steps
from dmcmc_core.quadrature import gauss
from dmcmc_core.schedules import vp_time

BASES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma": lambda sigma: sigma,
    "rho": lambda sigma: sigma,
    "log": torch.log,
    "t": vp_time,
}
"""Variables of the polynomials of :func:`deis`: rho, log rho, and the time of the VP diffusion."""

ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth weights of equal steps, the newest value first."""

RUNGE_KUTTA = {
    "2heun": (((1.0,),), (1 / 2, 1 / 2)),
    "3kutta": (((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "4rk": (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""What each stage after the first takes of those before it, and the step of all."""


@integrator(order=3, stochastic=False, schedule="karras", calls=lambda n, **_: n)
def deis(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    degree: int = 2,
    basis: str = "t",
):
    """DEIS: exponential Adams-Bashforth, Zhang & Chen 2023 (arXiv 2204.13902), eq. 14-15. One call a step.

    epsilon is taken for a polynomial through its last ``degree`` + 1 values and integrated exactly. Degree 0, and any
    step to 0, is DDIM (:func:`dmcmc_core.integrators.euler`); on VP, gDDIM (:mod:`dmcmc_core.gddim`) is this.

    Args:
        degree: of the polynomial, 0 to 3; the order is one more.
        basis: the variable that it is a polynomial in: ``t``, the time of the VP diffusion with beta from 0.1 to 20
            (tAB-DEIS), ``sigma`` or ``rho``, which are one (rhoAB-DEIS), or ``log``, log sigma (as diffusers has it).
    """
    INTEGRATORS["deis"].check(degree=degree, basis=basis)
    x, past = state(denoiser, x, sigmas), deque(maxlen=degree + 1)
    for now, after, done in steps(x, sigmas.double(), callback):
        past.appendleft((now, epsilon(denoiser, x, now)))
        nodes = [now] if at_zero(after) else [sigma for sigma, _ in past]
        for weight, (_, e) in zip(_lagrange_integrals(BASES[basis], nodes, after), past, strict=False):
            x = x + like(weight, x) * e
        done(x)
    return x


def _lagrange_integrals(basis: Callable[[Tensor], Tensor], nodes: Sequence[Tensor], after: Tensor) -> list[Tensor]:
    """Integrals from nodes[0] to ``after`` in sigma of the Lagrange polynomials in basis(sigma), by a Gauss rule.

    The rule is one in log sigma, where its 20 nodes leave less than 1e-13 of a step that divides sigma by 30.
    """
    now = nodes[0]
    if len(nodes) == 1:
        return [after - now]
    points, weights = (t.to(now).reshape(-1, *[1] * now.ndim) for t in gauss())
    h = (after / now).log()
    sigma = now * (points * h).exp()
    at, ends = basis(sigma), [basis(node) for node in nodes]

    def polynomial(j: int) -> Tensor:
        return math.prod((at - end) / (ends[j] - end) for k, end in enumerate(ends) if k != j)

    values = torch.stack([polynomial(j) for j in range(len(nodes))], 1)
    # one after the other, as a row's bits must not depend on how many rows are summed beside it
    return list(sum(((weights * h * sigma)[:, None] * values).unbind()))


@integrator(order=2, stochastic=False, schedule="karras", calls=lambda n, **_: n)
def ipndm(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    degree: int = 3,
):
    """Improved PNDM: DDIM with the Adams-Bashforth mean of the last epsilons, as if steps in sigma were equal.

    Zhang & Chen 2023 (arXiv 2204.13902), section 3.3, after Liu et al. 2022 (arXiv 2202.09778). One call a step. Of
    order 2 on a grid whose steps change from one to the next, of order ``degree`` + 1 on one uniform in sigma.

    Args:
        degree: past values beside the newest, 0 (DDIM) to 3.
    """
    INTEGRATORS["ipndm"].check(degree=degree)
    x, past = state(denoiser, x, sigmas), deque(maxlen=degree + 1)
    for now, after, done in steps(x, sigmas, callback):
        past.appendleft(epsilon(denoiser, x, now))
        weights = ADAMS[0 if at_zero(after) else len(past) - 1]
        x = x + like(after - now, x) * sum(w * e for w, e in zip(weights, past, strict=False))
        done(x)
    return x


def _stages(n: int, method: str = "4rk", **_: Any) -> int:
    return 1 + (n - 1) * len(RUNGE_KUTTA[one_of("method", method, *RUNGE_KUTTA)][1])


@integrator(order=4, stochastic=False, schedule="karras", calls=_stages)
def rho_rk(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    method: str = "4rk",
):
    """Classical Runge-Kutta methods in sigma: rhoRK-DEIS of Zhang & Chen 2023 (arXiv 2204.13902), section 3.3.

    As many calls a step as ``method`` has stages, one for a step to 0 (plain Euler): by ``4rk`` 4 N - 3 for N levels
    followed by 0.

    Args:
        method: ``2heun``, :func:`dmcmc_core.integrators.heun`; ``3kutta``; or ``4rk``. The number is stages and order.
    """
    INTEGRATORS["rho_rk"].check(method=method)
    x = state(denoiser, x, sigmas)
    for now, after, done in steps(x, sigmas.double(), callback):
        dt, slopes = after - now, [epsilon(denoiser, x, now)]
        rows, weights = ((), (1.0,)) if at_zero(after) else RUNGE_KUTTA[method]
        for row in rows:
            inside = now + sum(row) * dt if sum(row) < 1 else after
            slopes.append(epsilon(denoiser, x + like(dt, x) * _combination(row, slopes), inside))
        x = x + like(dt, x) * _combination(weights, slopes)
        done(x)
    return x


def _combination(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return sum(w * v for w, v in zip(weights, values, strict=True) if w)


@integrator(order=3, stochastic=False, schedule="log_uniform", calls=lambda n, **_: n)
def dpmpp_3m(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    published: bool = False,
):
    """DPM-Solver++(3M), the third-order multistep form of Lu et al. 2022 (arXiv 2211.01095). One call a step.

    D is taken for a quadratic in lambda through its last three values. The first step is of order 1, the second that of
    :func:`dmcmc_core.integrators.dpmpp_2m`.

    Args:
        published: as the published code, diffusers and k-diffusion, which take half of the quadratic's curvature (its
            second divided difference in the place of the second derivative), and so are of order 2.
    """
    INTEGRATORS["dpmpp_3m"].check(published=published)
    x, past = state(denoiser, x, sigmas), deque(maxlen=3)
    for now, after, done in steps(x, sigmas.double(), callback):
        d = denoiser(x, now.to(x))
        past.appendleft((now, d))
        h, decay = (now / after).log(), after / now
        x = like(decay, x) * x + like(1 - decay, x) * d
        if len(past) > 1 and not at_zero(after):
            x = x + _curved(past, h, published)
        done(x)
    return x


def _curved(past: Sequence[tuple[Tensor, Tensor]], h: Tensor, published: bool) -> Tensor:
    """What the change of D along the step of width h adds, with u from 0 to 1 on it: D(u) = D + slope u + bend u^2."""
    (s0, d0), (s1, d1), *older = past
    r0, mean_u = (s1 / s0).log() / h, 1 + torch.expm1(-h) / h  # weights of u and of u^2 under h e^(-h (1 - u))
    slope = (d0 - d1) / like(r0, d0)
    if not older:
        return like(-torch.expm1(-h) / 2, d0) * slope  # of the same order as mean_u, and dpmpp_2m's
    (s2, d2), mean_square = older[0], 1 - 2 * mean_u / h
    r1 = (s2 / s1).log() / h
    bend = (slope - (d1 - d2) / like(r1, d0)) / like(r0 + r1, d0)
    slope = slope + like(r0, d0) * bend
    return like(mean_u, d0) * slope + like(mean_square / 2 if published else mean_square, d0) * bend


@integrator(order=4, stochastic=False, schedule="log_uniform", calls=lambda n, **_: n)
def unipc(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    order: int = 3,
    variant: str = "bh2",
):
    """UniPC, Zhao et al. 2023 (arXiv 2302.04867), Algorithms 5-8: predictor and corrector on D. One call a step.

    The corrector repeats the step with D at the predicted point, which the next predictor needs anyway; a last level
    above 0 is only predicted.

    Args:
        order: p of the predictor UniP-p, 2 or 3; the corrector raises the order of convergence to p + 1.
        variant: B(h), ``bh2``: e^h - 1, or ``bh1``: h. From two differences of D on, and so in all but the first two
            steps of order 3, B cancels.
    """
    INTEGRATORS["unipc"].check(order=order, variant=variant)
    x, before, past = state(denoiser, x, sigmas), None, deque(maxlen=order)
    for now, after, done in steps(x, sigmas.double(), callback):
        d = denoiser(x, now.to(x))
        if past:
            x = _unified(before, past, now, variant, d)
        past.appendleft((now, d))
        before = x
        x = d if at_zero(after) else _unified(x, past, after, variant)
        done(x)
    return x


def _unified(
    x: Tensor, past: Sequence[tuple[Tensor, Tensor]], after: Tensor, variant: str, predicted: Tensor | None = None
) -> Tensor:
    """A step from the newest of the past levels to ``after``, through D as ``predicted`` there too, if it is given."""
    (now, d), *older = past
    h = (after / now).log()  # below 0, as D is what is predicted
    nodes = [(sigma / now).log() / h for sigma, _ in older]
    slopes = [(value - d) / like(r, x) for r, (_, value) in zip(nodes, older, strict=True)]
    if predicted is not None:
        nodes, slopes = [*nodes, torch.ones_like(h)], [*slopes, predicted - d]
    size = torch.expm1(h) if variant == "bh2" else h
    x = like(after / now, x) * x - like(torch.expm1(h), x) * d
    for weight, slope in zip(_moments(nodes, h, size), slopes, strict=True):
        x = x - like(size * weight, x) * slope
    return x


def _moments(nodes: Sequence[Tensor], h: Tensor, size: Tensor) -> Sequence[Tensor]:
    """a of eq. 5, sum_m a_m r_m^(i-1) = i! phi_(i+1)(h) / B(h) over the nodes r; of one node 1/2, as published."""
    if len(nodes) < 2:
        return [torch.full_like(h, 0.5)] * len(nodes)
    phi, wanted = torch.expm1(h) / h - 1, []
    for i in range(1, len(nodes) + 1):
        wanted.append(phi * math.factorial(i) / size)
        phi = phi / h - 1 / math.factorial(i + 1)
    powers = torch.stack([torch.stack(list(nodes), -1) ** i for i in range(len(nodes))], -2)
    return torch.linalg.solve(powers, torch.stack(wanted, -1)).unbind(-1)
