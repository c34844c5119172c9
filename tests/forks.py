"""Forks of this process where others would import everything again; toy notebooks that run in them without a kernel.

For what the runner does with runs, and for what a killed process leaves. What papermill, kernels and whole processes do
is tested with the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dmcmc_core.workbench import cli
from dmcmc_core.workbench.experiments.executors import Command, Finished, threads_each

CELLS = """
import json, sys
namespace = {"__name__": "__main__"}
for number, (source, given) in enumerate(json.load(sys.stdin)):
    try:
        exec(source, namespace)
    except Exception as error:
        print(json.dumps([number, type(error).__name__, str(error)]), file=sys.stderr)
        sys.exit(1)
    namespace.update(given)
"""


def execute_notebook(notebook: str, executed: str, parameters: dict, cwd: str, **_: object) -> None:
    """Execute a notebook as ``papermill.execute_notebook`` does, without a kernel and outputs of cells."""
    content = json.loads(Path(notebook).read_text())
    cells = content["cells"]
    given = [parameters if "parameters" in cell["metadata"].get("tags", []) else {} for cell in cells]
    sources = [("".join(cell["source"]), some) for cell, some in zip(cells, given, strict=True)]
    words = [sys.executable, "-c", CELLS]
    done = subprocess.run(words, input=json.dumps(sources), cwd=cwd, stderr=subprocess.PIPE, text=True)
    failed = json.loads(done.stderr.splitlines()[-1]) if done.returncode else None
    if failed:
        cells[failed[0]]["metadata"]["papermill"] = {"exception": True}
    Path(executed).write_text(json.dumps(content))
    if failed:
        from papermill.exceptions import PapermillExecutionError

        number, name, value = failed
        raise PapermillExecutionError(number, number, sources[number][0], name, value, [])


def fork(function: Callable[[], int | None]) -> int:
    """Begin a fork of this process that runs a function and ends with the status that it returns; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def status_of_fork(function: Callable[[], int | None]) -> int:
    """The exit status of such a fork when it has ended; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(function), 0)[1])


class Forks:
    """An engine whose processes are forks of this one, ``jobs`` at a time; see :func:`execute_notebook`."""

    def __init__(self, jobs: int = 1) -> None:
        self.slots, self.running = jobs, {}
        sys.modules.setdefault("rfc3987_syntax", None)  # as a run does, to import papermill in a fifth of the time
        import papermill  # noqa: F401  here, not in every fork

    def submit(self, name: str, command: Command) -> None:
        output = tempfile.TemporaryFile("w+")
        self.running[name] = fork(lambda: _run(command, threads_each(self.slots), output)), output

    def wait(self, seconds: float) -> list[Finished]:
        time.sleep(seconds / 5)
        ended = []
        for name, (child, output) in list(self.running.items()):
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone:
                del self.running[name]
                with output:
                    output.seek(0)
                    ended.append(Finished(name, os.waitstatus_to_exitcode(status), output.read().strip()))
        return ended

    def cancel(self) -> None:
        for child, _ in self.running.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _run(command: Command, environment: dict[str, str], output: IO[str]) -> int:
    """A command of an engine, in this process."""
    import papermill

    papermill.execute_notebook = execute_notebook
    sys.stdout = sys.stderr = output
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.chdir(command.cwd)
    os.environ.update(environment, PYTHONPATH=os.pathsep.join(command.paths))
    assert command.words[:2] == ("-m", "dmcmc_core")
    return cli.main(command.words[2:])
