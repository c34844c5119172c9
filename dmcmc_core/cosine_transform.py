"""The discrete cosine transform of images, in torch."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.fft import dct as scipy_dct
from torch import Tensor


def dct(x: Tensor, inverse: bool = False) -> Tensor:
    """Orthonormal two-dimensional DCT-II over the last two dimensions, or its inverse."""
    matrices = [_dct_matrix(n).to(x) for n in x.shape[-2:]]
    rows, columns = (m.T for m in matrices) if inverse else matrices
    return rows @ x @ columns.T


@functools.lru_cache(maxsize=16)
def _dct_matrix(n: int) -> Tensor:
    return torch.from_numpy(scipy_dct(np.eye(n), axis=0, norm="ortho"))
