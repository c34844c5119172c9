"""The networks behind a function, in the mode in which they are asked: with dropout on no image is made twice."""

from __future__ import annotations

import functools
from typing import Any

import torch

from dmcmc_core.errors import LOG
from dmcmc_core.functions import reads


def modules_of(function: Any) -> list[torch.nn.Module]:
    """Return the networks that a function asks, as far as it shows: itself, what it holds, is bound to or names."""
    if isinstance(function, torch.nn.Module):
        return [function]
    if isinstance(function, functools.partial):
        seen = [function.func, *function.args, *function.keywords.values()]
    else:
        held = vars(function).values() if hasattr(function, "__dict__") else ()
        seen = [getattr(function, "__self__", None), *held, *reads(function)]
    return [module for one in seen for module in _inner(one)]


def _inner(one: Any, depth: int = 4) -> list[torch.nn.Module]:
    """Return a network, or those of a partial function, of a list or of a dictionary, which may hold others."""
    if isinstance(one, torch.nn.Module | functools.partial):
        return modules_of(one)
    if isinstance(one, dict):
        one = list(one.values())
    within = one if depth and isinstance(one, list | tuple) else ()
    return [module for inner in within for module in _inner(inner, depth - 1)]


def to_evaluation(modules: list[torch.nn.Module]) -> None:
    """Switch networks that are being trained to evaluation, and say so."""
    for module in modules:
        if module.training:
            module.eval()
            LOG.warning(
                f"the network, a {type(module).__name__}, was in training mode, with dropout and batch statistics: "
                "it is switched to evaluation by eval(); call train() to train on"
            )
