"""Random streams named by (seed, purpose, index): one per image or chain, the same in any batch, order or process.

Counter based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; NumPy's Philox), so the whole state of
a stream is how many draws were taken from it. Numbers are made on the CPU in float64 and then moved: the same on every
device, and the same up to rounding for a float32 and a float64 run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError

_AHEAD = 512  # numbers per stream made at once: fewer cost more in calls than in arithmetic, more fill the memory


class Randomness(Protocol):
    """What samplers and kernels ask for; fresh numbers at every call. Tests pass recorded ones."""

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normals of the shape, dtype and device of ``like``, (B, ...)."""
        ...

    def uniform(self, like: Tensor) -> Tensor:
        """Uniforms in [0, 1) of the shape, dtype and device of ``like``, (B, ...)."""
        ...


class Drawn(NamedTuple):
    """The state of a set of streams: draws taken so far, of each kind."""

    normals: int = 0
    uniforms: int = 0


class Streams:
    """One stream per row, drawn from in step: a callable ``like -> normals``, with ``uniform`` beside it.

    Args:
        seed: any integer.
        purpose: what the numbers are for; streams of different purposes are unrelated.
        indices: (B,) integers >= 0, the image or chain of each row.
        state: draws already taken, from ``.state`` of streams of the same name.
    """

    def __init__(self, seed: int, purpose: str, indices: Sequence[int], state: Drawn = Drawn()) -> None:  # noqa: B008
        if min(indices, default=0) < 0:
            raise UserError(f"stream indices must be at least 0, not {min(indices)}")
        name = hashlib.blake2b(f"{int(seed)}/{purpose}".encode(), digest_size=8).digest()
        self.seed, self.purpose, self.indices = int(seed), purpose, [int(i) for i in indices]
        self.state = Drawn(*state)
        self._name = int.from_bytes(name, "little")
        self._philox = np.random.Philox(key=[0, 0])
        self._ready: dict[tuple[str, int], tuple[int, Tensor]] = {}

    def __call__(self, like: Tensor) -> Tensor:
        """Return standard normals like a tensor (B, ...), the next of each row's stream."""
        out = self._draw("normals", self.state.normals, like)
        self.state = self.state._replace(normals=self.state.normals + 1)
        return out

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniforms in [0, 1) like a tensor (B, ...), the next of each row's stream."""
        out = self._draw("uniforms", self.state.uniforms, like)
        self.state = self.state._replace(uniforms=self.state.uniforms + 1)
        return out.clamp(max=1 - torch.finfo(out.dtype).eps / 2)  # rounding may have arrived at 1

    def _draw(self, kind: str, number: int, like: Tensor) -> Tensor:
        """Draw ``number`` of a kind: row ``number % ahead`` of page ``number // ahead``."""
        if like.shape[0] != len(self.indices):
            raise UserError(
                f"{len(self.indices)} random streams cannot serve {like.shape[0]} rows: one per row is needed"
            )
        size = like.numel() // max(like.shape[0], 1)
        ahead = max(1, _AHEAD // max(size, 1))
        page, row = divmod(number, ahead)
        if self._ready.get((kind, size), (None,))[0] != page:
            self._ready[kind, size] = page, torch.from_numpy(self._page(kind, page, ahead, size))
        return self._ready[kind, size][1][:, row].reshape(like.shape).to(like)

    def _page(self, kind: str, page: int, ahead: int, size: int) -> np.ndarray:
        out = np.empty((len(self.indices), ahead, size))
        generator = np.random.Generator(self._philox)
        fill = generator.standard_normal if kind == "normals" else generator.random
        state = self._philox.state | {"buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
        counter = np.array([0, page, size, kind == "normals"], dtype=np.uint64)  # word 0 counts within the page
        for index, numbers in zip(self.indices, out, strict=True):
            state["state"] = {"counter": counter, "key": np.array([self._name, index], dtype=np.uint64)}
            self._philox.state = state  # pyright: ignore[reportAttributeAccessIssue]  NumPy's type names fewer keys
            fill(out=numbers)
        return out
