"""Real handwritten digits, 8x8, from scikit-learn; and their fixed split into training and held-out images."""

from __future__ import annotations

import functools

import numpy as np
import torch

from dmcmc_core.data.images import Images
from dmcmc_core.data.philox import stream
from dmcmc_core.errors import UserError, unknown

HELD_OUT = 600
"""Digits kept out of training; the other 1,197 are the training images."""


def digits(split: str = "train") -> Images:
    """Load real 8x8 handwritten digits (the 1,797 of the UCI optical recognition set that scikit-learn carries).

    The split is fixed: shuffled once by a counter-based stream and cut within each class, so that both parts have the
    classes in the same proportion. Who wrote a digit is not recorded there, so both parts share their writers.

    Args:
        split: ``train`` (1,197 images), ``heldout`` (600) or ``all`` (train, then held-out).

    Returns:
        images (N, 1, 8, 8) = pixel / 16, labels (N,), no attributes.

    Raises:
        UserError: for an unknown split, or when scikit-learn is not installed.
    """
    if split not in ("train", "heldout", "all"):
        raise unknown("split of the digits", split, ("train", "heldout", "all"))
    pixels, labels = _source()
    train, held_out = _order(labels)
    index = {"train": train, "heldout": held_out, "all": np.concatenate([train, held_out])}[split]
    images = torch.from_numpy(pixels[index] / 16).float()[:, None]
    return Images(images, torch.from_numpy(labels[index]).long(), {})


@functools.cache
def _source() -> tuple[np.ndarray, np.ndarray]:
    """Load pixels (1797, 8, 8) in [0, 16] and labels (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digits come with scikit-learn, which is not installed: pip install scikit-learn") from error
    source = load_digits()
    return source.images, source.target


def _order(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of training and of held-out digits: in each class the same fraction, then both shuffled."""
    quota = np.bincount(labels) * HELD_OUT / len(labels)
    taken = np.floor(quota).astype(int)
    taken[np.argsort(taken - quota, kind="stable")[: HELD_OUT - taken.sum()]] += 1  # largest remainders
    chosen, order = (np.argsort(stream(0, i).random_raw(len(labels))) for i in (0, 1))
    held_out = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(taken):
        held_out[chosen[labels[chosen] == label][:count]] = True
    return order[~held_out[order]], order[held_out[order]]
