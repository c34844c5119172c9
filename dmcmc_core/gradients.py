"""Sampling keeps no graph of what it did, unless asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def without_gradients(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that takes ``grad`` too: False, without a graph of its operations; True, as torch is set."""

    @functools.wraps(function)
    def sampled(*args: Any, grad: bool = False, **options: Any) -> T:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return function(*args, **options)

    return sampled
