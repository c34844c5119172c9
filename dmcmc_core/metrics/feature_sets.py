"""Sets of images as their features, computed once: in memory, or on disk a few blocks of images at a time.

On disk they lie under a name made of the contents of the images and of all else that they depend on. Every distance
then goes over them in blocks of rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dmcmc_core.data import ImageSet, to_uint8
from dmcmc_core.denoiser import BLOCK
from dmcmc_core.errors import UserError
from dmcmc_core.files import PART, read_npz, write_npz, write_text
from dmcmc_core.metrics.features import Extractor, extract, extract_parts
from dmcmc_core.metrics.frechet import statistics
from dmcmc_core.metrics.kid import within
from dmcmc_core.metrics.neighbours import radii
from dmcmc_core.metrics.rows import Rows, Table
from dmcmc_core.ranges import in_unit_range


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Images as their features, and what distances need of these, each computed when it is first asked for.

    Attributes:
        features: (n, d).
        folder: where what was computed is kept, None for nowhere.
    """

    features: Table
    folder: Path | None = None

    @functools.cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d), float64; ``statistics.npz`` has them as ``mu`` and ``sigma``."""
        kept = self._kept("statistics", lambda: dict(zip(("mu", "sigma"), statistics(self.features), strict=True)))
        return kept["mu"], kept["sigma"]

    def radii(self, k: int) -> Tensor:
        """Return the distance of each row to its k-th neighbour, (n,) float64."""
        return self._kept(f"radii-{k}", lambda: {"radii": radii(self.features, k)})["radii"]

    @functools.cached_property
    def within(self) -> float:
        """Mean of KID's kernel within the set, of :func:`dmcmc_core.metrics.within`."""
        kept = self._kept("within", lambda: {"within": torch.tensor(within(self.features), dtype=torch.float64)})
        return kept["within"].item()

    def part(self, start: int, length: int) -> FeatureSet:
        """Return ``length`` images from number ``start`` on; nothing is kept of them."""
        return FeatureSet(self.features.narrow(0, start, length))

    def _kept(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Read the arrays that an earlier call has kept under this name, or compute and keep them."""
        path = self.folder / f"{name}.npz" if self.folder else None
        if path and path.is_file():
            with contextlib.suppress(UserError):  # a broken file is made again
                kept = read_npz(path, ("mu", "sigma", "radii", "within"))
                return {name: torch.from_numpy(array).to(self.features.device) for name, array in kept.items()}
        computed = compute()
        if path:
            write_npz(path, **{name: value.cpu().numpy() for name, value in computed.items()})
        return computed


def describe(
    images: Tensor | ImageSet, extractor: Extractor, what: str, *, cache_dir: str | Path | None = None, device="cpu"
) -> FeatureSet:
    """Describe images (n, C, H, W) in [0, 1] by features: in memory, or on disk below ``cache_dir`` if one is given.

    There, each set has a folder ``features-KEY``: ``recipe.json`` (the images' content, the features with the hash of
    their weights, torch's version), ``features.npy`` (n, d) float32, and what was asked for of these. An interrupted
    computation goes on where it was, and a second process waits for the first. Features of unknown weights are never
    kept.

    Args:
        what: what the images are, for messages.

    Raises:
        UserError: for fewer images than the features need, and as :func:`dmcmc_core.metrics.extract`.
    """
    if cache_dir is None or not extractor.weights:
        features = extract(images, extractor, device=device)
        check_enough(features.shape, extractor.name, what)
        return FeatureSet(features)
    recipe = _recipe(images, extractor, device)
    folder = Path(cache_dir) / f"features-{hashlib.sha256(recipe.encode()).hexdigest()[:20]}"
    path = folder / "features.npy"
    if _stored(path, len(images), device) is None:
        folder.mkdir(parents=True, exist_ok=True)
        _extract_to(path, images, extractor, what, device)
        write_text(folder / "recipe.json", recipe)
    features = _stored(path, len(images), device)
    check_enough(features.shape, extractor.name, what)
    return FeatureSet(features, folder)


def _recipe(images: Tensor | ImageSet, extractor: Extractor, device) -> str:
    """Return all that features depend on, as JSON."""
    features = {
        "name": extractor.name,
        "sha256": extractor.weights,
        "block": BLOCK,
        "device": torch.device(device).type,
    }
    about = {"format": 2, "images": content(images), "features": features, "torch": torch.__version__}
    return json.dumps(about, sort_keys=True, indent=1)


def content(images: Tensor | ImageSet) -> dict[str, Any]:
    """Return what tells images from others: the hash of the files that they are in, else that of their 256 levels."""
    if isinstance(images, ImageSet) and images.files[1]:
        return images.recipe()
    digest = hashlib.sha256()
    floats = images.in_range(0.0, 1.0) if isinstance(images, ImageSet) else in_unit_range(images)
    for part in floats.split(BLOCK):
        digest.update(to_uint8(part))
    reader = images.reader if isinstance(images, ImageSet) else ""
    return {"shape": list(images.shape), "sha256": digest.hexdigest(), "reader": reader}


def _stored(path: Path, n: int, device) -> Rows | None:
    """Return the features in a file, if they are there and whole."""
    read = functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)
    try:
        shape = read().shape
    except (OSError, ValueError, EOFError):
        return None
    if len(shape) != 2 or shape[0] != n:
        return None
    # the file is mapped for one block at a time, so that what was read does not stay in memory
    block = lambda rows: torch.from_numpy(np.array(read()[rows])).to(device)  # noqa: E731
    return Rows(shape, block, torch.device(device))


def _extract_to(path: Path, images: Tensor | ImageSet, extractor: Extractor, what: str, device) -> None:
    """Write features as they are computed; what an interrupted process has written is taken over."""
    n, part = len(images), path.with_name(path.name + PART)  # one name for all: the next process goes on with it
    with part.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if _stored(path, n, device):  # by the process that had the lock
            return
        try:
            done = _whole_rows(file)
            with tqdm(total=n, initial=done, unit="image", desc=f"features of {what}", disable=None) as bar:
                for features in extract_parts(images, extractor, device=device, start=done):
                    if not done:
                        check_enough((n, features.shape[1]), extractor.name, what)
                        about = {"descr": "<f4", "fortran_order": False, "shape": (n, features.shape[1])}
                        np.lib.format.write_array_header_1_0(file, about)
                    done += len(features)
                    file.write(features.float().cpu().numpy().tobytes())
                    file.flush()
                    bar.update(len(features))
        except UserError:
            part.unlink()
            with contextlib.suppress(OSError):  # statistics are there already, of features that were damaged
                path.parent.rmdir()
            raise
        os.replace(part, path)


def _whole_rows(file: IO[bytes]) -> int:
    """Return how many rows a file has of the table that its header tells, in whole blocks; cut off the rest."""
    file.seek(0)
    try:
        np.lib.format.read_magic(file)
        (_, d), _, _ = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        file.truncate(0)
        return 0
    start = file.tell()
    done = (file.seek(0, os.SEEK_END) - start) // (4 * d) // BLOCK * BLOCK
    file.truncate(start + 4 * d * done if done else 0)
    return done


def check_enough(shape: tuple[int, int], name: str, what: str) -> None:
    """Raise UserError for n rows of n or more features: their covariance has at most the rank n - 1."""
    n, d = shape
    if n < d + 1:
        raise UserError(
            f"{what}: {n} image{'s are' if n > 1 else ' is'} fewer than the {d} {name} features need: "
            f"at least {d + 1}, or their covariance is singular"
        )
