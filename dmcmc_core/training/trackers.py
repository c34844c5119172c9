"""Where the numbers of a run go: JSON lines by default, TensorBoard or what is shaped like wandb on request."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dmcmc_core.errors import UserError, unknown


class Tracker(Protocol):
    """Takes numbers as they come."""

    def log(self, step: int, **numbers: float) -> None:
        """Numbers by name at a step; steps rise."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines:
    """A line ``{"step": ..., name: number, ...}`` per call, added to the file at ``path`` at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, **numbers: float) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        pass


class TensorBoard:
    """An event file below ``folder``; of a run that goes on, what a former one logged from ``first`` on is dropped."""

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
    """A run of wandb, or of a module with its ``init``, ``log`` and ``finish``, such as trackio.

    Nothing leaves the machine: wandb writes below ``folder`` (``wandb sync`` later) unless ``WANDB_MODE`` says
    otherwise, trackio keeps its own database.
    """

    def __init__(self, module: str, folder: str | Path, name: str, config: Mapping[str, Any] | None = None) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_DIR", str(folder))
        try:
            library = importlib.import_module(module)
        except ImportError:
            raise UserError(f"the tracker {module} needs its package: pip install {module}") from None
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.run = library.init(project="dmcmc", name=name, config=dict(config or {}))

    def log(self, step: int, **numbers: float) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS = ("jsonl", "tensorboard", "wandb", "trackio")


@contextlib.contextmanager
def tracking(
    kinds: Sequence[str], folder: str | Path, name: str, config: Mapping[str, Any] | None = None, first: int = 0
) -> Iterator[Tracker]:
    """One tracker that hands on to those named, opened as by :func:`open_tracker` and closed at the end."""
    with contextlib.ExitStack() as opened:
        several = Several([])
        opened.callback(several.close)
        for kind in dict.fromkeys(kinds):
            several.trackers.append(open_tracker(kind, folder, name, config, first))
        yield several


class Several:
    """All of some trackers, or none."""

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
    """A tracker by its name in :data:`TRACKERS`.

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
