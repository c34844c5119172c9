"""From tensors of a file to a network on its device: what every reader asks of tensors before it uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core.errors import UserError, all_finite, sentence

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch puts into a name where a compiled, sharded or recomputed network was saved; no layer is called so."""


def without_prefix(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a file's entries by the names that their network gave them, in the order of the file.

    ``module.`` (parallel training, once or more) is taken from the beginning of a name, :data:`WRAPPERS` from anywhere.

    Raises:
        UserError: where two entries have the same name then, so that either could be meant.
    """
    found: dict[str, Any] = {}
    for name, value in state.items():
        parts = [part for part in str(name).split(".") if part not in WRAPPERS]
        while len(parts) > 1 and parts[0] == "module":
            del parts[0]
        own = ".".join(parts)
        if own in found:
            raise UserError(f"the file holds tensor {own!r} twice, once as {str(name)!r}: either could be meant")
        found[own] = value
    return found


@contextmanager
def without_memory() -> Iterator[None]:
    """Give networks made here shapes and no numbers, whatever their size; random streams stay where they are."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def check_numbers(tensor: Tensor, name: str, path: Path) -> None:
    """Raise UserError unless a tensor of a file is dense, in memory and of floating-point numbers."""
    if tensor.is_nested or tensor.is_meta or str(tensor.layout) != "torch.strided" or not tensor.is_floating_point():
        raise UserError(f"tensor {name!r} of {path} is no dense tensor of floating-point numbers, as weights are")


def check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise UserError for NaN and infinity.

    Args:
        tensor: as the network has it, so that numbers that its dtype cannot hold count.
    """
    if not all_finite(tensor):
        raise UserError(
            f"tensor {name!r} of {path} holds NaN or infinity: the file is damaged, or its training diverged"
        )


def check_device(name: str | torch.device) -> None:
    """Raise UserError for a device that torch does not know or that is not here."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(name)!r} cannot be used here: {sentence(error)}") from None


def to_device(net: nn.Module, device: str) -> nn.Module:
    """Return the network on a device, in eval mode and without gradients; UserError where it does not fit."""
    try:
        return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the network does not fit in the memory of {device}: free some of it, or choose another device"
        ) from error
