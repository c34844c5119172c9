"""Engines that run items: processes of this machine, or the workers of a Dask cluster.

All of them run the same command, ``run-one``, so that keys, locks and provenance are the same whichever was used.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from dmcmc_core.errors import UserError
from dmcmc_core.workbench.experiments.manifest import Item, Project


class Command(NamedTuple):
    """A command that runs one item, wherever the checkout is at the same place."""

    words: tuple[str, ...]  # after the interpreter, which is the engine's own
    cwd: str
    paths: tuple[str, ...]  # PYTHONPATH

    def start(self, output: IO[str], **environment: str) -> subprocess.Popen:
        """Start the process in a session of its own: Ctrl-C reaches the runner alone, which ends the others."""
        paths = [*self.paths, *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [sys.executable, *self.words],
            cwd=self.cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def run_one_command(project: Project, item: Item, profile: str) -> Command:
    """Return the command that every engine runs for an item."""
    words = ["-m", "dmcmc_core", "run-one", item.id, "--profile", profile]
    words += ["--root", str(project.root), "--package", project.package, "--with-parent"]
    return Command(tuple(words), str(project.root), (str(project.root), str(Path(__file__).resolve().parents[3])))


class Finished(NamedTuple):
    """A command that has ended.

    Attributes:
        name: as it was submitted.
        status: its exit status, negative for the signal that ended it.
        output: what it printed, stdout and stderr.
    """

    name: str
    status: int
    output: str


class Executor(Protocol):
    """An engine that :func:`dmcmc_core.workbench.experiments.reproduce` gives at most ``slots`` commands at a time."""

    slots: float

    def submit(self, name: str, command: Command) -> None:
        """Start a command, or queue it where the engine has its own queue."""

    def wait(self, seconds: float) -> list[Finished]:
        """Return the commands that ended and were not returned yet, after at most about ``seconds``."""

    def cancel(self) -> None:
        """End all that still runs, and wait until it has."""


def threads_each(processes: int) -> dict[str, str]:
    """Return an equal share of the cores, as the environment that numerical libraries read."""
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(share))


class Processes:
    """An engine of processes on this machine, each with its share of the cores and, where there are GPUs, one of them.

    Args:
        jobs: how many at a time; when None one for each of ``gpus``, or else 2 where there are two cores.
        gpus: what ``CUDA_VISIBLE_DEVICES`` may name, dealt out in turn; :func:`visible_gpus` when None, and an empty
            list hides them. With more jobs than GPUs some share one.

    Raises:
        UserError: for fewer than 1 job.
    """

    def __init__(self, jobs: int | None = None, gpus: Sequence[str] | None = None) -> None:
        self.slots = jobs if jobs is not None else len(gpus or ()) or min(2, len(os.sched_getaffinity(0)))
        if self.slots < 1:
            raise UserError(f"jobs must be at least 1, not {jobs}")
        self.gpus = visible_gpus() if gpus is None else list(gpus) or [""]  # none: hidden from the jobs
        self.free = list(range(self.slots))
        self.running: dict[str, tuple[subprocess.Popen, IO[str], int]] = {}

    def limit(self, jobs: int) -> None:
        """Expect so many commands in all: fewer than there are slots have larger shares of the cores."""
        self.slots = max(1, min(self.slots, jobs))
        self.free = list(range(self.slots))

    def submit(self, name: str, command: Command) -> None:
        output, slot = tempfile.TemporaryFile("w+"), self.free.pop(0)
        device = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        self.running[name] = command.start(output, **threads_each(self.slots), **device), output, slot

    def wait(self, seconds: float) -> list[Finished]:
        time.sleep(seconds)
        return [self._end(name) for name, (process, *_) in list(self.running.items()) if process.poll() is not None]

    def _end(self, name: str) -> Finished:
        process, output, slot = self.running.pop(name)
        self.free.append(slot)
        return Finished(name, process.returncode, _read(output))

    def cancel(self) -> None:
        for process, *_ in self.running.values():
            process.terminate()
        for process, *_ in self.running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def visible_gpus(environment: Mapping[str, str] = os.environ, proc: str = "/proc/driver/nvidia/gpus") -> list[str]:
    """List the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without importing torch."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return parse_gpus(named) if named.strip() != "-1" else []
    return [str(k) for k, _ in enumerate(Path(proc).glob("*"))]


