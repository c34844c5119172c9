"""Diffusions whose coefficients commute; VP, sub-VP and VE, whose coefficients are scalars."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from dmcmc_core.linear_sde.base import LinearSDE, Time, as_time, check_constants


class Diagonal(LinearSDE):
    """Coefficients that commute: each entry is a diffusion by itself, and R = L = sqrt(Sigma)."""

    product = staticmethod(torch.mul)
    transpose = staticmethod(lambda a: a)
    inverse = staticmethod(torch.reciprocal)
    cholesky = staticmethod(torch.sqrt)

    def log_gain(self, t: Tensor) -> Tensor:
        """Return log Psi(t, 0)."""
        raise NotImplementedError

    def Psi(self, t: Time, s: Time) -> Tensor:
        """Return the transition matrix from time s to time t, (..., *block)."""
        return (self.log_gain(self._time(t)) - self.log_gain(self._time(s))).exp()

    def R(self, t: Time) -> Tensor:
        """Return the root of Sigma that solves eq. 17, diagonal at time 0, (..., *block)."""
        return self.Sigma(t).sqrt()

    L = R

    def stretch(self, t: Time, s: Time, lam: float) -> Tensor:
        """(rho_t / rho_s)^(lam^2) with rho = R / Psi(t, 0): the closed form."""
        return (self.R(t) / (self.R(s) * self.Psi(t, s))) ** lam**2

    def _time(self, t: Time) -> Tensor:
        return as_time(t, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class VP(Diagonal):
    """Variance preserving, beta(t) linear: Song et al. 2021 (arXiv 2011.13456), eq. 11. gDDIM on it is DDIM."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_constants(self, beta_min=0.0)
        check_constants(self, beta_max=self.beta_min)

    def log_gain(self, t: Tensor) -> Tensor:
        """Return log Psi(t, 0)."""
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2

    def Sigma(self, t: Time) -> Tensor:
        """Return the covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        return -torch.expm1(2 * self.log_gain(self._time(t)))

    def _beta(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * self._time(t)

    def F(self, t: Time) -> Tensor:
        """Return the drift, (..., *block)."""
        return -self._beta(t) / 2

    def GG(self, t: Time) -> Tensor:
        """Return G G^T, the rate of the noise, (..., *block)."""
        return self._beta(t)


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP, whose variance is below that of VP at all times: Song et al. 2021, eq. 29. R = Sigma of VP."""

    def Sigma(self, t: Time) -> Tensor:
        """Return the covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        return VP.Sigma(self, t) ** 2

    def R(self, t: Time) -> Tensor:
        """Return the root of Sigma that solves eq. 17, diagonal at time 0, (..., *block)."""
        return VP.Sigma(self, t)

    L = R

    def GG(self, t: Time) -> Tensor:
        """Return G G^T, the rate of the noise, (..., *block)."""
        return -self._beta(t) * torch.expm1(4 * self.log_gain(self._time(t)))


@dataclasses.dataclass(frozen=True)
class VE(Diagonal):
    """Variance exploding, sigma(t) = sigma_min (sigma_max / sigma_min)^t: Song et al. 2021, eq. 30."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min = 0.0

    def __post_init__(self) -> None:
        check_constants(self, sigma_min=0.0)
        check_constants(self, sigma_max=self.sigma_min)

    @property
    def prior(self) -> Tensor:
        """Root of the covariance that sampling starts from, (*block)."""
        return torch.tensor(self.sigma_max, dtype=torch.float64)

    def log_gain(self, t: Tensor) -> Tensor:
        """Return log Psi(t, 0)."""
        return torch.zeros_like(t)

    def Sigma(self, t: Time) -> Tensor:
        """Return the covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        return self.sigma_min**2 * (self.sigma_max / self.sigma_min) ** (2 * self._time(t))

    def F(self, t: Time) -> Tensor:
        """Return the drift, (..., *block)."""
        return torch.zeros_like(self._time(t))

    def GG(self, t: Time) -> Tensor:
        """Return G G^T, the rate of the noise, (..., *block)."""
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.Sigma(t)
