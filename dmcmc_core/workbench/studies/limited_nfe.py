"""What to choose at few network evaluations: plain solvers, and DLG with chains tuned by hand and by a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dmcmc_core.errors import TooFew
from dmcmc_core.report import plots
from dmcmc_core.report.beds import Beds
from dmcmc_core.report.tables import Spread, compare, grouped, in_words, mean_and_spread, spread_of
from dmcmc_core.runs import tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
ZERO, MEAN, DLG = "Heun, zero mean", "Heun, data mean", "DLG + Heun"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    ZERO: ("heun", {"start": "zero"}),
    MEAN: ("heun", {"start": "mean"}),
    "DPM-Solver++(2M), data mean": ("dpmpp_2m", {"start": "mean"}),
    DLG: ("dlg+heun", {"start": "mean"}),
    "DLG + DPM-Solver++(2M)": ("dlg+dpmpp_2m", {"start": "mean"}),
}
"""Label -> sampler and settings; those with chains take the hand-tuned ones as well."""
PLAIN = [label for label, (sampler, _) in METHODS.items() if not sampler.startswith("dlg+")]
TUNED = [label for label in METHODS if label not in PLAIN]
SEARCHES = {tuning.AUTO: TUNED, tuning.AUTO_OR_PLAIN: list(METHODS)}
"""Search -> the methods that it should be as good as."""
BY = ("bed", "method", "budget")
QUANTITIES = ("nfe", "nfe_paper", "frechet", "kid", "precision", "recall")


class Measured(NamedTuple):
    """Rows of seeds, cells that a budget is too small for with the reason, and what searches cost and chose."""

    rows: Rows
    empty: Rows
    searches: Rows


class Cells(NamedTuple):
    """Cells by test-bed, method and budget: mean and spread of each of :data:`QUANTITIES`, and levels."""

    details: dict[tuple[str, str, int], dict[str, Any]]
    levels: dict[tuple[str, str, int], int]

    def distance(self, name: str, label: str, budget: int) -> Spread | None:
        """Return the distance of a cell, None where it is empty."""
        found = self.details.get((name, label, budget))
        return found["frechet"] if found else None

    def best(self, name: str, labels: Iterable[str], budget: int) -> tuple[str, Spread] | None:
        """Return the method with the smallest mean distance and that, None where all are empty."""
        some = [(label, d) for label in labels if (d := self.distance(name, label, budget))]
        return min(some, key=lambda one: one[1].mean, default=None)


def measure(
    beds: Beds,
    budgets: Sequence[int],
    auto_budgets: Sequence[int],
    chain: Mapping[str, Mapping[str, Any]],
    windows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Measured:
    """Measure every method at every budget, and searches where asked for.

    Args:
        beds: the test-beds.
        budgets: full NFE of an image.
        auto_budgets: those of them at which chains are searched for.
        chain: test-bed -> settings of the chains.
        windows: test-bed -> those that each budget has of its own.
    """
    found = Measured([], [], [])
    for name, bed in beds.loaded.items():
        for budget, window in zip(budgets, windows[name], strict=True):
            for label, (sampler, settings) in METHODS.items():
                walk = {**chain[name], **window} if label in TUNED else {}
                _measure(found, beds, name, label, budget, sampler, settings | walk)
            if budget not in auto_budgets:
                continue
            searched = tuning.auto(bed.model, budget, beds.n[name], cache_dir=bed.cache_dir)
            for search in SEARCHES:
                tuned = searched.or_plain() if search == tuning.AUTO_OR_PLAIN else searched
                about = {"bed": name, "search": search, "budget": budget, "n": beds.n[name], "sampler": tuned.sampler}
                found.searches.append(about | {"rows": tuned.rows, "per_image": tuned.nfe, "settings": tuned.settings})
                print(f"{name:8} {search}: {tuned}")
                _measure(found, beds, name, search, budget, tuned.sampler, tuned.settings)
    return found


def _measure(  # noqa: PLR0913  a cell
    found: Measured, beds: Beds, name: str, label: str, budget: int, sampler: str, settings: dict[str, Any]
) -> None:
    """Add the rows of a cell, or the reason why it is empty."""
    bed, about = beds.loaded[name], {"bed": name, "method": label}
    try:
        made = [bed.row(sampler, budget, beds.n[name], seed, settings, **about) for seed in beds.seeds]
    except TooFew as reason:
        found.empty.append(about | {"budget": budget, "why": str(reason)})
        print(f"left empty: {name}, {label}, {budget} NFE: {reason}")
        return
    found.rows.extend(made)
    print(f"{name:8} {label:32} {budget:3} NFE: {in_words(spread_of(row['frechet'] for row in made))}", flush=True)


def cells_of(rows: Rows) -> Cells:
    """Return the cells of rows over seeds."""
    return Cells(grouped(rows, QUANTITIES, BY), {tuple(row[k] for k in BY): row["levels"] for row in rows})  # pyright: ignore


def table(cells: Cells, beds: Iterable[str], labels: Sequence[str], budgets: Sequence[int]) -> Rows:
    """Return a row for each test-bed and method, its distances under ``nfe5`` and so on."""
    return [
        {"bed": name, "method": label} | {f"nfe{b}": cells.distance(name, label, b) for b in budgets}
        for name in beds
        for label in labels
    ]


def caption(beds: Beds, cells: Cells, budgets: Sequence[int], auto_budgets: Sequence[int], empty: Rows) -> str:
    """Return what distances are, what warm-up costs, and why cells are empty."""
    text = f"{beds.caption}; {len(beds.seeds)} seeds."
    for name in beds.loaded:
        shared = [cell for b in budgets if (cell := cells.details.get((name, DLG, b)))]
        warm = [f"{cell['nfe'].mean - cell['nfe_paper'].mean:.2g} at {cell['budget']}" for cell in shared]
        text += f" Of each image's NFE the warm-up of {DLG} on {name} takes {', '.join(warm)}." if warm else ""
    text += " Empty: the method needs more than the budget." if empty else ""
    if auto_budgets and set(auto_budgets) < set(budgets):
        text += f" {' and '.join(SEARCHES)} were tuned at {' and '.join(map(str, auto_budgets))} NFE only."
    return text


def points(cells: Cells, beds: Iterable[str], labels: Sequence[str], budgets: Sequence[int]) -> Rows:
    """Return rows for a figure: a panel for each test-bed, a line for each method."""
    return [
        {"panel": name, "line": label, "budget": b, "nfe": cell["nfe"].mean, "distance": cell["frechet"]}
        for name in beds
        for label in labels
        for b in budgets
        if (cell := cells.details.get((name, label, b)))
    ]


def figure(beds: Beds, drawn: Rows) -> Figure:
    """Draw the distance against network evaluations."""
    return plots.distance_lines(drawn, beds.ylabels, beds.floors, beds.title)


def figure_of_time(beds: Beds, drawn: Rows, rows: Rows) -> tuple[Figure, Rows]:
    """Draw the same against milliseconds of an image, as they were when the cell was made; return its points too."""
    timed = [r | {"ms": 1000 * sum(r["seconds"].values()) / r["n"]} for r in rows if r["seconds"]]
    ms = {tuple(g[k] for k in BY): g["ms"].mean for g in mean_and_spread(timed, "ms", BY)}
    drawn = [p | {"ms": ms.get((p["panel"], p["line"], p["budget"]))} for p in drawn]
    title = beds.title if ms else "no cell here has its time recorded"
    how = {"x": "ms", "xlabel": "milliseconds per image"}
    return plots.distance_lines(drawn, beds.ylabels, beds.floors, title, **how), drawn


def shares(rows: Rows, cells: Cells, beds: Iterable[str], budgets: Sequence[int]) -> Rows:
    """Return the share of DLG's gain on Heun around 0 that remains against Heun around the data's mean.

    share = (data mean - DLG) / (zero mean - DLG), ``of_means`` of the means and ``share`` seed by seed; both None where
    DLG is not surely better than the published start.
    """
    return [_share(rows, cells, name, b) for name in beds for b in budgets]


def _share(rows: Rows, cells: Cells, name: str, budget: int) -> dict[str, Any]:
    zero, mean, dlg = (cells.distance(name, label, budget) for label in (ZERO, MEAN, DLG))
    line = {"bed": name, "budget": budget, "zero": zero, "mean": mean, "dlg": dlg, "of_means": None, "share": None}
    if dlg is None:
        return line | {"verdict": "DLG needs more than the budget"}
    assert zero and mean, f"{name} at {budget} NFE: nothing was measured without chains"
    if (sign := compare(dlg, zero)) < 1:
        return line | {"verdict": "no gain: DLG is worse" if sign == -1 else "no sure gain"}
    by_seed: dict[int, dict[str, float]] = {}
    for row in rows:
        if (row["bed"], row["budget"]) == (name, budget):
            by_seed.setdefault(row["seed"], {})[row["method"]] = row["frechet"]
    ratios = spread_of((of[MEAN] - of[DLG]) / (of[ZERO] - of[DLG]) for of in by_seed.values())
    against = {1: "better than", 0: "no sure difference from", -1: "worse than"}[compare(dlg, mean)]
    of_means = (mean.mean - dlg.mean) / (zero.mean - dlg.mean)
    return line | {"of_means": of_means, "share": ratios, "verdict": f"DLG: {against} the data-mean start"}


def sentence(lines: Rows, where: str) -> str:
    """Return what can be said of a test-bed, in words; ``lines``: its :func:`shares`, ``where``: name, n and seeds."""
    gain, none = ([x for x in lines if (x["share"] is not None) == wanted] for wanted in (True, False))
    if not gain:
        return f"On {where} {DLG} gains nothing sure on Heun around 0 at {listed(none)} NFE."
    values = ", ".join(
        f"{100 * x['of_means']:.0f} % (seed by seed {100 * x['share'].mean:.0f} ± {100 * x['share'].spread:.0f} %)"
        for x in gain
    )
    text = f"On {where} {values} of DLG's gain on Heun around 0 remains at {listed(gain)} NFE against Heun around the "
    return text + "data's mean" + (f"; at {listed(none)} NFE no gain is sure." if none else ".")


def listed(lines: Rows) -> str:
    """Return the budgets of rows as words have them."""
    numbers = [str(x["budget"]) for x in lines]
    return " and ".join([", ".join(numbers[:-1]), numbers[-1]] if len(numbers) > 1 else numbers)
