"""Linear preconditioners M of the Langevin and reverse diffusions: gains per frequency, gains per pixel, a skew term.

Preconditioned Diffusion Sampling (Ma et al. 2022, arXiv 2207.02196; 2023, arXiv 2302.06504) follows

    dx = (M M^T + S) score(x) dt / 2 + M dw,    M z = F^-1 [b . F (a . z)],    S f = F^-1 [i q . F f]

with frequency gains b (real and even), pixel gains a, and a response q (real and odd, so that S is skew). Any M that
can be inverted and any S leave the law that the Langevin diffusion keeps as it is. F is the Fourier transform over the
last two axes of an image, over the only axis of a vector (d,). In coordinates y = M^-1 x this is the plain diffusion,
which is why every kernel can take it: positions move by M, gradients come by M^T.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Lengths, Wrapper, like, norm, walk
from dmcmc_core.errors import UserError, is_number, unknown

Array = Tensor | np.ndarray | Sequence


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
        given = {name: _real(name, gains).clone() for name, gains in given.items() if gains is not None}
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
        self.shape = shapes.pop() if shapes else None
        self.frequency, self.pixel, self.response = (given.get(name) for name in ("frequency", "pixel", "skew"))
        if self.frequency is not None:
            self.frequency = (self.frequency + _reflected(self.frequency)) / 2
        if self.response is not None:
            self.response = (self.response - _reflected(self.response)) / 2
        self._cast: dict[tuple, tuple[Tensor | None, ...]] = {}

    @classmethod
    def identity(cls) -> Preconditioner:
        """M = 1, S = 0: every sampler as it is without."""
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
        """The published filters, from the statistics of images, (N, *shape) floats or uint8; about 200 do.

        Published gains are those of images in [0, 1], which uint8 are taken to; floats are taken as they are. See
        :meth:`from_moments` for the rest.
        """
        return cls.from_moments(moments(images), alpha, frequency, pixel, recipe)

    @classmethod
    def from_model(cls, model: Denoiser, alpha: float = 5.0, **choices: Any) -> Preconditioner:
        """The same from the exact second moments of a model that knows them, its data range taken to [0, 1].

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
        """Gains from P = log(1 + E|F x|^2) and Q = E x^2 by one of :data:`RECIPES`.

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
        if not is_number(alpha) or not alpha > 1:
            raise UserError(f"alpha must be a number above 1 (infinity, .inf in YAML, is the identity), not {alpha!r}")
        for name, flag in (("frequency", frequency), ("pixel", pixel)):
            if not isinstance(flag, bool):
                raise UserError(f"{name} must be True or False, whether to make such gains, not {flag!r}")
        _check_recipe(recipe)
        if alpha == math.inf:
            return cls()
        of_frequency, of_pixel = RECIPES[recipe]
        return cls(
            of_frequency(of.power.log1p(), alpha) if frequency else None,
            of_pixel(of.square, alpha) if pixel else None,
        )

    @classmethod
    def from_masks(
        cls,
        frequency: str | Path | None = None,
        pixel: str | Path | None = None,
        alpha: float = 5.0,
        recipe: str = "published",
    ) -> Preconditioner:
        """Filters from ``.npy`` masks in the layout of the authors' tool: P and Q, (C, H, W), before normalisation.

        Raises:
            UserError: for what cannot be read, and masks that are complex, not finite, below 0 or 0 everywhere.
        """
        _check_recipe(recipe)
        masks = {name: _mask(path) for name, path in (("frequency", frequency), ("pixel", pixel)) if path is not None}
        if not masks:
            raise UserError("name a mask for frequency, for pixel, or for both")
        first = next(iter(masks.values()))
        power = masks.get("frequency", torch.ones_like(first))
        if power.max() > 700:
            raise UserError(f"a mask of frequencies has log(1 + power), which is below 700, not {power.max().item():g}")
        axes = _axes(first.shape)
        middle = power[(..., *(power.shape[a] // 2 for a in axes))]
        if (middle == power.amax(axes)).all() and (middle > power[(..., *(0 for _ in axes))]).all():
            raise UserError("a mask of frequencies has the constant one first, as fft2 has it: undo fftshift")
        of = Moments(power.expm1(), masks.get("pixel", torch.ones_like(first)), None)
        return cls.from_moments(of, alpha, "frequency" in masks, "pixel" in masks, recipe)

    @classmethod
    def from_covariance(cls, of: Moments, sigma: float, by: str = "frequency") -> Preconditioner:
        """M M^T = the covariance of noisy data at level sigma, as far as frequencies (or pixels) are uncorrelated.

        The preconditioner that makes a stationary Gaussian round, scaled so that the mean of its squared gains is 1:
        M z has the energy of z. Where images have most it is largest, the published filters are smallest.
        """
        if not isinstance(of, Moments):
            raise UserError(f"the covariance is that of moments(images), not of {type(of).__name__}")
        if not is_number(sigma) or not 0 <= sigma < math.inf:
            raise UserError(f"sigma must be a finite number, at least 0, not {sigma!r}")
        if by not in ("frequency", "pixel"):
            raise UserError(f"by must be 'frequency' or 'pixel', not {by!r}")
        variance = (of.spectrum if by == "frequency" else of.variance) + sigma**2
        if not (variance > 0).all():
            raise UserError(f"the data do not vary in some {by}: give a sigma above 0")
        return cls(**{by: (variance / variance.mean()).sqrt()})

    @classmethod
    def load(cls, path: str | Path) -> Preconditioner:
        """From a file of :meth:`save`.

        Raises:
            UserError: for a file that is not there, is damaged, or holds something else.
        """
        if not isinstance(path, str | Path):
            raise UserError(f"a file of gains is named by a path, not by {path!r}")
        gains, sha256 = _read(Path(path))
        made = cls(**gains)
        if sha256 not in (None, made.sha256):
            raise UserError(f"{path} is damaged: its gains are not those that were saved")
        return made

    def save(self, path: str | Path, /, **about: Any) -> None:
        """Write the gains to a ``.safetensors`` file, what is to be known ``about`` them as JSON in its metadata.

        Raises:
            UserError: for the identity, another ending, what JSON cannot hold, and where the file cannot be written.
        """
        if self.shape is None:
            raise UserError("the identity has no gains to save: leave the preconditioner out where it is used")
        if not isinstance(path, str | Path) or Path(path).suffix != ".safetensors":
            raise UserError(f"gains are saved to a file that ends in .safetensors, not to {str(path)!r}")
        path = Path(path)
        try:
            told = {"preconditioner": json.dumps(about), "sha256": self.sha256}
        except TypeError as error:
            raise UserError(f"about must be plain values, as JSON has them: {error}") from error
        gains = {"frequency": self.frequency, "pixel": self.pixel, "skew": self.response}
        gains = {name: tensor.contiguous() for name, tensor in gains.items() if tensor is not None}
        temporary = path.with_name(f".{path.name}.part")
        try:
            safetensors.torch.save_file(gains, temporary, told)
            temporary.replace(path)
        except (OSError, safetensors.SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{path} cannot be written: {error}") from error

    def with_skew(
        self, omega: float, direction: Sequence[float] = (1.0, 1.0), shape: Sequence[int] | None = None
    ) -> Preconditioner:
        """The same M with S of strength omega: q(k) = omega sin(2 pi direction . k), k in cycles per pixel.

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
        axes = _axes(shape)
        sizes = [shape[a] for a in axes]
        steps = list(direction)[-len(axes) :] if isinstance(direction, Sequence) else []
        if len(steps) < len(axes) or not all(is_number(step) and math.isfinite(step) for step in steps):
            raise UserError(
                f"direction must be {len(axes)} finite numbers, one per transformed axis, not {direction!r}"
            )
        k = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in sizes), indexing="ij")
        phase = sum(2 * math.pi * step * grid for step, grid in zip(steps, k, strict=True))
        return Preconditioner(self.frequency, self.pixel, (omega * phase.sin()).expand(shape))

    @property
    def skewed(self) -> bool:
        """Whether there is a skew term."""
        return self.response is not None

    @property
    def sha256(self) -> str:
        """Of all gains; the name of this preconditioner in keys of runs."""
        digest = hashlib.sha256()
        for gains in (self.frequency, self.pixel, self.response):
            digest.update(b"-" if gains is None else repr(self.shape).encode() + gains.cpu().numpy().tobytes())
        return digest.hexdigest()

    def apply(self, x: Tensor) -> Tensor:
        """M x, what becomes of noise."""
        b, a, _ = self._of(x)
        x = x if a is None else a * x
        return x if b is None else self._back(b * self._fourier(x), x)

    def apply_transpose(self, x: Tensor) -> Tensor:
        """M^T x."""
        b, a, _ = self._of(x)
        x = x if b is None else self._back(b * self._fourier(x), x)
        return x if a is None else a * x

    def inverse(self, x: Tensor) -> Tensor:
        """M^-1 x."""
        b, a, _ = self._of(x)
        x = x if b is None else self._back(self._fourier(x) / b, x)
        return x if a is None else x / a

    def squared(self, x: Tensor) -> Tensor:
        """M M^T x, what becomes of a gradient."""
        return self._drift(x, None, with_skew=False)

    def skew(self, x: Tensor) -> Tensor:
        """S x; 0 without a skew term."""
        q = self._of(x)[2]
        return torch.zeros_like(x) if q is None else self._back(1j * q * self._fourier(x), x)

    def drift(self, x: Tensor) -> Tensor:
        """(M M^T + S) x, sharing transforms."""
        return self._drift(x, None, with_skew=True)

    def move(self, x: Tensor, gradient: Tensor, noise: Tensor) -> Tensor:
        """x + (M M^T + S) gradient + M noise, a step of Langevin dynamics.

        With three real transforms of each image for frequency gains, four with pixel gains too, none for those alone
        but two for S.
        """
        if self.shape is None:
            return x + gradient + noise
        self._check(x, noise)
        return x + self._drift(gradient, noise, with_skew=True)

    def correct(self, x: Tensor, gradient: Tensor, noise: Tensor, lengths: Lengths) -> Tensor:
        """x + e (M M^T + S) gradient + f M noise with (e, f) = lengths(|(M M^T + S) gradient|, |M noise|), all (B,).

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
        """F of (M M^T + S) gradient + M noise, for frequency gains."""
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
        """|x| (B,) from the half of F x that a real transform keeps: the columns that mirror another count twice."""
        n = self.shape[-1]
        alone = spectrum[..., [0] if n % 2 else [0, n // 2]]
        kept, alone = (norm(torch.view_as_real(part)) for part in (spectrum, alone))
        return (2 * kept**2 - alone**2).sqrt()

    def _fourier(self, x: Tensor) -> Tensor:
        return torch.fft.rfftn(x, dim=_axes(self.shape), norm="ortho")

    def _back(self, spectrum: Tensor, x: Tensor) -> Tensor:
        axes = _axes(self.shape)
        return torch.fft.irfftn(spectrum, s=[self.shape[a] for a in axes], dim=axes, norm="ortho")

    def _check(self, *images: Tensor) -> None:
        for x in images:
            self._of(x)

    def _of(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """b and q at the frequencies that a real transform keeps, and a, as x needs them."""
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


class NoiseOnly:
    """TDAS (Ma et al. 2022, arXiv 2206.04029), a control: noise goes through M, gradients stay as they are.

    It keeps no law but that of another temperature for every frequency; the difference to PDS is what M M^T brings.
    """

    def __init__(self, preconditioner: Preconditioner) -> None:
        if not isinstance(preconditioner, Preconditioner):
            raise UserError(f"noise goes through a Preconditioner, not through {type(preconditioner).__name__}")
        if preconditioner.response is not None:
            raise UserError("TDAS has no skew term: give a preconditioner without")
        self.preconditioner = preconditioner
        self.apply = preconditioner.apply

    skewed = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"noise only" + self.preconditioner.sha256.encode()).hexdigest()

    def drift(self, x: Tensor) -> Tensor:
        return x

    def move(self, x: Tensor, gradient: Tensor, noise: Tensor) -> Tensor:
        return x + gradient + self.apply(noise)

    def correct(self, x: Tensor, gradient: Tensor, noise: Tensor, lengths: Lengths) -> Tensor:
        kick = self.apply(noise)
        e, f = lengths(norm(gradient), norm(kick))
        return x + like(e, x) * gradient + like(f, x) * kick


class WithPreconditioner(Wrapper):
    """A denoiser that samplers walk with a preconditioner; its answers are those of the denoiser inside.

    Kernels, ``predictor_corrector`` and ``reverse_diffusion`` take M; all other integrators are as they are without.

    Args:
        about: what a manifest should tell of it, beside its hash.

    Raises:
        UserError: where the two are for images of different shapes.
    """

    def __init__(self, denoiser: Denoiser, preconditioner: Preconditioner | NoiseOnly, **about: Any) -> None:
        if not isinstance(preconditioner, Preconditioner | NoiseOnly) or not callable(denoiser):
            given = f"{type(denoiser).__name__} and {type(preconditioner).__name__}"
            raise UserError(f"a denoiser and a preconditioner are needed, in this order, not {given}")
        if is_preconditioned(denoiser):
            raise UserError("this denoiser is preconditioned already: precondition the one inside")
        shape = getattr(getattr(preconditioner, "preconditioner", preconditioner), "shape", None)
        if shape is not None and tuple(denoiser.shape) != shape:
            raise UserError(
                f"the preconditioner is for images of shape {shape}, the model's are {tuple(denoiser.shape)}"
            )
        super().__init__(denoiser)
        self.preconditioner = preconditioner
        self.preconditioned_by = about | {"sha256": preconditioner.sha256}

    def __call__(self, x: Tensor, sigma: Tensor, *more: Any) -> Tensor:
        return self.denoiser(x, sigma, *more)


def is_preconditioned(denoiser: Denoiser) -> bool:
    """Tell whether samplers walk this denoiser with gains of its own, or with noise alone that is filtered."""
    m = walk(denoiser)
    return isinstance(m, NoiseOnly) or getattr(m, "shape", None) is not None


class Moments(NamedTuple):
    """Second moments of data of one shape, float64: ``power`` E|F x|^2, ``square`` E x^2, and the ``mean`` E x."""

    power: Tensor
    square: Tensor
    mean: Tensor | None

    @property
    def spectrum(self) -> Tensor:
        """The variance of each frequency, per pixel: 1 everywhere for white noise of variance 1."""
        axes = _axes(self.mean.shape)
        pixels = math.prod(self.mean.shape[a] for a in axes)
        return (self.power - torch.fft.fftn(self.mean, dim=axes).abs() ** 2).clamp(min=0) / pixels

    @property
    def variance(self) -> Tensor:
        """The variance of each pixel."""
        return (self.square - self.mean**2).clamp(min=0)

    def rescaled(self, low: float, high: float) -> Moments:
        """Those of (x - low) / (high - low)."""
        axes, mean = _axes(self.mean.shape), (self.mean - low) / (high - low)
        before, after = (torch.fft.fftn(m, dim=axes).abs() ** 2 for m in (self.mean, mean))
        variances = (self.power - before) / (high - low) ** 2, self.variance / (high - low) ** 2
        return Moments(variances[0] + after, variances[1] + mean**2, mean)


def moments(images: Array) -> Moments:
    """Those of images, (N, *shape) floats.

    Raises:
        UserError: for no images, and what is not real and finite.
    """
    one = images[0] if isinstance(images, list | tuple) and images else images
    of_bytes = getattr(one, "dtype", None) in (torch.uint8, np.dtype("uint8"))
    x = _real("images", images) / (255 if of_bytes else 1)
    if x.ndim < 2:
        raise UserError(f"images must be of shape (N, *shape) with N >= 1, not {tuple(x.shape)}")
    axes, parts = _axes(x.shape[1:]), x.split(64)
    power = sum(torch.fft.fftn(part, dim=axes).abs().square().sum(0) for part in parts) / len(x)
    return Moments(power, x.square().mean(0), x.mean(0))


def exact_moments(model: Denoiser) -> Moments:
    """Those of an exact model's data.

    Raises:
        UserError: for a model that does not know them.
    """
    if getattr(model, "images", None) is not None:
        return moments(model.images)
    if not hasattr(model, "variances"):
        raise UserError(
            "this model does not know its data's moments: use moments(images), of its own samples if need be"
        )
    shape, axes = tuple(model.shape), _axes(model.shape)
    w, means, variances = (t.double() for t in (model.weights, model.means, model.variances))
    plain = torch.eye(means.shape[1], dtype=torch.float64, device=means.device)
    power, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for k in range(len(w)):
        columns = plain if model.axes is None else model.axes[k].double()
        spread = torch.cat([means[k : k + 1], (columns * variances[k].sqrt()).T]).reshape(-1, *shape)
        power += w[k].cpu() * torch.fft.fftn(spread, dim=axes).abs().square().sum(0).cpu()
        square += w[k].cpu() * spread.square().sum(0).cpu()
    return Moments(power, square, model.mean.double().cpu())


def _published(statistic: Tensor, alpha: float) -> Tensor:
    return 1 / _inverse(statistic, alpha)


def _inverse(statistic: Tensor, alpha: float) -> Tensor:
    if not statistic.max() > 0:
        raise UserError("the images are 0 everywhere: there is nothing to normalise their statistics by")
    return (statistic / statistic.max() + alpha - 1) / alpha


def _raw(statistic: Tensor, alpha: float) -> Tensor:
    if not (statistic > 0).all():
        raise UserError(
            "some pixel is 0 in all images, which the recipe 'before-2023' divides by: choose another, or pixel=False"
        )
    return 1 / statistic


RECIPES = {
    "published": (_published, _published),
    "log": (_published, lambda square, alpha: _published(square.log1p(), alpha)),
    "before-2023": (lambda power, alpha: alpha / (power + alpha - 1), _raw),
    "inverse": (_inverse, _inverse),
}
"""How gains come from the statistics P and Q: a function of each and alpha."""


def _check_recipe(recipe: Any) -> None:
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise unknown("recipe for gains", recipe, RECIPES)


def _axes(shape: Sequence[int]) -> tuple[int, ...]:
    return (-2, -1) if len(shape) > 1 else (-1,)


def _reflected(gains: Tensor) -> Tensor:
    """g(-k)."""
    axes = _axes(gains.shape)
    return gains.flip(axes).roll([1] * len(axes), axes)


def _real(name: str, values: Array) -> Tensor:
    """As float64 on the CPU, if they are real numbers."""
    try:
        if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
            values = torch.stack(tuple(values))
        elif isinstance(values, np.ndarray) and values.dtype.kind in "fiu":  # any byte order, any stride
            values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be an array of numbers, not {type(values).__name__}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"{name} must be real numbers, not {tensor.dtype}")
    if tensor.ndim == 0 or not tensor.numel():
        raise UserError(f"{name} must be an array of the shape of an image, not one of shape {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} must be finite: it holds NaN or infinity")
    return tensor.double()


def _mask(path: str | Path) -> Tensor:
    try:
        mask = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{reprlib.repr(path)} cannot be read as a .npy mask: {error}") from error
    except (ValueError, EOFError, TypeError) as error:
        raise UserError(
            f"{reprlib.repr(path)} cannot be read as a .npy mask: it is no whole array of numbers"
        ) from error
    if not isinstance(mask, np.ndarray):
        raise UserError(f"{path} is no .npy file of one array")
    mask = _real(f"the mask {path}", mask)
    if not mask.any():
        raise UserError(f"the mask {path} is 0 everywhere: there is nothing to normalise it by")
    if (mask < 0).any():
        raise UserError(f"the mask {path} must be at least 0 everywhere, not {mask.min().item():g}")
    return mask


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            told = file.metadata() or {}
            gains = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a preconditioner, it may be truncated: {error}") from error
    if not gains or not gains.keys() <= {"frequency", "pixel", "skew"}:
        raise UserError(f"{path} holds {', '.join(gains) or 'nothing'}, not the gains of a preconditioner")
    return gains, told.get("sha256")
