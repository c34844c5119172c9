"""One set of items through every engine: the same keys, the same outputs, nothing made twice.

    python benchmarks/engines.py [--only ID ...] [--profile P] [--jobs N] [--engines NAME ...] [--keep DIR]

Each engine gets a copy of its own of this checkout's files, with no runs and no samples, and is asked three times:
to make the items, to make them again (nothing is to be made), and again with one output deleted (one item is to be
made). Made is counted on the runs' folders. In the end all outputs are compared byte by byte between the engines; those
that tell times (results.csv, *-seconds.*) only have to be there. The whole smoke manifest takes about a quarter of an
hour of a core per engine. Needs snakemake and distributed for those two; ends with status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dmcmc_core.workbench.experiments import Project, columns, ingredients, is_complete, run_key

CHECKOUT = Path(__file__).resolve().parents[1]
Engine = Callable[..., contextlib.AbstractContextManager[Callable[[], None]]]
"""(project, profile, ids, jobs) -> context of a function that makes what is not there yet."""


def command(project: Project, *words: str) -> None:
    """``python -m dmcmc_core`` for a project; raises CalledProcessError with all that was said."""
    place = ["--root", str(project.root), "--package", project.package]
    call([sys.executable, "-m", "dmcmc_core", *words, *place])


def call(words: Sequence[str]) -> None:
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stdout}")


@contextlib.contextmanager
def embedded(project: Project, profile: str, ids: Sequence[str], jobs: int) -> Iterator[Callable[[], None]]:
    yield lambda: command(project, "reproduce", "--profile", profile, "--only", *ids, "--jobs", str(jobs))


@contextlib.contextmanager
def snakemake(project: Project, profile: str, ids: Sequence[str], jobs: int) -> Iterator[Callable[[], None]]:
    file = str(project.root / "Snakefile")
    command(project, "export", "snakemake", "--profile", profile, "--only", *ids, "--out", file)
    yield lambda: call([sys.executable, "-m", "snakemake", "-s", file, "-d", str(project.root), "--cores", str(jobs)])


@contextlib.contextmanager
def dask(project: Project, profile: str, ids: Sequence[str], jobs: int) -> Iterator[Callable[[], None]]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None) as cluster:
        words = ["reproduce", "--profile", profile, "--executor", "dask", "--scheduler", cluster.scheduler_address]
        yield lambda: command(project, *words, "--only", *ids)


ENGINES: dict[str, Engine] = {"embedded": embedded, "snakemake": snakemake, "dask": dask}


def folders(project: Project, profile: str, ids: Sequence[str]) -> dict[str, Path]:
    """Where each item's run has to be, by its key as computed here."""
    items = project.select(ids, profile)
    return {item.id: project.folder(item, run_key(ingredients(project, item, profile))) for item in items}


def examine(name: str, project: Project, profile: str, ids: Sequence[str], jobs: int) -> dict:
    """What an engine does with a project that has no runs: seconds, and how many items each of three turns makes."""
    row, before = {"engine": name, "items": len(ids)}, {}

    def turn() -> int:
        nonlocal before
        make()
        now = {id: (folder / "provenance.json").stat().st_mtime_ns for id, folder in where.items()}
        made, before = [id for id in now if now[id] != before.get(id)], now
        return len(made)

    where = folders(project, profile, ids)
    with ENGINES[name](project, profile, ids, jobs) as make:
        begun = time.monotonic()
        row["made"] = turn()
        row["seconds"] = time.monotonic() - begun
        row["again"] = turn()
        first = project.select(ids, profile)[0]
        (where[first.id] / first.outputs[0]).unlink()
        row["one deleted"] = turn()
    complete = all(is_complete(where[item.id], item) for item in project.select(ids, profile))
    counts = [row[key] for key in ("made", "again", "one deleted")]
    return row | {"right": complete and counts == [len(ids), 0, 1]}


def differences(projects: Sequence[Project], profile: str, ids: Sequence[str]) -> list[str]:
    """The outputs of the first project that another one has not, or has with other bytes; keys of runs that differ."""
    found, (first, *others) = [], projects
    for other in others:
        ours, theirs = (folders(p, profile, ids) for p in (first, other))
        for item in first.select(ids, profile):
            a, b = ours[item.id], theirs[item.id]
            if a.name != b.name:
                found.append(f"{item.id}: key {a.name} in {first.root}, {b.name} in {other.root}")
            for output in (o for o in item.outputs if "-seconds." not in o):
                if (a / output).read_bytes() != (b / output).read_bytes():
                    found.append(f"{item.id}: {output} of {first.root} and of {other.root} differ")
            if (
                json.loads((a / "metrics.json").read_text())["claims"]
                != json.loads((b / "metrics.json").read_text())["claims"]
            ):
                found.append(f"{item.id}: other claims in {first.root} than in {other.root}")
    return found


def copy_of(checkout: Path, to: Path) -> Project:
    """The files that git knows, without its history, runs and samples."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if not name.startswith("figures/") and (checkout / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, to / name)
    return Project(to)


def kept_or_examined(name: str, place: Path, profile: str, ids: Sequence[str], jobs: int) -> tuple[Project, dict]:
    """An engine's copy below ``place`` and its row: the one kept there if it was right and of the same runs."""
    kept = place / f"{name}.json"
    if kept.exists():
        project, (row, before) = Project(place / name), json.loads(kept.read_text())
        if before == keys_of(Project(CHECKOUT), profile, ids):
            return project, row
    project = copy_of(CHECKOUT, place / name)
    row = examine(name, project, profile, ids, jobs)
    if row["right"]:
        kept.write_text(json.dumps([row, keys_of(project, profile, ids)]))
    return project, row


def keys_of(project: Project, profile: str, ids: Sequence[str]) -> dict[str, str]:
    return {id: folder.name for id, folder in folders(project, profile, ids).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="ID")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, metavar="NAME")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the copies here, and what each engine did")
    a = parser.parse_args()
    ids = [item.id for item in Project(CHECKOUT).select(a.only, a.profile)]
    with contextlib.ExitStack() as stack:
        place = a.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmcmc-engines-")))
        projects, rows = [], []
        for name in a.engines:
            project, row = kept_or_examined(name, place, a.profile, ids, a.jobs)
            projects.append(project)
            rows.append(row)
            print(row, flush=True)
        found = differences(projects, a.profile, ids)
    head = list(rows[0])
    print("\n" + columns([head, *([f"{v:.0f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows)]))
    print("\n".join(found) if found else "keys, outputs and claims are the same")
    return int(bool(found) or not all(row["right"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
