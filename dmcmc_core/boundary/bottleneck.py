"""The bottleneck of a U-Net: what its coarsest level ends in, seen and replaced while the network is asked.

Zhu et al. 2023 (arXiv 2302.08357) edit there and in the pixels at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core.errors import UserError, one_of


def place(net: nn.Module) -> nn.Module:
    """Return the module of a U-Net whose output is its bottleneck: the last one between the two ways.

    Args:
        net: any network of :mod:`dmcmc_core.nets`, or of diffusers.

    Raises:
        UserError: for a network without one that is known.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"a {type(net).__name__} has no bottleneck: name the torch module inside it by net")
    parts: dict[str, Any] = dict(net.named_children())
    for inner in ("scaled", "net", "unet", "model"):  # out of scalings and other wrappers
        if inner in parts:
            return place(parts[inner])
    if "middle" in parts:
        return parts["middle"][-1]
    if "mid_block" in parts:
        return parts["mid_block"]
    if "down" in parts:  # the digits net goes up at once
        return parts["down"][-1][-1]
    if "dec" in parts:  # EDM2 begins the way up with two blocks that nothing joins
        return next(part for name, part in parts["dec"].items() if name.endswith("_in1"))
    raise UserError(f"a {type(net).__name__} has no bottleneck that is known here")


class WithBottleneck:
    """A network whose bottleneck can be seen and replaced.

    :attr:`seen` is the bottleneck of the last call as it came about, also where another was put in its place.

    Args:
        network: (x, t, ...) -> its answer, such as :func:`dmcmc_core.boundary.epsilon_of` returns.
        net: the module inside it that has the bottleneck; None: ``network`` itself.
    """

    def __init__(self, network: Any, net: nn.Module | None = None) -> None:
        self.network, self.module = network, place(network if net is None else net)
        self.seen: Tensor | None = None

    def __call__(self, *inputs: Any, bottleneck: Tensor | None = None) -> Tensor:
        """Return the answer, with another ``bottleneck`` (B, C, H, W) in the place of its own if one is given.

        Raises:
            UserError: for a bottleneck of another shape.
        """

        def hook(module: nn.Module, given: Any, out: Tensor) -> Tensor | None:
            self.seen = out
            if bottleneck is None:
                return None
            if bottleneck.shape != out.shape:
                raise UserError(f"a bottleneck must have shape {tuple(out.shape)}, not {tuple(bottleneck.shape)}")
            return bottleneck.to(out)

        handle = self.module.register_forward_hook(hook)
        try:
            return self.network(*inputs)
        finally:
            handle.remove()


class Injected:
    """Epsilon with an edited bottleneck in its first call.

    Args:
        network: to be asked.
        bottleneck: (B, C, H, W) of the first call.
        how: ``first``: later calls have their own; ``lagged``: each has the one that came about in the call before, as
            the released code does.
    """

    def __init__(self, network: WithBottleneck, bottleneck: Tensor, how: str = "first") -> None:
        self.network, self.how = network, one_of("how", how, "first", "lagged")
        self.next: Tensor | None = bottleneck

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the network's answer for x (B, C, H, W) and times t (B,)."""
        answer = self.network(x, t, bottleneck=self.next)
        self.next = self.network.seen if self.how == "lagged" else None
        return answer
