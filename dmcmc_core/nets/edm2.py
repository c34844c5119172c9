"""The magnitude-preserving U-Net of EDM2 and the denoiser around it; Karras et al. 2024 (arXiv 2312.02696), config G.

Every layer keeps the expected magnitude of its input: weights are normalised where they are used, sums, concatenations
and nonlinearities are scaled, nothing has a bias. The names of layers are those of the published networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core.denoiser import like, per_row
from dmcmc_core.errors import UserError, check_whole, number
from dmcmc_core.nets.blocks import DOWN, SAME, UP, Resample
from dmcmc_core.nets.scalings import edm, label_rows

LIMITS = {
    "size": (1, 8192),
    "channels": (1, 1024),
    "classes": (0, 10**6),
    "width": (1, 2**16),
    "blocks": (0, 64),
    "head": (1, 2**16),
    "logvar": (1, 2**16),
}
"""Whole argument of :class:`MagnitudePreservingNet` -> the least and the most that it may be."""
BALANCES = ("label_balance", "concat_balance", "residual_balance", "attention_balance")


def normalise(x: Tensor, dims: Sequence[int], eps: float = 1e-4) -> Tensor:
    """Return ``x`` of unit root mean square along ``dims``: x / (eps + |x| / sqrt(N))."""
    magnitude = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (eps + magnitude / math.sqrt(math.prod(x.shape[d] for d in dims)))


def mp_silu(x: Tensor) -> Tensor:
    """Return silu(x) / 0.596, of unit magnitude for standard normal ``x``; equation 81."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2); equation 88."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return both side by side in channels, so weighted that b has the share t of the magnitude; equation 103."""
    n_a, n_b = a.shape[1], b.shape[1]
    c = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([c * (1 - t) / math.sqrt(n_a) * a, c * t / math.sqrt(n_b) * b], 1)


class MPConv(nn.Module):
    """A convolution, or without ``kernel`` a linear layer, of normalised weights: gain w / |w|; equation 47."""

    def __init__(self, width: int, out: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        dims = tuple(range(1, self.weight.ndim))
        w = normalise(self.weight, dims) * (gain / math.sqrt(self.weight[0].numel()))
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class MPFourier(nn.Module):
    """Waves of c_noise, (B,) -> (B, width): sqrt(2) cos(f c_noise + phase), f and phase kept; equation 75."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, c_noise: Tensor) -> Tensor:
        return math.sqrt(2) * (c_noise[:, None] * self.freqs + self.phases).cos()


class Block(nn.Module):
    """Two 3x3 convolutions with the embedding as a gain in between, at another resolution if asked to; then attention.

    Args:
        width, out, embedding: channels in, out, and of the embedding.
        encode: whether on the way down: there the shortcut is normalised, and the convolutions see it.
        direction: ``down``, ``up`` or None.
        heads: of cosine attention over all pixels; 0 is none.
        config: of the network.
    """

    def __init__(
        self,
        width: int,
        out: int,
        embedding: int,
        config: dict[str, Any],
        encode: bool,
        direction: str | None = SAME,
        heads: int = 0,
    ) -> None:
        super().__init__()
        self.encode, self.heads, self.clip = encode, heads, config["clip"]
        self.residual_balance, self.attention_balance = config["residual_balance"], config["attention_balance"]
        self.resample, self.dropout = Resample(direction, config["taps"]), nn.Dropout(config["dropout"])
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out if encode else width, out, 3, 3)
        self.emb_linear = MPConv(embedding, out)
        self.conv_res1 = MPConv(out, out, 3, 3)
        self.conv_skip = MPConv(width, out, 1, 1) if width != out else None
        self.attn_qkv = MPConv(out, 3 * out, 1, 1) if heads else None
        self.attn_proj = MPConv(out, out, 1, 1) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return features (B, out, H, W) of ``x`` (B, width, H, W) and the embedding (B, ...) after its activation."""
        x = self.resample(x)
        if self.encode:
            x = normalise(x if self.conv_skip is None else self.conv_skip(x), (1,))  # pixel norm
        h = self.conv_res0(mp_silu(x))
        gain = self.emb_linear(embedding, self.emb_gain) + 1
        h = self.conv_res1(self.dropout(mp_silu(h * gain[:, :, None, None])))
        if not self.encode and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, h, self.residual_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self._attend(self.attn_qkv(x))), self.attention_balance)
        return x if self.clip is None else x.clip(-self.clip, self.clip)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return cosine attention of ``qkv``, whose channels are ordered by head, channel, then query, key, value."""
        b, _, height, width = qkv.shape
        parts = normalise(qkv.reshape(b, self.heads, -1, 3, height * width), (2,))
        q, k, v = (part.transpose(-1, -2).contiguous() for part in parts.unbind(3))  # (B, heads, H W, C / heads)
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, -1, height, width)


