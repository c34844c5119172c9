"""The log-density Fokker-Planck equation over the pixel lattice, by backward Euler and outer passes over all times.

The diffusion is dx = sigma^t dW. A pass solves every time after the other with the score of the pass before, until the
field changes by less than a tolerance. Na, Gao & Wan 2024 (arXiv 2404.06661), Section 3; what the published code does
differs in signs, borders and the score, so it is a mode of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from dmcmc_core.errors import LOG, UserError, number, one_of
from dmcmc_core.score_embedding.diffusion import check_sigma, times, training_times
from dmcmc_core.score_embedding.embedding import embed
from dmcmc_core.score_embedding.stencil import (
    TINY,
    Consistent,
    Published,
    both_sides,
    flat_difference,
    gradient,
    solve_step,
)

INEXACT = 1e-5
"""Error of a linear solve, in units of the change that the pass before made."""
MODES = ("as_published", "consistent", "none", "random")


class Field(NamedTuple):
    """What the passes converge to.

    Attributes:
        m: (N, C, H, W) float64, the field at each time; that at the first is the initial one.
        score: (N, C, H, W) float64, its derivative as the mode has it.
        passes: outer passes made.
        residuals: (passes,) relative change of the field in each pass.
        t: (N,) float64 times, from epsilon to 1.
        converged: whether the last residual is at most the tolerance.
    """

    m: Tensor
    score: Tensor
    passes: int
    residuals: Tensor
    t: Tensor
    converged: bool


def solve(  # noqa: PLR0913  the equation, its lattice and when to stop
    m0: Tensor,
    *,
    sigma: float,
    steps: int,
    tol: float,
    dh: float = 1.0,
    mode: str = "as_published",
    most: int = 100,
    seed: int = 0,
) -> Field:
    """Solve for the field and its score at N times.

    Args:
        m0: (C, H, W), the field at the first time; see :func:`dmcmc_core.score_embedding.initial_field`.
        sigma: of the diffusion, g(t) = sigma^t; above 0 and not 1.
        steps: N, at least 2.
        tol: relative change of the field, over all times and channels, at which passes end; above 0. The published
            2e-8 is the rounding noise of its float32.
        dh: distance of two pixels, above 0.
        mode: ``as_published``; ``consistent``, the equation itself with no flux through the border, whose score is the
            paper's scalar, the sum of both derivatives; ``none``, no score at all; ``random``, one normal pattern
            that shifts each channel as far at each time, in root mean square, as ``as_published`` does; by ``seed``.
        most: passes, after which an unconverged field is returned and a warning says so.

    Raises:
        UserError: for an argument out of its range, and a field that is not (C, H, H) and finite, or does not stay so.
    """
    (field,) = solve_many(
        torch.as_tensor(m0)[None], sigma=sigma, steps=steps, tol=tol, dh=dh, mode=mode, most=most, seed=seed
    )
    return field


def solve_many(  # noqa: PLR0913  see solve
    m0: Tensor,
    *,
    sigma: float,
    steps: int,
    tol: float,
    dh: float = 1.0,
    mode: str = "as_published",
    most: int = 100,
    seed: int = 0,
) -> list[Field]:
    """Solve for several images (n, C, H, W) side by side; each ends at its own pass, and none depends on another.

    Arguments and errors as for :func:`solve`.
    """
    m0, t = _check(m0, sigma, dh), times(steps)
    number("tol", tol, above=0)
    number("most", most, least=1, whole=True)
    one_of("mode", mode, *MODES)
    number("seed", seed, least=0, below=2**63, whole=True)
    if mode == "none":
        still = m0[:, None].expand(-1, steps, *m0.shape[1:])
        return [Field(m.clone(), torch.zeros_like(m), 0, torch.zeros(0), t, True) for m in still]
    solved = _passes(m0.numpy(), t.numpy(), sigma, dh, tol, "as_published" if mode == "random" else mode, most)
    fields = [_field(m, score, residuals, t, tol) for m, score, residuals in solved]
    if mode != "random":
        return fields
    rngs = (torch.Generator().manual_seed(seed) for _ in fields)  # an image has the same pattern alone
    return [f._replace(score=_random_like(f.score, sigma, rng)) for f, rng in zip(fields, rngs, strict=True)]


def _field(m: np.ndarray, score: np.ndarray, residuals: list[float], t: Tensor, tol: float) -> Field:
    if residuals[-1] > tol:
        LOG.warning(
            f"the field still changes by {residuals[-1]:.1e} after {len(residuals)} passes: tol={tol:g} is not reached"
        )
    passes = torch.tensor(residuals, dtype=torch.float64)
    return Field(torch.from_numpy(m), torch.from_numpy(score), len(residuals), passes, t, residuals[-1] <= tol)


def _random_like(score: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    """Return the score, one normal pattern, whose shifts are at all times as large as those of another (N, C, H, W)."""
    tau = training_times(torch.full((len(score),), 0.5, dtype=score.dtype))
    size = embed(torch.zeros_like(score[0]), score, sigma=sigma, tau=tau).square().mean((-2, -1), keepdim=True).sqrt()
    pattern = torch.randn(score.shape[1:], dtype=score.dtype, generator=rng)
    pattern = pattern / pattern.square().mean((-2, -1), keepdim=True).sqrt()
    a_step = size.diff(dim=0, prepend=torch.zeros_like(size[:1])) * (2 * len(score))
    return -pattern * a_step / (sigma ** (2 * tau))[:, None, None, None]


def _passes(
    m0: np.ndarray, t: np.ndarray, sigma: float, h: float, tol: float, mode: str, most: int
) -> list[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Return the field, the score and the residual of each pass for every image."""
    step, derivative = (Published, flat_difference) if mode == "as_published" else (Consistent, gradient)
    dt, change = 1 / len(t), np.ones(len(m0))
    m = np.repeat(m0[:, None], len(t), 1)  # (n, N, C, H, W)
    before = np.ones_like(m)
    s = np.ones_like(derivative(before, h))
    residuals: list[list[float]] = [[] for _ in m0]
    going = list(range(len(m0)))
    while going:
        guess = np.concatenate(m[going, 0])  # channels of all images, each a system
        for i in range(1, len(t)):
            guess = np.concatenate(m[going, i]) if residuals[going[0]] else guess
            one = step(np.concatenate(s[going, i]), sigma ** (2 * t[i]), dt, h)
            guess = solve_step(
                one, np.concatenate(m[going, i - 1]), guess, np.repeat(INEXACT * change[going], m0.shape[1])
            )
            m[going, i] = guess.reshape(len(going), *m0.shape[1:])
        s[going] = derivative(m[going], h)
        for n in going:
            residuals[n].append(float(np.linalg.norm(m[n] - before[n]) / max(np.linalg.norm(before[n]), TINY)))
            if not np.isfinite(m[n]).all():
                raise UserError(
                    f"the field is not finite any more in pass {len(residuals[n])}: sigma = {sigma:g}, dh = {h:g}"
                )
            change[n] = min(1.0, residuals[n][-1])
        before = m.copy()
        going = [n for n in going if residuals[n][-1] > tol and len(residuals[n]) < most]
    scores = s if mode == "as_published" else both_sides(s).sum(-3) / 2  # central differences
    return list(zip(m, scores, residuals, strict=True))


