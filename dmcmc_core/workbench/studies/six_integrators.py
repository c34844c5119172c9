"""The six integrators of Denoising MCMC with chains and without: at equal budgets, and a low budget against a high one.

Kim & Ye 2023 (arXiv 2209.14593), Figures 3 to 5. The control that the paper has not is a start around the data's mean,
which costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dmcmc_core.report.beds import Beds
from dmcmc_core.report.tables import Spread, grouped, mean_and_spread

Rows = list[dict[str, Any]]
ZERO, MEAN, DLG = "zero mean", "data mean", "with DLG"
INTEGRATORS = {
    "heun": "KAR1 (Heun)",
    "probability_flow": "Probability flow",
    "rk45": "RK45",
    "heun_churn": "KAR2 (Heun with churn)",
    "reverse_diffusion": "Reverse diffusion",
    "euler_maruyama": "Euler-Maruyama",
}
"""Integrator -> the paper's name, in its order."""
BY = ("bed", "integrator", "arm", "budget")
HEADS = {"nfe": "NFE, full", "nfe_paper": "NFE, paper's count", "frechet": "Fréchet distance", "kid": "KID"}
HEADS |= {"recall": "recall"}
COPIES = {"nearer_train": "nearer to training", "data_covered": "data covered"}
"""What a test-bed can tell of copies: the former with training images, the latter where the model is exact."""
Key = tuple[str, str, str, int]
"""Test-bed, integrator as the paper calls it, arm and budget."""


class Wanted(NamedTuple):
    """A cell that is to be made: its arm, budget, sampler and settings."""

    arm: str
    budget: int
    sampler: str
    settings: dict[str, Any]


class Cells(NamedTuple):
    """Mean and spread by cell, and the levels that the integrator had."""

    details: dict[Key, dict[str, Any]]
    levels: dict[Key, int | None]

    def distance(self, bed: str, integrator: str, arm: str, budget: int) -> Spread:
        """Return the distance of a cell, of an integrator as samplers call it."""
        return self.details[bed, INTEGRATORS[integrator], arm, budget]["frechet"]

    def nfe(self, bed: str, integrator: str, arm: str, budget: int) -> float:
        """Return its full NFE."""
        return self.details[bed, INTEGRATORS[integrator], arm, budget]["nfe"].mean

    @property
    def points(self) -> Rows:
        """Rows for figures: ``panel`` is the test-bed."""
        return [
            cell | {"panel": cell["bed"], "nfe": cell["nfe"].mean, "distance": cell["frechet"]}
            for cell in self.details.values()
        ]


