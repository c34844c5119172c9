"""One sample at a time on a thread of its own: started, looked at, cancelled. No widget is known here."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmcmc_core.errors import LOG, UserError, sentence
from dmcmc_core.runs.folder import read_whole
from dmcmc_core.runs.sampling import Images, denoiser_of, drawn
from dmcmc_core.workbench.explorer.choice import BadChoice, Choice, Problem, problem_of
from dmcmc_core.workbench.explorer.watching import Cancelled, Log, Stoppable

IDLE, RUNNING, DONE, CANCELLED, FAILED = "idle", "running", "done", "cancelled", "failed"
KEPT = 4
"""Models that stay in memory."""


class Progress(NamedTuple):
    """How far a run is: ``rows`` of ``total`` network evaluations, ``rate`` of them a second, ``left`` in seconds.

    ``nfe``: evaluations an image so far. ``rate`` and ``left`` are None before the first call.
    """

    status: str
    rows: int
    total: int
    nfe: float
    rate: float | None
    left: float | None
    seconds: float
    problem: Problem | None

    @property
    def share(self) -> float:
        """Done, from 0 to 1."""
        return 1.0 if self.status == DONE else min(1.0, self.rows / max(1, self.total))


class Models:
    """Models by name, loaded once; ``own`` is the one that was given in memory, by what it is called."""

    def __init__(self, own: Any = None, **facts: Any) -> None:
        self._lock, self._loaded = threading.Lock(), OrderedDict()
        self.own = None
        if own is not None and not isinstance(own, str | Path):
            model = denoiser_of(own, **facts)
            self.own = str(getattr(model, "name", type(own).__name__))
            self._mine = _shown(model)

    def loaded(self, name: str) -> Any:
        """Return a model if it is in memory, else None."""
        return self._mine if name == self.own else self._loaded.get(name)

    def get(self, name: str) -> Any:
        """Return a model; BadChoice for one that cannot be had."""
        with self._lock:
            if (found := self.loaded(name)) is None:
                try:
                    found = self._loaded[name] = _shown(denoiser_of(name))
                except UserError as error:
                    raise BadChoice(Problem("model", str(error))) from error
                while len(self._loaded) > KEPT:
                    self._loaded.popitem(last=False)
            return found


def _shown(model: Any) -> Any:
    """Return a model of images (C, H, W); UserError for one of anything else, which cannot be shown."""
    if len(shape := tuple(model.shape)) != 3:
        raise UserError(f"the explorer shows images of a shape (C, H, W), and the model's data have {shape}")
    return model


class Worker:
    """One job at a time on a daemon thread.

    What a job says by the log of the package goes to ``notes`` and not to the streams of the process. An error becomes
    a :class:`Problem`, be it of the person or of the program: no thread ends in a traceback.
    """

    def __init__(self) -> None:
        self._lock, self._thread = threading.Lock(), None
        self.stop, self.status, self.problem, self.notes = threading.Event(), IDLE, None, []
        self._started = self._ended = 0.0

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def seconds(self) -> float:
        """Seconds since the start, until the end."""
        return (time.perf_counter() if self.running else self._ended) - self._started

    def begin(self, job: Callable[[], Any], ready: Callable[[], Any] = lambda: None) -> None:
        """Start a job, after what makes ready for it; UserError while another one runs."""
        with self._lock:
            if self.running:
                raise UserError("a run goes on: cancel it first")
            self.stop = threading.Event()
            self.status, self.problem, self.notes = RUNNING, None, []
            self._started = time.perf_counter()
            ready()
            self._thread = threading.Thread(target=self._do, args=(job,), name="explorer", daemon=True)
            self._thread.start()

    def cancel(self) -> None:
        """Ask the job to stop; it does at its next network call."""
        self.stop.set()

    def wait(self, seconds: float | None = None) -> str:
        """Wait for the end; return the status."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.status

    def _do(self, job: Callable[[], Any]) -> None:
        said = _Said(self.notes)
        for handler in LOG.handlers:
            handler.addFilter(said)
        try:
            job()
            status, problem = DONE, None
        except Cancelled:
            status, problem = CANCELLED, None
        except UserError as error:
            status, problem = FAILED, problem_of(error)
        except BaseException as error:  # what is no fault of the person, SystemExit too, must not be lost on a thread
            status, problem = FAILED, Problem("", f"it stopped by {type(error).__name__}: {sentence(error)}")
        finally:
            for handler in LOG.handlers:
                handler.removeFilter(said)
        self.problem, self._ended, self.status = problem, time.perf_counter(), status


class _Said(logging.Filter):
    """Keeps what the present thread logs, and lets only other threads' through."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.notes, self.thread = notes, threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        self.notes.append(record.getMessage())
        return False


class Session(Worker):
    """A sample that can be watched while it is made.

    Attributes:
        choice: of the last run.
        images: its images, None before its end. They are those of the command ``sample``, bit for bit.
        log: what it has done so far, with its frames.
    """

    def __init__(self, models: Models | None = None) -> None:
        super().__init__()
        self.models = models or Models()
        self.choice, self.images, self.log = Choice(), None, Log()
        self._windows: list[dict[str, np.ndarray]] = []
        self._reading = threading.Lock()
        self._folder: Path | None = None

    def check(self, choice: Choice) -> Problem | None:
        """Return what is wrong with a choice, as far as that can be told without loading anything; None for nothing."""
        try:
            choice.check_numbers()
            if (model := self.models.loaded(choice.model)) is not None:
                choice.check(model)
        except UserError as error:
            return problem_of(error)
        return None

    def start(self, choice: Choice) -> None:
        """Begin to make the images of a choice, and return at once; BadChoice for numbers that cannot be."""
        choice.check_numbers()

        def job() -> None:
            self.images = self._made(choice)

        self.begin(job, lambda: self._ready(choice))

    def _ready(self, choice: Choice) -> None:
        self.choice, self.images, self.log = choice, None, Log(self.stop)
        self._windows, self._folder = [], None

    def _made(self, choice: Choice) -> Images:
        model = self.models.get(choice.model)
        choice.check(model)
        if self.stop.is_set():
            raise Cancelled
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            try:
                return images_of(model, choice, self.log, chains_dir=self._folder)
            finally:
                self.windows()
                self._folder = None

    def windows(self) -> list[dict[str, np.ndarray]]:
        """Return the windows of the first group of chains so far, as their files have them; any thread may ask."""
        with self._reading:
            folder = self._folder
            groups = sorted(folder.glob("*/*-*/")) if folder and folder.is_dir() else []
            for path in sorted(groups[0].glob("window-*.npz"))[len(self._windows) :] if groups else []:
                if (found := read_whole(path)) is None:
                    break
                self._windows.append(found)
            return list(self._windows)

    def progress(self) -> Progress:
        """Return how far the run is."""
        log, choice = self.log, self.choice
        running = 0.0 if log.began is None else (time.perf_counter() if self.running else self._ended) - log.began
        total, rate = choice.nfe * choice.n, log.rows / running if running > 0 and log.rows else None
        left = (total - log.rows) / rate if rate and self.running else None
        return Progress(
            self.status, log.rows, total, log.rows / choice.n, rate, left and max(0.0, left), self.seconds, self.problem
        )


def images_of(model: Any, choice: Choice, log: Log, **how: Any) -> Images:
    """Return the images of a choice, watched by a log: by the same run as everywhere."""
    recipe = choice.sampler, choice.nfe, choice.n, choice.seed, dict(choice.settings)
    asked = model if hasattr(model, "sde") else Stoppable(model, log)
    return drawn(asked, *recipe, watch=log, **how)
