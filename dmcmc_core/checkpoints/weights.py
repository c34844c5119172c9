"""From tensors of a file to a network on its device: what every reader asks of tensors before it uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core.checkpoints.card import sentence
from dmcmc_core.errors import UserError


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
    if not tensor.isfinite().all():
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
