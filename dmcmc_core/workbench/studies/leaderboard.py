"""The leaderboard: solvers from noise and from states of chains, at budgets of full NFE, and what they reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core.errors import TooFew
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.integrators import Fitted
from dmcmc_core.integrators.fitted import load_all, load_from_levels, save_all
from dmcmc_core.metrics import paired_errors
from dmcmc_core.report import plots, tables
from dmcmc_core.report.beds import Beds
from dmcmc_core.report.tables import Spread, grouped, in_words, spread_of
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs import fitting
from dmcmc_core.runs.cache import code_key
from dmcmc_core.runs.plan import Request, calls_of_fitted
from dmcmc_core.workbench.studies.fitted_solvers import BEST, CLASSICAL, FITTED, LOOKS, SHOWN, Errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZERO, MEAN, DLG = "zero mean", "data mean", "with DLG"
NAMES = CLASSICAL | {FITTED: FITTED}
"""Sampler -> the name of the solver in tables and figures."""
FIT_SEED = 1000
"""Of the noise of fits, which no row begins with."""
HEADS = {"bed": "test-bed", "solver": "solver", "arm": "start"}
DETAILS = HEADS | {
    "budget": "budget",
    "nfe": "NFE, full",
    "nfe_paper": "NFE, paper's count",
    "levels": "levels",
    "frechet": "Fréchet distance",
    "kid": "KID",
    "paired_error": "paired error",
    "fit_nfe": "evaluations of the fit, all budgets",
}
"""Columns of the tables, key -> heading: of an entry, and of every cell."""
ALWAYS = ("nfe", "nfe_paper", "levels", "frechet", "kid")


class Entry(NamedTuple):
    """A solver by its name in tables, and where it starts: one of ZERO, MEAN and DLG."""

    solver: str
    arm: str

    @property
    def sampler(self) -> str:
        """The name that runs know it by."""
        name = next(name for name, label in NAMES.items() if label == self.solver)
        return f"dlg+{name}" if self.arm == DLG else name

    def __str__(self) -> str:
        return f"DLG + {self.solver}" if self.arm == DLG else f"{self.solver}, {self.arm}"


Cell = tuple[str, Entry, int]
"""Test-bed, entry and budget."""


class Fit(NamedTuple):
    """A file of solvers, and the network evaluations that the fit took, for all of its budgets together."""

    file: Path
    cost: int


class Results(NamedTuple):
    """Of a test-bed: rows of seeds, paired errors (seeds, n), and cells that are left empty, each with its reason."""

    rows: list[dict[str, Any]]
    errors: dict[Cell, Tensor]
    empty: list[dict[str, Any]]


class Board(NamedTuple):
    """What was measured: rows of seeds, by cell mean and spread of each quantity, and paired errors (seeds, n)."""

    rows: list[dict[str, Any]]
    details: dict[Cell, dict[str, Any]]
    errors: dict[Cell, Tensor]
    empty: list[dict[str, Any]]

    def distance(self, name: str, entry: Entry, budget: int) -> Spread | None:
        """Return the Frechet distance of a cell, None where it is empty."""
        found = self.details.get((name, entry, budget))
        return found["frechet"] if found else None

    def there(self, name: str, budget: int, arms: Iterable[str]) -> list[Entry]:
        """Return the entries of some arms that have a cell at a budget."""
        return [e for bed, e, b in self.details if (bed, b) == (name, budget) and e.arm in arms]

    def paired(self, name: str) -> Errors:
        """Return the errors of a test-bed from noise around the mean, as the study of fitted solvers takes them."""
        return {(e.solver, b): each for (bed, e, b), each in self.errors.items() if bed == name and e.arm == MEAN}


def entries(solvers: Sequence[str], zero_mean: Sequence[str], chained: Sequence[str], fits: bool = True) -> list[Entry]:
    """Return the entries of a test-bed: names of samplers by where they start, a fitted one never around zero.

    Without ``fits`` there is no fitted one.
    """
    arms = {ZERO: [s for s in solvers if s in zero_mean and s != FITTED], MEAN: solvers, DLG: chained}
    return [Entry(NAMES[s], arm) for arm, some in arms.items() for s in some if fits or s != FITTED]


def fit(bed: Testbed, budgets: Sequence[int], trajectories: int = 64, say: Callable[[str], None] = print) -> Fit:
    """Return solvers of a test-bed's network from noise, one for each budget."""
    return _kept(bed, budgets, trajectories, False, say)


