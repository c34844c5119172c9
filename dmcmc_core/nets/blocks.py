"""Blocks that the U-Nets of score models share: resampling, residual blocks with attention, embeddings of the noise.

One vocabulary for NCSN++ and DDPM++ (Song et al. 2021, arXiv 2011.13456, Appendix H), the networks of Karras et al.
2022 (arXiv 2206.00364, Appendix F.6) and ADM (Dhariwal & Nichol 2021): they differ in the options of these blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.errors import UserError

DOWN, UP, SAME = "down", "up", None


class Resample(nn.Module):
    """A separable filter that halves or doubles resolution: (B, C, H, W) -> (B, C, H/2, W/2) or (B, C, 2 H, 2 W).

    Args:
        direction: ``down``, ``up`` or None, which passes its input on.
        taps: of the filter in one dimension, an even number; (1, 1) averages or repeats pixels.
    """

    def __init__(self, direction: str | None, taps: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        self.direction, self.box = direction, list(taps) == [1, 1]
        filter = torch.tensor(taps, dtype=torch.float32, device="cpu")
        filter = filter.outer(filter) / filter.sum() ** 2
        self.register_buffer("filter", filter[None, None], persistent=False)
        self.padding = (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.direction is SAME:
            return x
        if self.box:
            return F.avg_pool2d(x, 2) if self.direction == DOWN else F.interpolate(x, scale_factor=2.0)
        filter = self.filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        if self.direction == DOWN:
            return F.conv2d(x, filter, stride=2, padding=self.padding, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * filter, stride=2, padding=self.padding, groups=x.shape[1])


class FilteredDown(nn.Conv2d):
    """A 3x3 convolution at half resolution, its input filtered: the residual encoder of NCSN++."""

    def __init__(self, width: int, out: int, taps: Sequence[float]) -> None:
        super().__init__(width, out, 3, padding=1 + (len(taps) - 1) // 2)
        self.down = Resample(DOWN, taps)
        self.down.padding = 0  # the convolution has padded for both, so that the border is filtered as published

    def forward(self, x: Tensor) -> Tensor:
        filter = self.down.filter.to(x.dtype).expand(self.out_channels, -1, -1, -1)
        return F.conv2d(super().forward(x), filter, stride=2, groups=self.out_channels)


class StridedDown(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads right and below only, as DDPM does, or on all sides, as ADM does."""

    def __init__(self, width: int, out: int, all_sides: bool = False) -> None:
        super().__init__(width, out, 3, stride=2, padding=1 if all_sides else 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.padding[0] else F.pad(x, (0, 1, 0, 1)))


