"""Folders of PNG and JPEG files: a published set, or any images; one is read at a time, and resized only if asked."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dmcmc_core.data.images import ImageSet
from dmcmc_core.data.published import DATASETS, FILTERS
from dmcmc_core.errors import UserError, sentence

ENDINGS = (".png", ".jpg", ".jpeg")
UNREAD = (".bmp", ".gif", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of images that are not read: a folder of images that holds one is refused, so that none is left out."""
FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG"}
"""Pillow's name of a format -> what it is called here; in MPO cameras write more than one JPEG image."""
DENSEST = 1032
"""Most pixels that a byte can stand for: in PNG by the limit of deflate, in JPEG half as many, a bit for each block."""


def open_image_files(name: str, folder: Path, resize: str) -> ImageSet:
    """Open a published set: all PNG and JPEG files of a folder and those below it, in the order of their names.

    Args:
        name: NAME or NAME:FILTER, NAME one of :data:`DATASETS`.
        resize: one of :data:`FILTERS`; empty to refuse images of another size.

    Raises:
        UserError: without pillow, for another number of images than the set has, or a first image that does not fit;
            and reading raises it for the others.
    """
    reader = _reader(name)
    base = name.partition(":")[0]
    shape = DATASETS[base].shape
    names = image_names(folder)
    if len(names) != shape[0]:
        raise UserError(f"{folder} holds {len(names):,} PNG and JPEG images, {base} has {shape[0]:,}")
    load = lambda i: _load(folder / names[i], lambda image, path: _resized(image, path, base, resize))  # noqa: E731
    load(0)  # a set of another size is told before anything is computed
    read = lambda rows: np.stack([load(i) for i in rows])  # noqa: E731
    return ImageSet(name, shape, read, (folder, names), resize, reader)


def open_folder(folder: Path) -> ImageSet:
    """Open all PNG and JPEG files of a folder and those below it, in the order of their names.

    The images are grey (C = 1) where all files are, else RGB. :func:`visible_files` says which files count.

    Raises:
        UserError: without pillow; for a folder without images or with those of a format that is not read, for images of
            different sizes or of other modes than RGB and L, and for files that are no images. Reading raises it for
            files that are truncated.
    """
    reader = _reader(str(folder))
    names = image_names(folder)
    if other := next((path for path in visible_files(folder) if path.suffix.lower() in UNREAD), None):
        raise UserError(f"{other} is of a format that is not read: PNG or JPEG files are needed, and no other images")
    if not names:
        raise UserError(f"{folder} holds no PNG or JPEG images")
    heads = [_head(folder / name) for name in names]
    sizes = {size: name for name, (_, _, size) in zip(names, heads, strict=True)}
    if len(sizes) > 1:
        one, other = (f"{name} of {width}x{height}" for (width, height), name in list(sizes.items())[:2])
        raise UserError(f"{folder} holds images of different sizes, {one} and {other}: one size is needed")
    ((width, height),) = sizes
    mode = "L" if all(mode == "L" for _, mode, _ in heads) else "RGB"
    counts = Counter(kind for kind, _, _ in heads)

    def unchanged(image: Any, path: Path) -> Any:
        if image.size != (width, height) or (mode, image.mode) == ("L", "RGB"):
            raise UserError(f"{path} has changed while its folder was being read: start again")
        return image

    return ImageSet(
        str(folder),
        (len(names), len(mode), height, width),
        lambda rows: np.stack([_load(folder / names[i], unchanged, mode) for i in rows]),
        (folder, names),
        reader=reader,
        source=" and ".join(f"{n} {kind} file{'s' if n > 1 else ''}" for kind, n in sorted(counts.items())),
        encoding={"JPEG": "jpeg", "PNG": "lossless"}.get("".join(counts), "jpeg and lossless"),
    )


def image_names(folder: Path) -> list[str]:
    """List the PNG and JPEG files among :func:`visible_files`, sorted by their names below the folder."""
    found = (path for path in visible_files(folder) if path.suffix.lower() in ENDINGS)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and those below it.

    Files and folders whose names begin with a dot are left out. Links are followed, and a folder to which several paths
    lead is gone into once: links in a circle end, and no image counts twice.

    Raises:
        UserError: for a folder that cannot be listed.
    """
    seen = {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error

    def is_new(path: Path) -> bool:
        before = len(seen)
        seen.add(os.path.realpath(path))
        return len(seen) > before

    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        links_last = sorted(folders, key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        folders[:] = [name for name in links_last if not name.startswith(".") and is_new(Path(place, name))]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _reader(name: str) -> str:
    """Return what reads the images, and its version."""
    try:
        import PIL
    except ImportError as error:
        raise UserError(
            f"the images of {name} are read by pillow, which is not installed: pip install pillow"
        ) from error
    return f"pillow {PIL.__version__}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a PNG or JPEG file of RGB or grey of 8 bits, of pixels that it can hold and that Pillow takes."""
    import PIL.Image

    bomb = PIL.Image.DecompressionBombWarning
    with warnings.catch_warnings(action="error", category=bomb), PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.mode not in ("RGB", "L"):
            raise UserError(f"{path} is of Pillow's mode {image.mode}: RGB or L (grey) of 8 bits is needed")
        if image.width * image.height > DENSEST * path.stat().st_size:  # Pillow would fill up what is missing
            raise UserError(f"{path} is too short for its {image.width}x{image.height} pixels: it is truncated")
        yield image


def _head(path: Path) -> tuple[str, str, tuple[int, int]]:
    """Return format, Pillow's mode and (width, height) of an image file; its pixels are not read."""
    try:
        with _opened(path) as image, path.open("rb") as file:
            if image.format == "PNG" and file.read(25)[24] == 16:  # which pillow would cut to 8
                raise UserError(f"{path} is a PNG of 16 bits: 8 bits are needed")
            return FORMATS[str(image.format)], image.mode, image.size
    except UserError:
        raise
    except Exception as error:  # damage has a dozen names in pillow, and any of them means the same here
        raise UserError(f"{path} cannot be read as a PNG or JPEG image: {sentence(error)}") from error


def _load(path: Path, fit: Callable[[Any, Path], Any], mode: str = "RGB") -> np.ndarray:
    """Read one image, as ``fit`` returns it, as (C, H, W) uint8 of Pillow's mode RGB or L."""
    try:
        with _opened(path) as image:
            pixels = np.asarray(fit(image, path).convert(mode))
        return pixels.reshape(*pixels.shape[:2], len(mode)).transpose(2, 0, 1)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{path} cannot be read as an image, it may be truncated: {sentence(error)}") from error


def _resized(image: Any, path: Path, base: str, resize: str) -> Any:
    """Return an image at the size of its published set; UserError for another size that nobody asked to change."""
    import PIL.Image

    _, _, height, width = DATASETS[base].shape
    if image.size == (width, height):
        return image
    wrong = f"{path} is {image.width}x{image.height}, {base} is {width}x{height}"
    if not resize:
        raise UserError(f"{wrong}: {base}:FILTER resizes, FILTER one of {', '.join(FILTERS)}")
    if image.width * height != image.height * width:
        raise UserError(f"{wrong}: resizing would distort it")
    return image.convert("RGB").resize((width, height), PIL.Image.Resampling[resize.upper()])
