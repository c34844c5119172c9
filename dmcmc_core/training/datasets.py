"""The images of a training run: those that are trained on, and those that the log's held-out numbers are of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.data import digits, glyphs32, open_images
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.nets.glyph_reader import targets
from dmcmc_core.training.config import Config

NAMES = ("digits", "glyphs32", "glyphs32-others", "glyphs32-attributes", "cifar10-train")


class Labelled(NamedTuple):
    """Images (N, C, H, W) in [0, 1] and the class of each, (N,), or all attributes of each glyph, (N, 14)."""

    images: Tensor
    labels: Tensor


def seen_and_unseen(config: Config) -> tuple[Labelled, Labelled]:
    """Return what is trained on, and what the log's held-out numbers are measured on.

    Raises:
        UserError: for an unknown data set, and a ``validation`` that leaves no training images.
    """
    if config.data == "digits":
        seen, unseen = (Labelled(d.images, d.labels) for d in (digits("train"), digits("heldout")))
    elif config.data == "glyphs32":
        both = glyphs32(5000)
        seen, unseen = (Labelled(both.images[part], both.labels[part]) for part in (slice(4000), slice(4000, None)))
    elif config.data in ("glyphs32-others", "glyphs32-attributes"):  # neither is compared with anything by them
        seen, unseen = (
            Labelled(g.images, g.labels if config.data == "glyphs32-others" else targets(g.attributes))
            for g in (glyphs32(12_000, seed=1), glyphs32(2000, seed=2))
        )
    elif config.data == "cifar10-train":
        sets = [open_images(name) for name in ("cifar10-train", "cifar10-test")]
        seen, unseen = (Labelled(images[:], images.labels) for images in sets)
    else:
        raise unknown("data set", config.data, NAMES)
    if config.validation:
        if not 0 < config.validation < len(seen.images):
            raise UserError(f"validation must be below the {len(seen.images)} training images, not {config.validation}")
        part = len(seen.images) - config.validation
        return Labelled(seen.images[:part], seen.labels[:part]), Labelled(seen.images[part:], seen.labels[part:])
    return seen, unseen


def draw_batch(images: Tensor, n: int) -> Tensor:
    """Return ``n`` of the images, drawn with replacement."""
    return images[torch.randint(len(images), (n,))]
