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
