"""Published sets: what each one is, where it comes from, and in which folders it is looked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dmcmc_core.errors import UserError
from dmcmc_core.files import root

VARIABLE = "DMCMC_DATA"
FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's filters that take every pixel into account."""


class Published(NamedTuple):
    """A set that people download: what it is, where it goes, where it comes from."""

    folder: str
    """Its name in DMCMC_DATA or exp/paper."""
    shape: tuple[int, int, int, int]
    """(N, C, H, W)."""
    source: str
    fetch: str
    """What to do to have it."""
    batches: tuple[str, ...] = ()
    """Files of CIFAR-10; a folder of images has none."""


CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""As torchvision lists them. They tell the published files from others; that reading is safe does not rest on them."""

_CIFAR10 = {
    "folder": "cifar-10-batches-py",
    "source": CIFAR10_URL,
    "fetch": 'python -c "from dmcmc_core import data; data.download_cifar10()"',
}
DATASETS = {
    "cifar10-train": Published(shape=(50_000, 3, 32, 32), batches=tuple(CIFAR10_MD5)[:5], **_CIFAR10),
    "cifar10-test": Published(shape=(10_000, 3, 32, 32), batches=tuple(CIFAR10_MD5)[5:], **_CIFAR10),
    "celebahq-256": Published(
        "celebahq-256",
        (30_000, 3, 256, 256),
        "https://github.com/tkarras/progressive_growing_of_gans",
        "make the images as described there and save them as PNG or JPEG",
    ),
    "ffhq-1024": Published(
        "ffhq-1024",
        (70_000, 3, 1024, 1024),
        "https://github.com/NVlabs/ffhq-dataset",
        "run its download_ffhq.py --images and rename images1024x1024",
    ),
}
"""Published sets by name. NAME:FILTER is a set of image files resized to its shape by one of :data:`FILTERS`."""


def places() -> list[Path]:
    """List the folders in which published sets are looked for: DMCMC_DATA if it is set, then exp/paper."""
    given = os.environ.get(VARIABLE)
    return [*([Path(given).expanduser()] if given else []), root() / "exp" / "paper"]


def find(name: str) -> Path:
    """Return the folder of a set of :data:`DATASETS`; UserError, with its source, if it is in none of the places."""
    about = DATASETS[name]
    for place in places():
        if (place / about.folder).is_dir():
            return place / about.folder
    n, _, height, width = about.shape
    raise UserError(
        f"{name} ({n:,} images of {height}x{width}) is not here: the folder {about.folder} is needed in "
        f"{' or '.join(str(p) for p in places())} (or set {VARIABLE} to the folder that holds it); it comes from "
        f"{about.source}: {about.fetch}"
    )
