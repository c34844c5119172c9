"""Denoising MCMC: chains on (x, sigma), then the reverse diffusion from the least noisy states they pass through.

Kim & Ye 2023 (arXiv 2209.14593). C chains run on for ever; every window of ``n_skip`` steps yields one starting point
per chain, and an integrator takes it from its own noise level to an image. The chains never see that image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import integrators, schedules
from dmcmc_core.chains import CALIBRATION, NODES, ChainSettings
from dmcmc_core.denoiser import Denoiser, like
from dmcmc_core.mcmc import ChainState, Info, Kernel, StepSize, gibbs, hamiltonian, langevin, mala, residual_gibbs, then
from dmcmc_core.noise_level import NoiseLevelPosterior, ResidualPosterior, expected_residual, log_levels
from dmcmc_core.starts import prior
from dmcmc_core.streams import Drawn, Randomness, Streams

AnyPosterior = NoiseLevelPosterior | ResidualPosterior
Schedule = Callable[[int, Tensor, float], Tensor]
"""(levels, sigma (B,), sigma_min) -> a grid (B, N + 1) whose first column is sigma."""


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
    """Return one step of the chain: in x at fixed sigma, then sigma; Denoising Langevin Gibbs as published."""
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
    """Return the chain's step in sigma."""
    if isinstance(posterior, ResidualPosterior):
        return residual_gibbs(denoiser, posterior, settings.rule)
    return gibbs(posterior, settings.rule)


def first_images(
    denoiser: Denoiser, settings: ChainSettings, rng: Streams, device: str | torch.device = "cpu"
) -> Tensor:
    """Make images straight from noise, one per stream: where chains begin, and what a residual is calibrated on."""
    entry = integrators.INTEGRATORS[settings.warmup]
    grid = schedules.SCHEDULES[entry.schedule](settings.warmup_levels, denoiser.sigma_max, denoiser.sigma_min)
    x = prior(denoiser, rng, len(rng.indices), settings.start, device, entry.preconditioned)
    return entry(denoiser, x, grid, noise=rng)


def calibrated(
    denoiser: Denoiser, settings: ChainSettings, seed: int, device: str | torch.device = "cpu"
) -> ResidualPosterior:
    """Measure the posterior that needs no classifier, of any denoiser: CALIBRATION images, NODES calls on each."""
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
    """Bring chains to the joint distribution of (x, sigma): images from noise, noise added, some steps."""
    x = first_images(denoiser, settings, rng, device)
    x = x + settings.renoise * rng(x)
    state = ChainState(x, x.new_full((len(x),), settings.renoise))
    state, _ = in_sigma(denoiser, posterior, settings)(state, rng)
    for i in range(settings.warmup_steps):
        eta = settings.warmup_eta if i < settings.warmup_steps // 2 else None
        step = kernel(denoiser, posterior, settings, settings.eta if eta is None else eta)
        state, _ = step(state, rng)
    return Chain(state, torch.zeros(len(x), dtype=torch.bool, device=x.device), rng.state)


def windows(step: Kernel, chain: Chain, settings: ChainSettings, rng: Streams) -> Iterator[tuple[Window, Chain]]:
    """Yield windows of ``n_skip`` steps without end, each with the chain as it then is; nothing runs ahead."""
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
    """Pick the starting point among a window's states; see ``pick`` and ``published`` of :class:`ChainSettings`."""
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


class Visits(dict[int, tuple[Window | None, Chain]]):
    """Windows by their number, -1 being warm-up, each with the chains as it left them; only the newest is kept."""

    def __setitem__(self, number: int, visit: tuple[Window | None, Chain]) -> None:
        self.clear()
        super().__setitem__(number, visit)


class Share(NamedTuple):
    """What is made of a run at a time: some chains, some windows, each kept where others find it.

    ``chains``: numbers of the chains. ``windows``: numbers of windows whose starting points are integrated together,
    one group after the other. ``num``: images of the whole run; none beyond is made. ``visits``: windows by number.
    """

    chains: range
    windows: Iterable[Sequence[int]]
    num: float
    visits: MutableMapping[int, tuple[Window | None, Chain]]


