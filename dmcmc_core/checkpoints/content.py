"""What every reader asks of a file before it uses it: sizes that the file can fill, numbers that are numbers."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.errors import UserError


def sentence(error: BaseException, most: int = 200) -> str:
    """What a library says, in its first line; the kind of error where it says nothing.

    Of torch's advice on pickles, which ends in how to execute them, only the forbidden name is passed on.
    """
    if "weights_only" in str(error):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it names {named[1]}" if named else "it is no sound pickle"
    if isinstance(error, EOFError):
        return "it ends too early"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.split(r"(?<=[a-z])\. ", line)[0][:most]  # what follows is advice


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks made here have shapes and no numbers, whatever their size; random streams stay where they are."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def check_numbers(tensor: Tensor, name: str, path: Path) -> None:
    """UserError unless a tensor of a file is dense, in memory and of floating-point numbers."""
    if tensor.is_nested or tensor.is_meta or str(tensor.layout) != "torch.strided" or not tensor.is_floating_point():
        raise UserError(f"tensor {name!r} of {path} is no dense tensor of floating-point numbers, as weights are")


def check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """UserError for NaN and infinity; ``tensor`` as the network has it, so that what its dtype cannot hold counts."""
    if not tensor.isfinite().all():
        raise UserError(
            f"tensor {name!r} of {path} holds NaN or infinity: the file is damaged, or its training diverged"
        )


ENDS = (("sigma_min", "sigma_max"), ("t_min", "t_max"))
"""What a network goes between: noise levels, or times of a linear diffusion."""


def check_card(card: dict[str, Any], path: Path) -> None:
    """UserError unless noise levels (or times) and data range are finite numbers that rise, and the name is text."""
    ends = ENDS[str(card.get("architecture")).startswith("epsilon")]
    for low, high, name, least in (
        (*(card[end] for end in ends), " and ".join(ends), 0.0),
        (*_two(card["data_range"]), "the two ends of data_range", -math.inf),
    ):
        if not (_is_number(low) and _is_number(high) and least < low < high):
            more = " above 0" if least == 0 else ""
            raise UserError(
                f"{name} of {path} must be two finite numbers{more} that rise, not {reprlib.repr(low)} and "
                f"{reprlib.repr(high)}"
            )
    if not isinstance(card.get("name", ""), str):
        raise UserError(f"the name in the card of {path} must be text, not {reprlib.repr(card['name'])}")


def _two(values: Any) -> tuple[Any, Any]:
    return tuple(values) if isinstance(values, list | tuple) and len(values) == 2 else (values, None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
