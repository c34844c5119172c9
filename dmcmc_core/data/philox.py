"""Raw words of counter-based streams: what decides a split of the digits, or a glyph, must never change.

NumPy promises that a bit generator's raw words stay as they are, which it does not for its distributions. Samplers draw
from :mod:`dmcmc_core.streams`.
"""

from __future__ import annotations

import numpy as np


def stream(seed: int, index: int) -> np.random.Philox:
    """Return the counter-based stream (Salmon et al. 2011) named by two integers in [0, 2^64)."""
    return np.random.Philox(key=np.array([seed, index], dtype=np.uint64))


def uniforms(words: np.random.Philox, n: int) -> np.ndarray:
    """Draw n numbers of 53 bits in [0, 1), (n,) float64."""
    return (words.random_raw(n) >> np.uint64(11)) * 2.0**-53
