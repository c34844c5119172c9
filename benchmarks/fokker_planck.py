"""The solve of score embedding against the published way: a sparse direct solve for each channel, time and pass.

    python benchmarks/fokker_planck.py [--sizes 16 32 64 128] [--pairs N] [--out FILE] [--figure FILE]

Both solve the same field, alternating in one process; the ratio is of the medians. Memory is what a process of its own
grows by at its peak, direct factors included. The field's density is not timed. It fails where the fields differ by
more than 1e-7.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dmcmc_core import score_embedding as se
from dmcmc_core.workbench.studies.fokker_planck import direct_solve

SETTINGS = {"sigma": 2.0, "steps": 10, "tol": 1e-6}
"""Of the published configuration of one picture of 64 pixels."""
WAYS = {"published way": direct_solve, "ours": se.solve}


def initial_field(size: int) -> torch.Tensor:
    """Return the field of a smooth image (3, size, size), as rough at its own scale at every size."""
    waves = np.fft.rfft2(np.random.default_rng(0).normal(size=(3, size, size)))
    waves *= np.exp(-0.5 * (np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * 9) ** 2)
    image = np.fft.irfft2(waves, s=(size, size))
    return se.initial_field(torch.from_numpy(((image - image.min()) / np.ptp(image) * 255).round() / 255))


def seconds(way: str, m0: torch.Tensor) -> float:
    start = time.perf_counter()
    WAYS[way](m0, **SETTINGS)
    return time.perf_counter() - start


def grown(way: str, size: int) -> None:
    """Print by how many KiB this process grows at its peak while it solves; on Linux."""
    m0 = initial_field(size)
    WAYS[way](initial_field(8), **SETTINGS)  # what is loaded once is no part of it
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    WAYS[way](m0, **SETTINGS)
    print(resident("VmHWM") - before)


def resident(name: str) -> int:
    """Return KiB of memory, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def mebibytes(way: str, size: int) -> float:
    words = [sys.executable, __file__, "--grown", way, "--sizes", str(size)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1024


def measure(size: int, pairs: int) -> dict[str, float]:
    """Return the numbers of one size; AssertionError where the two fields are not the same."""
    m0 = initial_field(size)
    theirs, found = (function(m0, **SETTINGS) for function in WAYS.values())
    difference = ((theirs.m - found.m).abs().max() / theirs.m.abs().max()).item()
    assert difference < 1e-7 and theirs.passes == found.passes, f"the fields differ by {difference:g}"
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(pairs):
        for way in WAYS:
            times[way].append(seconds(way, m0))
    row = {"size": size, "passes": found.passes, "difference": difference}
    row |= {f"{way}, seconds": statistics.median(t) for way, t in times.items()}
    return row | {f"{way}, MiB": mebibytes(way, size) for way in WAYS}


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Draw seconds and memory of both against the size."""
    from dmcmc_core.report import plots

    curves = [
        {"panel": unit, "arm": way, "x": row["size"], "y": row[f"{way}, {unit}"]}
        for unit in ("seconds", "MiB")
        for way in WAYS
        for row in rows
    ]
    plots.curve_panels(curves, "pixels of a side", "of one solve", logy=True).savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64], help="pixels of a side")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, alternating (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and the machine they are from")
    parser.add_argument("--figure", type=Path, help="PNG file of seconds and memory against size")
    parser.add_argument("--grown", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.grown:
        grown(arguments.grown, *arguments.sizes)
        return
    rows = []
    print(f"{'size':>5} {'passes':>6} {'published s':>12} {'ours s':>8} {'ratio':>6} {'published MiB':>14} {'ours':>6}")
    for size in arguments.sizes:
        rows.append(row := measure(size, arguments.pairs))
        published, own = (row[f"{way}, seconds"] for way in WAYS)
        print(f"{size:>5} {row['passes']:>6} {published:>12.3f} {own:>8.3f} {published / own:>6.1f}", end="")
        print("".join(f" {row[f'{way}, MiB']:>{width}.1f}" for way, width in zip(WAYS, (14, 6), strict=True)))
    if arguments.out:
        about = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
        arguments.out.write_text(json.dumps(about | {"results": rows}, indent=1) + "\n")
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
