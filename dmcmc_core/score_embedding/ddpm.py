"""What score embedding is compared with: DDPM and DDIM with linear betas, sampled as in the published comparison.

Ho, Jain & Abbeel 2020 (arXiv 2006.11239), Algorithm 2 with variance beta; Song, Meng & Ermon 2021 (arXiv 2010.02502),
eq. 12 with eta = 0. Images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, number

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, H, W), t (B,)) -> the predicted noise, (B, C, H, W)."""


def linear_betas(beta_min: float, beta_max: float, steps: int = 1000) -> Tensor:
    """Return the betas, (T,) float64, evenly from beta_min to beta_max, 0 < beta_min <= beta_max < 1."""
    number("beta_min", beta_min, above=0, below=1)
    number("beta_max", beta_max, least=beta_min, below=1)
    number("steps", steps, least=1, whole=True)
    return torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)


def alpha_bars(betas: Tensor) -> Tensor:
    """Return the share of the image that is left at each time: the product of 1 - beta up to it, (T,)."""
    return (1 - betas).cumprod(0)


def noised(x0: Tensor, t: Tensor, z: Tensor, betas: Tensor) -> Tensor:
    """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) z for whole times t (B,)."""
    a = alpha_bars(betas).to(x0.device)[t].reshape(-1, *[1] * (x0.ndim - 1))
    return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * z


@torch.no_grad()
def ddim(epsilon: Epsilon, x: Tensor, betas: Tensor, callback: Callable[[Tensor], None] | None = None) -> Tensor:
    """Return samples in [-1, 1] by the deterministic steps of DDIM, one for each beta.

    Args:
        epsilon: gets the whole times T - 1 to 0.
        x: (B, C, H, W), standard normal.
        betas: (T,).
        callback: gets the state after each step.
    """
    bars = [*alpha_bars(_checked(betas)).tolist()]
    for i in reversed(range(len(bars))):
        a, before = bars[i], bars[i - 1] if i else 1.0
        e = epsilon(x, x.new_full((len(x),), i))
        x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
        x = before**0.5 * x0 + (1 - before) ** 0.5 * e
        if callback:
            callback(x)
    return x


@torch.no_grad()
def ddpm(
    epsilon: Epsilon,
    x: Tensor,
    betas: Tensor,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    callback: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return samples in [-1, 1] by ancestral sampling, as published: the last mean, before its noise.

    The network gets the times (T - 1) linspace(1, 0.001, T), which are not whole; the beta of each step is that of the
    whole time below. Noise is drawn at the last step as well, for nothing.

    Arguments as for :func:`ddim`; the callback gets the means; ``noise`` maps a tensor to standard normals like it.
    """
    betas, mean = _checked(betas), x
    bars, at = alpha_bars(betas).tolist(), torch.linspace(1, 1e-3, len(betas)) * (len(betas) - 1)
    for t in at.tolist():
        beta, bar = betas[int(t)].item(), bars[int(t)]
        e = epsilon(x, x.new_full((len(x),), t))
        mean = (x - beta / (1 - bar) ** 0.5 * e) / (1 - beta) ** 0.5
        x = mean + beta**0.5 * noise(x)
        if callback:
            callback(mean)
    return mean


def _checked(betas: Tensor | Sequence[float]) -> Tensor:
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise UserError("betas must be a list of numbers above 0 and below 1")
    return betas
