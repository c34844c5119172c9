"""The settings of ``sample`` as its help lists them, taken from where they are defined; nothing here needs torch."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dmcmc_core.chains import ChainSettings
from dmcmc_core.runs.settings import LINEAR_SAMPLERS, LINEAR_SETTINGS, SETTINGS, SOLVER
from dmcmc_core.samplers import FITTED, INTEGRATORS, Integrator

SAMPLERS = ", ".join(INTEGRATORS)
BUDGETED = {"n_skip": "a third of what warm-up leaves of the budget", "start": "as above"}
"""Settings of the chains that a run chooses otherwise than :class:`ChainSettings` does."""


def all_settings() -> str:
    """Return every setting of ``sample``, and in brackets what it is unless set."""
    chains = {f.name: f"{f.metadata['help']} ({_yaml(BUDGETED.get(f.name, f.default))})" for f in fields(ChainSettings)}
    sections = {
        "settings of every sampler, with their defaults": SETTINGS,
        "settings of the chains (dlg+NAME)": chains,
        "options of the integrators": {n: _options(entry) for n, entry in INTEGRATORS.items() if entry.options}
        | {FITTED.name: f"file, {SOLVER}"},
        "settings of linear diffusions (gddim, sde+NAME)": LINEAR_SETTINGS,
        "options of their samplers": {name: _listed(options) for name, options in LINEAR_SAMPLERS.items()},
    }
    lines = []
    for title, named in sections.items():
        lines.append(f"\n{title}:")
        for name, text in named.items():
            lines += textwrap.wrap(f"{name:<20}  {text}", 118, initial_indent="  ", subsequent_indent=" " * 24)
    return "\n".join(lines)


def _options(entry: Integrator) -> str:
    shown = {**entry.options, **entry.defaults}
    if entry.calls is None:
        shown["tol"] = "the smallest that the budget pays for"
    return _listed(
        {(f"last: {' or '.join(map(_yaml, entry.last))}" if o == "last" else o): v for o, v in shown.items()}
    )


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_yaml(default)})" for name, default in options.items())


def _yaml(value: Any) -> str:
    """Return a value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)
