"""What a fitted solver's numbers multiply: images from their mean, or modes of their covariance.

In modes, groups of them may have coefficients of their own, and the Gaussian part of the flow may be solved exactly, so
that the coefficients are those of the rest, see :func:`dmcmc_core.integrators.gaussian_split`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.integrators.gaussian_split import Spectrum


class View(NamedTuple):
    """Functions from images (B, *shape) to what coefficients multiply, y (B, ...), and back."""

    of: Callable[[Tensor], Tensor]
    images: Callable[[Tensor], Tensor]


def pixels(m: Tensor) -> View:
    """Return the view of images from m, (*shape)."""
    return View(lambda x: x - m, lambda y: m + y)


@dataclasses.dataclass(frozen=True, eq=False)
class Modes:
    """The modes of a covariance, in groups.

    Attributes:
        spectrum: the covariance, with its mean.
        group: (d,) int64, which row of coefficients each mode has, from 0 without a gap.
        split: whether the Gaussian part of the flow is exact.
    """

    spectrum: Spectrum
    group: Tensor
    split: bool = True

    def __post_init__(self) -> None:
        d = self.spectrum.variances.numel()
        if self.group.shape != (d,) or self.group.unique().tolist() != list(range(self.groups)):
            raise UserError(f"group must give each of the {d} modes one of the groups 0, 1, ..., none of them empty")

    @classmethod
    def grouped(cls, spectrum: Spectrum, bands: int, split: bool) -> Modes:
        """Return modes in bands of falling variance that have equal parts of the sum of standard deviations."""
        order = spectrum.variances.argsort(descending=True)
        part = spectrum.variances.sqrt()[order].cumsum(0)
        bands_of = (bands * part / part[-1].clamp(min=1e-300)).ceil().long().clamp(1, bands) - 1
        group = torch.empty_like(order)
        group[order] = bands_of.unique(return_inverse=True)[1]
        return cls(spectrum, group, split)

    @property
    def groups(self) -> int:
        """Rows of coefficients of a step."""
        return int(self.group.max()) + 1

    def view(self, x: Tensor) -> View:
        """Return the view of modes (B, d), in the dtype and on the device of x."""
        return View(*self.spectrum.transforms(x))

    def terms(self, y: Tensor, past: Sequence[Tensor], sigmas: Tensor, i: int) -> list[Tensor]:
        """Return what the coefficients of step i multiply.

        Args:
            y: (B, d), the state at ``sigmas[i]``.
            past: the denoised images in modes at ``sigmas[i]``, ``sigmas[i - 1]``, ...
            sigmas: (S + 1,), all levels.
            i: of the step.
        """
        if not self.split:
            return [y, *past]
        v = self.spectrum.variances.to(sigmas.device)
        now, after = (v + sigma**2 for sigma in sigmas[i : i + 2])
        rest = [d - (v / ((v + sigmas[i - j] ** 2) * now).sqrt()).to(y) * y for j, d in enumerate(past)]
        return [(after / now).sqrt().to(y) * y, *rest]