def equal_budgets(
    budgets: Callable[[str], Sequence[tuple[int, Mapping[str, Any]]]],
    chain: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Callable[[str, str], Iterator[list[Wanted]]]:
    """Return what Figure 3 asks of an integrator: at each budget the three arms.

    Args:
        budgets: integrator -> pairs of a budget and the settings of the chains that are its own.
        chain: settings of the chains.
        settings: of all arms.
    """

    def wanted(bed: str, integrator: str) -> Iterator[list[Wanted]]:
        for budget, window in budgets(integrator):
            walk = {"start": "mean", **settings, **chain, **window}
            yield [
                Wanted(ZERO, budget, integrator, {"start": "zero", **settings}),
                Wanted(MEAN, budget, integrator, {"start": "mean", **settings}),
                Wanted(DLG, budget, f"dlg+{integrator}", walk),
            ]

    return wanted


def of(choices: Mapping[str, Mapping[str, Any]], bed: str, integrator: str) -> Any:
    """Return the choice for an integrator on a test-bed, or the one that all others share."""
    return choices[bed].get(integrator, choices[bed].get("default"))


def low_and_high(
    budgets: Mapping[str, Mapping[str, Sequence[int]]],
    chain: Mapping[str, Mapping[str, Any]],
    windows: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Callable[[str, str], Iterator[list[Wanted]]]:
    """Return what Figure 4 asks of an integrator: around 0 at the high budget, with DLG at the low, a control at both.

    Args:
        budgets: test-bed -> integrator or ``default`` -> low and high full NFE.
        chain: test-bed -> settings of the chains.
        windows: test-bed -> integrator or ``default`` -> those that are its own.
    """

    def wanted(bed: str, integrator: str) -> Iterator[list[Wanted]]:
        low, high = of(budgets, bed, integrator)
        walk = {"start": "mean", **chain[bed], **of(windows, bed, integrator)}
        yield [
            Wanted(ZERO, high, integrator, {"start": "zero"}),
            Wanted(DLG, low, f"dlg+{integrator}", walk),
            Wanted(MEAN, low, integrator, {"start": "mean"}),
            Wanted(MEAN, high, integrator, {"start": "mean"}),
        ]

    return wanted


def measure(beds: Beds, wanted: Callable[[str, str], Iterable[list[Wanted]]]) -> Rows:
    """Return a row for each cell and seed."""
    rows = []
    for name, bed in beds.loaded.items():
        for integrator, label in INTEGRATORS.items():
            for cells in wanted(name, integrator):
                made = [
                    bed.row(sampler, budget, beds.n[name], seed, settings, bed=name, integrator=label, arm=arm)
                    for arm, budget, sampler, settings in cells
                    for seed in beds.seeds
                ]
                means = mean_and_spread(made, "frechet", ["arm", "budget"])
                told = ", ".join(f"{g['arm']} at {g['budget']} {g['frechet'].mean:.3g}" for g in means)
                print(f"{name:8} {label:24} {told}", flush=True)
                rows += made
    return rows


def cells_of(rows: Rows) -> Cells:
    """Return the cells of rows over seeds, with what each can tell of copies."""
    details = grouped(rows, (*HEADS, *COPIES), BY)
    return Cells(details, {tuple(row[k] for k in BY): row["levels"] for row in rows})  # pyright: ignore


def heads(cells: Cells, by: Sequence[str] = BY, copies: bool = False) -> dict[str, str]:
    """Return the headings of a table of all cells, with those of :data:`COPIES` that there are."""
    first = next(iter(cells.details.values()))
    return {k: k for k in by} | HEADS | {k: head for k, head in COPIES.items() if copies and k in first}


def about_copies(rows: Rows) -> str:
    """Return sentences on :data:`COPIES` for a caption, each after a space."""
    text = ""
    if "nearer_train" in rows[0]:
        fresh = rows[0]["nearer_train_fresh"]
        text += " Nearer to training: share of images that are nearer to a training image than to any held-out one "
        text += f"({fresh:.2f} for held-out images)."
    if "data_covered" in rows[0]:
        text += f" Data covered: {rows[0]['data_covered_by_exact_draws']:.3f} is expected of exact draws."
    return text


def samples(
    beds: Beds,
    cells: Cells,
    wanted: Callable[[str, str], Iterator[list[Wanted]]],
    seed: int,
    columns: int = 6,
) -> tuple[dict[str, dict[str, Tensor]], Rows]:
    """Return the first images of a seed, in [0, 1], without DLG and with it, and rows that say what they are."""
    panels: dict[str, dict[str, Tensor]] = {}
    shown = []
    for name, bed in beds.loaded.items():
        for arm, title in ((ZERO, "without DLG"), (DLG, "with DLG")):
            panel = panels.setdefault(f"{name}: {title}", {})
            for integrator, label in INTEGRATORS.items():
                (_, budget, sampler, settings) = next(w for w in next(wanted(name, integrator)) if w.arm == arm)
                images = bed.samples(sampler, budget, beds.n[name], seed, settings).images[:columns]
                spent = cells.nfe(name, integrator, arm, budget)
                panel[f"{label}\n{spent:.1f} NFE"] = bed.unit(images)
                about = {"bed": name, "arm": arm, "integrator": label, "budget": budget, "nfe": spent, "seed": seed}
                shown.append(about)
    return panels, shown
