"""Single pictures that networks are trained on: those of score embedding, and stand-ins that libraries ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmcmc_core.data.names import open_images
from dmcmc_core.data.pickles import Array, Unpickler
from dmcmc_core.data.published import places
from dmcmc_core.errors import UserError, number, unknown

LEAST = 7
"""Pixels of a side that structural similarity needs."""
DOG = 5
"""The class of CIFAR-10 that the published runs train on."""
SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
"""Colour pictures inside scikit-image."""
RAW = {
    "celeba-raw": Path("score-embedding") / "celeba_raw.pkl",
    "imagenet-raw": Path("score-embedding") / "imagenet_raw.pkl",
}
"""Sets of raw pictures as published -> their place in DMCMC_DATA or exp/paper."""
SOURCE = "the data folder of the repository of score embedding (Na, Gao & Wan, arXiv 2404.06661)"


def load_pictures(name: str, count: int, size: int, seed: int = 0) -> Tensor:
    """Return pictures (count, C, size, size) float32, each from 0 to 1 over all its channels.

    Pictures are resized by a cubic filter that takes every pixel into account; stand-ins are first cut to the square in
    their middle.

    Args:
        name: ``cifar10-dog``, ``celeba-raw`` or ``imagenet-raw``, as published; ``skimage`` or ``sklearn``.
        count: how many, at least 1.
        size: pixels of a side, at least 7, which structural similarity needs.
        seed: of ``cifar10-dog``, which draws them as published; of other sets the number of the first one, from 0.

    Raises:
        UserError: for an unknown set, more pictures than it has, one that is not square, and files that are not here,
            with their place and source.
    """
    sets: dict[str, Callable[[], list[np.ndarray]]] = {
        "cifar10-dog": lambda: _dogs(count, seed),
        **{raw: lambda raw=raw: _part(raw, _raw(raw), count, seed) for raw in RAW},
        "skimage": lambda: [_square(p) for p in _part(name, _of_skimage(), count, seed)],
        "sklearn": lambda: [_square(p) for p in _part(name, _of_sklearn(), count, seed)],
    }
    if name not in sets:
        raise unknown("set of pictures", name, sets)
    number("count", count, least=1, whole=True)
    number("size", size, least=LEAST, whole=True)
    number("seed", seed, least=0, whole=True)
    return torch.stack([_resized(name, picture, size) for picture in sets[name]()])


def _part(name: str, pictures: list, count: int, first: int) -> list[np.ndarray]:
    """Return ``count`` pictures from the first; UserError where there are not as many."""
    if first + count > len(pictures):
        raise UserError(f"{name} has {len(pictures)} pictures: {count} from number {first} on are not there")
    return pictures[first : first + count]


def _resized(name: str, picture: np.ndarray, size: int) -> Tensor:
    """Return a picture (H, W, C) or (H, W) uint8 as (C, size, size) from 0 to 1."""
    if picture.ndim == 2:
        picture = picture[..., None]
    height, width = picture.shape[:2]
    if height != width:
        raise UserError(f"a picture of {name} is {height}x{width}: score embedding needs square ones")
    if height < LEAST:
        raise UserError(f"a picture of {name} has {height} pixels a side: at least {LEAST} are needed")
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    x = F.interpolate(x[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]
    if x.min() == x.max():
        raise UserError(f"a picture of {name} has one value everywhere")
    return (x - x.min()) / (x.max() - x.min())


def _square(picture: np.ndarray) -> np.ndarray:
    """Return the square in the middle of a picture (H, W, C)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side, :3]


def _dogs(count: int, seed: int) -> list[np.ndarray]:
    images = open_images("cifar10-train")
    rows = np.flatnonzero(np.asarray(images.labels) == DOG)
    drawn = rows[np.random.RandomState(seed).choice(len(rows), count, replace=False)]
    return [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images[drawn]]


def _raw(name: str) -> list[np.ndarray]:
    """Return the raw pictures of a published pickle: arrays (H, W, 3) uint8, in a list or as one array."""
    path = next((place / RAW[name] for place in places() if (place / RAW[name]).is_file()), None)
    if path is None:
        where = " or ".join(str(place / RAW[name]) for place in places())
        raise UserError(f"the raw pictures {name} are not here: the file goes to {where}, and comes from {SOURCE}")
    try:
        with path.open("rb") as file:
            content = Unpickler(file).load()
        if isinstance(content, Array):
            content = list(content.values)
        else:
            content = [item.values for item in content]
        if not content or any(p.ndim != 3 or p.shape[2] != 3 for p in content):
            raise ValueError("it does not hold pictures (H, W, 3)")
    except Exception as error:  # whatever a broken pickle brings about
        raise UserError(f"{path} cannot be read as raw pictures: {error}") from error
    return content


def _of_skimage() -> list[np.ndarray]:
    try:
        from skimage import data
    except ImportError as error:
        raise UserError("these pictures are inside scikit-image: pip install scikit-image") from error
    return [getattr(data, name)() for name in SKIMAGE]


def _of_sklearn() -> list[np.ndarray]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise UserError("these pictures are inside scikit-learn: pip install scikit-learn") from error
    return load_sample_images().images
