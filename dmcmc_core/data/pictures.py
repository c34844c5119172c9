"""Single pictures that networks are trained on: those of score embedding, and stand-ins that libraries ship.

Nothing is downloaded: published pictures are read from DMCMC_DATA or exp/paper, stand-ins from where they lie in the
package of a library.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmcmc_core.data.names import open_images
from dmcmc_core.data.pickles import Array, Unpickler
from dmcmc_core.data.published import VARIABLE, places
from dmcmc_core.errors import UserError, number, sentence, unknown

LEAST = 7
"""Pixels of a side that structural similarity needs."""
DOG = 5
"""The class of CIFAR-10 that the published runs train on."""
AUTHORS = "https://github.com/andrew-na-git/Score-Embedding-Fast-Diffusion"
RAW = {"celeba-raw": "score-embedding/celeb_data.pkl", "imagenet-raw": "score-embedding/imagenet_data.pkl"}
"""Sets of raw pictures as published -> their place in DMCMC_DATA or exp/paper."""


class Shipped(NamedTuple):
    """Photographs inside the package of a library: the package, what pip calls it, a folder in it, and their files."""

    package: str
    pip: str
    folder: str
    files: tuple[str, ...]


SHIPPED = {
    "skimage": Shipped(
        "skimage",
        "scikit-image",
        "data",
        ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"),
    ),
    "sklearn": Shipped("sklearn", "scikit-learn", "datasets/images", ("china.jpg", "flower.jpg")),
}
"""Sets of stand-ins, and what they are; chelsea is a cat."""
PICTURES = ("cifar10-dog", *RAW, *SHIPPED)
"""Names of sets."""


def load_pictures(name: str, count: int, size: int, seed: int = 0) -> Tensor:
    """Return pictures (count, C, size, size) float32, each from 0 to 1 over all its channels.

    Pictures are resized by a cubic filter that takes every pixel into account, to 256 levels, as published: raw ones
    that are not square are stretched. Stand-ins are first cut to the square in their middle.

    Args:
        name: one of :data:`PICTURES`, or the path of an NPZ file with ``arr_0`` uint8 of shape (N, H, H, C).
        count: how many, at least 1.
        size: pixels of a side, at least 7, which structural similarity needs.
        seed: of ``cifar10-dog``, which draws them as published; of other sets the number of the first one, from 0.

    Raises:
        UserError: for an unknown set, more pictures than it has, one of an NPZ file that is not square, one of a single
            value, and files or a library that are not here, with their place and source.
    """
    number("count", count, least=1, whole=True)
    number("size", size, least=LEAST, most=8192, whole=True)
    number("seed", seed, least=0, most=2**32 - 1, whole=True)
    return torch.stack([_resized(name, picture, size) for picture in _pictures(name, count, seed)])


def _pictures(name: str, count: int, seed: int) -> list[np.ndarray]:
    """Return pictures (H, W, C) uint8 as they are before their size changes."""
    if name == "cifar10-dog":
        return _dogs(count, seed)
    if name in RAW:
        pictures = _raw(_place(name))
        return [pictures[i] for i in _numbers(name, len(pictures), count, seed)]
    if name in SHIPPED:
        files = SHIPPED[name].files
        return [_square(_photograph(name, files[i])) for i in _numbers(name, len(files), count, seed)]
    if Path(name).suffix != ".npz":
        raise unknown("set of pictures (no .npz file either)", name, PICTURES)
    images = open_images(name)
    height, width = images.shape[2:]
    if height != width:
        raise UserError(f"a picture of {name} is {height}x{width}: score embedding needs square ones")
    if height < LEAST:
        raise UserError(f"a picture of {name} is {height}x{width}: sides of at least {LEAST} pixels are needed")
    numbers = torch.tensor(_numbers(name, len(images), count, seed))
    return list(images.uint8(numbers).permute(0, 2, 3, 1).numpy())


def _numbers(name: str, total: int, count: int, first: int) -> range:
    """Return the numbers of ``count`` pictures from the first; UserError where there are not as many."""
    if first + count > total:
        raise UserError(f"{name} has {total} pictures: {count} from number {first} on are not there")
    return range(first, first + count)


def draw(total: int, count: int, seed: int) -> np.ndarray:
    """Return which of ``total`` pictures are taken, as published: without replacement, by NumPy's old stream."""
    if count > total:
        raise UserError(f"there are {total} pictures to draw from, not {count}")
    return np.random.RandomState(seed).choice(total, count, replace=False)


def _dogs(count: int, seed: int) -> list[np.ndarray]:
    images = open_images("cifar10-train")
    rows = np.flatnonzero(np.asarray(images.labels) == DOG)
    chosen = torch.from_numpy(rows[draw(len(rows), count, seed)])
    return list(images.uint8(chosen).permute(0, 2, 3, 1).numpy())


def _place(name: str) -> Path:
    """Return the path of a published pickle; UserError, with where it comes from, if it is in none of the places."""
    path = next((place / RAW[name] for place in places() if (place / RAW[name]).is_file()), None)
    if path is None:
        where = " or ".join(map(str, places()))
        raise UserError(
            f"the raw pictures {name} are not here: the file {RAW[name]} is needed in {where} (or set {VARIABLE} to "
            f"the folder that holds it); it comes from {AUTHORS}, its data/{Path(RAW[name]).name}"
        )
    return path


def _raw(path: Path) -> list[np.ndarray]:
    """Return the raw pictures of a published pickle: arrays (H, W, 3) uint8, in a list or as one array."""
    try:
        with path.open("rb") as file:
            content = Unpickler(file).load()
        items = content.values if isinstance(content, Array) else content
        pictures = [item.values if isinstance(item, Array) else item for item in items]
        if not pictures or any(not isinstance(p, np.ndarray) or p.ndim != 3 or p.shape[2] != 3 for p in pictures):
            raise ValueError("it does not hold pictures (H, W, 3)")
    except Exception as error:  # whatever a broken pickle brings about
        raise UserError(f"{path} cannot be read as raw pictures: {sentence(error)}") from error
    for height, width, _ in (picture.shape for picture in pictures):
        if min(height, width) < LEAST:
            raise UserError(f"a picture of {path} is {height}x{width}: sides of at least {LEAST} pixels are needed")
    return pictures


def _photograph(name: str, file: str) -> np.ndarray:
    """Return a photograph inside a package, (H, W, 3) uint8; the library, which could fetch it, is not asked."""
    about = SHIPPED[name]
    found = importlib.util.find_spec(about.package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"these pictures are inside {about.pip}, which is not installed: pip install {about.pip}")
    path = Path(found.submodule_search_locations[0]) / about.folder / file
    if not path.is_file():
        raise UserError(f"{about.pip} here lacks its picture {file}, which belongs at {path}: install another version")
    try:
        import PIL.Image
    except ImportError as error:
        raise UserError("these pictures are read by pillow, which is not installed: pip install pillow") from error
    with PIL.Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _square(picture: np.ndarray) -> np.ndarray:
    """Return the square in the middle of a picture (H, W, C)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def _resized(name: str, picture: np.ndarray, size: int) -> Tensor:
    """Return a picture (H, W, C) uint8 as (C, size, size) from 0 to 1."""
    x = torch.tensor(np.ascontiguousarray(picture), dtype=torch.float32).permute(2, 0, 1)
    if x.shape[1:] != (size, size):
        x = F.interpolate(x[None], (size, size), mode="bicubic", antialias=True)[0].round().clamp(0, 255)
    if x.min() == x.max():
        raise UserError(f"a picture of {name} has one value everywhere")
    return (x - x.min()) / (x.max() - x.min())
