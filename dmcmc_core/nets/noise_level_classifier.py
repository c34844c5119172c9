"""Networks that classify how noisy an image is: logits over a fixed list of noise levels, the most noisy one first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.errors import check_whole
from dmcmc_core.noise_level import log_levels


class PublishedClassifier(nn.Module):
    """The classifier of the DMCMC code: 1,413,416 parameters, for 3 x 32 x 32 (strides 2, 2, 2, 2) or 256 x 256 images.

    Four times 3x3 convolution, ReLU and 2x2 mean; for 256 x 256 images the first three means are taken with stride 4
    (``strides=(4, 4, 4, 2)``). Raw noisy pixels go in, with data in [0, 1].

    Args:
        shape: (C, H, W) of one image.
        n_levels: number of noise levels.
        strides: step of each mean over 2 x 2 pixels.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        n_levels: int = 1000,
        strides: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.config = {"shape": list(shape), "n_levels": n_levels, "strides": list(strides)}
        channels, height, width = shape
        layers: list[nn.Module] = []
        for out, stride in zip((32, 64, 128, 256), strides, strict=True):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, stride)]
            channels, height, width = out, (height - 2) // stride + 1, (width - 2) // stride + 1
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.last = nn.Linear(channels * height * width, n_levels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, n_levels) of noisy images (B, C, H, W)."""
        return self.last(self.body(x))


class LightClassifier(nn.Module):
    """A perceptron that costs a few hundredths of a small score net.

    Were the clean image known and d pixels noisy, log p(sigma | x) would be -d log sigma - d s^2 / (2 sigma^2), with s
    the root mean square of the noise (prior uniform in log sigma). The net finds s and d and adds a correction of low
    rank, so that the logits are one small matrix product. It sees x / |x|, log |x| and the logarithm of each pixel's
    size: noise levels from the smallest to the largest then look alike to it.

    Args:
        shape: (C, H, W) of one image.
        sigma_min, sigma_max: ends of the levels, see :func:`dmcmc_core.noise_level.log_levels`.
        n_levels: number of noise levels.
        width: of the two hidden layers.
        rank: of the correction.
    """

    def __init__(
        self,
        shape: Sequence[int],
        sigma_min: float,
        sigma_max: float,
        n_levels: int = 1000,
        width: int = 160,
        rank: int = 16,
    ) -> None:
        super().__init__()
        self.config = {
            "shape": list(shape),
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "n_levels": n_levels,
            "width": width,
            "rank": rank,
        }
        pixels = math.prod(shape)
        check_whole("n_levels", n_levels, 2, 10**5)
        check_whole("rank", rank, 1, 256)
        self.floor = sigma_min**2
        sigma = log_levels(sigma_max, sigma_min, n_levels)
        self.register_buffer("known", torch.stack([-sigma.log(), -(sigma**-2) / 2]).float(), persistent=False)
        self.hidden = nn.Sequential(
            nn.Linear(2 * pixels + 1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 + rank)
        )
        self.basis = nn.Parameter(torch.randn(rank, n_levels, device="cpu") / rank**0.5)
        self.log_pixels = math.log(pixels)
        nn.init.zeros_(self.hidden[-1].weight)
        nn.init.zeros_(self.hidden[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, n_levels) of noisy images (B, *shape)."""
        square = x.flatten(1) ** 2 + self.floor
        log_size = square.mean(1, keepdim=True).log() / 2  # of the root mean square
        seen = torch.cat([x.flatten(1) / log_size.exp(), square.log() / 2 - log_size, log_size], 1)
        out = self.hidden(seen)
        s, d = (out[:, :1] + log_size).exp(), (out[:, 1:2] + self.log_pixels).exp()
        return torch.cat([d, d * s**2, out[:, 2:]], 1) @ torch.cat([self.known, self.basis])


def cross_entropy(net: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    """Return the mean of -log p(level | x), in nats; x (B, *shape), level (B,) int64."""
    return F.cross_entropy(net(x), level)
