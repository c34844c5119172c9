"""Fitted solvers against every classical one: paired error, distance to the data, wall time, and what the fit costs.

    python benchmarks/fitted.py [--model M] [--label L --guidance W] [--fit NAME=VALUE ...] [--bands N] [--seeds N]
                                [--images N] [--distance N] [--pairs N] [--keep FOLDER] [--out FILE]

For each seed solvers of 4, 5, 6, 8 and 10 calls are fitted together. Their paired error, the root mean square distance
to the accurate solution from the same noise, is measured on noise of its own, with that of every peer, each on the
better of the Karras and the log-uniform grid: ours, and those of diffusers and of k-diffusion, where these are
installed. What is theirs is first held to ours on an exact mixture (``fitted_peers.py``). A model is the name or the
file of a score net, a network of VP, or an exact one; with classes it may be held to one, and guided.
The distance to held-out data is that of random convolutional features, with Heun's method at 49 calls beside. Wall
times are pairs in one process, alternating: the cheapest solver that reaches what the best peer has at 10 calls and
that peer; a solver and as many bare network calls.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import fitted_peers
import torch
from fitted_models import model_of
from torch import Tensor

from dmcmc_core import integrators, metrics, schedules
from dmcmc_core.data import load_images
from dmcmc_core.denoiser import BLOCK, Denoiser
from dmcmc_core.integrators import Fitted
from dmcmc_core.integrators.gaussian_split import Spectrum
from dmcmc_core.workbench.studies.fitted_solvers import classical, in_batches, starts

BUDGETS = (4, 5, 6, 8, 10)
PEERS = ("euler", "heun", "dpmpp_2m", "dpmpp_3m", "deis", "ipndm", "unipc")
GRIDS = ("karras", "log_uniform")
ACCURATE, SLOW = 80, 25
"""Calls of UniPC for the accurate solution; levels of Heun's method at 49 calls."""
REFERENCES = {"digits": "digits-heldout", "glyphs32": "glyphs32"}
SEEN = {"digits": ("digits-train", "eigen"), "glyphs32": ("glyphs32", "dct")}
"""Images whose covariance gives the modes of --bands, and their basis."""


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference of each image, (B,)."""
    return (a.double() - b.double()).square().flatten(1).mean(1)


def theirs(model: Denoiser, solver: fitted_peers.Solver, grid: str, nfe: int) -> Callable[[Tensor], Tensor]:
    sigmas = schedules.SCHEDULES[grid](nfe, model.sigma_max, model.sigma_min)
    return lambda x: solver(model, x, sigmas)


def peers(model: Denoiser, nfe: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every peer at a budget, by name and grid; what libraries have of ours is not asked twice."""
    found = {f"{name}, {grid}": classical(model, name, grid, nfe) for name in PEERS for grid in GRIDS}
    return found | {
        f"{name}, {grid}": theirs(model, solver, grid, nfe)
        for name, solver in fitted_peers.others().items()
        for grid in GRIDS
    }


def errors(model: Denoiser, solvers: dict[int, Fitted], seed: int, rows: int) -> dict[int, dict[str, Tensor]]:
    """Squared errors of images at each budget, of the fitted solver and of all peers, on noise that no fit has seen."""
    x = starts(model, 1000 + seed, "image", rows)
    truth = in_batches(classical(model, "unipc", "karras", ACCURATE), x)
    table = {}
    for nfe, solver in solvers.items():
        table[nfe] = {"fitted": squares(in_batches(lambda x, s=solver: s(model, x), x), truth)}
        table[nfe] |= {name: squares(in_batches(sample, x), truth) for name, sample in peers(model, nfe).items()}
    return table


def roots(table: dict[int, dict[str, Tensor]], of: Callable[[Tensor], Tensor]) -> dict[int, dict[str, float]]:
    return {nfe: {name: of(e).sqrt().item() for name, e in row.items()} for nfe, row in table.items()}