def parse_gpus(text: str) -> list[str]:
    """Read a list of GPUs: ``0,1`` -> ["0", "1"]; ``none`` or nothing -> [].

    Raises:
        UserError: for what names no device, or one twice.
    """
    names = [] if text.strip() in ("", "none") else [name.strip() for name in text.split(",")]
    wrong = [name for name in names if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name)]
    if wrong or len(set(names)) < len(names):
        raise UserError(f"GPUs are named once each and with commas, such as 0,1 (or none), not {text!r}")
    return names


class Dask:
    """An engine of the workers of a Dask cluster that see this checkout at the same path.

    They need the packages of the notebooks, but not this project. A worker runs one command per thread, which is the
    one core it computes with; a GPU per run is a worker with one thread and its own ``CUDA_VISIBLE_DEVICES``.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.
        jobs: how many at a time; as many as the cluster takes when None.

    Raises:
        UserError: when distributed is not installed, or no scheduler answers.
    """

    def __init__(self, address: str, jobs: int | None = None) -> None:
        try:
            import cloudpickle
            import distributed
        except ImportError:
            raise UserError("the executor dask needs the package distributed: pip install 'dmcmc-core[dask]'") from None
        if jobs is not None and jobs < 1:
            raise UserError(f"jobs must be at least 1, not {jobs}")
        try:
            self.client = distributed.Client(address, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"no Dask scheduler answers at {address!r} ({reason}); start one: dask scheduler") from None
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not have this project
        self.slots = jobs if jobs is not None else float("inf")
        self.stop = distributed.Event(f"dmcmc-stop-{os.urandom(8).hex()}", client=self.client)
        self.futures: dict = {}

    def submit(self, name: str, command: Command) -> None:
        self.futures[name] = self.client.submit(_on_worker, command, self.stop, pure=False)

    def wait(self, seconds: float) -> list[Finished]:
        time.sleep(seconds)
        return [self._end(name) for name, future in list(self.futures.items()) if future.done()]

    def _end(self, name: str) -> Finished:
        from concurrent.futures import CancelledError

        try:
            return Finished(name, *self.futures.pop(name).result(timeout=10))
        except CancelledError:
            return Finished(name, 1, "the Dask scheduler has gone, or has cancelled it")
        except Exception as error:  # whatever a worker died of
            return Finished(name, 1, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def cancel(self) -> None:
        if self.futures:
            self.stop.set()
            queued = [future for future in self.futures.values() if not future.done()]
            end = time.monotonic() + 15
            while any(self._processing(queued)) and time.monotonic() < end:
                time.sleep(0.2)
            self.client.cancel(queued)
        self.client.close()

    def _processing(self, futures: Sequence) -> list[str]:
        """Return the keys of the futures that a worker has started."""
        keys = {future.key for future in futures if not future.done()}
        return [key for keys_of_worker in self.client.processing().values() for key in keys_of_worker if key in keys]


def _on_worker(command: Command, stop) -> tuple[int, str]:
    """Run a command to its end on a worker, or until ``stop`` is set: exit status and what it printed."""
    if stop.is_set():
        return 1, "cancelled"
    with tempfile.TemporaryFile("w+") as output:
        process = command.start(output, **threads_each(len(os.sched_getaffinity(0))))  # a Dask thread is a core
        while process.poll() is None:
            time.sleep(0.5)
            if stop.is_set():
                process.terminate()
                process.wait()
        return process.returncode, _read(output)


def _read(output: IO[str]) -> str:
    with output:
        output.seek(0)
        return output.read().strip()
