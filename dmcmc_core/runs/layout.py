"""How a run is divided: its shards, which of them need each other, and which process makes which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Shard(NamedTuple):
    """A file of ``images``, a range of indices; with chains they begin in the ``windows`` of a ``group`` of chains."""

    images: range
    group: range = range(0)
    windows: range = range(0)

    @property
    def name(self) -> str:
        return f"shard-{self.images.start:08d}.npz"


def layout(num: int, size: int, block: int, chains: int | None = None) -> list[list[Shard]]:
    """Return all shards of ``num`` images, in lists that do not need each other.

    Without chains every list is one shard of ``size`` images. With chains a list is a group of at most ``block`` of
    them, and a shard as many of its windows as ``size`` holds, at least one; one, where there are several groups.
    """
    if chains is None:
        return [[Shard(range(first, min(first + size, num)))] for first in range(0, num, size)]
    return [
        _windows(num, size, chains, range(low, min(low + block, chains, num)))
        for low in range(0, min(chains, num), block)
    ]


def _windows(num: int, size: int, chains: int, group: range) -> list[Shard]:
    several = len(group) < min(chains, num)
    together, windows = 1 if several else max(1, size // chains), math.ceil((num - group.start) / chains)
    shards = []
    for number in range(0, windows, together):
        some = range(number, min(number + together, windows))
        first, last = (w * chains + group.start for w in (some[0], some[-1]))
        shards.append(Shard(range(first, min(last + len(group), num)), group, some))
    return shards


def layout_of(manifest: dict[str, Any]) -> list[list[Shard]]:
    """Return the shards of a run, as its manifest tells."""
    chain = manifest["plan"]["chain"]
    return layout(manifest["num"], manifest["shard"], manifest["block"], chain and chain["chains"])


def dealt(lists: Sequence[list[Shard]], rank: int, world: int) -> Iterator[Shard]:
    """Yield what one of ``world`` processes makes: whole lists as far as they go round, the rest shared in turns."""
    round_ = len(lists) - len(lists) % world
    for number, shards in enumerate(lists):
        sharing = [number % world] if number < round_ else range(number - round_, world, len(lists) - round_)
        yield from (shard for turn, shard in enumerate(shards) if sharing[turn % len(sharing)] == rank)
