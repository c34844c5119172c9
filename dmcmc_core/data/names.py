"""Images by name: what ``digits-heldout``, ``celebahq-256:lanczos`` or the path of a file or folder stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dmcmc_core.data.arrays import ARRAYS
from dmcmc_core.data.cifar10 import open_batches
from dmcmc_core.data.digits import digits
from dmcmc_core.data.glyphs import glyphs32
from dmcmc_core.data.image_files import open_image_files
from dmcmc_core.data.images import ImageSet
from dmcmc_core.data.published import DATASETS, FILTERS, find
from dmcmc_core.data.samples import open_generated
from dmcmc_core.errors import UserError, unknown

REFERENCES = {
    "digits-train": lambda: digits("train").images,
    "digits-heldout": lambda: digits("heldout").images,
    "glyphs32": lambda: glyphs32().images,
}
"""Images that are made on the spot, by name: (N, C, H, W) float32 in [0, 1]."""


def open_images(name_or_path: str | Path) -> Tensor | ImageSet:
    """Open images to compare with or to learn from, as few of them in memory as can be.

    Args:
        name_or_path: a name of :data:`REFERENCES` or of :data:`DATASETS`, for image files also NAME:FILTER; or the path
            of a file or folder of images as :func:`open_generated` takes it. A name goes before a path: ./NAME is one.

    Returns:
        The tensor of :func:`load_images` for ``REFERENCES``, an :class:`ImageSet` for all else: an NPZ is in memory as
        uint8, as is CIFAR-10 once it was asked for an image; other files are read each time.

    Raises:
        UserError: for an unknown name or filter, what is not there (with its source), or what holds something else.
            Reading from the set raises it too, for a file that is broken or of another size.
    """
    name = str(name_or_path)
    base, colon, resize = name.partition(":")
    if name in REFERENCES:
        return REFERENCES[name]()
    if base in DATASETS:
        if colon and DATASETS[base].batches:
            raise UserError(f"{base} is never resized: leave out :{resize}")
        if colon and resize not in FILTERS:
            raise unknown(f"filter to resize {base} with", resize, FILTERS)
        folder = find(base)
        return open_batches(base, folder) if DATASETS[base].batches else open_image_files(name, folder, resize)
    if not name or (Path(name).suffix not in ARRAYS and not Path(name).exists()):  # '' is no path, and Path('') the '.'
        raise unknown("image set (no folder, .npz or .npy file either)", name, [*REFERENCES, *DATASETS])
    images, manifest = samples = open_generated(name)
    return replace(images, encoding="jpeg" if "jpeg" in samples.encoding else "lossless") if manifest else images


def load_images(name_or_path: str | Path) -> Tensor:
    """Load all images of :func:`open_images` at once, in memory.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: as :func:`open_images`.
    """
    images = open_images(name_or_path)
    return images if isinstance(images, Tensor) else images[:]
