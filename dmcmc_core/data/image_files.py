"""A published set that is a folder of PNG and JPEG files: one image is read at a time, and resized only if asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmcmc_core.data.images import ImageSet
from dmcmc_core.data.published import DATASETS, FILTERS
from dmcmc_core.errors import UserError


def open_image_files(name: str, folder: Path, resize: str) -> ImageSet:
    """Open all PNG and JPEG files of a folder and those below it, in the order of their names.

    Args:
        name: NAME or NAME:FILTER, NAME one of :data:`DATASETS`.
        resize: one of :data:`FILTERS`; empty to refuse images of another size.

    Raises:
        UserError: without pillow, for another number of images than the set has, or a first image that does not fit;
            and reading raises it for the others.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise UserError(
            f"the images of {name} are read by pillow, which is not installed: pip install pillow"
        ) from error
    base = name.partition(":")[0]
    shape = DATASETS[base].shape
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and path.is_file()
    )
    if len(names) != shape[0]:
        raise UserError(f"{folder} holds {len(names):,} PNG and JPEG images, {base} has {shape[0]:,}")
    _load(folder / names[0], base, resize)  # a set of another size is told before anything is computed
    read = lambda rows: np.stack([_load(folder / names[i], base, resize) for i in rows])  # noqa: E731
    return ImageSet(name, shape, read, (folder, names), resize, f"pillow {PIL.__version__}")


def _load(path: Path, base: str, resize: str) -> np.ndarray:
    """Read one image of a set as (3, H, W) uint8."""
    import PIL.Image

    _, _, height, width = DATASETS[base].shape
    try:
        with PIL.Image.open(path) as image:
            if image.mode not in ("RGB", "L"):
                raise UserError(f"{path} is of Pillow's mode {image.mode}: RGB or L (grey) of 8 bits is needed")
            if image.size != (width, height):
                wrong = f"{path} is {image.width}x{image.height}, {base} is {width}x{height}"
                if not resize:
                    raise UserError(f"{wrong}: {base}:FILTER resizes, FILTER one of {', '.join(FILTERS)}")
                if image.width * height != image.height * width:
                    raise UserError(f"{wrong}: resizing would distort it")
                image = image.convert("RGB").resize((width, height), PIL.Image.Resampling[resize.upper()])
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image, it may be truncated: {error}") from error
