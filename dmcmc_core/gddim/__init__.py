"""gDDIM: exponential integrators for any linear diffusion (Zhang, Tao & Chen 2023, arXiv 2206.05564).

A network tells epsilon(u, t), in the coordinates R of :mod:`dmcmc_core.linear_sde`: score = -R^-T epsilon. Each
step from time t to an earlier s is exact in the linear part of the diffusion, and takes epsilon for

* a polynomial in time through its last values (:func:`sample` with ``degree``; eq. 19), which a corrector may pass
  through the value at the predicted point as well;
* or what it would be for a single datum, with fresh noise of size lambda (``lam``; eq. 22).

Every step's coefficients are known before it starts: they are integrals over the diffusion alone.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.denoiser import RUNAWAY, Denoiser, Wrapper
from dmcmc_core.errors import TooFew, UserError, unknown
from dmcmc_core.linear_sde import BDM, CLD, LinearSDE, as_time
from dmcmc_core.quadrature import gauss
from dmcmc_core.streams import Streams

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""(u of shape (B, ...), t of shape ()) -> epsilon like u."""
Noise = Callable[[Tensor], Tensor]

PANELS = 6
"""Pieces of a step, even in sqrt(t), for each of which the integrals have a Gauss rule of their own."""


# ---- coefficients ----------------------------------------------------------------------------------------------------


def predictor_coefficients(sde: LinearSDE, grid: Tensor, degree: int, root: str = "R") -> list[Tensor]:
    """C_ij of eq. 19, what epsilon at the last times counts in each step: u_s = Psi(s, t) u_t + sum_j C_j epsilon_j.

    Args:
        grid: (N + 1,) descending times.
        degree: of the polynomial through the last ``degree`` + 1 values; the first steps, which have fewer, take all.
        root: ``R``, or ``L`` to extrapolate epsilon in the Cholesky coordinates instead (paper, Table 1).

    Returns:
        N tensors (degree_used + 1, *block) float64, the newest value first.

    Raises:
        UserError: a grid that does not descend or leaves the diffusion's times, a degree below 0.
    """
    grid = check(sde, grid, degree)
    root = _check_root(sde, root)
    return list(_predictor(sde, tuple(grid.tolist()), degree, root))


def corrector_coefficients(sde: LinearSDE, grid: Tensor, degree: int, root: str = "R") -> list[Tensor]:
    """As :func:`predictor_coefficients`, of a polynomial that also goes through the value at the end of the step.

    Returns:
        N tensors (degree_used + 1, *block) float64, the predicted point first, then the newest value.
    """
    grid = check(sde, grid, degree)
    root = _check_root(sde, root)
    return list(_corrector(sde, tuple(grid.tolist()), degree, root))


@functools.lru_cache(maxsize=256)  # by value: a diffusion is equal to one with equal constants
def _predictor(sde: LinearSDE, grid: tuple[float, ...], degree: int, root: str) -> tuple[Tensor, ...]:
    return tuple(
        _weights(sde, t, s, grid[max(0, i - degree) : i + 1][::-1], root)
        for i, (t, s) in enumerate(itertools.pairwise(grid))
    )


@functools.lru_cache(maxsize=256)
def _corrector(sde: LinearSDE, grid: tuple[float, ...], degree: int, root: str) -> tuple[Tensor, ...]:
    return tuple(
        _weights(sde, t, s, (s, *grid[max(0, i - degree + 1) : i + 1][::-1][:degree]), root)
        for i, (t, s) in enumerate(itertools.pairwise(grid))
    )


@functools.lru_cache(maxsize=4096)
def _transition(sde: LinearSDE, s: float, t: float) -> Tensor:
    return sde.Psi(s, t)


