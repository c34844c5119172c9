"""The images of a finished run as PNG files, each by itself or side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dmcmc_core.errors import LOG, UserError
from dmcmc_core.files import replacing
from dmcmc_core.runs.folder import arrays_of, read_manifest
from dmcmc_core.runs.model import Model, encoder_of

PNG_CHANNELS = (1, 3, 4)
SMALLEST = 512
"""Pixels of the longer side of a grid, at least: images of 8 by 8 pixels are no picture otherwise."""


def write_pngs(folder: str | Path) -> Path:
    """Write the images of a finished run as ``png/00000000.png`` and so on, by index; return their folder."""
    folder, number = Path(folder), 0
    for array in _arrays(folder):
        for image in array:
            save_png(folder / "png" / f"{number:08d}.png", image)
            number += 1
    return folder / "png"


def write_grid(folder: str | Path, columns: int = 8) -> Path:
    """Write the first ``columns``^2 images of a finished run side by side as ``grid.png``; return its path."""
    folder, images = Path(folder), []
    for array in _arrays(folder):
        images += list(array)
        if len(images) >= columns**2:
            break
    save_png(folder / "grid.png", side_by_side(images[: columns**2], columns))
    return folder / "grid.png"


def side_by_side(images: Sequence[np.ndarray], columns: int = 8) -> np.ndarray:
    """Return images (H, W, C) uint8 in rows, a pixel apart, enlarged by a whole factor to SMALLEST pixels at least."""
    height, width, channels = images[0].shape
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    factor = math.ceil(SMALLEST / max(grid.shape[:2]))
    return grid.repeat(factor, 0).repeat(factor, 1)


def _arrays(folder: Path) -> Iterator[np.ndarray]:
    """Yield the images of a finished run, (k, H, W, C) uint8; UserError where they make no pictures."""
    manifest = read_manifest(folder)
    check_pictures(manifest["shape"][0], manifest.get("encoder"))
    return arrays_of(folder, manifest)


def announce(model: Model, wanted: bool, say: bool = True) -> None:
    """Tell before the first image what cannot be done with a model's images: UserError where pictures are wanted."""
    channels, encoder = model.shape[0], encoder_of(model)
    if wanted:
        check_pictures(channels, encoder)
    elif say and encoder is None and channels not in (1, 3):  # of latents it was said when the model was loaded
        LOG.warning(
            f"images of {channels} channels: notebooks show none of them, --png and --grid need 1, 3 or 4, and "
            "evaluate compares them by the features random-conv alone"
        )


def check_pictures(channels: int | None = None, encoder: str | None = None) -> None:
    """Raise UserError where PNG files cannot be written: without Pillow, of latents, or of so many channels."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError("PNG files need Pillow: pip install pillow") from None
    if encoder is not None:
        raise UserError(f"latents of {encoder} are no pictures: leave --png and --grid out, and decode the shards")
    if channels not in (None, *PNG_CHANNELS):
        raise UserError(f"PNG files hold images of 1, 3 or 4 channels, not {channels}: leave --png and --grid out")


def save_png(path: Path, image: np.ndarray) -> None:
    """Write a picture (H, W, C) uint8."""
    from PIL import Image

    with replacing(path) as part:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part, format="PNG")
