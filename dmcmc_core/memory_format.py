"""How the weights of a network lie in memory: the same function, other kernels, other last digits.

``channels_last`` keeps the channels of a pixel side by side, ``contiguous`` the pixels of a channel. Which is faster
depends on the network and the machine. Networks of files are laid out channels-last, those of one's own stay as they
are, unless a layout is asked for.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch

from dmcmc_core.denoiser import BLOCK, Adapter, Wrapper
from dmcmc_core.errors import LOG, one_of
from dmcmc_core.evaluation_mode import modules_of
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.inner_network import stopwatch, with_network

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
ROUNDS = 3
"""Calls of each layout that a trial times, after one of each."""
ROWS = 16
"""Rows of such a call at most: the ratio changes little from there on, and the trial stays short."""
WORTH = 0.97
"""The share of a call's time that the other layout may take at most to be chosen."""
_CHOSEN: dict[tuple[Any, ...], str] = {}


class LaidOut(Wrapper):
    """A denoiser with a copy of its network whose weights are laid out otherwise; it has a name of its own.

    Attributes:
        layout: one of :data:`LAYOUTS`.
    """

    def __init__(self, plain: Adapter, layout: str) -> None:
        inner = copy.copy(plain)
        net: Any = copy.deepcopy(plain.function)
        net.to(memory_format=LAYOUTS[layout])
        if getattr(plain, "net", None) is plain.function:
            inner.net = net
        inner.function, inner.modules = net, modules_of(net)
        super().__init__(inner)
        self.layout = layout

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the model inside, and the layout."""
        return (self.denoiser,), (self.layout,)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        """Return D(x, sigma), of the shape of ``x``."""
        return self.denoiser(x, sigma, *labels)


def laid_out(model: Any, layout: str, rows: int = BLOCK) -> Any:
    """Return a model whose network lies in memory as asked; the model itself where it does already.

    Args:
        model: a denoiser of a network, which stays as it is.
        layout: one of :data:`LAYOUTS`, or ``auto`` for the faster one by a trial on this machine.
        rows: of its calls.

    Raises:
        UserError: for another layout, and a model that has no network.
    """
    one_of("layout", layout, *LAYOUTS, "auto")

    def change(adapter: Adapter) -> Any:
        here = [name for name in LAYOUTS if lies(adapter.function, name)]
        wanted = layout if layout in here else faster(adapter, min(rows, ROWS)) if layout == "auto" else layout
        return adapter if wanted in here else LaidOut(adapter, wanted)

    return with_network(model, change, "laid out otherwise: leave layout out")


def lies(net: Any, layout: str) -> bool:
    """Tell whether all filters of a network, a module, are in a layout; those of one pixel or channel are in both."""
    filters = (p for p in net.parameters() if p.ndim == 4)
    return all(p.is_contiguous(memory_format=LAYOUTS[layout]) for p in filters)


@torch.no_grad()
def faster(plain: Adapter, rows: int) -> str:
    """Return the faster layout of a network for calls of so many rows; the one it has, unless that is surely slower.

    Calls of both alternate. The answer is kept as long as the process lives, and said once.
    """
    here = next((name for name in LAYOUTS if lies(plain.function, name)), "contiguous")
    other = next(name for name in LAYOUTS if name != here)
    if lies(plain.function, other):  # nothing to lay out
        return here
    question = fingerprint(plain), str(plain.device), torch.get_num_threads(), rows
    if question not in _CHOSEN:
        seconds = stopwatch(plain, rows)
        sides = plain, LaidOut(plain, other)
        times = [[seconds(side) for side in sides] for _ in range(ROUNDS + 1)][1:]
        share = statistics.median(b / a for a, b in times)
        _CHOSEN[question] = other if share < WORTH else here
        LOG.warning(
            f"layout: {_CHOSEN[question]}; a call of {rows} rows takes {share:.2f} of its time {other} (was {here})"
        )
    return _CHOSEN[question]
