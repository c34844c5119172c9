"""The solve of score embedding against the published way: a sparse direct solve for each channel, time and pass.

    python benchmarks/fokker_planck.py [--sizes 16 32 64 128] [--pairs N] [--out FILE]

Both solve the same field, alternating in one process; the ratio is of the medians, the memory what each allocates at
most. The field's own density is not timed. It fails where the fields differ by more than 1e-7.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from dmcmc_core import score_embedding as se
from dmcmc_core.score_embedding.stencil import flat_difference

SIGMA, STEPS, TOL = 2.0, 10, 1e-6
"""Of the published configurations for 64 pixels."""


def picture(size: int) -> torch.Tensor:
    """Return a smooth image (3, size, size) in [0, 1], as rough at its own scale at every size."""
    waves = np.fft.rfft2(np.random.default_rng(0).normal(size=(3, size, size)))
    waves *= np.exp(-0.5 * (np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * 9) ** 2)
    image = np.fft.irfft2(waves, s=(size, size))
    return torch.from_numpy((image - image.min()) / np.ptp(image))


def published_way(m0: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the field at all times and the passes, by one ``spsolve`` a channel, time and pass."""
    (channels, size, _), dt = m0.shape, 1 / STEPS
    t = np.linspace(1e-3, 1, STEPS)
    m = np.repeat(m0[None], STEPS, 0)
    score, before, passes = np.ones_like(m), np.ones_like(m), 0
    while True:
        for i in range(1, STEPS):
            g2 = SIGMA ** (2 * t[i])
            for c in range(channels):
                s = score[i, c].ravel()
                upper, lower = g2 * dt / 2 - g2 * s * dt / 4, -g2 * dt / 2 - g2 * s * dt / 4
                bands = [np.full(len(s), 1 + 2 * g2 * dt), upper[1:], upper[size:], lower[:-1], lower[:-size]]
                a = sparse.diags(bands, [0, 1, size, -1, -size], format="csc")
                m[i, c] = spsolve(a, m[i - 1, c].ravel()).reshape(size, size)
        score, passes = flat_difference(m, 1.0), passes + 1
        change, before = np.linalg.norm(m - before) / np.linalg.norm(before), m.copy()
        if change <= TOL:
            return m, passes


def ours(m0: torch.Tensor) -> tuple[np.ndarray, int]:
    field = se.solve(m0, sigma=SIGMA, steps=STEPS, tol=TOL)
    return field.m.numpy(), field.passes


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def peak(function, *arguments) -> float:
    """Return the MiB that a call has allocated at most."""
    tracemalloc.start()
    function(*arguments)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64], help="pixels of a side")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, alternating (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and the machine they are from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    print(
        f"{'size':>5} {'passes':>6} {'published s':>12} {'ours s':>8} {'ratio':>6} {'MiB, published':>15} {'ours':>7}"
    )
    for size in arguments.sizes:
        m0 = se.initial_field((picture(size) * 255).round().float() / 255)
        (theirs, passes), (found, own) = published_way(m0.numpy()), ours(m0)
        difference = float(np.abs(theirs - found).max() / np.abs(theirs).max())
        assert difference < 1e-7 and passes == own, f"the fields differ by {difference:g}, passes {passes} and {own}"
        times: list[list[float]] = [[], []]
        for _ in range(arguments.pairs):
            times[0].append(seconds(published_way, m0.numpy()))
            times[1].append(seconds(ours, m0))
        published, mine = (statistics.median(t) for t in times)
        memory = [peak(published_way, m0.numpy()), peak(ours, m0)]
        print(f"{size:>5} {passes:>6} {published:>12.3f} {mine:>8.3f} {published / mine:>6.1f}", end="")
        print(f" {memory[0]:>15.1f} {memory[1]:>7.1f}")
        results.append(
            {"size": size, "passes": passes, "published_seconds": published, "seconds": mine}
            | {"published_mib": memory[0], "mib": memory[1], "difference": difference}
        )
    if arguments.out:
        about = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
        arguments.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
