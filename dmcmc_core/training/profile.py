"""The profile of a run on pictures: samples while it goes on, and how alike they are to the pictures.

Sampling has random streams of its own and the clock of the training stands still: a profile changes neither weights
nor seconds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from dmcmc_core.errors import UserError
from dmcmc_core.files import write_npz, write_text
from dmcmc_core.metrics.similarity import mse, ssim
from dmcmc_core.streams import Streams
from dmcmc_core.training.config import PicturesConfig
from dmcmc_core.training.loop import Run

STRIP = 5
"""Frames of a trajectory that are kept at the end."""


class Drawn(NamedTuple):
    """A sample for each picture (n, C, H, H), the scale of the pictures; ``frames`` (F, n, C, H, H) and network calls.

    Frames are evenly spread over the steps of the sampler, the last one is the sample.
    """

    samples: Tensor
    frames: Tensor
    nfe: int


Draw = Callable[[nn.Module, Streams, int], Drawn]
"""Takes a network in evaluation mode, a stream for each picture and the number of frames, at least 2."""


def profiler(
    config: PicturesConfig,
    images: Tensor,
    draw: Draw,
    out_dir: Path,
    profile: bool,
    *,
    solve_seconds: float = 0.0,
    turns: int = 1,
) -> Callable[[Run], None]:
    """Return what the loop calls after each step.

    It leaves NAME.profile.csv, if asked to profile, and at the last step NAME.samples.npz: ``images``, ``samples``,
    ``frames`` and ``nfe``.

    Args:
        config: says when: every so many steps, or whenever as many seconds have gone since.
        images: (n, C, H, H) in [0, 1].
        draw: the sampler of the run.
        out_dir: of the files.
        profile: whether samples are drawn before the last step.
        solve_seconds: that the run has taken before its first step, a column of the profile.
        turns: steps in which each picture had its turn; by seconds, samples are drawn at multiples of it.

    Raises:
        UserError: where the pictures cannot be compared, see :func:`dmcmc_core.metrics.similarity.ssim`.
    """
    if profile:
        ssim(images[0], images[0])  # what is missing should not wait for the first sample
    stem = f"{out_dir}/{config.name}"

    def due(run: Run) -> bool:
        last = run.profile[-1] if run.profile else {"step": 0, "train_seconds": 0.0}
        if config.profile_steps:
            return run.step - last["step"] >= config.profile_steps
        return run.step % turns == 0 and run.seconds - last["train_seconds"] > config.profile_every

    def between(run: Run) -> None:
        end = run.step == config.steps
        if not end and not (profile and due(run)):
            return
        streams = Streams(config.seed, f"samples at step {run.step}", range(len(images)))
        drawn = draw(run.averaged(), streams, STRIP if end else 2)
        if profile:
            run.profile.append(_row(config, run, images, drawn.samples, solve_seconds))
            _write_csv(f"{stem}.profile.csv", run.profile)
        if end:
            if not profile:
                Path(f"{stem}.profile.csv").unlink(missing_ok=True)  # of another run
            arrays = {"images": images, "samples": drawn.samples, "frames": drawn.frames}
            write_npz(f"{stem}.samples.npz", **{k: np.asarray(v, np.float32) for k, v in arrays.items()}, nfe=drawn.nfe)

    return between


def _row(config: PicturesConfig, run: Run, images: Tensor, samples: Tensor, solve_seconds: float) -> dict[str, Any]:
    pairs = list(zip(images, samples, strict=True))
    numbers = {"mse": [mse(*pair) for pair in pairs], "ssim": [ssim(*pair) for pair in pairs]}
    return {
        "step": run.step,
        "images_seen": run.step * config.batch,
        "train_seconds": run.seconds,
        "solve_seconds": solve_seconds,
        **{name: sum(values) / len(values) for name, values in numbers.items()},
        **{f"{name}_{i}": value for name, values in numbers.items() for i, value in enumerate(values, 1)},
    }


def _write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_profile(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a NAME.profile.csv, all numbers; UserError for a file that is none."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (TypeError, ValueError, AttributeError):
        rows = []
    if not rows or not {"step", "train_seconds", "ssim", "mse"} <= rows[0].keys():
        raise UserError(f"{path} is no profile of a training, or damaged: train again, or delete it")
    return rows
