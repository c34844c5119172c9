"""The U-Nets of score models: NCSN++, DDPM++ and DDPM (Song et al. 2021, Ho et al. 2020), and ADM.

NCSN++ and DDPM++ in the regular form that Karras et al. 2022 (arXiv 2206.00364, Appendix F.6) gave them, where a level
begins with its change of resolution: the same operations in the same order. Networks are F(x, c_noise), without the
scalings that make a denoiser of them (:mod:`dmcmc_core.nets.scalings`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.errors import UserError, check_whole, number, switch
from dmcmc_core.nets.blocks import (
    DOWN,
    UP,
    Attention,
    Block,
    Constant,
    FilteredDown,
    Fourier,
    RepeatedUp,
    Resample,
    Sinusoids,
    StridedDown,
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
    "heads": (0, 1024),
    "up_heads": (0, 1024),
    "head_channels": (1, 2**16),
}
"""Argument of :class:`UNet` -> the least and the most that it may be."""


class UNet(nn.Module):
    """F(x, c_noise): (B, in_channels, size, size), (B,) -> (B, out_channels, size, size).

    Args:
        size: pixels of a side, divisible by 2^(levels - 1).
        in_channels, out_channels: of the images.
        width: channels of the first level before its multiplier, and of the embedding's waves.
        multipliers: of the width, for each level; fractions of it too, where that is whole.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: resolutions whose blocks attend, in pixels of a side.
        waves: how the noise level is embedded: ``positional``, ``fourier``, or ``constant``, as it is in every feature.
        encoder: what each level on the way down gets beside its features: nothing (``standard``), the smaller image
            (``skip``), or a convolution of what the level above got (``residual``).
        decoder: whether the last level alone makes the image (``standard``) or each adds to it (``skip``).
        taps: of the resampling filter.
        rescale: whether sums of two are divided by sqrt(2).
        convolved: whether resolutions change in a convolution of their own (DDPM) instead of a block.
        plain: whether they change by the resampling filter alone, without any weights.
        fourier_scale: of the frequencies of ``fourier``.
        labels: classes, or 0; ``augment``: augmentation labels of the training, or 0.
        dropout: in training only.
        adm: the blocks of ADM: adaptive normalisation, attention in each block on the way up, by heads of
            ``head_channels`` channels (none where there are fewer channels).
        embedding: width of the embedding, in units of ``width``; ``wave_width``: of its waves in channels, 0 is width.
        min_group: channels that a group of the normalisations has at least, of at most 32 groups.
        strided: whether the convolutions of a ``residual`` encoder have stride 2 instead of a filter.
        period: longest of the ``positional`` waves, in units of 2 pi.
        adaptive: whether blocks scale and shift by the embedding or only shift; None is as ``adm``.
        attend_up: whether each block on the way up attends, as in DDPM and ADM, or the last of a level; None is as
            ``adm``.
        heads, up_heads: of attention, the latter on the way up, where it is as ``heads`` if 0; 0 is one, or for ``adm``
            as ``head_channels`` says.
        head_channels: channels of a head of ``adm``.
    """

    def __init__(  # noqa: PLR0913  the arguments are those of the published configurations
        self,
        size: int,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
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
        plain: bool = False,
        period: float = 10_000.0,
        adaptive: bool | None = None,
        attend_up: bool | None = None,
        heads: int = 0,
        up_heads: int = 0,
        head_channels: int = 64,
    ) -> None:
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for name in ("multipliers", "attention", "taps"):
            self.config[name] = list(self.config[name])
        _check(self.config)
        self.widths = [_whole(width * multiplier) for multiplier in multipliers]
        self.encoder, self.scale = encoder, math.sqrt(0.5) if rescale and not adm else 1.0
        self.embed = Embedding(
            wave_width or width, width * embedding, waves, fourier_scale, labels, augment, adm, period
        )
        self.stem = nn.Conv2d(in_channels, self.widths[0] if adm else width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.enlarge = Resample(DOWN, taps), Resample(UP, taps)
        skips = self._make_down()
        c = skips[-1]
        self.middle = nn.ModuleList([self._block(c, c, attend=True), self._block(c, c)])
        self._make_up(skips)

    def _block(
        self, width: int, out: int, direction: str | None = None, attend: bool = False, up: bool = False
    ) -> Block:
        """Return a block of this network from ``width`` to ``out`` channels, ``up``: on the way up."""
        c = self.config
        own = {name: c[name] for name in ("taps", "dropout", "min_group")}
        own |= {"adaptive": c["adm"] if c["adaptive"] is None else c["adaptive"], "eps": 1e-5 if c["adm"] else 1e-6}
        own |= {"heads": self._heads(out, up) if attend else 0, "project": not c["adm"], "scale": self.scale}
        return Block(width, out, c["width"] * c["embedding"], direction=direction, **own)

    def _heads(self, channels: int, up: bool) -> int:
        """Return the number of heads of attention over so many channels."""
        c = self.config
        heads = (up and c["up_heads"]) or c["heads"] or (channels // c["head_channels"] if c["adm"] else 1)
        if heads and channels % heads:
            raise UserError(
                f"{channels} channels cannot be attended to by {heads} heads: choose heads that divide them"
            )
        return heads

    def _resample(self, width: int, direction: str) -> nn.Module:
        """Return what changes the resolution of a level's features."""
        if self.config["plain"]:
            return Resample(direction, self.config["taps"])
        if self.config["convolved"]:
            return StridedDown(width, width, self.config["adm"]) if direction == DOWN else RepeatedUp(width)
        return self._block(width, width, direction)

    def _make_down(self) -> list[int]:
        """Make the levels on the way down; return the channels of all that the way up joins, the first one last."""
        config, taps = self.config, self.config["taps"]
        c, pyramid = self.stem.out_channels, config["in_channels"]
        skips = [c]
        for level, width in enumerate(self.widths):
            now = Level()
            if level:
                now.resample = self._resample(c, DOWN)
                if self.encoder == "skip":
                    now.pyramid = nn.Conv2d(pyramid, c, 1)
                elif self.encoder == "residual":
                    now.pyramid = StridedDown(pyramid, c) if config["strided"] else FilteredDown(pyramid, c, taps)
                    pyramid = c
                skips.append(c)
            for _ in range(config["blocks"]):
                attend = config["size"] >> level in config["attention"]
                now.blocks.append(self._block(c, width, attend=attend))
                c = width
                skips.append(c)
            self.down.append(now)
        return skips

    def _make_up(self, skips: list[int]) -> None:
        """Make the levels on the way up, the coarsest first; each block joins the last of ``skips`` that is left."""
        config, c = self.config, skips[-1]
        each = config["adm"] if config["attend_up"] is None else config["attend_up"]
        for level, width in reversed(list(enumerate(self.widths))):
            now = Level()
            if level < len(self.widths) - 1:
                now.resample = self._resample(c, UP)
            for i in range(config["blocks"] + 1):
                attend = config["size"] >> level in config["attention"] and (each or i == config["blocks"])
                now.blocks.append(self._block(c + skips.pop(), width, attend=attend, up=True))
                c = width
            if config["decoder"] == "skip" or not level:
                last = nn.Conv2d(c, config["out_channels"], 3, padding=1)
                now.out = nn.Sequential(norm(c, 1e-5 if config["adm"] else 1e-6, config["min_group"]), nn.SiLU(), last)
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


