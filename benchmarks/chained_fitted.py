"""What chains before a fitted solver bring, and what their windows and their number have to do with it.

    python benchmarks/chained_fitted.py [--model M] [--seeds N] [--images N] [--keep DIR]

Frechet distances (random convolutional features, held-out data) of images by fitted solvers from noise, by dlg+fitted
with more or fewer chains and steps of a window, and by chains before Heun's method; of as many images each, with the
full cost of an image. Images of a chain are alike, which a distance sees and a paired error does not: the last column
is the distance of independent draws from the training images, the least that so many images may be expected to have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dmcmc_core.integrators.fitted import save_all
from dmcmc_core.report import testbed
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs.fitting import solvers

REFERENCES = {"digits": ("digits-heldout", "digits-train"), "glyphs32": ("glyphs32", "")}
CALLS = (2, 3, 4, 6)
"""Network calls of the solvers."""
CHAINED = {
    "": {},
    ", 16 chains": {"chains": 16},
    ", 256 chains": {"chains": 256},
    ", windows of 2 steps": {"n_skip": 2},
    ", windows of 4 steps": {"n_skip": 4},
    ", last states": {"pick": "last"},
    ", underdamped": {"kernel": "underdamped"},
}
"""Settings of chains tried before three calls; 64 chains and one Langevin step a window, eta 1, unless they say so."""


def arms(folder: Path) -> dict[str, tuple[str, float, dict]]:
    """Return sampler, budget and settings by name."""
    found = {f"fitted, {n} calls": ("fitted", n, {"file": str(folder / f"noise-{n}.safetensors")}) for n in CALLS}
    for n in CALLS[:3]:
        settings = {"file": str(folder / f"chains-{n}.safetensors"), "eta": 1.0}
        for name, more in CHAINED.items() if n == 3 else [("", {})]:
            found[f"dlg+fitted, {n} calls{name}"] = ("dlg+fitted", 50, settings | more)
    return found | {"heun at 49": ("heun", 49, {})}


def row(bed: Testbed, name: str, arm: tuple[str, float, dict], seeds: int, images: int) -> str:
    """Measure an arm over seeds."""
    sampler, budget, settings = arm
    rows = [bed.row(sampler, budget, images, seed, settings) for seed in range(seeds)]
    distances = " ".join(f"{one['frechet']:8.2f}" for one in rows)
    mean = sum(one["frechet"] for one in rows) / seeds
    return f"{name:48} {rows[0]['nfe']:6.2f} {mean:8.2f}   {distances}"


def main() -> None:
    """Fit, sample, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=REFERENCES, help="a score net (default digits)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1280, help="of a cell (default 1280)")
    parser.add_argument("--keep", type=Path, default=Path("exp/cache"), help="folder of fits and images")
    a = parser.parse_args()
    torch.set_num_threads(1)
    reference, train = REFERENCES[a.model]
    bed = testbed.load(a.model, "random-conv", reference, train, a.keep)
    folder = a.keep / "solvers" / a.model
    for kind, budgets in (("chains", CALLS[:3]), ("noise", CALLS)):
        found = solvers(bed.model, budgets, seed=1000, chains=kind == "chains", cache_dir=a.keep, say=print)
        for n, some in found.items():
            save_all(folder / f"{kind}-{n}.safetensors", some)
        print(f"for {kind}: {found[2][-1].cost} evaluations", flush=True)
    floor = bed.floor(a.images, range(a.seeds))
    print(f"{a.model}, {a.images} images a seed; independent draws of training images: {floor.mean:.2f}")
    print(f"{'':48} {'NFE':>6} {'mean':>8}   of each seed")
    for name, arm in arms(folder).items():
        print(row(bed, name, arm, a.seeds, a.images), flush=True)


if __name__ == "__main__":
    main()
