"""Figures: one function draws each kind, one writes it as PNG and PDF with its numbers as CSV and provenance inside.

Figures are plain ``matplotlib.figure.Figure`` objects without pyplot's global state, so that any thread may draw.
Colours are those of Okabe and Ito, which people with a colour deficiency can tell apart; arms also differ in marker and
line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from dmcmc_core.errors import UserError
from dmcmc_core.tables import Spread, embedded, read_provenance, write_csv

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
ARMS = {"zero mean": 0, "data mean": 2, "with DLG": 1}
"""The arms of every comparison, each with its own colour, marker and line in every figure."""

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


def styled(draw):
    """Run a drawing function under this module's style whatever the user's own settings are."""

    @wraps(draw)
    def inner(*args, **kwargs):
        with matplotlib.rc_context():
            matplotlib.rcParams.update({k: v for k, v in matplotlib.rcParamsDefault.items() if k not in _KEEP})
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return inner


_KEEP = {"backend", "backend_fallback", "interactive", "toolbar", "timezone", "webagg.address", "webagg.port"}


@styled
def save_figure(
    figure: Figure,
    out_dir: str | Path,
    name: str,
    data_rows: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``name.png``, ``name.pdf`` and ``name.csv`` (the plotted numbers); return their paths.

    The files hold their provenance (PNG text ``Provenance``, PDF keywords) and no date: the same figure gives the same
    bytes. ``provenance`` is read from ``out_dir/provenance.json`` when None.
    """
    if not data_rows:
        raise UserError(f"figure {name!r} needs the rows of plotted numbers, not an empty list")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    origin = embedded(provenance if provenance is not None else read_provenance(out_dir))
    paths = []
    for ending, metadata in (
        ("png", {"Software": None, "Provenance": origin}),
        ("pdf", {"CreationDate": None, "Keywords": origin}),
    ):
        paths.append(out_dir / f"{name}.{ending}")
        temporary = out_dir / f"{name}.{ending}.part"
        figure.savefig(temporary, format=ending, metadata=metadata, bbox_inches="tight")
        os.replace(temporary, paths[-1])
    columns = list(dict.fromkeys(key for row in data_rows for key in row))
    return [*paths, write_csv(data_rows, columns, out_dir / f"{name}.csv")]


