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
from torch import Tensor, nn

from dmcmc_core import checkpoints, load_model
from dmcmc_core.checkpoints.catalogue import epsilon_names
from dmcmc_core.data import digits
from dmcmc_core.denoiser import BLOCK, Adapter, InBlocks, like
from dmcmc_core.guidance import Conditioned
from dmcmc_core.linear_sde import VP

SONG = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10, "label_dropout": 0.1}
SONG |= {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0}
SIGMA_DATA, P_MEAN, P_STD = 0.5, -1.2, 1.2  # of EDM
BATCH, RATE, AVERAGE = 64, 3e-3, 0.998


class OfVP(nn.Module):
    """The denoiser that a network epsilon(u, t) of the variance-preserving diffusion is.

    u = (x0 + s z) / sqrt(1 + s^2) for images x0 in [-1, 1], at the time at which VP has that noise; D = x - s epsilon.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.low = net, net.data_range[0]
        self.scale = (net.data_range[1] - net.data_range[0]) / 2

    def ends(self) -> tuple[float, float]:
        """Return the noise levels of VP's first time and of its last, in units of the data."""
        sde = self.net.sde
        low, high = (self.scale * math.sqrt(math.expm1(-2 * float(sde.log_gain(t)))) for t in (sde.t_min, 1.0))
        return low, high

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x0 | x, sigma] for x (B, C, H, W), sigma (B,)."""
        sde, s, x = self.net.sde, sigma.double() / self.scale, (x - self.low) / self.scale - 1
        rise, log = sde.beta_max - sde.beta_min, torch.log1p(s**2)
        t = (2 * log / (sde.beta_min + (sde.beta_min**2 + 2 * rise * log).sqrt())).clamp(
            sde.t_min, 1.0
        )  # float32 sigma
        clean = x - like(s, x) * self.net(x / like((1 + s**2).sqrt(), x), t)
        return self.low + self.scale * (clean + 1)


def model_of(name: str, label: int | None, guidance: float) -> Any:
    """Return a model by its name or file, held to a class where one is asked for."""
    if name in epsilon_names():
        net = checkpoints.load_epsilon(name)
        if type(net.sde) is not VP:
            raise SystemExit(f"{name} is of {type(net.sde).__name__}: only VP is a denoiser of white noise here")
        made = OfVP(net)
        low, high = made.ends()
        about = {"data_range": net.data_range, "sigma_min": low, "sigma_max": high, "mean": net.mean}
        return InBlocks(Adapter(made, net.shape, **about), BLOCK)
    model = load_model(name)
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
