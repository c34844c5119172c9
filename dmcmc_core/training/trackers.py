"""Trackers: where the numbers of a run go, JSON lines by default, TensorBoard, wandb or trackio on request."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dmcmc_core.errors import UserError, unknown


class Tracker(Protocol):
    """A receiver of numbers, which takes them as they come."""

    def log(self, step: int, **numbers: float) -> None:
        """Take numbers by name at a step; steps rise."""

    def close(self) -> None:
        """Take note that nothing more will come."""


class JsonLines:
    """A tracker that adds a line ``{"step": ..., name: number, ...}`` per call to the file at ``path`` at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, **numbers: float) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        pass


class TensorBoard:
    """A tracker that writes an event file below ``folder``.

    Of a run that goes on, what a former one logged from step ``first`` on is dropped.
    """

    def __init__(self, folder: str | Path, first: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise UserError("tensorboard needs its package: pip install 'dmcmc-core[tensorboard]'") from None
        self.writer = SummaryWriter(str(folder), purge_step=first or None)

    def log(self, step: int, **numbers: float) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A tracker that is a run of wandb, or of trackio, which has the same ``init``, ``log`` and ``finish``.

    Nothing leaves the machine: wandb writes below ``folder`` (``wandb sync`` later) unless ``WANDB_MODE`` says
    otherwise, trackio keeps its own database.
    """

    def __init__(self, module: str, folder: str | Path, name: str, config: Mapping[str, Any] | None = None) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_DIR", str(folder))
        try:
            library = _library(module)
        except ImportError:
            raise UserError(f"the tracker {module} needs its package: pip install {module}") from None
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.run = library.init(project="dmcmc", name=name, config=dict(config or {}))

    def log(self, step: int, **numbers: float) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


def _library(name: str) -> Any:
    if name == "wandb":
        import wandb as library
    else:
        import trackio as library
    return library


TRACKERS = ("jsonl", "tensorboard", "wandb", "trackio")


@contextlib.contextmanager
def tracking(
    kinds: Sequence[str], folder: str | Path, name: str, config: Mapping[str, Any] | None = None, first: int = 0
) -> Iterator[Tracker]:
    """Yield one tracker that hands on to those named, which :func:`open_tracker` opens and the end closes."""
    with contextlib.ExitStack() as opened:
        several = Several([])
        opened.callback(several.close)
        for kind in dict.fromkeys(kinds):
            several.trackers.append(open_tracker(kind, folder, name, config, first))
        yield several


class Several:
    """A tracker that hands on to all of some trackers, or to none."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self.trackers = trackers

    def log(self, step: int, **numbers: float) -> None:
        for tracker in self.trackers:
            tracker.log(step, **numbers)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def open_tracker(
    kind: str, folder: str | Path, name: str, config: Mapping[str, Any] | None = None, first: int = 0
) -> Tracker:
    """Return a tracker by its name in :data:`TRACKERS`.

    Args:
        folder: where it writes: ``NAME.jsonl``, or a folder ``tensorboard/NAME`` or ``wandb`` of its own.
        name: of the run.
        config: what the run is, for those that show it.
        first: the first step that will be logged.

    Raises:
        UserError: for another name, and where its package is not installed.
    """
    if kind == "jsonl":
        return JsonLines(Path(folder) / f"{name}.jsonl")
    if kind == "tensorboard":
        return TensorBoard(Path(folder) / "tensorboard" / name, first)
    if kind in TRACKERS:
        return Wandb(kind, folder, name, config)
    raise unknown("tracker", kind, TRACKERS)
