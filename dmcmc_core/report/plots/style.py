"""The look that all figures share, their panels, the numbers of a line, and how a figure is written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogLocator, NullFormatter

from dmcmc_core.errors import UserError
from dmcmc_core.files import replacing
from dmcmc_core.report.tables import Spread, embedded, read_provenance, write_csv

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
"""Those of Okabe and Ito, with a dark red of Tol in the place of their yellow, which is hardly seen on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
ARMS = {"zero mean": 0, "data mean": 2, "with DLG": 1}
"""The arms of every comparison, each with its own colour, marker and line in every figure."""

COLUMN = 7.0
"""Inches of the text of a page: no letter of a figure that is shown so wide has less than 7 points."""
LOW = 3.5
"""Inches below which a label of one line at the left would be as long as the figure is high."""
GREY = "#888888"
REFERENCE = {"color": GREY, "linewidth": 1, "zorder": 1}

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "dmcmc",
}

styled = matplotlib.style.context(STYLE, after_reset=True)
"""Decorator: run a drawing function under this module's style whatever the user's own settings are."""


@styled
def save_figure(
    figure: Figure,
    out_dir: str | Path,
    name: str,
    data_rows: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``name.png``, ``name.pdf`` and ``name.csv`` (the plotted numbers, no mappings); return their paths.

    The files hold their provenance (PNG text ``Provenance``, PDF keywords) and no date: the same figure gives the same
    bytes. ``provenance`` is read from ``out_dir/provenance.json`` when None. Raises UserError without rows.
    """
    if not data_rows:
        raise UserError(f"figure {name!r} needs the rows of plotted numbers, not an empty list")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    origin = embedded(provenance if provenance is not None else read_provenance(out_dir))
    if engine := figure.get_layout_engine():  # lay it out and find its edges once: every file would do both again
        engine.execute(figure)
    figure.set_layout_engine(None)  # "none" would have every file drawn twice
    edges = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])
    paths = []
    for ending, metadata in (
        ("png", {"Software": None, "Provenance": origin}),
        ("pdf", {"CreationDate": None, "Keywords": origin}),
    ):
        paths.append(out_dir / f"{name}.{ending}")
        with replacing(paths[-1]) as part:
            figure.savefig(part, format=ending, metadata=metadata, bbox_inches=edges)
    columns = list(dict.fromkeys(key for row in data_rows for key, v in row.items() if not isinstance(v, Mapping)))
    return [*paths, write_csv(data_rows, columns, out_dir / f"{name}.csv")]


@styled
def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure that has no numbers, such as a grid of images, as PNG; return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None}, bbox_inches="tight")
    return path


def look(k: int) -> dict[str, str]:
    """Return colour, marker and line of the k-th method; colours come again with other markers and lines."""
    shifted = k + k // len(COLOURS)
    marker, line = MARKERS[shifted % len(MARKERS)], LINES[shifted % len(LINES)]
    return {"color": COLOURS[k % len(COLOURS)], "marker": marker, "linestyle": line}


def panel_grid(figure: FigureBase, count: int, ncols: int, **share: bool) -> list[Axes]:
    """Make ``count`` panels, ``ncols`` in a row; what is left of the last row stays empty."""
    grid = list(figure.subplots(math.ceil(count / ncols), ncols, squeeze=False, **share).flat)
    for axes in grid[count:]:
        axes.remove()
    return grid[:count]


def finish(
    figure: Figure,
    handles: Mapping[str, Any] | None = None,
    title: str | None = None,
    ylabel: str | None = None,
    ncols: int | None = None,
    **legend: Any,
) -> Figure:
    """Put a legend (label -> handle) below all panels, a label at their left, or of the only one, and a title above.

    What stands in brackets in the label has a line of its own where the figure is low. The legend is one row, or
    has ``ncols`` columns, as far as the figure is wide enough. A panel's title has more lines where it is wider.
    """
    if handles:
        _legend(figure, handles, ncols or len(handles), **legend)
    if ylabel:
        text = ylabel.replace(" (", "\n(") if figure.get_figheight() < LOW else ylabel
        if len(figure.axes) == 1:
            figure.axes[0].set_ylabel(text)
        else:
            figure.supylabel(text, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    _wrap_titles(figure)
    return figure


def _legend(figure: Figure, handles: Mapping[str, Any], columns: int, **legend: Any) -> None:
    """Put a legend below all panels, of fewer columns where it would be wider than the figure."""
    while True:
        place = {"loc": "outside lower center", "ncols": columns}
        made = figure.legend(handles.values(), handles.keys(), **place, **legend)
        if columns == 1 or made.get_window_extent().width <= figure.bbox.width:
            return
        made.remove()
        columns -= 1


def _wrap_titles(figure: Figure) -> None:
    """Break the titles of panels that are wider than these, between words."""
    if len(figure.axes) > 1:
        figure.draw_without_rendering()
        for axes in figure.axes:
            width, room = (part.get_window_extent().width for part in (axes.title, axes))
            if width > 1.15 * room:
                text = axes.get_title()
                axes.set_title(textwrap.fill(text, max(8, int(len(text) * room / width))))


def plain_log(axes: Axes, which: str, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Make the ``"x"`` or ``"y"`` axis logarithmic, with plain numbers at ``subs`` times the powers of ten."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def unique(rows: Iterable[Mapping[str, Any]], key: str) -> list:
    """Return the values of a column, each once, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def points(rows: Iterable[Mapping[str, Any]], x: str = "nfe", y: str = "distance", **where: Any) -> np.ndarray:
    """Return x, y and the spread of y of the rows that have the values of ``where``, by ascending x: (3, points).

    ``x`` and ``y`` are numbers or :class:`~dmcmc_core.report.tables.Spread`. A number has its spread under
    ``spread``; one that is missing or nan is 0.
    """
    found = []
    for row in rows:
        if all(row[key] == value for key, value in where.items()):
            at, _ = _mean_and_spread(row[x])
            value, spread = _mean_and_spread(row[y], row.get("spread"))
            found.append((at, value, 0.0 if math.isnan(spread) else spread))
    return np.array(sorted(found), dtype=float).reshape(-1, 3).T


def _mean_and_spread(value: Any, spread: float | None = None) -> tuple[float, float]:
    return value[:2] if isinstance(value, Spread) else (value, spread or 0.0)


def as_array(values: Any) -> np.ndarray:
    """Return a tensor of any device, or whatever numpy takes, as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
