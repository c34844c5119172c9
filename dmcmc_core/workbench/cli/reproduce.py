"""``reproduce`` and its kin: notebooks run into figures and tables, exported as a workflow, listed in docs/."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.cli.track import track_argument
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb

if TYPE_CHECKING:
    from dmcmc_core.workbench.experiments import Project
    from dmcmc_core.workbench.experiments.executors import Dask, Processes

EXECUTORS = ("processes", "dask")
EXPORTS = ("snakemake", "keys")


def reproduce_arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``reproduce``."""
    from dmcmc_core.workbench.experiments import PROFILES

    p.add_argument(
        "--profile",
        default="local",
        metavar="P",
        help=f"{', '.join(PROFILES)} (default: local). smoke: under a minute per item; local: minutes on "
        "two cores, fills figures/; full: the same at full size, hours; paper: published checkpoints, CUDA",
    )
    only_argument(p)
    p.add_argument("--list", action="store_true", help="show every item with its verdict and time, and run nothing")
    p.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: 2 if there are two cores)")
    p.add_argument(
        "--gpus", metavar="LIST", help="deal these out to the jobs, such as 0,1; none (default: all visible)"
    )
    p.add_argument(
        "--executor",
        default="processes",
        metavar="E",
        help=f"{' or '.join(EXECUTORS)} (default: processes, of this machine); for Snakemake see the verb export",
    )
    p.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster, such as tcp://host:8786")
    track_argument(p, ["jsonl"], "how many claims of each run hold; jsonl adds a line to exp/runs/PROFILE.jsonl")
    project_arguments(p)


def only_argument(p: argparse.ArgumentParser) -> None:
    """Add ``--only``, which names items."""
    p.add_argument("--only", nargs="+", default=[], metavar="ID", help="these items alone (default: all)")


def project_arguments(p: argparse.ArgumentParser) -> None:
    """Add the hidden arguments that name another project than this one: tests and engines use them."""
    p.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--package", default="dmcmc_core", help=argparse.SUPPRESS)


def reproduce(a: argparse.Namespace) -> int:
    """Run every notebook whose run is not there; return 1 if one failed."""
    from dmcmc_core.workbench import experiments

    project = project_of(a)
    if a.list:
        print(experiments.overview(a.profile, a.only, project))
        return 0
    project.select(a.only, a.profile)  # names are looked at before a cluster is
    outcomes = experiments.reproduce(a.profile, a.only, project=project, executor=_executor(a), track=a.track)
    if any(not outcome.failed for outcome in outcomes):
        print(f"figures and tables are in {project.figures(a.profile) or project.root / 'exp' / 'runs'}")
    return int(any(outcome.failed for outcome in outcomes))


def _executor(a: argparse.Namespace) -> Processes | Dask:
    from dmcmc_core.workbench.experiments import executors

    if a.executor not in EXECUTORS:
        raise unknown("executor", a.executor, EXECUTORS)
    if a.executor == "processes":
        if a.scheduler:
            raise UserError(f"--scheduler {a.scheduler} is of a Dask cluster: it needs --executor dask")
        return executors.Processes(a.jobs, None if a.gpus is None else executors.parse_gpus(a.gpus))
    if not a.scheduler:
        raise UserError("--executor dask needs --scheduler ADDRESS, such as tcp://host:8786, where dask scheduler runs")
    if a.gpus is not None:
        raise UserError("--gpus is of this machine's processes; a Dask worker has its own CUDA_VISIBLE_DEVICES")
    return executors.Dask(a.scheduler, a.jobs)


def project_of(a: argparse.Namespace) -> Project:
    """Return the project that the arguments name, or the one here."""
    from dmcmc_core.workbench.experiments import Project, here

    return Project(a.root.resolve(), a.package) if a.root else here()


REPRODUCE = Verb(
    reproduce,
    reproduce_arguments,
    "Run every notebook of exp/manifest.yaml whose run is not there yet, and fill figures/.\n"
    "A run is named by a hash of all that it depends on: an unchanged one is not repeated, an interrupted\n"
    "one is made again. Ends with a table of items, times and verdicts; status 1 if a notebook failed.",
    f"examples:\n  {PROGRAM} reproduce\n  {PROGRAM} reproduce --profile smoke --only demo\n"
    f"  {PROGRAM} reproduce --profile full --executor dask --scheduler tcp://host:8786",
)


def export_arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    p.add_argument("what", metavar="WHAT", help="snakemake: a Snakefile; keys: each item's run key and outputs as JSON")
    p.add_argument("--out", type=Path, metavar="FILE", help="where to (default: printed)")
    p.add_argument("--profile", default="local", metavar="P", help="as for reproduce (default: local)")
    only_argument(p)
    project_arguments(p)


def export(a: argparse.Namespace) -> int:
    """Write a Snakefile, or print it or the run keys."""
    from dmcmc_core.workbench.experiments import workflow

    if a.what not in EXPORTS:
        raise unknown("export", a.what, EXPORTS)
    if a.what == "snakemake" and a.out:
        print(f"wrote {workflow.write_snakefile(project_of(a), a.out, a.profile, a.only)}")
    elif a.what == "snakemake":
        print(workflow.snakefile(project_of(a), a.profile, a.only), end="")
    elif a.out:
        raise UserError(f"--out {a.out} is for a Snakefile; export keys prints")
    else:
        print(json.dumps(workflow.run_table(project_of(a), a.profile, a.only), indent=1))
    return 0


EXPORT = Verb(
    export,
    export_arguments,
    "Write exp/manifest.yaml as a Snakefile: a rule per item, each running what reproduce runs, so that runs made\n"
    "with either are found by both. It asks this project for the run keys whenever Snakemake reads it, so that\n"
    "changed notebooks, modules and checkpoints are seen; a changed manifest with other items needs a new export.",
    f"examples:\n  {PROGRAM} export snakemake --profile smoke --out Snakefile && snakemake --cores 2\n"
    "  snakemake --cores 4 --config gpu=1 --resources gpu=1   one item at a time for a GPU of this machine\n"
    "  snakemake --executor slurm --jobs 20 --config gpu=1 --default-resources slurm_partition=gpu runtime=240",
)


def run_one_arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``run-one``."""
    p.add_argument("id")
    p.add_argument("--profile", default="local")
    project_arguments(p)
    p.add_argument("--with-parent", action="store_true", help="end when the process that started this one has gone")


def run_one(a: argparse.Namespace) -> int:
    """Run the notebook of one item, as every executor and engine does; return 1 if it failed."""
    from dmcmc_core.workbench import experiments

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel and its sockets are put away
    if a.with_parent:
        experiments.end_with_parent()
    try:
        print(experiments.run_one(project_of(a), a.id, a.profile))
        return 0
    except experiments.Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1


RUN_ONE = Verb(run_one, run_one_arguments)


def docs_arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``docs``."""
    p.add_argument("--profile", default="local", metavar="P", help="whose verdicts to show (default: local)")
    project_arguments(p)


def docs(a: argparse.Namespace) -> int:
    """Rewrite what docs/ takes from the newest runs and from figures/published."""
    from dmcmc_core.workbench import experiments

    for path in experiments.write_pages(project_of(a), a.profile):
        print(f"wrote {path}")
    return 0


DOCS = Verb(docs, docs_arguments)

VERBS_OF_NOTEBOOKS = {"reproduce": REPRODUCE, "export": EXPORT, "docs": DOCS, "run-one": RUN_ONE}
