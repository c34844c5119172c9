"""What a run on disk costs beside its network, and what more processes bring.

    python benchmarks/scaling.py [--num N] [--nfe N] [--samplers S ...] [--shard-size k] [--out FILE]

On the shipped digits net, one thread a process. Bookkeeping is all that a run does in :mod:`dmcmc_core.runs.folder`
(locks,
manifest, shards and states of chains written and read), in seconds per image, for ``num`` images and for ten times as
many: it should stay the same, and be at most 1 % of the time that the network itself takes for an image. Images per
second are those of one process and of two shares side by side, from the first image to the last.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dmcmc_core import load_model
from dmcmc_core.denoiser import Wrapper
from dmcmc_core.runs import folder
from dmcmc_core.runs.make import run
from dmcmc_core.runs.recipe import SHARD

TARGET = 0.01
BOOKKEEPING = (
    "whole_shards",
    "save",
    "write_npz",
    "read_whole",
    "write_manifest",
    "read_manifest",
    "check_strays",
    "sweep",
)


class Timed(Wrapper):
    """A denoiser that adds up what its answers take."""

    seconds = 0.0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        begun = time.process_time()
        answer = self.denoiser(x, sigma)
        self.seconds += time.process_time() - begun
        return answer


class Clock:
    """Processor seconds inside of some functions of a module, counted once where one calls another."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def __call__(self, function):
        @functools.wraps(function)
        def timed(*arguments, **more):
            begun, self.depth = time.process_time(), self.depth + 1
            try:
                return function(*arguments, **more)
            finally:
                self.depth -= 1
                self.seconds += (time.process_time() - begun) * (self.depth == 0)

        return timed


def bookkeeping(sampler: str, nfe: int, num: int, size: int | None) -> dict[str, Any]:
    """Seconds of the processor per image, in the network and in bookkeeping."""
    clock, before = Clock(), {name: getattr(folder, name) for name in BOOKKEEPING}
    model = Timed(load_model("digits"))
    with tempfile.TemporaryDirectory() as place:
        try:
            for name, function in before.items():
                setattr(folder, name, clock(function))
            run(model, sampler, nfe, num, 0, Path(place, "run"), progress=False, shard=size)
        finally:
            for name, function in before.items():
                setattr(folder, name, function)
    share = clock.seconds / model.seconds
    per = {"network": model.seconds / num, "bookkeeping": clock.seconds / num}
    return {"num": num, "shard": size or SHARD, **per, "share": share}


def speed(sampler: str, nfe: int, num: int, processes: int) -> float:
    """Images per second of so many shares, model loaded and one block warmed up before the clock starts."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ready, go = context.Barrier(processes + 1), context.Barrier(processes + 1)
        arguments = [(sampler, nfe, num, (i, processes), folder, ready, go) for i in range(processes)]
        running = [context.Process(target=_share, args=some) for some in arguments]
        for process in running:
            process.start()
        ready.wait()
        go.wait()
        begun = time.perf_counter()
        for process in running:
            process.join()
        return num / (time.perf_counter() - begun)


def _share(sampler: str, nfe: int, num: int, share: tuple[int, int], folder: str, ready, go) -> None:
    torch.set_num_threads(1)
    model = load_model("digits")
    with torch.no_grad():
        model(torch.zeros(64, *model.shape), torch.ones(64))
    ready.wait()
    go.wait()
    run(model, sampler, nfe, num, 0, Path(folder, "run"), progress=False, share=share)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--num", type=int, default=1000)
    p.add_argument("--nfe", type=int, default=20)
    p.add_argument("--samplers", nargs="+", default=["heun", "dlg+heun"])
    p.add_argument("--shard-size", type=int)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    found = []
    for sampler in a.samplers:
        for num in (a.num, 10 * a.num):
            row = bookkeeping(sampler, a.nfe, num, a.shard_size)
            print(
                f"{sampler:<10} {num:>7} images: network {1e3 * row['network']:.3f} ms, bookkeeping "
                f"{1e3 * row['bookkeeping']:.4f} ms per image, {100 * row['share']:.2f} % (at most {100 * TARGET:g} %)",
                flush=True,
            )
            found.append({"sampler": sampler, "nfe": a.nfe, **row})
        for processes in (1, 2):
            rate = speed(sampler, a.nfe, a.num, processes)
            print(
                f"{sampler:<10} {processes} process{'es' * (processes > 1)}: {rate:.1f} images per second", flush=True
            )
            found.append({"sampler": sampler, "nfe": a.nfe, "processes": processes, "images_per_second": rate})
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
