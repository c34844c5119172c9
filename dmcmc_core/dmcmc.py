"""Denoising MCMC: chains on (x, sigma), then the reverse diffusion from the least noisy states they pass through.

Kim & Ye 2023 (arXiv 2209.14593). C chains run on for ever; every window of ``n_skip`` steps yields one starting point
per chain, and an integrator takes it from its own noise level to an image. The chains never see that image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import integrators, schedules
from dmcmc_core.denoiser import Denoiser, like, walk
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.mcmc import ChainState, Info, Kernel, StepSize, gibbs, hamiltonian, langevin, mala, residual_gibbs, then
from dmcmc_core.noise_level import RULES, NoiseLevelPosterior, ResidualPosterior, expected_residual, log_levels
from dmcmc_core.streams import Drawn, Randomness, Streams

KERNELS = ("langevin", "mala", "hamiltonian", "underdamped")
CALIBRATION = 8
"""Images that a :class:`ResidualPosterior` is calibrated on, each at NODES levels."""
NODES = 8


AnyPosterior = NoiseLevelPosterior | ResidualPosterior


@dataclass(frozen=True)
class ChainSettings:
    """Everything that a chain depends on, beside its model, posterior, seed and number.

    Attributes:
        chains: C, chains side by side; at least 1.
        n_skip: steps in a window, at least 1; one image leaves every chain per window.
        eta: step size, above 0; in squared data units or in units of sigma^2, see ``step``.
        step: unit of eta, ``constant`` (squared data units, the paper's) or ``sigma2`` (the present sigma^2).
        kernel: ``langevin`` (the paper's), ``mala`` (exact; models with log_prob), ``hamiltonian`` or ``underdamped``
            (exact where the model has log_prob, unadjusted elsewhere); see :mod:`dmcmc_core.mcmc`.
        leapfrogs: of a ``hamiltonian`` step, at least 1.
        persistence: share of the momentum that an ``underdamped`` step keeps, at least 0 and below 1.
        rule: ``draw`` the noise level from its posterior (the paper) or take its ``argmax`` (the paper's code).
        pick: where integration starts: the ``smallest`` noise level among the state at the beginning of the window and
            the n_skip after it, or the ``last`` state.
        published: if ``true``, as the published code: the earliest of equal levels, and the state at the beginning of
            the window even if the window before ended on it and emitted it already. Otherwise the latest, and no state
            twice.
        start: mean of the noise that warm-up begins with: ``zero`` or the data's ``mean``.
        warmup: integrator that makes the first images, from sigma_max; one with a fixed number of calls.
        warmup_levels: noise levels of that integration, at least 1.
        renoise: noise added to those images, where the chains begin, in data units; above 0, at most sigma_max.
        warmup_steps: chain steps before the first window, at least 0.
        warmup_eta: eta of the first half of them, above 0; ``None`` is eta itself.

    Raises:
        UserError: for a setting of another type or outside its range.
    """

    chains: int = 64
    n_skip: int = 5
    eta: float = 0.3
    step: str = "sigma2"
    kernel: str = "langevin"
    leapfrogs: int = 3
    persistence: float = 0.9
    rule: str = "draw"
    pick: str = "smallest"
    published: bool = False
    start: str = "mean"
    warmup: str = "dpmpp_2m"
    warmup_levels: int = 6
    renoise: float = 2.0
    warmup_steps: int = 0
    warmup_eta: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("n_skip", 1), ("leapfrogs", 1), ("warmup_levels", 1), ("warmup_steps", 0)):
            integrators.number(name, getattr(self, name), least=least, whole=True)
        for name in ("eta", "renoise", *(["warmup_eta"] if self.warmup_eta is not None else [])):
            integrators.number(name, getattr(self, name), above=0)
        integrators.number("persistence", self.persistence, least=0, below=1)
        if self.kernel not in KERNELS:
            raise unknown("kernel", self.kernel, KERNELS)
        if self.rule not in tuple(RULES):
            raise unknown("rule for the noise level", self.rule, RULES)
        integrators.one_of("step", self.step, "constant", "sigma2")
        integrators.one_of("pick", self.pick, "smallest", "last")
        integrators.one_of("start", self.start, "zero", "mean")
        integrators.one_of("published", self.published, True, False)
        integrators.INTEGRATORS[str(self.warmup)]

    @property
    def first_calls(self) -> int:
        """Network calls of the images that warm-up begins with."""
        entry = integrators.INTEGRATORS[self.warmup]
        if entry.calls is None:
            raise UserError(
                f"warmup={self.warmup!r} adapts its steps; choose an integrator with a fixed number of calls"
            )
        return entry.calls(self.warmup_levels)

    def step_calls(self, residual: bool = False) -> int:
        """Network calls of a step; with the ``residual`` posterior a Langevin step shares its one call."""
        calls = {"langevin": 1, "mala": 2, "hamiltonian": self.leapfrogs + 1, "underdamped": 2}[self.kernel]
        return calls + (residual and self.kernel != "langevin")

    def warmup_calls(self, residual: bool = False) -> int:
        """Network calls of a chain before its first window."""
        return self.first_calls + residual + self.warmup_steps * self.step_calls(residual)

    def window_calls(self, residual: bool = False) -> int:
        """Network calls of a chain in one window."""
        return self.n_skip * self.step_calls(residual)


PUBLISHED: dict[str, Any] = {
    "chains": 200,
    "step": "constant",
    "rule": "argmax",
    "published": True,
    "start": "zero",
    "warmup": "heun_churn",
    "warmup_levels": 19,
    "renoise": 0.5,
    "warmup_steps": 20,
    "warmup_eta": 0.5,
}
"""The settings of the published CIFAR-10 code; its eta and n_skip were never published."""


class Chain(NamedTuple):
    """Chains between two windows: all that has to be saved to go on exactly.

    ``emitted`` (B,) tells whose present state was the last window's starting point.
    """

    state: ChainState
    emitted: Tensor
    drawn: Drawn


class Window(NamedTuple):
    """What a window yields.

    ``start``: the starting points; ``chosen`` (B,): which candidate each is, 0 the state before the window, n_skip the
    last one; ``sigmas`` (n_skip + 1, B): the noise levels of the candidates; ``acceptance`` (B,): mean over the steps.
    """

    start: ChainState
    chosen: Tensor
    sigmas: Tensor
    acceptance: Tensor


def kernel(denoiser: Denoiser, posterior: AnyPosterior, settings: ChainSettings, eta: StepSize) -> Kernel:
    """One step of the chain: in x at fixed sigma, then sigma; Denoising Langevin Gibbs with the published settings."""
    step, adjusted = settings.step, hasattr(denoiser, "log_prob")
    if settings.kernel == "langevin":
        in_x = langevin(denoiser, eta, step)
    elif settings.kernel == "mala":
        in_x = mala(denoiser, eta, step)
    elif settings.kernel == "hamiltonian":
        in_x = hamiltonian(denoiser, eta, step, leapfrogs=settings.leapfrogs, adjusted=adjusted)
    else:
        in_x = hamiltonian(denoiser, eta, step, persistence=settings.persistence, adjusted=adjusted)
    return then(in_x, in_sigma(denoiser, posterior, settings))


def in_sigma(denoiser: Denoiser, posterior: AnyPosterior, settings: ChainSettings) -> Kernel:
    """The chain's step in sigma."""
    if isinstance(posterior, ResidualPosterior):
        return residual_gibbs(denoiser, posterior, settings.rule)
    return gibbs(posterior, settings.rule)


def prior(
    denoiser: Denoiser,
    rng: Randomness,
    rows: int,
    start: str,
    device: str | torch.device = "cpu",
    preconditioned: bool = False,
) -> Tensor:
    """Where integration from pure noise begins: N(m, sigma_max^2 I), (rows, *shape), m = 0 or the data's mean.

    ``preconditioned`` begins with m + sigma_max M z instead, where the denoiser has an M (Ma et al. 2022).
    """
    m = torch.zeros(denoiser.shape, device=device)
    if start == "mean":
        if getattr(denoiser, "mean", None) is None:
            raise UserError("start='mean' needs a model that knows its data's mean; use start='zero'")
        m = denoiser.mean.to(m)
    z = rng(m.expand(rows, *denoiser.shape))
    return m + denoiser.sigma_max * (walk(denoiser).apply(z) if preconditioned else z)


def first_images(
    denoiser: Denoiser, settings: ChainSettings, rng: Streams, device: str | torch.device = "cpu"
) -> Tensor:
    """Images straight from noise, one per stream: where chains begin, and what a residual is calibrated on."""
    entry = integrators.INTEGRATORS[settings.warmup]
    grid = schedules.SCHEDULES[entry.schedule](settings.warmup_levels, denoiser.sigma_max, denoiser.sigma_min)
    x = prior(denoiser, rng, len(rng.indices), settings.start, device, entry.preconditioned)
    return entry(denoiser, x, grid, noise=rng)


def calibrated(
    denoiser: Denoiser, settings: ChainSettings, seed: int, device: str | torch.device = "cpu"
) -> ResidualPosterior:
    """The posterior that needs no classifier, for any denoiser: CALIBRATION images, NODES calls on each of them."""
    rng = Streams(seed, "calibration", range(CALIBRATION))
    levels = log_levels(denoiser.sigma_max, denoiser.sigma_min).to(device)
    images = first_images(denoiser, settings, rng, device)
    return ResidualPosterior(levels, expected_residual(denoiser, images, levels, rng, NODES))


def warm_up(
    denoiser: Denoiser,
    posterior: AnyPosterior,
    settings: ChainSettings,
    rng: Streams,
    device: str | torch.device = "cpu",
) -> Chain:
    """Chains that have reached the joint distribution of (x, sigma): images from noise, noise added, some steps."""
    x = first_images(denoiser, settings, rng, device)
    x = x + settings.renoise * rng(x)
    state = ChainState(x, x.new_full((len(x),), settings.renoise))
    state, _ = in_sigma(denoiser, posterior, settings)(state, rng)
    for i in range(settings.warmup_steps):
        early = i < settings.warmup_steps // 2 and settings.warmup_eta is not None
        step = kernel(denoiser, posterior, settings, settings.warmup_eta if early else settings.eta)
        state, _ = step(state, rng)
    return Chain(state, torch.zeros(len(x), dtype=torch.bool, device=x.device), rng.state)


def windows(step: Kernel, chain: Chain, settings: ChainSettings, rng: Streams) -> Iterator[tuple[Window, Chain]]:
    """Endless windows of ``n_skip`` steps, each with the chain as it then is. Nothing runs before it is asked for."""
    rng.state = chain.drawn
    state, emitted = chain.state, chain.emitted
    while True:
        states, infos = [state], []
        for _ in range(settings.n_skip):
            state, info = step(state, rng)
            states.append(state)
            infos.append(info)
        window = pick(states, infos, settings, emitted)
        emitted = window.chosen == settings.n_skip
        yield window, Chain(state, emitted, rng.state)


def pick(states: list[ChainState], infos: list[Info], settings: ChainSettings, emitted: Tensor) -> Window:
    """The starting point among the states of a window; see ``pick`` and ``published`` of :class:`ChainSettings`."""
    sigmas = torch.stack([s.sigma for s in states])
    candidates = sigmas.clone()
    if not settings.published:
        candidates[0, emitted] = torch.inf
    if settings.pick == "last":
        chosen = torch.full_like(emitted, len(states) - 1, dtype=torch.int64)
    elif settings.published:
        chosen = candidates.argmin(0)  # the first of equal ones
    else:
        chosen = len(states) - 1 - candidates.flip(0).argmin(0)
    x = states[-1].x
    for i, s in enumerate(states[:-1]):
        x = torch.where(like(chosen == i, x) > 0, s.x, x)
    sigma = sigmas.gather(0, chosen[None])[0]
    return Window(ChainState(x, sigma), chosen, sigmas, torch.stack([i.acceptance for i in infos]).mean(0))


def denoising_mcmc(
    denoiser: Denoiser,
    posterior: AnyPosterior,
    integrate: integrators.Integrator,
    levels: int,
    settings: ChainSettings = ChainSettings(),  # noqa: B008
    *,
    seed: int = 0,
    chain: Chain | None = None,
    first_window: int = 0,
    schedule: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Iterator[tuple[Tensor, Window, Chain]]:
    """Endless batches of images, one image per chain in each; Kim & Ye 2023 (arXiv 2209.14593).

    Args:
        integrate: an entry of :data:`dmcmc_core.integrators.INTEGRATORS`; ``options`` go to it.
        levels: noise levels of its grid, which starts at each sample's own sigma.
        chain, first_window: where an earlier iteration stopped, to go on exactly.
        schedule: name of the grid, in :data:`dmcmc_core.schedules.SCHEDULES`; None: the integrator's own.

    Yields:
        images (chains, *shape); the :class:`Window` they started from; the :class:`Chain` to go on from.
    """
    rng = Streams(seed, "chain", range(settings.chains))
    if chain is None:
        chain = warm_up(denoiser, posterior, settings, rng, device)
    step = kernel(denoiser, posterior, settings, settings.eta)
    for number, (window, after) in enumerate(windows(step, chain, settings, rng), start=first_window):
        noise = Streams(seed, "image", range(number * settings.chains, (number + 1) * settings.chains))
        yield (
            denoise(denoiser, window.start, integrate, levels, noise, schedule=schedule, **options),
            window,
            after,
        )


def denoise(
    denoiser: Denoiser,
    start: ChainState,
    integrate: integrators.Integrator,
    levels: int,
    noise: Randomness,
    *,
    schedule: str | None = None,
    **options: Any,
) -> Tensor:
    """Images from states of the chains: ``levels`` noise levels from each sample's own sigma, then 0."""
    grid = schedules.SCHEDULES[schedule or integrate.schedule](levels, start.sigma, denoiser.sigma_min)
    return integrate(denoiser, start.x, grid, noise=noise, **options)


def as_dict(settings: ChainSettings) -> dict[str, Any]:
    """The settings as plain values, for a manifest."""
    return asdict(settings)
