"""Linear diffusions du = F(t) u dt + G(t) dw, and all that follows from F and G, in float64.

Scalar (VP, sub-VP, VE), one coefficient per frequency (blurring, BDM) and 2x2 blocks of position and velocity
(critically damped Langevin, CLD) behind one interface. With Psi(t, s) the transition matrix of F,

    u_t = Psi(t, 0) u_0 + R(t) epsilon,    R R^T = Sigma,    dR/dt = (F + G G^T Sigma^-1 / 2) R

(Zhang, Tao & Chen 2023, "gDDIM", arXiv 2206.05564, eq. 3-5 and 17; 0 < t < 1). Along a probability-flow trajectory of a
single datum epsilon is constant in this R, and in no other root of Sigma: that is what gDDIM rests on.

Times are numbers or tensors (...); a coefficient has the shape (..., *block): block () for scalars, (H, W) for
frequencies, (2, 2) for CLD. States are (B, ...): of images for scalars, of their DCT coefficients for BDM, of positions
followed by velocities along the channels (B, 2C, H, W) for CLD.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.polynomial.legendre import legint, legvander
from scipy.fft import dct as scipy_dct
from torch import Tensor

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.quadrature import collocation, gauss

Time = float | Tensor


def as_time(t: Time, least: float, most: float) -> Tensor:
    """``t`` in float64, if it lies in [least, most]; UserError if it does not."""
    try:
        t = torch.as_tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"t must be a time or a tensor of times, not {t!r:.40}") from error
    bad = ~((t >= least) & (t <= most))  # nan too
    if bad.any():
        raise UserError(f"t must lie between {least:g} and {most:g}, not be {t[bad].flatten()[0].item():g}")
    return t


def check_constants(sde: LinearSDE, **least: float) -> None:
    """UserError unless each constant named is a finite number above (for 0.0) or at least ``least``."""
    for name, bound in least.items():
        value = getattr(sde, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < bound or (bound == 0 and value == 0):
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
        """Transition matrix from time s to time t, (..., *block)."""
        raise NotImplementedError

    def Sigma(self, t: Time) -> Tensor:
        """Covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        raise NotImplementedError

    def R(self, t: Time) -> Tensor:
        """The root of Sigma that solves eq. 17, diagonal at time 0, (..., *block)."""
        raise NotImplementedError

    def L(self, t: Time) -> Tensor:
        """The lower triangular root of Sigma, (..., *block)."""
        raise NotImplementedError

    def F(self, t: Time) -> Tensor:
        """Drift, (..., *block)."""
        raise NotImplementedError

    def GG(self, t: Time) -> Tensor:
        """G G^T, the rate of the noise, (..., *block)."""
        raise NotImplementedError

    def G(self, t: Time) -> Tensor:
        """Diagonal root of :meth:`GG`, (..., *block)."""
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
        """What a coefficient does to positions alone, (...) or, of frequencies, (..., H, W)."""
        return a

    def root(self, covariance: Tensor) -> Tensor:
        """Symmetric root of a covariance (*block), what rounding has made negative taken for 0."""
        return covariance.clamp(min=0).sqrt()

    def weigh(self, weights: Tensor, a: Tensor) -> Tensor:
        """Coefficients (..., *block) times numbers (...)."""
        return weights.reshape(weights.shape + (1,) * (a.ndim - weights.ndim)) * a

    def apply(self, a: Tensor, u: Tensor) -> Tensor:
        """A coefficient (*block) times a state (B, ...), in the state's dtype."""
        return a.to(u) * u

    def stretch(self, t: Time, s: Time, lam: float) -> Tensor:
        """X with Psi^(t, s) = R(t) X R(s)^-1 for the drift F + (1 + lam^2) / 2 G G^T Sigma^-1 (paper, eq. 22).

        It solves dX/dt = lam^2 / 2 (R^-1 G G^T R^-T) X from X(s) = 1, and is 1 for lam = 0.
        """
        raise NotImplementedError

    def rows(self, a: Tensor, u: Tensor) -> Tensor:
        """Coefficients (B, *block), one of each row (or of all), times a state, in the state's dtype."""
        return a.to(u).reshape(a.shape[0], *[1] * (u.ndim - a.ndim), *a.shape[1:]) * u

    # -- states --------------------------------------------------------------------------------------------------------

    def check_state(self, u: Tensor) -> None:
        """UserError unless ``u`` can be a state: floating-point numbers (B, ...), finite."""
        if not isinstance(u, Tensor) or not u.is_floating_point() or u.ndim < 2:
            about = f"{u.dtype} of shape {tuple(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
            raise UserError(f"u must be a tensor of floating-point numbers, (B, ...), not {about}")
        if not u.isfinite().all():
            raise UserError("u must be finite: it holds NaN or infinity")

    def gain(self, t: Time) -> Tensor:
        """What is left of clean states at time t, (..., *block): Psi(t, 0)."""
        return self.Psi(t, torch.zeros_like(torch.as_tensor(t, dtype=torch.float64)))

    def pixels(self, u: Tensor) -> Tensor:
        """A state in pixels, of as many channels."""
        return u

    def coefficients(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`pixels`."""
        return x

    def observation(self, u: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The image x = x_0 + sigma noise that tells as much of x_0 as the state does, (B, C, H, W), and sigma ().

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
        """Of a state what images have a part in, (B, C, ...)."""
        return u

    def at_rest(self, x: Tensor) -> Tensor:
        """The state of that position without velocity."""
        return x

    def lift(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as states without noise."""
        return self.at_rest(self.coefficients(images))

    def drop(self, u: Tensor) -> Tensor:
        """The images (B, C, H, W) in states."""
        return self.pixels(self.position(u))

    def forward(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """u_t = gain(t) u_0 + R(t) noise, for times (B,), one of each row."""
        return self.rows(self.gain(t), self.lift(images)) + self.rows(self.R(t), noise)


class Diagonal(LinearSDE):
    """Coefficients that commute: each entry is a diffusion by itself, and R = L = sqrt(Sigma)."""

    product = staticmethod(torch.mul)
    transpose = staticmethod(lambda a: a)
    inverse = staticmethod(torch.reciprocal)
    cholesky = staticmethod(torch.sqrt)

    def log_gain(self, t: Tensor) -> Tensor:
        """log Psi(t, 0)."""
        raise NotImplementedError

    def Psi(self, t: Time, s: Time) -> Tensor:
        return (self.log_gain(self._time(t)) - self.log_gain(self._time(s))).exp()

    def R(self, t: Time) -> Tensor:
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
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2

    def Sigma(self, t: Time) -> Tensor:
        return -torch.expm1(2 * self.log_gain(self._time(t)))

    def _beta(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * self._time(t)

    def F(self, t: Time) -> Tensor:
        return -self._beta(t) / 2

    def GG(self, t: Time) -> Tensor:
        return self._beta(t)


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP, whose variance is below that of VP at all times: Song et al. 2021, eq. 29. R = Sigma of VP."""

    def Sigma(self, t: Time) -> Tensor:
        return VP.Sigma(self, t) ** 2

    def R(self, t: Time) -> Tensor:
        return VP.Sigma(self, t)

    L = R

    def GG(self, t: Time) -> Tensor:
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
        return torch.tensor(self.sigma_max, dtype=torch.float64)

    def log_gain(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def Sigma(self, t: Time) -> Tensor:
        return self.sigma_min**2 * (self.sigma_max / self.sigma_min) ** (2 * self._time(t))

    def F(self, t: Time) -> Tensor:
        return torch.zeros_like(self._time(t))

    def GG(self, t: Time) -> Tensor:
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.Sigma(t)


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
        return torch.sin(self._angle(self._time(t))).square()[..., None, None].expand(*self._shape(t))

    def F(self, t: Time) -> Tensor:
        t = self._time(t)
        blur, rate = self._blur(t)
        return -(torch.tan(self._angle(t)) * math.pi / 2 / (1 + 2 * self.offset))[..., None, None] + rate / blur

    def GG(self, t: Time) -> Tensor:
        angle = self._angle(self._time(t))
        growth = torch.sin(2 * angle) * math.pi / 2 / (1 + 2 * self.offset)  # of Sigma
        return growth[..., None, None] - 2 * self.F(t) * self.Sigma(t)

    def _shape(self, t: Time) -> tuple[int, ...]:
        return (*torch.as_tensor(t).shape, self.image_size, self.image_size)

    def pixels(self, u: Tensor) -> Tensor:
        return dct(u, inverse=True)

    def coefficients(self, x: Tensor) -> Tensor:
        return dct(x)


def dct(x: Tensor, inverse: bool = False) -> Tensor:
    """Orthonormal two-dimensional DCT-II over the last two dimensions, or its inverse."""
    matrices = [_dct_matrix(n).to(x) for n in x.shape[-2:]]
    rows, columns = (m.T for m in matrices) if inverse else matrices
    return rows @ x @ columns.T


@functools.lru_cache(maxsize=16)
def _dct_matrix(n: int) -> Tensor:
    return torch.from_numpy(scipy_dct(np.eye(n), axis=0, norm="ortho"))


@dataclasses.dataclass(frozen=True)
class CLD(LinearSDE):
    """Critically damped Langevin: Dockhorn, Vahdat & Kreis 2022 (arXiv 2112.07068), with gDDIM's constants.

    Positions x and velocities v per pixel: F = beta [[0, 1/M], [-1, -Gamma/M]], G = diag(0, sqrt(2 Gamma beta)) with
    Gamma = 2 sqrt(M). Data have velocities of variance ``gamma`` M; ``eps`` is added to both variances at t = 0.

    Args:
        inverse_mass: 1 / M.
        beta: constant rate of the diffusion.
        gamma: of the variance gamma M that velocities have at t = 0.
        eps: variance of what positions are known to at t = 0, which makes R(0) invertible.
    """

    inverse_mass: float = 4.0
    beta: float = 4.0
    gamma: float = 0.04
    eps: float = 1e-6
    parts = 2

    def __post_init__(self) -> None:
        check_constants(self, inverse_mass=0.0, beta=0.0, gamma=0.0, eps=0.0)

    def check_state(self, u: Tensor) -> None:
        super().check_state(u)
        if u.shape[1] % 2 or not u.shape[1]:
            raise UserError(
                f"a state of CLD has positions and as many velocities along its channels, (B, 2C, ...), "
                f"not {tuple(u.shape)}"
            )

    @property
    def prior(self) -> Tensor:
        return torch.tensor([1.0, self.inverse_mass**-0.5], dtype=torch.float64).diag()

    @property
    def _omega(self) -> float:
        return self.inverse_mass**0.5

    def _time(self, t: Time) -> Tensor:
        return as_time(t, 0.0, 1.0)

    def Psi(self, t: Time, s: Time) -> Tensor:
        w = self._omega
        a = w * self.beta * (self._time(t) - self._time(s))
        return self.weigh((-a).exp(), _matrix(1 + a, w * a, -a / w, 1 - a))

    def added(self, t: Tensor) -> Tensor:
        """Covariance of the noise that time t adds, (..., 2, 2); without the cancellation of a difference."""
        w = self._omega
        z = 2 * w * self.beta * t
        tail = torch.special.gammainc(torch.full_like(z, 3.0), z)  # 1 - e^-z (1 + z + z^2 / 2)
        both = z**2 * (-z).exp() / (2 * w)
        return _matrix(tail, both, both, (tail + 2 * z * (-z).exp()) / w**2)

    @property
    def _first(self) -> Tensor:
        """Sigma at time 0."""
        return torch.tensor([self.eps, self.gamma / self.inverse_mass + self.eps], dtype=torch.float64).diag()

    def Sigma(self, t: Time) -> Tensor:
        t = self._time(t)
        psi = self.Psi(t, torch.zeros_like(t))
        return psi @ self._first @ psi.mT + self.added(t)

    def L(self, t: Time) -> Tensor:
        return torch.linalg.cholesky(self.Sigma(t))

    def R(self, t: Time) -> Tensor:
        """L(t) turned by the angle that eq. 17 asks for: R = L Q(theta_t)."""
        theta = self._angle(self._time(t))
        return self.L(t) @ _matrix(theta.cos(), theta.sin(), -theta.sin(), theta.cos())

    def F(self, t: Time) -> Tensor:
        one, w = torch.ones_like(self._time(t)), self._omega
        return self.beta * _matrix(0 * one, w**2 * one, -one, -2 * w * one)

    def GG(self, t: Time) -> Tensor:
        one = torch.ones_like(self._time(t))
        return _matrix(0 * one, 0 * one, 0 * one, 4 * self.beta / self._omega * one)

    def _angle_rate(self, t: Tensor) -> Tensor:
        """d theta / dt = [(F Sigma)_12 - (F Sigma)_21] / (2 sqrt(det Sigma)) + (L^-1 Sigma' L^-T)_21 / 2."""
        drift, sigma = self.F(t) @ self.Sigma(t), self.Sigma(t)
        low = torch.linalg.cholesky(sigma)
        root = low[..., 0, 0] * low[..., 1, 1]
        change = drift + drift.mT + self.GG(t)
        turned = torch.linalg.solve_triangular(low, change, upper=False)
        turned = torch.linalg.solve_triangular(low, turned.mT, upper=False)
        return (drift[..., 0, 1] - drift[..., 1, 0]) / (2 * root) + turned[..., 1, 0] / 2

    @functools.cached_property
    def _turns(self) -> tuple[Tensor, Tensor]:
        """Times from 0 to 1, geometric as theta turns fastest near 0; in between theta is a Legendre series each."""
        times = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 61)]).double()
        times[-1] = 1.0
        nodes, weights = gauss()
        rates = self._angle_rate(times[:-1, None] + times.diff()[:, None] * nodes).numpy()
        degrees = np.arange(len(nodes))
        of_rates = (2 * degrees + 1) * ((rates * weights.numpy()) @ legvander(2 * nodes.numpy() - 1, len(nodes) - 1))
        series = legint(of_rates, lbnd=-1, axis=1) * times.diff()[:, None].numpy() / 2
        series[1:, 0] += series.sum(1)[:-1].cumsum()
        return times, torch.from_numpy(series)

    def _angle(self, t: Tensor) -> Tensor:
        times, series = self._turns
        before = (torch.searchsorted(times, t.contiguous(), right=True) - 1).clamp(0, len(times) - 2)
        within = 2 * (t - times[before]) / (times[before + 1] - times[before]) - 1
        legendre = torch.from_numpy(legvander(within.numpy(), series.shape[1] - 1)).reshape(*t.shape, -1)
        return (series[before] * legendre).sum(-1)

    product = staticmethod(torch.matmul)
    transpose = staticmethod(lambda a: a.mT)
    inverse = staticmethod(torch.linalg.inv)
    cholesky = staticmethod(torch.linalg.cholesky)
    one = torch.eye(2, dtype=torch.float64, device="cpu")
    of_data = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, device="cpu")

    def root(self, covariance: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.mT

    def apply(self, a: Tensor, u: Tensor) -> Tensor:
        x, v = u.chunk(2, 1)
        a = a.to(u)
        return torch.cat([a[0, 0] * x + a[0, 1] * v, a[1, 0] * x + a[1, 1] * v], 1)

    def rows(self, a: Tensor, u: Tensor) -> Tensor:
        if a.ndim == 1:  # of positions
            return super().rows(a, u)
        (x, v), shape = u.chunk(2, 1), (-1, *[1] * (u.ndim - 1))
        xx, xv, vx, vv = (entry.reshape(shape).to(u) for entry in a.flatten(1).unbind(1))
        return torch.cat([xx * x + xv * v, vx * x + vv * v], 1)

    def stretch(self, t: Time, s: Time, lam: float) -> Tensor:
        """By collocation at Gauss points, on pieces that are short where R turns fast."""
        t, s = self._time(t), self._time(s)
        if lam == 0 or t == s:
            return torch.eye(2, dtype=torch.float64)
        pieces = max(4, math.ceil(8 * abs(math.log(max(s.item(), 1e-9) / max(t.item(), 1e-6)))))
        edges = torch.linspace(s.sqrt(), t.sqrt(), pieces + 1, dtype=torch.float64) ** 2
        nodes, matrix, weights = collocation()
        width = edges.diff()
        at = edges[:-1, None] + width[:, None] * nodes  # (pieces, nodes)
        inverse = torch.linalg.inv(self.R(at))
        rate = lam**2 / 2 * inverse @ self.GG(at) @ inverse.mT  # (pieces, nodes, 2, 2)
        # stages K_j = A_j (X + h sum_k a_jk K_k) on all pieces at once, as the response to X = 1
        count = len(nodes)
        system = torch.einsum("p,jk,pjab->pjakb", width, matrix, rate).reshape(pieces, 2 * count, 2 * count)
        stages = torch.linalg.solve(torch.eye(2 * count, dtype=torch.float64) - system, rate.reshape(pieces, -1, 2))
        steps = torch.einsum("p,j,pjab->pab", width, weights, stages.reshape(pieces, count, 2, 2))
        steps = steps + torch.eye(2, dtype=torch.float64)
        return functools.reduce(lambda done, step: step @ done, steps)

    def observation(self, u: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Positions and velocities weighed by what each knows: sigma^-2 = g^T Sigma^-1 g, g the gain of positions."""
        weights = self.gain(t)[:, :1].mT @ torch.linalg.inv(self.Sigma(t))  # (1, 2)
        precision = (weights @ self.gain(t))[0, 0]
        x, v = u.chunk(2, 1)
        a, b = (weights / precision).to(u)[0]
        return a * x + b * v, precision.rsqrt()

    def entry(self, a: Tensor) -> Tensor:
        return a[..., 0, 0]

    def position(self, u: Tensor) -> Tensor:
        return u.chunk(2, 1)[0]

    def velocity(self, u: Tensor) -> Tensor:
        """The state with its positions taken for 0."""
        x, v = u.chunk(2, 1)
        return torch.cat([torch.zeros_like(x), v], 1)

    def at_rest(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], 1)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(..., 2, 2) from its entries (...), row by row."""
    return torch.stack([a, b, c, d], -1).unflatten(-1, (2, 2))


DIFFUSIONS: dict[str, type[LinearSDE]] = {"VP": VP, "SubVP": SubVP, "VE": VE, "BDM": BDM, "CLD": CLD}


def make_sde(name: str, **constants: float) -> LinearSDE:
    """A diffusion by its name, with its constants; UserError for an unknown one of either."""
    if name not in DIFFUSIONS:
        raise unknown("diffusion", name, DIFFUSIONS)
    known = [field.name for field in dataclasses.fields(DIFFUSIONS[name])]
    for constant in constants:
        if constant not in known:
            raise unknown(f"constant of {name}", constant, known)
    return DIFFUSIONS[name](**constants)
