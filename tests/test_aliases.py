"""Names that other programs have for samplers, arguments and the command itself."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from exact import F64, images_mixture, mixture

from dmcmc_core import UserError, integrators, schedules
from dmcmc_core.aliases import ALIASES, NEAR, known_as, near, plain
from dmcmc_core.denoiser import epsilon
from dmcmc_core.runs.folder import load_images
from dmcmc_core.runs.make import run
from dmcmc_core.runs.plan import plan
from dmcmc_core.workbench import cli


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("ddim", "euler"),
        ("DDIMScheduler", "euler"),
        ("edm", "heun"),
        ("euler_a", "ancestral"),
        ("EulerAncestralDiscreteScheduler", "ancestral"),
        ("EulerDiscreteScheduler", "euler"),
        ("HeunDiscreteScheduler", "heun"),
        ("dpm++2m", "dpmpp_2m"),
        ("dpmpp2m", "dpmpp_2m"),
        ("dpm++_2m", "dpmpp_2m"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM-Solver++(2M)", "dpmpp_2m"),
        ("sample_dpmpp_2m", "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DEISMultistepScheduler", "deis"),
        ("UniPCMultistepScheduler", "unipc"),
        ("pc", "predictor_corrector"),
    ],
)
def test_other_names(name, here):
    assert known_as(name) == here and known_as(f"dlg+{name}") == f"dlg+{here}"
    assert integrators.INTEGRATORS[name].name == here


def test_tables_name_what_is_here():
    assert {here for here, _ in ALIASES.values()} | set(NEAR.values()) <= integrators.INTEGRATORS.keys()
    assert all(name == plain(name) for name in (*ALIASES, *NEAR))
    assert not ALIASES.keys() & NEAR.keys()
    for name in (*integrators.INTEGRATORS, "fitted", "auto", "dlg+auto", "gddim", "sde+heun"):
        assert known_as(name) == name


def test_ddim_is_euler_in_sigma():
    """The step of Song, Meng & Ermon 2021, eq. 12 without noise, in its own form."""
    model, sigmas = mixture(), schedules.time_uniform(5, 10.0, 0.01)
    x = model.sample(4, 10.0)
    kept = 1 / (1 + sigmas**2)
    u = kept[0].sqrt() * x
    for now, after in zip(kept[:-1], kept[1:], strict=True):
        at = u / now.sqrt()
        sigma = ((1 - now) / now).sqrt()
        u = after.sqrt() * model(at, sigma) + (1 - after).sqrt() * epsilon(model, at, sigma)
    torch.testing.assert_close(integrators.INTEGRATORS["ddim"](model, x, sigmas), u, rtol=1e-10, atol=1e-10)


def test_an_alias_makes_the_same_run_and_is_said(tmp_path, capsys):
    model = images_mixture()
    net = {"progress": False, "num": 4, "nfe": 4, "seed": 0}
    made = [run(model, sampler=s, out=tmp_path / str(i), **net) for i, s in enumerate(("k_euler", "euler"))]
    assert made[0]["recipe"] == made[1]["recipe"] and made[0]["asked"] == made[1]["asked"]
    assert capsys.readouterr().err.count("k_euler is taken as euler: Euler's method in sigma") == 1
    assert plan(model, "edm", 9, 4) == plan(model, "heun", 9, 4)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pndm", "ipndm"),
        ("dlg+LMSDiscreteScheduler", "dlg+ipndm"),
        ("dpmpp_2m_sde", "euler_maruyama"),
        ("rk4", "rho_rk"),
    ],
)
def test_the_nearest_in_meaning_is_named(name, nearest):
    assert near(name) == nearest
    with pytest.raises(
        UserError, match=f"unknown sampler .*: the nearest here is '{nearest.replace('+', '.')}'; known"
    ):
        plan(images_mixture(), name, 9, 4)


def test_what_nobody_knows_gets_no_suggestion_by_letters():
    for name in ("edn", "lcm"):
        with pytest.raises(UserError, match=f"unknown integrator '{name}': known are"):
            integrators.INTEGRATORS[name]
    with pytest.raises(UserError, match="did you mean 'heun'"):
        integrators.INTEGRATORS["huen"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--steps 20", "--steps is no argument here: use --nfe, the budget in network evaluations"),
        ("--batch=8", "--batch is no argument here: use --set block=N, rows of one network evaluation"),
        ("--batch_size 8", "--batch_size is no argument here: use --set block=N, rows of one network evaluation"),
        ("--rho 7", "--rho is no argument here: use --set rho=VALUE"),
        ("--sigma-max 80", "--sigma-max is no argument here: use --set sigma_max=VALUE"),
        ("--scheduler heun", "--scheduler is no argument here: use --sampler"),
    ],
)
def test_arguments_of_other_programs(words, sentence, capsys):
    assert cli.main(["sample", "--model", "digits", *words.split()]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_several_seeds(tmp_path, capsys):
    words = f"sample --model digits --sampler euler --nfe 2 --num 2 --set block=2 --out {tmp_path}"
    assert cli.main([*words.split(), "--seeds", "3-4"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed-3", "seed-4"]
    for seed in (3, 4):
        alone = tmp_path / f"alone-{seed}"
        assert cli.main([*words.replace(str(tmp_path), str(alone)).split(), "--seed", str(seed)]) == 0
        assert torch.equal(load_images(alone), load_images(tmp_path / f"seed-{seed}"))
    for more, sentence in (
        ("--seeds 4-3", "--seeds takes a-b, the first seed and the last, such as 0-2, not '4-3'"),
        ("--seeds 2", "--seeds takes a-b"),
        ("--seeds 1-2 --seed 3", "--seed and --seeds say the same in two ways"),
    ):
        capsys.readouterr()
        assert cli.main([*words.split(), *more.split()]) == 2
        assert sentence in capsys.readouterr().err


def test_version_and_console_script(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("dmcmc-core ")
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"dmcmc": "dmcmc_core.workbench.cli:main"}


def test_rho_bends_the_grid(tmp_path):
    model = images_mixture()
    found = run(model, "heun", 9, 4, 0, tmp_path, {"rho": 3}, progress=False)
    assert found["sigmas"] == schedules.karras(5, 4.0, 0.01, rho=3).tolist()
    assert json.loads((tmp_path / "manifest.json").read_text())["plan"]["rho"] == 3
    assert "rho" not in plan(model, "heun", 9, 4).record()
    chained = plan(model, "dlg+heun", 30, 4, {"rho": 3, "chains": 2, "n_skip": 1, "warmup_levels": 2})
    start = torch.tensor([1.0, 2.0], dtype=F64)
    assert torch.equal(chained.levels_from(model, start), schedules.karras(chained.levels, start, 0.01, rho=3))
    for sampler, settings, message in (
        ("heun", {"rho": 0}, "rho must be a finite number, above 0, not 0"),
        ("unipc", {"rho": 3}, "rho bends the grid of karras, and this one is log_uniform: set schedule=karras too"),
        ("fitted", {"rho": 3, "file": "x"}, "rho is in the file of a fitted solver"),
    ):
        with pytest.raises(UserError, match=message):
            plan(model, sampler, 9, 4, settings)