def fit_chained(
    bed: Testbed,
    n: int,
    walks: Mapping[int, dict[str, Any]],
    trajectories: int = 64,
    say: Callable[[str], None] = print,
) -> Fit | None:
    """Return solvers for the states of chains, of the calls that each budget leaves; None where none leaves two.

    Args:
        bed: of the network.
        n: images of a cell, which share the warm-up of the chains.
        walks: budget -> settings of the chains.
        trajectories: of the fit.
        say: takes a line for each solver.
    """
    left = {calls_of_fitted(Request(bed.model, f"dlg+{FITTED}", walk), b, n) for b, walk in walks.items()}
    calls = sorted(c for c in left if c >= fitting.LEAST)
    return _kept(bed, calls, trajectories, True, say) if calls else None


def _kept(bed: Testbed, calls: Sequence[int], trajectories: int, chains: bool, say: Callable[[str], None]) -> Fit:
    """Fit unless there is a file of the same network, calls and code; say what it costs."""
    kind = "chains-" if chains else ""
    name = f"leaderboard-{kind}{fingerprint(bed.model)[:16]}-{'-'.join(map(str, [trajectories, *calls]))}.safetensors"
    path = bed.cache_dir / code_key() / "fitted" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        how = {"cache_dir": bed.cache_dir, "seed": FIT_SEED, "trajectories": trajectories}
        made = fitting.solvers(bed.model, calls, chains=chains, **how)
        save_all(path, [one for some in made.values() for one in some])
    found: dict[int, list[Fitted]] = (
        {c: list(one.solvers) for c, one in load_from_levels(path).items()}
        if chains
        else {c: [one] for c, one in load_all(path).items()}
    )
    say(f"{bed.name}{', states of chains' if chains else ''}: {fitting.cost_of(found)}")
    return Fit(path, next(iter(found.values()))[-1].cost)


def measure(  # noqa: PLR0913  a cell as it is asked for
    bed: Testbed,
    name: str,
    entry: Entry,
    budget: int,
    n: int,
    seeds: Iterable[int],
    walk: Mapping[str, Any],
    found: Fit | None,
) -> tuple[list[dict[str, Any]], Tensor | None]:
    """Return a row for each seed, and the paired error of each image, (seeds, n); None for what starts from chains.

    Args:
        bed, name: the test-bed, and what it is called.
        entry: solver and start.
        budget: full NFE of an image.
        n, seeds: images of a seed, and the seeds.
        walk: settings of the chains, which other arms leave alone.
        found: the solvers of an entry that is fitted.

    Raises:
        TooFew: for a budget that is too small for the entry.
    """
    chained, start = entry.arm == DLG, {"start": "zero" if entry.arm == ZERO else "mean"}
    settings = start | (dict(walk) if chained else {})
    if entry.solver == FITTED:
        if found is None:
            raise TooFew(f"{budget} NFE leave a fitted solver fewer than {fitting.LEAST} calls")
        settings = {k: v for k, v in settings.items() if chained or k != "start"} | {"file": str(found.file)}
    rows, errors = [], []
    for seed in seeds:
        truth = None if chained else bed.accurate(n, seed, start)
        about = {"bed": name, "solver": entry.solver, "arm": entry.arm}
        row = bed.row(entry.sampler, budget, n, seed, settings, truth, **about)
        row["settings"].pop("file", None)  # its place is that of the cache
        rows.append(row | ({"fit_nfe": found.cost} if found and entry.solver == FITTED else {}))
        if truth is not None:
            errors.append(paired_errors(bed.samples(entry.sampler, budget, n, seed, settings).images, truth))
    return rows, torch.stack(errors) if errors else None


