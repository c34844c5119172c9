"""Draw published figures again from their published numbers, as the code of today draws them.

    python benchmarks/redraw.py

A run of ``full`` takes hours, and its pictures are drawn from numbers that are published too. What is drawn is noted in
``provenance.json``. The numbers stay as the run made them, but for the names of panels.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from dmcmc_core.files import root, write_json
from dmcmc_core.report import plots
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.experiments import Project, gallery, published
from dmcmc_core.workbench.studies import pds, score_embedding_curves

NOTE = "The picture {} was drawn again from its published numbers by `python benchmarks/redraw.py`."


def numbers(path: Path, *measured: str) -> list[dict[str, Any]]:
    """Return the rows of a published CSV; of each measured column the three columns of its spread are one."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        for name in measured:
            spread = float(row.pop(f"{name}_spread")), int(row.pop(f"{name}_n"))
            row[name] = Spread(float(row[name]), *spread)
        for name in row.keys() & {"nfe", "step"}:
            row[name] = float(row[name])
    return rows


def pds_distance(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Return distance against iterations in panels of at most eight lines, and its rows."""
    known = list({(row["panel"].split(":")[0], row["line"], row["nfe"]): row for row in _old(folder)}.values())
    arms: dict[str, dict[str, list]] = {}
    for row in known:
        arms.setdefault(row["panel"].split(":")[0], {}).setdefault(row["line"], []).append(row)
    points = [
        row | {"panel": panel}
        for name, tried in arms.items()
        for panel, shown in pds.panels_of(name, tried).items()
        for arm in shown
        for row in tried[arm]
    ]
    caption = (folder / "pds-table.md").read_text(encoding="utf-8").splitlines()[0]
    labels = dict(re.findall(r"(?:^|; )(\w+): (Fréchet distance \([^)]*\))", caption))
    floors = re.findall(r"(?:^|; )(\w+): Fréchet[^;]*same-n floor ([\d.]+)", caption)
    floors = {name: float(floor) for name, floor in floors}
    return pds.drawn(points, labels, floors, points[0]["distance"].n), points


def _old(folder: Path) -> list[dict[str, Any]]:
    return numbers(folder / "pds-distance.csv", "distance")


def score_embedding(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Return similarity against steps in two panels, and its rows."""
    rows = numbers(folder / "score-embedding-curves.csv", "ssim")
    caption = (folder / "score-embedding-table.md").read_text(encoding="utf-8").splitlines()[0]
    return score_embedding_curves.figure(rows, caption.split(". ")[1]), rows


FIGURES = (
    ("full", "pds", "pds-distance", pds_distance),
    ("full", "score-embedding", "score-embedding-curves", score_embedding),
    ("local", "score-embedding", "score-embedding-curves", score_embedding),
)
"""Profile, item, its figure, and what draws it."""


def main() -> None:
    """Draw the figures and write them, their note and the gallery."""
    project = Project(root())
    for profile, item, name, draw in FIGURES:
        folder = project.published(profile)
        entries = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        figure, rows = draw(folder)
        with tempfile.TemporaryDirectory() as place:
            for path in plots.save_figure(figure, place, name, rows, provenance={}):
                if path.suffix in published.SHOWN:
                    published.copy_small(path, folder / path.name)
        entries["items"][item]["note"] = NOTE.format(name)
        write_json(folder / "provenance.json", entries)
        print(f"drew {folder / name}.png")
    gallery.write_gallery(project)


if __name__ == "__main__":
    main()
