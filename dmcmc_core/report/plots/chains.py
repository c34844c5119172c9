"""Chains on images and noise levels: their traces and their paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dmcmc_core.errors import UserError
from dmcmc_core.report.plots.style import COLOURS, GREY, LINES, as_array, finish, panel_grid, styled, unique


@styled
def noise_level_trace(
    sigmas: Any, picked: Any | None = None, title: str | None = None, sigma_range: tuple[float, float] | None = None
) -> Figure:
    """Draw the noise level of chains against their steps, on a logarithmic axis.

    Args:
        sigmas: (steps, chains), noise levels in units of the data.
        picked: (steps, chains) of bools, the states that became starting points: marked.
        title: above the panel.
        sigma_range: lowest and highest level of the model, grey lines.

    Raises UserError for another shape.
    """
    sigmas = as_array(sigmas)
    if sigmas.ndim != 2:
        raise UserError(f"sigmas must have shape (steps, chains), not {sigmas.shape}")
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = figure.subplots()
    for chain in range(sigmas.shape[1]):
        colour = COLOURS[chain % len(COLOURS)]
        axes.plot(sigmas[:, chain], color=colour, linewidth=1)
        if picked is not None:
            (steps,) = np.nonzero(as_array(picked)[:, chain])
            axes.plot(steps, sigmas[steps, chain], "o", color=colour, markeredgecolor="white")
    _log_levels(axes, sigma_range)
    axes.set(xlabel="chain step", ylabel="noise level σ", title=title or "")
    axes.margins(x=0.01)
    return figure


@styled
def class_traces(
    traces: Mapping[str, tuple[Any, Any, Any]],
    classes: Sequence[str],
    sigma_range: tuple[float, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the noise level of chains against network calls, coloured by the class of the image, a panel per kernel.

    Args:
        traces: kernel -> calls (steps,), noise levels (steps, chains), classes (steps, chains) int.
        classes: names of the classes.
        sigma_range: lowest and highest level of the model, grey lines.
        title: above all panels.
    """
    ncols = min(3, len(traces))
    nrows = math.ceil(len(traces) / ncols)
    figure = Figure(figsize=(2.4 * ncols + 0.6, 2.0 * nrows + 0.7), layout="constrained")
    grid = panel_grid(figure, len(traces), ncols, sharey=True)
    colours = matplotlib.colormaps["tab10"]
    for axes, (kernel, (calls, sigmas, labels)) in zip(grid, traces.items(), strict=True):
        for chain in range(sigmas.shape[1]):
            axes.plot(calls, sigmas[:, chain], color="#bbbbbb", linewidth=0.8, zorder=1)
            axes.scatter(calls, sigmas[:, chain], c=colours(np.asarray(labels[:, chain]) % 10), s=7, zorder=2)
        _log_levels(axes, sigma_range)
        axes.set_title(kernel)
        axes.margins(x=0.02)
    for axes in grid[-ncols:]:
        axes.set_xlabel("network calls per chain")
    handles = {name: Line2D([], [], color=colours(k % 10), marker="o", ls="") for k, name in enumerate(classes)}
    return finish(figure, handles, title, "noise level σ", handletextpad=0.1, columnspacing=1)


def _log_levels(axes: Axes, sigma_range: tuple[float, float] | None) -> None:
    """Make the axis of noise levels logarithmic, with grey lines at the ends of the model's range."""
    for level in sigma_range or ():
        axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
    axes.set_yscale("log")


@styled
def concept(x: Any, sigmas: Any, density: Any, paths: Mapping[str, Sequence[tuple[Any, Any]]]) -> Figure:
    """Draw paths over (x, log sigma) of a model on the line, its density as the background.

    Args:
        x: (X,), values on the line.
        sigmas: (L,), noise levels.
        density: (L, X), each level's divided by its largest.
        paths: what -> its lines, each a pair of (x, sigma), (steps,): a chain, short paths and long ones.
    """
    x, sigmas = np.asarray(x), np.asarray(sigmas)
    figure = Figure(figsize=(6.8, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(x, sigmas, np.asarray(density), cmap="Greys", vmax=1.6, rasterized=True)
    for k, (what, lines) in enumerate(paths.items()):
        for i, (xs, levels) in enumerate(lines):
            axes.plot(
                np.asarray(xs),
                np.asarray(levels),
                color=(COLOURS[2], COLOURS[0], COLOURS[1])[k % 3],
                marker="o" if k < 2 else None,
                markevery=None if k == 0 else [0],
                markersize=(2.5, 5, 0)[k % 3],
                linewidth=(0.7, 2.2, 1.4)[k % 3],
                linestyle=LINES[k % len(LINES)],
                label=None if i else what,
                zorder=(2, 4, 3)[k % 3],
            )
    axes.set(yscale="log", xlabel="x", ylabel="noise level σ", xlim=(x.min(), x.max()))
    axes.set_ylim(sigmas.min(), sigmas.max())
    axes.grid(False)
    figure.legend(loc="outside lower center", ncols=len(paths))
    return figure


@styled
def paths(rows: Sequence[Mapping[str, Any]], covariance: Any, title: str | None = None) -> Figure:
    """Draw chains in the plane, a panel per ``panel``, a line per ``arm``: rows of ``x`` and ``y`` in the order walked.

    Behind them the ellipses of one and two standard deviations of a Gaussian around 0 with this (2, 2) covariance.
    """
    panels, arms = unique(rows, "panel"), unique(rows, "arm")
    figure = Figure(figsize=(min(2.6 * len(panels) + 0.4, 7.8), 3.1), layout="constrained")
    angle = np.linspace(0, 2 * np.pi, 100)
    ellipse = np.linalg.cholesky(as_array(covariance)) @ np.stack([np.cos(angle), np.sin(angle)])
    handles = {}
    grid = panel_grid(figure, len(panels), len(panels), sharex=True, sharey=True)
    for axes, panel in zip(grid, panels, strict=True):
        for scale in (1, 2):
            axes.plot(*(scale * ellipse), color=GREY, linewidth=0.8)
        for k, arm in enumerate(arms):
            at = [(row["x"], row["y"]) for row in rows if row["panel"] == panel and row["arm"] == arm]
            (handles[arm],) = axes.plot(*zip(*at, strict=True), color=COLOURS[k], linewidth=0.9)
            axes.plot(*at[0], marker="o", color=COLOURS[k], markersize=5)
        axes.set(title=panel, aspect="equal")
    return finish(figure, handles, title)
