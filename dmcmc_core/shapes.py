"""Shapes that a model and its callers agree on: noise levels beside images, images beside answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, is_number


def like(sigma: Tensor, x: Tensor) -> Tensor:
    """View noise levels of shape () or (B,) so that they broadcast over ``x`` of shape (B, *shape)."""
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))


def per_row(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Return noise levels of shape () or (B,) as (B,), in the dtype and on the device of ``x``."""
    sigma = torch.as_tensor(sigma).to(x)
    if sigma.ndim > 1 or sigma.numel() not in (1, len(x)):
        raise UserError(f"sigma must be one noise level or one per row, ({len(x)},), not {tuple(sigma.shape)}")
    return sigma.expand(len(x))


def check_shape(x: Any, shape: Sequence[int]) -> None:
    """Raise UserError unless ``x`` is a batch of images of this shape."""
    if not isinstance(x, Tensor):
        raise UserError(f"x must be a tensor of shape {batch_of(shape)}, not a {type(x).__name__}")
    if tuple(x.shape[1:]) != tuple(shape):
        raise UserError(f"x must have shape {batch_of(shape)}, not {tuple(x.shape)}")


def check_image_shape(shape: Any) -> None:
    """Raise UserError unless this is the shape of one image: whole numbers, each at least 1."""
    sizes: Any = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(is_number(n, whole=True) and n >= 1 for n in sizes):
        raise UserError(f"shape must be that of one image, whole numbers such as (3, 32, 32), not {shape!r:.60}")


def checked_shape(out: Any, x: Tensor) -> Tensor:
    """Return what a network answered to ``x`` if it is a tensor of that shape, of floats, else raise UserError."""
    if not isinstance(out, Tensor):
        raise UserError(f"the network must answer with a tensor of the shape of x, not a {type(out).__name__}")
    if out.shape != x.shape:
        same = out.ndim and len(out) == len(x)
        got = batch_of(out.shape[1:]) if same else f"{tuple(out.shape)} for {len(x)} rows"
        raise UserError(f"the network must answer in the shape of x, {batch_of(x.shape[1:])}, not {got}")
    if not out.is_floating_point():
        raise UserError(f"the network must answer with real numbers, not with {out.dtype}")
    return out


def batch_of(shape: Sequence[int]) -> str:
    """Write ``(B, *shape)`` as text."""
    return f"({', '.join(['B', *map(str, shape)])})"
