"""Generated images: the folder that a run writes, ``manifest.json`` and ``shard-*.npz``, and those of other programs.

A shard holds ``arr_0``, uint8 (B, H, W, C); the manifest says under ``num`` how many images there should be. Our own
runs say more, and it is checked: the manifest has a ``checksum``, and each shard tells under ``about`` of which recipe
it is and which images it holds. A shard is read at a time. What other programs wrote is a folder of PNG and JPEG
files, or a file of NumPy.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dmcmc_core.data.arrays import ARRAYS, open_array, open_npz
from dmcmc_core.data.image_files import image_names, open_folder
from dmcmc_core.data.images import ImageSet
from dmcmc_core.errors import UserError
from dmcmc_core.files import from_json, key, read_npz

MANIFEST = "manifest.json"
SHARDS = "shard-*.npz"
AGAIN = "run the same sample command again"


def checksum(manifest: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest, over all that it says but the checksum itself."""
    return key({name: value for name, value in manifest.items() if name != "checksum"})


def about_shard(arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Return what a shard tells of itself in its array ``about``; None where it tells nothing."""
    return json.loads(str(arrays["about"])) if "about" in arrays else None


def belongs(about: Mapping[str, Any], recipe: str, images: Sequence[int]) -> bool:
    """Tell whether a shard is of this recipe and holds these ``images``, the first one and the one after the last."""
    return about["recipe"] == recipe and about["images"] == list(images)


class SampleFolder(NamedTuple):
    """Generated images, and what their manifest tells; one that is empty stands for images that have none."""

    images: ImageSet
    manifest: dict[str, Any]

    @property
    def chains(self) -> int | None:
        """Number of chains that made the images; image i belongs to chain i mod chains. None without chains."""
        try:
            return int(self.manifest["plan"]["chain"]["chains"])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def encoding(self) -> str:
        """Encoding that the images have been through: what the manifest says, else that of their files."""
        return str(self.manifest.get("encoding", self.images.encoding or "lossless"))


def open_generated(path: str | Path) -> SampleFolder:
    """Open images that a run or another program has written.

    Args:
        path: a folder with shards, read by :func:`open_samples` (PNG and JPEG files beside shards are not counted); any
            other folder, by :func:`dmcmc_core.data.image_files.open_folder`; or an NPZ or NPY file, by
            :func:`dmcmc_core.data.arrays.open_array`.

    Raises:
        UserError: for a path that is neither, and as these functions.
    """
    path = Path(path)
    if not path.is_dir():
        if path.suffix in ARRAYS:
            return SampleFolder(open_array(path), {})
        if path.is_file():
            raise UserError(f"{path} is no folder of images, nor an NPZ or NPY file of images")
        raise UserError(f"no such directory: {path}")
    if next(path.glob(SHARDS), None) is None and image_names(path):
        return SampleFolder(open_folder(path), {})
    return open_samples(path)


def open_samples(directory: str | Path) -> SampleFolder:
    """Open the shards of a directory, in the order of their names; each is read when its images are asked for.

    Where the manifest has a checksum, and it and the shards tell their recipe, these have to fit.

    Raises:
        UserError: for no such directory, no manifest or a damaged one, no shards, shards of different shapes or of
            another run, or another number of images than promised.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    shards = sorted(directory.glob(SHARDS))
    if not shards and image_names(directory):
        raise UserError(
            f"{directory} holds images, but none of a run (no {SHARDS}): evaluate compares it with a reference"
        )
    if not shards:
        files = [file.name for ending in ARRAYS for file in sorted(directory.glob(f"[!.]*{ending}"))]
        hint = f" (it holds {files[0]}: give the path of that file)" if files else ""
        raise UserError(f"{directory} holds no shards ({SHARDS}), and no PNG or JPEG images: nothing to evaluate{hint}")
    manifest = _read_manifest(directory / MANIFEST)
    shapes = [open_npz(shard).shape for shard in shards]
    if len({shape[1:] for shape in shapes}) > 1:
        different = sorted({shape[1:] for shape in shapes})
        raise UserError(f"the shards in {directory} hold images of different shapes: {different}")
    ends = np.cumsum([shape[0] for shape in shapes])
    _check_number(directory, int(ends[-1]), manifest["num"])
    for path, end, shape in zip(shards, ends, shapes, strict=True):
        about = about_shard(read_npz(path, ("about",)))
        if about is not None and "recipe" in manifest and not belongs(about, manifest["recipe"], [end - shape[0], end]):
            raise UserError(f"{path} is of another run or place: {AGAIN} to make it")
    source = f"{ends[-1]} images in {len(shards)} shard{'s' if len(shards) > 1 else ''}"
    if pictures := len(image_names(directory)):
        source += f"; not counted: {pictures} PNG and JPEG files beside them"
    images = _set_of_shards(str(directory), shards, ends, shapes[0][1:])
    return SampleFolder(replace(images, source=source), manifest)


def _check_number(directory: Path, n: int, promised: int) -> None:
    """Raise UserError unless there are as many images as the manifest promises."""
    if n < promised:
        raise UserError(
            f"{directory} holds {n} of the {promised} images that its manifest promises: "
            f"{AGAIN} with --out {shlex.quote(str(directory))}, and it goes on where it stopped"
        )
    if n > promised:
        raise UserError(f"{directory} holds {n} images, more than the {promised} of its manifest")


def _set_of_shards(name: str, shards: list[Path], ends: np.ndarray, shape: tuple[int, int, int]) -> ImageSet:
    """Return the images of all shards, of which one is in memory at a time; ``ends`` are the sums of their numbers."""
    shard = functools.lru_cache(maxsize=1)(lambda number: open_npz(shards[number]))
    starts = np.concatenate([[0], ends[:-1]])

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), *shape), np.uint8)
        where = np.searchsorted(ends, rows, side="right")
        for number in np.unique(where):
            inside = where == number
            pixels[inside] = shard(int(number)).read(rows[inside] - starts[number])
        return pixels

    return ImageSet(name, (int(ends[-1]), *shape), read)


def load_samples(directory: str | Path) -> Tensor:
    """Load all images of :func:`open_samples` at once, in memory: (n, C, H, W) float32 in [0, 1]."""
    return open_samples(directory).images[:]


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, which need not be one of ours; UserError where it does not say ``num``, or is damaged."""
    try:
        manifest = from_json(path.read_text(encoding="utf-8"))
        num = manifest["num"]
    except OSError as error:
        raise UserError(f"{path} cannot be read, so nobody knows how many images belong here") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say under 'num' how many images belong here") from error
    if not isinstance(num, int) or num < 1:
        raise UserError(f"{path} must say under 'num' how many images belong here, not {num!r:.60}")
    if manifest.get("checksum") not in (None, checksum(manifest)):
        raise UserError(f"{path} is damaged: {AGAIN} to mend it")
    return manifest
