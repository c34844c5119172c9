"""What ``evaluate`` needs at 1,000 and at 10,000 images, and whether its numbers are those of the known packages.

    python benchmarks/evaluate.py [--numbers N ...] [--reference N] [--kept D] [--side S] [--folder DIR] [--out FILE]

Random 32x32 images against a reference of other ones, through the Inception network with random weights in a file
of the published format. Each evaluation is a process of its own, whose peak of memory is printed: it should not grow
with the number of images. Of the same features, as they lie on disk, pytorch-fid and torch-fidelity then compute the
Fréchet distance and KID; differences are printed in units of the traces of the covariances (Fréchet) and relative to
the value (KID). Only the first 768 of the 2,048 features are kept, as 1,000 images allow no more than 999.
At its own 299x299 the network takes hours for 10,000 images on a small machine; 75 is the smallest side that it takes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from dmcmc_core import metrics
from dmcmc_core.data import open_images, open_samples

MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10  # in units of ru_maxrss


def random_images(n: int, seed: int, contrast: int) -> np.ndarray:
    """(n, 32, 32, 3) uint8: noise on 4x4 patches of random colours."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, contrast, (n, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    return patches + random.integers(0, 256 - contrast, (n, 32, 32, 3), dtype=np.uint8)


def write_folder(folder: Path, n: int, shard: int = 64) -> Path:
    """A folder as ``sample`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, n, shard):
        images = random_images(min(shard, n - first), first, contrast=180)
        np.savez(folder / f"shard-{first:08d}.npz", arr_0=images)
    (folder / "manifest.json").write_text(json.dumps({"num": n}))
    return folder


def write_weights(path: Path) -> None:
    """Random weights under the names of the published file."""
    from pytorch_fid import inception as module

    torch.manual_seed(0)
    with (
        mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(module.torchvision.models.Inception3, "load_state_dict", lambda *_, **__: None),
    ):
        network = module.fid_inception_v3()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    torch.save(network.state_dict(), path)


def extractor(weights: Path, kept: int, side: int) -> metrics.Extractor:
    """Our path through the Inception network, its first ``kept`` features, images resized to ``side`` pixels."""
    published = metrics.load_features("inception", weights, check_hash=False)
    inception = published.network.network
    inception.resize_input = False

    def network(images: torch.Tensor) -> torch.Tensor:
        resized = nn.functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        return published.network(resized)[:, :kept].contiguous()

    name = f"{kept} features of inception with random weights at {side}x{side}"
    return metrics.Extractor(name, network, f"{published.weights} {kept} {side}")


def one(arguments: argparse.Namespace) -> None:
    """One evaluation, its seconds and this process's peak of memory as JSON."""
    network = extractor(arguments.folder / "weights.pth", arguments.kept, arguments.side)
    begin, cache = time.perf_counter(), arguments.folder / "cache"
    reference = arguments.folder / "reference.npz"
    if arguments.one == 0:
        result = {"n": len(open_images(reference))}
        metrics.make_reference(open_images(reference), network, str(reference), cache_dir=cache)
    else:
        result = metrics.evaluate(
            arguments.folder / f"images-{arguments.one}", reference, network, cache_dir=cache, bootstrap=0
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE
    print(json.dumps({"result": result, "seconds": time.perf_counter() - begin, "peak_mb": peak}))


def agreement(arguments: argparse.Namespace, n: int, result: dict) -> dict[str, float]:
    """Numbers of the packages on the features that lie on disk, less ours."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity import metric_fid, metric_kid

    network, cache = extractor(arguments.folder / "weights.pth", arguments.kept, arguments.side), arguments.folder
    folder, reference = open_samples(cache / f"images-{n}").images, open_images(cache / "reference.npz")
    tables = [metrics.describe(images, network, "", cache_dir=cache / "cache") for images in (folder, reference)]
    x, y = (torch.from_numpy(np.load(table.folder / "features.npy")).double() for table in tables)
    statistics = [(table.numpy().mean(0), np.cov(table.numpy(), rowvar=False)) for table in (x, y)]
    theirs = calculate_frechet_distance(*statistics[0], *statistics[1])
    fidelity = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(table) for table in (x, y)), False
    )["frechet_inception_distance"]
    traces = sum(np.trace(cov) for _, cov in statistics)
    size = min(1000, len(x), len(y)) // 2
    subsets = metric_kid.kid_features_to_metric(x, y, kid_subsets=10, kid_subset_size=size, verbose=False)
    ours, _ = metrics.kid_subsets(x, y, subsets=10, size=size)
    return {
        "frechet": result["frechet"],
        "traces": traces,
        "pytorch_fid": (theirs - result["frechet"]) / traces,
        "torch_fidelity": (fidelity - result["frechet"]) / traces,
        "torch_fidelity_kid": subsets["kernel_inception_distance_mean"] / ours - 1,
    }


def run(arguments: argparse.Namespace) -> list[dict]:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_weights(arguments.folder / "weights.pth")
    np.savez(arguments.folder / "reference.npz", arr_0=random_images(arguments.reference, 10**6, contrast=200))
    rows = []
    for n in (0, *arguments.numbers):
        if n:
            write_folder(arguments.folder / f"images-{n}", n)
        options = {name: str(getattr(arguments, name)) for name in ("kept", "side", "folder")}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        done = subprocess.run([sys.executable, __file__, "--one", str(n), *words], stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        what = f"{found['result']['n']:6,} images" if n else f"{found['result']['n']:6,} reference images"
        print(f"{what}: peak {found['peak_mb']:,.0f} MB, {found['seconds']:,.0f} s", flush=True)
        if n:
            found |= agreement(arguments, n, found["result"])
            print(f"    Fréchet distance {found['frechet']:.6g}, traces of the covariances {found['traces']:.6g}")
            for package in ("pytorch_fid", "torch_fidelity"):
                print(f"    {package}: {found[package]:+.1e} of the traces away")
            print(f"    KID of torch_fidelity: {found['torch_fidelity_kid']:+.1e} of its value away", flush=True)
        rows.append(found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1000, 10_000], help="images (default 1000 10000)")
    parser.add_argument("--reference", type=int, default=2000, help="images of the reference (default 2000)")
    parser.add_argument("--kept", type=int, default=768, help="features, at most 2048 (default 768)")
    parser.add_argument("--side", type=int, default=299, help="pixels that images are resized to (default 299)")
    parser.add_argument("--folder", type=Path, help="where all is kept, to go on from (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.numbers) <= arguments.kept or arguments.reference <= arguments.kept:
        parser.error(f"more than {arguments.kept} images are needed everywhere, as many features are kept")
    if arguments.one is not None:
        one(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = arguments.folder or Path(folder)
        rows = run(arguments)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
