"""One implicit step of the linearised Fokker-Planck equation on the pixel lattice, as linear operators on fields.

With g^2 = sigma^(2 t), D = dt / h^2 and C = dt / (2 h), a step takes the field m of the time before to the solution of
A m' = m; the score s that A depends on is that of the pass before. Fields are (systems, H, W) float64, each channel of
each image a system of its own.
"""

from __future__ import annotations

import numpy as np
from scipy import fft


class Published:
    """The step that the published code makes: row k of A, pixels counted along rows without a mask at their ends, is

    (1 + 2 g^2 D) m_k + u_(k+1) m_(k+1) + u_(k+W) m_(k+W) + l_(k-1) m_(k-1) + l_(k-W) m_(k-W),

    u = g^2 D / 2 - g^2 C s / 2 and l = -g^2 D / 2 - g^2 C s / 2. Its signs are not those of the equation.
    """

    def __init__(self, s: np.ndarray, g2: float, dt: float, h: float) -> None:
        self.shape, self.width = s.shape, s.shape[-1]
        self.diagonal = 1 + 2 * g2 * dt / h**2
        drift = (-g2 * dt / (4 * h)) * s.reshape(len(s), -1)
        self.upper, self.lower = drift + g2 * dt / (2 * h**2), drift - g2 * dt / (2 * h**2)

    def __call__(self, m: np.ndarray) -> np.ndarray:
        """Return A m."""
        flat, w = m.reshape(len(m), -1), self.width
        upper, lower, out = self.upper * flat, self.lower * flat, self.diagonal * flat
        for offset in (1, w):
            out[:, :-offset] += upper[:, offset:]
            out[:, offset:] += lower[:, :-offset]
        return out.reshape(self.shape)

    def transposed(self, m: np.ndarray) -> np.ndarray:
        """Return A^T m."""
        flat, w = m.reshape(len(m), -1), self.width
        before, after = np.zeros_like(flat), np.zeros_like(flat)
        for offset in (1, w):
            before[:, offset:] += flat[:, :-offset]
            after[:, :-offset] += flat[:, offset:]
        return (self.diagonal * flat + self.upper * before + self.lower * after).reshape(self.shape)

    def precondition(self, m: np.ndarray) -> np.ndarray:
        """Return m: A is near enough to a multiple of one."""
        return m

    undo = precondition


class Consistent:
    """The step of the equation itself: m_t = g^2 (laplace m + s . grad m) / 2, no flux through the border.

    ``s`` is the gradient of the pass before, (systems, 2, H, W): along rows of pixels, then down columns.
    """

    def __init__(self, s: np.ndarray, g2: float, dt: float, h: float) -> None:
        self.drift, self.h = s * (g2 * dt / 2), h
        modes = [2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in s.shape[-2:]]
        self.symbol = 1 + g2 * dt / (2 * h**2) * (modes[0][:, None] + modes[1])

    def __call__(self, m: np.ndarray) -> np.ndarray:
        """Return A m."""
        return self.undo(m) - (self.drift * gradient(m, self.h)).sum(1)

    def transposed(self, m: np.ndarray) -> np.ndarray:
        """Return A^T m."""
        return self.undo(m) - gradient_transposed(self.drift * m[:, None], self.h)

    def precondition(self, m: np.ndarray) -> np.ndarray:
        """Return P m, P symmetric and near A^-1."""
        return self._filtered(m, 1 / self.symbol)

    def undo(self, m: np.ndarray) -> np.ndarray:
        """Return P^-1 m."""
        return self._filtered(m, self.symbol)

    def _filtered(self, m: np.ndarray, symbol: np.ndarray) -> np.ndarray:
        """Return I - g^2 dt laplace / 2, or its inverse, of a field: diagonal under the cosine transform."""
        return np.asarray(fft.idctn(fft.dctn(m, axes=(-2, -1)) * symbol, axes=(-2, -1)))


def gradient(m: np.ndarray, h: float) -> np.ndarray:
    """Return central differences of fields (..., H, W), mirrored at the border: (..., 2, H, W), x first."""
    padded = np.pad(m, [(0, 0)] * (m.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return np.stack([dx, dy], -3) / (2 * h)


def gradient_transposed(v: np.ndarray, h: float) -> np.ndarray:
    """Return the transpose of :func:`gradient` on (..., 2, H, W)."""
    return (_difference_transposed(v[..., 0, :, :]) + _difference_transposed(v[..., 1, :, :].mT).mT) / (2 * h)


def _difference_transposed(v: np.ndarray) -> np.ndarray:
    """Return the transpose of the mirrored difference along the last axis."""
    out = np.zeros_like(v)
    out[..., 1:] += v[..., :-1]
    out[..., -1] += v[..., -1]
    out[..., :-1] -= v[..., 1:]
    out[..., 0] -= v[..., 0]
    return out


def flat_difference(m: np.ndarray, h: float) -> np.ndarray:
    """Return the score as published: (m_(k+1) - m_(k-1)) / (2 h), k along rows and on into the next, 0 outside."""
    flat = np.pad(m.reshape(*m.shape[:-2], -1), [(0, 0)] * (m.ndim - 2) + [(1, 1)])
    return ((flat[..., 2:] - flat[..., :-2]) / (2 * h)).reshape(m.shape)


def solve_step(
    step: Published | Consistent, m: np.ndarray, guess: np.ndarray, tol: np.ndarray, most: int = 10_000
) -> np.ndarray:
    """Return A^-1 m for fields (systems, H, W), by conjugate gradients on the normal equations of A P y = m.

    As published A is nearly a multiple of one plus a skew matrix, whose normal equations have condition 2 at any
    sigma, number of times and size. Each system stops where |A x - m| <= tol |m|, tol (systems,).
    """
    y = step.undo(guess)
    r = m - step(guess)
    wanted = tol**2 * _dot(m, m)
    z = step.precondition(step.transposed(r))
    p, square = z, _dot(z, z)
    for _ in range(most):
        going = _dot(r, r) > wanted
        if not going.any():
            break
        q = step(step.precondition(p))
        alpha = np.where(going, square / np.maximum(_dot(q, q), np.finfo(float).tiny), 0)[:, None, None]
        y = y + alpha * p
        r = r - alpha * q
        z = step.precondition(step.transposed(r))
        before, square = square, _dot(z, z)
        p = z + (square / np.maximum(before, np.finfo(float).tiny))[:, None, None] * p
    return step.precondition(y)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("shw,shw->s", a, b)
