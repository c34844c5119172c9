"""Models that samplers walk with a preconditioner, and the control whose noise alone is filtered."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Lengths, Wrapper, like, norm, walk
from dmcmc_core.errors import UserError
from dmcmc_core.preconditioning.operator import Preconditioner


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
        """Name of this control in keys of runs."""
        return hashlib.sha256(b"noise only" + self.preconditioner.sha256.encode()).hexdigest()

    def drift(self, x: Tensor) -> Tensor:
        """Return x: gradients stay as they are."""
        return x

    def move(self, x: Tensor, gradient: Tensor, noise: Tensor) -> Tensor:
        """Return x + gradient + M noise."""
        return x + gradient + self.apply(noise)

    def correct(self, x: Tensor, gradient: Tensor, noise: Tensor, lengths: Lengths) -> Tensor:
        """Return x + e gradient + f M noise with (e, f) = lengths(|gradient|, |M noise|)."""
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

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the denoiser, and the hash of the gains."""
        return (self.denoiser,), (self.preconditioner.sha256,)

    def __call__(self, x: Tensor, sigma: Tensor, *more: Any) -> Tensor:
        """Return D(x, sigma) of the denoiser inside."""
        return self.denoiser(x, sigma, *more)


def is_preconditioned(denoiser: Denoiser) -> bool:
    """Tell whether samplers walk this denoiser with gains of its own, or with noise alone that is filtered."""
    m = walk(denoiser)
    return isinstance(m, NoiseOnly) or getattr(m, "shape", None) is not None