def as_pictures(images: Any, data_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Images of shape (B, C, H, W) or (B, H, W), tensor or array, as (B, H, W, 3) in [0, 1], clipped.

    uint8 images are taken to span 0 to 255; others span ``data_range``. Raises UserError for another shape.
    """
    images = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    low, high = (0.0, 255.0) if images.dtype == np.uint8 else data_range
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images must have shape (B, H, W) or (B, C, H, W) with C 1 or 3, not {images.shape}")
    pictures = np.clip((images.astype(np.float64) - low) / (high - low), 0, 1).transpose(0, 2, 3, 1)
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def mosaic(images: Any, ncols: int | None = None, data_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Images put side by side, row by row, with white lines between: (rows, columns, 3) in [0, 1]."""
    pictures = as_pictures(images, data_range)
    count, height, width, _ = pictures.shape
    ncols = ncols or math.ceil(math.sqrt(count))
    nrows = math.ceil(count / ncols)
    gap = max(1, round(height / 16))
    sheet = np.ones((nrows * (height + gap) - gap, ncols * (width + gap) - gap, 3))
    for n, picture in enumerate(pictures):
        top, left = n // ncols * (height + gap), n % ncols * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


@styled
def image_grid(
    images: Any, ncols: int | None = None, title: str | None = None, data_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Images (B, C, H, W) or (B, H, W) in a grid that is near to square unless ``ncols`` is given."""
    return image_panels({title or "": images}, ncols, data_range)


@styled
def image_panels(
    panels: Mapping[str, Any], ncols: int | None = None, data_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Several grids of images side by side, each under its title: one sampler beside another."""
    sheets = [mosaic(images, ncols, data_range) for images in panels.values()]
    shape = sheets[0].shape
    figure = Figure(figsize=(3.2 * len(sheets), 3.2 * shape[0] / shape[1] + 0.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for axes, title, sheet in zip(figure.subplots(1, len(sheets), squeeze=False)[0], panels, sheets, strict=True):
        axes.imshow(sheet, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    return figure


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
    """Distance against network evaluations, one panel per integrator, one line per arm, error bars from the spread.

    Args:
        rows: ``integrator``, ``arm``, ``nfe`` and ``distance``, a number or a :class:`~dmcmc_core.tables.Spread`
            (numbers may have their spread under ``spread``). See :func:`dmcmc_core.tables.mean_and_spread`.
        ylabel: what the distance is, with the name of its features.
        panels: integrators in order; as they appear in the rows when None.
        title: above all panels.
        ncols: panels per row.
        reference, reference_label: a distance to compare with (training against held-out images), a grey line.

    The y axes are logarithmic when the distances of any panel span more than a factor of ten.
    """
    panels = list(panels or dict.fromkeys(row["integrator"] for row in rows))
    arms = list(dict.fromkeys([*(a for a in ARMS if any(r["arm"] == a for r in rows)), *(r["arm"] for r in rows)]))
    ncols = min(ncols, len(panels))
    nrows = math.ceil(len(panels) / ncols)
    figure = Figure(figsize=(2.7 * ncols + 0.3, 2.3 * nrows + 0.6), layout="constrained")
    grid = figure.subplots(nrows, ncols, squeeze=False)
    handles, ranges = {}, []
    for n, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        values = []
        for arm in arms:
            points = sorted(_points(rows, panel, arm))
            if not points:
                continue
            nfe, distance, spread = (np.array(column) for column in zip(*points, strict=True))
            style = ARMS.get(arm, len(ARMS) + arms.index(arm))
            handles[arm] = axes.errorbar(
                nfe,
                distance,
                yerr=spread,
                color=COLOURS[style % len(COLOURS)],
                marker=MARKERS[style % len(MARKERS)],
                linestyle=LINES[style % len(LINES)],
            )
            values += [v for v in distance if np.isfinite(v) and v > 0]
        if reference is not None:
            handles[reference_label] = axes.axhline(reference, color="#888888", linewidth=1, zorder=1)
        ranges.append(max(values) / min(values) if values else 1.0)
        axes.set_title(panel)
        if n >= len(panels) - ncols:
            axes.set_xlabel("network evaluations per image")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, factor in zip(grid.flat, ranges, strict=False):
        if max(ranges) > 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if factor < 300 else (1,)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.supylabel(ylabel, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _points(rows: Sequence[Mapping[str, Any]], integrator: str, arm: str) -> list[tuple[float, float, float]]:
    points = []
    for row in rows:
        if row["integrator"] != integrator or row["arm"] != arm:
            continue
        distance, spread = row["distance"], row.get("spread") or 0.0
        if isinstance(distance, Spread):
            distance, spread = distance.mean, distance.spread
        nfe = row["nfe"].mean if isinstance(row["nfe"], Spread) else row["nfe"]
        points.append((float(nfe), float(distance), 0.0 if math.isnan(spread) else float(spread)))
    return points


@styled
def trajectories(
    images: Any,
    sigmas: Any,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
    data_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Rows of images on their way, each under its noise level.

    Args:
        images: (rows, steps, *shape), tensor or array.
        sigmas: (rows, steps) or (steps,), noise levels in units of the data.
        row_labels: one per row.
        title: above all.
        data_range: values shown black and white.
    """
    images = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    nrows, nsteps = images.shape[:2]
    sigmas = np.broadcast_to(np.asarray(sigmas), (nrows, nsteps))
    figure = Figure(figsize=(0.85 * nsteps + (0.9 if row_labels else 0.1), 1.05 * nrows + 0.3), layout="constrained")
    grid = figure.subplots(nrows, nsteps, squeeze=False)
    for r in range(nrows):
        pictures = as_pictures(images[r], data_range)
        for s, axes in enumerate(grid[r]):
            axes.imshow(pictures[s], interpolation="nearest")
            axes.set_title(f"σ = {sigmas[r, s]:.3g}", fontsize=7, fontweight="normal", pad=2)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
        if row_labels:
            grid[r, 0].set_ylabel(row_labels[r], rotation=0, ha="right", va="center")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


@styled
def noise_level_trace(
    sigmas: Any, picked: Any | None = None, title: str | None = None, sigma_range: tuple[float, float] | None = None
) -> Figure:
    """Noise level of chains against their steps, on a logarithmic axis.

    Args:
        sigmas: (steps, chains), noise levels in units of the data.
        picked: (steps, chains) of bools, the states that became starting points: marked.
        title: above the panel.
        sigma_range: lowest and highest level of the model, grey lines.
    """
    sigmas = np.asarray(sigmas.detach().cpu() if hasattr(sigmas, "detach") else sigmas)
    if sigmas.ndim != 2:
        raise UserError(f"sigmas must have shape (steps, chains), not {sigmas.shape}")
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = figure.subplots()
    for chain in range(sigmas.shape[1]):
        colour = COLOURS[chain % len(COLOURS)]
        axes.plot(sigmas[:, chain], color=colour, linewidth=1)
        if picked is not None:
            (steps,) = np.nonzero(np.asarray(picked)[:, chain])
            axes.plot(steps, sigmas[steps, chain], "o", color=colour, markeredgecolor="white")
    for level in sigma_range or ():
        axes.axhline(level, color="#888888", linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("chain step")
    axes.set_ylabel("noise level σ")
    axes.margins(x=0.01)
    if title:
        axes.set_title(title)
    return figure


@styled
def dots_and_crosses(
    rows: Sequence[Mapping[str, Any]],
    ylabels: Mapping[str, str],
    references: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Distance against network evaluations at two budgets: a dot without DLG, a dashed line to the cross with DLG.

    Open squares are the control, the data-mean start. Points of one budget are drawn side by side, as they would hide
    each other: the axis is right for the middle of each group.

    Args:
        rows: ``panel``, ``integrator``, ``arm`` (of :data:`ARMS`), ``nfe`` and ``distance``, as for
            :func:`distance_against_nfe`.
        ylabels: panel -> what its distance is.
        references: panel -> a distance to compare with, a grey line.
        title: above all panels.
    """
    integrators = list(dict.fromkeys(row["integrator"] for row in rows))
    figure = Figure(figsize=(4.2 * len(ylabels), 4.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    handles = {}
    for axes, (panel, ylabel) in zip(figure.subplots(1, len(ylabels), squeeze=False)[0], ylabels.items(), strict=True):
        here = [row for row in rows if row["panel"] == panel]
        for k, integrator in enumerate(integrators):
            colour, shift = COLOURS[k % len(COLOURS)], 1.035 ** (k - (len(integrators) - 1) / 2)
            dot, cross, control = (_points(here, integrator, a) for a in ("zero mean", "with DLG", "data mean"))
            axes.plot(*_xy(dot + cross, shift), color=colour, linestyle="--", linewidth=1)
            for points, marker, fill, size in (
                (dot, "o", colour, 6),
                (cross, "X", colour, 7),
                (control, "s", "none", 8),
            ):
                spread = [p[2] for p in points]
                axes.errorbar(
                    *_xy(points, shift), yerr=spread, color=colour, fmt=marker, markerfacecolor=fill, markersize=size
                )
            handles[integrator] = axes.plot([], [], color=colour, linewidth=4)[0]
        if panel in (references or {}):
            handles["same-n floor"] = axes.axhline(references[panel], color="#888888", linewidth=1, zorder=1)
        axes.set(title=panel, xlabel="network evaluations per image", ylabel=ylabel, xscale="log", yscale="log")
        _plain_log(axes.xaxis, (1, 2, 3, 5))
        _plain_log(axes.yaxis, (1, 2, 5))
    for label, marker, fill in (("without DLG", "o", "k"), ("with DLG", "X", "k"), ("data-mean start", "s", "none")):
        handles[label] = axes.plot([], [], color="k", marker=marker, markerfacecolor=fill, linestyle="none")[0]
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _xy(points: Sequence[tuple[float, float, float]], shift: float) -> tuple[list[float], list[float]]:
    return [p[0] * shift for p in points], [p[1] for p in points]


def _plain_log(axis, subs: Sequence[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


@styled
def image_rows(panels: Mapping[str, Mapping[str, Any]], data_range: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """Grids of images, two side by side, each row of images beside its label: panel -> label -> images (B, C, H, W)."""
    nrows, lines = math.ceil(len(panels) / 2), next(iter(panels.values()))
    wide = max(len(images) for images in lines.values())
    figure = Figure(figsize=(0.9 * wide + 2.5, nrows * (0.45 * len(lines) + 0.35)))
    figure.set_layout_engine("constrained", wspace=0.03, hspace=0.02)
    grid = figure.subplots(nrows, min(2, len(panels)), squeeze=False)
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        sheet = np.concatenate([_padded(mosaic(images, len(images), data_range)) for images in lines.values()])
        height = len(sheet) / len(lines)
        axes.imshow(sheet, interpolation="nearest")
        axes.set_title(title)
        axes.set(xticks=[], yticks=[(k + 0.5) * height - 0.5 for k in range(len(lines))], yticklabels=list(lines))
        axes.tick_params(length=0, labelsize=7)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure


def _padded(sheet: np.ndarray) -> np.ndarray:
    """A row of images with the white line below it that :func:`mosaic` puts between rows."""
    gap = max(1, round(sheet.shape[0] / 16))
    return np.concatenate([sheet, np.ones((gap, *sheet.shape[1:]))])


@styled
def ablation(
    rows: Sequence[Mapping[str, Any]],
    ylabel: str,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    titles: Mapping[str, str] | None = None,
    ncols: int = 6,
) -> Figure:
    """One factor at a time: a block of small panels per test-bed, in each the distance against a factor's values.

    Args:
        rows: ``bed``, ``factor``, ``value`` (shown as text, in order of appearance), ``distance`` (a
            :class:`~dmcmc_core.tables.Spread`) and ``base``: whether it is the setting that all others are varied from.
        ylabel: what the distance is.
        lines: for each bed label -> distance, drawn across its panels.
        titles: of each bed's block.
        ncols: panels per row.

    The panels of a bed share their y axis, logarithmic where the distances span more than a factor of four.
    """
    beds = list(dict.fromkeys(row["bed"] for row in rows))
    factors = {bed: list(dict.fromkeys(r["factor"] for r in rows if r["bed"] == bed)) for bed in beds}
    heights = [math.ceil(len(f) / ncols) for f in factors.values()]
    figure = Figure(figsize=(1.9 * ncols + 0.4, sum(1.55 * h + 0.45 for h in heights) + 0.3), layout="constrained")
    blocks = figure.subfigures(len(beds), 1, squeeze=False, height_ratios=heights)[:, 0]
    handles = {}
    for bed, height, block in zip(beds, heights, blocks, strict=True):
        grid = block.subplots(height, ncols, squeeze=False, sharey=True)
        for axes, factor in zip(grid.flat, factors[bed], strict=False):
            these = [r for r in rows if (r["bed"], r["factor"]) == (bed, factor)]
            for style, (label, level) in enumerate((lines or {}).get(bed, {}).items()):
                colour = ("#888888", *COLOURS[2:])[style]
                handles[label] = axes.axhline(level, color=colour, linestyle=LINES[style % len(LINES)], linewidth=1)
            mean, spread = ([getattr(r["distance"], k) for r in these] for k in ("mean", "spread"))
            error = np.nan_to_num(np.array(spread, float))
            handles["one factor changed"] = axes.errorbar(range(len(these)), mean, error, color=COLOURS[0], marker="o")
            for n, row in enumerate(these):
                if row["base"]:
                    (handles["base"],) = axes.plot(n, mean[n], "s", color=COLOURS[1], markersize=6, zorder=3)
            axes.set_title(factor, fontweight="normal", fontsize=8)
            axes.set_xticks(range(len(these)), [str(r["value"]) for r in these], fontsize=7)
            axes.set_xlim(-0.5, len(these) - 0.5)
        for axes in grid.flat[len(factors[bed]) :]:
            axes.remove()
        means = [r["distance"].mean for r in rows if r["bed"] == bed]
        if min(means) > 0 and max(means) / min(means) > 4:
            grid[0, 0].set_yscale("log")
            grid[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            grid[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            grid[0, 0].yaxis.set_minor_formatter(NullFormatter())
        else:
            grid[0, 0].set_ylim(bottom=0)
        block.suptitle((titles or {}).get(bed, bed), fontsize=10)
        block.supylabel(ylabel, fontsize=8)
    order = ["base", "one factor changed"]
    handles = {k: handles[k] for k in [*(o for o in order if o in handles), *(k for k in handles if k not in order)]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


@styled
def waterfall(
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """What each part of an error contributes, as bars that hang where the part before ended; one panel per test-bed.

    Args:
        rows: ``bed``, ``part``, ``direction``, ``above`` and ``below`` (the distances with the part wrong and with it
            right, numbers) and ``contribution`` (their difference, a :class:`~dmcmc_core.tables.Spread`).
        xlabel: what the distance is.
        lines: for each bed label -> distance, drawn across.
        titles: of each bed's panel.
    """
    beds = list(dict.fromkeys(row["bed"] for row in rows))
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    parts = list(dict.fromkeys(row["part"] for row in rows))
    figure = Figure(figsize=(4.6 * len(beds) + 0.4, 0.5 * len(parts) + 1.4), layout="constrained")
    handles = {}
    for axes, bed in zip(figure.subplots(1, len(beds), squeeze=False)[0], beds, strict=True):
        these = list(dict.fromkeys(row["part"] for row in rows if row["bed"] == bed))
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
                axes.annotate(f"{value:+.2g}", (right, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
        for style, (label, level) in enumerate((lines or {}).get(bed, {}).items()):
            look = dict(color=("#888888", *COLOURS[2:])[style], linestyle=LINES[style % len(LINES)], linewidth=1)
            handles[label] = axes.axvline(level, zorder=0, **look)
        axes.set_yticks(range(len(these)), these)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel(xlabel)
        axes.set_title((titles or {}).get(bed, bed))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


@styled
def concept(x: Any, sigmas: Any, density: Any, paths: Mapping[str, Sequence[tuple[Any, Any]]]) -> Figure:
    """Paths over (x, log sigma) of a model on the line, its density as the background.

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
def curve_panels(
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    ylabel: str,
    dashes: str = "expected",
    ncols: int = 3,
    logy: bool = False,
    share_y: bool = False,
    title: str | None = None,
) -> Figure:
    """Curves, one panel per ``panel`` and one line per ``arm``, with bands from the spread.

    Args:
        rows: ``panel``, ``arm``, ``x`` and ``y``, a number or a :class:`~dmcmc_core.tables.Spread`; those with a true
            ``expected`` are drawn dashed in the colour of their arm, without a marker.
        xlabel, ylabel: of all panels.
        dashes: what the dashed lines are, for the legend.
        ncols: panels per row.
        logy: logarithmic y axes.
        share_y: one range of y for all panels.
        title: above all panels.
    """
    panels, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("panel", "arm"))
    ncols = min(ncols, len(panels))
    nrows = math.ceil(len(panels) / ncols)
    height = 2.4 * nrows + 0.3 + 0.2 * math.ceil(len(arms) / 2)
    figure = Figure(figsize=(3.0 * ncols + 0.4, height), layout="constrained")
    grid = figure.subplots(nrows, ncols, squeeze=False, sharey=share_y)
    handles = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        for k, arm in enumerate(arms):
            colour = COLOURS[k % len(COLOURS)]
            for dashed in (False, True):
                points = [
                    (row["x"], *(row["y"][:2] if isinstance(row["y"], Spread) else (row["y"], 0.0)))
                    for row in rows
                    if (row["panel"], row["arm"], bool(row.get("expected"))) == (panel, arm, dashed)
                ]
                if not points:
                    continue
                x, y, spread = (np.array(column, dtype=float) for column in zip(*sorted(points), strict=True))
                (line,) = axes.plot(
                    x,
                    y,
                    "--" if dashed else "-",
                    color=colour,
                    linewidth=1.1 if dashed else 1.4,
                    marker=None if dashed else MARKERS[k % len(MARKERS)],
                    markevery=max(1, len(x) // 6),
                )
                handles[dashes if dashed else arm] = line
                axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.0 if dashed else 0.15, linewidth=0)
        axes.set_title(panel)
        axes.set_xlabel(xlabel)
        if logy:
            axes.set_yscale("log")
            _plain_log(axes.yaxis, (1, 2, 5))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if dashes in handles:  # grey in the legend, as it stands for all colours, and last
        handles[dashes] = Line2D([], [], color="#666666", linestyle="--", linewidth=1.1)
        handles = {k: v for k, v in handles.items() if k != dashes} | {dashes: handles[dashes]}
    columns = min(len(handles), ncols + (ncols < 3))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    figure.supylabel(ylabel, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


@styled
def start_panels(
    panels: Mapping[str, tuple[Any, Any, Any]], title: str | None = None, data_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Where integration started, under its noise level, and below it what it became; two panels side by side.

    Args:
        panels: title -> starts (B, C, H, W), their noise levels (B,), images (B, C, H, W).
        title: above all panels.
        data_range: values shown black and white.
    """
    nrows, wide = math.ceil(len(panels) / 2), max(len(starts) for starts, _, _ in panels.values())
    figure = Figure(figsize=(1.7 * wide + 0.2, 2.15 * nrows + 0.3 * bool(title)), layout="constrained")
    parts = figure.subfigures(nrows, 2, squeeze=False, wspace=0.03)
    for part, (name, (starts, sigmas, images)) in zip(parts.flat, panels.items(), strict=False):
        grid = part.subplots(2, len(starts), squeeze=False)
        for row, pictures in zip(grid, (starts, images), strict=True):
            for axes, picture in zip(row, as_pictures(pictures, data_range), strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.axis("off")
        for axes, sigma in zip(grid[0], sigmas, strict=True):
            axes.set_title(f"σ = {float(sigma):.3g}", fontsize=7, fontweight="normal", pad=2)
        part.suptitle(name, fontsize=9, fontweight="bold")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


@styled
def class_traces(
    traces: Mapping[str, tuple[Any, Any, Any]],
    classes: Sequence[str],
    sigma_range: tuple[float, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Noise level of chains against network calls, coloured by the class of the image there, one panel per kernel.

    Args:
        traces: kernel -> calls (steps,), noise levels (steps, chains), classes (steps, chains) int.
        classes: names of the classes.
        sigma_range: lowest and highest level of the model, grey lines.
        title: above all panels.
    """
    ncols = min(3, len(traces))
    nrows = math.ceil(len(traces) / ncols)
    figure = Figure(figsize=(3.0 * ncols + 0.6, 2.0 * nrows + 0.7), layout="constrained")
    grid = figure.subplots(nrows, ncols, squeeze=False, sharey=True)
    colours = matplotlib.colormaps["tab10"]
    for axes, (kernel, (calls, sigmas, labels)) in zip(grid.flat, traces.items(), strict=False):
        for chain in range(sigmas.shape[1]):
            axes.plot(calls, sigmas[:, chain], color="#bbbbbb", linewidth=0.8, zorder=1)
            axes.scatter(calls, sigmas[:, chain], c=colours(np.asarray(labels[:, chain]) % 10), s=7, zorder=2)
        for level in sigma_range or ():
            axes.axhline(level, color="#888888", linewidth=1, linestyle=":")
        axes.set(yscale="log", title=kernel)
        axes.margins(x=0.02)
    for axes in grid.flat[len(traces) :]:
        axes.remove()
    for axes in grid[-1]:
        axes.set_xlabel("network calls per chain")
    handles = [Line2D([], [], color=colours(k % 10), marker="o", linestyle="") for k in range(len(classes))]
    figure.legend(handles, classes, loc="outside lower center", ncols=len(classes), handletextpad=0.1, columnspacing=1)
    figure.supylabel("noise level σ", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


@styled
def distance_lines(
    rows: Sequence[Mapping[str, Any]],
    ylabels: Mapping[str, str],
    references: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Distance against network evaluations, one panel per test-bed, one line per method, error bars from the spread.

    Args:
        rows: ``panel``, ``line``, ``nfe`` and ``distance``, a number or a :class:`~dmcmc_core.tables.Spread`.
        ylabels: panel -> what its distance is.
        references: panel -> a distance to compare with, a grey line.
        title: above all panels.
    """
    lines = list(dict.fromkeys(row["line"] for row in rows))
    named = [row | {"integrator": row["panel"], "arm": row["line"]} for row in rows]
    figure = Figure(figsize=(4.2 * len(ylabels), 4.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    handles = {}
    for axes, (panel, ylabel) in zip(figure.subplots(1, len(ylabels), squeeze=False)[0], ylabels.items(), strict=True):
        for k, line in enumerate(lines):
            points = sorted(_points(named, panel, line))
            style = {"marker": MARKERS[k % len(MARKERS)], "linestyle": LINES[k % len(LINES)]}
            spread = [p[2] for p in points]
            handles[line] = axes.errorbar(*_xy(points, 1.0), yerr=spread, color=COLOURS[k % len(COLOURS)], **style)
        if panel in (references or {}):
            handles["same-n floor"] = axes.axhline(references[panel], color="#888888", linewidth=1, zorder=1)
        axes.set(title=panel, xlabel="network evaluations per image", ylabel=ylabel, xscale="log", yscale="log")
        _plain_log(axes.xaxis, (1, 2, 5))
        _plain_log(axes.yaxis, (1, 2, 5))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


@styled
def posterior_panels(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Figure:
    """Noise-level posteriors against the truth, a row of panels per test-bed: error, total variation, coverage.

    Args:
        rows: ``bed``, ``line`` (the posterior), ``panel``, ``x`` and ``y``. Panel ``error`` (of log sigma) and
            ``total variation`` have the noise level as x, ``coverage`` the probability of the central interval.
        title: above all panels.
    """
    beds, lines = (list(dict.fromkeys(row[key] for row in rows)) for key in ("bed", "line"))
    labels = {
        "error": ("noise level σ", "mean abs. error of log σ"),
        "total variation": ("noise level σ", "total variation to exact"),
        "coverage": ("central interval", "share of true levels inside"),
    }
    figure = Figure(figsize=(8.6, 2.5 * len(beds) + 0.8), layout="constrained")
    handles = {}
    for bed, across in zip(beds, figure.subplots(len(beds), len(labels), squeeze=False), strict=True):
        for axes, (panel, (xlabel, ylabel)) in zip(across, labels.items(), strict=True):
            for k, line in enumerate(lines):
                points = sorted(
                    (r["x"], r["y"]) for r in rows if (r["bed"], r["line"], r["panel"]) == (bed, line, panel)
                )
                style = {"marker": MARKERS[k % len(MARKERS)], "linestyle": LINES[k % len(LINES)]}
                if points:
                    x, y = zip(*points, strict=True)
                    (handles[line],) = axes.plot(x, y, color=COLOURS[k % len(COLOURS)], **style)
            axes.set(xlabel=xlabel, ylabel=ylabel, title=f"{bed}: {panel}")
            if panel == "coverage":
                axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, zorder=1)
            else:
                axes.set_xscale("log")
                axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
