"""Classes: how often each occurs, how far one histogram is from another, which are missing."""

from __future__ import annotations

import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.metrics.frechet import vector


def class_histogram(labels: Tensor, n_classes: int) -> Tensor:
    """Count how often each of ``n_classes`` occurs in integer labels (n,): (n_classes,) int64.

    Raises:
        UserError: for labels that are no integers in [0, n_classes).
    """
    labels = torch.as_tensor(labels)
    if (
        labels.is_floating_point()
        or labels.ndim != 1
        or (labels.numel() and not 0 <= labels.min() <= labels.max() < n_classes)
    ):
        raise UserError(f"labels must be integers in [0, {n_classes}) of shape (n,)")
    return labels.long().bincount(minlength=n_classes)


def total_variation(counts: Tensor, reference: Tensor) -> float:
    """Return half the sum of |p - q| of two histograms, in [0, 1]: the share of images that had to change class."""
    p, q = _shares(counts, reference)
    return ((p - q).abs().sum() / 2).item()


def class_coverage(counts: Tensor, reference: Tensor) -> float:
    """Return the share of the classes of the reference histogram that occur at all in the other one."""
    p, q = _shares(counts, reference)
    return (p[q > 0] > 0).double().mean().item()


def _shares(counts: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return two histograms over the same classes as shares that sum to 1; UserError if they are not such."""
    p, q = _share(counts, "counts"), _share(reference, "reference")
    if p.shape != q.shape:
        raise UserError(f"histograms over the same classes are needed, not over {len(p)} and {len(q)}")
    return p, q


def _share(counts: Tensor, name: str) -> Tensor:
    counts = vector(counts, name)
    if (counts < 0).any() or counts.sum() <= 0:
        raise UserError(f"{name} must be a histogram: numbers at least 0, not all of them 0")
    return counts / counts.sum()
