"""What a preconditioner adds to a step of the predictor-corrector, as a share of the two network calls of that step.

    python benchmarks/transforms.py [--pairs N] [--threads N] [--out FILE]

For images of 3 x 32², 256² and 1024² numbers. The network is a timer of known cost: it multiplies matrices, as a sleep
would put torch's threads to sleep as well and what wakes them would be counted as transforms, as long as one image of
the published NCSN++ of that size would take here, its multiplications counted on the meta device, over the speed of a
convolution, but at most LONGEST, as only differences count. A pair is one step plain and one preconditioned, order
alternating; the share is the difference of their times over the two calls' cost, by the convolution's speed just after
them, as the machine's own speed wanders. The gains ``published`` are both by complex transforms, twelve a step, none
shared: what real and shared ones bring.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dmcmc_core import integrators
from dmcmc_core.checkpoints.published import CONFIGS
from dmcmc_core.checkpoints.score_sde import build
from dmcmc_core.denoiser import Lengths
from dmcmc_core.preconditioning import Preconditioner, WithPreconditioner

NETWORKS = {
    32: "ve_cifar10_ncsnpp_continuous",
    256: "ve_celebahq_256_ncsnpp_continuous",
    1024: "ve_ffhq_1024_ncsnpp_continuous",
}
TARGET = 3.0  # per cent
LONGEST = 0.2  # seconds that a timer takes at most; the share is of the whole cost


class Timer:
    """A denoiser that answers 0 after as many seconds."""

    data_range, sigma_min, sigma_max = (0.0, 1.0), 0.01, 50.0

    def __init__(self, shape: tuple[int, ...], cost: float) -> None:
        self.shape, self.cost, self.work = shape, cost, torch.randn(256, 256)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        end = time.perf_counter() + self.cost
        while time.perf_counter() < end:
            self.work @ self.work
        return torch.zeros_like(x)


class Complex(Preconditioner):
    """The same operators by complex transforms, none of them shared, as published."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(self.frequency.to(x) * torch.fft.fft2(self.pixel.to(x) * x)).real

    def drift(self, x: torch.Tensor) -> torch.Tensor:
        b, a = self.frequency.to(x), self.pixel.to(x)
        inner = torch.fft.ifft2(b * torch.fft.fft2(x))
        return torch.fft.ifft2(b * torch.fft.fft2(a**2 * inner)).real

    def move(self, x: torch.Tensor, gradient: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return x + self.drift(gradient) + self.apply(noise)

    def correct(self, x: torch.Tensor, gradient: torch.Tensor, noise: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        drift, kick = self.drift(gradient), self.apply(noise)
        e, f = lengths(drift.norm(), kick.norm())
        return x + e * drift + f * kick


def multiplications(name: str, size: int) -> int:
    """Of one image through the network of a published configuration."""
    with torch.device("meta"):
        net = build(CONFIGS[name])[0].eval().to("meta")
        x, sigma = torch.empty(1, 3, size, size), torch.ones(1)
        with FlopCounterMode(display=False) as counter:
            net(x, sigma)
    return counter.get_total_flops() // 2


def speed() -> float:
    """Multiplications per second of a convolution of 128 channels, the median of five."""
    convolution, x = torch.nn.Conv2d(128, 128, 3, padding=1), torch.randn(8, 128, 32, 32)
    convolution(x)
    return 8 * 32**2 * 128**2 * 9 / statistics.median(seconds(lambda: convolution(x)) for _ in range(5))


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of steps for each size (default 20, at least 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and the machine they are from")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error(f"--pairs must be at least 2, not {arguments.pairs}")
    torch.set_num_threads(arguments.threads)
    results = {}
    print(f"{'size':>5} {'network':>9} {'gains':10} {'ms/step':>8}  {'share':>7}  at most {TARGET:g} %")
    with torch.no_grad():
        for size, config in NETWORKS.items():
            work, shape = multiplications(config, size), (3, size, size)
            g = torch.Generator().manual_seed(0)
            b, a = (1 + 0.25 * torch.rand(shape, generator=g) for _ in range(2))
            grid, x = torch.tensor([1.0, 0.9]), torch.randn(1, *shape)
            noise = torch.randn_like(x)

            timer = Timer(shape, min(work / speed(), LONGEST))

            def step(m: Preconditioner, timer=timer, grid=grid, x=x, noise=noise) -> None:
                model = WithPreconditioner(timer, m)
                integrators.predictor_corrector(model, x, grid, noise=lambda like: noise)

            kinds = {"frequency": Preconditioner(b), "both": Preconditioner(b, a), "published": Complex(b, a)}
            plain = Preconditioner.identity()
            for kind, m in kinds.items():
                step(m)
                extra, costs = [], []
                for i in range(arguments.pairs):
                    order = (plain, m)[:: 1 if i % 2 == 0 else -1]
                    times = [seconds(lambda side=side: step(side)) for side in order][:: 1 if i % 2 == 0 else -1]
                    extra.append(times[1] - times[0])
                    costs.append(work / speed())
                shares = [100 * more / (2 * cost) for more, cost in zip(extra, costs, strict=True)]
                low, share, high = statistics.quantiles(shares, n=4)
                results[f"{size} {kind}"] = {"network_seconds": costs, "extra_seconds": extra, "share_per_cent": share}
                verdict = "yes" if share <= TARGET else "no"
                cost, median = statistics.median(costs), statistics.median(extra)
                print(
                    f"{size:5} {cost:7.2f} s {kind:10} {1000 * median:8.2f}  {share:6.3f}%  {verdict}"
                    f"  (quartiles {low:.3f} to {high:.3f} %)",
                    flush=True,
                )
    if arguments.out:
        about = {"threads": arguments.threads, "torch": torch.__version__, "machine": platform.machine()}
        about |= {"cpus": os.cpu_count(), "target_per_cent": TARGET}
        part = arguments.out.with_name(arguments.out.name + ".part")
        part.write_text(json.dumps(about | {"sizes": results}, indent=1) + "\n")
        os.replace(part, arguments.out)


if __name__ == "__main__":
    main()