class UNet(nn.Module):
    """F(x, c_noise, labels): (B, channels, size, size), (B,), (B, classes) -> (B, channels, size, size)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        c = self.config = config
        widths = [c["width"] * m for m in c["multipliers"]]
        waves = widths[0] if c["wave_multiplier"] is None else c["width"] * c["wave_multiplier"]
        self.embedding = max(widths) if c["embedding_multiplier"] is None else c["width"] * c["embedding_multiplier"]
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise = MPFourier(waves), MPConv(waves, self.embedding)
        self.emb_label = MPConv(c["classes"], self.embedding) if c["classes"] else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips = self._make_down(widths)
        self._make_up(widths, skips)
        self.out_conv = MPConv(widths[0], c["channels"], 3, 3)

    def _block(
        self, width: int, out: int, side: int, encode: bool, direction: str | None = SAME, attend: bool | None = None
    ) -> Block:
        """Return a block at a resolution, which attends as the network's arguments say unless ``attend`` does."""
        attend = side in self.config["attention"] if attend is None else attend
        heads = out // self.config["head"] if attend else 0
        if heads and out % heads:
            raise UserError(f"{out} channels cannot be shared by {heads} heads: choose a head that divides them")
        return Block(width, out, self.embedding, self.config, encode, direction, heads)

    def _make_down(self, widths: list[int]) -> list[int]:
        """Make the way down; return the channels of all that the way up joins, the first one last."""
        c = widths[0]
        skips = [c]
        for level, out in enumerate(widths):
            side = self.config["size"] >> level
            if level:
                self.enc[f"{side}x{side}_down"] = self._block(c, c, side, True, DOWN, attend=False)
                skips.append(c)
            else:
                self.enc[f"{side}x{side}_conv"] = MPConv(self.config["channels"] + 1, c, 3, 3)
            for i in range(self.config["blocks"]):
                self.enc[f"{side}x{side}_block{i}"] = self._block(c, out, side, True)
                c = out
                skips.append(c)
        return skips

    def _make_up(self, widths: list[int], skips: list[int]) -> None:
        """Make the way up, the coarsest level first; each ``_block`` joins the last of ``skips`` that is left."""
        c = skips[-1]
        for level, out in reversed(list(enumerate(widths))):
            side = self.config["size"] >> level
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = self._block(c, c, side, False, attend=True)
                self.dec[f"{side}x{side}_in1"] = self._block(c, c, side, False, attend=False)
            else:
                self.dec[f"{side}x{side}_up"] = self._block(c, c, side, False, UP, attend=False)
            for i in range(self.config["blocks"] + 1):
                self.dec[f"{side}x{side}_block{i}"] = self._block(c + skips.pop(), out, side, False)
                c = out

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return F; ``labels`` (B, classes), None for zeros, which are no class."""
        embedding = self._embed(c_noise, labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for part in self.enc.values():
            x = part(x, embedding) if isinstance(part, Block) else part(x)
            skips.append(x)
        for name, part in self.dec.items():
            x = mp_cat(x, skips.pop(), self.config["concat_balance"]) if "_block" in name else x
            x = part(x, embedding)
        return self.out_conv(x, self.out_gain)

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return the embedding (B, width of it) of c_noise (B,) and labels, after its activation."""
        embedding = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            classes = self.config["classes"]
            labels = embedding.new_zeros(len(embedding), classes) if labels is None else labels
            of_label = self.emb_label(labels * math.sqrt(classes))
            embedding = mp_sum(embedding, of_label, self.config["label_balance"])
        return mp_silu(embedding)


