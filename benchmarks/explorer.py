"""What the explorer adds to a run: its wall time with the panel open and drawing, over that of the bare run.

    python benchmarks/explorer.py [--pairs N] [--nfe N] [--n N] [--model M] [--sampler S] [--out FILE]

A pair is a run by ``dmcmc_core.sample`` and one by the panel, watched, drawn ten times a second and its widgets kept up
to date, one after the other in one process, the order alternating; both times are of the whole call, from the recipe to
the images. The ratio of a pair does not care what else the machine does, as long as that changes slowly. Without a
browser widgets send to nobody: what the browser draws costs another process. Reported: the median of the ratios with
quartiles, and how long it takes from Run to the first call that can be shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import dmcmc_core
from dmcmc_core.errors import LOG
from dmcmc_core.workbench.explorer import explore

TARGET = 1.05


def bare(model, a) -> float:
    started = time.perf_counter()
    dmcmc_core.sample(model, a.sampler, a.nfe, a.n)
    return time.perf_counter() - started


def watched(panel) -> tuple[float, float]:
    """Seconds of the run, and from its start to the first call that can be shown."""
    panel.run()
    panel.follower.wait()
    session = panel.session
    assert session.status == "done", session.problem
    return session.seconds, session.log.first - session._started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 20), ("nfe", 40), ("n", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    LOG.setLevel("ERROR")
    explorer = explore(a.model, sampler=a.sampler, nfe=a.nfe, n=a.n)
    panel, model = explorer.panels["One sampler"], explorer.models.get(a.model)
    bare(model, a), watched(panel)
    ratios, first = [], []
    for pair in range(a.pairs):
        times = {}
        for kind in ("bare", "watched") if pair % 2 else ("watched", "bare"):
            if kind == "bare":
                times[kind] = bare(model, a)
            else:
                times[kind], seen = watched(panel)
                first.append(seen)
        ratios.append(times["watched"] / times["bare"])
    low, median, high = statistics.quantiles(ratios, n=4)
    found = {"model": a.model, "sampler": a.sampler, "nfe": a.nfe, "n": a.n, "pairs": a.pairs}
    found |= {"ratio": median, "quartiles": [low, high], "first_call_seconds": statistics.median(first)}
    print(
        f"{a.model}, {a.sampler}, {a.nfe} NFE, n = {a.n}, {a.pairs} pairs: ratio {median:.3f} ({low:.3f} to {high:.3f})"
    )
    print(f"target {TARGET:g}; first call that can be shown after {found['first_call_seconds']:.2f} s")
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    explorer.close()


if __name__ == "__main__":
    main()