def compete(  # noqa: PLR0913  a test-bed with all that takes part in it
    bed: Testbed,
    name: str,
    contest: Iterable[Entry],
    budgets: Sequence[int],
    n: int,
    seeds: Iterable[int],
    walks: Mapping[int, dict[str, Any]],
    fits: Mapping[tuple[str, bool], Fit | None],
    say: Callable[[str], None] = print,
) -> Results:
    """Measure every entry at every budget of a test-bed.

    Args:
        bed, name: the test-bed, and what it is called.
        contest: its entries.
        budgets: of entries without chains.
        n, seeds: images of a cell, and the seeds.
        walks: settings of the chains of each budget that has them.
        fits: solvers by test-bed, and whether they are for states of chains.
        say: takes a line for each cell.
    """
    found = Results([], {}, [])
    for entry in contest:
        chained = entry.arm == DLG
        for b in walks if chained else budgets:
            try:
                made, each = measure(
                    bed, name, entry, b, n, seeds, walks[b] if chained else {}, fits.get((name, chained))
                )
            except TooFew as reason:
                about = {"bed": name, "solver": entry.solver, "arm": entry.arm, "budget": b}
                found.empty.append(about | {"why": str(reason)})
                say(f"left empty: {name}, {entry}, {b} NFE: {reason}")
                continue
            found.rows.extend(made)
            found.errors.update({} if each is None else {(name, entry, b): each})
            say(f"{name:14} {entry!s:34} {b:3} NFE: {in_words(spread_of([row['frechet'] for row in made]))}")
    return found


def board(rows: list[dict[str, Any]], errors: dict[Cell, Tensor], empty: list[dict[str, Any]]) -> Board:
    """Return all that was measured, with mean and spread over seeds."""
    found = grouped(rows, (*ALWAYS, "paired_error", "fit_nfe"), ("bed", "solver", "arm", "budget"))
    details = {(bed, Entry(solver, arm), budget): cell for (bed, solver, arm, budget), cell in found.items()}
    for cell in details.values():
        cell |= {"fit_nfe": int(cell["fit_nfe"].mean)} if "fit_nfe" in cell else {}
    return Board(rows, details, errors, empty)


def details(here: Board) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row for every cell, and its columns: evaluations of fits only where there are any."""
    cells = list(here.details.values())
    return cells, {key: head for key, head in DETAILS.items() if any(key in cell for cell in cells)}


def caption(beds: Beds, here: Board) -> str:
    """Return what is measured on every test-bed, for the tables of distances."""
    why = " Some entries need more than the budget." if here.empty else ""
    return f"{beds.caption}; {len(beds.seeds)} seeds. With DLG only where it was asked for.{why}"


def table(
    here: Board, contest: Mapping[str, Sequence[Entry]], budgets: Sequence[int], quantity: str
) -> list[dict[str, Any]]:
    """Return a row for each entry that has the quantity anywhere, its values under ``nfe4`` and so on."""
    rows = []
    for name, some in contest.items():
        for e in some:
            values = {f"nfe{b}": here.details.get((name, e, b), {}).get(quantity) for b in budgets}
            if any(values.values()):
                rows.append({"bed": name, "solver": e.solver, "arm": e.arm} | values)
    return rows


def best(here: Board, name: str, arms: Iterable[str], budget: int) -> Entry | None:
    """Return the entry with the smallest mean distance among some arms, None where all are empty."""
    return min(here.there(name, budget, arms), key=lambda e: here.distance(name, e, budget), default=None)  # pyright: ignore


def against(
    here: Board, name: str, entry: Entry, others: Iterable[Entry], budget: int
) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Return entries that one is surely better than, those not to be told from it, and those surely better than it."""
    mine, signs = here.distance(name, entry, budget), {1: [], 0: [], -1: []}
    for other in others:
        value = here.distance(name, other, budget)
        if other != entry and mine and value:
            signs[tables.compare(mine, value)].append(other)
    return signs[1], signs[0], signs[-1]