def closed_form(m0: Tensor, *, sigma: float, steps: int, dh: float = 1.0) -> Tensor:
    """Return the exact field of the equation on the lattice at the N times, (N, C, H, W) float64.

    exp(m) obeys the heat equation (Cole & Hopf): it is blurred by a Gaussian of variance
    (sigma^(2 t) - sigma^(2 epsilon)) / (2 ln sigma), with no flux through the border.
    """
    (m0,), t = _check(torch.as_tensor(m0)[None], sigma, dh), times(steps).numpy()
    variance = (sigma ** (2 * t) - sigma ** (2 * t[0])) / (2 * np.log(sigma))
    modes = [(2 - 2 * np.cos(np.pi * np.arange(n) / n)) / dh**2 for n in m0.shape[-2:]]
    decay = np.exp(-variance[:, None, None, None] / 2 * (modes[0][:, None] + modes[1]))
    density = fft.idctn(decay * fft.dctn(m0.exp().numpy(), axes=(-2, -1)), axes=(-2, -1))
    return torch.from_numpy(density).log()


def _check(m0: Tensor, sigma: float, dh: float) -> Tensor:
    """Return fields (n, C, H, W) as float64 numbers on the CPU."""
    check_sigma(sigma)
    number("dh", dh, above=0)
    m0 = torch.as_tensor(m0).detach().cpu().double()
    if m0.ndim != 4 or 0 in m0.shape or m0.shape[2] != m0.shape[3] or m0.shape[2] < 2 or not torch.isfinite(m0).all():
        raise UserError(f"a field must be (C, H, H), H at least 2, and finite; this one is {tuple(m0.shape[1:])}")
    return m0
