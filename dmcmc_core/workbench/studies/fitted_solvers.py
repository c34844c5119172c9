"""The study of fitted solvers: their errors beside classical ones, controls, what a fit costs, and where it serves.

All errors are paired, see :mod:`dmcmc_core.metrics.paired`: of each image to the accurate solution from its own noise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import integrators, schedules
from dmcmc_core.checkpoints import load_model
from dmcmc_core.checkpoints.loader import epsilon_names, load_epsilon
from dmcmc_core.denoiser import BLOCK, Adapter, Denoiser
from dmcmc_core.errors import UserError
from dmcmc_core.guidance import in_blocks
from dmcmc_core.integrators import Fitted
from dmcmc_core.integrators.fitted import tabulate
from dmcmc_core.linear_sde import VP
from dmcmc_core.metrics import paired_errors
from dmcmc_core.report.tables import Spread, mean_and_spread
from dmcmc_core.report.verdicts import BETTER, of_errors, rms
from dmcmc_core.starts import prior
from dmcmc_core.streams import Streams

FITTED, TWO_M, BEST = "fitted", "DPM-Solver++(2M)", "best classical"
CLASSICAL = {
    "heun": "Heun (KAR1)",
    "euler": "Euler (DDIM)",
    "deis": "DEIS",
    "ipndm": "iPNDM",
    "unipc": "UniPC",
    "dpmpp_2m": TWO_M,
    "dpmpp_3m": "DPM-Solver++(3M)",
}
GRIDS = ("karras", "log_uniform")
GRID_ALONE, KARRAS, ASSUMED = f"found grid, {TWO_M}", "Karras grid, fitted", "response assumed, fitted"
OWN_NOISE, OTHER_NOISE = "on its own noise", "on other noise"
LOOKS = {name: k for k, name in enumerate((FITTED, *CLASSICAL.values(), OWN_NOISE))} | {OTHER_NOISE: 0, BEST: 14}
"""The look of each line in all figures, see :func:`dmcmc_core.report.plots.look`; that of the leaderboard's."""
ACCURATE = 60
"""Network calls of UniPC for the accurate solution."""
CHOOSING = 32
"""Images whose noise, seen nowhere else, chooses the grid of each classical solver."""


SHOWN = 1.0
"""Error beyond which a solver has failed and is in tables alone: the range of the data."""


class Bed(NamedTuple):
    """A model, and by seed noise (n, *shape) and the accurate solutions from it."""

    name: str
    model: Denoiser
    noise: Mapping[int, Tensor]
    truth: Mapping[int, Tensor]

    @property
    def n(self) -> int:
        """Images of a seed."""
        return len(next(iter(self.noise.values())))


Errors = dict[tuple[str, int], Tensor]
"""Solver and budget -> the paired error of each image, (seeds, n)."""
Fits = dict[int, dict[int, Fitted]]
"""Seed -> budget -> solver."""


