"""What a comparison of samplers is: rows, verdicts on pairs of them, and how both are shown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dmcmc_core import metrics
from dmcmc_core.report.measuring import Bench, Measured
from dmcmc_core.report.tables import Spread, as_text, mean_and_spread, write_table
from dmcmc_core.report.testbed import ACCURATE
from dmcmc_core.report.verdicts import LEVEL, Verdict, of_distances, of_errors, rms

PAIRED = "paired error"


class Arm(NamedTuple):
    """A sampler with its settings at a budget: a row of a comparison."""

    sampler: str
    settings: str
    """JSON."""
    budget: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`dmcmc_core.compare` found; printed, it is the tables.

    Attributes:
        rows: of each sampler and budget ``sampler``, ``budget``, ``nfe`` (full count), ``n`` of a seed, ``seeds``,
            ``paired_error`` in units of the data and ``frechet``, each a :class:`Spread` over seeds or None.
        pairs: of each two rows ``sampler`` and ``budget``, ``verdict`` on them (better, worse, cannot tell) beside
            ``than`` and ``than_budget``, ``by``, ``difference``, ``p`` and ``test``.
        distance: what the Fréchet distance is called; empty without a reference.
        caption: model, n, seeds and what decides.
        pictures: budget -> sampler -> first images, of the same seed where there is one.
        data_range: of the pictures.
    """

    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    distance: str
    caption: str
    pictures: dict[str, dict[str, Tensor]]
    data_range: tuple[float, float]

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the rows: key -> heading."""
        measured = {"paired_error": PAIRED, "frechet": self.distance}
        shown = {key: head for key, head in measured.items() if any(row[key] is not None for row in self.rows)}
        return {"sampler": "sampler", "budget": "budget", "nfe": "NFE", "n": "n", "seeds": "seeds"} | shown

    @property
    def pair_columns(self) -> dict[str, str]:
        """Columns of the pairs: key -> heading."""
        names = ("sampler", "budget", "verdict", "than", "than_budget", "by", "difference", "p", "test")
        return {name: name.replace("_", " ") for name in names}

    def __str__(self) -> str:
        shown = [pair for pair in self.pairs if pair["budget"] == pair["than_budget"]] or self.pairs
        left = len(self.pairs) - len(shown)
        more = f"\n{left} pairs of unequal budgets are in pairs.csv" if left else ""
        return f"{as_text(self.rows, self.columns)}\n\n{as_text(shown, self.pair_columns)}{more}\n\n{self.caption}"

    def write(self, out: str | Path) -> list[Path]:
        """Write both tables (CSV, Markdown, LaTeX), ``plot.png`` and ``grid.png`` into a folder; return their paths.

        The grid is left out for images that no figure shows, and both pictures where matplotlib is not installed.
        """
        paths = write_table(self.rows, self.columns, out, "comparison", self.caption, {})
        if self.pairs:
            paths += write_table(self.pairs, self.pair_columns, out, "pairs", self.caption, {})
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            return paths
        return paths + self._draw(Path(out))

    def _draw(self, out: Path) -> list[Path]:
        from dmcmc_core.report import plots

        ylabels = {key: head for key, head in self.columns.items() if key in ("paired_error", "frechet")}
        points = [
            {"panel": head, "line": row["sampler"], "nfe": row["nfe"], "distance": row[key]}
            for key, head in ylabels.items()
            for row in self.rows
            if row[key] is not None
        ]
        figure = plots.distance_lines(points, {head: head for head in ylabels.values()})
        paths = plots.save_figure(figure, out, "plot", points, {})
        if next(iter(next(iter(self.pictures.values())).values())).shape[1] in (1, 3):
            grid = plots.image_rows(self.pictures, self.data_range)
            paths.append(plots.save_png(grid, out / "grid.png"))
        return paths


def comparison(
    found: Mapping[Arm, Mapping[int, Measured]], bench: Bench, model: str, data_range: tuple[float, float]
) -> Comparison:
    """Return the tables of what was measured."""
    labels = _labels(found)
    rows = [_row(arm, labels[arm], list(runs.values())) for arm, runs in found.items()]
    distance = metrics.distance_name(bench.reference.extractor.name) if bench.reference else ""
    pairs = [
        {"sampler": labels[a], "budget": a.budget, "verdict": v.word, "than": labels[b], "than_budget": b.budget}
        | {"by": by, "difference": v.difference, "p": v.p, "test": v.test}
        for a, b in itertools.combinations(found, 2)
        for by, v in _verdicts(found[a], found[b], distance, metrics.rounding(data_range))
    ]
    said = [f"{model}; mean and spread over seeds", "lower is better"]
    if any(row["paired_error"] for row in rows):
        said.append(f"paired error: to {ACCURATE[0]} of {ACCURATE[1]} calls from the same noise, in units of the data")
    if bench.reference:
        said.append(f"{distance}: to {bench.reference.name}, n {bench.reference.n or 'unknown'}")
    if bench.reference and (floor := metrics.same_n_floor(bench.reference, rows[0]["n"])) is not None:
        said.append(f"as many of the reference itself: {floor:.4g}")
    said.append(f"better and worse: p < {LEVEL:g} for each pair alone")
    said += [bench.missing] if bench.missing else []
    return Comparison(rows, pairs, distance, "; ".join(said) + ".", _pictures(found, labels), data_range)


def _labels(arms: Iterable[Arm]) -> dict[Arm, str]:
    """Return the samplers' names, with those settings that are not the same in all rows."""
    every = {arm: json.loads(arm.settings) for arm in arms}
    items = [{(k, json.dumps(v)) for k, v in settings.items()} for settings in every.values()]
    shared = set.intersection(*items)
    labels = {}
    for arm, settings in every.items():
        own = [f"{k}={v}" for k, v in settings.items() if (k, json.dumps(v)) not in shared and k != "file"]
        labels[arm] = arm.sampler + (f" ({', '.join(own)})" if own else "")
    return labels


