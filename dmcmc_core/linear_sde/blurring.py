"""Blurring diffusion (BDM): a coefficient for each frequency of the discrete cosine transform."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from dmcmc_core.cosine_transform import dct
from dmcmc_core.errors import UserError
from dmcmc_core.linear_sde.base import Time, check_constants
from dmcmc_core.linear_sde.diagonal import Diagonal


@dataclasses.dataclass(frozen=True)
class BDM(Diagonal):
    """Blurring diffusion on the DCT coefficients of images: Hoogeboom & Salimans 2023 (arXiv 2209.05557).

    Frequency (a, b) has the gain sqrt(alpha_t) D_t, alpha_t of the cosine schedule, D_t = 0.999 exp(-w tau_t) + 0.001
    with w = (pi a / n)^2 + (pi b / n)^2 and tau_t = (sigma_blur_max sin^2(pi t / 2))^2 / 2; the noise is white (gDDIM,
    eq. 11).

    Args:
        image_size: n, of images n x n.
        sigma_blur_max: standard deviation of the blur at t = 1, in pixels.
        offset: of the cosine schedule, alpha_t = cos^2((t + offset) / (1 + 2 offset) pi / 2).
        floor: what blurring leaves of the highest frequencies.
    """

    image_size: int = 32
    sigma_blur_max: float = 10.0
    offset: float = 0.004
    floor: float = 0.001
    t_min = 1e-5

    def __post_init__(self) -> None:
        check_constants(self, image_size=1, sigma_blur_max=0.0, offset=0.0, floor=0.0)
        if not isinstance(self.image_size, int):
            raise UserError(f"image_size of BDM must be a whole number of pixels, not {self.image_size!r}")
        if self.floor >= 1:
            raise UserError(f"floor of BDM must be below 1, not {self.floor!r}")

    def check_state(self, u: Tensor) -> None:
        """Raise UserError unless ``u`` can be a state: floating-point numbers (B, ...), finite."""
        super().check_state(u)
        if u.ndim < 3 or tuple(u.shape[-2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"a state of BDM({self.image_size}) is the DCT of images {self.image_size}x{self.image_size}, "
                f"(B, C, {self.image_size}, {self.image_size}), not {tuple(u.shape)}"
            )

    @property
    def t_max(self) -> float:
        """Where sqrt(alpha_0 / alpha - alpha_0) - sqrt(1 - alpha_0) is 80, in the published code the largest ratio."""
        a0 = math.cos(self._angle(0.0)) ** 2
        alpha = a0 / ((80 + math.sqrt(1 - a0)) ** 2 + a0)
        return math.acos(math.sqrt(alpha)) / (math.pi / 2) * (1 + 2 * self.offset) - self.offset

    @functools.cached_property
    def _rates(self) -> Tensor:
        f = math.pi * torch.arange(self.image_size, dtype=torch.float64) / self.image_size
        return f[:, None] ** 2 + f**2

    def _angle(self, t):
        return (t + self.offset) / (1 + 2 * self.offset) * (math.pi / 2)

    def _blur(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """D_t and its derivative, (..., n, n)."""
        width = self.sigma_blur_max * torch.sin(math.pi * t / 2) ** 2
        rate = width * self.sigma_blur_max * math.pi / 2 * torch.sin(math.pi * t)
        fading = (1 - self.floor) * torch.exp(-self._rates * (width**2 / 2)[..., None, None])
        return fading + self.floor, -self._rates * rate[..., None, None] * fading

    def log_gain(self, t: Tensor) -> Tensor:
        """log of sqrt(alpha_t) D_t, which at t = 0 is nearly, not quite, 0."""
        return torch.cos(self._angle(t)).log()[..., None, None] + self._blur(t)[0].log()

    def gain(self, t: Time) -> Tensor:
        """sqrt(alpha_t) D_t, (..., n, n): the published kernel, which is not quite 1 at t = 0."""
        return self.log_gain(self._time(t)).exp()

    def Sigma(self, t: Time) -> Tensor:
        """Return the covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        return torch.sin(self._angle(self._time(t))).square()[..., None, None].expand(*self._shape(t))

    def F(self, t: Time) -> Tensor:
        """Return the drift, (..., *block)."""
        t = self._time(t)
        blur, rate = self._blur(t)
        return -(torch.tan(self._angle(t)) * math.pi / 2 / (1 + 2 * self.offset))[..., None, None] + rate / blur

    def GG(self, t: Time) -> Tensor:
        """Return G G^T, the rate of the noise, (..., *block)."""
        angle = self._angle(self._time(t))
        growth = torch.sin(2 * angle) * math.pi / 2 / (1 + 2 * self.offset)  # of Sigma
        return growth[..., None, None] - 2 * self.F(t) * self.Sigma(t)

    def _shape(self, t: Time) -> tuple[int, ...]:
        return (*torch.as_tensor(t).shape, self.image_size, self.image_size)

    def pixels(self, u: Tensor) -> Tensor:
        """Return a state in pixels, of as many channels."""
        return dct(u, inverse=True)

    def coefficients(self, x: Tensor) -> Tensor:
        """Return the inverse of :meth:`pixels`."""
        return dct(x)
