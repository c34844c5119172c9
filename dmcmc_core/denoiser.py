"""What a model is: the posterior mean D(x, sigma) = E[x0 | x, sigma] of clean data under x = x0 + sigma * noise.

Everything that samples needs only this one form. Score, noise (epsilon) and clean-image (x0) predictions are three ways
to write it (Karras et al. 2022, arXiv 2206.00364, eq. 3; Song et al. 2021, arXiv 2011.13456).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from dmcmc_core.errors import LOG, UserError, all_finite, is_number, number
from dmcmc_core.evaluation_mode import modules_of, to_evaluation
from dmcmc_core.shapes import check_image_shape, check_shape, checked_shape, like, per_row
from dmcmc_core.variance_preserving import continuous, discrete

BLOCK = 64
"""Rows of one network call. Part of every recipe: CPU kernels change their last digit with the batch size."""


RUNAWAY = 1e6
"""An x beyond so many sigma_max is no noisy image: whatever a network answers there, the sampler had diverged."""


Lengths = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The norms (B,) of what a gradient and a noise become -> the factors (B,) that they are taken by."""


class Denoiser(Protocol):
    """A model: ``(x, sigma) -> E[x0 | x, sigma]``, ``x`` of shape (B, *shape) and ``sigma`` of shape () or (B,)."""

    shape: tuple[int, ...]
    data_range: tuple[float, float]
    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the posterior mean, of the shape of ``x``."""
        ...


def score(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """Return grad log p(x; sigma) = (D(x, sigma) - x) / sigma^2, by Tweedie's formula; shape of ``x``."""
    return (denoiser(x, sigma.to(x)) - x) / like(sigma, x) ** 2