def _row(arm: Arm, label: str, runs: Sequence[Measured]) -> dict[str, Any]:
    errors = [{"paired_error": rms(run.errors[None]).item()} for run in runs if run.errors is not None]
    distances = [{"frechet": run.distance.value} for run in runs if run.distance is not None]
    return {
        "sampler": label,
        "budget": arm.budget,
        "nfe": sum(run.nfe for run in runs) / len(runs),
        "n": runs[0].n,
        "seeds": len(runs),
        "paired_error": _over_seeds(errors, "paired_error"),
        "frechet": _over_seeds(distances, "frechet"),
    }


def _over_seeds(rows: list[dict[str, float]], value: str) -> Spread | None:
    return mean_and_spread(rows, value, ())[0][value] if rows else None


def _verdicts(
    one: Mapping[int, Measured], other: Mapping[int, Measured], distance: str, rounding: float
) -> Iterable[tuple[str, Verdict]]:
    """Yield what decides and the verdict: by paired errors where both have them, by distances where there are any."""
    errors = [{seed: run.errors for seed, run in runs.items() if run.errors is not None} for runs in (one, other)]
    if all(errors):
        yield PAIRED, of_errors(errors[0], errors[1], rounding)
    if distance:
        both = [{seed: run.distance for seed, run in runs.items() if run.distance} for runs in (one, other)]
        yield distance, of_distances(both[0], both[1])


def _pictures(found: Mapping[Arm, Mapping[int, Measured]], labels: Mapping[Arm, str]) -> dict[str, dict[str, Tensor]]:
    """Return first images by budget and sampler, of one seed that all rows have, else of each its own first."""
    common = set.intersection(*(set(runs) for runs in found.values()))
    pictures: dict[str, dict[str, Tensor]] = {}
    for arm, runs in found.items():
        seed = min(common or runs)
        panel = f"{arm.budget:g} NFE, seed {seed}"
        pictures.setdefault(panel, {})[labels[arm]] = runs[seed].pictures
    return pictures
