"""Folders of PNG and JPEG files, published sets or anybody's: one image is read at a time, resized only if asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    names = sorted(name for name in _image_files(folder) if Path(name).suffix.lower() in READ)
    if len(names) != shape[0]:
        raise UserError(f"{folder} holds {len(names):,} PNG and JPEG images, {base} has {shape[0]:,}")
    _load(folder / names[0], base, resize)  # a set of another size is told before anything is computed
    read = lambda rows: np.stack([_load(folder / names[i], base, resize) for i in rows])  # noqa: E731
    return ImageSet(name, shape, read, (folder, names), resize, f"pillow {PIL.__version__}")


def open_folder(folder: Path) -> ImageSet:
    """Open all PNG and JPEG files of anybody's folder and those below it, in the order of their names.

    All have one size; they are grey, or colour where one of them is, grey ones then with three equal channels. Hidden
    files and folders are left out, links to folders are followed.

    Raises:
        UserError: without pillow, for no images, the first one of another size or kind, by its name, and for one that
            cannot be read; reading raises it for what is damaged behind its header.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise UserError(
            f"the images in {folder} are read by pillow, which is not installed: pip install pillow"
        ) from error
    names = sorted(_image_files(folder))
    if not names:
        raise UserError(f"{folder} holds no shards of sample and no PNG or JPEG files: nothing to compare")
    heads = [_head(folder / name) for name in names]
    for name, (size, _) in zip(names, heads, strict=True):
        if size != heads[0][0]:
            (w, h), (first, second) = size, heads[0][0]
            raise UserError(f"{folder / name} is {w}x{h}, {names[0]} is {first}x{second}: all must be of one size")
    channels = 3 if any(mode == "RGB" for _, mode in heads) else 1
    width, height = heads[0][0]

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([_pixels(folder / names[i], channels) for i in rows])

    shape = (len(names), channels, height, width)
    return ImageSet(str(folder), shape, read, (folder, names), reader=f"pillow {PIL.__version__}")


def _image_files(folder: Path) -> Iterator[str]:
    """Yield the names of image files below a folder, relative to it, each folder once whatever links lead to it."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in (*READ, *OTHERS):
                yield path.relative_to(folder).as_posix()


READ = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Ending of an image file -> Pillow's name of its format."""
OTHERS = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif")
"""Endings of image files that are not read."""


def _head(path: Path) -> tuple[tuple[int, int], str]:
    """Return the size (width, height) and the mode of an image file, without its pixels."""
    import PIL.Image

    wanted = READ.get(path.suffix.lower())
    if wanted is None:
        raise UserError(f"{path} is no PNG or JPEG file: convert it, or take it out of the folder")
    try:
        with PIL.Image.open(path) as image:
            size, mode, kind, clear = image.size, image.mode, image.format, "transparency" in image.info
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image, it may be truncated: {error}") from error
    if kind != wanted:
        raise UserError(f"{path} is {kind} by its content and {wanted} by its name: rename it")
    if mode not in ("RGB", "L") or clear:
        shown = f"{mode} with a transparent colour" if clear else mode
        raise UserError(f"{path} is of Pillow's mode {shown}: RGB or L (grey) of 8 bits is needed")
    return size, mode


def _pixels(path: Path, channels: int) -> np.ndarray:
    """Read one image as (channels, H, W) uint8."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image, it may be truncated: {error}") from error
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


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
