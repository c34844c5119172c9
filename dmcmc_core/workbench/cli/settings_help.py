"""The list of all settings at the end of ``sample --help``, made from where each is defined."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

SAMPLERS = (
    "euler, heun, heun_churn, probability_flow, rk45, reverse_diffusion, euler_maruyama, ancestral, dpmpp_2m, "
    "predictor_corrector, deis, ipndm, rho_rk, dpmpp_3m, unipc"
)


def all_settings() -> str:
    """Every setting of ``sample``, taken from where it is defined; in brackets what it is unless set."""
    import inspect

    from dmcmc_core import gddim, integrators
    from dmcmc_core.dmcmc import ChainSettings
    from dmcmc_core.runs import sampling_run

    doc = inspect.getdoc(ChainSettings).partition("Attributes:\n")[2].partition("Raises:")[0]
    doc = re.sub(r":\w+:`([^`]*)`", r"\1", doc).replace("``", "").replace("None", "null")
    default = vars(ChainSettings()) | {"n_skip": "a third of what warm-up leaves of the budget", "start": "as above"}
    chains = {
        name: f"{' '.join(text.split()).rstrip('.')} ({_yaml(default[name])})"
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", doc, re.MULTILINE)
    }
    options = {}
    for name, entry in integrators.INTEGRATORS.items():
        found = {p.name: p.default for p in inspect.signature(entry.function).parameters.values()} | entry.defaults
        own = [o for o in found if o in integrators.OPTIONS or (o == "last" and entry.last)]
        found |= {"tol": "the smallest that the budget pays for"}
        if own:
            choice = {"last": ": " + " or ".join(_yaml(v) for v in entry.last)}
            options[name] = ", ".join(f"{o}{choice.get(o, '')} ({_yaml(found[o])})" for o in own)
    linear = {
        sampler: ", ".join(f"{o} ({_yaml(found[o].default)})" for o in found if o in gddim.options_of(name) - {"last"})
        for sampler, name in sampling_run.LINEAR_SAMPLERS.items()
        if (found := inspect.signature(gddim.SAMPLERS[name]).parameters)
    }
    lines = []
    for title, named in (
        ("settings of every sampler, with their defaults", sampling_run.SETTINGS),
        ("settings of the chains (dlg+NAME)", chains),
        ("options of the integrators", options),
        ("settings of linear diffusions (gddim, sde+NAME)", sampling_run.OF_LINEAR),
        ("options of their samplers", linear),
    ):
        lines.append(f"\n{title}:")
        for name, text in named.items():
            lines += textwrap.wrap(f"{name:<20}  {text}", 118, initial_indent="  ", subsequent_indent=" " * 24)
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """A value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)