def told(rows: list[dict[int, dict[str, float]]], nfe: int) -> str:
    """Return a line of the errors of all seeds at a budget: their means, and the ratio with its least and largest."""
    means = {name: statistics.mean(row[nfe][name] for row in rows) for name in rows[0][nfe]}
    best = min((name for name in means if name != "fitted"), key=lambda name: means[name])
    ratios = [row[nfe]["fitted"] / min(e for name, e in row[nfe].items() if name != "fitted") for row in rows]
    return (
        f"fitted {means['fitted']:.4f}, best peer {means[best]:.4f} ({best}), ratio "
        f"{means['fitted'] / means[best]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def distances(model: Denoiser, name: str, solvers: dict[int, Fitted], seed: int, rows: int) -> dict[str, float]:
    """Frechet distances to held-out data, of fitted solvers and of Heun's method at 49 calls, from the same noise."""
    reference = metrics.make_reference(load_images(REFERENCES[name]), "random-conv", REFERENCES[name])
    x, (low, high) = starts(model, 2000 + seed, "image", rows), model.data_range
    samplers = {"heun at 49": classical(model, "heun", "karras", 2 * SLOW - 1)}
    samplers |= {f"fitted at {nfe}": (lambda x, s=solvers[nfe]: s(model, x)) for nfe in (4, 5) if nfe in solvers}
    samplers |= {f"dpmpp_2m at {nfe}": classical(model, "dpmpp_2m", "karras", nfe) for nfe in (4, 5)}
    found = {}
    for label, sample in samplers.items():
        images = ((in_batches(sample, x) - low) / (high - low)).clamp(0, 1)
        features = metrics.extract(images, reference.extractor)
        found[label] = metrics.frechet_distance(*metrics.statistics(features), reference.mu, reference.cov)
    return found


def alternated(one: Callable[[], object], other: Callable[[], object], pairs: int) -> list[float]:
    """Ratios of the times of two functions, run in turn, the order alternating."""
    ratios = []
    for i in range(pairs + 1):
        times = []
        for function in (one, other) if i % 2 else (other, one):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        of_one, of_other = times if i % 2 else times[::-1]
        ratios.append(of_one / of_other)
    return ratios[1:]  # the first warms up


def wall(model: Denoiser, solvers: dict[int, Fitted], table: dict[int, dict[str, float]], pairs: int) -> dict:
    """Time of the best peer at 10 calls over that of the cheapest fitted solver at least as near; and overhead."""
    best = min((name for name in table[10] if name != "fitted"), key=lambda name: table[10][name])
    enough = [nfe for nfe in solvers if table[nfe]["fitted"] <= table[10][best]]
    x = starts(model, 3000, "image", BLOCK)
    found: dict = {"peer": best, "its error at 10": table[10][best], "fitted calls": min(enough, default=None)}
    if enough:
        solver = solvers[min(enough)]
        found["peer's time over fitted's"] = alternated(
            lambda: peers(model, 10)[best](x), lambda: solver(model, x), pairs
        )
    asked, solver = [], solvers[5]

    class Recorded:
        def __getattr__(self, name: str):
            return getattr(model, name)

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            asked.append((x, sigma))
            return model(x, sigma)

    dataclasses.replace(solver, card={})(Recorded(), x)  # without a check of the net
    found["fitted's time over bare calls"] = alternated(
        lambda: solver(model, x), lambda: [model(*call) for call in asked], pairs
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help="name or file of a score net (default digits)")
    parser.add_argument("--label", type=int, help="class that a model of classes is held to")
    parser.add_argument("--guidance", type=float, default=1.0, help="of that class (default 1)")
    parser.add_argument("--fit", nargs="+", default=[], metavar="NAME=VALUE", help="options of fit_all as JSON")
    parser.add_argument("--bands", type=int, default=0, help="modes in so many bands, of digits or glyphs32")
    parser.add_argument("--nfe", nargs="+", type=int, default=BUDGETS, help="calls, 5 and 10 for --pairs among them")
    parser.add_argument("--seeds", type=int, default=3, help="of fits and of noise (default 3)")
    parser.add_argument("--images", type=int, default=256, help="for the paired error of a seed (default 256)")
    parser.add_argument("--distance", type=int, default=0, help="images for the distance to data; 0 for none")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of runs for wall times; 0 for none")
    parser.add_argument("--keep", type=Path, help="folder that keeps what fits have computed")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    a = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    model = model_of(a.model, a.label, a.guidance)
    options = {name: json.loads(value) for name, _, value in (one.partition("=") for one in a.fit)}
    if a.bands:
        images, basis = SEEN[a.model]
        options |= {"covariance": Spectrum.of_images(load_images(images).float(), basis), "bands": a.bands}
    print(f"libraries' solvers lie at most {max(fitted_peers.agreement().values(), default=0):.1e} from ours")
    rows, medians = [], []
    report: dict = {"errors": rows, "medians": medians, "distances": [], "cost": [], "card": []}
    report |= {
        "model": a.model,
        "label": a.label,
        "guidance": a.guidance,
        "fit": a.fit,
        "bands": a.bands,
        "images": a.images,
    }
    for seed in range(a.seeds):
        start = time.perf_counter()
        solvers = integrators.fit_all(model, a.nfe, seed=seed, keep=a.keep, **options)
        cost = solvers[a.nfe[0]].cost
        print(f"seed {seed}: fitted with {cost} evaluations in {time.perf_counter() - start:.0f} s", flush=True)
        of_images = errors(model, solvers, seed, a.images)
        rows.append(roots(of_images, torch.mean))
        medians.append(roots(of_images, torch.median))
        report["cost"].append(cost)
        report["card"].append({nfe: solver.card for nfe, solver in solvers.items()})
        if a.distance:
            report["distances"].append(distances(model, a.model, solvers, seed, a.distance))
            print(json.dumps(report["distances"][-1]), flush=True)
    print(f"{a.model}: paired error, mean of {a.seeds} seeds of {a.images} images (least and largest ratio)")
    for nfe in a.nfe:
        print(f"{nfe:3} calls: {told(rows, nfe)}\n          of the median image: {told(medians, nfe)}")
    if a.pairs:
        report["wall"] = wall(model, solvers, rows[-1], a.pairs)
        print({k: statistics.median(v) if isinstance(v, list) else v for k, v in report["wall"].items()})
    if a.out:
        a.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
