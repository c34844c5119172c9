"""Which of two samplers is better: tests on paired errors of single images, and on distances of whole runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.05
"""Probability, by chance alone, of a difference as large as one that a verdict calls better or worse."""
BETTER, WORSE, UNTOLD = "better", "worse", "cannot tell"


class Verdict(NamedTuple):
    """What a test says of one sampler beside another: ``better``, ``worse`` or ``cannot tell``.

    ``difference`` is that of the means over seeds, below 0 where the one is less; ``p`` is None where nothing tests.
    """

    word: str
    difference: float
    p: float | None
    test: str


class Distance(NamedTuple):
    """A distance of one run, and the spread that a bootstrap over its images gives it (None: not made)."""

    value: float
    spread: float | None = None


def rms(each: Tensor) -> Tensor:
    """Return the paired error of each seed, (seeds,), of those of its images (seeds, n)."""
    return each.square().mean(1).sqrt()


def of_errors(one: Mapping[int, Tensor], other: Mapping[int, Tensor], rounding: float = 0.0) -> Verdict:
    """Compare paired errors of two samplers, seed -> (n,), by a t test on the differences of single images.

    Images of a seed that both have begin with the same noise and are paired; without such a seed it is Welch's test
    over all images. Sure is also only what every seed's root mean square agrees with, as the mean of an image's errors
    may lie on the other side. Errors that both lie below ``rounding`` are told apart by nothing.
    """
    from scipy import stats  # a second of imports

    shared = sorted(one.keys() & other.keys())
    a, b = (torch.stack([errors[s] for s in shared or sorted(errors)]).double() for errors in (one, other))
    if shared:
        test, p = "paired t", _paired(a - b)
        apart = rms(a) - rms(b)
    else:
        test = "Welch over images"
        p = float(stats.ttest_ind(a.flatten().numpy(), b.flatten().numpy(), equal_var=False).pvalue)
        apart = (rms(a.reshape(1, -1)) - rms(b.reshape(1, -1))).reshape(1)
    difference = float(rms(a).mean() - rms(b).mean())
    below = max(rms(a).max().item(), rms(b).max().item()) <= rounding
    agrees = bool((apart.sign() == (a.mean() - b.mean()).sign()).all())
    return Verdict(_word(difference, p if agrees and not below else 1.0), difference, p, test)


def _paired(apart: Tensor) -> float:
    """Return p of the differences of pairs: 1 where there are none."""
    from scipy import stats

    if apart.numel() < 2 or bool((apart == 0).all()):
        return 1.0
    return 0.0 if apart.std() == 0 else float(stats.ttest_1samp(apart.flatten().numpy(), 0).pvalue)


def of_distances(one: Mapping[int, Distance], other: Mapping[int, Distance]) -> Verdict:
    """Compare distances of two samplers, by seed: Welch's t test over seeds, or of one seed by bootstrap spreads."""
    a, b = (list(found.values()) for found in (one, other))
    difference = statistics.fmean(d.value for d in a) - statistics.fmean(d.value for d in b)
    if min(len(a), len(b)) > 1:
        p, test = _welch([d.value for d in a], [d.value for d in b]), "Welch over seeds"
    else:
        p, test = _by_spreads(difference, [_spread(a), _spread(b)]), "bootstrap spreads"
    return Verdict(_word(difference, 1.0 if p is None else p), difference, p, test)


def _welch(a: list[float], b: list[float]) -> float:
    from scipy import stats

    if statistics.stdev(a) == statistics.stdev(b) == 0:
        return float(a[0] == b[0])
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def _spread(found: list[Distance]) -> float | None:
    """Return the standard error of the mean over seeds: that of the seeds, or of one the bootstrap's."""
    if len(found) > 1:
        return statistics.stdev(d.value for d in found) / math.sqrt(len(found))
    return found[0].spread


def _by_spreads(difference: float, spreads: list[float | None]) -> float | None:
    known = [s for s in spreads if s is not None]
    if len(known) < len(spreads):
        return None
    error = math.hypot(*known)
    return math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)


def _word(difference: float, p: float) -> str:
    if not p < LEVEL or difference == 0:  # p may be NaN
        return UNTOLD
    return BETTER if difference < 0 else WORSE
