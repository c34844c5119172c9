"""The verb publish: finished runs into ``figures/published``, which is committed, and the gallery written again."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--profile", default="local", metavar="P", help="local, full or paper (default: local)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="these items alone (default: all)")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--package", default="dmcmc_core", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Publish the items of a profile and return the exit status."""
    from dmcmc_core.workbench.experiments import Project, here, publish

    project = Project(args.root.resolve(), args.package) if args.root else here()
    folder = publish(project, args.profile, args.only)
    print(f"wrote {folder} and {project.root / 'figures' / 'README.md'}")
    return 0
