"""Multistep integrators of the probability flow: past network calls make the next step better.

In x = data + sigma * normal the
flow is dx/dsigma = epsilon(x, sigma), or d(x / sigma)/d lambda = e^lambda D(x, sigma) with lambda = -log sigma: the
exponential integrators of any diffusion of scalars are polynomials in the past values of epsilon, or of D, on it.

Coefficients are float64, a set for each row. The first steps have fewer past values, and a lower order: an error of
order 2 in the size of the first step (3 with UniPC's corrector) is left, which is small where that is short, or where
the noise is far above the data and epsilon hardly changes. A step to 0 gives the denoised image D in all of them, as
log sigma ends there and a polynomial would go far beyond the levels that it was made from.

Their grids in :mod:`dmcmc_core.samplers` have the smallest errors on the shipped digits. On one uniform in the time of
VP, which the papers use too, the last steps divide sigma by too much for high orders.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, epsilon, like, total
from dmcmc_core.gradients import without_gradients
from dmcmc_core.integrators.registry import Callback, Noise, at_zero, report, state, steps
from dmcmc_core.quadrature import gauss
from dmcmc_core.samplers import INTEGRATORS
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


@without_gradients
def dpmpp_2m(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise = None, callback: Callback = None
) -> Tensor:
    """Integrate by DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), Algorithm 2, lambda = -log sigma.

    One call a step, order 2. The first step and a step to 0 (the denoised image) are of order 1.
    """
    x, last = state(denoiser, x, sigmas), None
    for i, now, after in steps(x, sigmas):
        d = denoiser(x, now.to(x))
        h = (now / after).log()
        extrapolated = d
        if last is not None and not at_zero(after):
            h_last, d_last = last
            extrapolated = d + like(h / (2 * h_last), x) * (d - d_last)
        x = like(after / now, x) * x + like(1 - after / now, x) * extrapolated
        last = h, d
        report(callback, i, sigmas, x)
    return x


@without_gradients
def deis(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    degree: int = 2,
    basis: str = "t",
) -> Tensor:
    """Integrate by DEIS, exponential Adams-Bashforth; Zhang & Chen 2023 (arXiv 2204.13902), eq. 14-15.

    One call a step. epsilon is taken for a polynomial through its last r + 1 values and integrated exactly:

        x_(i+1) = x_i + sum_j C_ij epsilon(x_(i-j), sigma_(i-j)),    C_ij = int l_j(b(sigma)) dsigma

    from sigma_i to sigma_(i+1), l_j the Lagrange polynomials on the nodes b(sigma_(i-j)), j = 0 ... r. Degree r = 0,
    and any step to 0, is DDIM (:func:`dmcmc_core.integrators.euler`); on VP, gDDIM (:mod:`dmcmc_core.gddim`) is this.

    Args:
        degree: r, 0 to 3; the order is one more.
        basis: b, the variable that it is a polynomial in: ``t``, the time of the VP diffusion with beta from 0.1 to 20
            (tAB-DEIS), ``sigma`` or ``rho``, which are one (rhoAB-DEIS), or ``log``, log sigma (as diffusers has it).
    """
    INTEGRATORS["deis"].check(degree=degree, basis=basis)
    x, past = state(denoiser, x, sigmas), deque(maxlen=degree + 1)
    for i, now, after in steps(x, sigmas.double()):
        past.appendleft((now, epsilon(denoiser, x, now)))
        nodes = [now] if at_zero(after) else [sigma for sigma, _ in past]
        for c, (_, e) in zip(_lagrange_integrals(BASES[basis], nodes, after), past, strict=False):
            x = x + like(c, x) * e
        report(callback, i, sigmas, x)
    return x


def _lagrange_integrals(basis: Callable[[Tensor], Tensor], nodes: Sequence[Tensor], after: Tensor) -> list[Tensor]:
    """Integrate the Lagrange polynomials in basis(sigma) from nodes[0] to ``after`` in sigma, by a Gauss rule.

    The rule is one in log sigma, where its 20 nodes leave less than 1e-13 of a step that divides sigma by 30.
    """
    now = nodes[0]
    if len(nodes) == 1:
        return [after - now]
    points, weights = (t.to(now).reshape(-1, *[1] * now.ndim) for t in gauss())
    h = (after / now).log()
    sigma = now * (points * h).exp()
    at, ends = basis(sigma), [basis(node) for node in nodes]

    def polynomial(j: int) -> Any:
        return math.prod((at - end) / (ends[j] - end) for k, end in enumerate(ends) if k != j)

    values = torch.stack([polynomial(j) for j in range(len(nodes))], 1)
    # one after the other, as a row's bits must not depend on how many rows are summed beside it
    return list(total(((weights * h * sigma)[:, None] * values).unbind()))


@without_gradients
def ipndm(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    degree: int = 3,
) -> Tensor:
    """Integrate by improved PNDM: DDIM with the Adams-Bashforth mean of epsilons, as if steps in sigma were equal.

    Zhang & Chen 2023 (arXiv 2204.13902), section 3.3, after Liu et al. 2022 (arXiv 2202.09778). One call a step. Of
    order 2 on a grid whose steps change from one to the next, of order ``degree`` + 1 on one uniform in sigma.

    Args:
        degree: past values beside the newest, 0 (DDIM) to 3.
    """
    INTEGRATORS["ipndm"].check(degree=degree)
    x, past = state(denoiser, x, sigmas), deque(maxlen=degree + 1)
    for i, now, after in steps(x, sigmas):
        past.appendleft(epsilon(denoiser, x, now))
        weights = ADAMS[0 if at_zero(after) else len(past) - 1]
        x = x + like(after - now, x) * sum(w * e for w, e in zip(weights, past, strict=False))
        report(callback, i, sigmas, x)
    return x


@without_gradients
def dpmpp_3m(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    published: bool = False,
) -> Tensor:
    """Integrate by DPM-Solver++(3M), the third-order multistep form of Lu et al. 2022 (arXiv 2211.01095).

    One call a step. D is taken for a quadratic in lambda through its last three values. The first step is of order 1,
    the second that of :func:`dpmpp_2m`.

    Args:
        published: as the published code, diffusers and k-diffusion, which take half of the quadratic's curvature (its
            second divided difference in the place of the second derivative), and so are of order 2.
    """
    INTEGRATORS["dpmpp_3m"].check(published=published)
    x, past = state(denoiser, x, sigmas), deque(maxlen=3)
    for i, now, after in steps(x, sigmas.double()):
        d = denoiser(x, now.to(x))
        past.appendleft((now, d))
        h, decay = (now / after).log(), after / now
        x = like(decay, x) * x + like(1 - decay, x) * d
        if len(past) > 1 and not at_zero(after):
            x = x + _curved(past, h, published)
        report(callback, i, sigmas, x)
    return x


def _curved(past: Sequence[tuple[Tensor, Tensor]], h: Tensor, published: bool) -> Tensor:
    """Return what the change of D along a step of width h adds: D(u) = D + slope u + bend u^2 for u from 0 to 1."""
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


@without_gradients
def unipc(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    order: int = 3,
    variant: str = "bh2",
) -> Tensor:
    """Integrate by UniPC, Zhao et al. 2023 (arXiv 2302.04867), Algorithms 5-8: predictor and corrector on D.

    One call a step: the corrector repeats the step with D at the predicted point, which the next predictor needs
    anyway; a last level above 0 is only predicted. Either step, from level s to t, is

        x_t = (sigma_t / sigma_s) x_s - (e^h - 1) D_s - B(h) sum_m a_m (D_m - D_s) / r_m

    with h = log(sigma_t / sigma_s), which is minus the paper's, and r_m = log(sigma_m / sigma_s) / h over the levels m
    before s, and t itself (r = 1) in the corrector. :func:`_a` has the a_m.

    Args:
        order: p of the predictor UniP-p, 2 or 3; the corrector raises the order of convergence to p + 1.
        variant: B(h), ``bh2``: e^h - 1, or ``bh1``: h. From two differences of D on, and so in all but the first two
            steps of order 3, B cancels.
    """
    INTEGRATORS["unipc"].check(order=order, variant=variant)
    x_s, past = state(denoiser, x, sigmas), deque(maxlen=order)
    x = x_s
    for i, now, after in steps(x, sigmas.double()):
        d = denoiser(x, now.to(x))
        if past:
            x = _unified(x_s, past, now, variant, d)
        past.appendleft((now, d))
        x_s = x
        x = d if at_zero(after) else _unified(x, past, after, variant)
        report(callback, i, sigmas, x)
    return x


def _unified(
    x: Tensor, past: Sequence[tuple[Tensor, Tensor]], t: Tensor, variant: str, d_t: Tensor | None = None
) -> Tensor:
    """Step from the newest level of the ``past`` to level ``t``, through D there too where it is given."""
    (s, d_s), *older = past
    h = (t / s).log()
    r = [(sigma / s).log() / h for sigma, _ in older]
    slopes = [(d_m - d_s) / like(r_m, x) for r_m, (_, d_m) in zip(r, older, strict=True)]
    if d_t is not None:
        r, slopes = [*r, torch.ones_like(h)], [*slopes, d_t - d_s]
    b = torch.expm1(h) if variant == "bh2" else h
    x = like(t / s, x) * x - like(torch.expm1(h), x) * d_s
    for a_m, slope in zip(_a(r, h, b), slopes, strict=True):
        x = x - like(b * a_m, x) * slope
    return x


def _a(r: Sequence[Tensor], h: Tensor, b: Tensor) -> Sequence[Tensor]:
    """Solve eq. 5, sum_m a_m r_m^(k-1) = k! phi_(k+1)(h) / B(h) for k = 1, 2, ...; of one r it is 1/2, as published.

    phi_1(h) = (e^h - 1) / h and phi_(k+1)(h) = (phi_k(h) - 1 / k!) / h, here times h.
    """
    if len(r) < 2:
        return [torch.full_like(h, 0.5)] * len(r)
    phi, wanted = torch.expm1(h) / h - 1, []
    for k in range(1, len(r) + 1):
        wanted.append(phi * math.factorial(k) / b)
        phi = phi / h - 1 / math.factorial(k + 1)
    powers = torch.stack([torch.stack(list(r), -1) ** k for k in range(len(r))], -2)
    return torch.linalg.solve(powers, torch.stack(wanted, -1)).unbind(-1)
