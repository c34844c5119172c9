"""``doctor``: what is here, what is missing, and what each missing thing costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dmcmc_core.workbench.cli.verb import Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``doctor``."""
    p.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    p.add_argument("--weights", type=Path, metavar="FILE", help="where the Inception weights are")


def doctor(a: argparse.Namespace) -> int:
    """Print what was found."""
    from dmcmc_core.workbench.doctor import examine, report

    found = examine(weights=a.weights)
    print(json.dumps(found, indent=1) if a.json else report(found))
    return 0


DOCTOR = Verb(doctor, arguments)
