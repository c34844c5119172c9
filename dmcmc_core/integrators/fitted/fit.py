"""Fit solvers to a network: accurate trajectories once, then for each budget a grid, its coefficients, and a trial.

The coefficients are fitted step by step along the solver's own states, so that each step repairs errors of those before
it. All is tried on noise of its own, against every classical solver: the better one is returned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import files, samplers, schedules
from dmcmc_core.denoiser import CountNFE, Denoiser, count_nfe
from dmcmc_core.errors import UserError, number, one_of
from dmcmc_core.guidance import in_blocks, of_images
from dmcmc_core.integrators.fitted import search
from dmcmc_core.integrators.fitted.solver import Fitted, combined, network_of, tabulate
from dmcmc_core.integrators.fitted.trajectories import (
    Levels,
    Trajectories,
    accurate,
    inner_products,
    kept_numbers,
)
from dmcmc_core.integrators.multistep import deis, dpmpp_2m, dpmpp_3m, ipndm, unipc
from dmcmc_core.integrators.one_step import heun
from dmcmc_core.starts import centre, prior
from dmcmc_core.streams import Streams

PEERS = {
    f.__name__: dataclasses.replace(samplers.INTEGRATORS[f.__name__], function=f)
    for f in (dpmpp_2m, dpmpp_3m, deis, ipndm, unipc, heun)
}
"""Classical solvers that a fitted one must beat, each on its own grid."""
FIRST, NEAR = 8, 1.5
"""Images on which all of those are tried; those within so many times the fitted one's error are tried on all."""
PROBE, PROBED = 8, 32
"""Calls of the DPM-Solver++(2M) along which the network's response is measured, and its images at most."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a fit may be told.

    Attributes:
        past: denoised images that a step may use, 1 to 4.
        ridge: of the least squares, in units of its scaled normal equations.
        start: ``zero`` or ``mean``; None: mean where the model knows it.
        jump: whether the first step makes no call; None: both ways are searched.
        accurate: network calls of an accurate trajectory, at least 16; None: 32, or twice the largest budget.
        held_out: images of noise of its own on which the fit is tried, at least 8.
    """

    past: int = 4
    ridge: float = 1e-9
    start: str | None = None
    jump: bool | None = None
    accurate: int | None = None
    held_out: int = 24

    def __post_init__(self) -> None:
        number("past", self.past, least=1, most=4, whole=True)
        number("ridge", self.ridge, least=0)
        number("held_out", self.held_out, least=FIRST, whole=True)
        one_of("start", self.start, None, "zero", "mean")
        one_of("jump", self.jump, None, True, False)
        if self.accurate is not None:
            number("accurate", self.accurate, least=16, whole=True)


def fit(model: Denoiser, nfe: int, trajectories: int = 64, seed: int = 0, **options: Any) -> Fitted:
    """Return the solver of ``nfe`` network calls that comes nearest to the accurate solution from the same noise.

    Args:
        model: any denoiser; of classes, held to one or more.
        nfe: network calls, at least 2.
        trajectories: accurate ones that it is fitted to.
        seed: of their noise, and of that on which the fit is tried.
        options: fields of :class:`Options`.

    Raises:
        UserError: for a budget below 2, fewer trajectories than unknowns of a step, an option that is not known or out
            of its range, a start at a mean that the model does not know, and a network whose answers are not finite.
    """
    return fit_all(model, [nfe], trajectories, seed, **options)[nfe]


def fit_all(
    model: Denoiser,
    budgets: Iterable[int],
    trajectories: int = 64,
    seed: int = 0,
    *,
    keep: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int, Fitted]:
    """Return a solver for each budget; they share their accurate trajectories. See :func:`fit`.

    Args:
        keep: folder of what was computed, from which an interrupted fit goes on; None: nothing is kept.
        say: takes a line for each part that is done.
    """
    budgets, chosen = list(budgets), _options(options)
    for nfe in budgets:
        number("nfe", nfe, least=2, whole=True)
    number("trajectories", trajectories, least=2, whole=True)
    if trajectories < 1 + chosen.past:
        raise UserError(
            f"trajectories={trajectories} are fewer than the {1 + chosen.past} unknowns of a step with past="
            f"{chosen.past}: take more, or fewer past values"
        )
    number("seed", seed, whole=True)
    start = chosen.start or ("mean" if getattr(model, "mean", None) is not None else "zero")
    calls = chosen.accurate or max(32, 2 * max(budgets, default=0))
    job = _Job(model, trajectories, seed, start, calls, chosen, keep)
    solvers = {}
    for nfe in budgets:
        solvers[nfe] = job.solver(nfe)
        say(told(solvers[nfe]))
    cost = {"cost": job.rows}
    return {nfe: dataclasses.replace(one, card=one.card | cost) for nfe, one in solvers.items()}