def _weights(sde: LinearSDE, t: float, s: float, nodes: Sequence[float], root: str) -> Tensor:
    """int_t^s 1/2 Psi(s, tau) G G^T(tau) K(tau)^-T l_j(tau) dtau for the Lagrange polynomials l_j of the nodes.

    With K = R the integrand is d(Psi(s, tau) R(tau)) / dtau times l_j, and by parts no inverse is left. Integrals are
    taken in sqrt(tau), as R grows like it where a diffusion knows its data exactly at 0.
    """
    points, weights = gauss()
    edges = torch.linspace(math.sqrt(t), math.sqrt(s), PANELS + 1, dtype=torch.float64)
    at = (edges[:-1, None] + edges.diff()[:, None] * points).flatten()
    weights, tau = (edges.diff()[:, None] * weights).flatten() * 2 * at, at**2
    ends = torch.tensor([t, s], dtype=torch.float64)
    of_step = sde.product(sde.Psi(s, ends), sde.R(ends))
    if root == "R":
        inside = sde.product(sde.Psi(s, tau), sde.R(tau))
    else:
        inside = sde.product(sde.Psi(s, tau), sde.GG(tau)) / 2
        inside = sde.product(inside, sde.transpose(sde.inverse(getattr(sde, root)(tau))))
    made = []
    for j in range(len(nodes)):
        if root == "R":
            first, last = sde.weigh(_lagrange(nodes, j, ends), of_step)
            made.append(last - first - sde.weigh(weights * _lagrange_slope(nodes, j, tau), inside).sum(0))
        else:
            made.append(sde.weigh(weights * _lagrange(nodes, j, tau), inside).sum(0))
    return torch.stack(made)


def _lagrange(nodes: Sequence[float], j: int, t: Tensor, without: Sequence[int] = ()) -> Tensor:
    """The polynomial that is 1 at node j and 0 at the others, but for the factors ``without``."""
    others = [node for k, node in enumerate(nodes) if k != j and k not in without]
    return math.prod(((t - node) / (nodes[j] - node) for node in others), start=torch.ones_like(t))


def _lagrange_slope(nodes: Sequence[float], j: int, t: Tensor) -> Tensor:
    others = [k for k in range(len(nodes)) if k != j]
    return sum((_lagrange(nodes, j, t, (k,)) / (nodes[j] - nodes[k]) for k in others), start=torch.zeros_like(t))


def stochastic_covariance(sde: LinearSDE, t: float, s: float, lam: float) -> Tensor:
    """P of eq. 22-23, the covariance of the noise of a step from s down to t: R(t) (1 - X X^T) R(t)^T, (*block).

    X is :meth:`dmcmc_core.linear_sde.LinearSDE.stretch`; the paper leaves P as an ordinary differential equation. P = 0
    at lam = 0; at lam = 1 on VP it is the variance of DDPM's ancestral sampling.

    Raises:
        UserError: a time that is no number or outside the diffusion's, t not below s, lam below 0.
    """
    _check_lam(lam)
    times = check(sde, [_time("s", s), _time("t", t)], 0)
    stretch, root = sde.stretch(times[1], times[0], lam), sde.R(times[1])
    return sde.product(sde.product(root, sde.one - sde.product(stretch, sde.transpose(stretch))), sde.transpose(root))


def released_covariance(sde: CLD, t: float, s: float, lam: float) -> Tensor:
    """What the published code has in the place of P for CLD: its equation lacks a transpose, P' = F^ P + P F^ - noise.

    Not symmetric; drawn from by its singular values, so that noise has the covariance (P P^T)^(1/2), which is returned.
    That is far too much at low noise. ``sample(..., released=True)`` draws from it, and adds none in the last step.
    """
    _check_lam(lam)
    s, t = check(sde, [_time("s", s), _time("t", t)], 0).tolist()

    def rate(tau: float, flat) -> Any:
        p = torch.from_numpy(flat.reshape(2, 2))
        noise, sigma = sde.GG(tau), sde.Sigma(tau)
        drift = sde.F(tau) + (1 + lam**2) / 2 * noise @ torch.linalg.inv(sigma)
        return (drift @ p + p @ drift - lam**2 * noise).numpy().ravel()

    made = solve_ivp(rate, (s, t), [0.0] * 4, method="DOP853", rtol=1e-9, atol=1e-14)
    left, size, _ = torch.linalg.svd(torch.from_numpy(made.y[:, -1].reshape(2, 2)))
    return left @ size.diag() @ left.mT


