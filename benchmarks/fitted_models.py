"""Models on which no solver was tuned: one of a variance-preserving diffusion, and one with classes in EDM's format.

    python benchmarks/fitted_models.py FILE.pkl [--steps N]

trains a small SongUNet on the digits with their classes, one label in ten left out, and writes it as EDM does.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import sound_files
import torch
from torch import nn

from dmcmc_core.data import digits
from dmcmc_core.denoiser import like
from dmcmc_core.guidance import Conditioned
from dmcmc_core.workbench.studies.fitted_solvers import load

SONG = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10, "label_dropout": 0.1}
SONG |= {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0}
SIGMA_DATA, P_MEAN, P_STD = 0.5, -1.2, 1.2  # of EDM
BATCH, RATE, AVERAGE = 64, 3e-3, 0.998


def model_of(name: str, label: int | None, guidance: float) -> Any:
    """Return a model by its name or file, held to a class where one is asked for."""
    model = load(name)
    return model if label is None else Conditioned(model, label, guidance)


def trained(steps: int) -> Any:
    """Train a denoiser of digits in [-1, 1] with their classes (Karras et al. 2022, eq. 8)."""
    torch.manual_seed(0)
    data = digits()
    images, classes = 2 * data.images - 1, data.labels
    net = sound_files.edm_net(SONG).train()
    average, optimizer = copy.deepcopy(net).eval().requires_grad_(False), torch.optim.Adam(net.parameters(), lr=RATE)
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        labels = torch.where(torch.rand(BATCH) < SONG["label_dropout"], -1, classes[rows])
        sigma = (P_MEAN + P_STD * torch.randn(BATCH)).exp()
        x0 = images[rows]
        answer = net(x0 + like(sigma, x0) * torch.randn_like(x0), sigma, labels)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight * (answer - x0).square().flatten(1).mean(1)).mean()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(now, 1 - min(AVERAGE, step / (step + 10)))
        if step % 500 == 0 or step + 1 == steps:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=2500, help="of training (default 2500)")
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.file.write_bytes(sound_files.edm_bytes(sound_files.edm_content(SONG, trained(a.steps))))


if __name__ == "__main__":
    main()
