"""What number formats and ways of running a network bring on a GPU, and what they cost in accuracy.

    python benchmarks/formats.py [--config NAME | --model M] [--device D] [--batches N ...] [--calls N] [--out FILE]

A network of a published configuration with random weights, or a model of your own. For each of float32, TF32 and
bfloat16 (autocast: weights and noise levels stay float32), eager, channels-last, compiled and as a captured graph:
images per second through one call, the median of ``--calls`` of them, those of a sample by 20 levels of Heun (39
calls), and the largest relative error of an image of that sample beside eager float32. What a machine cannot do is left
out and named. On a CPU there is no TF32 and no graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dmcmc_core import integrators, schedules
from dmcmc_core.checkpoints import check_device, load_model
from dmcmc_core.checkpoints.published import CONFIGS
from dmcmc_core.checkpoints.score_sde import build
from dmcmc_core.denoiser import Adapter
from dmcmc_core.number_format import computing_in

LEVELS = 20
FORMATS = ("float32", "tf32", "bfloat16")
WAYS = ("eager", "channels-last", "compiled", "graph")


class Graphed:
    """A network as one CUDA graph, for inputs of the shapes of the example."""

    def __init__(self, net: Callable[[Tensor, Tensor], Tensor], *example: Tensor) -> None:
        self.inputs = [t.clone() for t in example]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels before the capture
            for _ in range(3):
                net(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.answer = net(*self.inputs)

    def __call__(self, *given: Tensor) -> Tensor:
        for mine, new in zip(self.inputs, given, strict=True):
            mine.copy_(new)
        self.graph.replay()
        return self.answer.clone()


def run_by(way: str, net: torch.nn.Module, *example: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    net.to(memory_format=torch.contiguous_format if way == "eager" else torch.channels_last)
    if way == "compiled":
        return torch.compile(net)
    return Graphed(net, *example) if way == "graph" else net


def seconds(function: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def heun(net: Callable[[Tensor, Tensor], Tensor], facts: dict, x: Tensor) -> Tensor:
    """Images (B, *shape) from pure noise ``x`` of unit size."""
    grid = schedules.karras(LEVELS, facts["sigma_max"], facts["sigma_min"])
    function = lambda x, sigma: net(x, sigma)  # noqa: E731  no module: its weights tell no dtype to x
    return integrators.heun(Adapter(function, **facts), facts["sigma_max"] * x, grid)


def measure(net: torch.nn.Module, facts: dict, way: str, kind: str, x: Tensor, reference: Tensor, calls: int) -> dict:
    device, sigma = x.device.type, torch.ones(len(x), device=x.device)
    with computing_in(kind, device):
        function = run_by(way, net, x, sigma)
        for _ in range(2):
            function(x, sigma)
        call = statistics.median(seconds(lambda: function(x, sigma), device) for _ in range(calls))
        sample = seconds(lambda: heun(function, facts, x), device)
        error = (heun(function, facts, x) - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return {"call": len(x) / call, "sample": len(x) / sample, "error": error.max().item()}


def network(arguments: argparse.Namespace) -> tuple[torch.nn.Module, dict]:
    """The network on its device, and what an Adapter has to know of it."""
    if arguments.model:
        model = load_model(arguments.model, arguments.device)
        return model.net, {n: getattr(model, n) for n in ("shape", "sigma_min", "sigma_max")}
    torch.manual_seed(0)
    net, card = build(CONFIGS[arguments.config])
    facts = {"shape": net.shape, "sigma_min": card["sigma_min"], "sigma_max": card["sigma_max"]}
    return net.eval().to(arguments.device), facts


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ve_cifar10_ncsnpp_continuous", choices=CONFIGS, help="of which network")
    parser.add_argument("--model", help="a name or file of a score net instead")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="images in a call (default 64 256)")
    parser.add_argument("--calls", type=int, default=20, help="calls of which the median counts (default 20)")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    check_device(arguments.device)
    torch.backends.cudnn.allow_tf32 = False  # torch's own float32 lets convolutions use it
    device = torch.device(arguments.device).type
    net, facts = network(arguments)
    rows = []
    print("| batch | format | way | images/s, one call | images/s, Heun of 39 calls | largest relative error |")
    print("|---:|---|---|---:|---:|---:|")
    for batch in arguments.batches:
        x = torch.randn(batch, *facts["shape"], generator=torch.Generator().manual_seed(0)).to(arguments.device)
        with computing_in("float32", device):
            reference = heun(run_by("eager", net, x), facts, x)
        for kind in arguments.formats:
            for way in arguments.ways:
                about = {"batch": batch, "format": kind, "way": way}
                if device == "cpu" and (kind == "tf32" or way == "graph"):
                    continue
                try:
                    row = measure(net, facts, way, kind, x, reference, arguments.calls)
                except Exception as error:  # of compilers, captures and memory: each machine has its own
                    print(f"| {batch} | {kind} | {way} | not here: {(str(error) or repr(error)).splitlines()[0]} |||")
                    continue
                rows.append(about | row)
                print(
                    f"| {batch} | {kind} | {way} | {row['call']:.1f} | {row['sample']:.2f} | {row['error']:.1e} |",
                    flush=True,
                )
    if arguments.out:
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        content = {"network": arguments.model or arguments.config, "device": name, "torch": torch.__version__}
        arguments.out.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
