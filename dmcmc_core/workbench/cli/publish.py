"""``publish``: finished runs into ``figures/published``, which is committed, and the gallery written again."""

from __future__ import annotations

import argparse

from dmcmc_core.workbench.cli.reproduce import project_arguments, project_of
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``publish``."""
    p.add_argument("--profile", default="local", metavar="P", help="local, full or paper (default: local)")
    p.add_argument("--only", nargs="+", default=[], metavar="ID", help="these items alone (default: all)")
    project_arguments(p)


def publish(a: argparse.Namespace) -> int:
    """Publish the items of a profile and return the exit status."""
    from dmcmc_core.workbench import experiments

    project = project_of(a)
    folder = experiments.publish(project, a.profile, a.only)
    print(f"wrote {folder} and {project.root / 'figures' / 'README.md'}")
    return 0


PUBLISH = Verb(
    publish,
    arguments,
    "Copy what the finished runs of a profile made into figures/published, all or nothing, pictures made small\n"
    "and the origin of each item in provenance.json, and write the gallery figures/README.md again.",
    f"examples:\n  {PROGRAM} publish\n  {PROGRAM} publish --profile full --only demo",
)
