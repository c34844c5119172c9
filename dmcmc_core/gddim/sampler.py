"""gDDIM itself: predictor and corrector of any degree, or a step with fresh noise of size lambda."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dmcmc_core.denoiser import total
from dmcmc_core.errors import UserError
from dmcmc_core.gddim.checks import check, check_choice, check_lam, check_root
from dmcmc_core.gddim.coefficients import corrector_weights, predictor_weights, transition
from dmcmc_core.gddim.covariance import released_covariance, stochastic_covariance
from dmcmc_core.gddim.model import Epsilon, Noise, evaluate, finish
from dmcmc_core.linear_sde import CLD, LinearSDE


@torch.no_grad()
def sample(  # noqa: PLR0913  the paper's options, and those of its code
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    degree: int | None = None,
    lam: float = 0.0,
    corrector: bool = False,
    root: str = "R",
    history: Sequence[Tensor] = (),
    earlier: Sequence[float] = (),
    last: str | None = None,
    released: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """Take u from the first time of a grid to its last by gDDIM.

    One call of the network a step; with a corrector two, but for the last step, which is only predicted: 2 N - 1.

    Args:
        epsilon_model: (u, t) -> epsilon in the coordinates R. It sees states: for BDM DCT coefficients, which
            :class:`dmcmc_core.nets.linear.EpsilonNet` turns into pixels and back; for CLD (B, 2C, ...).
        u: (B, ...), distributed as the diffusion at ``grid[0]``; for BDM ``linear_sde.dct`` of noised images.
        grid: (N + 1,) descending times; :func:`dmcmc_core.schedules.power` makes the published one.
        degree: of the polynomial through the last values of epsilon (None: 2, as far as the grid allows, or 0 where
            ``lam`` is above 0). The first steps have fewer values, and a lower degree, unless there is a history.
        lam: 0 for the deterministic sampler; above it noise is added, 1 being the reverse diffusion. Degree 0 only.
        corrector: evaluate at the predicted point, and step again with it (PECE; Adams-Moulton for ``degree``).
        root: coordinates in which epsilon is extrapolated; the network's are always R, and so are those of ``lam``.
        history: values of epsilon at the times ``earlier``, which lie before ``grid[0]`` on the way, newest first.
        last: one more denoising from the last time to 0: ``clean``, the predicted datum, or ``euler``, a step of the
            reverse diffusion without its noise, as published. One call; None is none.
        released: the covariance of the published code, for CLD.
        noise: maps a tensor to normals like it (None: torch's global generator).

    Returns:
        (B, ...) in the dtype of ``u``, at least float32.

    Raises:
        UserError: an argument outside its range, or a network whose answer is no finite tensor like the state.
    """
    degree, root = _checked(sde, u, grid, degree, lam, corrector, released, root, len(history), len(earlier))
    grid, earlier = check(sde, grid, degree), [float(t) for t in earlier]
    u, noise = u.to(torch.promote_types(u.dtype, torch.float32)), noise or torch.randn_like
    past = [_in_root(sde, e.to(u), t, root) for e, t in zip(history, earlier, strict=True)]
    weights = _weights(sde, [*reversed(earlier), *grid.tolist()], degree, root, corrector)[len(earlier) :]
    pairs = list(itertools.pairwise(grid.tolist()))
    for (t, s), (predicting, correcting) in zip(pairs, weights, strict=True):
        here = _in_root(sde, evaluate(sde, epsilon_model, u, t), t, root)
        past, final = [here, *past][: degree + 1], (t, s) == pairs[-1]
        if lam:
            u = _noisy_step(sde, u, here, t, s, lam, None if released and final else noise, released)
            continue
        linear = sde.apply(transition(sde, s, t), u)
        u = linear + _weighted(sde, predicting, past)
        if corrector and not final:
            there = _in_root(sde, evaluate(sde, epsilon_model, u, s), s, root)
            u = linear + _weighted(sde, correcting, [there, *past])
    return u if last is None else finish(sde, epsilon_model, u, pairs[-1][1], last)


def _weights(sde: LinearSDE, times: list[float], degree: int, root: str, corrector: bool) -> list[tuple]:
    """Return the weights of predictor and corrector (None without) in each step from one of the times to the next."""
    check(sde, torch.tensor(times, dtype=torch.float64), degree)
    predicting = predictor_weights(sde, tuple(times), degree, root)
    correcting = corrector_weights(sde, tuple(times), degree, root) if corrector else [None] * len(predicting)
    return list(zip(predicting, correcting, strict=True))


def _checked(sde, u, grid, degree, lam, corrector, released, root, values, times) -> tuple[int, str]:  # noqa: PLR0913
    """Return the degree and the root that are meant; UserError for options that do not go together."""
    sde.check_state(u)
    check_lam(lam)
    check_choice("corrector", corrector)
    check_choice("released", released)
    if degree is None:
        degree = 0 if lam else min(2, len(check(sde, grid, 0)) - 2)
    if lam and (degree or corrector):
        raise UserError(f"noise of lam={lam:g} goes with degree 0 and no corrector, not with degree {degree}")
    if released and not isinstance(sde, CLD):
        raise UserError("released=True is the covariance that the published code has for CLD alone")
    root = check_root(sde, root)
    if lam and root != "R":
        raise UserError(f"noise of lam={lam:g} is defined in the coordinates R alone: leave root={root!r} out")
    if values != times:
        raise UserError(f"history has {values} values for {times} times of earlier: one for each is needed")
    return degree, root


def _weighted(sde: LinearSDE, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    return total(sde.apply(c, e) for c, e in zip(weights, values, strict=False))


def _noisy_step(sde, u, epsilon, t, s, lam, noise, released) -> Tensor:
    """Step by u_s = Psi (u_t - R_t eps) + R_s X eps + P^(1/2) z: eq. 22, as Psi^(s, t) R_t = R_s X.

    Without noise (None) the step is its mean.
    """
    stretch = sde.stretch(s, t, lam)
    mean = sde.apply(sde.Psi(s, t), u - sde.apply(sde.R(t), epsilon))
    mean = mean + sde.apply(sde.product(sde.R(s), stretch), epsilon)
    if noise is None:
        return mean
    covariance = (released_covariance if released else stochastic_covariance)(sde, s, t, lam)
    return mean + sde.apply(sde.root(covariance), noise(u))


def _in_root(sde: LinearSDE, epsilon: Tensor, t: float, root: str) -> Tensor:
    """Return epsilon of R in the coordinates of another root of Sigma: K^T R^-T epsilon."""
    if root == "R":
        return epsilon
    turn = sde.product(sde.transpose(getattr(sde, root)(t)), sde.transpose(sde.inverse(sde.R(t))))
    return sde.apply(turn, epsilon)
