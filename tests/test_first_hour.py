"""The first hour with a model of one's own: images in one line and a comparison in one, equal to the long way."""

import sys
from pathlib import Path

import pytest
import torch

import dmcmc_core
from dmcmc_core import dmcmc, integrators, load_model, metrics, schedules
from dmcmc_core.data import from_uint8, to_uint8
from dmcmc_core.denoiser import Adapter, InBlocks
from dmcmc_core.streams import Streams

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import sound_files  # noqa: E402

KEPT = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
N, NFE, BLOCK = 4, 6, 4


class Net(torch.nn.Module):
    """A small network of images and of noise levels or times; it learns nothing here."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 1, 3, padding=1)
        )
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, at):
        return self.dropout(self.layers(x / (1 + at[:, None, None, None].to(x))))


def own_module(folder):
    return Net(), {"shape": (1, 8, 8)}, Adapter(Net(), (1, 8, 8))


def own_discrete_network(folder):
    return Adapter.from_ddpm(Net(), KEPT, shape=(1, 8, 8)), {}, Adapter.from_ddpm(Net(), KEPT, shape=(1, 8, 8))


def edm_file(folder):
    path = sound_files.write_edm(folder)
    return path, {}, load_model(path)


def diffusers_folder(folder):
    pytest.importorskip("diffusers", reason="needs diffusers: pip install 'dmcmc-core[diffusers]'")
    path = sound_files.write_diffusers(folder)
    return path, {}, load_model(path)


HOURS = [own_module, own_discrete_network, edm_file, diffusers_folder]


def the_long_way(model, integrator, nfe, seed):
    """What a user would write with the core alone: noise, a grid, an integrator, 256 levels."""
    model, noise = InBlocks(getattr(model, "denoiser", model), BLOCK), Streams(seed, "image", range(N))
    entry = integrators.INTEGRATORS[integrator]
    start = "zero" if getattr(model, "mean", None) is None else "mean"
    x = dmcmc.prior(model, noise, N, start)
    grid = schedules.SCHEDULES[entry.schedule](entry.levels(nfe), model.sigma_max, model.sigma_min)
    with torch.no_grad():
        images = entry(model, x, grid, noise=noise)
    return from_uint8(to_uint8(images, model.data_range), model.data_range)


@pytest.mark.parametrize("hour", HOURS)
def test_images_in_one_line(hour, tmp_path):
    model, how, written_out = hour(tmp_path)
    images = dmcmc_core.sample(model, "dpmpp_2m", nfe=NFE, n=N, seed=1, block=BLOCK, **how)
    assert torch.equal(torch.as_tensor(images), the_long_way(written_out, "dpmpp_2m", NFE, 1))
    assert images.nfe == NFE and images.std() > 0
    assert images.save(tmp_path / "x.png").stat().st_size > 0


@pytest.mark.parametrize("hour", HOURS)
def test_a_comparison_in_one_line(hour, tmp_path):
    model, how, written_out = hour(tmp_path)
    model = Adapter(model, **how) if how else model
    found = dmcmc_core.compare(
        model, ["dpmpp_2m", "heun"], NFE, n=N, seeds=[5], settings={"block": BLOCK}, cache_dir=tmp_path
    )
    for row, name in zip(found.rows, ("dpmpp_2m", "heun"), strict=True):
        own, accurate = (the_long_way(written_out, *one, 5) for one in ((name, NFE), ("unipc", 60)))
        assert row["paired_error"].mean == pytest.approx(metrics.paired_error(own, accurate), rel=1e-12)
    assert len(found.pairs) == 1 and "paired error" in str(found)