def told(solver: Fitted) -> str:
    """Return a line of a solver's errors on noise of its own."""
    card = solver.card
    peer = min(card["peers"], key=lambda name: card["peers"][name])
    return (
        f"{card['budget']} calls: {card['solver']}, paired error {card['held_out']:.4f} on {card['held_out_images']} "
        f"images of other noise; the best classical solver is {peer} at {card['peers'][peer]:.4f}"
    )


def _options(options: dict[str, Any]) -> Options:
    known = [f.name for f in dataclasses.fields(Options)]
    for name in options:
        if name not in known:
            raise UserError(f"unknown option of fit {name!r}: known are {', '.join(known)}")
    return Options(**options)


def _rms(a: Tensor, b: Tensor) -> float:
    return math.sqrt(float((a.double() - b.double()).square().mean()))


class _Job:
    """A fit: the model on its two sets of noise, and what all budgets share."""

    def __init__(  # noqa: PLR0913  what a fit may be told
        self, model: Denoiser, rows: int, seed: int, start: str, calls: int, chosen: Options, keep: str | Path | None
    ) -> None:
        self.chosen, self.start, self.seed, self.rows = chosen, start, seed, 0
        self.network = network_of(model)
        about = [self.network, rows, seed, start, calls, dataclasses.asdict(chosen)]
        self.folder = Path(keep) / files.key(about) if keep is not None and self.network else None
        self.kept = kept_numbers(model, seed)
        self.bare: Any = model
        self.counters: list[CountNFE] = []
        self.centre = centre(model, start, _device(model))
        self.noise = Streams(seed, "fit", range(rows)), Streams(seed, "held out", range(chosen.held_out))
        self.x, self.held_out = (prior(model, noise, len(noise.indices), start, _device(model)) for noise in self.noise)
        if not torch.isfinite(self.x).all():
            raise UserError("the model's mean holds NaN or infinity")
        self.trajectories, self.images = self._accurate(calls)
        truth = self._kept("held-out", lambda: {"images": self._accurate_images(calls)})["images"]
        self.truth = torch.from_numpy(truth).to(self.held_out)
        self.levels = Levels(self.trajectories.sigmas)
        halves = slice(0, None, 2), slice(1, None, 2)
        products = np.stack([inner_products(self.trajectories, half) for half in halves])
        self.products = search.Products(self.levels, products, chosen.ridge)
        spread = math.sqrt(float(self.trajectories.x[-1].double().square().mean()))
        self.responses = [search.assumed(spread, self.trajectories.sigmas), self._response()]

    def model(self, which: int, rows: range) -> Any:
        """Return the model for some rows of the fit's noise, 0, or of the noise that it is tried on, 1."""
        some = Streams(self.noise[which].seed, self.noise[which].purpose, rows)
        self.counters.append(count_nfe(in_blocks(of_images(self.bare, some), max(1, len(rows)))))
        return self.counters[-1]

    @property
    def evaluated(self) -> int:
        """Rows of the network, in this process."""
        return sum(counter.rows for counter in self.counters)

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
        """Return arrays as they were kept, or made now; count the rows that they took."""
        path = self.folder and self.folder / f"{name}.npz"
        if path and path.is_file():
            arrays = files.read_npz(path)
        else:
            before = self.evaluated
            arrays = {n: np.asarray(a) for n, a in make().items()}
            arrays["rows"] = np.asarray(self.evaluated - before)
            if path:
                files.write_npz(path, **arrays)
        self.rows += int(arrays["rows"])
        return arrays

    def _accurate(self, calls: int) -> tuple[Trajectories, Tensor]:
        def make() -> dict[str, Any]:
            made, images = accurate(self.model(0, range(len(self.x))), self.x, calls, self.start, self.kept)
            _check_finite(images)
            return {"sigmas": made.sigmas, "x": made.x, "d": made.d, "images": images.cpu()}

        arrays = self._kept("trajectories", make)
        sigmas, x, d, images = (torch.from_numpy(arrays[name]) for name in ("sigmas", "x", "d", "images"))
        return Trajectories(sigmas, x, d, self.kept), images.to(self.x)

    def _accurate_images(self, calls: int) -> Tensor:
        model = self.model(1, range(len(self.held_out)))
        grid = schedules.karras(calls, model.sigma_max, model.sigma_min)
        with torch.no_grad():
            images = unipc(model, self.held_out, grid)
        _check_finite(images)
        return images.cpu()

    def _response(self) -> search.Response:
        """Return the network's response along a classical solver."""

        def make() -> dict[str, Any]:
            rows = min(PROBED, len(self.x))
            model, visited = self.model(0, range(rows)), []

            def recorded(x: Tensor, sigma: Tensor) -> Any:
                d = model(x, sigma)
                visited.append((float(sigma), self._picked(x), self._picked(d)))
                return d

            entry: Any = dpmpp_2m
            with torch.no_grad():
                entry(recorded, self.x[:rows], schedules.karras(PROBE, model.sigma_max, model.sigma_min))
            return search.measured(self.trajectories, self.levels, visited[1:])._asdict()

        arrays = self._kept("response", make)
        return search.Response(arrays["log"], arrays["gamma"], arrays["rho"])

    def _picked(self, x: Tensor) -> Tensor:
        return (x - self.centre.to(x)).flatten(1)[:, self.kept.to(x.device)].cpu()

    def solver(self, nfe: int) -> Fitted:
        """Return the better of the fitted solver and the classical ones."""
        arrays = self._kept(f"solver-{nfe}", partial(self._fitted, nfe))
        sigmas, coefficients = (torch.from_numpy(arrays[name]) for name in ("sigmas", "coefficients"))
        jump, error = bool(arrays["jump"]), float(arrays["error"])
        made = Fitted(sigmas, coefficients, jump, self.start)
        tried = self._kept(f"trial-{nfe}", partial(self._tried, made, nfe))
        peers = {name: float(e) for name, e in zip(PEERS, tried["peers"], strict=True)}
        card = {
            "network": self.network,
            "solver": "fitted",
            "budget": nfe,
            "seed": self.seed,
            "trajectories": len(self.x),
            "fit": error,
            "held_out": float(tried["held_out"]),
            "held_out_images": len(self.held_out),
            "peers": peers,
        }
        best = min(peers, key=lambda name: peers[name])
        if peers[best] < card["held_out"]:
            made = tabulate(PEERS[best], self._peer_grid(best, nfe), self.start)
            card |= {"solver": best, "held_out": peers[best], "fit": None}
        return dataclasses.replace(made, card=card)

    def _fitted(self, nfe: int) -> dict[str, Any]:
        """Search a grid under either response, and fit the coefficients of both; return the nearer one's."""
        ways = [False, True] if self.chosen.jump is None else [self.chosen.jump]
        ends, best = (self.bare.sigma_max, self.bare.sigma_min), None
        for response in self.responses:
            found = [
                (*search.grid(form, self.products, response, ends), form)
                for form in (search.Form(nfe, self.chosen.past, jump) for jump in ways)
            ]
            sigmas, _, form = min(found, key=lambda one: one[1])
            coefficients, error = self._along(sigmas, form)
            if best is None or error < best["error"]:
                best = {"sigmas": sigmas, "coefficients": coefficients, "jump": form.jump, "error": error}
        return best or {}

    @torch.no_grad()
    def _along(self, sigmas: np.ndarray, form: search.Form) -> tuple[np.ndarray, float]:
        """Fit the coefficients of each step along the solver's own states; return them and the error at 0."""
        model, x, m = self.model(0, range(len(self.x))), self.x, self.centre.to(self.x)
        table, past = np.zeros((len(sigmas) - 1, 1 + form.past)), []
        for i, row in enumerate(table):
            if i or not form.jump:
                past = [model(x, torch.tensor(sigmas[i])) - m, *past][: form.past]
            terms = [x - m, *past]
            seen = np.stack([self._picked(t + m).double().flatten().numpy() for t in terms])
            target = self.trajectories.combined(self.levels.x(sigmas[i + 1])).flatten().numpy()
            products = np.einsum("ik,jk->ij", seen, np.vstack([seen, target]))
            row[: len(terms)] = search.least_squares(products[:, :-1], products[:, -1], self.chosen.ridge)
            x = m + combined(row.tolist(), terms)
        _check_finite(x)
        return table, _rms(x, self.images)

    def _peer_grid(self, name: str, nfe: int) -> Tensor:
        entry = PEERS[name]
        ends = self.bare.sigma_max, self.bare.sigma_min
        return schedules.SCHEDULES[entry.schedule](entry.levels(nfe), *ends)

    @torch.no_grad()
    def _tried(self, made: Fitted, nfe: int) -> dict[str, Any]:
        """Return errors on the noise held out: of the fitted solver, and of the classical ones by their order."""
        first, rest = range(FIRST), range(FIRST, len(self.held_out))
        images = made(self.model(1, range(len(self.held_out))), self.held_out)
        near = NEAR * _rms(images[:FIRST], self.truth[:FIRST])

        def squared(name: str, rows: range) -> Tensor:
            some = slice(rows.start, rows.stop)
            images = PEERS[name](self.model(1, rows), self.held_out[some], self._peer_grid(name, nfe))
            return (images - self.truth[some]).double().square()

        peers = []
        for name in PEERS:
            errors = squared(name, first)
            if errors.mean() <= near**2 and len(rest):
                errors = torch.cat([errors, squared(name, rest)])
            peers.append(math.sqrt(float(errors.mean())))
        return {"held_out": _rms(images, self.truth), "peers": peers}


def _device(model: Any) -> torch.device:
    """Return where a model computes, as it says or as its mean tells."""
    known = getattr(model, "device", None)
    known = getattr(getattr(model, "mean", None), "device", None) if known is None else known
    return torch.device("cpu" if known is None else known)


def _check_finite(images: Tensor) -> None:
    if not torch.isfinite(images).all():
        raise UserError("the network's answers along its trajectories hold NaN or infinity: no solver can be fitted")
