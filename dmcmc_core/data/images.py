"""What images are: tensors with labels, sets that are read as they are asked for, and their 256 levels in files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.files import sha256


class Images(NamedTuple):
    """Images in memory, and what is known about them."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64 class of each image."""
    attributes: dict[str, np.ndarray]
    """Further facts by name, (N,) or (N, k); empty for digits."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images that are read when they are asked for. Where floats are wanted it can be used like a tensor.

    ``len(s)``, ``s.shape``, ``s[index]`` and ``s.split(size)`` are those of a float32 tensor (N, C, H, W) in
    ``data_range``; only what is asked for is ever in memory as floats.

    Attributes:
        name: as in results.
        shape: (N, C, H, W).
        read: indices (n,) -> (n, C, H, W) uint8.
        files: root, and the names below it of the files that it is made of; empty for a set that is only in memory.
        resize: the filter of :data:`dmcmc_core.data.FILTERS` that made images fit the shape, empty if none did.
        reader: what has decoded the files, and its version, where that may make a difference.
        read_labels: () -> (N,) int64, for sets with classes.
        data_range: of the floats, such as (-1, 1) for a network that was trained so.
        source: what the set is, in words, such as ``120 PNG files``; empty where its number of images says it all.
        encoding: of its files, ``lossless``, ``jpeg`` or ``jpeg and lossless``; empty where their names tell it.
    """

    name: str
    shape: tuple[int, int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    files: tuple[Path, Sequence[str]] = (Path(), ())
    resize: str = ""
    reader: str = ""
    read_labels: Callable[[], np.ndarray] | None = None
    data_range: tuple[float, float] = (0.0, 1.0)
    source: str = ""
    encoding: str = ""

    def __len__(self) -> int:
        return self.shape[0]

    def in_range(self, low: float, high: float) -> ImageSet:
        """Return the same images as floats in [low, high]."""
        return replace(self, data_range=(low, high))

    def first(self, n: int) -> ImageSet:
        """Return the first n images; UserError where there are not so many."""
        if not 1 <= n <= len(self):
            raise UserError(f"first must be 1 to the {len(self)} images of {self.name}, not {n}")
        if n == len(self):
            return self
        names, labels = self.files[1], self.read_labels
        return replace(
            self,
            shape=(n, *self.shape[1:]),
            files=(self.files[0], names[:n] if len(names) == len(self) else names),
            read_labels=labels and (lambda: labels()[:n]),
            source=f"the first {n} of {self.source or f'{len(self)} images'}",
        )

    def uint8(self, index: slice | Tensor) -> Tensor:
        """Read (n, C, H, W) uint8 of a slice, or of integers in [-N, N)."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        return torch.from_numpy(np.ascontiguousarray(self.read(rows)))

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, (at most ``size``, C, H, W) uint8 at a time."""
        return (self.uint8(slice(i, i + size)) for i in range(0, len(self), size))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield :meth:`blocks` as float32 in ``data_range``."""
        return (_floats(block, self.data_range) for block in self.blocks(size))

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Read (n, C, H, W) float32 in ``data_range``, of a slice or of integers in [-N, N)."""
        return _floats(self.uint8(index), self.data_range)

    @property
    def labels(self) -> Tensor:
        """Read the classes, (N,) int64; UserError where the set has none."""
        if self.read_labels is None:
            raise UserError(f"{self.name} has no labels")
        return torch.from_numpy(self.read_labels())

    def recipe(self) -> dict[str, Any]:
        """Tell what the images are made of, ready for JSON; reads every file. UserError if one cannot be read."""
        root, names = self.files
        digest = hashlib.sha256()
        for name in names:
            try:
                content = sha256(root / name)
            except OSError as error:
                raise UserError(f"{root / name} of {self.name} cannot be read: {error.strerror}") from error
            digest.update(f"{content}  {name}\n".encode())
        about = {"name": self.name, "shape": list(self.shape), "files": len(names), "sha256": digest.hexdigest()}
        return about | {"resize": self.resize, "reader": self.reader}


CASTS = ("round", "truncate")
"""How floats become 256 levels: see :func:`to_uint8`."""


def to_uint8(images: Tensor, data_range: tuple[float, float] = (0.0, 1.0), cast: str = "round") -> np.ndarray:
    """Return images (N, C, H, W) in ``data_range`` as (N, H, W, C) uint8: clamped and cast to 256 levels.

    Args:
        cast: to the nearest level (``round``), or ``truncate`` as in the code published with DMCMC, which darkens every
            image by half a level on average.
    """
    low, high = data_range
    if cast == "round":
        levels = ((images.detach().cpu().double() - low) * (255 / (high - low))).round().clamp(0, 255)
    else:  # in float32, as published
        levels = ((images.detach().cpu() - low) / (high - low)).clamp(0, 1) * 255
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(array: np.ndarray, data_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Return images (N, H, W, C) uint8 as (N, C, H, W) float32 in ``data_range``; the inverse of :func:`to_uint8`."""
    return _floats(torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(), data_range)


def _floats(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Return uint8 of any shape as float32 in a range; it is in memory once."""
    low, high = data_range
    return images.float().div_(255).mul_(high - low).add_(low)
