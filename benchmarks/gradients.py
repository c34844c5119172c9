"""Peak memory of an integrator that keeps no graph of its operations beside one that keeps it, each in its own process.

python benchmarks/gradients.py [--steps 50] [--images 64] [--pairs 3]

A network of one's own, in evaluation and with gradients on, as a user has it; the sides alternate.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys


def peak(steps: int, images: int, grad: bool) -> float:
    """Return the largest resident size of this process in MB once the images are made."""
    import torch

    from dmcmc_core import integrators, schedules
    from dmcmc_core.denoiser import Adapter

    torch.manual_seed(0)
    layer = lambda a, b: torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.SiLU())  # noqa: E731
    net = torch.nn.Sequential(layer(3, 32), layer(32, 32), layer(32, 32), torch.nn.Conv2d(32, 3, 3, padding=1)).eval()
    model = Adapter(lambda x, sigma: net(x / (1 + sigma[:, None, None, None] ** 2).sqrt()), (3, 16, 16))
    x = 50 * torch.randn(images, 3, 16, 16)
    integrators.euler(model, x, schedules.karras(steps, 50.0, 0.01), grad=grad)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the median of each side."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--images", type=int, default=64)
    p.add_argument("--pairs", type=int, default=3)
    p.add_argument("--side", choices=["without", "with"], help="measure one side, for the other processes")
    a = p.parse_args()
    if a.side:
        print(peak(a.steps, a.images, a.side == "with"))
        return
    found: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(a.pairs):
        for side, peaks in found.items():
            words = ["--steps", str(a.steps), "--images", str(a.images), "--side", side]
            made = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
            peaks.append(float(made.stdout))
    for side, peaks in found.items():
        print(f"{side} a graph: {statistics.median(peaks):.0f} MB ({min(peaks):.0f} to {max(peaks):.0f})")


if __name__ == "__main__":
    main()
