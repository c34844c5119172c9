"""Peak memory, each in a process of its own: a sample, the images of an exact model, a checkpoint.

    python benchmarks/memory.py [--only NAME ...] [--block N] [--images N]

*sample* makes one block of images by two steps of Euler, with the CIFAR-10 NCSN++ of random weights. The peak is beside
its weights and the largest activations of a pass, those of which the network needs all at once: found from a pass of
one image that follows every tensor from its making to its end. *exact* makes ``EmpiricalData`` of images of CIFAR size
and asks it once, beside the images. *checkpoint* writes that network and loads it, beside the weights.

A peak is ``ru_maxrss`` above that of the same process after its imports and inputs: what torch's own libraries take at
their first use, some tens of MB, is counted in, and pages of a file that is mapped. Reported are peak over what is
needed, and whether that is at most 1.15, 1.25 and 1.15. The C library keeps freed tensors in pieces that larger ones do
not fit into; ``MALLOC_MMAP_THRESHOLD_=1000000`` in the environment gives each back at once, for more page faults.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CONFIG = "ve_cifar10_ncsnpp_continuous"
MB = 2**20


class Living(TorchDispatchMode):
    """Follows the memory of all tensors that are made inside; ``peak`` is the most that lived at once, in bytes.

    ``given``: tensors that were there before, views of which take no memory.
    """

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor)
        return found

    def follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.known or not size:
            return
        self.known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)

        def ended() -> None:
            self.known.discard(place)
            self.now -= size

        weakref.finalize(storage, ended)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def network():
    from dmcmc_core.checkpoints.published import CONFIGS
    from dmcmc_core.checkpoints.score_sde import build
    from dmcmc_core.checkpoints.weights import to_device

    torch.manual_seed(0)
    net, card = build(CONFIGS[CONFIG])
    return to_device(net, "cpu"), card


def bytes_of(net: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))


def of_sample(a: argparse.Namespace) -> dict[str, float]:
    from dmcmc_core import sample
    from dmcmc_core.checkpoints.loader import _denoiser

    before = peak()
    net, card = network()
    model = _denoiser(net, card | {"name": "random"})
    sample(model, "euler", 2, a.block, block=a.block, sigma_max=10.0, progress=False)
    found = peak() - before
    with torch.no_grad(), Living(net.state_dict().values()) as living:
        net(torch.randn(1, *net.shape), torch.ones(1))
    return {"peak": found, "weights": bytes_of(net), "activations": a.block * living.peak}


def of_exact(a: argparse.Namespace) -> dict[str, float]:
    from dmcmc_core.analytic import EmpiricalData

    images = torch.empty(a.images, 3, 32, 32).uniform_()
    size, before = images.nbytes, peak()
    model = EmpiricalData(images)
    model(torch.randn(8, 3, 32, 32), torch.tensor(5.0))
    return {"peak": size + peak() - before, "images": size}


def of_checkpoint(a: argparse.Namespace) -> dict[str, float]:
    from dmcmc_core.checkpoints import load_model

    before = peak()
    model = load_model(a.path)
    return {"peak": peak() - before, "weights": bytes_of(model.net)}


def write(path: str) -> None:
    """Write the network as a file of ours."""
    from dmcmc_core.checkpoints import save

    net, card = network()
    save(net, path, card)


KINDS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, float]], float]] = {
    "sample": (of_sample, 1.15),
    "exact": (of_exact, 1.25),
    "checkpoint": (of_checkpoint, 1.15),
}
"""What is measured -> the function that does it, and the most that its peak may be of what is needed."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="which (default: all)")
    p.add_argument("--block", type=int, default=64, help="images of the sample (default 64)")
    p.add_argument("--images", type=int, default=50_000, help="images of the exact model (default 50,000)")
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--path", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one == "write":
        write(a.path)
        return
    if a.one:
        import dmcmc_core.checkpoints.families
        import dmcmc_core.runs.sampling  # noqa: F401  before the peak that is subtracted

        print(json.dumps(KINDS[a.one][0](a)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.safetensors")
        run = [sys.executable, __file__, "--block", str(a.block), "--images", str(a.images), "--path", path, "--one"]
        if "checkpoint" in a.only:
            subprocess.run([*run, "write"], check=True)  # the peak of a process is inherited by those it begins
        for name in a.only:
            found = json.loads(subprocess.run([*run, name], check=True, capture_output=True, text=True).stdout)
            taken, most = found.pop("peak"), KINDS[name][1]
            needed = sum(found.values())
            parts = ", ".join(f"{part} {size / MB:.0f}" for part, size in found.items())
            verdict = "yes" if taken / needed <= most else "no"
            print(f"{name:10} {taken / MB:.0f} MB ({parts}): {taken / needed:.3f}  at most {most}: {verdict}")


if __name__ == "__main__":
    main()
