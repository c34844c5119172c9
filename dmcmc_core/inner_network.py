"""The network inside a denoiser: another one in its place, and how long its calls take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dmcmc_core.denoiser import Adapter, Wrapper
from dmcmc_core.errors import UserError


def with_network(model: Any, change: Callable[[Adapter], Any], could: str) -> Any:
    """Return a model with another one in the place of its network's adapter, and around it what was there.

    Args:
        model: any denoiser.
        change: (adapter of a network) -> what comes in its place.
        could: the end of the sentence that tells what has no network.

    Raises:
        UserError: for a model that has no network.
    """
    if isinstance(model, Adapter) and isinstance(model.function, torch.nn.Module):
        return change(model)
    if not isinstance(model, Wrapper):
        raise UserError(f"{getattr(model, 'name', 'this model')} has no network that could be {could}")
    return model.with_inner(lambda inner: with_network(inner, change, could))


def stopwatch(model: Any, rows: int) -> Callable[[Any], float]:
    """Return a function that times a call of a denoiser, in seconds, at so many rows of a model's images."""
    x = torch.zeros(rows, *model.shape, device=model.device)
    sigma = x.new_full((rows,), model.sigma_max)
    labels = [torch.zeros(rows, dtype=torch.int64, device=x.device)] if model.classes else []

    def seconds(denoiser: Any) -> float:
        start = time.perf_counter()
        denoiser(x, sigma, *labels).sum().item()  # which waits for the device
        return time.perf_counter() - start

    return seconds
