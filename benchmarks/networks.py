"""What a network costs beside its convolutions: its forward pass over the same convolutions called one after the other.

    python benchmarks/networks.py [--config NAME] [--batch N] [--pairs N] [--threads N] [--out FILE]

A network of a published configuration with random weights, float32, on the CPU. One forward pass is recorded: every
convolution and matrix product of torch that it calls, with its tensors. The other side of a pair calls those alone, in
their order, on the same weights and inputs: what a straightforward composition of torch's own layers cannot do
without. Pairs alternate in one process; reported are the median ratio with quartiles, and where the time goes by kind
of operation, from torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from dmcmc_core.checkpoints.published import CONFIGS
from dmcmc_core.checkpoints.score_sde import build

LAYERS = {"conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "einsum", "scaled_dot_product_attention"}
KINDS = {
    "convolution": ("convolution",),
    "matrix product": ("mm", "linear", "einsum"),
    "normalisation": ("norm",),
    "activation": ("silu", "sigmoid"),
    "attention": ("attention",),
    "sums, products, copies": ("",),
}
"""Kind of operation -> parts of the names of torch's operators, the first that fits."""


class Layers(TorchFunctionMode):
    """Keeps the calls of convolutions and matrix products that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in LAYERS:
            self.calls.append(lambda: function(*args, **kwargs))
        return function(*args, **kwargs)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def shares(function: Callable[[], object]) -> dict[str, float]:
    """Share of the time of a call by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    spent = Counter()
    for event in profiled.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        spent[kind] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ve_cifar10_ncsnpp_continuous", choices=CONFIGS, help="of which network")
    parser.add_argument("--batch", type=int, default=16, help="images (default 16)")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of passes (default 7, at least 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and the machine they are from")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error(f"--pairs must be at least 2, not {arguments.pairs}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        net = build(CONFIGS[arguments.config])[0].eval()
        x, sigma = torch.randn(arguments.batch, *net.shape), torch.full((arguments.batch,), 1.0)
        with Layers() as layers:
            net(x, sigma)

        def bare() -> None:
            for call in layers.calls:
                call()

        bare()
        ratios, passes = [], []
        for i in range(arguments.pairs):
            order = (lambda: net(x, sigma), bare)[:: 1 if i % 2 == 0 else -1]
            whole, alone = [seconds(side) for side in order][:: 1 if i % 2 == 0 else -1]
            ratios.append(whole / alone)
            passes.append(whole)
        spent = shares(lambda: net(x, sigma))
    low, median, high = statistics.quantiles(ratios, n=4)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{arguments.config}: {parameters:,} parameters, {arguments.batch} images, {arguments.threads} threads")
    print(f"{statistics.median(passes):.2f} s a pass, {len(layers.calls)} convolutions and matrix products")
    print(f"pass over these alone: {median:.3f} (quartiles {low:.3f}-{high:.3f}, {arguments.pairs} pairs)")
    for kind, share in spent.items():
        print(f"  {kind:24} {100 * share:5.1f} %")
    if arguments.out:
        about = {"config": arguments.config, "batch": arguments.batch, "threads": arguments.threads}
        about |= {"torch": torch.__version__, "machine": platform.machine(), "cpus": os.cpu_count()}
        result = about | {"ratio": median, "quartiles": [low, high], "ratios": ratios, "shares": spent}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
