"""A fit: accurate trajectories once, then for each budget a grid, its coefficients, and a trial.

The coefficients are fitted step by step along the solver's own states, so that each step repairs errors of those before
it. All is tried on noise of its own, against every classical solver: the better one is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import files, samplers, schedules
from dmcmc_core.denoiser import CountNFE, count_nfe
from dmcmc_core.errors import LOG, UserError
from dmcmc_core.guidance import in_blocks, of_images
from dmcmc_core.integrators.fitted import search
from dmcmc_core.integrators.fitted.modes import Modes, pixels
from dmcmc_core.integrators.fitted.options import HELD_OUT, Options
from dmcmc_core.integrators.fitted.solver import Fitted, facts_of, network_of
from dmcmc_core.integrators.fitted.table import tabulate
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
NEAR = 1.5
"""Those within so many times the fitted one's error on HELD_OUT images are tried on all."""
PROBE, PROBED = 8, 32
"""Calls of the DPM-Solver++(2M) along which the network's response is measured, and its images at most."""


class Job:
    """The model on two sets of noise, that of the fit and that on which it is tried, and what all budgets share.

    Args:
        model: any denoiser.
        rows: trajectories of the fit.
        seed: of all noise.
        start: what the noise is centred on, ``zero`` or ``mean``.
        calls: of an accurate trajectory.
        chosen: what else the fit was told.
        keep: folder of what was computed; None: nothing is kept.
        firsts: levels below sigma_max from which solvers are asked for, each near one of the trajectories'.
    """

    def __init__(  # noqa: PLR0913  what a fit may be told
        self,
        model: Any,
        rows: int,
        seed: int,
        start: str,
        calls: int,
        chosen: Options,
        keep: str | Path | None,
        firsts: Sequence[float] = (),
    ) -> None:
        self.chosen, self.start, self.seed, self.rows = chosen, start, seed, 0
        self.network = network_of(model)
        about = [self.network, rows, seed, start, calls, chosen.about(), list(firsts)]
        self.folder = Path(keep) / files.key(about) if keep is not None and self.network else None
        self.bare, self.calls = model, calls
        self.kept = kept_numbers(model, seed) if chosen.bands == 1 else torch.arange(math.prod(model.shape))
        self.counters: list[CountNFE] = []
        self.noise = Streams(seed, "fit", range(rows)), Streams(seed, "held out", range(chosen.held_out))
        x, held_out = (prior(model, noise, len(noise.indices), start, _device(model)) for noise in self.noise)
        if not torch.isfinite(x).all():
            raise UserError("the model's mean holds NaN or infinity")
        self.forms = chosen.forms()
        self.view = self.forms[0].view(x) if self.forms[0] else pixels(centre(model, start, x.device).to(x))
        grid = schedules.karras(calls, model.sigma_max, model.sigma_min)[:-1]
        whole = sorted({int((grid.log() - math.log(first)).abs().argmin()) for first in firsts} - {0})
        self.trajectories, self.images, states = self._accurate(x, whole)
        self.truth, others = self._accurate_images(held_out, whole)
        self.firsts = [float(grid[i]) for i in whole]
        """First levels below sigma_max, falling, as they are on the trajectories' grid."""
        self.starts = {None: (x, held_out), self.bare.sigma_max: (x, held_out)}
        self.starts |= {f: (one, other) for f, one, other in zip(self.firsts, states, others, strict=False)}
        self.levels = Levels(self.trajectories.sigmas)
        halves = slice(0, None, 2), slice(1, None, 2)
        products = np.stack([inner_products(self.trajectories, half) for half in halves])
        self.products = search.Products(self.levels, products, chosen.ridge)
        spread = math.sqrt(float(self.trajectories.x[-1].double().square().mean()))
        if not spread:
            raise UserError(
                "the network answers with one image at all levels, which needs no solver: there is nothing to fit"
            )
        self.responses = [search.assumed(spread, self.trajectories.sigmas)]
        self.responses += [self._response()] if chosen.response else []

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
        arrays = None
        if path and path.is_file():
            try:
                arrays = files.read_npz(path)
            except UserError as error:
                LOG.warning(f"{error}; it is computed again")
        if arrays is None:
            before = self.evaluated
            arrays = {n: np.asarray(a) for n, a in make().items()}
            arrays["rows"] = np.asarray(self.evaluated - before)
            if path:
                files.write_npz(path, **arrays)
        self.rows += int(arrays["rows"])
        return arrays

    def _accurate(self, x: Tensor, whole: Sequence[int]) -> tuple[Trajectories, Tensor, Tensor]:
        def make() -> dict[str, Any]:
            made, images, states = accurate(self.model(0, range(len(x))), x, self.calls, self.view, self.kept, whole)
            _check_finite(images)
            return made._asdict() | {"images": images.cpu(), "states": states}

        arrays = self._kept("trajectories", make)
        sigmas, xs, ds, images, states = (torch.from_numpy(arrays[n]) for n in ("sigmas", "x", "d", "images", "states"))
        return Trajectories(sigmas, xs, ds, self.kept), images.to(x), states.to(x)

    def _accurate_images(self, x: Tensor, whole: Sequence[int]) -> tuple[Tensor, Tensor]:
        def make() -> dict[str, Any]:
            none = self.kept[:0]
            _, images, states = accurate(self.model(1, range(len(x))), x, self.calls, self.view, none, whole)
            _check_finite(images)
            return {"images": images.cpu(), "states": states}

        arrays = self._kept("held-out", make)
        return torch.from_numpy(arrays["images"]).to(x), torch.from_numpy(arrays["states"]).to(x)

    def _response(self) -> search.Response:
        """Return the network's response along a classical solver."""

        def make() -> dict[str, Any]:
            x = self.starts[None][0][:PROBED]
            model, visited = self.model(0, range(len(x))), []

            def recorded(x: Tensor, sigma: Tensor) -> Any:
                d = model(x, sigma)
                visited.append((float(sigma), *(self._picked(self.view.of(t)) for t in (x, d))))
                return d

            entry: Any = dpmpp_2m
            with torch.no_grad():
                entry(recorded, x, schedules.karras(PROBE, model.sigma_max, model.sigma_min))
            return search.measured(self.trajectories, self.levels, visited[1:])._asdict()

        arrays = self._kept("response", make)
        return search.Response(arrays["log"], arrays["gamma"], arrays["rho"])

    def _picked(self, y: Tensor) -> Tensor:
        return y.flatten(1)[:, self.kept.to(y.device)].cpu()

    def solver(self, nfe: int, first: float | None = None) -> Fitted:
        """Return the best of the fitted solvers and the classical ones, from sigma_max or the level ``first``."""
        made = [self._candidate(nfe, first, i) for i in range(len(self.forms))]
        best, near = min(made, key=lambda one: one[0].card["held_out"])
        tried = self._kept(self._name("trial", nfe, first), partial(self._peers, nfe, first, near))
        peers = {name: float(e) for name, e in zip(PEERS, tried["peers"], strict=True)}
        best.card["peers"] = peers
        peer = min(peers, key=lambda name: peers[name])
        if peers[peer] < best.card["held_out"]:
            card = best.card | {"solver": peer, "held_out": peers[peer], "fit": None}
            table = tabulate(PEERS[peer], self._peer_grid(peer, nfe, first), self.start)
            best = dataclasses.replace(table, card=card)
        return best

    def _candidate(self, nfe: int, first: float | None, form: int) -> tuple[Fitted, float]:
        """Return a fitted solver with its card, and its error on the first images held out."""
        modes = self.forms[form]
        fitted = self._kept(self._name(f"solver{form or ''}", nfe, first), partial(self._fitted, nfe, first, modes))
        sigmas, coefficients = (torch.from_numpy(fitted[name]) for name in ("sigmas", "coefficients"))
        made = Fitted(sigmas, coefficients, bool(fitted["jump"]), self.start, modes=modes)
        tried = self._kept(self._name(f"error{form or ''}", nfe, first), partial(self._error, made, first))
        card = {
            "network": self.network,
            **facts_of(self.bare),
            "solver": "fitted",
            "budget": nfe,
            "seed": self.seed,
            "trajectories": len(self.images),
            "fit": float(fitted["error"]),
            "held_out": float(tried["all"]),
            "held_out_images": len(self.truth),
        }
        card |= {} if first is None else {"first": first}
        card |= {} if modes is None else {"bands": modes.groups, "split": modes.split}
        return dataclasses.replace(made, card=card), float(tried["first"])

    def _name(self, what: str, nfe: int, first: float | None) -> str:
        return f"{what}-{nfe}" + ("" if first is None else f"-from-{first:.6g}")

    def _fitted(self, nfe: int, first: float | None, modes: Modes | None) -> dict[str, Any]:
        """Search a grid under either response, and fit the coefficients of both; return the nearer one's."""
        best = None
        for sigmas, form in self._grids(nfe, self.bare.sigma_max if first is None else first):
            coefficients, error = self._along(sigmas, form, first, modes)
            if best is None or error < best["error"]:
                best = {"sigmas": sigmas, "coefficients": coefficients, "jump": form.jump, "error": error}
        return best or {}

    def _grids(self, nfe: int, first: float) -> list[tuple[np.ndarray, search.Form]]:
        """Return the grids that are searched, each under a response, or the one that the fit was told."""
        ends = first, self.bare.sigma_min
        if self.chosen.grid != "searched":
            return [
                (schedules.SCHEDULES[self.chosen.grid](nfe, *ends).numpy(), search.Form(nfe, self.chosen.past, False))
            ]
        ways = [False, True] if self.chosen.jump is None else [self.chosen.jump]
        forms = [search.Form(nfe, self.chosen.past, jump) for jump in ways]
        grids = []
        for response in self.responses:
            found = [(*search.grid(form, self.products, response, ends), form) for form in forms]
            sigmas, _, form = min(found, key=lambda one: one[1])
            grids.append((sigmas, form))
        return grids

    @torch.no_grad()
    def _along(
        self, sigmas: np.ndarray, form: search.Form, first: float | None, modes: Modes | None
    ) -> tuple[np.ndarray, float]:
        """Fit the coefficients of each step along the solver's own states; return them and the error at 0."""
        x, past = self.starts[first][0], []
        model, y = self.model(0, range(len(x))), self.view.of(x)
        groups = [modes.groups] if modes else []
        table = torch.zeros(len(sigmas) - 1, *groups, 1 + form.past, dtype=torch.float64)
        made = Fitted(torch.from_numpy(sigmas), table, form.jump, self.start, modes=modes)
        for i, row in enumerate(table):
            if i or not form.jump:
                past = [self.view.of(model(x, made.sigmas[i])), *past][: form.past]
            terms = modes.terms(y, past, made.sigmas, i) if modes else [y, *past]
            seen = torch.stack([self._picked(t) for t in terms]).double()
            target = self.trajectories.combined(self.levels.x(sigmas[i + 1]))
            for g in range(modes.groups if modes else 1):
                some = modes.group[self.kept] == g if modes else slice(None)
                c = self._coefficients(seen[..., some].flatten(1).numpy(), target[:, some].flatten().numpy(), modes)
                (row[g] if modes else row)[: len(c)] = torch.from_numpy(c)
            y = made.combined(row, y, past, i)
            x = self.view.images(y)
        _check_finite(x)
        return table.numpy(), _rms(x, self.images)

    def _coefficients(self, seen: np.ndarray, target: np.ndarray, modes: Modes | None) -> np.ndarray:
        """Return the coefficients of terms (k, N) whose sum is nearest to a target (N,); 1 of an exact flow."""
        if modes and modes.split:
            flow, rest = seen[0], seen[1:]
            products = np.einsum("ik,jk->ij", rest, np.vstack([rest, target - flow]))
            ridge = self.chosen.ridge * float(flow @ flow) * np.eye(len(rest))
            return np.concatenate([[1.0], np.linalg.lstsq(products[:, :-1] + ridge, products[:, -1], rcond=None)[0]])
        products = np.einsum("ik,jk->ij", seen, np.vstack([seen, target]))
        return search.least_squares(products[:, :-1], products[:, -1], self.chosen.ridge)

    def _peer_grid(self, name: str, nfe: int, first: float | None) -> Tensor:
        entry = PEERS[name]
        ends = self.bare.sigma_max if first is None else first, self.bare.sigma_min
        return schedules.SCHEDULES[entry.schedule](entry.levels(nfe), *ends)

    @torch.no_grad()
    def _error(self, made: Fitted, first: float | None) -> dict[str, Any]:
        """Return the error of a fitted solver on the noise held out, on the first images of it and on all."""
        x = self.starts[first][1]
        images = made(self.model(1, range(len(x))), x)
        return {"first": _rms(images[:HELD_OUT], self.truth[:HELD_OUT]), "all": _rms(images, self.truth)}

    @torch.no_grad()
    def _peers(self, nfe: int, first: float | None, near: float) -> dict[str, Any]:
        """Return the errors of the classical solvers by their order: on all images of those that come near."""
        x, some, rest = self.starts[first][1], range(HELD_OUT), range(HELD_OUT, len(self.truth))

        def squared(name: str, rows: range) -> Tensor:
            part, grid = slice(rows.start, rows.stop), self._peer_grid(name, nfe, first)
            images = PEERS[name](self.model(1, rows), x[part], grid)
            return (images - self.truth[part]).double().square()

        peers = []
        for name in PEERS:
            errors = squared(name, some)
            if errors.mean() <= (NEAR * near) ** 2 and len(rest):
                errors = torch.cat([errors, squared(name, rest)])
            peers.append(math.sqrt(float(errors.mean())))
        return {"peers": peers}


def _rms(a: Tensor, b: Tensor) -> float:
    return math.sqrt(float((a.double() - b.double()).square().mean()))


def _device(model: Any) -> torch.device:
    """Return where a model computes, as it says or as its mean tells."""
    known = getattr(model, "device", None)
    known = getattr(getattr(model, "mean", None), "device", None) if known is None else known
    return torch.device("cpu" if known is None else known)


def _check_finite(images: Tensor) -> None:
    if not torch.isfinite(images).all():
        raise UserError("the network's answers along its trajectories hold NaN or infinity: no solver can be fitted")