class FromDenoiser(Wrapper):
    """What :func:`from_denoiser` returns: (u, t) -> epsilon, with all that the denoiser tells of itself."""

    def __init__(self, sde: LinearSDE, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.sde = sde
        low, high = getattr(denoiser, "data_range", (-1.0, 1.0))
        self.low, high = (low, high) if math.isfinite(high - low) else (-1.0, 1.0)  # a mixture has no bounds
        self.scale, self.about = (high - self.low) / 2, getattr(denoiser, "mean", None)
        self.coefficients = functools.lru_cache(maxsize=1024)(lambda t: (sde.inverse(sde.R(t)), sde.gain(t)))

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        sde, denoiser = self.sde, self.denoiser
        x, sigma = sde.observation(u, t)
        x, sigma = self.low + self.scale * (x + 1), self.scale * sigma
        beyond = min(1.0, denoiser.sigma_max / sigma.item())
        sigma = sigma.clamp(min=getattr(denoiser, "sigma_min", 0.0))
        about = 0.0 if self.about is None else self.about.to(x)
        clean = denoiser(about + beyond * (x - about), (beyond * sigma).to(x).expand(len(x)))
        clean = (about + beyond * (clean - about) - self.low) / self.scale - 1
        inverse, gain = self.coefficients(float(t))  # a sampler asks for the same times with the next images
        return sde.apply(inverse, u - sde.apply(gain, sde.lift(clean)))


def from_denoiser(sde: LinearSDE, denoiser: Denoiser) -> FromDenoiser:
    """epsilon of a diffusion on images in [-1, 1] from a denoiser of variance-exploding noise, trained or exact.

    Nothing is trained, nor approximated: E[x_0 | u] is D of :meth:`dmcmc_core.linear_sde.LinearSDE.observation`, and
    epsilon = R^-1 (u - Psi E[x_0 | u]). Beyond the denoiser's levels alone it is not: above sigma_max, where noise has
    long drowned the data, D is taken for linear in x - mean, as it is of Gaussian data; below sigma_min, for D there.

    Raises:
        UserError: for BDM, whose noise is not that of any denoiser.
    """
    if isinstance(sde, BDM):
        raise UserError("BDM has noise of its own in every frequency, which no denoiser of white noise knows")
    return FromDenoiser(sde, denoiser)


# ---- samplers --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
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
    """u at the first time of a grid, taken to its last by gDDIM.

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
        root: coordinates in which epsilon is extrapolated; the network's are always R.
        history: values of epsilon at the times ``earlier``, which lie before ``grid[0]`` on the way, newest first.
        last: one more denoising from the last time to 0: ``clean``, the predicted datum, or ``euler``, a step of the
            reverse diffusion without its noise, as published. One call; None is none.
        released: the covariance of the published code, for CLD.
        noise: maps a tensor to normals like it (None: torch's global generator).

    Returns:
        (B, ...) in the dtype of ``u``, at least float32.

    Raises:
        UserError: a grid, degree, lambda or option outside its range, or a network whose answer is no finite tensor
            of the state's shape.
    """
    sde.check_state(u)
    _check_lam(lam)
    _check_choice("corrector", corrector)
    _check_choice("released", released)
    if degree is None:
        degree = 0 if lam else min(2, len(check(sde, grid, 0)) - 2)
    if lam and (degree or corrector):
        raise UserError(f"noise of lam={lam:g} goes with degree 0 and no corrector, not with degree {degree}")
    if released and not isinstance(sde, CLD):
        raise UserError("released=True is the covariance that the published code has for CLD alone")
    root = _check_root(sde, root)
    if len(history) != len(earlier):
        raise UserError(
            f"history has {len(history)} values for {len(earlier)} times of earlier: one for each is needed"
        )
    grid = check(sde, grid, degree)
    times = (*reversed([float(t) for t in earlier]), *grid.tolist())
    check(sde, torch.tensor(times, dtype=torch.float64), degree)
    u, noise = u.to(torch.promote_types(u.dtype, torch.float32)), noise or torch.randn_like
    past = [_in_root(sde, e.to(u), float(t), root) for e, t in zip(history, earlier, strict=True)]
    predicting = _predictor(sde, times, degree, root)[len(earlier) :]
    correcting = _corrector(sde, times, degree, root)[len(earlier) :] if corrector else [None] * len(predicting)
    pairs = list(itertools.pairwise(grid.tolist()))
    for (t, s), weights, others in zip(pairs, predicting, correcting, strict=True):
        here = _in_root(sde, evaluate(sde, epsilon_model, u, t), t, root)
        past, final = [here, *past][: degree + 1], (t, s) == pairs[-1]
        if lam:
            u = _noisy_step(sde, u, here, t, s, lam, noise, released and final, released)
            continue
        linear = sde.apply(_transition(sde, s, t), u)
        u = linear + _weighted(sde, weights, past)
        if corrector and not final:
            there = _in_root(sde, evaluate(sde, epsilon_model, u, s), s, root)
            u = linear + _weighted(sde, others, [there, *past])
    return u if last is None else finish(sde, epsilon_model, u, pairs[-1][1], last)


def _weighted(sde: LinearSDE, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    return sum(sde.apply(c, e) for c, e in zip(weights, values, strict=False))


def _noisy_step(sde, u, epsilon, t, s, lam, noise, without, released):
    """u_s = Psi (u_t - R_t eps) + R_s X eps + P^(1/2) z: eq. 22, as Psi^(s, t) R_t = R_s X."""
    stretch = sde.stretch(s, t, lam)
    mean = sde.apply(sde.Psi(s, t), u - sde.apply(sde.R(t), epsilon))
    mean = mean + sde.apply(sde.product(sde.R(s), stretch), epsilon)
    if without:
        return mean
    covariance = (released_covariance if released else stochastic_covariance)(sde, s, t, lam)
    return mean + sde.apply(sde.root(covariance), noise(u))


def finish(sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, t: float, how: str) -> Tensor:
    """From time t to 0 in one call: ``clean``, the datum in (u - R eps), or ``euler``, u - t (F u + G G^T R^-T eps)."""
    if how not in ("clean", "euler"):
        raise UserError(f"last must be None, 'clean' or 'euler', not {how!r}")
    epsilon = evaluate(sde, epsilon_model, u, t)
    if how == "clean":
        return sde.apply(sde.inverse(sde.gain(t)), u - sde.apply(sde.R(t), epsilon))
    return u - t * (sde.apply(sde.F(t), u) - sde.apply(sde.GG(t), _score(sde, epsilon, t)))


def evaluate(sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, t: float) -> Tensor:
    """epsilon(u, t) in the dtype of the state, found to be finite and of its shape."""
    epsilon = epsilon_model(u, torch.tensor(t, dtype=torch.float64))
    if not isinstance(epsilon, Tensor) or not epsilon.is_floating_point():
        got = f"numbers of {epsilon.dtype}" if isinstance(epsilon, Tensor) else f"a {type(epsilon).__name__}"
        raise UserError(f"the network must answer with a tensor of floating-point numbers like the state, not {got}")
    if epsilon.shape != u.shape:
        raise UserError(
            f"the network must answer a state of shape {tuple(u.shape)} with one epsilon of that shape, "
            f"{sde.parts} channels for each of the images, not {tuple(epsilon.shape)}"
        )
    if not epsilon.isfinite().all() and u.abs().max() < RUNAWAY:  # a state that has run away is no fault of the network
        raise UserError(
            f"the network's epsilon is not finite at t = {t:g}, for a finite state: mend the network, or keep to the "
            "times it was trained on"
        )
    return epsilon.to(u)


def _score(sde: LinearSDE, epsilon: Tensor, t: float) -> Tensor:
    return -sde.apply(sde.transpose(sde.inverse(sde.R(t))), epsilon)


def _in_root(sde: LinearSDE, epsilon: Tensor, t: float, root: str) -> Tensor:
    """epsilon of R in the coordinates of another root of Sigma: K^T R^-T epsilon."""
    if root == "R":
        return epsilon
    turn = sde.product(sde.transpose(getattr(sde, root)(t)), sde.transpose(sde.inverse(sde.R(t))))
    return sde.apply(turn, epsilon)


class Drawn(NamedTuple):
    """Images (n, C, H, W), data in [0, 1] and not yet clipped to it, and the network evaluations for each, counted."""

    images: Tensor
    nfe: float


def draw(
    model: Epsilon,
    sampler: str,
    nfe: int,
    num: int,
    seed: int | Sequence[int],
    *,
    kappa: float = 2.0,
    last: str | None = "clean",
    **options: Any,
) -> Drawn:
    """Images of a network (or exact epsilon) of images in [-1, 1], by at most ``nfe`` evaluations each.

    Args:
        model: knows ``sde`` and ``shape``: :class:`dmcmc_core.nets.linear.EpsilonNet`, or :func:`from_denoiser`.
        sampler: one of :data:`SAMPLERS`.
        seed: image i depends on (seed, i) alone, but for ``rk45``; of several seeds ``num`` images each, one seed after
            the other and evaluated together, which fills the blocks of a network.
        kappa: of the grid, :func:`dmcmc_core.schedules.power`, from the diffusion's t_max to its t_min.
        last, options: of the sampler.

    Raises:
        UserError: an unknown sampler, or a budget too small for it.
    """
    if sampler not in SAMPLERS:
        raise unknown("sampler of a linear diffusion", sampler, SAMPLERS)
    if not hasattr(model, "sde"):
        raise UserError("the model of a linear diffusion knows it as .sde: load_epsilon or from_denoiser give one")
    for name, value in (("nfe", nfe), ("num", num)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise UserError(f"{name} must be a whole number, at least 1, not {value!r}")
    known = inspect.signature(SAMPLERS[sampler]).parameters
    for name in options:
        if name not in known:
            raise unknown(f"option of {sampler}", name, list(known)[4:])
    counted = count(model)
    steps = steps_of(sampler, nfe - (last is not None), **options)
    if sampler == "rk45" and "tol" not in options:
        options["tol"] = _tolerance(model, nfe, kappa, last)
    streams = [Streams(one, "image", range(num)) for one in ([seed] if isinstance(seed, numbers.Integral) else seed)]

    def noise(like: Tensor) -> Tensor:
        return torch.cat([stream(rows) for stream, rows in zip(streams, like.split(num), strict=True)])

    made = images(counted, sampler, prior(model, len(streams) * num, noise), steps, noise, kappa, last, **options)
    return Drawn(made, counted.rows / len(made))


def prior(model: Epsilon, num: int, noise: Noise, device: str | torch.device = "cpu") -> Tensor:
    """States that sampling begins with, (num, parts C, H, W)."""
    sde, shape = model.sde, model.shape
    return sde.apply(sde.prior, noise(torch.empty(num, sde.parts * shape[0], *shape[1:], device=device)))


def images(
    model: Epsilon,
    sampler: str,
    u: Tensor,
    steps: int,
    noise: Noise,
    kappa: float = 2.0,
    last: str | None = "clean",
    **options: Any,
) -> Tensor:
    """Images (B, C, H, W), data in [0, 1], from states of the prior, by so many steps of a sampler and ``last``."""
    sde = model.sde
    u = SAMPLERS[sampler](sde, model, u, times(sde, steps, kappa), last=last, noise=noise, **options)
    return (sde.drop(u) + 1) / 2


def times(sde: LinearSDE, steps: int, kappa: float = 2.0) -> Tensor:
    """The published grid, (steps + 1,): from the diffusion's t_max to its t_min."""
    if isinstance(kappa, bool) or not isinstance(kappa, numbers.Real):
        raise UserError(f"kappa must be a number above 0, not {kappa!r:.40}")
    return schedules.power(steps, sde.t_max, sde.t_min, kappa)


def steps_of(sampler: str, nfe: int, corrector: bool = False, **_: Any) -> int:
    """The most steps that ``nfe`` evaluations pay for, the last denoising aside."""
    steps = (nfe + 1) // 2 if corrector else nfe // 2 if sampler == "heun" else nfe
    if steps < 1:
        least = 2 if sampler == "heun" else 1
        raise TooFew(f"{sampler} needs at least {least} NFE, the last denoising not counted: {nfe} are left for it")
    return steps


def options_of(sampler: str) -> set[str]:
    """Options of a sampler that are no state of a walk."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"noise", "history", "earlier"}


def check_options(model: Epsilon, sampler: str, steps: int, **options: Any) -> None:
    """UserError for what :func:`images` would refuse: it walks one state of zeros, and asks no network."""

    def still(u: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(u)

    still.sde = model.sde
    images(still, sampler, prior(model, 1, torch.zeros_like), steps, torch.zeros_like, **options)


def count(model: Epsilon) -> Epsilon:
    """The same, with ``rows``: rows evaluated so far."""

    def counted(u: Tensor, t: Tensor) -> Tensor:
        counted.rows += len(u)
        return model(u, t)

    counted.rows, counted.sde = 0, getattr(model, "sde", None)
    return counted


def _tolerance(model: Epsilon, nfe: int, kappa: float, last: str | None) -> float:
    """The smallest of a row of tolerances whose cost is at most ``nfe`` for 64 images of another seed."""
    kept = None
    for tol in (10 ** (-k / 2) for k in range(1, 14)):
        if (used := _trial(model, tol, kappa, last)) > nfe:
            break
        kept = tol
    if kept is None:
        raise UserError(f"rk45 uses {used:.0f} NFE at its loosest tolerance: {nfe} are too few")
    return kept


@functools.lru_cache(maxsize=256)
def _trial(model: Epsilon, tol: float, kappa: float, last: str | None) -> float:
    """NFE of rk45 at a tolerance, the same for all budgets."""
    return draw(model, "rk45", 2, 64, -1, kappa=kappa, last=last, tol=tol).nfe


# ---- what gDDIM is compared with -------------------------------------------------------------------------------------


@torch.no_grad()
def euler_maruyama(
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    lam: float = 1.0,
    last: str | None = None,
    released: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """Euler-Maruyama on du = [F u - (1 + lam^2) / 2 G G^T score] dt + lam G dw (paper, eq. 6). One call a step.

    Args:
        released: (1 + lam) / 2 in the place of (1 + lam^2) / 2, as in the published code.

    Other arguments, and errors, as for :func:`sample`.
    """
    _check_lam(lam)
    _check_choice("released", released)
    sde.check_state(u)
    grid, noise = check(sde, grid, 0), noise or torch.randn_like
    share = (1 + (lam if released else lam**2)) / 2
    for t, s in itertools.pairwise(grid.tolist()):
        score = _score(sde, evaluate(sde, epsilon_model, u, t), t)
        drift = sde.apply(sde.F(t), u) - share * sde.apply(sde.GG(t), score)
        u = u + (s - t) * drift
        if lam:
            u = u + lam * math.sqrt(t - s) * sde.apply(sde.G(t), noise(u))
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


def slope(sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, t: float) -> Tensor:
    """du/dt of the probability flow, F u + 1/2 G G^T R^-T epsilon (eq. 7)."""
    score = _score(sde, evaluate(sde, epsilon_model, u, t), t)
    return sde.apply(sde.F(t), u) - sde.apply(sde.GG(t), score) / 2


@torch.no_grad()
def heun(
    sde: LinearSDE, epsilon_model: Epsilon, u: Tensor, grid: Tensor, *, last: str | None = None, noise=None
) -> Tensor:
    """Heun's method on the probability flow, in t. Two calls a step."""
    sde.check_state(u)
    grid = check(sde, grid, 0)
    for t, s in itertools.pairwise(grid.tolist()):
        d = slope(sde, epsilon_model, u, t)
        u = u + (s - t) / 2 * (d + slope(sde, epsilon_model, u + (s - t) * d, s))
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


@torch.no_grad()
def rk45(
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    tol: float = 1e-5,
    last: str | None = None,
    noise=None,
) -> Tensor:
    """Dormand-Prince 5(4) on the probability flow, in t, as published: one step size for the whole batch.

    Of the grid only the ends count. Every row depends on its batch mates.
    """
    if not 0 < tol < 1:
        raise UserError(f"tol must be above 0 and below 1, not {tol:g}")
    sde.check_state(u)
    grid = check(sde, grid, 0)

    def rate(t: float, y):
        state = torch.from_numpy(y).reshape(u.shape).to(u)
        return slope(sde, epsilon_model, state, float(t)).double().cpu().numpy().ravel()

    ends = grid[0].item(), grid[-1].item()
    made = solve_ivp(rate, ends, u.double().cpu().numpy().ravel(), method="RK45", rtol=tol, atol=tol)
    if not made.success:
        raise UserError(f"rk45 did not arrive at tol={tol:g}: {made.message}")
    u = torch.from_numpy(made.y[:, -1]).reshape(u.shape).to(u)
    return u if last is None else finish(sde, epsilon_model, u, ends[1], last)


@torch.no_grad()
def sscs(
    sde: CLD, epsilon_model: Epsilon, u: Tensor, grid: Tensor, *, last: str | None = None, noise: Noise | None = None
) -> Tensor:
    """Symmetric splitting for CLD: half a step of what is linear, exact; a step of the score; the other half.

    Dockhorn, Vahdat & Kreis 2022 (arXiv 2112.07068), Section 4. One call a step. Seen backwards, the linear part is the
    forward diffusion with velocities reversed, so it has that one's transition and noise with the signs of v turned.
    """
    if not isinstance(sde, CLD):
        raise UserError(f"sscs splits the velocities of CLD, which {type(sde).__name__} has not")
    sde.check_state(u)
    grid, noise = check(sde, grid, 0), noise or torch.randn_like
    turn = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    rest = torch.linalg.inv(sde.prior @ sde.prior)  # of the stationary covariance

    def half(u: Tensor, width: float) -> Tensor:
        added = turn * sde.added(torch.tensor(width, dtype=torch.float64))
        return sde.apply(turn * sde.Psi(width, 0.0), u) + sde.apply(sde.root(added), noise(u))

    for t, s in itertools.pairwise(grid.tolist()):
        u = half(u, (t - s) / 2)
        middle = (t + s) / 2
        score = _score(sde, evaluate(sde, epsilon_model, u, middle), middle)
        u = u + (t - s) * sde.apply(sde.GG(middle), score + sde.apply(rest, u))
        u = half(u, (t - s) / 2)
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


@torch.no_grad()
def ancestral(
    sde: LinearSDE,
    epsilon_model: Epsilon,
    u: Tensor,
    grid: Tensor,
    *,
    last: str | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Ancestral sampling: the posterior of u_s given u_t and the predicted datum, for each coefficient by itself.

    Hoogeboom & Salimans 2023 (arXiv 2209.05557), eq. 17-19, for BDM; DDPM's for VP. One call a step. The last step, as
    published, is the mean.
    """
    if isinstance(sde, CLD):
        raise UserError("ancestral sampling needs coefficients that commute, which those of CLD do not: use sscs")
    sde.check_state(u)
    grid, noise = check(sde, grid, 0), noise or torch.randn_like
    pairs = list(itertools.pairwise(grid.tolist()))
    for t, s in pairs:
        epsilon, psi = evaluate(sde, epsilon_model, u, t), sde.Psi(t, s)
        added = sde.Sigma(t) - psi**2 * sde.Sigma(s)  # variance of u_t given u_s
        kept = psi * sde.Sigma(s) / sde.Sigma(t)  # of u_t in the mean of u_s
        clean = sde.apply(sde.Psi(s, t), u - sde.apply(sde.R(t), epsilon))  # Psi(s, 0) times the predicted datum
        u = sde.apply(kept, u) + sde.apply(added / sde.Sigma(t), clean)
        if (t, s) != pairs[-1]:
            u = u + sde.apply((added * sde.Sigma(s) / sde.Sigma(t)).sqrt(), noise(u))
    return u if last is None else finish(sde, epsilon_model, u, grid[-1].item(), last)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "gddim": sample,
    "euler_maruyama": euler_maruyama,
    "heun": heun,
    "rk45": rk45,
    "sscs": sscs,
    "ancestral": ancestral,
}

# ---- checks ----------------------------------------------------------------------------------------------------------


def check(sde: LinearSDE, grid: Tensor, degree: int) -> Tensor:
    """The grid in float64, if a sampler can walk it; UserError if not."""
    try:
        grid = torch.as_tensor(grid, dtype=torch.float64).cpu()
    except (TypeError, ValueError) as error:
        raise UserError(f"grid must be descending times, (N + 1,), not {grid!r:.60}") from error
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError(f"grid must be descending times, (N + 1,) with N at least 1, not of shape {tuple(grid.shape)}")
    grid = as_time(grid, 0.0, 1.0)
    if not (grid.diff() < 0).all():
        raise UserError(f"grid must descend from the last time to the first, not go {grid[:3].tolist()} ...")
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
        raise UserError(f"degree must be a whole number from 0, not {degree!r}")
    if degree > len(grid) - 2:
        raise UserError(
            f"degree {degree} needs at least {degree + 1} steps, and the grid has {len(grid) - 1}: "
            f"at most {len(grid) - 2} is possible"
        )
    return grid


def _check_root(sde: LinearSDE, root: str) -> str:
    """``R`` too where L is the same."""
    if root not in ("R", "L"):
        raise UserError(f"root must be 'R' or 'L', not {root!r}")
    return root if isinstance(sde, CLD) else "R"


def _check_choice(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {value!r:.40}")


def _time(name: str, t: float) -> float:
    """One number of Python, NumPy or torch, as a float."""
    one = t.item() if getattr(t, "ndim", None) == 0 else t
    if isinstance(one, bool) or not isinstance(one, numbers.Real):
        raise UserError(f"{name} must be one time, a number between 0 and 1, not {t!r:.60}")
    return float(one)


def _check_lam(lam: float) -> None:
    if isinstance(lam, bool) or not isinstance(lam, numbers.Real) or not 0 <= lam < float("inf"):
        raise UserError(f"lambda must be at least 0 and finite, not {lam!r:.60}")
