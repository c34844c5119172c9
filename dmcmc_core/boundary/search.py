"""At which time to edit: how far inverted and sampled latents are from each other, and what a hyperplane can tell.

Zhu et al. 2023 (arXiv 2302.08357) edit at a *mixing* time, before which inverted latents lie as sampled ones do. Their
exact criterion is not public: here it is the last time at which both mean radii agree to the width of the shell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.boundary.hyperplane import Boundary, fit
from dmcmc_core.boundary.trajectory import Epsilon, invert, radius, reverse
from dmcmc_core.errors import UserError, number


class Radii(NamedTuple):
    """Mean norms of latents at some rising times, of inverted images and of samples on their way down."""

    times: list[int]
    inverted: Tensor
    sampled: Tensor
    dimension: int

    def apart(self) -> Tensor:
        """Return |sampled - inverted| in units of sampled / sqrt(dimension), the width of the shell, (T,)."""
        return (self.sampled - self.inverted).abs() / (self.sampled / self.dimension**0.5)


def radii(
    epsilon: Epsilon,
    images: Tensor,
    times: Sequence[int],
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    betas: Tensor | None = None,
) -> Radii:
    """Return the radii of images on their way up, and of as many samples on their way down, by steps without noise.

    Args:
        images: (B, *shape), in [-1, 1].
        times: rising; sampling starts at the last one from standard normals.
        noise: maps a tensor to standard normals like it.
    """
    up: list[Tensor] = []
    down: list[Tensor] = []
    invert(epsilon, images, times, betas=betas, callback=lambda x: up.append(radius(x).mean()))
    start = noise(images)
    down.append(radius(start).mean())
    reverse(epsilon, start, times, betas=betas, callback=lambda x: down.append(radius(x).mean()))
    sampled = torch.stack(down[: len(times)]).flip(0)  # after each step the state is at the time before
    return Radii(list(times), torch.stack(up), sampled, images[0].numel())


def mixing_time(found: Radii, width: float = 1.0) -> int:
    """Return the last time at which both radii agree to ``width`` widths of the shell.

    Raises:
        UserError: where there is none.
    """
    number("width", width, above=0)
    close = (found.apart() <= width).nonzero().flatten()
    if not len(close):
        raise UserError(
            f"inverted and sampled latents are at no time within {width:g} widths of the shell: the nearest are "
            f"{found.apart().min():.2f} apart"
        )
    return found.times[int(close[-1])]


def accuracies(
    epsilon: Epsilon,
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor],
    times: Sequence[int],
    betas: Tensor | None = None,
) -> list[Boundary]:
    """Return the boundary at each time, whose accuracy is of images held out; all are inverted once.

    Args:
        images, held_out: (n, *shape) in [-1, 1], and labels of two values.
        times: rising; the first is that of the images themselves.
    """
    states: dict[str, list[Tensor]] = {"own": [], "other": []}
    for name, given in (("own", images), ("other", held_out[0])):
        invert(epsilon, given, times, betas=betas, callback=states[name].append)
    pairs = zip(times, states["own"], states["other"], strict=True)
    return [fit(own, labels, (other, held_out[1]), card={"time": time}) for time, own, other in pairs]
