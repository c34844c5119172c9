"""Who does what where several processes share a run: ranks that torchrun started together, or shares of a job array.

Ranks that find each other (MASTER_ADDR, as torchrun sets it) wait for each other, and end together when one fails.
Shares of a job array, and ranks that only know RANK and WORLD_SIZE, never wait for anybody.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dmcmc_core.errors import UserError


class Ended(SystemExit):
    """Another rank has failed, and has said why."""


@dataclass
class Ranks:
    """This process, ``rank`` of ``world`` from 0, among those that share a run; no ``store`` where nobody waits."""

    rank: int = 0
    world: int = 1
    store: Any = None
    barriers: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process opens and closes the folder: rank 0, or any where nobody waits."""
        return self.store is None or self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here, for hours if need be; leave at once when one has failed.

        The backends' own barriers give up after minutes and hear no signals meanwhile, so they come last.
        """
        if self.store is None:
            return
        self.barriers += 1
        self.store.add(f"barrier-{self.barriers}", 1)
        while self.store.add(f"barrier-{self.barriers}", 0) < self.world:
            if self.store.check(["failed"]):
                raise Ended(2)
            time.sleep(0.02)
        import torch.distributed as dist

        dist.barrier(device_ids=[_local()] if dist.get_backend() == "nccl" else None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Of ranks that fail, or are ended because one has, only the first keeps its error: the others end silently."""
        try:
            yield
        except UserError:
            if self.store is not None and self.store.add("failed", 1) > 1:
                raise Ended(2) from None
            raise
        except KeyboardInterrupt:
            if self.store is not None and (self.rank or self.store.check(["failed"])):
                raise Ended(130) from None
            raise


def current() -> Ranks:
    """Return this process as RANK and WORLD_SIZE tell; UserError where they cannot be."""
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise UserError(f"RANK must be from 0 to WORLD_SIZE - 1 = {world - 1}, not {rank}")
    return _joined(rank, world) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else Ranks(rank, world)


def device(name: str) -> str:
    """Return the device of this process: of ranks that ask for ``cuda`` each takes one of its machine.

    Raises:
        UserError: for more ranks on this machine than devices, or one device named for all of them.
    """
    if not name.startswith("cuda") or current().store is None:
        return name
    import torch

    if name != "cuda" and current().world > 1:
        raise UserError(f"ranks take one device each: choose --device cuda, not {name}")
    if torch.cuda.is_available() and _local() >= torch.cuda.device_count():
        raise UserError(
            f"this is rank {_local()} of its machine, which has {torch.cuda.device_count()} CUDA devices: start no "
            "more ranks than that"
        )
    return f"cuda:{_local()}"


@functools.cache
def _joined(rank: int, world: int) -> Ranks:
    import torch
    import torch.distributed as dist

    store, *_ = next(dist.rendezvous("env://", rank, world))
    own = torch.cuda.is_available() and _local() < torch.cuda.device_count()
    if own:
        torch.cuda.set_device(_local())
    dist.init_process_group("nccl" if own else "gloo", store=store, rank=rank, world_size=world)
    atexit.register(dist.destroy_process_group)
    return Ranks(rank, world, dist.PrefixStore("dmcmc", store))


def _local() -> int:
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise UserError(f"{name} must be a whole number, at least 0, not {value!r}: unset it, or use torchrun")
    return int(value)