class RepeatedUp(nn.Conv2d):
    """A 3x3 convolution at twice the resolution, its input with every pixel repeated, as in DDPM."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0))


class Block(nn.Module):
    """Two 3x3 convolutions with the embedding in between, at another resolution if asked to; then attention.

    Args:
        width, out: channels in and out.
        embedding: width of the embedding.
        direction: ``down``, ``up`` or None; the input of the first convolution and the shortcut are resampled.
        taps: of that filter.
        heads: of attention over all pixels; 0 is none.
        scale: of the sum with the shortcut, and of that around attention.
        adaptive: whether the embedding scales and shifts (ADM) or only shifts, before the second normalisation.
        project: whether a resampled shortcut has a 1x1 convolution even where its width stays.
        eps: of the normalisations.
        min_group: channels that a group of the normalisations has at least, of at most 32 groups.
    """

    def __init__(  # noqa: PLR0913  the options by which the published blocks differ
        self,
        width: int,
        out: int,
        embedding: int,
        *,
        direction: str | None = None,
        taps: Sequence[float] = (1, 1),
        heads: int = 0,
        scale: float = 1.0,
        adaptive: bool = False,
        project: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
        min_group: int = 4,
    ) -> None:
        super().__init__()
        self.scale, self.adaptive = scale, adaptive
        self.resample = Resample(direction, taps)
        self.norm0, self.conv0 = norm(width, eps, min_group), nn.Conv2d(width, out, 3, padding=1)
        self.affine = nn.Linear(embedding, out * (2 if adaptive else 1))
        self.norm1, self.conv1 = norm(out, eps, min_group), nn.Conv2d(out, out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        shortcut = width != out or (project and direction is not SAME)
        self.skip = nn.Conv2d(width, out, 1) if shortcut else nn.Identity()
        self.attention = Attention(out, heads, eps, min_group) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``embedding`` (B, width of it), after its activation."""
        h = self.conv0(self.resample(silu(self.norm0(x))))
        shift = self.affine(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = shift.chunk(2, 1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + shift)
        h = self.conv1(self.dropout(silu(h)))
        x = added(self.skip(self.resample(x)), h, self.scale)
        return x if self.attention is None else added(x, self.attention(x), self.scale)


class Attention(nn.Module):
    """Self-attention over the pixels of (B, C, H, W), to be added to its input."""

    def __init__(self, width: int, heads: int, eps: float = 1e-6, min_group: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm(width, eps, min_group)
        self.qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        q, k, v = (part.contiguous() for part in qkv.unbind(1))  # (B, heads, H W, C / heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(-1, -2).reshape(b, c, h, w))


class Sinusoids(nn.Module):
    """Waves of c_noise, (B,) -> (B, width): sines, then cosines, of frequencies from 1 to 1 / period (DDPM).

    The frequencies are geometrically spaced. ``endpoint`` says whether the last is one of them, ``cosines_first`` puts
    the cosines before the sines (ADM).
    """

    def __init__(
        self, width: int, endpoint: bool = True, cosines_first: bool = False, period: float = 10_000.0
    ) -> None:
        super().__init__()
        half = width // 2
        exponents = torch.arange(half, dtype=torch.float32, device="cpu") / (half - (1 if endpoint else 0))
        self.cosines_first = cosines_first
        self.register_buffer("frequencies", torch.exp(-math.log(period) * exponents), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        waves = (phase.cos(), phase.sin()) if self.cosines_first else (phase.sin(), phase.cos())
        return torch.cat(waves, 1)


class Constant(nn.Module):
    """c_noise itself in every feature, (B,) -> (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, c_noise: Tensor) -> Tensor:
        return c_noise[:, None].expand(-1, self.width)


class Fourier(nn.Module):
    """Waves of c_noise, (B,) -> (B, width): sines, then cosines, of random frequencies that are kept with the weights.

    The frequencies are drawn from N(0, ``scale``^2), as in NCSN++.
    """

    def __init__(self, width: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2, device="cpu") * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self.frequencies.to(c_noise.dtype) * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], 1)


def silu(x: Tensor) -> Tensor:
    """Return SiLU of a tensor that nobody else needs: in its place, unless a gradient is asked for."""
    return F.silu(x, inplace=not x.requires_grad)


def added(x: Tensor, own: Tensor, scale: float = 1.0) -> Tensor:
    """Return (x + own) * scale in the place of ``own``, which nobody else needs, unless a gradient is asked for."""
    if own.requires_grad or own.dtype != x.dtype or own.stride() != x.stride():  # the sum is laid out as x is
        return (x + own) * scale
    own += x
    return own if scale == 1 else own.mul_(scale)


def norm(width: int, eps: float = 1e-6, min_group: int = 4) -> nn.GroupNorm:
    """Return a normalisation in at most 32 groups of at least ``min_group`` channels each."""
    groups = min(32, width // min_group)
    if not groups or width % groups:
        raise UserError(
            f"{width} channels cannot be normalised in {groups} groups: choose a width that this divides, such as a "
            "multiple of 32"
        )
    return nn.GroupNorm(groups, width, eps=eps)


def zero(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero, so that a block that ends in it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
