"""The figures of the explorer, each drawn by one function for the panel and for a notebook without a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dmcmc_core.report.plots.style import COLOURS, GREY, LINES, MARKERS, plain_log
from dmcmc_core.workbench.explorer.pictures import drawn, sheet
from dmcmc_core.workbench.explorer.watching import Frame

ALONG = 12
"""Images along a chain, or of a way from noise."""
TRACES = 8
"""Chains whose noise levels are drawn."""


def spread(count: int, most: int = ALONG) -> list[int]:
    """Return at most so many numbers below ``count``, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))}) if count else []


@drawn
def way(frames: Sequence[Frame], rows: int = 3) -> Figure:
    """Draw the first images on their way: what the network was asked above what it answered, under the noise level."""
    chosen = [frames[i] for i in spread(len(frames))]
    figure = Figure(figsize=(0.8 * len(chosen) + 0.9, 1.6 * rows + 0.2), layout="constrained")
    grid = figure.subplots(2 * rows, len(chosen), squeeze=False)
    for column, frame in enumerate(chosen):
        grid[0, column].set_title(f"{frame.sigma[0]:.3g}", fontsize=8)
        for row in range(rows):
            for place, images in enumerate((frame.x, frame.denoised)):
                _picture(grid[2 * row + place, column], images[row])
    for row in range(rows):
        grid[2 * row, 0].set_ylabel("x", rotation=0, ha="right", va="center")
        grid[2 * row + 1, 0].set_ylabel("x̂0", rotation=0, ha="right", va="center")
    return figure


def _picture(axes: Any, image: np.ndarray) -> None:
    axes.imshow(sheet(image[None]), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)


def walk(windows: Sequence[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise levels of chains at every step, (steps + 1, chains), and the steps where images start.

    The latter are (windows, chains). A window begins with the state that the one before ended with.
    """
    levels = np.concatenate([windows[0]["sigmas"], *(window["sigmas"][1:] for window in windows[1:])])
    first = np.cumsum([0, *(len(window["sigmas"]) - 1 for window in windows[:-1])])
    return levels, first[:, None] + np.stack([window["chosen"] for window in windows])


@drawn
def trace(
    windows: Sequence[Mapping[str, np.ndarray]], ends: tuple[float, float] | None = None, chain: int | None = None
) -> Figure:
    """Draw the noise level of chains against their steps, their starting points marked; one chain may stand out.

    Args:
        windows: as :meth:`dmcmc_core.workbench.explorer.session.Session.windows` returns them.
        ends: lowest and highest noise level of the model.
    """
    figure = Figure(figsize=(6.4, 2.3), layout="constrained")
    axes = figure.subplots()
    levels, starts = walk(windows)
    chosen = range(min(TRACES, levels.shape[1]))
    for c in sorted({*chosen, *([] if chain is None else [chain])}):
        shown = {"color": COLOURS[c % len(COLOURS)], "alpha": 1.0 if chain in (None, c) else 0.25}
        dots = {"markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(starts[:, c], levels[starts[:, c], c], "o", **dots, **shown)
        axes.plot(levels[:, c], linewidth=2 if chain == c else 1, **shown)
    for level in ends or ():
        axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="chain step; dots: where images start", ylabel="noise level σ", yscale="log")
    axes.margins(x=0.01)
    return figure


@drawn
def along(frames: Sequence[Frame], chain: int, classes: Sequence[int] | None = None) -> Figure:
    """Draw states of one chain above what the network makes of them, under their noise levels and above their classes.

    All lie in one picture: axes for each would take most of the time of a run that is watched.

    Args:
        frames: of the chains.
        chain: row of the chain.
        classes: for each of the frames that :func:`spread` chooses the class of the chain, where they are known.
    """
    chosen = [frames[i] for i in spread(len(frames))]
    images = np.stack([frame.x[chain] for frame in chosen] + [frame.denoised[chain] for frame in chosen])
    height, width = images.shape[2:]
    gap, count = max(1, height // 16), len(chosen)
    figure = Figure(figsize=(max(3.0, 0.53 * count + 0.4), 1.55), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet(images, count), interpolation="nearest")
    middles, at = [k * (width + gap) + (width - 1) / 2 for k in range(count)], {"fontsize": 8, "ha": "center"}
    for middle, frame in zip(middles, chosen, strict=True):
        axes.text(middle, -gap - 0.5, f"{frame.sigma[chain]:.2g}", va="bottom", **at)
    for middle, one in zip(middles, classes or (), strict=False):
        axes.text(middle, 2 * height + 2 * gap, str(one), va="top", **at)
    axes.set(xticks=[], yticks=[(height - 1) / 2, height + gap + (height - 1) / 2], yticklabels=["x", "x̂0"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    return figure


@drawn
def curve(rows: Sequence[Mapping[str, Any]], names: tuple[str, str], rounding: float) -> Figure:
    """Draw paired errors by NFE: of A to B, of each to the accurate solution, and what rounding alone makes."""
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    axes = figure.subplots()
    lines = {"between": f"{names[0]} to {names[1]}", "a": f"{names[0]} to accurate", "b": f"{names[1]} to accurate"}
    for k, (name, label) in enumerate(lines.items()):
        points = [(row["nfe"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            how = {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": LINES[k]}
            axes.plot(*zip(*points, strict=True), label=label, **how)
    axes.axhline(rounding, color=GREY, linewidth=1, linestyle=":", label="rounding to 256 levels")
    plain_log(axes, "x")
    axes.set(xlabel="network evaluations per image", ylabel="paired error", yscale="log")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@drawn
def plane(view: Any) -> Figure:
    """Draw a :class:`dmcmc_core.workbench.explorer.theory.View`: density, score and ways; beside them chains."""
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = view.extent
    left.imshow(
        view.density, extent=(low, high, low, high), origin="lower", cmap="Blues", vmin=0, vmax=1.4, rasterized=True
    )
    if view.score is not None:
        points, arrows = view.score
        left.quiver(*points.T, *arrows.T, color=GREY, width=0.004, scale=28)
    for k, way in enumerate(view.ways):
        left.plot(*way.T, color=COLOURS[k % len(COLOURS)], linewidth=1.1)
        left.plot(*way[-1], "o", color=COLOURS[k % len(COLOURS)], markersize=4, markeredgecolor="white")
    left.set(xlim=(low, high), ylim=(low, high), xlabel="x₁", ylabel="x₂", title=f"p(x; σ = {view.sigma:.3g})")
    left.set_aspect("equal")
    left.grid(False)
    for k, (x, sigma) in enumerate(view.chains):
        right.plot(x[:, 0], sigma, color=COLOURS[k % len(COLOURS)], linewidth=0.8, alpha=0.8)
        right.plot(x[0, 0], sigma[0], "s", color=COLOURS[k % len(COLOURS)], markersize=5)
    right.axhline(view.sigma, color=GREY, linewidth=1, linestyle=":")
    right.set(xlabel="x₁", ylabel="noise level σ", yscale="log", title="chains in (x, σ)", xlim=(low, high))
    return figure
