"""How good the glyphs32 net is: python exp/nets/quality_glyphs.py [FILE] writes FILE.quality.json in ten minutes.

50 steps of Heun from N(data mean, sigma_max^2), three seeds of 320 images, against the 4,000 training images; from the
same starting points with the exact score of those images; and as many exact draws, training images with replacement.
What the net adds to the second row is its error: its size is given too, relative to E[x0 | x, sigma] about the mean.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

from dmcmc_core import metrics
from dmcmc_core.checkpoints import NETS, load_model
from dmcmc_core.data import glyphs32
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.integrators import heun
from dmcmc_core.schedules import karras

N, STEPS, SEEDS, FEATURES = 320, 50, (0, 1, 2), ("random-conv", "glyphs-cnn")
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@torch.inference_mode()
def main(path: str | Path) -> dict:
    model, exact = load_model(path), load_model("glyphs32-exact")
    train, held_out = glyphs32(5000).images.split([4000, 1000])
    references = [metrics.make_reference(train, name, "glyphs32") for name in FEATURES]

    def sample(denoiser: Denoiser) -> Tensor:
        start = exact.mean + exact.sigma_max * torch.randn(N, *exact.shape)
        return heun(denoiser, start, karras(STEPS, exact.sigma_max, exact.sigma_min)).clamp(0, 1).float()

    arms = {
        "net": lambda: sample(model),
        "exact score": lambda: sample(exact),
        "exact draws": lambda: train[torch.randint(len(train), (N,))],
    }
    rows = {arm: [] for arm in arms}
    for arm, make in arms.items():
        for seed in SEEDS:
            torch.manual_seed(seed)
            images = make()
            distances = {r.extractor.name: metrics.measure(images, r)["frechet"] for r in references}
            copies = metrics.memorisation(images, train, held_out)._asdict()
            rows[arm].append({"seed": seed, "frechet": distances, "memorisation": copies})
            print(arm, json.dumps(rows[arm][-1]), flush=True)
    return {
        "n": N,
        "steps": STEPS,
        "integrator": "heun",
        "reference": "glyphs32",
        "frechet": {arm: {name: _spread(made, name) for name in FEATURES} for arm, made in rows.items()},
        "relative_error": {level: relative_error(model, exact, train, level) for level in LEVELS},
        "relative_error_held_out": {level: relative_error(model, exact, held_out, level) for level in LEVELS},
        "rows": rows,
    }


def _spread(rows: list[dict], features: str) -> dict[str, float]:
    values = [row["frechet"][features] for row in rows]
    return {"mean": statistics.fmean(values), "spread": statistics.stdev(values)}


def relative_error(model: Denoiser, exact: Denoiser, images: Tensor, level: float, n: int = 320) -> float:
    """|D - E[x0 | x, sigma]| / |E[x0 | x, sigma] - mean|, root mean squares over ``n`` of the images with noise on."""
    torch.manual_seed(0)
    x, sigma = images[:n] + level * torch.randn_like(images[:n]), torch.tensor(level)
    truth = exact(x, sigma)
    return float((model(x, sigma) - truth).norm() / (truth - exact.mean).norm())


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NETS / "glyphs32.safetensors"
    result = main(path)
    path.with_suffix(".quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
