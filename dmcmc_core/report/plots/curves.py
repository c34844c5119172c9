"""Curves that are no distances: of chains along their steps, of noise-level posteriors against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dmcmc_core.report.plots.style import (
    REFERENCE,
    as_array,
    finish,
    look,
    panel_grid,
    plain_log,
    points,
    styled,
    unique,
)


@styled
def curve_panels(
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    ylabel: str,
    dashes: str = "expected",
    logy: bool = False,
    share_y: bool = False,
    title: str | None = None,
    behind: Mapping[str, tuple[Any, Any, Any]] | None = None,
) -> Figure:
    """Draw curves, one panel per ``panel`` and one line per ``arm``, with bands from the spread.

    Args:
        rows: ``panel``, ``arm``, ``x`` and ``y``, a number or a :class:`~dmcmc_core.report.tables.Spread`; those with
            a true ``expected`` are drawn dashed in the colour of their arm, without a marker. ``look``, where there is
            one, is the number of the arm's :func:`look`; else arms have theirs in order of appearance.
        xlabel, ylabel: of all panels.
        dashes: what the dashed lines are, for the legend.
        logy: logarithmic y axes.
        share_y: one range of y for all panels.
        title: above all panels.
        behind: panel -> x (X,), y (Y,) and a density (Y, X) that is shaded behind its curves.
    """
    panels, arms = unique(rows, "panel"), unique(rows, "arm")
    ncols = min(3, len(panels))
    nrows = math.ceil(len(panels) / ncols)
    height = 2.4 * nrows + 0.3 + 0.2 * math.ceil(len(arms) / 2)
    figure = Figure(figsize=(2.4 * ncols + 0.3 + 0.8 * (ncols < 3), height), layout="constrained")
    measured, expected = ([row for row in rows if bool(row.get("expected")) == is_so] for is_so in (False, True))
    handles = {}
    for axes, panel in zip(panel_grid(figure, len(panels), ncols, sharey=share_y), panels, strict=True):
        for k, arm in enumerate(arms):
            style = look(next((row["look"] for row in rows if row["arm"] == arm and "look" in row), k))
            colour = style["color"]
            x, y, spread = points(measured, "x", "y", panel=panel, arm=arm)
            if len(x):
                style |= {"linestyle": "-"} if expected else {}  # beside what is expected, which is dashed
                (handles[arm],) = axes.plot(x, y, **style, markevery=max(1, len(x) // 6))
                axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
            x, y, _ = points(expected, "x", "y", panel=panel, arm=arm)
            if len(x):
                axes.plot(x, y, "--", color=colour, linewidth=1.1)
        if behind and panel in behind:
            x, y, density = map(as_array, behind[panel])
            light = {"cmap": "Greys", "vmin": 0, "vmax": 1.8 * density.max()}  # so that black curves stand out
            axes.pcolormesh(x, y, density, **light, rasterized=True, zorder=0)
            axes.grid(False)
        axes.set(title=panel, xlabel=xlabel)
        if all(isinstance(row["x"], int) for row in rows):  # steps and calls have no halves
            axes.xaxis.get_major_locator().set_params(integer=True)
        if logy:
            plain_log(axes, "y")
    if expected:  # grey in the legend, as it stands for all colours
        handles[dashes] = Line2D([], [], color="#666666", linestyle="--", linewidth=1.1)
    return finish(figure, handles, title, ylabel, ncols=min(len(handles), ncols + (ncols < 3)))


LABELS = {
    "error": ("noise level σ", "mean abs. error of log σ"),
    "total variation": ("noise level σ", "total variation to exact"),
    "coverage": ("central interval", "share of true levels inside"),
}


@styled
def posterior_panels(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Figure:
    """Draw noise-level posteriors against the truth, a row of panels per test-bed: error, total variation, coverage.

    Args:
        rows: ``bed``, ``line`` (the posterior), ``panel``, ``x`` and ``y``. Panel ``error`` (of log sigma) and
            ``total variation`` have the noise level as x, ``coverage`` the probability of the central interval.
        title: above all panels.
    """
    beds, lines = unique(rows, "bed"), unique(rows, "line")
    figure = Figure(figsize=(7.5, 2.3 * len(beds) + 0.8), layout="constrained")
    handles = {}
    for bed, across in zip(beds, figure.subplots(len(beds), len(LABELS), squeeze=False), strict=True):
        for axes, (panel, (xlabel, ylabel)) in zip(across, LABELS.items(), strict=True):
            for k, line in enumerate(lines):
                x, y, _ = points(rows, "x", "y", bed=bed, line=line, panel=panel)
                if len(x):
                    (handles[line],) = axes.plot(x, y, **look(k))
            axes.set(xlabel=xlabel, ylabel=ylabel, title=f"{bed}: {panel}")
            if panel == "coverage":
                axes.plot([0, 1], [0, 1], **REFERENCE)
            else:
                axes.set_xscale("log")
                axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)
    return finish(figure, handles, title, ncols=3)
