"""Why are 1000 iterations of the predictor-corrector worse than 200 on the digits? Where is the harm done?

    python benchmarks/long_walks.py --levels 1000 --out long-walks.csv

The plain sampler of PDS runs with one Langevin correction at every level, at none, or at those of a range of noise.
The control asks the exact score of the training images in the place of the network. Beside the Fréchet distance stands
how images are shared out among the classes, that of the nearest training image, as chi² against their shares there.
"""

from __future__ import annotations

import argparse
import math

import torch
from scipy import stats
from torch import Tensor

from dmcmc_core import data, metrics, schedules
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.denoiser import Denoiser, score, walk
from dmcmc_core.integrators.reverse_diffusion import langevin_correction, reverse_diffusion
from dmcmc_core.report import testbed
from dmcmc_core.report.detectable import welch
from dmcmc_core.report.tables import in_words, spread_of, write_csv
from dmcmc_core.starts import prior
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.pds import exact_model

RANGES = {
    "everywhere": (0.0, math.inf),
    "nowhere": (0.0, 0.0),
    "above 1": (1.0, math.inf),
    "0.2 to 1": (0.2, 1.0),
    "below 0.2": (0.0, 0.2),
}
"""Where corrections are made -> noise levels, in units of the data's range."""


@torch.no_grad()
def sample(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Streams, where: tuple[float, float], snr: float
) -> Tensor:
    """Run the predictor-corrector with corrections at the levels of ``where`` alone."""
    m, one = walk(denoiser), torch.ones(())
    for i in range(len(sigmas) - 1):
        now = sigmas[i]
        if where[0] <= now < where[1]:
            x = langevin_correction(m, x, score(denoiser, x, now), noise(x), snr, False, one)
        end = None if i == len(sigmas) - 2 else "sample"
        x = reverse_diffusion(denoiser, x, sigmas[i : i + 2], noise=noise, last=end)
    return x


def shares(exact: EmpiricalData, images: Tensor) -> Tensor:
    """Return how many images have each class, that of the nearest training image."""
    labels = data.digits("train").labels
    return torch.bincount(labels[exact.squared_distances(images).argmin(1)], minlength=10)


def main() -> None:
    """Run every arm, print a row each and write them."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--levels", type=int, nargs="+", default=[1000])
    p.add_argument("--seeds", type=int, default=6)
    p.add_argument("--n", type=int, default=128, help="images a seed")
    p.add_argument("--snr", type=float, default=0.16)
    p.add_argument("--scores", nargs="+", default=["network", "exact"])
    p.add_argument("--ranges", nargs="+", default=list(RANGES))
    p.add_argument("--out", default="long-walks.csv")
    a = p.parse_args()
    bed = testbed.load("digits", features="digits-cnn", reference="digits-heldout", train_reference="digits-train")
    exact, labels = exact_model(bed), data.digits("train").labels
    expected, rows, first = torch.bincount(labels).double() / len(labels), [], {}
    for levels in a.levels:
        for kind in a.scores:
            model = bed.model if kind == "network" else exact
            sigmas = schedules.log_uniform(levels, bed.model.sigma_max, bed.model.sigma_min)
            for where in a.ranges:
                made = []
                for seed in range(a.seeds):
                    noise = Streams(seed, "image", range(a.n))
                    x = prior(model, noise, a.n, "zero")
                    made.append(sample(model, x, sigmas, noise, RANGES[where], a.snr))
                found = spread_of(metrics.measure(bed.unit(x), bed.reference)["frechet"] for x in made)
                counts = sum(shares(exact, x) for x in made)
                test = stats.chisquare(counts, expected * counts.sum())
                row = {"score": kind, "levels": levels, "corrections": where, "frechet": found, "chi2": test.statistic}
                row |= {"p": test.pvalue, "n": a.n} | {f"class {k}": int(c) for k, c in enumerate(counts)}
                first.setdefault((levels, kind), found)
                against = welch(found, first[levels, kind])
                print(
                    f"{kind} {levels} {where}: {in_words(found)}, p {against.p:.2g} against {a.ranges[0]}; "
                    f"chi2 {test.statistic:.1f}, p {test.pvalue:.2g}; {counts.tolist()}",
                    flush=True,
                )
                rows.append(row)
                write_csv(rows, list(row), a.out)


if __name__ == "__main__":
    main()