def denoising_mcmc(  # noqa: PLR0913  model, posterior, integrator and chains have settings of their own
    denoiser: Denoiser,
    posterior: AnyPosterior,
    integrate: integrators.Integrator,
    levels: int,
    settings: ChainSettings = ChainSettings(),  # noqa: B008
    *,
    seed: int = 0,
    chain: Chain | None = None,
    first_window: int = 0,
    share: Share | None = None,
    schedule: str | Schedule | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Iterator[tuple[Tensor, Window, Chain]]:
    """Yield batches of images, one image per chain and window; Kim & Ye 2023 (arXiv 2209.14593).

    Image i is that of window i // C and chain i mod C, for C chains, and has a random stream of its own.

    Args:
        integrate: an entry of :data:`dmcmc_core.integrators.INTEGRATORS`; ``options`` go to it.
        levels: noise levels of its grid, which starts at each sample's own sigma.
        chain, first_window: where an earlier iteration stopped, to go on exactly.
        share: some chains and windows of a run; None: all chains, one window after the other without end.
        schedule: the grid, a name of :data:`dmcmc_core.schedules.SCHEDULES` or a function like those; None: the
            integrator's own.

    Yields:
        images (chains, *shape); the :class:`Window` they started from; the :class:`Chain` to go on from.
    """
    if share is None:
        endless = ([number] for number in itertools.count(first_window))
        share = Share(range(settings.chains), endless, float("inf"), Visits())
    if chain is not None:
        share.visits[first_window - 1] = None, chain
    for numbers, visited in walk_windows(denoiser, posterior, settings, seed, share, device):
        indices = [number * settings.chains + c for number in numbers for c in share.chains]
        indices = [index for index in indices if index < share.num]
        window, noise = together([window for window, _ in visited], len(indices)), Streams(seed, "image", indices)
        images = denoise(denoiser, window.start, integrate, levels, noise, schedule=schedule, **options)
        yield images, window, visited[-1][1]


def walk_windows(
    denoiser: Denoiser,
    posterior: AnyPosterior,
    settings: ChainSettings,
    seed: int,
    share: Share,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[Sequence[int], list[tuple[Window, Chain]]]]:
    """Yield the numbers of windows that are integrated together, and those windows with the chains after each.

    A window is as it was kept, or walked to from the nearest kept one before it, or from warm-up.
    """
    rng = Streams(seed, "chain", share.chains)
    step = kernel(denoiser, posterior, settings, settings.eta)

    def visit(number: int) -> Any:
        at = number
        while (found := share.visits.get(at)) is None and at >= 0:
            at -= 1
        if found is None:
            found = share.visits[-1] = None, warm_up(denoiser, posterior, settings, rng, device)
        for later in range(at + 1, number + 1):
            found = share.visits[later] = next(windows(step, found[1], settings, rng))
        return found

    for numbers in share.windows:
        yield numbers, [visit(number) for number in numbers]


def together(visited: Sequence[Window], rows: int) -> Window:
    """Return several windows as one, the starting points of the first ``rows`` images."""
    x, sigma = (torch.cat([getattr(w.start, name) for w in visited])[:rows] for name in ("x", "sigma"))
    chosen, acceptance = (torch.cat([getattr(w, name) for w in visited])[:rows] for name in ("chosen", "acceptance"))
    return Window(ChainState(x, sigma), chosen, torch.cat([w.sigmas for w in visited], 1)[:, :rows], acceptance)


def denoise(
    denoiser: Denoiser,
    start: ChainState,
    integrate: integrators.Integrator,
    levels: int,
    noise: Randomness,
    *,
    schedule: str | Schedule | None = None,
    **options: Any,
) -> Tensor:
    """Integrate states of the chains to images: ``levels`` noise levels from each sample's own sigma, then 0."""
    schedule = schedule or integrate.schedule
    build = schedules.SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    return integrate(denoiser, start.x, build(levels, start.sigma, denoiser.sigma_min), noise=noise, **options)
