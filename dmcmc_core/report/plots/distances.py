"""Distances against network evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dmcmc_core.report.plots.style import (
    ARMS,
    COLOURS,
    REFERENCE,
    finish,
    look,
    panel_grid,
    plain_log,
    points,
    styled,
    unique,
)

NFE = "network evaluations per image"


@styled
def distance_against_nfe(
    rows: Sequence[Mapping[str, Any]],
    ylabel: str,
    panels: Sequence[str] | None = None,
    title: str | None = None,
    ncols: int = 3,
    reference: float | None = None,
    reference_label: str = "reference",
) -> Figure:
    """Draw the distance against network evaluations, a panel per integrator, a line per arm, bars from the spread.

    Args:
        rows: ``integrator``, ``arm``, ``nfe`` and ``distance``, a number or a :class:`~dmcmc_core.report.tables.Spread`
            (numbers may have their spread under ``spread``). See :func:`dmcmc_core.report.tables.mean_and_spread`.
        ylabel: what the distance is, with the name of its features.
        panels: integrators in order; as they appear in the rows when None.
        title: above all panels.
        ncols: panels per row.
        reference, reference_label: a distance to compare with (training against held-out images), a grey line.

    The y axes are logarithmic when the distances of any panel span more than a factor of ten.
    """
    panels, arms = list(panels or unique(rows, "integrator")), unique(rows, "arm")
    arms = [a for a in ARMS if a in arms] + [a for a in arms if a not in ARMS]
    ncols = min(ncols, len(panels))
    nrows = math.ceil(len(panels) / ncols)
    figure = Figure(figsize=(2.4 * ncols + 0.3, 2.2 * nrows + 0.6), layout="constrained")
    grid = panel_grid(figure, len(panels), ncols)
    handles, ranges = {}, []
    for axes, panel in zip(grid, panels, strict=True):
        values = []
        for k, arm in enumerate(arms):
            nfe, distance, spread = points(rows, integrator=panel, arm=arm)
            if len(nfe):
                handles[arm] = axes.errorbar(nfe, distance, spread, **look(ARMS.get(arm, len(ARMS) + k)))
                values += [v for v in distance if 0 < v < math.inf]
        if reference is not None:
            handles[reference_label] = axes.axhline(reference, **REFERENCE)
        ranges.append(max(values) / min(values) if values else 1.0)
        axes.set_title(panel)
    for axes in grid[-ncols:]:
        axes.set_xlabel(NFE)
    for axes, factor in zip(grid, ranges, strict=True):
        if max(ranges) > 10:
            plain_log(axes, "y", (1, 2, 5) if factor < 300 else (1,))
        else:
            axes.set_ylim(bottom=0)
    return finish(figure, handles, title, ylabel)


@styled
def distance_lines(
    rows: Sequence[Mapping[str, Any]],
    ylabels: Mapping[str, str],
    references: Mapping[str, float] | None = None,
    title: str | None = None,
    x: str = "nfe",
    xlabel: str = NFE,
    ncols: int | None = None,
    looks: Mapping[str, int] | None = None,
) -> Figure:
    """Draw the distance against network evaluations, a panel per test-bed, a line per method, bars from the spread.

    Args:
        rows: ``panel``, ``line``, ``nfe`` and ``distance``, a number or a :class:`~dmcmc_core.report.tables.Spread`.
        ylabels: panel -> what its distance is.
        references: panel -> a distance to compare with, a grey line.
        title: above all panels.
        x, xlabel: another cost than network evaluations; rows without it are left out.
        ncols: panels per row, at most two.
        looks: line -> number of its :func:`look`, where figures share lines; else in order of appearance.
    """
    rows = [row for row in rows if row[x] is not None]
    figure, panels = _beds(ylabels, 4.2, ncols)
    handles = {}
    for panel, axes in panels.items():
        for k, line in enumerate(unique(rows, "line")):  # smaller and smaller: where two agree, both are seen
            style = look(looks[line] if looks else k) | {"markersize": max(3.5, 9 - 0.8 * k)}
            handles[line] = axes.errorbar(*points(rows, x, panel=panel, line=line), **style)
    at = points(rows, x)[0]
    narrow = len(at) > 0 and max(at) < 3.5 * min(at)  # of 4 to 10 calls, 5 and 10 alone would be named
    xticks = (1, 2, 3, 4, 5, 6, 8) if narrow else (1, 2, 5)
    return finish(figure, handles | _framed(panels, ylabels, references, xticks, xlabel), title, ncols=3)


DOTS = {
    "zero mean": ("without DLG", "o", True, 6),
    "with DLG": ("with DLG", "X", True, 7),
    "data mean": ("data-mean start", "s", False, 8),
}
"""The look of an arm in :func:`dots_and_crosses`: label, marker, whether it is filled, size in points."""


@styled
def dots_and_crosses(
    rows: Sequence[Mapping[str, Any]],
    ylabels: Mapping[str, str],
    references: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the distance at two budgets of network evaluations: a dot without DLG, a dashed line to a cross with DLG.

    Open squares are the control, the data-mean start. Points of one budget are drawn side by side, as they would hide
    each other: the axis is right for the middle of each group.

    Args:
        rows: ``panel``, ``integrator``, ``arm`` (of :data:`ARMS`), ``nfe`` and ``distance``, as for
            :func:`distance_against_nfe`.
        ylabels, references, title: as for :func:`distance_lines`.
    """
    integrators = unique(rows, "integrator")
    figure, panels = _beds(ylabels, 4.4)
    handles = {}
    for panel, axes in panels.items():
        for k, integrator in enumerate(integrators):
            colour, shift = COLOURS[k % len(COLOURS)], 1.035 ** (k - (len(integrators) - 1) / 2)
            here = {arm: points(rows, panel=panel, integrator=integrator, arm=arm) for arm in DOTS}
            nfe, distance, _ = np.hstack([here["zero mean"], here["with DLG"]])
            axes.plot(nfe * shift, distance, color=colour, linestyle="--", linewidth=1)
            for (nfe, distance, spread), (_, marker, filled, size) in zip(here.values(), DOTS.values(), strict=True):
                fill = colour if filled else "none"
                style = {"color": colour, "fmt": marker, "markerfacecolor": fill, "markersize": size}
                axes.errorbar(nfe * shift, distance, spread, **style)
            handles[integrator] = Line2D([], [], color=colour, linewidth=4)
    handles |= _framed(panels, ylabels, references, xticks=(1, 2, 3, 5))
    for label, marker, filled, _ in DOTS.values():
        fill = "k" if filled else "none"
        handles[label] = Line2D([], [], color="k", marker=marker, markerfacecolor=fill, linestyle="none")
    return finish(figure, handles, title, ncols=4)


def _beds(ylabels: Mapping[str, str], height: float, ncols: int | None = None) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure and its panels, one per test-bed, ``height`` with one row of them."""
    ncols = min(ncols or len(ylabels), len(ylabels), 2)
    more_rows = math.ceil(len(ylabels) / ncols) - 1
    figure = Figure(figsize=(3.75 * ncols, height + 2.6 * more_rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    return figure, dict(zip(ylabels, panel_grid(figure, len(ylabels), ncols), strict=True))


def _framed(
    panels: Mapping[str, Axes],
    ylabels: Mapping[str, str],
    references: Mapping[str, float] | None,
    xticks: Sequence[float] = (1, 2, 5),
    xlabel: str = NFE,
) -> dict[str, Any]:
    """Give the drawn panels of test-beds their titles, labels and logarithmic axes; label -> line of the references."""
    floor = {}
    for panel, axes in panels.items():
        if panel in (references or {}):
            floor["same-n floor"] = axes.axhline(references[panel], **REFERENCE)
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabels[panel])
        plain_log(axes, "x", xticks)
        plain_log(axes, "y")
    return floor
