"""Sampling on kept times, against the loops of guided-diffusion."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core.errors import UserError
from dmcmc_core.improved_ddpm import ancestral, ddim, kept_times
from dmcmc_core.nets.scalings import discrete_betas

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"reference outputs are not at {PARITY}")
CASES = ("learned_ddpm20", "learned_cosine_ddpm15", "fixed_large_ddim10", "fixed_large_ddpm12")


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(PARITY / "guided_diffusion_samplers.npz").items()}


def mixture(arrays: dict[str, torch.Tensor], learned: bool, seen: list[float]):
    """The network of the reference: epsilon of a Gaussian mixture whose own schedule is an exponential."""
    means, weights, stds = (arrays[name] for name in ("means", "weights", "stds"))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t[0].item())
        t, x64 = t.double(), x.double()
        a = torch.exp(-(1e-4 * t + 1e-5 * t**2)).reshape(-1, 1, 1, 1)
        gaps = x64[:, None] - a[:, None].sqrt() * means
        variances = a[:, 0] * stds.square().reshape(1, -1, 1) + 1 - a[:, 0]
        variances = variances.reshape(len(x), -1)
        logs = (
            weights.log() - gaps.square().flatten(2).sum(-1) / (2 * variances) - means[0].numel() / 2 * variances.log()
        )
        share = (logs.softmax(1) / variances)[:, :, None, None, None]
        epsilon = ((1 - a).sqrt() * (share * gaps).sum(1)).float()
        return torch.cat([epsilon, x.tanh()], 1) if learned else epsilon

    return network


@pytest.mark.parametrize("name", CASES)
def test_loops_are_those_of_guided_diffusion(arrays, name):
    about = json.loads((PARITY / "guided_diffusion_samplers.json").read_text())[name]
    steps, seen, found = about["diffusion_steps"], [], []
    draws = iter(arrays[f"{name}.noise"])
    shared = {
        "network": mixture(arrays, about["learn_sigma"], seen),
        "x": arrays[f"{name}.x_init"],
        "betas": discrete_betas(about["noise_schedule"], steps),
        "times": kept_times(steps, about["timestep_respacing"]),
        "unit": 1000 / steps if about["rescale_timesteps"] else 1.0,
        "clip": about["clip_denoised"],
        "noise": lambda _: next(draws),
        "callback": found.append,
    }
    if about["kind"] == "ddim":
        ddim(eta=about["eta"], **shared)
    else:
        ancestral(variance=about["variance"], **shared)
    assert (torch.stack(found) - arrays[f"{name}.trajectory"]).abs().max() < 5e-6
    np.testing.assert_allclose(seen, arrays[f"{name}.network_t"], rtol=1e-6)


def test_kept_times_are_those_of_guided_diffusion():
    schedules = np.load(PARITY / "guided_diffusion_schedules.npz")
    for name in (name for name in schedules if name.startswith("respace")):
        _, steps, spacing = name.split("_")
        assert kept_times(int(steps), spacing) == schedules[name].tolist()
    assert kept_times(10, "2,3") == [0, 4, 5, 7, 9]


def test_what_is_no_spacing_or_variance_is_refused(arrays):
    for spacing, match in (
        ("ddim300", "no whole stride through 1000 times keeps 300"),
        ("many", "a spacing must be ddimN or numbers"),
        ("0", "a section of 1000 times keeps 1 to 1000 of them, not 0"),
        ("900,900", "a section of 500 times"),
    ):
        with pytest.raises(UserError, match=match):
            kept_times(1000, spacing)
    betas, x = discrete_betas("linear", 10), torch.zeros(1, 3, 2, 2)
    with pytest.raises(UserError, match="says nothing of its variance"):
        ancestral(lambda x, t: x, x, betas, [0, 5])
    with pytest.raises(UserError, match="variance must be"):
        ancestral(lambda x, t: x, x, betas, [0, 5], variance="learned")
    with pytest.raises(UserError, match="times must rise within 0 to 9"):
        ddim(lambda x, t: x, x, betas, [0, 10])
