"""The operators M and S: gains per frequency, gains per pixel, a skew term, in three to five real transforms."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Lengths, like, norm, total
from dmcmc_core.errors import UserError, is_number
from dmcmc_core.preconditioning.gain_files import read_gains, write_gains
from dmcmc_core.preconditioning.moments import Array, Moments, axes_of, exact_moments, moments, real
from dmcmc_core.preconditioning.recipes import (
    check_recipe,
    gains_from_covariance,
    gains_from_moments,
    moments_of_masks,
)


class Preconditioner:
    """M, and S. Without any gains the identity, which costs nothing.

    All methods take x of shape (B, *shape), float32 or float64, and return the like of it on its device; rows are
    independent. Float64 in, exact to rounding.

    Args:
        frequency: b, of the shape of one image, above 0; the constant frequency first, as ``torch.fft.fft2`` has it. Of
            gains that are not even, b(-k) = b(k), the even part counts: nothing else of them acts on real images.
        pixel: a, of that shape, above 0.
        skew: q, of that shape; its odd part counts, for the same reason. Its size is the strength of S (omega).

    Attributes:
        shape: of an image; None for the identity, which takes any.

    Raises:
        UserError: gains that are complex, not finite, or not above 0 (1e-9 to 1e9), and shapes that differ.
    """

    def __init__(self, frequency: Array | None = None, pixel: Array | None = None, skew: Array | None = None) -> None:
        given = {"frequency": frequency, "pixel": pixel, "skew": skew}
        given = {name: real(name, gains).clone() for name, gains in given.items() if gains is not None}
        for name in given.keys() - {"skew"}:
            within = (given[name] > 0.999e-9) & (given[name] < 1.001e9)  # M M^T squares them, in float32 too
            off = given[name][~within]
            if len(off):
                raise UserError(f"{name} gains must be above 0, and 1e-9 to 1e9, not {off[0].item():g}")
        if "skew" in given and given["skew"].abs().max() > 1e18:
            raise UserError(
                f"a skew term must be at most 1e18, not {given['skew'].abs().max().item():g}: smaller omega"
            )
        shapes = {tuple(gains.shape) for gains in given.values()}
        if len(shapes) > 1:
            raise UserError(f"{' and '.join(given)} must have one shape, not {' and '.join(map(str, sorted(shapes)))}")
        self.shape: Any = shapes.pop() if shapes else None
        self.frequency, self.pixel, self.response = (given.get(name) for name in ("frequency", "pixel", "skew"))
        if self.frequency is not None:
            self.frequency = (self.frequency + _reflected(self.frequency)) / 2
        if self.response is not None:
            self.response = (self.response - _reflected(self.response)) / 2
        self._cast: dict[tuple, tuple[Tensor | None, ...]] = {}

    @classmethod
    def identity(cls) -> Preconditioner:
        """Return M = 1, S = 0: every sampler as it is without."""
        return cls()

    @classmethod
    def from_images(
        cls,
        images: Array,
        alpha: float = 5.0,
        frequency: bool = True,
        pixel: bool = True,
        recipe: str = "published",
    ) -> Preconditioner:
        """Make the published filters from the statistics of images, (N, *shape) floats or uint8; about 200 do.

        Published gains are those of images in [0, 1], which uint8 are taken to; floats are taken as they are. See
        :meth:`from_moments` for the rest.
        """
        return cls.from_moments(moments(images), alpha, frequency, pixel, recipe)

    @classmethod
    def from_model(cls, model: Denoiser, alpha: float = 5.0, **choices: Any) -> Preconditioner:
        """Make them from the exact second moments of a model that knows them, its data range taken to [0, 1].

        ``choices`` are those of :meth:`from_moments`.
        """
        low, high = getattr(model, "data_range", (0.0, 1.0))
        of = exact_moments(model)
        return cls.from_moments(of.rescaled(low, high) if math.isfinite(high - low) else of, alpha, **choices)

    @classmethod
    def from_moments(
        cls,
        of: Moments,
        alpha: float = 5.0,
        frequency: bool = True,
        pixel: bool = True,
        recipe: str = "published",
    ) -> Preconditioner:
        """Make gains from P = log(1 + E|F x|^2) and Q = E x^2 by one of :data:`dmcmc_core.preconditioning.RECIPES`.

        Args:
            alpha: above 1; the smaller, the stronger. Infinity is the identity.
            frequency, pixel: which of the two gains to make.
            recipe: ``published``, in the released code since February 2023: 1 / R with R = (P / max P + alpha - 1) /
                alpha, gains of 1 to alpha / (alpha - 1), largest where images have least; pixels likewise from Q.
                ``log``: the same with log(1 + Q) for the pixels. ``before-2023``: as that code was, without division
                by the largest, alpha / (P + alpha - 1) and 1 / Q. ``inverse``, a control: R itself.

        Raises:
            UserError: for alpha <= 1, an unknown recipe, and statistics that the recipe would divide by 0.
        """
        return cls(**gains_from_moments(of, alpha, frequency, pixel, recipe))

    @classmethod
    def from_masks(
        cls,
        frequency: str | Path | None = None,
        pixel: str | Path | None = None,
        alpha: float = 5.0,
        recipe: str = "published",
    ) -> Preconditioner:
        """Make filters from ``.npy`` masks of the authors' tool: P and Q, (C, H, W), before normalisation.

        Raises:
            UserError: for what cannot be read, and masks that are complex, not finite, below 0 or 0 everywhere.
        """
        check_recipe(recipe)
        of = moments_of_masks(frequency, pixel)
        return cls.from_moments(of, alpha, frequency is not None, pixel is not None, recipe)

    @classmethod
    def from_covariance(cls, of: Moments, sigma: float, by: str = "frequency") -> Preconditioner:
        """Make M M^T the covariance of noisy data at level sigma, as far as frequencies (or pixels) are uncorrelated.

        The preconditioner that makes a stationary Gaussian round, scaled so that the mean of its squared gains is 1:
        M z has the energy of z. Where images have most it is largest, the published filters are smallest.
        """
        return cls(**{by: gains_from_covariance(of, sigma, by)})

    @classmethod
    def load(cls, path: str | Path) -> Preconditioner:
        """Load a file of :meth:`save`.

        Raises:
            UserError: for a file that is not there, is damaged, or holds something else.
        """
        if not isinstance(path, str | Path):
            raise UserError(f"a file of gains is named by a path, not by {path!r}")
        gains, sha256 = read_gains(Path(path))
        saved = cls(**gains)
        if sha256 not in (None, saved.sha256):
            raise UserError(f"{path} is damaged: its gains are not those that were saved")
        return saved

    def save(self, path: str | Path, /, **about: Any) -> None:
        """Write the gains to a ``.safetensors`` file, what is to be known ``about`` them as JSON in its metadata.

        Raises:
            UserError: for the identity, another ending, what JSON cannot hold, and where the file cannot be written.
        """
        if self.shape is None:
            raise UserError("the identity has no gains to save: leave the preconditioner out where it is used")
        if not isinstance(path, str | Path) or Path(path).suffix != ".safetensors":
            raise UserError(f"gains are saved to a file that ends in .safetensors, not to {str(path)!r}")
        gains = {"frequency": self.frequency, "pixel": self.pixel, "skew": self.response}
        gains = {name: tensor.contiguous() for name, tensor in gains.items() if tensor is not None}
        write_gains(Path(path), gains, about, self.sha256)

    def with_skew(
        self, omega: float, direction: Sequence[float] = (1.0, 1.0), shape: Sequence[int] | None = None
    ) -> Preconditioner:
        """Return the same M with S of strength omega: q(k) = omega sin(2 pi direction . k), k in cycles per pixel.

        It couples every pixel with its neighbour along ``direction``: S f(x) = omega (f(x + direction) -
        f(x - direction)) / 2 for whole numbers. One number per transformed axis; the last one for a vector. Only the
        identity needs to be told a ``shape``.
        """
        if not is_number(omega) or not math.isfinite(omega):
            raise UserError(f"omega must be a finite number, not {omega!r}")
        shape = self.shape or shape
        if not isinstance(shape, Sequence) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
            raise UserError(f"the identity has no shape for a skew term: give one, such as (1, 8, 8), not {shape!r}")
        shape = tuple(shape)
        axes = axes_of(shape)
        sizes = [shape[a] for a in axes]
        steps = list(direction)[-len(axes) :] if isinstance(direction, Sequence) else []
        if len(steps) < len(axes) or not all(is_number(step) and math.isfinite(step) for step in steps):
            raise UserError(
                f"direction must be {len(axes)} finite numbers, one per transformed axis, not {direction!r}"
            )
        k = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in sizes), indexing="ij")
        phase = total(2 * math.pi * step * grid for step, grid in zip(steps, k, strict=True))
        return Preconditioner(self.frequency, self.pixel, (omega * phase.sin()).expand(shape))

    @property
    def skewed(self) -> bool:
        """Whether there is a skew term."""
        return self.response is not None

    @property
    def sha256(self) -> str:
        """SHA-256 of all gains; the name of this preconditioner in keys of runs."""
        digest = hashlib.sha256()
        for gains in (self.frequency, self.pixel, self.response):
            digest.update(b"-" if gains is None else repr(self.shape).encode() + gains.cpu().numpy().tobytes())
        return digest.hexdigest()

    def apply(self, x: Tensor) -> Tensor:
        """Return M x, what becomes of noise."""
        b, a, _ = self._of(x)
        x = x if a is None else a * x
        return x if b is None else self._back(b * self._fourier(x), x)

    def apply_transpose(self, x: Tensor) -> Tensor:
        """Return M^T x."""
        b, a, _ = self._of(x)
        x = x if b is None else self._back(b * self._fourier(x), x)
        return x if a is None else a * x

    def inverse(self, x: Tensor) -> Tensor:
        """Return M^-1 x."""
        b, a, _ = self._of(x)
        x = x if b is None else self._back(self._fourier(x) / b, x)
        return x if a is None else x / a

    def squared(self, x: Tensor) -> Tensor:
        """Return M M^T x, what becomes of a gradient."""
        return self._drift(x, None, with_skew=False)

    def skew(self, x: Tensor) -> Tensor:
        """Return S x; 0 without a skew term."""
        q = self._of(x)[2]
        return torch.zeros_like(x) if q is None else self._back(1j * q * self._fourier(x), x)

    def drift(self, x: Tensor) -> Tensor:
        """Return (M M^T + S) x, sharing transforms."""
        return self._drift(x, None, with_skew=True)

    def move(self, x: Tensor, gradient: Tensor, noise: Tensor) -> Tensor:
        """Return x + (M M^T + S) gradient + M noise, a step of Langevin dynamics.

        With three real transforms of each image for frequency gains, four with pixel gains too, none for those alone
        but two for S.
        """
        if self.shape is None:
            return x + gradient + noise
        self._check(x, noise)
        return x + self._drift(gradient, noise, with_skew=True)

    def correct(self, x: Tensor, gradient: Tensor, noise: Tensor, lengths: Lengths) -> Tensor:
        """Return x + e g + f n with g = (M M^T + S) gradient, n = M noise and (e, f) = lengths(|g|, |n|), all (B,).

        With three real transforms of each image for frequency gains, five with pixel gains too, none for those alone
        but two for S: the norms are those of the spectra, by Parseval's theorem.
        """
        self._check(x, noise)
        b, a, _ = self._of(gradient)
        if b is None:
            drift, kick = self.drift(gradient), self.apply(noise)
            e, f = lengths(norm(drift), norm(kick))
            return x + like(e, x) * drift + like(f, x) * kick
        drift = self._spectrum(gradient, None, with_skew=True)
        kick = self._fourier(noise if a is None else a * noise).mul_(b)
        e, f = lengths(self._spectral_norm(drift), self._spectral_norm(kick))
        return x + self._back(like(e, x) * drift + like(f, x) * kick, x)

    def _drift(self, gradient: Tensor, noise: Tensor | None, with_skew: bool) -> Tensor:
        b, a, q = self._of(gradient)
        if b is not None:
            return self._back(self._spectrum(gradient, noise, with_skew), gradient)
        out = gradient if a is None else a**2 * gradient
        if noise is not None:
            out = out + (noise if a is None else a * noise)
        return out + self._back(1j * q * self._fourier(gradient), gradient) if with_skew and q is not None else out

    def _spectrum(self, gradient: Tensor, noise: Tensor | None, with_skew: bool) -> Tensor:
        """Return F of (M M^T + S) gradient + M noise, for frequency gains."""
        b, a, q = self._of(gradient)
        spectrum = self._fourier(gradient)
        if a is None:
            out = b * spectrum
            out = (out if noise is None else out.add_(self._fourier(noise))).mul_(b)
        else:
            inner = self._back(b * spectrum, gradient).mul_(a).mul_(a)
            out = self._fourier(inner if noise is None else inner.addcmul_(a, noise)).mul_(b)
        return out if q is None or not with_skew else out.add_(1j * q * spectrum)

    def _spectral_norm(self, spectrum: Tensor) -> Tensor:
        """Return |x| (B,) from the half of F x that a real transform keeps: columns that mirror another count twice."""
        n = self.shape[-1]
        alone = spectrum[..., [0] if n % 2 else [0, n // 2]]
        kept, alone = (norm(torch.view_as_real(part)) for part in (spectrum, alone))
        return (2 * kept**2 - alone**2).sqrt()

    def _fourier(self, x: Tensor) -> Tensor:
        return torch.fft.rfftn(x, dim=axes_of(self.shape), norm="ortho")

    def _back(self, spectrum: Tensor, x: Tensor) -> Tensor:
        axes = axes_of(self.shape)
        return torch.fft.irfftn(spectrum, s=[self.shape[a] for a in axes], dim=axes, norm="ortho")

    def _check(self, *images: Tensor) -> None:
        for x in images:
            self._of(x)

    def _of(self, x: Tensor) -> tuple[Any, Any, Any]:
        """Return b and q at the frequencies that a real transform keeps, and a, as x needs them."""
        if not isinstance(x, Tensor):
            raise UserError(f"x must be a tensor of images, (B, *shape), not {type(x).__name__}")
        if self.shape is None:
            return None, None, None
        if not len(x):
            raise UserError("x must be at least one image, not none")
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"this preconditioner is for images of shape {self.shape}, not {tuple(x.shape[1:])}")
        if x.dtype not in (torch.float32, torch.float64):
            raise UserError(f"x must be real floats of single or double precision, as samplers keep it, not {x.dtype}")
        name = x.dtype, x.device
        if name not in self._cast:
            half = self.shape[-1] // 2 + 1
            kept = (
                None if self.frequency is None else self.frequency[..., :half],
                self.pixel,
                None if self.response is None else self.response[..., :half],
            )
            self._cast[name] = tuple(None if gains is None else gains.to(x).contiguous() for gains in kept)
        b, a, q = self._cast[name]
        return b, a, q


def _reflected(gains: Tensor) -> Tensor:
    """Return g(-k)."""
    axes = axes_of(gains.shape)
    return gains.flip(axes).roll([1] * len(axes), axes)
