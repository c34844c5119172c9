"""The tables that help is made of, against the functions and names that they speak of."""

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from dmcmc_core import data, gddim, integrators, linear_sde, noise_level, samplers, schedules
from dmcmc_core.chains import RULES, ChainSettings
from dmcmc_core.denoiser import BLOCK
from dmcmc_core.integrators.runge_kutta import RUNGE_KUTTA
from dmcmc_core.runs import settings

ROOT = Path(__file__).resolve().parents[1]


def keywords(function, *without):
    """The keyword-only arguments of a function and their defaults."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name not in without}


@pytest.mark.parametrize("name", samplers.INTEGRATORS)
def test_an_entry_has_the_options_of_its_function(name):
    entry = integrators.INTEGRATORS[name]
    assert keywords(entry.function, "noise", "callback") == dict(entry.options)
    assert list(keywords(entry.function, "noise", "callback")) == list(entry.options), "help lists them in this order"
    assert entry.defaults.keys() <= entry.options.keys()
    for option, default in entry.options.items():
        entry.check(**{option: default})


def test_every_integrator_has_an_entry_and_a_function():
    assert list(integrators.INTEGRATORS) == list(samplers.INTEGRATORS) == [f.__name__ for f in integrators.FUNCTIONS]
    with pytest.raises(TypeError, match="this entry cannot"):
        samplers.INTEGRATORS["heun"](None, None, None)


@pytest.mark.parametrize("name", settings.LINEAR_SAMPLERS)
def test_samplers_of_linear_diffusions_have_the_options_of_their_functions(name):
    function = gddim.SAMPLERS[settings.LINEAR_NAMES[name]]
    assert keywords(function, "noise", "history", "earlier", "last") == settings.LINEAR_SAMPLERS[name]


def test_names_in_the_tables_are_those_that_there_are():
    assert settings.SCHEDULES == tuple(schedules.SCHEDULES)
    assert settings.DIFFUSIONS == tuple(linear_sde.DIFFUSIONS)
    assert settings.CASTS == data.CASTS and settings.BLOCK == BLOCK
    assert set(settings.LINEAR_NAMES.values()) == set(gddim.SAMPLERS) - {"rk45"}
    assert set(noise_level.RULES) == set(RULES)
    assert {name: len(weights) for name, (_, weights) in RUNGE_KUTTA.items()} == samplers.STAGES


def test_every_setting_of_the_chains_says_what_it_is():
    assert all(field.metadata["help"] for field in fields(ChainSettings))


@pytest.mark.parametrize("words", [["models"], ["sample", "--help"], ["--help"]])
def test_help_and_models_do_without_torch(words):
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from dmcmc_core.workbench.cli import main\n"
        f"try:\n    status = main({words!r})\nexcept SystemExit as end:\n    status = end.code\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
