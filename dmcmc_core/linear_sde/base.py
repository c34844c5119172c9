"""What a linear diffusion has, whatever its coefficients are: Psi, Sigma, R and L, and what its states are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dmcmc_core.errors import UserError

Time = float | Tensor


def as_time(t: Time, least: float, most: float) -> Tensor:
    """Return ``t`` in float64, if it lies in [least, most]; UserError if it does not."""
    try:
        t = torch.as_tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"t must be a time or a tensor of times, not {t!r:.40}") from error
    bad = ~((t >= least) & (t <= most))  # nan too
    if bad.any():
        raise UserError(f"t must lie between {least:g} and {most:g}, not be {t[bad].flatten()[0].item():g}")
    return t


def check_constants(sde: LinearSDE, **least: float) -> None:
    """Raise UserError unless each constant named is a finite number above (for 0.0) or at least ``least``."""
    for name, bound in least.items():
        value = getattr(sde, name)
        finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not finite or value < bound or (bound == 0 and value == 0):
            word = "above 0" if bound == 0 else f"at least {bound:g}"
            raise UserError(f"{name} of {type(sde).__name__} must be a number {word}, not {value!r:.40}")


class LinearSDE:
    """What all of them have; what a coefficient is, is left to :class:`Diagonal` and :class:`CLD`.

    Attributes:
        t_min, t_max: times between which samplers go unless told otherwise, within [0, 1].
        parts: channels of the state for each channel of the images.
    """

    t_min, t_max, parts = 1e-3, 1.0, 1

    def Psi(self, t: Time, s: Time) -> Tensor:
        """Return the transition matrix from time s to time t, (..., *block)."""
        raise NotImplementedError

    def Sigma(self, t: Time) -> Tensor:
        """Return the covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        raise NotImplementedError

    def R(self, t: Time) -> Tensor:
        """Return the root of Sigma that solves eq. 17, diagonal at time 0, (..., *block)."""
        raise NotImplementedError

    def L(self, t: Time) -> Tensor:
        """Return the lower triangular root of Sigma, (..., *block)."""
        raise NotImplementedError

    def F(self, t: Time) -> Tensor:
        """Return the drift, (..., *block)."""
        raise NotImplementedError

    def GG(self, t: Time) -> Tensor:
        """Return G G^T, the rate of the noise, (..., *block)."""
        raise NotImplementedError

    def G(self, t: Time) -> Tensor:
        """Return the diagonal root of :meth:`GG`, (..., *block)."""
        return self.GG(t).sqrt()

    @property
    def prior(self) -> Tensor:
        """Root of the covariance that sampling starts from, (*block)."""
        return torch.ones((), dtype=torch.float64)

    # -- arithmetic of coefficients ------------------------------------------------------------------------------------

    product: Callable[[Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    cholesky: Callable[[Tensor], Tensor]
    one = of_data = torch.ones((), dtype=torch.float64, device="cpu")
    """The unit, and the projection onto what images have a part in."""

    def entry(self, a: Tensor) -> Tensor:
        """Return what a coefficient does to positions alone, (...) or, of frequencies, (..., H, W)."""
        return a

    def root(self, covariance: Tensor) -> Tensor:
        """Return the symmetric root of a covariance (*block), what rounding has made negative taken for 0."""
        return covariance.clamp(min=0).sqrt()

    def weigh(self, weights: Tensor, a: Tensor) -> Tensor:
        """Multiply coefficients (..., *block) by numbers (...)."""
        return weights.reshape(weights.shape + (1,) * (a.ndim - weights.ndim)) * a

    def apply(self, a: Tensor, u: Tensor) -> Tensor:
        """Apply a coefficient (*block) to a state (B, ...), in the state's dtype."""
        return a.to(u) * u

    def stretch(self, t: Time, s: Time, lam: float) -> Tensor:
        """Return X with Psi^(t, s) = R(t) X R(s)^-1 for the drift F + (1 + lam^2) / 2 G G^T Sigma^-1 (paper, eq. 22).

        It solves dX/dt = lam^2 / 2 (R^-1 G G^T R^-T) X from X(s) = 1, and is 1 for lam = 0.
        """
        raise NotImplementedError

    def rows(self, a: Tensor, u: Tensor) -> Tensor:
        """Apply coefficients (B, *block), one of each row (or of all), to a state, in the state's dtype."""
        return a.to(u).reshape(a.shape[0], *[1] * (u.ndim - a.ndim), *a.shape[1:]) * u

    # -- states --------------------------------------------------------------------------------------------------------

    def check_state(self, u: Tensor) -> None:
        """Raise UserError unless ``u`` can be a state: floating-point numbers (B, ...), finite."""
        if not isinstance(u, Tensor) or not u.is_floating_point() or u.ndim < 2:
            about = f"{u.dtype} of shape {tuple(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
            raise UserError(f"u must be a tensor of floating-point numbers, (B, ...), not {about}")
        if not u.isfinite().all():
            raise UserError("u must be finite: it holds NaN or infinity")

    def gain(self, t: Time) -> Tensor:
        """Return what is left of clean states at time t, (..., *block): Psi(t, 0)."""
        return self.Psi(t, torch.zeros_like(torch.as_tensor(t, dtype=torch.float64)))

    def pixels(self, u: Tensor) -> Tensor:
        """Return a state in pixels, of as many channels."""
        return u

    def coefficients(self, x: Tensor) -> Tensor:
        """Return the inverse of :meth:`pixels`."""
        return x

    def observation(self, u: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Return x = x_0 + sigma noise, (B, C, H, W), that tells as much of x_0 as the state does; and sigma ().

        What is known of x_0 depends on u through x alone, so a denoiser of x is one of u: E[x_0 | u] = D(x, sigma).

        Raises:
            UserError: for BDM, whose frequencies are not equally noisy.
        """
        gain = self.gain(t)
        if gain.ndim:
            raise UserError(
                f"{type(self).__name__} has no equally noisy image: its frequencies have noise of their own"
            )
        return self.apply(1 / gain, u), self.R(t) / gain

    def position(self, u: Tensor) -> Tensor:
        """Return of a state what images have a part in, (B, C, ...)."""
        return u

    def at_rest(self, x: Tensor) -> Tensor:
        """Return the state of that position without velocity."""
        return x

    def lift(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) as states without noise."""
        return self.at_rest(self.coefficients(images))

    def drop(self, u: Tensor) -> Tensor:
        """Return the images (B, C, H, W) in states."""
        return self.pixels(self.position(u))

    def forward(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return u_t = gain(t) u_0 + R(t) noise, for times (B,), one of each row."""
        return self.rows(self.gain(t), self.lift(images)) + self.rows(self.R(t), noise)