SWITCHES = ("rescale", "convolved", "adm", "strided", "plain")


def _check(config: dict[str, Any]) -> None:
    """Raise UserError for sizes that make no network, or none that fits in memory."""
    for name, limits in LIMITS.items():
        check_whole(name, config[name], *limits)
    for name in SWITCHES:
        switch(name, config[name])
    multipliers, taps = config["multipliers"], config["taps"]
    check_whole("the number of multipliers", len(multipliers), 1, 16)
    for multiplier in multipliers:
        _whole(config["width"] * number("a multiplier", multiplier, above=0, most=1024))
    if len(taps) % 2 or not 2 <= len(taps) <= 16 or not math.isfinite(sum(taps)) or not sum(taps):
        raise UserError("taps must be 2 to 16 finite numbers, an even number of them, that do not add up to 0")
    number("period", config["period"], above=0)
    number("dropout", config["dropout"], least=0, most=1)
    if config["plain"] and config["convolved"]:
        raise UserError("resolutions change in a convolution or plainly: set convolved or plain, not both")
    if config["size"] % 2 ** (len(multipliers) - 1):
        smallest = 2 ** (len(multipliers) - 1)
        raise UserError(f"size must be divisible by {smallest} for its levels, not {config['size']}")


def _whole(width: float) -> int:
    """Return the channels of a level; UserError unless they are whole."""
    if width != int(width) or width < 1:
        raise UserError(f"width times multiplier must be a whole number of channels, not {width:g}")
    return int(width)


def begin(net: UNet) -> None:
    """Set the weights to train from: as drawn, but each residual block and the image zero (Song et al. 2021)."""
    for module in net.modules():
        if isinstance(module, Block):
            zero(module.conv1)
        elif isinstance(module, Attention):
            zero(module.proj)
        elif isinstance(module, Level) and module.out is not None:
            zero(module.out[-1])


class Level(nn.Module):
    """The parts of one resolution; None stands for those that a network has not got."""

    def __init__(self) -> None:
        super().__init__()
        self.resample: nn.Module | None = None
        self.pyramid: nn.Module | None = None
        self.blocks = nn.ModuleList()
        self.out: nn.Module | None = None

    def changed(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the features ``x`` of the level before at this level's own resolution."""
        return self.resample(x, embedding) if isinstance(self.resample, Block) else self.resample(x)


class Embedding(nn.Module):
    """The embedding (B, width) of c_noise (B,), and of labels where the network takes them, after its activation."""

    def __init__(  # noqa: PLR0913  what the networks' embeddings differ in
        self, waves: int, width: int, kind: str, scale: float, labels: int, augment: int, adm: bool, period: float
    ) -> None:
        super().__init__()
        self.adm = adm
        kinds = {
            "positional": lambda: Sinusoids(waves, not adm, adm, period),
            "fourier": lambda: Fourier(waves, scale),
            "constant": lambda: Constant(waves),
        }
        if kind not in kinds:
            raise UserError(f"waves must be one of {', '.join(map(repr, kinds))}, not {kind!r}")
        self.waves = kinds[kind]()
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
