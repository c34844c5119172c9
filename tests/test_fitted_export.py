"""The code of docs/fitted-elsewhere.md is run as it stands, and gives the images of the solver whose file it reads."""

import re
from pathlib import Path

import pytest
import torch
from exact import images_mixture

from dmcmc_core import integrators, schedules
from dmcmc_core.denoiser import count_nfe
from dmcmc_core.integrators import fitted

PAGE = Path(__file__).resolve().parents[1] / "docs" / "fitted-elsewhere.md"


def code(number):
    """The page's blocks of Python in their order: fit, read, use; scheduler, loop, grid."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)[number]


def run(*numbers, **names):
    for number in numbers:
        exec(compile(code(number), f"block {number} of {PAGE.name}", "exec"), names)
    return names


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def normal(rows, shape):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))


def made(levels, jump):
    """A solver whose numbers are all different: DPM-Solver++(3M) with a little of every past value added."""
    table = fitted.tabulate(integrators.INTEGRATORS["dpmpp_3m"], levels)
    more = 0.01 * torch.rand(table.coefficients.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows, sigmas = table.coefficients + more.tril(1), table.sigmas
    if jump:
        first = torch.zeros(1, rows.shape[1], dtype=torch.float64)
        first[0, 0], sigmas = 0.7, torch.cat([1.5 * sigmas[:1], sigmas])
        rows = torch.cat([first, rows])
    return fitted.Fitted(sigmas, rows, jump)


def test_the_page_samples_as_the_solver_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, noise = images_mixture(10.0), normal(16, (1, 2, 2))
    counted = count_nfe(model)
    names = run(0, 1, model=model)
    names = run(2, **names | {"model": counted, "noise": noise})
    assert counted.calls == 5
    solver = integrators.load_fitted("fitted.safetensors", 5)
    assert solver.card["solver"] == "fitted"
    close(names["images"], solver(model, 10.0 * noise))


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("start", ["zero", "mean"])
def test_with_a_jump_and_about_a_mean(tmp_path, monkeypatch, jump, start):
    monkeypatch.chdir(tmp_path)
    model, noise = images_mixture(10.0), normal(16, (1, 2, 2))
    solver = made(schedules.karras(5, 6.0, 0.01), jump)
    solver = fitted.Fitted(solver.sigmas, solver.coefficients, jump, start)
    solver.save("fitted.safetensors")
    names = run(1)
    for other in ({"nfe": 4, "start": start}, {"nfe": 5, "start": "mean" if start == "zero" else "zero"}):
        with pytest.raises(ValueError, match="has no solver of . calls from a start of"):
            names["read_fitted"]("fitted.safetensors", **other)
    sigmas, coefficients, has_jump = names["read_fitted"]("fitted.safetensors", 5, start)
    mean, seen = model.mean if start == "mean" else 0.0, []
    x = mean + float(sigmas[0]) * noise
    found = names["sample_fitted"](model, x, sigmas, coefficients, has_jump, mean, callback=seen.append)
    assert len(seen) == 5
    close(found, solver(model, x))


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_scheduler_of_the_page_drives_a_network_of_diffusers(tmp_path, monkeypatch, prediction, jump):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'dmcmc-core[diffusers]'")
    from test_diffusers import saved, unet

    from dmcmc_core import load_model

    monkeypatch.chdir(tmp_path)
    net, scheduler = unet("ddpm"), diffusers.DDPMScheduler(prediction_type=prediction)
    model = load_model(saved(tmp_path / "pipeline", net, scheduler))
    solver = made(schedules.karras(5, 20.0, 0.1), jump)
    solver.save("fitted.safetensors")
    noise = normal(2, model.shape)
    wanted = solver(model, float(solver.sigmas[0]) * noise)
    names = run(3, 4, config=scheduler.config, unet=net, noise=noise)
    found = names["x"]
    assert len(names["scheduler"].timesteps) == 5
    assert (found - wanted).norm() < 1e-5 * wanted.norm()  # the library rounds levels and timesteps to float32


def test_the_grid_goes_into_schedulers_of_diffusers(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'dmcmc-core[diffusers]'")
    monkeypatch.chdir(tmp_path)
    config = diffusers.DDPMScheduler().config
    solver = made(schedules.karras(5, 100.0, 0.02), False)
    solver.save("fitted.safetensors")
    names = run(3, 5, config=config, sigmas=solver.sigmas)
    torch.testing.assert_close(names["euler"].sigmas.double(), solver.sigmas, rtol=1e-6, atol=0)
    assert len(names["multistep"].timesteps) == 5
    ratio = names["multistep"].sigmas[:-1].double() / solver.sigmas[:-1]
    assert ((ratio - 1).abs() < 0.3).all()
