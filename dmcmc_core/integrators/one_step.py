"""Integrators whose step looks at no earlier one: Euler and Heun in sigma, without and with churn."""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, epsilon, like
from dmcmc_core.gradients import without_gradients
from dmcmc_core.integrators.registry import Callback, Noise, at_zero, report, state, steps
from dmcmc_core.samplers import INTEGRATORS


def tweedie(denoiser: Denoiser, x: Tensor, sigma: float | Tensor) -> Tensor:
    """Return x + sigma^2 score(x, sigma) = D(x, sigma), the last step of the DMCMC paper after any integrator."""
    return denoiser(x, torch.as_tensor(sigma).to(x))


@without_gradients
def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise = None, callback: Callback = None) -> Tensor:
    """Integrate by Euler's method in sigma, which is DDIM (Song et al. 2021, arXiv 2010.02502).

    One call a step, order 1.
    """
    x = state(denoiser, x, sigmas)
    for i, now, after in steps(x, sigmas):
        x = x + like(after - now, x) * epsilon(denoiser, x, now)
        report(callback, i, sigmas, x)
    return x


@without_gradients
def heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise = None, callback: Callback = None) -> Tensor:
    """Integrate by Heun's method in sigma, Karras et al. 2022, Algorithm 1; KAR1 of the DMCMC paper.

    Two calls a step, one for a step to 0 (plain Euler): 2 N - 1 for N levels followed by 0, order 2.
    """
    x = state(denoiser, x, sigmas)
    for i, now, after in steps(x, sigmas):
        x = heun_step(denoiser, x, now, after)
        report(callback, i, sigmas, x)
    return x


def heun_step(denoiser: Denoiser, x: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """Step from level ``now`` to ``after`` by the mean of the slopes at both ends."""
    d = epsilon(denoiser, x, now)  # dx/dsigma
    dt = like(after - now, x)
    x_euler = x + dt * d
    if at_zero(after):  # where the slope divides by sigma = 0
        return x_euler
    return x + dt * (d + epsilon(denoiser, x_euler, after)) / 2


@without_gradients
def heun_churn(  # noqa: PLR0913  the paper's arguments
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    s_churn: float = 80.0,
    s_tmin: float = 0.05,
    s_tmax: float = 1.0,
    s_noise: float = 1.007,
    published: bool = False,
) -> Tensor:
    """Integrate by Heun's method with noise added before every step; KAR2 of the DMCMC paper.

    Karras et al. 2022 (arXiv 2206.00364), Algorithm 2. The defaults are the DMCMC paper's, for data in [0, 1]. 2 N - 1
    calls for N levels followed by 0.

    Args:
        s_churn: noise added in all, shared out over the N steps; a step raises its level by sqrt(2) - 1 at most.
        s_tmin, s_tmax: levels between which noise is added, in units of the data.
        s_noise: standard deviation of the added noise, slightly above 1 against a loss of detail.
        published: share s_churn out over the N + 1 nodes, as the DMCMC code does, instead of the N steps.
    """
    INTEGRATORS["heun_churn"].check(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    share = min(s_churn / (sigmas.shape[-1] - (not published)), 2**0.5 - 1)
    for i, now, after in steps(x, sigmas):
        churned = torch.where((s_tmin <= now) & (now <= s_tmax), now * (1 + share), now)
        x = x + like((churned**2 - now**2).sqrt() * s_noise, x) * noise(x)
        x = heun_step(denoiser, x, churned, after)
        report(callback, i, sigmas, x)
    return x
