"""Files of NumPy that hold images: NPZ as ``sample`` and guided-diffusion write it, and NPY."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmcmc_core.data.images import ImageSet
from dmcmc_core.errors import UserError, sentence
from dmcmc_core.files import npz_shapes, read_npz

ARRAYS = (".npz", ".npy")
"""Endings of files of NumPy."""
NEEDED = (
    "uint8 (N, H, W, C) is needed, channels last, or (N, H, W); a reference may also be statistics, mu (d,) and sigma "
    "(d, d) or mean and cov, or features pool_3 (n, d)"
)


def open_array(name: str | Path) -> ImageSet:
    """Open an NPZ file, by :func:`open_npz`, or an NPY file with its array; that stays on disk until it is asked for.

    Raises:
        UserError: as :func:`open_npz`.
    """
    path = Path(name)
    if path.suffix != ".npy":
        return open_npz(name)
    n, height, width, channels = _mapped(path).shape
    # the file is mapped for one block at a time, so that what was read does not stay in memory
    read = lambda rows: np.array(_mapped(path)[rows]).transpose(0, 3, 1, 2)  # noqa: E731
    return ImageSet(str(name), (n, channels, height, width), read)


def _mapped(path: Path) -> np.ndarray:
    """Map an NPY file of images, (N, H, W, C) uint8."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    except Exception as error:  # damage has several names in NumPy, and any of them means the same here
        raise UserError(f"{path} cannot be read as an NPY file, it may be truncated: {sentence(error)}") from error
    return _channels_last(array, str(path))


def open_npz(name: str | Path) -> ImageSet:
    """Open an NPZ file with images ``arr_0``, and perhaps their classes ``arr_1`` (N,); it is in memory as uint8.

    The images are uint8 (N, H, W, C), or grey ones (N, H, W). The file may hold arrays of other kinds: ``source`` of
    the set names those that are not used.

    Raises:
        UserError: for a file that is not there or damaged, for another array, none or several of images, and for
            another number of classes than images.
    """
    path = Path(name)
    shapes = npz_shapes(path)
    if "arr_0" not in shapes:
        found = ", ".join(f"{other} {dtype} {shape}" for other, (dtype, shape) in shapes.items())
        raise UserError(f"{path} holds no array arr_0 but {found[:200] or 'none at all'}: {NEEDED}")
    several = [other for other, (dtype, shape) in shapes.items() if dtype == np.uint8 and len(shape) >= 3]
    if len(several) > 1:
        raise UserError(f"{path} holds several arrays of images, {', '.join(several)[:200]}: arr_0 alone is needed")
    read = read_npz(path, ["arr_0", "arr_1"])
    array, labels = _channels_last(read["arr_0"], f"arr_0 of {path}"), read.get("arr_1")
    classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    if classes and len(labels) != len(array):
        raise UserError(f"{path} holds {len(labels)} classes arr_1 of {len(array)} images arr_0")
    unused = [other for other in shapes if other != "arr_0" and not (classes and other == "arr_1")]
    source = f"{len(array)} images, arr_0; not used: {', '.join(unused)}" if unused else ""
    images = array.transpose(0, 3, 1, 2)
    read_labels = (lambda: labels.astype(np.int64)) if classes else None
    return ImageSet(str(name), images.shape, lambda rows: images[rows], read_labels=read_labels, source=source)


def _channels_last(array: np.ndarray, what: str) -> np.ndarray:
    """Return images as (N, H, W, C), grey ones (N, H, W) with C = 1; UserError for an array of anything else."""
    grey = array.ndim == 3 and array.shape[-1] > 4  # else it may be a single image
    last = array.ndim == 4 and 0 < array.shape[-1] < max(5, min(array.shape[1:3]))
    if array.dtype != np.uint8 or not (grey or last) or 0 in array.shape:
        raise UserError(f"{what} is {array.dtype} of shape {array.shape}: {NEEDED}")
    return array[..., None] if grey else array
