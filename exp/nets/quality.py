"""How good the digits net is when integration is fine: python exp/nets/quality.py [FILE] (writes FILE.quality.json).

200 Heun steps from N(data mean, sigma_max^2), three seeds of 600 images, against the 600 held-out digits; and, as what
can be hoped for, the same distance for two parts of the training images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dmcmc_core import metrics
from dmcmc_core.checkpoints import NETS, load_model
from dmcmc_core.data import digits
from dmcmc_core.integrators import heun
from dmcmc_core.nets.features import load_digits_cnn
from dmcmc_core.schedules import karras

N, STEPS, SEEDS = 600, 200, (0, 1, 2)


@torch.inference_mode()
def main(path: str | Path) -> dict:
    model, net = load_model(path), load_digits_cnn()
    train, held_out = digits("train"), digits("heldout")
    reference = metrics.statistics(net(held_out.images))

    def distance(images: torch.Tensor) -> float:
        return metrics.frechet_distance(*metrics.statistics(net(images)), *reference)

    def nearest(images: torch.Tensor) -> torch.Tensor:
        return torch.cdist(images.flatten(1), train.images.flatten(1)).amin(1)

    seeds = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        start = model.mean + model.sigma_max * torch.randn(N, *model.shape, generator=generator)
        images = heun(model, start, karras(STEPS, model.sigma_max, model.sigma_min)).clamp(0, 1).float()
        near = nearest(images)
        share = net.classify(images).bincount(minlength=10) / N
        seeds.append(
            {
                "seed": seed,
                "frechet": distance(images),
                "nearest_train_median": float(near.median()),
                "nearest_train_5_percent": float(near.quantile(0.05)),
                "class_shares": [round(float(s), 3) for s in share],
            }
        )
        print(json.dumps(seeds[-1]), flush=True)
    floor = [distance(train.images[:N]), distance(train.images[-N:])]
    near = nearest(held_out.images)
    mean = sum(s["frechet"] for s in seeds) / len(seeds)
    return {
        "n": N,
        "heun_steps": STEPS,
        "features": "digits-cnn",
        "reference": "digits-heldout",
        "generated": seeds,
        "frechet_mean": mean,
        "frechet_train": floor,
        "ratio": mean / (sum(floor) / len(floor)),
        "held_out_nearest_train_median": float(near.median()),
        "held_out_nearest_train_5_percent": float(near.quantile(0.05)),
    }


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NETS / "digits.safetensors"
    result = main(path)
    path.with_suffix(".quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "generated"}, indent=1))
