"""Second moments of data, which gains are made of: of images, or exact where a model knows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.denoiser import total
from dmcmc_core.errors import UserError

Array = Tensor | np.ndarray | Sequence


class Moments(NamedTuple):
    """Second moments of data of one shape, float64: ``power`` E|F x|^2, ``square`` E x^2, ``mean`` E x.

    The mean is None where only masks are known.
    """

    power: Tensor
    square: Tensor
    mean: Any

    @property
    def spectrum(self) -> Tensor:
        """The variance of each frequency, per pixel: 1 everywhere for white noise of variance 1."""
        axes = axes_of(self.mean.shape)
        pixels = math.prod(self.mean.shape[a] for a in axes)
        return (self.power - torch.fft.fftn(self.mean, dim=axes).abs() ** 2).clamp(min=0) / pixels

    @property
    def variance(self) -> Tensor:
        """The variance of each pixel."""
        return (self.square - self.mean**2).clamp(min=0)

    def rescaled(self, low: float, high: float) -> Moments:
        """Return the moments of (x - low) / (high - low)."""
        axes, mean = axes_of(self.mean.shape), (self.mean - low) / (high - low)
        before, after = (torch.fft.fftn(m, dim=axes).abs() ** 2 for m in (self.mean, mean))
        variances = (self.power - before) / (high - low) ** 2, self.variance / (high - low) ** 2
        return Moments(variances[0] + after, variances[1] + mean**2, mean)


def moments(images: Array) -> Moments:
    """Measure the second moments of images, (N, *shape) floats.

    Raises:
        UserError: for no images, and what is not real and finite.
    """
    one = images[0] if isinstance(images, list | tuple) and images else images
    of_bytes = getattr(one, "dtype", None) in (torch.uint8, np.dtype("uint8"))
    x = real("images", images) / (255 if of_bytes else 1)
    if x.ndim < 2:
        raise UserError(f"images must be of shape (N, *shape) with N >= 1, not {tuple(x.shape)}")
    axes, parts = axes_of(x.shape[1:]), x.split(64)
    power = total(torch.fft.fftn(part, dim=axes).abs().square().sum(0) for part in parts) / len(x)
    return Moments(power, x.square().mean(0), x.mean(0))


def exact_moments(model: Any) -> Moments:
    """Return the second moments of an exact model's data.

    Raises:
        UserError: for a model that does not know them.
    """
    if getattr(model, "images", None) is not None:
        return moments(model.images)
    if not hasattr(model, "variances"):
        raise UserError(
            "this model does not know its data's moments: use moments(images), of its own samples if need be"
        )
    shape, axes = tuple(model.shape), axes_of(model.shape)
    w, means, variances = (t.double() for t in (model.weights, model.means, model.variances))
    plain = torch.eye(means.shape[1], dtype=torch.float64, device=means.device)
    power, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for k in range(len(w)):
        columns = plain if model.axes is None else model.axes[k].double()
        spread = torch.cat([means[k : k + 1], (columns * variances[k].sqrt()).T]).reshape(-1, *shape)
        power += w[k].cpu() * torch.fft.fftn(spread, dim=axes).abs().square().sum(0).cpu()
        square += w[k].cpu() * spread.square().sum(0).cpu()
    return Moments(power, square, model.mean.double().cpu())


def real(name: str, values: Array) -> Tensor:
    """Return values as float64 on the CPU, if they are real numbers; UserError if not."""
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


def axes_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of an image that the Fourier transform is over."""
    return (-2, -1) if len(shape) > 1 else (-1,)
