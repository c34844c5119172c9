"""What a network costs: its forward pass beside the published operators, and beside its convolutions alone.

    python benchmarks/networks.py [--config NAME] [--batch N] [--rounds N] [--threads N] [--out FILE]

A network of a published configuration with random weights, float32, on the CPU, laid out as the readers do. Three sides
alternate in one process. *Ours*: the network. *Published*: a contiguous copy of the same weights by the operators of
``published_composition.py``, for networks that have these. *Alone*: the convolutions and matrix products that ours
called once, recorded with their tensors, one after the other; a pass needs them whatever is around them.

Reported are medians with quartiles of three ratios: published over ours; ours over alone; and published over alone,
which no exact forward pass of these products exceeds. Each by the wall clock, and by the time of the processor
(``time.process_time``), which programs beside it disturb less; for that, idle threads should not spin
(``GOMP_SPINCOUNT=0``). Where the time of ours goes, by kind of operation, is from torch's profiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from published_composition import published_operators
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from dmcmc_core.checkpoints.published import CONFIGS
from dmcmc_core.checkpoints.score_sde import build
from dmcmc_core.checkpoints.weights import to_device
from dmcmc_core.nets.scalings import ScaledUNet

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


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call by the wall clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def alternated(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every side in each round, after one call of each; every other round is in reverse."""
    for side in sides.values():
        side()
    taken = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            taken[name].append(seconds(sides[name]))
    return taken


def ratio(above: list[tuple[float, float]], below: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Lower quartile, median and upper quartile of the ratio in a round, by either clock."""
    pairs = [[a[i] / b[i] for a, b in zip(above, below, strict=True)] for i in range(2)]
    return {clock: statistics.quantiles(each, n=4) for clock, each in zip(("wall", "processor"), pairs, strict=True)}


def shares(function: Callable[[], object]) -> dict[str, float]:
    """Share of the time of a call by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    spent = Counter()
    for event in profiled.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        spent[kind] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in KINDS}


def made(config: str) -> tuple[ScaledUNet, ScaledUNet]:
    """A network as the readers lay it out, and a contiguous copy; blocks that begin as the identity get weights."""
    torch.manual_seed(0)
    plain = build(CONFIGS[config])[0]
    for parameter in plain.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return to_device(copy.deepcopy(plain), "cpu"), plain.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ve_cifar10_ncsnpp_continuous", choices=CONFIGS, help="of which network")
    parser.add_argument("--batch", type=int, default=16, help="images (default 16)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of passes (default 7, at least 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and the machine they are from")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, not {arguments.rounds}")
    torch.set_num_threads(arguments.threads)
    net, plain = made(arguments.config)
    x, sigma = net.net.config["size"] ** 0.5 * torch.randn(arguments.batch, *net.shape), torch.ones(arguments.batch)
    with torch.no_grad():
        result = compared(net, plain, x, sigma, arguments.rounds)
    about = {"config": arguments.config, "batch": arguments.batch, "threads": arguments.threads}
    about["parameters"] = sum(p.numel() for p in net.parameters())
    show(about, result)
    if arguments.out:
        about |= {"torch": torch.__version__, "machine": platform.machine(), "cpus": os.cpu_count()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(about | result, indent=1) + "\n")


def compared(net: ScaledUNet, plain: ScaledUNet, x: Tensor, sigma: Tensor, rounds: int) -> dict:
    """The ratios of the three sides, and what ours is made of."""
    with Layers() as layers:
        answer = net(x, sigma)

    def alone() -> None:
        for call in layers.calls:
            call()

    def published() -> Tensor:
        with published_operators():
            return plain(x, sigma)

    sides = {"ours": lambda: net(x, sigma), "published": published, "alone": alone}
    taken = alternated(sides, rounds)
    return {
        "seconds": {name: statistics.median(wall for wall, _ in each) for name, each in taken.items()},
        "products": len(layers.calls),
        "apart": ((published() - answer).abs().max() / answer.abs().max()).item(),
        "published over ours": ratio(taken["published"], taken["ours"]),
        "ours over alone": ratio(taken["ours"], taken["alone"]),
        "published over alone": ratio(taken["published"], taken["alone"]),
        "shares": shares(lambda: net(x, sigma)),
    }


def show(about: dict, result: dict) -> None:
    """Print what was found."""
    print(f"{about['config']}: {about['parameters']:,} parameters, {about['batch']} images, {about['threads']} threads")
    print(f"{result['seconds']['ours']:.2f} s a pass, {result['products']} convolutions and matrix products")
    print(f"published and ours are {result['apart']:.1e} of the largest number apart")
    for name, clocks in result.items():
        if " over " in name:
            for clock, (low, median, high) in clocks.items():
                print(f"{name:20} {clock:9} {median:.3f} (quartiles {low:.3f}-{high:.3f})")
    for kind, share in result["shares"].items():
        print(f"  {kind:24} {100 * share:5.1f} %")


if __name__ == "__main__":
    main()
