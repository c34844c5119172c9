"""A network compiled by torch: the same function in fewer passes over memory, with other last digits."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Adapter, Wrapper
from dmcmc_core.errors import UserError, sentence
from dmcmc_core.inner_network import stopwatch, with_network
from dmcmc_core.shapes import per_row

PAIRS = 3
"""Calls of either side by which compiled and plain ones are compared."""


class Compiled(Wrapper):
    """A denoiser whose network is compiled at its first call; what it makes has a name of its own.

    Attributes:
        plain: the denoiser as it was given, which stays as it is.

    Raises:
        UserError: in a call, for a network, or a machine, that cannot.
    """

    def __init__(self, plain: Adapter) -> None:
        inner = copy.copy(plain)
        inner.function = torch.compile(plain.function, dynamic=False)
        super().__init__(inner)
        self.plain, self.works = plain, False

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the model inside, and that it is compiled."""
        return (self.denoiser,), ("compiled",)

    def with_inner(self, change: Callable[[Any], Any]) -> Any:
        """Return what ``change`` makes of the plain denoiser, compiled."""
        return compiled(change(self.plain))

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return D(x, sigma), of the shape of ``x``."""
        try:
            answer = self.denoiser(x, per_row(sigma, x).contiguous(), *labels)  # other strides would be compiled anew
        except Exception as error:  # of the compiler, the machine's or torch's own
            if self.works or isinstance(error, UserError):
                raise
            raise UserError(f"the network cannot be compiled here, as {sentence(error)}: leave compile out") from error
        self.works = True
        return answer


def compiled(model: Any) -> Any:
    """Return a model whose network is compiled.

    Raises:
        UserError: for a model that has no network.
    """
    if isinstance(model, Compiled):
        return model
    return with_network(model, Compiled, "compiled: leave compile out")


@torch.no_grad()
def gain(model: Any, rows: int) -> str | None:
    """Compile a model for calls of so many rows, and say what that took and gains; None of one that is not compiled.

    Calls with and without alternate.
    """
    while isinstance(model, Wrapper) and not isinstance(model, Compiled):
        model = model.denoiser
    if not isinstance(model, Compiled):
        return None
    seconds = stopwatch(model, rows)
    first = seconds(model)
    times = [(seconds(model.plain), seconds(model)) for _ in range(PAIRS)]
    before, after = (statistics.median(side) for side in zip(*times, strict=True))
    text = f"compile: {first:.0f} s once; a call of {rows} rows takes {after / before:.2f} of its time without"
    return f"{text}, paid after {first / (before - after):.0f} calls" if after < before else text
