"""Every item whose run is not there yet, side by side, and its outputs in ``figures/``."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core.errors import UserError
from dmcmc_core.experiments.keys import check_parameters, ingredients, missing_files, run_key
from dmcmc_core.experiments.manifest import Item, Project, here
from dmcmc_core.experiments.reports import Outcome, clock, outcome_of, report, write_claims
from dmcmc_core.experiments.runs import cells_done, failed_folder, is_complete, newest_run


def reproduce(
    profile: str = "local",
    only: Sequence[str] = (),
    jobs: int | None = None,
    project: Project | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Run every item whose run is not there yet and fill ``figures/``.

    Args:
        profile: ``smoke``, ``local``, ``full`` or ``paper``.
        only: ids of items; all of the profile's items when empty.
        jobs: notebooks at a time, each in a process with its share of the cores; 2 where there are two cores.
        say: takes the lines of the report; printed when None.

    Returns:
        One outcome per item, in the order of the manifest; a notebook that fails does not keep the others from running.

    Raises:
        UserError: before anything runs, for unknown names and parameters and for files that are not there.
    """
    project, say = project or here(), say or _print
    items = project.select(only, profile)
    cores = len(os.sched_getaffinity(0))
    jobs = min(2, cores) if jobs is None else jobs
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, not {jobs}")
    absent = [line for item in items for line in missing_files(project, item, profile)]
    if absent:
        lines = "\n  ".join(dict.fromkeys(absent))
        raise UserError(
            f"profile {profile!r} needs files that are not there (places are below {project.root}):\n  {lines}"
        )
    for item in items:
        check_parameters(project, item, profile)
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"running notebooks needs {package}: pip install -r requirements.txt")

    outcomes: dict[str, Outcome] = {}
    todo = []
    for item in items:
        outcome = _found(project, item, profile)
        if outcome:
            outcomes[item.id] = outcome
            say(f"{item.id}: unchanged, {outcome.verdict}")
        else:
            todo.append(item)
            say(f"{item.id}: to run{_reason(project, item, profile)}")
    for outcome in _run_all(project, todo, profile, jobs, max(1, cores // jobs), say):
        outcomes[outcome.item.id] = outcome
    result = [outcomes[item.id] for item in items]
    write_claims(project, profile)
    say(f"\n{report(result)}")
    return result


def _print(line: str) -> None:
    print(line, flush=True)


def _found(project: Project, item: Item, profile: str) -> Outcome | None:
    """The outcome of a run that is there, its outputs shown in ``figures/`` again if they had gone or changed."""
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    if not is_complete(folder, item):
        return None
    _publish(folder, item, project.figures(profile))
    return outcome_of(folder, item, unchanged=True)


def _publish(folder: Path, item: Item, figures: Path | None) -> None:
    if figures is None:
        return
    figures.mkdir(parents=True, exist_ok=True)
    for name in item.outputs:
        if not (figures / name).is_file() or not filecmp.cmp(folder / name, figures / name, shallow=False):
            shutil.copyfile(folder / name, figures / f"{name}.part")
            os.replace(figures / f"{name}.part", figures / name)


def _reason(project: Project, item: Item, profile: str) -> str:
    """Why an item that has run before runs again."""
    last = newest_run(project, item, profile)
    if last is None:
        return ""
    before = json.loads((last / "provenance.json").read_text())["inputs"]
    now = ingredients(project, item, profile)
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f", {', '.join(changed)} changed" if changed else ""


class _Running(NamedTuple):
    item: Item
    process: subprocess.Popen
    output: Any  # what the process says before its log opens
    folder: Path  # where its result will be
    started: float
    expected: float | None  # seconds that it took last time


def _run_all(
    project: Project, todo: Sequence[Item], profile: str, jobs: int, threads: int, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """Run items side by side, telling what starts, what goes on (twice a minute) and what ends."""
    waiting, running, done = list(todo), [], 0
    spoke = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(project, waiting.pop(0), profile, threads))
                last = running[-1].expected
                say(f"{running[-1].item.id}: started" + (f", took {clock(last)} last time" if last else ""))
            time.sleep(0.1)
            for run in [r for r in running if r.process.poll() is not None]:
                running.remove(run)
                outcome = _end(project, run, profile)
                done += 1
                spoke = time.monotonic()
                say(f"{run.item.id}: {outcome.verdict} ({clock(spoke - run.started)}; {done} of {len(todo)} done)")
                yield outcome
            if time.monotonic() - spoke > 30:
                spoke = time.monotonic()
                for run in running:
                    say(_progress(run))
    finally:  # also when interrupted: a process that is told to end leaves nothing that looks finished
        for run in running:
            run.process.terminate()
        for run in running:
            try:
                run.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                run.process.kill()


def _start(project: Project, item: Item, profile: str, threads: int) -> _Running:
    last = newest_run(project, item, profile)
    expected = json.loads((last / "provenance.json").read_text())["seconds"] if last else None
    above = [str(project.root), str(Path(__file__).resolve().parents[2])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*above, *filter(None, [os.environ.get("PYTHONPATH")])]),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
    }
    command = [sys.executable, "-m", "dmcmc_core", "run-one", item.id, "--profile", profile]
    command += ["--root", str(project.root), "--package", project.package, "--with-parent"]
    output = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
    )
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    return _Running(item, process, output, folder, time.monotonic(), expected)


def _end(project: Project, run: _Running, profile: str) -> Outcome:
    run.output.seek(0)
    said = run.output.read().strip().splitlines()
    run.output.close()
    seconds = time.monotonic() - run.started
    if run.process.returncode == 0 and is_complete(run.folder, run.item):
        _publish(run.folder, run.item, project.figures(profile))
        return outcome_of(run.folder, run.item)
    failed = failed_folder(run.folder)
    if run.process.returncode < 0:
        why = f"ended by signal {-run.process.returncode}"
    else:
        why = said[-1].removeprefix("error: ") if said else f"ended with status {run.process.returncode}"
    kept = failed if (failed / "failure.txt").is_file() else None
    return Outcome(run.item, f"failed: {why}", seconds, failed=True, folder=kept)


def _progress(run: _Running) -> str:
    elapsed = time.monotonic() - run.started
    line = f"{run.item.id}: running for {clock(elapsed)}"
    parts = sorted(run.folder.parent.glob(f".{run.folder.name}.{run.process.pid}.part"))
    if not parts:
        return f"{line}, waiting for another process that makes the same"
    done, cells = cells_done(parts[0] / "run.ipynb")
    line += f", {done} of {cells} cells done" if cells else ""
    if run.expected and run.expected > elapsed:
        line += f", about {clock(run.expected - elapsed)} left"
    return line
