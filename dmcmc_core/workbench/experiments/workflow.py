"""The manifest as a Snakefile: for local cores, SLURM and whatever else Snakemake has an executor for.

Every rule runs the command that the other engines run. Snakemake does not see what a notebook imports, so the
Snakefile asks this package for the keys whenever it is read: outputs lie in folders named by them, and with another key
there is another run to make.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError
from dmcmc_core.files import write_text
from dmcmc_core.workbench.experiments.keys import check_parameters, ingredients, run_key
from dmcmc_core.workbench.experiments.manifest import Item, Project
from dmcmc_core.workbench.experiments.runs import run_files

MADE = "# Made from exp/manifest.yaml by python -m dmcmc_core export snakemake"

HEAD = """{made} --profile {profile}{only}
# snakemake -s FILE --cores 2                              processes of this machine
# snakemake -s FILE --executor slurm --jobs 20             SLURM, with snakemake-executor-plugin-slurm
# --config threads=4 gpu=1 sets what each item asks for, --set-resources ITEM:runtime=60 more for one of them.
# On this machine gpu limits nothing by itself. One item at a time for a GPU, whatever the cores:
# snakemake -s FILE --cores 4 --config gpu=1 --resources gpu=1
# gpu=0 does not mean none: --config gpu=0 asks for no turn, --resources gpu=0 lowers what items ask for to 0, and all
# run at once. Snakemake deals no GPUs out: each item sees all that CUDA_VISIBLE_DEVICES names, and none where it is "".
import json, os, shlex, subprocess

PYTHON = config.get("python", {python!r})  # an environment with this project's requirements
ROOT, PROFILE, PACKAGE = {root!r}, {profile!r}, {package!r}
ITEMS = {items}
THREADS, GPU = int(config.get("threads", 1)), int(config.get("gpu", {gpu}))
COMMAND = shlex.join([PYTHON, "-m", "dmcmc_core"])
PLACE = shlex.join(["--root", ROOT, "--package", PACKAGE, "--profile", PROFILE])
os.environ["PYTHONPATH"] = os.pathsep.join([{paths!r}, *filter(None, [os.environ.get("PYTHONPATH")])])
RUNS = json.loads(subprocess.check_output(
    [PYTHON, "-m", "dmcmc_core", "export", "keys", "--root", ROOT, "--package", PACKAGE, "--profile", PROFILE,
     "--only", *ITEMS], cwd=ROOT))

workdir: ROOT
localrules: all, show

OUTPUTS = [name for item in ITEMS for name in RUNS[item]["outputs"]]

rule all:  # the runs too: Snakemake does not look for what only stands between
    input: RUNS["shown"], OUTPUTS

rule show:  # figures, claims and results, all from finished runs
    input: OUTPUTS
    output: RUNS["shown"]
    shell: "{{COMMAND}} reproduce {{PLACE}} --only {{ITEMS}}"
"""

RULE = """
rule {rule}:
    output: RUNS[{id!r}]["outputs"]
    log: RUNS[{id!r}]["log"]
    params: key=RUNS[{id!r}]["key"]
    threads: THREADS
    resources: gpu=GPU
    shell: "OMP_NUM_THREADS={{threads}} {{COMMAND}} run-one {id} {{PLACE}} > {{log:q}} 2>&1"
"""


def snakefile(project: Project, profile: str, only: Sequence[str] = ()) -> str:
    """Return the Snakefile of the items named, or of all that have the profile.

    Raises:
        UserError: for unknown names and parameters, as reproduce does.
    """
    items = project.select(only, profile)
    for item in items:
        check_parameters(project, item, profile)
    ids = [item.id for item in items]
    head = HEAD.format(
        made=MADE,
        only=f" --only {' '.join(only)}" if only else "",
        profile=profile,
        python=sys.executable,
        root=str(project.root),
        package=project.package,
        items=ids,
        gpu=int(profile == "paper"),
        paths=os.pathsep.join([str(project.root), str(Path(__file__).resolve().parents[3])]),
    )
    return head + "".join(RULE.format(rule=id.replace("-", "_"), id=id) for id in ids)


def write_snakefile(project: Project, out: Path, profile: str, only: Sequence[str] = ()) -> Path:
    """Write :func:`snakefile`, whole or not at all.

    Raises:
        UserError: where ``out`` is a file of someone else.
    """
    text = snakefile(project, profile, only)
    if out.exists() and not (out.is_file() and out.read_text(errors="replace").startswith(MADE)):
        raise UserError(f"--out {out} is there and no Snakefile of this command: name another file")
    write_text(out, text)
    return out


def run_table(project: Project, profile: str, only: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the Snakefile asks for: id -> key, outputs and log of its run; ``shown`` -> files made from all.

    All paths are relative to the project.
    """
    items, table = project.select(only, profile), {}
    for item in items:
        key = run_key(ingredients(project, item, profile))
        folder = project.folder(item, key).relative_to(project.root)
        outputs = [(folder / name).as_posix() for name in run_files(item)]
        log = folder.with_name(f"snakemake-{folder.name}.log").as_posix()
        table[item.id] = {"key": key, "outputs": outputs, "log": log}
    return table | {"shown": _shown(project, items, profile)}


def _shown(project: Project, items: Sequence[Item], profile: str) -> list[str]:
    """List the files in figures/ without the tables of all items, which keep what other items have brought.

    Snakemake removes outputs before it makes them.
    """
    figures = project.figures(profile)
    if figures is None:
        return [project.results(profile).relative_to(project.root).as_posix()]
    return [(figures / name).relative_to(project.root).as_posix() for item in items for name in item.outputs]