def ranks(here: Board, contest: Mapping[str, Sequence[Entry]], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Return the ranks of entries among all of a bed: by mean distance, and 1 + those surely ahead."""
    lines = []
    for name, some in contest.items():
        for e in some:
            line: dict[str, Any] = {"bed": name, "solver": e.solver, "arm": e.arm}
            for b in budgets:
                there, mine = here.there(name, b, (ZERO, MEAN, DLG)), here.distance(name, e, b)
                if mine:
                    ahead = sum(here.distance(name, other, b).mean < mine.mean for other in there)  # pyright: ignore
                    line |= {f"mean{b}": 1 + ahead, f"sure{b}": 1 + len(against(here, name, e, there, b)[2])}
            lines.append(line)
    return lines


def points(here: Board, name: str, lines: Mapping[str, Entry], quantity: str, panel: str) -> list[dict[str, Any]]:
    """Return rows for a panel of a figure: a line for each entry, against the calls that it makes.

    Paired errors above SHOWN, of solvers that fail, are left out.
    """
    found = [
        {"panel": panel, "line": line, "budget": b, "nfe": cell["nfe"].mean, "distance": cell[quantity]}
        for line, entry in lines.items()
        for (bed, e, b), cell in here.details.items()
        if (bed, e) == (name, entry) and quantity in cell
    ]
    return [row for row in found if quantity != "paired_error" or row["distance"].mean <= SHOWN]


def figure(
    here: Board, beds: Mapping[str, Testbed], floor: Mapping[str, Spread], title: str
) -> tuple[Figure, list[dict[str, Any]]]:
    """Return the figure of solvers without chains, distances above and paired errors below, and its rows.

    All start around the data's mean; Heun around 0, whose line lies on that of Heun, is in the tables.
    """
    solvers = dict.fromkeys(e.solver for _, e, _ in here.details if e.arm == MEAN)
    lines = {s: Entry(s, MEAN) for s in solvers}
    kinds = {"frechet": "", "paired_error": ", paired"}
    drawn = [p for q, end in kinds.items() for name in beds for p in points(here, name, lines, q, name + end)]
    ylabels = {name: bed.distance for name, bed in beds.items()}
    ylabels |= {f"{name}, paired": "paired error, in units of the data" for name in beds}
    references = {name: f.mean for name, f in floor.items()}
    return plots.distance_lines(drawn, ylabels, references, title, ncols=len(beds), looks=LOOKS), drawn


def figure_chained(
    here: Board, beds: Mapping[str, Testbed], floor: Mapping[str, Spread], title: str
) -> tuple[Figure, list[dict[str, Any]]]:
    """Return the figure of solvers with chains, beside the best without, and its rows."""
    solvers = dict.fromkeys(e.solver for _, e, _ in here.details if e.arm == DLG)
    budgets = dict.fromkeys(b for _, e, b in here.details if e.arm == DLG)
    first, drawn = "the best without DLG", []
    for name in beds:
        for b in budgets:
            if top := best(here, name, (ZERO, MEAN), b):
                drawn += [p for p in points(here, name, {first: top}, "frechet", name) if p["budget"] == b]
        drawn += points(here, name, {f"DLG + {s}": Entry(s, DLG) for s in solvers}, "frechet", name)
    looks = {f"DLG + {s}": LOOKS[s] for s in solvers} | {first: LOOKS[BEST]}
    ylabels = {name: bed.distance for name, bed in beds.items()}
    references = {name: floor[name].mean for name in beds}
    return plots.distance_lines(drawn, ylabels, references, title, looks=looks), drawn
