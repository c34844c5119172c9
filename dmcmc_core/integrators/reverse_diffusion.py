"""Integrators of the reverse diffusion: what Song et al. 2021 (arXiv 2011.13456) and Ho et al. 2020 sample with.

The reverse SDE of the variance-exploding diffusion, its probability flow, the ancestral sampler, and Langevin
corrections between its steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Identity, epsilon, like, score, walk
from dmcmc_core.errors import UserError, one_of
from dmcmc_core.gradients import without_gradients
from dmcmc_core.integrators.one_step import tweedie
from dmcmc_core.integrators.registry import Callback, Noise, at_zero, report, state, steps
from dmcmc_core.samplers import INTEGRATORS


@without_gradients
def probability_flow(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise = None, callback: Callback = None
) -> Tensor:
    """Integrate by the reverse-diffusion predictor without its noise: x + (sigma_i^2 - sigma_{i+1}^2) / 2 * score.

    Song et al. 2021 (arXiv 2011.13456), eq. 46 in its probability-flow form. One call a step, order 1. Its step from
    sigma_min to 0 goes half of the way to the denoised image, as published.
    """
    x = state(denoiser, x, sigmas)
    for i, now, after in steps(x, sigmas):
        x = x + like(now**2 - after**2, x) / 2 * score(denoiser, x, now)
        report(callback, i, sigmas, x)
    return x


@without_gradients
def reverse_diffusion(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    last: str | None = None,
    diffusion: str = "ve",
) -> Tensor:
    """Sample by the reverse-diffusion predictor, x + v score + sqrt(v) z with v = sigma_i^2 - sigma_{i+1}^2.

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
    for i, now, after in steps(x, sigmas):
        s = score(denoiser, x, now)
        z = noise(x) if noisy_end or i < sigmas.shape[-1] - 1 else None
        x = predict(walk(denoiser), x, s, z, now, after)
        report(callback, i, sigmas, x)
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


@without_gradients
def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    last: str | None = None,
    published: bool = False,
) -> Tensor:
    """Sample by Euler-Maruyama on the reverse SDE in log sigma: x + 2 h sigma^2 score + sigma sqrt(2 h) z.

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
    for i, now, after in steps(x, sigmas):
        h = (sigmas[..., 0] / sigmas[..., -2]).log().to(now) / n if published else (now / after).log()
        if to_zero and i == n and not published:
            x = tweedie(denoiser, x, now)
        else:
            x = x + like(2 * h * now**2, x) * score(denoiser, x, now)
            if not (published and i == n):
                x = x + like(now * (2 * h).sqrt(), x) * noise(x)
        report(callback, i, sigmas, x)
    return x


@without_gradients
def ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise = None, callback: Callback = None
) -> Tensor:
    """Sample from the exact posterior p(x_{i+1} | x_i, x0) with D in the place of x0: ancestral. One call a step.

    Ho et al. 2020 (arXiv 2006.11239), eq. 6-7; in VE terms Song et al. 2021 (arXiv 2011.13456), eq. 47.
    """
    x, noise = state(denoiser, x, sigmas), noise or torch.randn_like
    for i, now, after in steps(x, sigmas):
        up = after * (1 - (after / now) ** 2).sqrt()
        x = x + like(after**2 / now - now, x) * epsilon(denoiser, x, now)
        if not at_zero(after):
            x = x + like(up, x) * noise(x)
        report(callback, i, sigmas, x)
    return x


@without_gradients
def predictor_corrector(  # noqa: PLR0913  the paper's arguments
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    snr: float = 0.16,
    corrections: int = 1,
    joint: bool = False,
    last: str | None = None,
    diffusion: str = "ve",
) -> Tensor:
    """Sample by Langevin corrections at every level, then the reverse-diffusion predictor to the next one.

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
    for i, now, after in steps(x, sigmas):
        shorter = (1 + after**2) / (1 + now**2) if diffusion == "vp" else torch.ones_like(now)
        for _ in range(corrections):
            x = langevin_correction(m, x, score(denoiser, x, now), noise(x), snr, joint, shorter)
        end = last if i == sigmas.shape[-1] - 1 else "sample"
        pair = sigmas[..., i - 1 : i + 1]
        x = reverse_diffusion(denoiser, x, pair, noise=noise, last=end, diffusion=diffusion, grad=True)
        report(callback, i, sigmas, x)
    return x


def langevin_correction(
    m: Identity, x: Tensor, s: Tensor, z: Tensor, snr: float, joint: bool, factor: Tensor | float = 1.0
) -> Tensor:
    """Return x + e (M M^T + S) s + sqrt(2 e) M z with e = 2 factor (snr |M z| / |(M M^T + S) s|)^2.

    Song et al. 2021, Algorithms 4 and 5, for M = 1 and S = 0.
    """

    def lengths(norm_s: Tensor, norm_z: Tensor) -> tuple[Tensor, Tensor]:
        if joint:
            norm_s, norm_z = norm_s.mean(), norm_z.mean()
        e = 2 * factor * (snr * norm_z / norm_s) ** 2
        return e, (2 * e).sqrt()

    return m.correct(x, s, z, lengths)
