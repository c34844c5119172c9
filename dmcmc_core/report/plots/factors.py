"""The parts of a distance: one factor at a time, and the contribution of each part."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dmcmc_core.report.plots.style import COLOURS, GREY, LINES, finish, panel_grid, plain_log, styled, unique


@styled
def ablation(
    rows: Sequence[Mapping[str, Any]],
    ylabel: str,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    titles: Mapping[str, str] | None = None,
    ncols: int = 4,
) -> Figure:
    """Draw one factor at a time: a block of small panels per test-bed, each the distance against a factor's values.

    Args:
        rows: ``bed``, ``factor``, ``value`` (shown as text, in order of appearance), ``distance`` (a
            :class:`~dmcmc_core.report.tables.Spread`) and ``base``: whether it is the setting that all others are
            varied from.
        ylabel: what the distance is.
        lines: for each bed label -> distance, drawn across its panels.
        titles: of each bed's block.
        ncols: panels per row.

    The panels of a bed share their y axis, logarithmic where the distances span more than a factor of four.
    """
    beds = {bed: [row for row in rows if row["bed"] == bed] for bed in unique(rows, "bed")}
    heights = [math.ceil(len(unique(own, "factor")) / ncols) for own in beds.values()]
    figure = Figure(figsize=(1.85 * ncols + 0.4, sum(1.8 * h + 0.45 for h in heights) + 0.3), layout="constrained")
    blocks = figure.subfigures(len(beds), 1, squeeze=False, height_ratios=heights)[:, 0]
    base, changed, others = {}, {}, {}
    for (bed, own), block in zip(beds.items(), blocks, strict=True):
        factors = unique(own, "factor")
        grid = panel_grid(block, len(factors), ncols, sharey=True)
        for axes, factor in zip(grid, factors, strict=True):
            these = [row for row in own if row["factor"] == factor]
            others |= _levels(axes.axhline, (lines or {}).get(bed, {}))
            mean, spread = ([getattr(r["distance"], k) for r in these] for k in ("mean", "spread"))
            error = np.nan_to_num(np.array(spread, float))
            changed["one factor changed"] = axes.errorbar(range(len(these)), mean, error, color=COLOURS[0], marker="o")
            for n, row in enumerate(these):
                if row["base"]:
                    (base["base"],) = axes.plot(n, mean[n], "s", color=COLOURS[1], markersize=6, zorder=3)
            axes.set_title(factor, fontweight="normal", fontsize=8)
            names = [re.sub(r"(?<=[a-z]{2})-", "-\n", str(r["value"])) for r in these]
            axes.set_xticks(range(len(these)), names, fontsize=8)
            axes.set_xlim(-0.5, len(these) - 0.5)
        means = [row["distance"].mean for row in own]
        if min(means) > 0 and max(means) / min(means) > 4:
            plain_log(grid[0], "y")
        else:
            grid[0].set_ylim(bottom=0)
        block.suptitle((titles or {}).get(bed, bed), fontsize=10)
        block.supylabel(ylabel, fontsize=8)
    return finish(figure, base | changed | others, fontsize=8)


@styled
def waterfall(
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Draw what each part of an error contributes, as bars that hang where the part before ended, a panel per test-bed.

    Args:
        rows: ``bed``, ``part``, ``direction``, ``above`` and ``below`` (the distances with the part wrong and with it
            right, numbers) and ``contribution`` (their difference, a :class:`~dmcmc_core.report.tables.Spread`).
        xlabel: what the distance is.
        lines: for each bed label -> distance, drawn across.
        titles: of each bed's panel.
    """
    beds, directions, parts = (unique(rows, key) for key in ("bed", "direction", "part"))
    figure = Figure(figsize=(3.6 * len(beds) + 0.4, 0.5 * len(parts) + 1.4), layout="constrained")
    handles = {}
    for axes, bed in zip(panel_grid(figure, len(beds), len(beds)), beds, strict=True):
        these = unique((row for row in rows if row["bed"] == bed), "part")
        for d, direction in enumerate(directions):
            own = [r for r in rows if (r["bed"], r["direction"]) == (bed, direction)]
            y = np.array([these.index(r["part"]) for r in own]) + (d - (len(directions) - 1) / 2) * 0.38
            width = np.array([r["above"] - r["below"] for r in own])
            below = np.array([r["below"] for r in own])
            spread = np.nan_to_num(np.array([r["contribution"].spread for r in own], float))
            style = dict(color=COLOURS[d], height=0.34, xerr=spread, error_kw=dict(ecolor="#444444", elinewidth=0.9))
            handles[direction] = axes.barh(y, width, left=below, **style)
            for at, start, value, error in zip(y, below, width, spread, strict=True):
                right = max(start, start + value + error)
                axes.annotate(f"{value:+.2g}", (right, at), (3, 0), textcoords="offset points", va="center", fontsize=8)
        handles |= _levels(axes.axvline, (lines or {}).get(bed, {}), zorder=0)
        axes.set_yticks(range(len(these)), these)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set(xlabel=xlabel, title=(titles or {}).get(bed, bed))
    return finish(figure, handles, fontsize=8)


def _levels(draw: Callable[..., Line2D], lines: Mapping[str, float], **style: Any) -> dict[str, Line2D]:
    """Draw each distance of label -> distance as a line across the panel by ``draw``; return label -> line."""
    colours = (GREY, *COLOURS[2:])
    return {
        label: draw(level, color=colours[k % len(colours)], linestyle=LINES[k % len(LINES)], linewidth=1, **style)
        for k, (label, level) in enumerate(lines.items())
    }
