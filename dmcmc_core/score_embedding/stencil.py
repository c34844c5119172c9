"""One implicit step of the linearised Fokker-Planck equation on the pixel lattice, as linear operators on fields.

With g^2 = sigma^(2 t), D = dt / h^2 and C = dt / (2 h), a step takes the field m of the time before to the solution of
A m' = m; the score s that A depends on is that of the pass before. Fields are (systems, H, W) float64, each channel of
each image a system of its own.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, sparse
from scipy.sparse.linalg import spsolve

MOST = 100
"""Iterations after which a system is solved directly."""
TINY = np.finfo(float).tiny


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

    def matrix(self, system: int) -> sparse.csc_array:
        """Return A of one system."""
        upper, lower, w = self.upper[system], self.lower[system], self.width
        diagonals = np.stack([np.full_like(upper, self.diagonal), upper, upper, lower, lower])  # by their columns
        return sparse.csc_array(sparse.dia_array((diagonals, [0, 1, w, -1, -w]), shape=(len(upper), len(upper))))


class Consistent:
    """The step of the equation itself: m_t = g^2 (laplace m + s . grad m) / 2, no flux through the border.

    ``s`` is the gradient of the pass before, (systems, 2, H, W), along rows and down columns; on the lattice the
    product of two gradients is the mean over the two sides of a pixel, so that it sees structure of single pixels.
    """

    def __init__(self, s: np.ndarray, g2: float, dt: float, h: float) -> None:
        self.drift, self.h, self.spread = s * (g2 * dt / 4), h, g2 * dt / (2 * h**2)
        modes = [2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in s.shape[-2:]]
        self.symbol = 1 + self.spread * (modes[0][:, None] + modes[1])

    def __call__(self, m: np.ndarray) -> np.ndarray:
        """Return A m."""
        return self.undo(m) - both_sides(self.drift * gradient(m, self.h)).sum(1)

    def transposed(self, m: np.ndarray) -> np.ndarray:
        """Return A^T m."""
        return self.undo(m) - gradient_transposed(self.drift * both_sides_transposed(m), self.h)

    def precondition(self, m: np.ndarray) -> np.ndarray:
        """Return P m, P symmetric and near A^-1."""
        return self._filtered(m, 1 / self.symbol)

    def undo(self, m: np.ndarray) -> np.ndarray:
        """Return P^-1 m."""
        return self._filtered(m, self.symbol)

    def _filtered(self, m: np.ndarray, symbol: np.ndarray) -> np.ndarray:
        """Return I - g^2 dt laplace / 2, or its inverse, of a field: diagonal under the cosine transform."""
        return np.asarray(fft.idctn(fft.dctn(m, axes=(-2, -1)) * symbol, axes=(-2, -1)))

    def matrix(self, system: int) -> sparse.csc_array:
        """Return A of one system."""
        height, width = self.symbol.shape
        rows, columns = (np.diff(np.eye(n), axis=0, append=np.eye(n)[-1:]) for n in (width, height))  # 0 at the border
        x, y = sparse.kron(sparse.eye_array(height), rows), sparse.kron(columns, sparse.eye_array(width))
        a = sparse.eye_array(height * width) + self.spread * (x.T @ x + y.T @ y)
        for difference, drift in zip((x, y), self.drift[system], strict=True):
            both = abs(difference).T  # sums over the two sides of a pixel
            a = a - both @ sparse.diags_array(drift.ravel() / self.h) @ difference
        return sparse.csc_array(a)


def gradient(m: np.ndarray, h: float) -> np.ndarray:
    """Return differences of fields (..., H, W) to the next pixel, 0 beyond the border: (..., 2, H, W), x first."""
    out = np.zeros((*m.shape[:-2], 2, *m.shape[-2:]))
    out[..., 0, :, :-1] = np.diff(m, axis=-1)
    out[..., 1, :-1, :] = np.diff(m, axis=-2)
    return out / h


def gradient_transposed(v: np.ndarray, h: float) -> np.ndarray:
    """Return the transpose of :func:`gradient` on (..., 2, H, W)."""
    out = np.zeros((*v.shape[:-3], *v.shape[-2:]))
    out[..., 1:] += v[..., 0, :, :-1]
    out[..., :-1] -= v[..., 0, :, :-1]
    out[..., 1:, :] += v[..., 1, :-1, :]
    out[..., :-1, :] -= v[..., 1, :-1, :]
    return out / h


def both_sides(v: np.ndarray) -> np.ndarray:
    """Return, for differences (..., 2, H, W), the sum of those on both sides of each pixel."""
    out = v.copy()
    out[..., 0, :, 1:] += v[..., 0, :, :-1]
    out[..., 1, 1:, :] += v[..., 1, :-1, :]
    return out


def both_sides_transposed(m: np.ndarray) -> np.ndarray:
    """Return, for fields (..., H, W), the sum of the two pixels that each difference lies between: (..., 2, H, W)."""
    out = np.stack([m, m], -3)
    out[..., 0, :, :-1] += m[..., 1:]
    out[..., 1, :-1, :] += m[..., 1:, :]
    return out


def flat_difference(m: np.ndarray, h: float) -> np.ndarray:
    """Return the score as published: (m_(k+1) - m_(k-1)) / (2 h), k along rows and on into the next, 0 outside."""
    flat = np.pad(m.reshape(*m.shape[:-2], -1), [(0, 0)] * (m.ndim - 2) + [(1, 1)])
    return ((flat[..., 2:] - flat[..., :-2]) / (2 * h)).reshape(m.shape)


def solve_step(
    step: Published | Consistent, m: np.ndarray, guess: np.ndarray, tol: np.ndarray, most: int = MOST
) -> np.ndarray:
    """Return A^-1 m for fields (systems, H, W), by conjugate gradients on the normal equations of A P y = m.

    Where scores are small A is nearly a multiple of one plus a skew matrix as published, whose normal equations have
    condition 2 at any sigma, number of times and size; it grows with the size of the score. Each system stops where
    |A x - m| <= tol |m|, tol (systems,); one that has not after so many iterations is solved by a sparse factorisation.
    """
    y = step.undo(guess)
    r = m - step(guess)
    wanted = tol**2 * _dot(m, m)
    z = step.precondition(step.transposed(r))
    p, square = z, _dot(z, z)
    going = _dot(r, r) > wanted
    for _ in range(most):
        if not going.any():
            break
        q = step(step.precondition(p))
        alpha = np.where(going, square / np.maximum(_dot(q, q), TINY), 0)[:, None, None]
        y = y + alpha * p
        r = r - alpha * q
        z = step.precondition(step.transposed(r))
        before, square = square, _dot(z, z)
        p = z + (square / np.maximum(before, TINY))[:, None, None] * p
        going = _dot(r, r) > wanted
    x = step.precondition(y)
    for system in np.flatnonzero(going):
        x[system] = spsolve(step.matrix(int(system)), m[system].ravel()).reshape(m.shape[1:])
    return x


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("shw,shw->s", a, b)
