"""The images of a finite data set about their mean, without a second copy of them where they are many."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class CentredImages:
    """Images (K, *shape) about their mean, as rows of d numbers, ``some`` at a time.

    ``kept``: whether they stay in memory, of which they take as much as the images; else they are made each time.
    """

    def __init__(self, images: Tensor, mean: Tensor, some: int, kept: bool) -> None:
        self.images, self.mean, self.some = images, mean, some
        self.kept = self.of(images) if kept else None

    def of(self, images: Tensor) -> Tensor:
        """Return some of the images about the mean, a row each."""
        return (images - self.mean).flatten(1)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.of, self.images.split(self.some)) if self.kept is None else iter(self.kept.split(self.some))

    def squared_norms(self) -> Tensor:
        """Return the squared length of each row, (K,)."""
        out, done = self.images.new_empty(len(self.images)), 0
        for part in self if self.kept is None else (self.kept,):
            out[done : (done := done + len(part))] = (part**2).sum(1)
        return out

    def weighted(self, image: Tensor, weights: Tensor, count: Tensor) -> Tensor:
        """Return the sums of weighted rows, ``count`` (B,) of them each: (B, d)."""

        def sums(image: Tensor, points: Tensor, weights: Tensor, count: Tensor) -> Tensor:
            return F.embedding_bag(image, points, count.cumsum(0) - count, per_sample_weights=weights, mode="sum")

        if self.kept is not None:
            return sums(image, self.kept, weights, count)
        each = zip(image.split(count.tolist()), weights.split(count.tolist()), count.split(1), strict=True)
        return torch.cat(
            [sums(torch.arange(len(i), device=i.device), self.of(self.images[i]), w, n) for i, w, n in each]
        )
