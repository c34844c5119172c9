"""Augmentation: small affine changes of the training images, which the network takes as labels."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dmcmc_core.errors import unknown


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Small affine changes, each made with ``probability`` and reported as labels, which a network may take as input.

    A network that takes them learns from the changed images without ever drawing changed ones: at sampling the labels
    are zero (Karras et al. 2022, Appendix F.2).
    """

    probability: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    labels = ("shift x", "shift y", "rotation", "scale x", "scale y", "shear")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return changed images and labels (B, 6) in [-1, 1] for images (B, C, H, W) in [0, 1] on black."""
        labels = torch.zeros(len(images), len(self.labels))
        if not self.probability:
            return images, labels
        labels = (2 * torch.rand_like(labels) - 1) * (torch.rand_like(labels) < self.probability)
        height, width = images.shape[2:]
        size = [2 * self.shift / width, 2 * self.shift / height, math.radians(self.rotate)]
        dx, dy, angle, sx, sy, shear = (labels * torch.tensor([*size, self.scale, self.scale, self.shear])).unbind(1)
        cos, sin, sx, sy = angle.cos(), angle.sin(), sx.exp(), sy.exp()
        rows = [sx * cos, sx * (shear - sin), dx, sy * sin, sy * (cos + shear * sin), dy]
        grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp(0, 1)
        untouched = (labels == 0).all(1)
        return torch.where(untouched[:, None, None, None], images, moved), labels


def make_augmentation(given: dict) -> Augmentation:
    """Return the augmentation of a config; UserError for a key that it does not know."""
    names = [field.name for field in dataclasses.fields(Augmentation)]
    for key in given:
        if key not in names:
            raise unknown("key of augment", key, names)
    return Augmentation(**given)