class MagnitudePreservingNet(nn.Module):
    """A denoiser, EDM's scalings around that U-Net: x (B, C, H, W), sigma () or (B,), labels -> E[x0 | x, sigma].

    Args:
        size: pixels of a side, divisible by 2^(levels - 1).
        channels: of the images, or of the latents.
        classes: that labels choose from, or 0.
        width: channels of a multiplier of 1.
        multipliers: of the width, for each level.
        wave_multiplier, embedding_multiplier: of the width, for the waves of the noise level (None: as the first
            level) and for the embedding (None: as the widest level).
        blocks: of a level on the way down; one more on the way up.
        attention: resolutions whose blocks attend, in pixels of a side; the first block on the way up always does.
        head: channels of a head.
        label_balance, concat_balance, residual_balance, attention_balance: t of the sum of noise and label, of joined
            features, of a block and of attention with their shortcuts, 0 to 1.
        clip: the largest activation, or None.
        taps: of the resampling filter.
        dropout: in training only.
        sigma_data: standard deviation of the data.
        logvar: waves of the noise level in :meth:`log_variance`.

    Raises:
        UserError: for sizes that make no network, or none that fits in memory.
    """

    def __init__(  # noqa: PLR0913  the arguments are those of the published networks
        self,
        size: int,
        channels: int,
        classes: int = 0,
        width: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        wave_multiplier: int | None = None,
        embedding_multiplier: int | None = None,
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        head: int = 64,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        clip: float | None = 256.0,
        taps: Sequence[float] = (1, 1),
        dropout: float = 0.0,
        sigma_data: float = 0.5,
        logvar: int = 128,
    ) -> None:
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for name in ("multipliers", "attention", "taps"):
            self.config[name] = list(self.config[name])
        _check(self.config)
        self.unet = UNet(self.config)
        self.logvar_fourier, self.logvar_linear = MPFourier(logvar), MPConv(logvar, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images or latents."""
        return self.config["channels"], self.config["size"], self.config["size"]

    @property
    def classes(self) -> int:
        """How many classes labels choose from, 0 for none."""
        return int(self.config["classes"])

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return E[x0 | x, sigma] for x (B, C, H, W), sigma () or (B,).

        ``labels``: (B,) whole numbers, -1 for no class, or (B, classes), one-hot, soft, or all 0 for no class.

        Raises:
            UserError: for labels of a network without classes, or of another shape or range.
        """
        c = edm(per_row(sigma, x), self.config["sigma_data"])
        out = self.unet(like(c.c_in, x) * x, c.c_noise, label_rows(labels, self.classes, x))
        return like(c.c_skip, x) * x + like(c.c_out, x) * out

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Return u(sigma), the log of the loss that training expected at each level: (B,) -> (B,); equation 21."""
        return self.logvar_linear(self.logvar_fourier(edm(sigma, self.config["sigma_data"]).c_noise))[:, 0]


def _check(config: dict[str, Any]) -> None:
    """Raise UserError for sizes that make no network, or none that fits in memory."""
    for name, limits in LIMITS.items():
        check_whole(name, config[name], *limits)
    levels, taps = config["multipliers"], config["taps"]
    check_whole("the number of multipliers", len(levels), 1, 16)
    for multiplier in [*levels, config["wave_multiplier"], config["embedding_multiplier"]]:
        if multiplier is not None:
            check_whole("a multiplier", multiplier, 1, 1024)
    for name in BALANCES:
        number(name, config[name], least=0, most=1)
    number("sigma_data", config["sigma_data"], above=0, below=1e6)
    number("dropout", config["dropout"], least=0, most=1)
    if config["clip"] is not None:
        number("clip", config["clip"], above=0)
    if len(taps) % 2 or not 2 <= len(taps) <= 16 or not math.isfinite(sum(taps)) or not sum(taps):
        raise UserError("taps must be 2 to 16 finite numbers, an even number of them, that do not add up to 0")
    if config["size"] % 2 ** (len(levels) - 1):
        raise UserError(f"size must be divisible by {2 ** (len(levels) - 1)} for its levels, not {config['size']}")
