"""How good the digits net is when integration is fine: python exp/nets/quality.py [FILE] writes FILE.quality.json.

200 steps of Heun and of Heun with churn from N(data mean, sigma_max^2), three seeds of 600 images, against the 600
held-out digits. Beside it what can be hoped for: the same distance for parts of the training images, and for as many
images drawn from them with replacement, which is what independent samples of the training distribution would be.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch

from dmcmc_core import metrics
from dmcmc_core.checkpoints import NETS, load_model
from dmcmc_core.data import digits
from dmcmc_core.integrators import heun, heun_churn
from dmcmc_core.nets.classifiers import load_digits_cnn
from dmcmc_core.schedules import karras

N, STEPS, SEEDS = 600, 200, (0, 1, 2)


@torch.inference_mode()
def main(path: str | Path) -> dict:
    model, net = load_model(path), load_digits_cnn()
    train, held_out = digits("train"), digits("heldout")
    reference = metrics.statistics(net(held_out.images))

    def distance(images: torch.Tensor) -> float:
        return metrics.frechet_distance(*metrics.statistics(net(images)), *reference)

    def sample(integrate, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        start = model.mean + model.sigma_max * torch.randn(N, *model.shape)
        return integrate(model, start, karras(STEPS, model.sigma_max, model.sigma_min)).clamp(0, 1).float()

    generated = {"heun": [], "heun_churn": []}
    for integrate in (heun, heun_churn):
        for seed in SEEDS:
            images = sample(integrate, seed)
            check = metrics.memorisation(images, train.images, held_out.images)
            shares = net.classify(images).bincount(minlength=10) / N
            generated[integrate.__name__].append(
                {
                    "seed": seed,
                    "frechet": distance(images),
                    "memorisation": check._asdict(),
                    "class_shares": [round(float(s), 3) for s in shares],
                }
            )
            print(integrate.__name__, json.dumps(generated[integrate.__name__][-1]), flush=True)
    halves = [distance(train.images[:N]), distance(train.images[-N:])]
    replaced = [distance(train.images[torch.randint(len(train.images), (N,))]) for _ in range(30)]
    means = {name: sum(r["frechet"] for r in rows) / len(rows) for name, rows in generated.items()}
    floor = sum(halves) / len(halves)
    return {
        "n": N,
        "steps": STEPS,
        "features": "digits-cnn",
        "reference": "digits-heldout",
        "generated": generated,
        "frechet": means,
        "frechet_train_parts": halves,
        "frechet_train_with_replacement": {"mean": statistics.fmean(replaced), "spread": statistics.stdev(replaced)},
        "ratio": {name: mean / floor for name, mean in means.items()},
    }


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NETS / "digits.safetensors"
    result = main(path)
    path.with_suffix(".quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "generated"}, indent=1))