def epsilon(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the noise that the model sees in x, (x - D(x, sigma)) / sigma; also dx/dsigma of the probability flow."""
    return (x - denoiser(x, sigma.to(x))) / like(sigma, x)


class Identity:
    """The walk of a model without a preconditioner: M = 1 and no skew term S.

    A model may bring another, as :class:`dmcmc_core.preconditioning.WithPreconditioner` does; :func:`walk` tells.
    """

    skewed = False

    def apply(self, x: Tensor) -> Tensor:
        """Return M x, what becomes of noise."""
        return x

    apply_transpose = drift = apply

    def move(self, x: Tensor, gradient: Tensor, noise: Tensor) -> Tensor:
        """Return x + (M M^T + S) gradient + M noise, a step of Langevin dynamics."""
        return x + gradient + noise

    def correct(self, x: Tensor, gradient: Tensor, noise: Tensor, lengths: Lengths) -> Tensor:
        """Return x + e g + f n with g = (M M^T + S) gradient, n = M noise and (e, f) = lengths(|g|, |n|), all (B,)."""
        e, f = lengths(norm(gradient), norm(noise))
        return x + like(e, x) * gradient + like(f, x) * noise


IDENTITY = Identity()


def walk(denoiser: Denoiser) -> Any:
    """Return what samplers walk this model with: its ``preconditioner``, or the identity."""
    return getattr(denoiser, "preconditioner", IDENTITY)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors, one added after the other."""
    return sum(terms)  # pyright: ignore[reportReturnType]  there is at least one


def norm(x: Tensor) -> Tensor:
    """Return |x| of each row, (B,), in double precision, as gains may be large and what they act on as well."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)


class Adapter:
    """A denoiser made from any function, with the facts that samplers need beside it.

    Args:
        function: (x of shape (B, *shape), sigma of shape (B,)) -> (B, *shape); it gets the labels of a call, if any,
            as a third argument. A ``torch.nn.Module`` is called in the dtype of its weights; the answer comes back in
            the dtype of x.
        shape: shape of one image.
        data_range: smallest and largest value of clean data.
        sigma_min, sigma_max: noise levels between which the function may be asked, in units of the data.
        mean: mean of the clean data, (*shape,), when it is known; starting points can be drawn around it.
        predicts: ``x0`` (the denoiser itself), ``epsilon`` (x = x0 + sigma * epsilon), ``score``, or ``v`` = alpha
            epsilon - sigma alpha x0 with alpha = 1 / sqrt(1 + sigma^2); such a function is handed alpha x for x.
        classes: how many classes the labels of a call choose from, (B,) whole numbers from 0; 0 where there are none.
        unconditional: the label that stands for no class, which may lie outside of those; None where none does.

    Raises:
        UserError: here, for levels, a mean or classes that do not fit; in a call, for an x or an answer of another
            shape, an answer that is not of real numbers, or with NaN or infinity to an x that had not run away (see
            :data:`RUNAWAY`), and for a function that changes its x in place.
    """

    def __init__(  # noqa: PLR0913  all that samplers need to know of a function
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int, ...],
        data_range: tuple[float, float] = (0.0, 1.0),
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        mean: Tensor | None = None,
        predicts: str = "x0",
        classes: int = 0,
        unconditional: int | None = None,
    ) -> None:
        if not callable(function):
            raise UserError(f"function must be callable as function(x, sigma), not a {type(function).__name__}")
        if predicts not in ("x0", "epsilon", "score", "v"):
            raise UserError(f"predicts must be 'x0', 'epsilon', 'score' or 'v', not {predicts!r}")
        check_image_shape(shape)
        if not (is_number(sigma_min) and is_number(sigma_max) and 0 < sigma_min < sigma_max < math.inf):
            raise UserError(
                "0 < sigma_min < sigma_max, all finite, is needed, not "
                f"sigma_min={sigma_min!r}, sigma_max={sigma_max!r}"
            )
        listed: Any = getattr(data_range, "tolist", lambda: data_range)()  # of NumPy or torch
        ends = tuple(listed) if isinstance(listed, Sequence) else (listed,)
        if not (len(ends) == 2 and all(map(is_number, ends)) and ends[0] < ends[1]):
            raise UserError(
                f"data_range must be the smallest and the largest value of clean data, not {data_range!r:.60}"
            )
        if mean is not None and (not isinstance(mean, Tensor) or tuple(mean.shape) != tuple(shape)):
            found = tuple(mean.shape) if isinstance(mean, Tensor) else f"a {type(mean).__name__}"
            raise UserError(f"mean must have the shape of one image, {tuple(shape)}, not {found}")
        if not is_number(classes, whole=True) or classes < 0:
            raise UserError(f"classes must be a whole number, at least 0, not {classes!r}")
        if unconditional is not None and not is_number(unconditional, whole=True):
            raise UserError(f"unconditional must be a whole number or None, not {unconditional!r}")
        self.function, self.predicts, self.classes, self.unconditional = function, predicts, classes, unconditional
        if isinstance(function, torch.nn.Module):
            self.net = function  # runs on disk are named by the hash of its weights
        self.modules = modules_of(function)
        self.shape, self.data_range, self.mean = tuple(shape), ends, mean
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @classmethod
    def from_ddpm(
        cls, net: Any, alphas_cumprod: Any, *, predicts: str = "epsilon", quantize: bool = False, **facts: Any
    ) -> Adapter:
        """Return the model of a network of discrete times: net(x_t, t) with x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) n.

        Args:
            net: (x_t (B, *shape), t (B,)[, labels]) -> (B, *shape), or twice the channels, of which the first half is
                taken, or an object with that as its ``sample``, as networks of diffusers answer.
            alphas_cumprod: abar, (T,), see :func:`dmcmc_core.variance_preserving.levels_of`.
            predicts: ``epsilon``, ``v`` or ``x0``.
            quantize: t is the nearest whole number in log sigma; else a real one, between two log sigma is linear in t.
            facts: ``shape`` and others of an Adapter; by default data in [-1, 1] and all levels of the network.

        Raises:
            UserError: for numbers that are no abar, another prediction, and as an Adapter.
        """
        return discrete(cls, net, facts, alphas_cumprod, predicts, quantize)

    @classmethod
    def from_vp(cls, net: Any, *, beta_min=0.1, beta_max=20.0, predicts="epsilon", unit=1.0, **facts: Any) -> Adapter:
        """Return the model of a network of the VP diffusion (Song et al. 2021), net(x_t, unit t), t from 1e-3 to 1.

        beta(t) = beta_min + (beta_max - beta_min) t; for all else see :meth:`from_ddpm`.
        """
        return continuous(cls, net, facts, beta_min, beta_max, predicts, unit)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return D(x, sigma) of the shape and dtype of ``x``."""
        check_shape(x, self.shape)
        to_evaluation(self.modules)
        if labels is not None and not self.classes:
            raise UserError("this model has no classes: leave labels out (an Adapter is told of them by classes=)")
        given = x.to(next(self._weights(), x).dtype)
        more = () if labels is None else (labels,)
        alpha = like((1 + sigma**2) ** -0.5, x) if self.predicts == "v" else None
        given = given if alpha is None else (alpha * x).to(given)
        before = _changes(x)
        out = self._checked(self.function(given, per_row(sigma, given), *more), x, sigma)
        if _changes(x) != before:
            raise UserError("the network changes its x in place, and samplers go on from it: let it work on x.clone()")
        if alpha is not None:
            return alpha**2 * x - like(sigma, x) * alpha * out
        if self.predicts == "epsilon":
            return x - like(sigma, x) * out
        if self.predicts == "score":
            return x + like(sigma, x) ** 2 * out
        return out

    @property
    def device(self) -> torch.device:
        """Where it computes: the device of the weights, else of the mean, else the CPU."""
        known = next(self._weights(), self.mean)
        return torch.device("cpu") if known is None else known.device

    def _weights(self) -> Iterator[Tensor]:
        """Yield parameters and buffers that are numbers; none of a plain function."""
        if isinstance(self.function, torch.nn.Module):
            tensors = chain(self.function.parameters(), self.function.buffers())
            yield from (t for t in tensors if t.is_floating_point())

    def _checked(self, out: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the answer in the dtype of x, if it is one."""
        checked_shape(out, x)
        if not all_finite(out) and x.abs().max() < RUNAWAY * self.sigma_max:  # NaN in x fails this too
            row = (~torch.isfinite(out)).flatten(1).any(1).nonzero()[0, 0]
            raise UserError(
                f"the network's answer is not finite at sigma = {per_row(sigma, x)[row].item():g}, for a finite x: "
                f"mend the network, or keep to the levels it was trained on by sigma_min and sigma_max"
            )
        return out.to(x.dtype)


def _changes(x: Tensor) -> int:
    """Return how often a tensor was changed in place, where torch counts that."""
    return 0 if x.is_inference() else x._version


class Wrapper:
    """A denoiser around another one: what it does not define is the inner denoiser's."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser: Any = denoiser

    def __getattr__(self, name: str):
        if name == "denoiser":  # not there yet while an unpickled or copied object is being filled
            raise AttributeError(name)
        return getattr(self.denoiser, name)

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the models that decide its answers, and what else does: for :mod:`dmcmc_core.fingerprint`."""
        return (self.denoiser,), ()

    def with_inner(self, change: Callable[[Any], Any]) -> Any:
        """Return this wrapper around what ``change`` makes of the denoiser inside."""
        other = copy.copy(self)
        other.denoiser = change(self.denoiser)
        return other


class Narrowed(Wrapper):
    """A denoiser asked between narrower noise levels than its network's own, which ``network_levels`` tells.

    Args:
        sigma_min, sigma_max: within those of the denoiser, in units of the data; None: the denoiser's.

    Raises:
        UserError: for a level outside those of the denoiser, and for two that do not rise.
    """

    def __init__(self, denoiser: Denoiser, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        super().__init__(denoiser)
        low, high = denoiser.sigma_min, denoiser.sigma_max
        self.network_levels = getattr(denoiser, "network_levels", (low, high))
        # a level that is printed with six digits is still the same
        same = lambda value, end: end if is_number(value) and abs(value - end) <= 1e-5 * end else value  # noqa: E731
        sigma_min, sigma_max = same(sigma_min, low), same(sigma_max, high)
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            if value is not None:
                number(name, value, least=low, most=high)
        self.sigma_min = low if sigma_min is None else float(sigma_min)
        self.sigma_max = high if sigma_max is None else float(sigma_max)
        if not self.sigma_min < self.sigma_max:
            raise UserError(f"sigma_min={self.sigma_min:g} must lie below sigma_max={self.sigma_max:g}")

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the model inside, and the levels where they are not its own."""
        ends = (self.sigma_min, self.sigma_max)
        return (self.denoiser,), () if ends == (self.denoiser.sigma_min, self.denoiser.sigma_max) else (ends,)

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return D(x, sigma) of the denoiser inside."""
        return self.denoiser(x, sigma, *labels)


class InBlocks(Wrapper):
    """Evaluate a denoiser in blocks of exactly ``block`` rows, the last one padded with copies of its last row.

    A row's bits then do not depend on how many rows came with it. Its place in the block does not matter to the kernels
    either (tests/test_denoiser.py measures both on the shipped net and on the exact models).

    A block that the device has no memory for is halved, with one message, and stays so: images made from then on may
    differ in their last digits from those of whole blocks. UserError if not even one row fits.
    """

    def __init__(self, denoiser: Denoiser, block: int = BLOCK) -> None:
        if block < 1:
            raise UserError(f"block must be at least 1 row, not {block}")
        super().__init__(denoiser)
        self.block, self.padding = block, [0]  # rows that only filled blocks, of all copies together

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return D(x, sigma), evaluated in blocks."""
        check_shape(x, self.shape)  # before the padding, so that the error tells what was given
        if labels is not None and len(labels) != len(x):
            raise UserError(f"every image needs a label: {len(x)} of them, not {len(labels)}")
        tensors = (x, per_row(sigma, x), *(() if labels is None else (labels,)))
        asked = self.block
        while (answer := self._fitting(asked, *tensors)) is None:
            self.block = (self.block + 1) // 2
            torch.cuda.empty_cache()
        self.padding[0] += -len(x) % self.block
        if self.block < asked:
            LOG.warning(
                f"{asked} images at once do not fit in the memory of {x.device}: {self.block} are taken from here on, "
                f"which may change their last digits"
            )
        return answer

    def _fitting(self, asked: int, *tensors: Tensor) -> Tensor | None:
        """Return the answer, or None where a block is too large."""
        try:
            return apply_in_blocks(self.denoiser, self.block, *tensors)
        except torch.OutOfMemoryError as error:
            if self.block > 1:
                return None
            self.block = asked
            raise UserError(
                f"not even one image of shape {self.shape} fits in the memory of {tensors[0].device}: free some of it, "
                f"or choose another device"
            ) from error


def apply_in_blocks(function: Callable[..., Tensor], block: int, *tensors: Tensor) -> Tensor:
    """Evaluate ``function`` of tensors of shape (B, ...) ``block`` rows at a time, and put the parts together."""
    rows = tensors[0].shape[0]
    parts = []
    for start in range(0, rows, block):
        chunk = [t[start : start + block] for t in tensors]
        short = block - chunk[0].shape[0]
        if short:
            chunk = [torch.cat([t, t[-1:].expand(short, *t.shape[1:])]) for t in chunk]
        parts.append(function(*chunk))
    if not parts:  # no rows: let one row tell the shape of the answer
        return function(*[t.new_zeros(block, *t.shape[1:]) + 1 for t in tensors])[:0]
    return parts[0][:rows] if len(parts) == 1 else torch.cat(parts)[:rows]


class CountNFE(Wrapper):
    """A denoiser that counts its evaluations; made by :func:`count_nfe`."""

    def __init__(self, denoiser: Denoiser, told: Callable[[int], Any] | None = None) -> None:
        super().__init__(denoiser)
        self.told = told
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self.calls = self.rows = self.batch = 0

    @property
    def nfe(self) -> float:
        """Rows evaluated divided by the batch, the largest number of rows that came at once."""
        return self.rows / self.batch if self.batch else 0.0

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return D(x, sigma), and count it."""
        rows = x.shape[0] * getattr(self.denoiser, "rows_per_image", 1)
        self.calls, self.rows, self.batch = self.calls + 1, self.rows + rows, max(self.batch, x.shape[0])
        answer = self.denoiser(x, sigma) if labels is None else self.denoiser(x, sigma, labels)
        if self.told:
            self.told(rows)
        return answer


def count_nfe(denoiser: Denoiser, told: Callable[[int], Any] | None = None) -> CountNFE:
    """Wrap a denoiser so that ``.nfe`` (rows per image), ``.rows`` and ``.calls`` tell what was really evaluated.

    Wrap the outermost denoiser, around :class:`InBlocks`: rows that only pad a block are then not counted, and both
    halves of a guided call (:mod:`dmcmc_core.guidance`) are. ``told`` gets the rows of each call once it is done.
    """
    return CountNFE(denoiser, told)
