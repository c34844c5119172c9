"""Memory and time of loading a published network from a real-format file, beside torch.load and load_state_dict.

    python benchmarks/loading.py [--name NAME] [--pairs N]

Writes a file of random weights with the names and shapes of the published one (NAME, by default the 552,814,086 numbers
of 256x256_diffusion_uncond), then loads it in processes of its own, ours and the usual way alternated: the usual way
makes the same network, reads the whole file and copies it. Prints the peak of memory above that of an interpreter with
the same imports, in units of the weights, and the time of each pair.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write(name: str, path: Path) -> int:
    """Write a file of random weights of a published network; return its bytes of weights."""
    import torch

    from dmcmc_core.checkpoints import load_model, openai

    net = load_model(name, "meta").net.net
    own = net.state_dict()
    state = {e.name: 0.02 * torch.randn(e.shape(own[e.own])) for e in openai.entries(net)}
    torch.save(state, path)
    return sum(t.numel() * t.element_size() for t in state.values())


def ours(name: str, path: str) -> object:
    from dmcmc_core.checkpoints import load_network

    return load_network(path, config=name)


def usual(name: str, path: str) -> object:
    import torch

    from dmcmc_core.checkpoints import openai
    from dmcmc_core.checkpoints.published_states import OPENAI

    net = openai.build(OPENAI[name])[0].net  # its names are not those of the file, which costs nothing to change
    places = {entry.name: entry for entry in openai.entries(net)}
    own = net.state_dict()
    state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict({places[k].own: v.reshape(own[places[k].own].shape) for k, v in state.items()}, strict=False)
    return net.eval()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--name", default="256x256_diffusion_uncond")
    p.add_argument("--pairs", type=int, default=3)
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--path", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one == "write":
        print(write(a.name, Path(a.path)))
        return
    if a.one:
        import torch  # noqa: F401  before the peak that is subtracted

        from dmcmc_core.checkpoints import families, loader  # noqa: F401

        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        net = {"ours": ours, "usual": usual}[a.one](a.name, a.path)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(
            json.dumps({"seconds": seconds, "bytes": peak * 1024, "numbers": sum(q.numel() for q in net.parameters())})
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{a.name}.pt"
        made = [sys.executable, __file__, "--name", a.name, "--one", "write", "--path", str(path)]
        weights = int(subprocess.run(made, check=True, capture_output=True, text=True).stdout)  # a peak is inherited
        print(f"{a.name}: {weights / 4:,.0f} numbers, {weights / 2**30:.2f} GiB")
        ratios, peaks = [], {"ours": [], "usual": []}
        for i in range(a.pairs):
            found = {}
            for kind in ("ours", "usual") if i % 2 == 0 else ("usual", "ours"):
                command = [sys.executable, __file__, "--name", a.name, "--one", kind, "--path", str(path)]
                found[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                peaks[kind].append(found[kind]["bytes"] / weights)
            ratios.append(found["ours"]["seconds"] / found["usual"]["seconds"])
            print(f"pair {i}: time {ratios[-1]:.2f} of the usual way", {k: round(v[-1], 3) for k, v in peaks.items()})
    print(f"time: {statistics.median(ratios):.2f} of the usual way (median of {a.pairs})")
    print(f"peak memory in weights: ours {max(peaks['ours']):.3f}, usual {max(peaks['usual']):.3f}")


if __name__ == "__main__":
    main()
