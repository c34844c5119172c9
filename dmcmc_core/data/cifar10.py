"""CIFAR-10 as it is published, in files of Python 2: fetched when a person asks, read without running their pickles."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from dmcmc_core.data.images import ImageSet
from dmcmc_core.data.pickles import Unpickler
from dmcmc_core.data.published import CIFAR10_MD5, CIFAR10_URL, DATASETS, places
from dmcmc_core.errors import UserError, sentence


def download_cifar10(place: str | Path | None = None) -> Path:
    """Fetch CIFAR-10 (170 MB) into a folder, by default the first of :func:`places`; only ever called by a person.

    Returns:
        The folder ``cifar-10-batches-py``; nothing is fetched if it is there.

    Raises:
        UserError: without torchvision, without a connection, or when what came is not the published archive. Nothing is
            left behind then.
    """
    place = places()[0] if place is None else Path(place)
    folder = place / DATASETS["cifar10-train"].folder
    if folder.is_dir():
        return folder
    try:
        from torchvision.datasets import CIFAR10, utils
    except ImportError as error:
        raise UserError(f"torchvision fetches {CIFAR10_URL} and is not installed: pip install torchvision") from error
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".part", dir=place) as part:
        try:
            utils.download_and_extract_archive(CIFAR10_URL, part, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
            os.replace(Path(part) / folder.name, folder)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{CIFAR10_URL} could not be fetched into {place}: {error}") from error
    return folder


def open_batches(name: str, folder: Path) -> ImageSet:
    """Open ``cifar10-train`` or ``cifar10-test``; the batches are read when the first image is asked for.

    Raises:
        UserError: for missing batches; and reading raises it for those that are broken or not the published ones.
    """
    about = DATASETS[name]
    missing = [batch for batch in about.batches if not (folder / batch).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)} of {name}; it comes from {about.source}: {about.fetch}")
    promised = about.shape[0]

    @functools.cache
    def read() -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = zip(*(_read_batch(folder / batch) for batch in about.batches), strict=True)
        if sum(map(len, pixels)) != promised:
            raise UserError(f"{folder} holds {sum(map(len, pixels)):,} images, {name} has {promised:,}")
        return np.concatenate(pixels), np.concatenate(labels)

    return ImageSet(
        name, about.shape, lambda rows: read()[0][rows], (folder, about.batches), read_labels=lambda: read()[1]
    )


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels (n, 3, 32, 32) uint8 and labels (n,) int64 of one file of CIFAR-10."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != CIFAR10_MD5[path.name]:
                right = f"its MD5 is {found}, not {CIFAR10_MD5[path.name]}"
                raise UserError(f"{path} is not the published file of CIFAR-10, it may be truncated: {right}")
            file.seek(0)
            batch = Unpickler(file, encoding="bytes").load()
        pixels, labels = batch[b"data"].values.reshape(-1, 3, 32, 32), np.array(batch[b"labels"], dtype=np.int64)
        if labels.shape != pixels.shape[:1] or not ((labels >= 0) & (labels < 10)).all():
            raise ValueError("its labels are not one of ten classes for each image")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a broken pickle brings about
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(f"{path} cannot be read as a batch of CIFAR-10: {sentence(error)}") from error
    return pixels, labels
