"""The operators of the published NCSN++ in PyTorch, written from their formulas, in place of ours on the same weights.

Song et al. 2021 (arXiv 2011.13456): resampling inserts zeros, pads, convolves all channels as single images at full
resolution and slices (its CPU path); attention is 1x1 products by ``einsum``, one over all pairs of pixels, a softmax,
and another; normalisation, activation and sums are an operation each, sums of two divided by sqrt(2). It stands in for
the published code where a time is compared: nobody needs a copy of that code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.nets import blocks


@contextmanager
def published_operators() -> Iterator[None]:
    """Let the blocks of all networks compute as published inside: those of NCSN++ and DDPM++, not those of ADM."""
    ours = {kind: kind.forward for kind in OPERATORS}
    for kind, forward in OPERATORS.items():
        kind.forward = forward
    try:
        yield
    finally:
        for kind, forward in ours.items():
            kind.forward = forward


def filtered(x: Tensor, filter: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Put ``up`` - 1 zeros after each pixel of (B, C, H, W), pad, convolve with (k, k), keep one pixel of ``down``."""
    b, c, h, w = x.shape
    x = F.pad(x.reshape(-1, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, h * up, w * up)
    x = F.conv2d(F.pad(x, (*pad, *pad)), filter.flip(0, 1)[None, None])[:, :, ::down, ::down]
    return x.reshape(b, c, *x.shape[-2:])


def resample(self: blocks.Resample, x: Tensor) -> Tensor:
    if self.direction is blocks.SAME:
        return x
    filter = self.filter[0, 0]
    if self.direction == blocks.DOWN:
        return filtered(x, filter, down=2, pad=_sides(len(filter) - 2))
    before, after = _sides(len(filter) - 2)
    return filtered(x, 4 * filter, up=2, pad=(before + 1, after))


def filtered_down(self: blocks.FilteredDown, x: Tensor) -> Tensor:
    filter = self.down.filter[0, 0]
    pad = _sides(len(filter) - 2 + self.kernel_size[0] - 1)
    return F.conv2d(filtered(x, filter, pad=pad), self.weight, self.bias, stride=2)


def _sides(pad: int) -> tuple[int, int]:
    return (pad + 1) // 2, pad // 2


def attention(self: blocks.Attention, x: Tensor) -> Tensor:
    if self.heads != 1:
        raise ValueError(f"the published NCSN++ attends by 1 head, not {self.heads}")
    (b, c, h, w), x = x.shape, self.norm(x)
    parts = zip(self.qkv.weight.flatten(1).chunk(3), self.qkv.bias.chunk(3), strict=True)
    q, k, v = (_product(weight, bias, x) for weight, bias in parts)
    pairs = torch.einsum("bchw,bcij->bhwij", q, k) * c**-0.5
    pairs = pairs.reshape(b, h, w, h * w).softmax(-1).reshape(b, h, w, h, w)
    return _product(self.proj.weight.flatten(1), self.proj.bias, torch.einsum("bhwij,bcij->bchw", pairs, v))


def _product(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return (torch.einsum("bhwc,oc->bhwo", x.permute(0, 2, 3, 1), weight) + bias).permute(0, 3, 1, 2)


def block(self: blocks.Block, x: Tensor, embedding: Tensor) -> Tensor:
    if self.adaptive:
        raise ValueError("the published NCSN++ has no adaptive normalisations")
    h = self.resample(F.silu(self.norm0(x)))
    x = self.resample(x)
    h = self.conv0(h) + self.affine(embedding)[:, :, None, None]
    h = self.conv1(self.dropout(F.silu(self.norm1(h))))
    x = _sum(self, self.skip(x), h)
    return x if self.attention is None else _sum(self, x, self.attention(x))


def _sum(self: blocks.Block, x: Tensor, h: Tensor) -> Tensor:
    return x + h if self.scale == 1 else (x + h) / math.sqrt(2.0)


OPERATORS: dict[type[nn.Module], Any] = {
    blocks.Resample: resample,
    blocks.FilteredDown: filtered_down,
    blocks.Attention: attention,
    blocks.Block: block,
}
"""Kind of layer -> its published forward pass."""
