"""The embedding: an image shifted along its score at jittered times, which training adds noise to."""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.score_embedding.diffusion import check_sigma


def embed(image: Tensor, score: Tensor, *, sigma: float, tau: Tensor) -> Tensor:
    """Return the image shifted to each time, (..., N, C, H, W), of the image's dtype.

    x_0 is the image and x_i = x_(i-1) - s_i sigma^(2 tau_i) dt / 2: Euler steps of the probability flow, with the score
    of the regular times and the diffusion of the jittered ones, as published.

    Args:
        image: (..., C, H, W).
        score: (..., N, C, H, W).
        sigma: of the diffusion.
        tau: (..., N).

    Raises:
        UserError: for shapes that do not belong together.
    """
    check_sigma(sigma)
    image, score, tau = (torch.as_tensor(given) for given in (image, score, tau))
    if score.ndim < 4 or image.shape[-3:] != score.shape[-3:] or tau.ndim < 1 or tau.shape[-1] != score.shape[-4]:
        raise UserError(
            "image, score and tau must be (..., C, H, W), (..., N, C, H, W) and (..., N), not "
            f"{tuple(image.shape)}, {tuple(score.shape)} and {tuple(tau.shape)}"
        )
    try:
        torch.broadcast_shapes(image.shape[:-3], score.shape[:-4], tau.shape[:-1])
    except RuntimeError:
        raise UserError(
            f"the batches of image, score and tau must go together, not {tuple(image.shape[:-3])}, "
            f"{tuple(score.shape[:-4])} and {tuple(tau.shape[:-1])}"
        ) from None
    n = score.shape[-4]
    steps = -score.to(image) * (sigma ** (2 * tau.to(image)) / (2 * n))[..., None, None, None]
    steps = torch.cat([torch.zeros_like(steps[..., :1, :, :, :]), steps[..., 1:, :, :, :]], -4)
    return image.unsqueeze(-4) + steps.cumsum(-4)