def load(name: str) -> Denoiser:
    """Return a model by name; that of a VP diffusion on images in [0, 1] as a denoiser from the noise of ``digits``.

    Raises:
        UserError: for a network of another diffusion.
    """
    if name not in epsilon_names():
        return load_model(name)
    net, digits = load_epsilon(name), load_model("digits")
    sde = net.sde
    if not isinstance(sde, VP):
        raise UserError(f"{name} is of {type(sde).__name__}: only VP has the noise of a denoiser")

    def epsilon(x: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise of x in [0, 1], all at one level: that of u in [-1, 1] at twice the level."""
        t = schedules.vp_time(2 * sigma[0].double(), sde.beta_min, sde.beta_max)
        return net(sde.Psi(t, 0.0).to(x) * (2 * x - 1), t)

    about = {"sigma_min": digits.sigma_min, "sigma_max": digits.sigma_max, "mean": getattr(digits, "mean", None)}
    return Adapter(epsilon, tuple(net.shape), **about, predicts="epsilon")


def make_bed(name: str, model: Denoiser, n: int, seeds: Iterable[int]) -> Bed:
    """Return a model with n noises of each seed, which no fit sees, and their accurate solutions."""
    model = in_blocks(model, min(n, BLOCK))  # no row is computed for nothing
    noise = {seed: starts(model, seed, "fitted study", n) for seed in seeds}
    accurate = classical(model, "unipc", "karras", ACCURATE)
    return Bed(name, model, noise, {seed: in_batches(accurate, x) for seed, x in noise.items()})


def starts(model: Denoiser, seed: int, purpose: str, n: int) -> Tensor:
    """Return noise around the mean, where the model knows one, (n, *shape)."""
    start = "zero" if getattr(model, "mean", None) is None else "mean"
    return prior(model, Streams(seed, purpose, range(n)), n, start)


@torch.no_grad()
def in_batches(sample: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the images of a sampler from noise (n, *shape), some rows at a time."""
    return torch.cat([sample(rows) for rows in x.split(BLOCK)])


def classical(model: Denoiser, name: str, grid: str, nfe: int) -> Callable[[Tensor], Tensor]:
    """Return a classical solver on a grid with as many levels as its budget pays for."""
    entry = integrators.INTEGRATORS[name]
    sigmas = schedules.SCHEDULES[grid](entry.levels(nfe), model.sigma_max, model.sigma_min)
    return lambda x: entry(model, x, sigmas)


def errors(bed: Bed, sampler: Callable[[int], Callable[[Tensor], Tensor]]) -> Tensor:
    """Return the paired errors (seeds, n) of what ``sampler`` gives for each seed."""
    return torch.stack([paired_errors(in_batches(sampler(s), x), bed.truth[s]) for s, x in bed.noise.items()])


def classical_errors(bed: Bed, budgets: Sequence[int]) -> tuple[Errors, dict[tuple[str, int], str]]:
    """Return the errors of all classical solvers, and the grids that were better on noise of their own."""
    own = make_bed(bed.name, bed.model, CHOOSING, [next(iter(bed.noise)) + 10_000])
    found, chosen = {}, {}
    for name, label in CLASSICAL.items():
        for nfe in budgets:
            tried = {grid: spread(_classical_errors(own, name, grid, nfe)).mean for grid in GRIDS}
            chosen[label, nfe] = min(tried, key=lambda grid: tried[grid])  # noqa: B023
            found[label, nfe] = _classical_errors(bed, name, chosen[label, nfe], nfe)
    return found, chosen


def _classical_errors(bed: Bed, name: str, grid: str, nfe: int) -> Tensor:
    return errors(bed, lambda _: classical(bed.model, name, grid, nfe))


def fits(bed: Bed, budgets: Sequence[int], trajectories: int, **options: Any) -> Fits:
    """Return solvers fitted to the model of a bed, a fit for each seed."""
    return {seed: integrators.fit_all(bed.model, budgets, trajectories, seed, **options) for seed in bed.noise}


def fitted_errors(bed: Bed, solvers: Fits, label: str) -> Errors:
    """Return the errors of fitted solvers, each on the noise of its seed."""
    budgets = next(iter(solvers.values()))
    return {(label, k): errors(bed, lambda s, k=k: lambda x: solvers[s][k](bed.model, x)) for k in budgets}


def on_grid(solver: Fitted) -> Fitted:
    """Return DPM-Solver++(2M) on the grid of a fitted solver, a first step without a call as it was fitted."""
    free = int(solver.jump)
    table = tabulate(integrators.INTEGRATORS["dpmpp_2m"], solver.sigmas[free:], solver.start)
    first = torch.zeros(free, table.coefficients.shape[1], dtype=torch.float64)
    first[:, 0] = solver.coefficients[:free, 0]
    return dataclasses.replace(
        table, sigmas=solver.sigmas, coefficients=torch.cat([first, table.coefficients]), jump=solver.jump
    )


def control_errors(bed: Bed, solvers: Fits, budgets: Sequence[int], trajectories: int) -> Errors:
    """Return the errors of what lacks one part of a fit: its coefficients, its grid, or the response of the network."""
    alone = {seed: {nfe: on_grid(some[nfe]) for nfe in budgets} for seed, some in solvers.items()}
    found = fitted_errors(bed, alone, GRID_ALONE)
    found |= fitted_errors(bed, fits(bed, budgets, trajectories, grid="karras"), KARRAS)
    return found | fitted_errors(bed, fits(bed, budgets, trajectories, response=False), ASSUMED)


def cost_rows(bed: Bed, made: Mapping[int, Fits], classic: Errors, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Return errors against trajectories: on noise of the fit, as it told, and on other noise, a row for each seed.

    Args:
        bed: of the noise.
        made: trajectories -> fits.
        classic: errors of classical solvers on the noise of the bed.
        budgets: of the rows.
    """
    rows = []
    for count, solvers in sorted(made.items()):
        of_others = fitted_errors(bed, solvers, FITTED)
        for nfe in budgets:
            best = rms(classic[best_of(classic, nfe), nfe])
            for k, (seed, some) in enumerate(solvers.items()):
                card = some[nfe].card
                about = {"panel": f"{bed.name}, {nfe} calls", "budget": nfe, "trajectories": count, "seed": seed}
                about |= {"solver": card["solver"], "cost": card["cost"], "together": len(some)}
                told = {
                    OWN_NOISE: card["fit"],
                    OTHER_NOISE: rms(of_others[FITTED, nfe])[k].item(),
                    BEST: best[k].item(),
                }
                rows += [{**about, "line": line, "error": e} for line, e in told.items() if e is not None]
    return rows


def transfer_errors(
    beds: Mapping[str, Bed], made: Mapping[str, Fits], budgets: Sequence[int], known: Mapping[str, Errors]
) -> dict[tuple[str, str, int], Tensor]:
    """Return errors (seeds, n) by the network fitted to (or BEST), the one used on, and the budget.

    Args:
        beds: of the networks used.
        made: fits to each network.
        budgets: network calls.
        known: errors of classical solvers on beds where they were found before.
    """
    found = {}
    for used, bed in beds.items():
        classic = known[used] if used in known else classical_errors(bed, budgets)[0]
        for nfe in budgets:
            found[BEST, used, nfe] = classic[best_of(classic, nfe), nfe]
        for name, solvers in made.items():
            freed = {seed: {nfe: without_network(some[nfe]) for nfe in budgets} for seed, some in solvers.items()}
            found |= {(name, used, nfe): e for (_, nfe), e in fitted_errors(bed, freed, name).items()}
    return found


def apart(beds: Mapping[str, Bed]) -> dict[tuple[str, str], float]:
    """Return the root mean square distance of the accurate solutions of two networks from the same noise."""
    return {
        (a, b): spread(torch.stack([paired_errors(beds[a].truth[s], beds[b].truth[s]) for s in beds[a].truth])).mean
        for a, b in itertools.combinations(beds, 2)
    }


def transfer_lines(found: Mapping[tuple, Tensor]) -> list[dict[str, Any]]:
    """Return rows for a figure of what :func:`transfer_errors` found: a panel for each network that was used."""
    return [
        {
            "panel": f"on {used}",
            "line": name if name == BEST else f"fitted to {name}",
            "nfe": nfe,
            "distance": spread(e),
        }
        for (name, used, nfe), e in found.items()
    ]


def transfer_looks(networks: Iterable[str]) -> dict[str, int]:
    """Return the looks of those lines: that of the fitted solver for the first network."""
    return {f"fitted to {name}": k + 8 * (k > 0) for k, name in enumerate(networks)} | {BEST: LOOKS[BEST]}


def without_network(solver: Fitted) -> Fitted:
    """Return a solver whose card does not say what network it was fitted to, for use on any other."""
    return dataclasses.replace(solver, card=solver.card | {"network": None})


def between_seeds(bed: Bed, solvers: Fits, nfe: int) -> Tensor:
    """Return the root mean square error of the solver of each seed on the noise of each, (fits, noises)."""
    return torch.stack([rms(errors(bed, lambda _: lambda x: some[nfe](bed.model, x))) for some in solvers.values()])  # noqa: B023


def spread(each: Tensor) -> Spread:
    """Return mean and spread over seeds of the paired error, of errors (seeds, n)."""
    return mean_and_spread([{"e": e} for e in rms(each).tolist()], "e", ())[0]["e"]


def best_of(found: Errors, nfe: int, among: Iterable[str] = CLASSICAL.values()) -> str:
    """Return the solver with the least error at a budget, of those that were tried."""
    return min((name for name in among if (name, nfe) in found), key=lambda name: spread(found[name, nfe]).mean)


def nearer(one: Tensor, other: Tensor) -> bool:
    """Tell whether errors (seeds, n) are surely less than others from the same noise, see :func:`of_errors`."""
    return of_errors(dict(enumerate(one)), dict(enumerate(other))).word == BETTER


def rows_of(bed: Bed, found: Errors, grids: Mapping[tuple[str, int], str]) -> list[dict[str, Any]]:
    """Return a row for each solver, budget and seed, as :func:`dmcmc_core.report.tables.write_results` takes them."""
    calls = {label: integrators.INTEGRATORS[name] for name, label in CLASSICAL.items()}
    rows = []
    for (solver, nfe), each in found.items():
        spent = calls[solver].calls(calls[solver].levels(nfe)) if solver in calls else nfe  # pyright: ignore
        about = {"bed": bed.name, "solver": solver, "budget": nfe, "nfe": spent, "n": bed.n}
        about |= {"grid": grids.get((solver, nfe), "its own")}
        rows += [{**about, "seed": s, "paired_error": e} for s, e in zip(bed.noise, rms(each).tolist(), strict=True)]
    return rows


def lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for the figure of errors: mean and spread over seeds at the calls that a solver makes.

    Errors above SHOWN, of solvers that fail, are left out.
    """
    grouped = mean_and_spread(rows, "paired_error", ("bed", "solver", "budget", "nfe"))
    return [
        {"panel": row["bed"], "line": row["solver"], "nfe": row["nfe"], "distance": row["paired_error"]}
        for row in grouped
        if row["paired_error"].mean <= SHOWN
    ]


def table(rows: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each bed and solver, with mean and spread over seeds at each budget under ``nfe4`` and so on."""
    made: dict[tuple, dict[str, Any]] = {}
    for row in mean_and_spread(rows, "paired_error", ("bed", "solver", "budget")):
        empty = {"bed": row["bed"], "solver": row["solver"]} | {f"nfe{nfe}": None for nfe in budgets}
        made.setdefault((row["bed"], row["solver"]), empty)[f"nfe{row['budget']}"] = row["paired_error"]
    return list(made.values())


def heads(budgets: Iterable[int]) -> dict[str, str]:
    """Return the columns of such a table: key -> heading."""
    return {"bed": "test-bed", "solver": "solver"} | {f"nfe{nfe}": f"{nfe} calls" for nfe in budgets}


def controls(rows: Iterable[Mapping[str, Any]], budgets: Sequence[int]) -> list[Mapping[str, Any]]:
    """Return the rows of fitted solvers, and of what lacks a part of them, at the budgets where that was made."""
    kinds = (FITTED, GRID_ALONE, KARRAS, ASSUMED, TWO_M)
    return [row for row in rows if row["solver"] in kinds and row["budget"] in budgets]


def cost_lines(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return rows for the figure of :func:`cost_rows`, and the y label of each of its panels."""
    means = mean_and_spread(rows, "error", ("panel", "line", "trajectories"))
    drawn = [{**row, "distance": row["error"]} for row in means]
    return drawn, dict.fromkeys((row["panel"] for row in drawn), "paired error")


COSTS = {
    "budget": "budget",
    "trajectories": "trajectories",
    "seed": "seed",
    "error": "error on other noise",
    "solver": "solver",
    "cost": "evaluations",
    "together": "budgets of the fit",
}
"""Columns of the table of costs: key -> heading."""


def pictures(bed: Bed, solvers: Fits, budgets: Iterable[int], count: int) -> dict[str, dict[str, Tensor]]:
    """Return the first images of the first seed by fitted and DPM-Solver++(2M), beside the accurate ones."""
    seed, panels = next(iter(bed.noise)), {}
    x = bed.noise[seed][:count]
    for nfe in budgets:
        two_m = in_batches(classical(bed.model, "dpmpp_2m", "karras", nfe), x)
        own = in_batches(lambda x: solvers[seed][nfe](bed.model, x), x)  # noqa: B023
        panels[f"{nfe} calls"] = {TWO_M: two_m, FITTED: own, "accurate": bed.truth[seed][:count]}
    return panels


def grid_rows(bed: Bed, solvers: Fits, budgets: Iterable[int]) -> list[dict[str, Any]]:
    """Return the levels at which the network is asked, by number of the call; Karras's as ``expected``."""
    rows = []
    for nfe in budgets:
        known = schedules.karras(nfe, bed.model.sigma_max, bed.model.sigma_min)
        asked = [(False, some[nfe].sigmas[int(some[nfe].jump) :]) for some in solvers.values()]
        for expected, sigmas in [*asked, (True, known)]:
            about = {"panel": f"{nfe} calls", "arm": FITTED, "expected": expected}
            rows += [about | {"x": call, "y": sigma} for call, sigma in enumerate(sigmas[:-1].tolist(), 1)]
    return mean_and_spread(rows, "y", ("panel", "arm", "expected", "x"))


def coefficient_rows(solvers: Fits, nfe: int) -> list[dict[str, Any]]:
    """Return the coefficients of each seed's solver, and of DPM-Solver++(2M) on its grid, step by step."""
    rows = []
    for seed, some in solvers.items():
        for label, one in ((FITTED, some[nfe]), (GRID_ALONE, on_grid(some[nfe]))):
            for step, row in enumerate(one.coefficients.tolist(), 1):
                about = {"seed": seed, "solver": label, "step": step, "call": step - one.jump}
                about |= {"from": one.sigmas[step - 1].item(), "to": one.sigmas[step].item(), "a": row[0]}
                rows.append(about | {f"b{j}": row[1 + j] if 1 + j < len(row) else 0.0 for j in range(4)})
    return rows


COEFFICIENTS = {"b0": "of the newest D", "b1": "of the D before", "b2": "of the D before that"}


def coefficient_curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for a figure of one fit: a panel for each coefficient of D; the classical as ``expected``."""
    return [
        {"panel": panel, "arm": FITTED, "expected": row["solver"] != FITTED, "x": row["call"], "y": row[key]}
        for key, panel in COEFFICIENTS.items()
        for row in rows
        if row["call"]
    ]
