"""The Gaussian part of the probability flow solved exactly, mode by mode; only the rest is extrapolated.

For those who know the covariance of their data, or its power spectrum, from images or from the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.cosine_transform import dct
from dmcmc_core.denoiser import BLOCK, Denoiser, apply_in_blocks, check_shape, like
from dmcmc_core.errors import UserError, one_of, switch
from dmcmc_core.gradients import without_gradients
from dmcmc_core.integrators.registry import Callback, Noise, at_zero, report, state, steps


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """A mean and a covariance: an orthonormal basis of images and the variance of each of its modes.

    Attributes:
        mean: (*shape) float64.
        variances: (d,) float64, >= 0, d = prod(shape); of the DCT in the order of the flattened coefficients.
        axes: (d, d) float64, a mode in each column; None: the orthonormal DCT over the last two dimensions.

    Raises:
        UserError: for shapes that do not fit each other, NaN or infinity, a negative variance, axes that are not
            orthonormal, and the DCT of what has fewer than two dimensions.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "variances", "axes"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        d = self.mean.numel()
        if self.variances.shape != (d,):
            raise UserError(f"variances must be one for each of the mean's {d} numbers, not {_shape(self.variances)}")
        if (self.variances < 0).any():
            raise UserError(f"variances must be at least 0, not {self.variances.min().item():g}")
        if self.axes is None:
            if self.mean.ndim < 2:
                raise UserError(f"the DCT needs images of two dimensions at least, not {_shape(self.mean)}: give axes")
        elif self.axes.shape != (d, d):
            raise UserError(f"axes must have shape ({d}, {d}), as the mean has {d} numbers, not {_shape(self.axes)}")
        elif not torch.allclose(self.axes.T @ self.axes, torch.eye(d).to(self.axes), rtol=0, atol=1e-5):
            raise UserError("axes must be orthonormal, a mode in each column")

    @classmethod
    def of_covariance(cls, mean: Tensor, covariance: Tensor) -> Spectrum:
        """Return the modes of a mean (*shape) and a covariance (d, d) over the d = prod(shape) flattened numbers.

        Raises:
            UserError: for shapes that do not fit, and what is not symmetric and positive semi-definite.
        """
        mean, covariance = _real("mean", mean), _real("covariance", covariance)
        d = mean.numel()
        if covariance.shape != (d, d):
            raise UserError(
                f"covariance must have shape ({d}, {d}), as the mean has {d} numbers, not {_shape(covariance)}"
            )
        if not torch.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * float(covariance.abs().max())):
            raise UserError("covariance must be symmetric")
        variances, axes = torch.linalg.eigh(covariance)
        if variances[0] < -1e-6 * variances.abs().max():
            raise UserError(f"covariance must have no negative variance, but has {variances[0].item():g}")
        return cls(mean, variances.clamp(min=0), axes)

    @classmethod
    def of_images(cls, images: Tensor, basis: str = "eigen") -> Spectrum:
        """Return the modes of images (N, *shape), N >= 2.

        Args:
            images: on the scale of the model's data.
            basis: ``eigen``, the eigenvectors of their covariance, or ``dct``, the power spectrum: the variance of each
                coefficient of the DCT over the last two dimensions, of any size of images.
        """
        one_of("basis", basis, "eigen", "dct")
        images = _real("images", images)
        if images.ndim < 2 or len(images) < 2:
            raise UserError(f"images must be of shape (N, *shape) with N at least 2, not {_shape(images)}")
        mean = images.mean(0)
        rest = images - mean
        if basis == "eigen":
            rest = rest.flatten(1)
            return cls.of_covariance(mean, rest.T @ rest / len(rest))
        if mean.ndim < 2:
            raise UserError(f"the DCT needs images of two dimensions at least, not {_shape(mean)}: take basis='eigen'")
        return cls(mean, dct(rest).square().mean(0).flatten())

    @classmethod
    def of_model(cls, model: Any) -> Spectrum:
        """Return the modes of an exact model's data: of a mixture of Gaussians, or of the images that it consists of.

        Raises:
            UserError: for a model that does not know them.
        """
        if getattr(model, "images", None) is not None:
            return cls.of_images(model.images)
        if not hasattr(model, "variances"):
            raise UserError("this model does not know its data's covariance: use Spectrum.of_images(images)")
        weights, means, variances = (t.double() for t in (model.weights, model.means, model.variances))
        total = torch.diag(weights @ variances)
        if model.axes is not None:
            axes = model.axes.double()
            total = torch.einsum("k,kij,kj,klj->il", weights, axes, variances, axes)
        rest = means - weights @ means
        return cls.of_covariance(model.mean, total + torch.einsum("k,ki,kj->ij", weights, rest, rest))

    def transforms(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return the functions from images (B, *shape) to their modes (B, d), and back, in the dtype of ``x``."""
        mean, axes = self.mean.to(x), None if self.axes is None else self.axes.to(x)

        def modes(images: Tensor) -> Tensor:
            rest = images - mean
            if axes is None:
                return apply_in_blocks(dct, BLOCK, rest).flatten(1)
            return apply_in_blocks(lambda rows: rows @ axes, BLOCK, rest.flatten(1))

        def images(modes: Tensor) -> Tensor:
            if axes is None:
                return mean + apply_in_blocks(lambda c: dct(c, inverse=True), BLOCK, modes.reshape(-1, *mean.shape))
            back = axes.T
            return mean + apply_in_blocks(lambda rows: rows @ back, BLOCK, modes).reshape(-1, *mean.shape)

        return modes, images


@without_gradients
def gaussian_split(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = None,
    callback: Callback = None,
    covariance: Spectrum | None = None,
    jump: bool = False,
) -> Tensor:
    """Integrate by DPM-Solver++(2M) around the exact flow of the data's Gaussian, mode by mode.

    For y, the mode of x - mean with variance v, the Gaussian has D = v y / (v + sigma^2), and its flow through y_i is
    y_i sqrt((v + sigma^2) / (v + sigma_i^2)). What is left of the flow sees the rest of D,

        Q_j = D_j - y_i v / sqrt((v + sigma_j^2) (v + sigma_i^2)),    h_j = log(sigma_j / sigma_(j+1))
        y_(i+1) = y_i sqrt((v + sigma_(i+1)^2) / (v + sigma_i^2))
                  + (1 - e^-h_i) (Q_i + h_i / (2 h_(i-1)) (Q_i - Q_(i-1)))

    With v = 0 this is :func:`dmcmc_core.integrators.dpmpp_2m` (Lu et al. 2022, arXiv 2211.01095, Algorithm 2). A
    Gaussian of this mean and covariance is integrated exactly in any number of steps. One call a step, order 2; the
    first step with a call and a step to 0 are of order 1. It needs an object, and so is no entry of ``INTEGRATORS``.

    Args:
        covariance: of the data, with their mean; see :class:`Spectrum`.
        jump: whether the first step is the Gaussian's own, Q = 0, which needs no call: good where the noise is far
            above the data, as from sigma_max to a quarter of it.

    Raises:
        UserError: without a covariance, for one of another shape, and a jump to the last level.
    """
    if not isinstance(covariance, Spectrum):
        raise UserError(
            "gaussian_split needs covariance=Spectrum.of_images(images), or of_covariance or of_model, not "
            f"{type(covariance).__name__}"
        )
    switch("jump", jump)
    x, last = state(denoiser, x, sigmas), None
    check_shape(x, covariance.mean.shape)
    if jump and sigmas.shape[-1] < 3:
        raise UserError("jump=True needs a level to jump to, between the first and the last of sigmas")
    modes, images = covariance.transforms(x)
    v, y = covariance.variances.to(x.device), modes(x)
    for i, now, after in steps(x, sigmas.double()):
        total, total_after = (v + sigma.reshape(-1, 1) ** 2 for sigma in (now, after))
        flow = (total_after / total).sqrt().to(x) * y
        if i > 1 or not jump:
            d, h = modes(denoiser(x, now.to(x))), (now / after).log()
            rest = extrapolated = d - (v / total).to(x) * y
            if last is not None and not at_zero(after):
                h_last, d_last, total_last = last
                rest_last = d_last - (v / (total_last * total).sqrt()).to(x) * y
                extrapolated = rest + like(h / (2 * h_last), y) * (rest - rest_last)
            flow = flow + like(1 - after / now, y) * extrapolated
            last = h, d, total
        y = flow
        x = images(y)
        report(callback, i, sigmas, x)
    return x


def _real(name: str, value: Any) -> Any:
    if value is None and name == "axes":
        return None
    value = torch.as_tensor(value)
    if value.is_complex() or not torch.isfinite(value).all() or not value.numel():
        raise UserError(f"{name} must be real, finite numbers, at least one")
    return value.detach().double().contiguous()  # as a file holds it: products of other strides may round otherwise


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
