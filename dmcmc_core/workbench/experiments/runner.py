"""The runner: it runs every item whose run is not there yet, side by side, and shows outputs in ``figures/``."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dmcmc_core.errors import UserError
from dmcmc_core.files import replacing
from dmcmc_core.training.trackers import tracking
from dmcmc_core.workbench.experiments.executors import Executor, Finished, Processes, run_one_command
from dmcmc_core.workbench.experiments.keys import check_parameters, ingredients, missing_files, run_key
from dmcmc_core.workbench.experiments.manifest import Item, Project, here
from dmcmc_core.workbench.experiments.published import beside_published
from dmcmc_core.workbench.experiments.reports import (
    Outcome,
    clock,
    numbers,
    outcome_of,
    report,
    write_claims,
    write_results,
)
from dmcmc_core.workbench.experiments.runs import cells_done, failed_folder, is_complete, newest_run


def reproduce(
    profile: str = "local",
    only: Sequence[str] = (),
    jobs: int | None = None,
    project: Project | None = None,
    say: Callable[[str], None] | None = None,
    executor: Executor | None = None,
    track: Sequence[str] = ("jsonl",),
) -> list[Outcome]:
    """Run every item whose run is not there yet, fill ``figures/`` and say how far that is from what is published.

    Args:
        profile: ``smoke``, ``local``, ``full`` or ``paper``.
        only: ids of items; all of the profile's items when empty.
        jobs: notebooks at a time, each in a process with its share of the cores; 2 where there are two cores.
        say: takes the lines of the report, which are printed when it is None.
        executor: the engine; ``Processes(jobs)`` of this machine when None.
        track: names of :data:`dmcmc_core.training.trackers.TRACKERS` that record in ``exp/runs`` how many claims of
            each run hold.

    Returns:
        One outcome per item, in the order of the manifest; a notebook that fails does not keep the others from running.

    Raises:
        UserError: before anything runs, for unknown names and parameters and for files that are not there.
    """
    project, say = project or here(), say or _print
    items = project.select(only, profile)
    executor = executor or Processes(jobs)
    _check(project, items, profile)
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
    if isinstance(executor, Processes):
        executor.limit(len(items))  # not those left: a command that is taken up again counts with the same threads
    with tracking(track if todo else (), project.root / "exp" / "runs", profile) as tracker:
        for outcome in _run_all(project, todo, profile, executor, say):
            outcomes[outcome.item.id] = outcome
            tracker.log(int(time.time()), **numbers(outcome))
    result = [outcomes[item.id] for item in items]
    write_claims(project, profile)
    write_results(project, profile)
    say(f"\n{report(result)}")
    if project.figures(profile) and (distances := beside_published(project, result, profile)):
        say(f"\n{distances}")
    return result


def _check(project: Project, items: Sequence[Item], profile: str) -> None:
    """Raise UserError where a file, a parameter or a package is missing that a run needs."""
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


def _print(line: str) -> None:
    print(line, flush=True)


def _found(project: Project, item: Item, profile: str) -> Outcome | None:
    """Return the outcome of a run that is there; outputs that had gone or changed are shown in ``figures/`` again."""
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    if not is_complete(folder, item):
        return None
    _show(folder, item, project.figures(profile))
    return outcome_of(folder, item, unchanged=True)


def _show(folder: Path, item: Item, figures: Path | None) -> None:
    for name in item.outputs if figures else ():
        if not (figures / name).is_file() or not filecmp.cmp(folder / name, figures / name, shallow=False):
            with replacing(figures / name) as part:
                shutil.copyfile(folder / name, part)


def _reason(project: Project, item: Item, profile: str) -> str:
    """Say why an item that has run before runs again."""
    last = newest_run(project, item, profile)
    if last is None:
        return ""
    before = json.loads((last / "provenance.json").read_text())["inputs"]
    now = ingredients(project, item, profile)
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f", {', '.join(changed)} changed" if changed else ""


class _Running(NamedTuple):
    """An item whose notebook runs."""

    item: Item
    folder: Path  # where its result will be
    started: float
    expected: float | None  # seconds that it took last time


def _run_all(
    project: Project, todo: Sequence[Item], profile: str, executor: Executor, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """Run items side by side and say what starts, what goes on (twice a minute) and what ends."""
    waiting, running, done = list(todo), {}, 0
    spoke = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < executor.slots:
                item = waiting.pop(0)
                running[item.id] = _start(project, item, profile)
                executor.submit(item.id, run_one_command(project, item, profile))
                last = running[item.id].expected
                say(f"{item.id}: started" + (f", took {clock(last)} last time" if last else ""))
            for ended in executor.wait(0.1):
                run = running.pop(ended.name)
                outcome = _end(project, run, ended, profile)
                done += 1
                spoke = time.monotonic()
                say(f"{run.item.id}: {outcome.verdict} ({clock(spoke - run.started)}; {done} of {len(todo)} done)")
                yield outcome
            if time.monotonic() - spoke > 30:
                spoke = time.monotonic()
                for run in running.values():
                    say(_progress(run))
    finally:  # also when interrupted: what is ended leaves nothing that looks finished
        executor.cancel()


def _start(project: Project, item: Item, profile: str) -> _Running:
    last = newest_run(project, item, profile)
    expected = json.loads((last / "provenance.json").read_text())["seconds"] if last else None
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    return _Running(item, folder, time.monotonic(), expected)


def _end(project: Project, run: _Running, ended: Finished, profile: str) -> Outcome:
    if ended.status == 0 and is_complete(run.folder, run.item):
        _show(run.folder, run.item, project.figures(profile))
        return outcome_of(run.folder, run.item)
    failed = failed_folder(run.folder)
    last = ended.output.splitlines()[-1].removeprefix("error: ") if ended.output else ""
    if ended.status < 0:
        why = f"ended by signal {-ended.status}"
    elif ended.status == 0:
        why = f"it ended well, but not in {run.folder}: its engine has other files or versions than this process"
    else:
        why = last or f"ended with status {ended.status}"
    kept = failed if (failed / "failure.txt").is_file() else None
    return Outcome(run.item, f"failed: {why}", time.monotonic() - run.started, failed=True, folder=kept)


def _progress(run: _Running) -> str:
    elapsed = time.monotonic() - run.started
    line = f"{run.item.id}: running for {clock(elapsed)}"
    parts = sorted(run.folder.parent.glob(f".{run.folder.name}.*.part"))
    if not parts:
        return f"{line}, not begun yet"
    done, cells = cells_done(parts[0] / "run.ipynb")
    line += f", {done} of {cells} cells done" if cells else ""
    if run.expected and run.expected > elapsed:
        line += f", about {clock(run.expected - elapsed)} left"
    return line
