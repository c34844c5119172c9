"""How the mixtures that ship were chosen, and how well they know images that they were not fitted to.

    python benchmarks/mixtures.py digits [--components 1 10 20 40] [--rank 16 32 48] [--prior 0 20 60]
    python benchmarks/mixtures.py glyphs32 --components 10 20 40 --rank 50 100 200 --prior 20

First every choice is fitted to three quarters of the training images: mean log-likelihood in nats of these and of the
last quarter, at sigma = 0.01, the lowest level that the models are asked at, with noise of that level on the images.
Then the mixture that ships, fitted to all of them, and two single Gaussians, with the sample covariance and with that
of Ledoit and Wolf: the same on images held out (600 digits; 1,000 glyphs of another seed), and the root mean squared
error of the denoiser there at three levels.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from dmcmc_core.analytic import GaussianMixture, LowRankMixture
from dmcmc_core.checkpoints import load_model, mixtures
from dmcmc_core.data import digits, glyphs32

HELD_OUT = {
    "digits": lambda: digits("heldout").images,
    "glyphs32": lambda: glyphs32(1000, seed=1).images,
}
LEVELS = (0.1, 0.3, 1.0)


def noisy(images: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images.double() + sigma * noise, torch.tensor(sigma, dtype=torch.float64)


def likelihood(model, images: Tensor) -> float:
    return model.log_prob(*noisy(images, 0.01)).mean().item()


def error(model, images: Tensor, sigma: float) -> float:
    return (model(*noisy(images, sigma)) - images).square().mean().sqrt().item()


def gaussian(images: Tensor, covariance) -> GaussianMixture:
    x = images.double().flatten(1)
    return GaussianMixture(images.double().mean(0, keepdim=True), covariance(x)[None], torch.ones(1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", choices=HELD_OUT)
    p.add_argument("--components", type=int, nargs="*", default=[1, 10, 20, 40])
    p.add_argument("--rank", type=int, nargs="*", default=[16, 32, 48])
    p.add_argument("--prior", type=float, nargs="*", default=[0.0, 20.0, 60.0])
    a = p.parse_args()
    name = f"{a.data}-mixture"
    images, held_out = mixtures.MIXTURES[name].images(), HELD_OUT[a.data]()
    own, others = images[: len(images) * 3 // 4], images[len(images) * 3 // 4 :]
    print(f"{len(own)} images, and {len(others)} others; nats at sigma = 0.01")
    for prior in a.prior:
        for components in a.components:
            for rank in a.rank:
                start = time.perf_counter()
                model = LowRankMixture(*mixtures.fit(own, components, rank, prior).values())
                here, there = (likelihood(model, some) for some in (own, others))
                spent = time.perf_counter() - start
                print(
                    f"K = {components:3} r = {rank:3} prior {prior:4g}: {here:9.2f} {there:9.2f}  ({spent:.0f} s)",
                    flush=True,
                )
    single = {
        "sample covariance": lambda x: torch.cov(x.T, correction=0),
        "Ledoit and Wolf": lambda x: torch.from_numpy(ledoit_wolf(x.numpy())[0]),
    }
    print(f"{len(images)} images, and {len(held_out)} held out; nats at sigma = 0.01, errors at {LEVELS}")
    models = {name: lambda: load_model(name)} | {n: lambda c=c: gaussian(images, c) for n, c in single.items()}
    for called, make in models.items():
        model = make()
        here, there = (likelihood(model, some) for some in (images, held_out))
        errors = "  ".join(f"{error(model, held_out, sigma):.4f}" for sigma in LEVELS)
        print(f"{called:20} {here:9.2f} {there:9.2f}  {errors}", flush=True)


if __name__ == "__main__":
    main()
