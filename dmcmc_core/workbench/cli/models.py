"""``models``: the models that are known, and where the files of the missing ones come from."""

from __future__ import annotations

import argparse
import json

from dmcmc_core.workbench.cli.verb import Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``models``."""
    p.add_argument("--json", action="store_true", help="one JSON array instead of lines")


def models(a: argparse.Namespace) -> int:
    """Print a line for every known model."""
    from dmcmc_core import checkpoints
    from dmcmc_core.workbench import experiments

    found = checkpoints.known(experiments.here().root)
    if a.json:
        print(json.dumps(found, indent=1))
    else:
        width = max(len(m["name"]) for m in found)
        print("\n".join(f"{'here   ' if m['here'] else 'missing'}  {m['name']:<{width}}  {m['about']}" for m in found))
    return 0


MODELS = Verb(models, arguments)
