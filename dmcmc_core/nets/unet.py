"""A small convolutional U-Net that is a denoiser for any noise level: EDM's scalings around a residual network.

Karras et al. 2022 (arXiv 2206.00364), Section 5 and Table 1: the network F sees an input of unit variance and predicts
a target of unit variance at every sigma, D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), here about the data mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.denoiser import like, per_row
from dmcmc_core.errors import UserError, check_whole, switch
from dmcmc_core.nets.blocks import added, silu, zero


class DenoisingUNet(nn.Module):
    """A denoiser D(x, sigma) for data of mean ``mean`` and standard deviation ``sigma_data`` about it.

    Args:
        shape: (C, H, W) of one image; H and W divisible by 2^(levels - 1).
        sigma_data: root mean square of (data - mean), in units of the data.
        channels: width of each level, from full resolution downwards.
        blocks: residual blocks of each level, on the way down; one per level on the way up.
        attention: for each level, whether its blocks on the way down end in self-attention.
        embedding: width of the noise-level embedding.
        dropout: probability inside each residual block; in training only.
        augment: number of augmentation labels that training passes along (Karras et al. 2022, Appendix F.2);
            without labels the network answers for data that were not augmented.
    """

    def __init__(
        self,
        shape: Sequence[int],
        sigma_data: float,
        channels: Sequence[int] = (24, 64),
        blocks: Sequence[int] = (1, 2),
        attention: Sequence[bool] = (False, True),
        embedding: int = 96,
        dropout: float = 0.0,
        augment: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(sigma_data, int | float) or not 0 < sigma_data < 1e6:
            raise UserError(f"sigma_data must be a number above 0 and below a million, not {sigma_data!r:.40}")
        check_whole("the number of channels", len(channels), 1, 16)
        for number in blocks:
            check_whole("a number of blocks", number, 1, 64)
        self.config = {
            "shape": list(shape),
            "sigma_data": sigma_data,
            "channels": list(channels),
            "blocks": list(blocks),
            "attention": list(attention),
            "embedding": embedding,
            "dropout": dropout,
            "augment": augment,
        }
        self.sigma_data = sigma_data
        self.register_buffer("mean", torch.zeros(*shape))
        self.net = UNet(shape[0], channels, blocks, attention, embedding, dropout, augment)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return E[x0 | x, sigma] for x (B, *shape), sigma () or (B,); ``labels`` (B, augment) in training only."""
        sigma = per_row(sigma, x)
        s, total = like(sigma, x), like((sigma**2 + self.sigma_data**2).sqrt(), x)
        c_skip, c_out, c_in = (self.sigma_data / total) ** 2, s * self.sigma_data / total, 1 / total
        centred = x - self.mean
        return self.mean + c_skip * centred + c_out * self.net(c_in * centred, sigma.log() / 4, labels)


class UNet(nn.Module):
    """The residual network F(x, c_noise): (B, C, H, W), (B,) -> (B, C or ``out_channels``, H, W)."""

    def __init__(
        self,
        image_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        attention: Sequence[bool],
        embedding: int,
        dropout: float,
        augment: int,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        for attend in attention:
            switch("each entry of attention", attend)
        self.embed = Embedding(embedding, augment)
        self.stem = nn.Conv2d(image_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = channels[0]
        for c, n, attend in zip(channels, blocks, attention, strict=True):
            widths = [width, *[c] * (n - 1)]
            self.down.append(nn.ModuleList(Block(w, c, embedding, dropout, attend) for w in widths))
            width = c
        for c in reversed(channels[:-1]):
            self.up.append(Block(width + c, c, embedding, dropout, False))
            width = c
        last = nn.Conv2d(width, out_channels or image_channels, 3, padding=1)
        self.head = nn.Sequential(norm(width), nn.SiLU(), zero(last))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.embed(c_noise, labels)
        x, skips = self.stem(x), []
        for level, blocks in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if level else x
            for block in blocks:
                x = block(x, embedding)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1), embedding)
        return self.head(x)


class Embedding(nn.Module):
    """The embedding (B, width) of c_noise (B,), by sinusoids, and of augmentation labels in training."""

    def __init__(self, width: int, augment: int, frequencies: int = 16) -> None:
        super().__init__()
        # c_noise = ln(sigma) / 4 spans about 2: periods from 8 down to 1/8, so that neighbouring levels stay alike
        self.register_buffer(
            "frequencies", 2 * math.pi * 2 ** torch.linspace(-3, 3, frequencies, device="cpu"), persistent=False
        )
        self.first, self.second = nn.Linear(2 * frequencies, width), nn.Linear(width, width)
        self.augment = nn.Linear(augment, width, bias=False) if augment else None

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        phase = c_noise[:, None] * self.frequencies
        hidden = self.first(torch.cat([phase.cos(), phase.sin()], 1))
        if labels is not None:
            hidden = hidden + self.augment(labels)
        return F.silu(self.second(F.silu(hidden)))


class Block(nn.Module):
    """Two 3x3 convolutions, scaled and shifted by the noise level in between; then attention over all pixels."""

    def __init__(self, width: int, out: int, embedding: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width), nn.Conv2d(width, out, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * out)
        self.norm2, self.conv2 = norm(out), zero(nn.Conv2d(out, out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(width, out, 1) if width != out else nn.Identity()
        self.attention = Attention(out) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv1(silu(self.norm1(x)))
        h = silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        return self.attention(added(self.skip(x), self.conv2(self.dropout(h))))


class Attention(nn.Module):
    """Single-head self-attention over the pixels of (B, C, H, W), added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = norm(width), nn.Linear(width, 3 * width), zero(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        return x + self.out(weights @ v).transpose(1, 2).reshape(x.shape)


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, width), width)
