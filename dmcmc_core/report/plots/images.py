"""Images: grids and rows of them, on their way from noise, and beside where they started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmcmc_core.errors import UserError
from dmcmc_core.report.plots.style import as_array, finish, panel_grid, styled
from dmcmc_core.runs.model import encoder_of


def as_pictures(images: Any, data_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Return images (B, C, H, W) or (B, H, W), tensor or array, as (B, H, W, 3) in [0, 1], clipped.

    uint8 images are taken to span 0 to 255; others span ``data_range``. Raises UserError for another shape.
    """
    images = as_array(images)
    low, high = (0.0, 255.0) if images.dtype == np.uint8 else data_range
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images must have shape (B, H, W) or (B, C, H, W) with C 1 or 3, not {images.shape}")
    pictures = np.clip((images.astype(np.float64) - low) / (high - low), 0, 1).transpose(0, 2, 3, 1)
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def check_shown(model: Any) -> None:
    """Raise UserError for a denoiser whose images no figure shows: latents, and other channels than 1 or 3."""
    encoder = encoder_of(model)
    if encoder is not None or model.shape[0] not in (1, 3):
        what = "images" if encoder is None else f"latents of {encoder}"
        raise UserError(
            f"figures show images of 1 or 3 channels, and this model makes {what} of shape {tuple(model.shape)}: the "
            "command sample makes them without figures"
        )


def mosaic(images: Any, ncols: int | None = None, data_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Put images side by side, row by row, with white lines between: (rows, columns, 3) in [0, 1]."""
    pictures = as_pictures(images, data_range)
    count, height, width, _ = pictures.shape
    ncols = ncols or math.ceil(math.sqrt(count))
    nrows = math.ceil(count / ncols)
    gap = _gap(height)
    sheet = np.ones((nrows * (height + gap) - gap, ncols * (width + gap) - gap, 3))
    for n, picture in enumerate(pictures):
        top, left = n // ncols * (height + gap), n % ncols * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _gap(height: int) -> int:
    """Return how many pixels of white go between images of this height."""
    return max(1, round(height / 16))


def image_grid(
    images: Any, ncols: int | None = None, title: str | None = None, data_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Draw images (B, C, H, W) or (B, H, W) in a grid that is near to square unless ``ncols`` is given."""
    return image_panels({title or "": images}, ncols, data_range)


@styled
def image_panels(
    panels: Mapping[str, Any], ncols: int | None = None, data_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Draw several grids of images side by side, each under its title: one sampler beside another."""
    sheets = [mosaic(images, ncols, data_range) for images in panels.values()]
    shape = sheets[0].shape
    figure = Figure(figsize=(3.2 * len(sheets), 3.2 * shape[0] / shape[1] + 0.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for axes, title, sheet in zip(panel_grid(figure, len(sheets), len(sheets)), panels, sheets, strict=True):
        _show(axes, sheet)
        axes.set_title(title)
    return figure


@styled
def image_rows(panels: Mapping[str, Mapping[str, Any]], data_range: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """Draw grids of images, two side by side, each row beside its label: panel -> label -> images (B, C, H, W)."""
    nrows, lines = math.ceil(len(panels) / 2), next(iter(panels.values()))
    wide = max(len(images) for images in lines.values())
    figure = Figure(figsize=(0.9 * wide + 2.5, nrows * (0.45 * len(lines) + 0.35)), layout="constrained")
    figure.get_layout_engine().set(wspace=0.03, hspace=0.02)
    grid = panel_grid(figure, len(panels), min(2, len(panels)))
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        sheet = np.concatenate([_row(images, data_range) for images in lines.values()])
        height = len(sheet) / len(lines)
        _show(axes, sheet)
        axes.set_title(title)
        axes.set_yticks([(k + 0.5) * height - 0.5 for k in range(len(lines))], list(lines))
        axes.tick_params(length=0, labelsize=7)
    return figure


def _row(images: Any, data_range: tuple[float, float]) -> np.ndarray:
    """Put a row of images above the white line that :func:`mosaic` puts between rows."""
    sheet = mosaic(images, len(images), data_range)
    return np.pad(sheet, ((0, _gap(len(sheet))), (0, 0), (0, 0)), constant_values=1)


@styled
def trajectories(
    images: Any,
    sigmas: Any,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
    data_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw rows of images on their way, each under its noise level.

    Args:
        images: (rows, steps, *shape), tensor or array.
        sigmas: (rows, steps) or (steps,), noise levels in units of the data.
        row_labels: one per row.
        title: above all.
        data_range: values shown black and white.
    """
    images = as_array(images)
    nrows, nsteps = images.shape[:2]
    sigmas = np.broadcast_to(as_array(sigmas), (nrows, nsteps))
    figure = Figure(figsize=(0.85 * nsteps + (0.9 if row_labels else 0.1), 1.05 * nrows + 0.3), layout="constrained")
    grid = figure.subplots(nrows, nsteps, squeeze=False)
    for r, row in enumerate(grid):
        for axes, picture, sigma in zip(row, as_pictures(images[r], data_range), sigmas[r], strict=True):
            _show(axes, picture, sigma)
        if row_labels:
            row[0].set_ylabel(row_labels[r], rotation=0, ha="right", va="center")
    return finish(figure, title=title)


@styled
def start_panels(
    panels: Mapping[str, tuple[Any, Any, Any]], title: str | None = None, data_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Draw where integration started, under its noise level, and below it what it became; two panels side by side.

    Args:
        panels: title -> starts (B, C, H, W), their noise levels (B,), images (B, C, H, W).
        title: above all panels.
        data_range: values shown black and white.
    """
    nrows, wide = math.ceil(len(panels) / 2), max(len(starts) for starts, _, _ in panels.values())
    figure = Figure(figsize=(1.7 * wide + 0.2, 2.15 * nrows + 0.3 * bool(title)), layout="constrained")
    parts = figure.subfigures(nrows, 2, squeeze=False, wspace=0.03)
    for part, (name, (starts, sigmas, images)) in zip(parts.flat, panels.items(), strict=False):
        above, below = part.subplots(2, len(starts), squeeze=False)
        for axes, picture, sigma in zip(above, as_pictures(starts, data_range), sigmas, strict=True):
            _show(axes, picture, sigma)
        for axes, picture in zip(below, as_pictures(images, data_range), strict=True):
            _show(axes, picture)
        part.suptitle(name, fontsize=9, fontweight="bold")
    return finish(figure, title=title)


def _show(axes: Axes, picture: np.ndarray, sigma: float | None = None) -> None:
    """Draw a picture (H, W, 3) without frame or ticks, under its noise level if that is given."""
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if sigma is not None:
        axes.set_title(f"σ = {float(sigma):.3g}", fontsize=7, fontweight="normal", pad=2)
