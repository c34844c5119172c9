"""The U-Nets of score models: NCSN++, DDPM++ and DDPM (Song et al. 2021, Ho et al. 2020), and ADM.

NCSN++ and DDPM++ in the regular form that Karras et al. 2022 (arXiv 2206.00364, Appendix F.6) gave them, where a level
begins with its change of resolution: the same operations in the same order. Networks are F(x, c_noise), without the
preconditioning that makes a denoiser of them (:mod:`dmcmc_core.nets.preconditioning`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.errors import UserError
from dmcmc_core.nets.blocks import (
    DOWN,
    UP,
    Attention,
    Block,
    FilteredDown,
    Fourier,
    RepeatedUp,
    Resample,
    Sinusoids,
    StridedDown,
    check_whole,
    norm,
    zero,
)

LIMITS = {
    "size": (1, 8192),
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "width": (1, 2**16),
    "blocks": (0, 64),
    "labels": (0, 10**6),
    "augment": (0, 10**6),
    "embedding": (1, 64),
    "wave_width": (0, 2**16),
    "min_group": (1, 2**16),
}
"""Argument of :class:`UNet` -> the least and the most that it may be."""


class UNet(nn.Module):
    """F(x, c_noise): (B, in_channels, size, size), (B,) -> (B, out_channels, size, size).

    Args:
        size: pixels of a side, divisible by 2^(levels - 1).
        in_channels, out_channels: of the images.
        width: channels of the first level before its multiplier, and of the embedding's waves.
        multipliers: of the width, for each level.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: resolutions whose blocks attend, in pixels of a side.
        waves: ``positional`` or ``fourier``, how the noise level is embedded.
        encoder: what each level on the way down gets beside its features: nothing (``standard``), the smaller image
            (``skip``), or a convolution of what the level above got (``residual``).
        decoder: whether the last level alone makes the image (``standard``) or each adds to it (``skip``).
        taps: of the resampling filter.
        rescale: whether sums of two are divided by sqrt(2).
        convolved: whether resolutions change in a convolution of their own (DDPM) instead of a block.
        fourier_scale: of the frequencies of ``fourier``.
        labels: classes, or 0; ``augment``: augmentation labels of the training, or 0.
        dropout: in training only.
        adm: the blocks of ADM: adaptive normalisation, attention in each block on the way up, by heads of 64 channels
            (none where there are fewer channels).
        embedding: width of the embedding, in units of ``width``; ``wave_width``: of its waves in channels, 0 is width.
        min_group: channels that a group of the normalisations has at least, of at most 32 groups.
        strided: whether the convolutions of a ``residual`` encoder have stride 2 instead of a filter.
    """

    def __init__(
        self,
        size: int,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        waves: str = "positional",
        encoder: str = "standard",
        decoder: str = "standard",
        taps: Sequence[float] = (1, 1),
        rescale: bool = True,
        convolved: bool = False,
        fourier_scale: float = 16.0,
        labels: int = 0,
        augment: int = 0,
        dropout: float = 0.0,
        embedding: int = 4,
        adm: bool = False,
        wave_width: int = 0,
        min_group: int = 4,
        strided: bool = False,
    ) -> None:
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for name in ("multipliers", "attention", "taps"):
            self.config[name] = list(self.config[name])
        for name, limits in LIMITS.items():
            check_whole(name, self.config[name], *limits)
        check_whole("the number of multipliers", len(multipliers), 1, 16)
        for multiplier in multipliers:
            check_whole("a multiplier", multiplier, 1, 1024)
        if len(taps) % 2 or not 2 <= len(taps) <= 16 or not math.isfinite(sum(taps)) or not sum(taps):
            raise UserError("taps must be 2 to 16 finite numbers, an even number of them, that do not add up to 0")
        if size % 2 ** (len(multipliers) - 1):
            raise UserError(f"size must be divisible by {2 ** (len(multipliers) - 1)} for its levels, not {size}")
        self.encoder, self.scale = encoder, math.sqrt(0.5) if rescale and not adm else 1.0
        wide = width * embedding
        self.embed = Embedding(wave_width or width, wide, waves, fourier_scale, labels, augment, adm)
        eps, own = (1e-5, {"adaptive": True, "project": False}) if adm else (1e-6, {"scale": self.scale})

        def block(a: int, b: int, direction: str | None = None, attend: bool = False) -> Block:
            heads = (b // 64 if adm else 1) if attend else 0
            return Block(
                a,
                b,
                wide,
                direction=direction,
                taps=taps,
                heads=heads,
                dropout=dropout,
                eps=eps,
                min_group=min_group,
                **own,
            )

        self.stem = nn.Conv2d(in_channels, width * multipliers[0] if adm else width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.enlarge = Resample(DOWN, taps), Resample(UP, taps)
        c, pyramid = self.stem.out_channels, in_channels
        skips = [c]
        for level, multiplier in enumerate(multipliers):
            now = Level()
            if level:
                now.resample = StridedDown(c, c) if convolved else block(c, c, DOWN)
                if encoder == "skip":
                    now.pyramid = nn.Conv2d(pyramid, c, 1)
                elif encoder == "residual":
                    now.pyramid = StridedDown(pyramid, c) if strided else FilteredDown(pyramid, c, taps)
                    pyramid = c
                skips.append(c)
            for _ in range(blocks):
                now.blocks.append(block(c, width * multiplier, attend=size >> level in attention))
                c = width * multiplier
                skips.append(c)
            self.down.append(now)
        self.middle = nn.ModuleList([block(c, c, attend=True), block(c, c)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            now = Level()
            if level < len(multipliers) - 1:
                now.resample = RepeatedUp(c) if convolved else block(c, c, UP)
            for i in range(blocks + 1):
                attend = size >> level in attention and (adm or i == blocks)
                now.blocks.append(block(c + skips.pop(), width * multiplier, attend=attend))
                c = width * multiplier
            if decoder == "skip" or not level:
                now.out = nn.Sequential(norm(c, eps, min_group), nn.SiLU(), nn.Conv2d(c, out_channels, 3, padding=1))
            self.up.append(now)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``labels`` (B, classes): one-hot, or all 0 for no class."""
        embedding, pyramid = self.embed(c_noise, labels), x
        x = self.stem(x)
        skips = [x]
        for level in self.down:
            if level.resample is not None:
                x = level.changed(x, embedding)
                if self.encoder == "skip":
                    pyramid = self.shrink(pyramid)
                    x = x + level.pyramid(pyramid)
                elif self.encoder == "residual":
                    x = pyramid = (x + level.pyramid(pyramid)) * self.scale
                skips.append(x)
            for block in level.blocks:
                x = block(x, embedding)
                skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        image = None
        for level in self.up:
            if level.resample is not None:
                x = level.changed(x, embedding)
            for block in level.blocks:
                x = block(torch.cat([x, skips.pop()], 1), embedding)
            if level.out is not None:
                image = level.out(x) if image is None else self.enlarge(image) + level.out(x)
        return image


