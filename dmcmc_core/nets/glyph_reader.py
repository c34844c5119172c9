"""A network that reads off a glyph all that makes it: the measure of what an edit changed and what it kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmcmc_core.data import CHARACTERS, FACES
from dmcmc_core.nets.classifiers import Classifier, load_classifier
from dmcmc_core.nets.shipped import NETS

CLASSES: dict[str, tuple] = {
    "character": tuple(CHARACTERS),
    "font": tuple(FACES),
    "weight": (400, 700),
    "slant": (0, 1),
}
"""Attributes of :func:`dmcmc_core.data.glyphs32` that are one of some values, which they are read off as indices of."""
NUMBERS = {"size": (23, 5), "x": (0, 4), "y": (0, 4), "rotation": (0, 20)}
NUMBERS |= {f"{of} {colour}": (0.5, 0.5) for of in ("foreground", "background") for colour in ("red", "green", "blue")}
"""Attributes that are numbers -> the middle of their range and its half, in units of which they are read off."""
ATTRIBUTES = (*CLASSES, *NUMBERS)
"""Columns of what is read."""


def targets(attributes: Mapping[str, np.ndarray]) -> Tensor:
    """Return what there is to be read off glyphs by their attributes, (N, 14) float32 in the order of ATTRIBUTES."""
    columns = [np.array([values.index(v) for v in attributes[name].tolist()]) for name, values in CLASSES.items()]
    plain = [attributes[name] for name in NUMBERS if name in attributes]
    numbers = np.column_stack([*plain, attributes["foreground"], attributes["background"]])
    middle, half = np.array(list(NUMBERS.values())).T
    return torch.from_numpy(np.column_stack([*columns, (numbers - middle) / half])).float()


class GlyphReader(Classifier):
    """A reader of glyphs (N, 3, 32, 32) in [0, 1]; see :class:`dmcmc_core.nets.classifiers.Classifier`."""

    def __init__(self, width: int = 16, features: int = 64, dropout: float = 0.1) -> None:
        super().__init__((3, 32, 32), width, features, dropout, sum(map(len, CLASSES.values())) + len(NUMBERS))

    def _parts(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        *classes, numbers = self.logits(images).split([*map(len, CLASSES.values()), len(NUMBERS)], 1)
        return classes, numbers

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over images of all cross-entropies and squared errors; ``labels`` are those of targets."""
        classes, numbers = self._parts(images)
        entropies = [F.cross_entropy(c, labels[:, k].long()) for k, c in enumerate(classes)]
        return sum(entropies, (numbers - labels[:, len(classes) :]).square().sum(1).mean())

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Return what is seen in glyphs, (N, 14) as :func:`targets` has it."""
        parts = [self._parts(block) for block in images.split(256)]
        rows = [torch.cat([torch.stack([c.argmax(1) for c in cs], 1).to(x), x], 1) for cs, x in parts]
        return torch.cat(rows)

    def measured(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the share of each class that is read right, and the root mean square error of each number."""
        wrong = self.read(images) - labels
        shares = {name: (wrong[:, k] == 0).double().mean().item() for k, name in enumerate(CLASSES)}
        errors = wrong[:, len(CLASSES) :].square().mean(0).sqrt().tolist()
        return {"held_out_loss": float(self.loss(images, labels)), **shares, **dict(zip(NUMBERS, errors, strict=True))}


def load_glyph_reader(path: Path = NETS / "glyphs-attributes.safetensors") -> GlyphReader:
    """Load the shipped reader of glyphs in eval mode.

    Raises:
        UserError: when the file is missing or is not a whole one of this architecture.
    """
    return load_classifier(GlyphReader, path)
