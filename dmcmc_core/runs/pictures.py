"""The images of a finished run as PNG files, each by itself or side by side."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dmcmc_core.errors import UserError
from dmcmc_core.files import replacing
from dmcmc_core.runs.folder import arrays_of, read_manifest


def write_pngs(folder: str | Path) -> Path:
    """Write the images of a finished run as ``png/00000000.png`` and so on, by index; return their folder."""
    folder = Path(folder)
    number = 0
    for array in arrays_of(folder, read_manifest(folder)):
        for image in array:
            _save_png(folder / "png" / f"{number:08d}.png", image)
            number += 1
    return folder / "png"


def write_grid(folder: str | Path, columns: int = 8) -> Path:
    """Write the first ``columns``^2 images of a finished run, a pixel apart, as ``grid.png``; return its path."""
    folder, images = Path(folder), []
    for array in arrays_of(folder, read_manifest(folder)):
        images += list(array)
        if len(images) >= columns**2:
            break
    images = images[: columns**2]
    height, width, channels = images[0].shape
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    _save_png(folder / "grid.png", grid)
    return folder / "grid.png"


def check_pictures(channels: int | None = None) -> None:
    """Raise UserError where PNG files cannot be written: without Pillow, or not for so many channels."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError("PNG files need Pillow: pip install pillow") from None
    if channels not in (None, 1, 3, 4):
        raise UserError(f"PNG files hold images of 1, 3 or 4 channels, not {channels}")


def _save_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    check_pictures(image.shape[-1])
    with replacing(path) as part:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part, format="PNG")
