"""Critically damped Langevin (CLD): a 2x2 block of position and velocity for each pixel."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from numpy.polynomial.legendre import legint, legvander
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.linear_sde.base import LinearSDE, Time, as_time, check_constants
from dmcmc_core.quadrature import collocation, gauss


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
        """Raise UserError unless ``u`` can be a state: floating-point numbers (B, ...), finite."""
        super().check_state(u)
        if u.shape[1] % 2 or not u.shape[1]:
            raise UserError(
                f"a state of CLD has positions and as many velocities along its channels, (B, 2C, ...), "
                f"not {tuple(u.shape)}"
            )

    @property
    def prior(self) -> Tensor:
        """Root of the covariance that sampling starts from, (*block)."""
        return torch.tensor([1.0, self.inverse_mass**-0.5], dtype=torch.float64).diag()

    @property
    def _omega(self) -> float:
        return self.inverse_mass**0.5

    def _time(self, t: Time) -> Tensor:
        return as_time(t, 0.0, 1.0)

    def Psi(self, t: Time, s: Time) -> Tensor:
        """Return the transition matrix from time s to time t, (..., *block)."""
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
        """Return the covariance of u_t given u_0 (of CLD: given the position alone), (..., *block)."""
        t = self._time(t)
        psi = self.Psi(t, torch.zeros_like(t))
        return psi @ self._first @ psi.mT + self.added(t)

    def L(self, t: Time) -> Tensor:
        """Return the lower triangular root of Sigma, (..., *block)."""
        return torch.linalg.cholesky(self.Sigma(t))

    def R(self, t: Time) -> Tensor:
        """L(t) turned by the angle that eq. 17 asks for: R = L Q(theta_t)."""
        theta = self._angle(self._time(t))
        return self.L(t) @ _matrix(theta.cos(), theta.sin(), -theta.sin(), theta.cos())

    def F(self, t: Time) -> Tensor:
        """Return the drift, (..., *block)."""
        one, w = torch.ones_like(self._time(t)), self._omega
        return self.beta * _matrix(0 * one, w**2 * one, -one, -2 * w * one)

    def GG(self, t: Time) -> Tensor:
        """Return G G^T, the rate of the noise, (..., *block)."""
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
        """Return the symmetric root of a covariance (*block), what rounding has made negative taken for 0."""
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.mT

    def apply(self, a: Tensor, u: Tensor) -> Tensor:
        """Apply a coefficient (*block) to a state (B, ...), in the state's dtype."""
        x, v = u.chunk(2, 1)
        a = a.to(u)
        return torch.cat([a[0, 0] * x + a[0, 1] * v, a[1, 0] * x + a[1, 1] * v], 1)

    def rows(self, a: Tensor, u: Tensor) -> Tensor:
        """Apply coefficients (B, *block), one of each row (or of all), to a state, in the state's dtype."""
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
        """Return what a coefficient does to positions alone, (...) or, of frequencies, (..., H, W)."""
        return a[..., 0, 0]

    def position(self, u: Tensor) -> Tensor:
        """Return of a state what images have a part in, (B, C, ...)."""
        return u.chunk(2, 1)[0]

    def velocity(self, u: Tensor) -> Tensor:
        """The state with its positions taken for 0."""
        x, v = u.chunk(2, 1)
        return torch.cat([torch.zeros_like(x), v], 1)

    def at_rest(self, x: Tensor) -> Tensor:
        """Return the state of that position without velocity."""
        return torch.cat([x, torch.zeros_like(x)], 1)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(..., 2, 2) from its entries (...), row by row."""
    return torch.stack([a, b, c, d], -1).unflatten(-1, (2, 2))
