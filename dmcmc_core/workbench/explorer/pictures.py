"""What the explorer shows as pictures: images side by side as PNG files, figures as SVG in the theme's colours."""

from __future__ import annotations

import io
import math
import uuid
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dmcmc_core.report.plots.style import STYLE

INK = "#010203"
"""Colour of text and axes in figures; in the explorer it becomes that of the theme's text."""
THEME = "var(--jp-ui-font-color1, currentColor)"
FIGURES = STYLE | {
    name: INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
}
FIGURES |= {"grid.color": "#888888", "grid.alpha": 0.3, "svg.fonttype": "none", "axes.titleweight": "normal"}
drawn = matplotlib.style.context(FIGURES, after_reset=True)
"""Decorator: run a drawing function with colours that :func:`svg` adapts to the theme."""


def sheet(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Return images (n, C, H, W) uint8 in rows, (H', W', 4) uint8, with nothing between them: any theme may be behind.

    Images of other channels than 1 and 3 are shown by the mean of theirs.
    """
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    if channels not in (1, 3):
        images = images.mean(1, keepdims=True).astype(np.uint8)
    gap, rows = max(1, height // 16), math.ceil(n / columns)
    made = np.zeros((rows * columns, height + gap, width + gap, 4), dtype=np.uint8)
    made[:n, :height, :width, :3] = images.transpose(0, 2, 3, 1)
    made[:n, :height, :width, 3] = 255
    made = made.reshape(rows, columns, height + gap, width + gap, 4).swapaxes(1, 2)
    made = made.reshape(rows * (height + gap), columns * (width + gap), 4)[:-gap, :-gap]
    return made


def png(pixels: np.ndarray, least: int = 0) -> bytes:
    """Return pixels (H, W, 4) uint8 as a PNG file, each enlarged until the longer side has ``least`` of them."""
    from PIL import Image

    factor = max(1, math.ceil(least / max(pixels.shape[:2])))
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1)).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def uint8(images: Any, data_range: tuple[float, float]) -> np.ndarray:
    """Return images (n, C, H, W) of a data range as uint8."""
    low, high = data_range
    values = (np.asarray(images.detach().cpu()) - low) * (255 / (high - low))
    return values.clip(0, 255).round().astype(np.uint8)


def svg(figure: Figure) -> str:
    """Return a figure as SVG for a page, without a background, its ink in the colour of the theme's text."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": uuid.uuid4().hex}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return (
        text[text.index("<svg") :].replace(INK, THEME).replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
    )