def begin(net: UNet) -> None:
    """Weights to train from: as drawn, but each residual block and the image begin as zero (Song et al. 2021)."""
    for module in net.modules():
        if isinstance(module, Block):
            zero(module.conv1)
        elif isinstance(module, Attention):
            zero(module.proj)
        elif isinstance(module, Level) and module.out is not None:
            zero(module.out[-1])


class Level(nn.Module):
    """The parts of one resolution; None where a network has not got one."""

    def __init__(self) -> None:
        super().__init__()
        self.resample: nn.Module | None = None
        self.pyramid: nn.Module | None = None
        self.blocks = nn.ModuleList()
        self.out: nn.Module | None = None

    def changed(self, x: Tensor, embedding: Tensor) -> Tensor:
        """At the level's own resolution."""
        return self.resample(x, embedding) if isinstance(self.resample, Block) else self.resample(x)


class Embedding(nn.Module):
    """c_noise (B,), and labels where the network takes them -> (B, width), after its activation."""

    def __init__(self, waves: int, width: int, kind: str, scale: float, labels: int, augment: int, adm: bool) -> None:
        super().__init__()
        self.adm = adm
        if kind not in ("positional", "fourier"):
            raise UserError(f"waves must be 'positional' or 'fourier', not {kind!r}")
        self.waves = Fourier(waves, scale) if kind == "fourier" else Sinusoids(waves, not adm, adm)
        self.label = nn.Linear(labels, width if adm else waves, bias=not adm) if labels else None
        self.augment = nn.Linear(augment, waves, bias=False) if augment else None
        self.first, self.second = nn.Linear(waves, width), nn.Linear(width, width)

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        hidden = self.waves(c_noise)
        if self.label is not None and not self.adm:
            labels = hidden.new_zeros(len(hidden), self.label.in_features) if labels is None else labels
            hidden = hidden + self.label(labels * math.sqrt(labels.shape[1]))
        out = self.second(F.silu(self.first(hidden)))
        if self.label is not None and self.adm:
            labels = out.new_zeros(len(out), self.label.in_features) if labels is None else labels
            out = out + self.label(labels)
        return F.silu(out)
