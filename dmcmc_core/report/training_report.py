"""The report of a run on pictures: a PDF of its parameters, losses, profile, crossings, final metrics and samples."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dmcmc_core.errors import Absent, UserError
from dmcmc_core.files import read_npz, replacing
from dmcmc_core.metrics.similarity import crossings, mse, ssim
from dmcmc_core.training.config import PicturesConfig
from dmcmc_core.training.loop import check_same
from dmcmc_core.training.profile import read_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.90, 0.95, 0.98, 0.99)
"""Of SSIM, whose crossings are reported."""
PAGE = (8.3, 11.7)


class Left(NamedTuple):
    """What a run on pictures has left: facts and rows of its log, rows of its profile, its images and samples."""

    facts: dict[str, Any]
    log: list[dict[str, float]]
    profile: list[dict[str, float]]
    images: np.ndarray
    samples: np.ndarray
    frames: np.ndarray
    nfe: int


def read(kind: str, config: PicturesConfig, folder: str | Path, profile: bool = False) -> Left:
    """Return what a finished run has left in a folder.

    Args:
        kind: ``embedded``, ``ddpm`` or ``ddim``.
        config: of the run.
        folder: of its files.
        profile: whether it must have been profiled; its profile is read where there is one.

    Raises:
        UserError: names the files that are missing, and for files of another config.
    """
    stem = f"{Path(folder) / config.name}"
    ends = ["safetensors", "log", "samples.npz", *["fields.safetensors"] * (kind == "embedded")]
    missing = [
        f"{config.name}.{end}" for end in [*ends, *["profile.csv"] * profile] if not Path(f"{stem}.{end}").is_file()
    ]
    if missing:
        how = f"train {kind} --config {shlex.quote(f'{config.name}.yaml')}" + " --profile" * profile
        raise Absent(
            f"{Path(folder)} lacks {', '.join(missing)}, which {how} leaves: a report needs a finished training"
        )
    try:
        facts, *log = (json.loads(line) for line in Path(f"{stem}.log").read_text(encoding="utf-8").splitlines())
        given = facts["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{stem}.log cannot be read as the log of a training") from error
    recipe = {"kind": kind, **dataclasses.asdict(config)}
    check_same(Path(f"{stem}.log"), given, recipe, "restore the config, or train it")
    rows = read_profile(f"{stem}.profile.csv") if Path(f"{stem}.profile.csv").is_file() else []
    arrays = read_npz(f"{stem}.samples.npz", listed=True)
    left = (arrays[name] for name in ("images", "samples", "frames"))
    return Left(facts, log, rows, *left, int(arrays["nfe"]))


def crossing_rows(profile: Sequence[Mapping[str, float]], levels: Sequence[float] = LEVELS) -> list[dict[str, Any]]:
    """Return a row per level of SSIM: where its mean over the pictures first crosses it, and where it does to stay.

    Columns: ``level``; ``first_`` and ``sustained_`` (for three profiles in a row) ``seconds``, ``seconds_with_solve``,
    ``step``, ``images_seen`` and ``mse`` there; None where the level is not crossed.
    """
    rows, solve = [], profile[0]["solve_seconds"]
    seconds, values = ([row[name] for row in profile] for name in ("train_seconds", "ssim"))
    for level in levels:
        row: dict[str, Any] = {"level": level}
        for name, at in crossings(seconds, values, level)._asdict().items():
            row[f"{name}_seconds"] = at
            row[f"{name}_seconds_with_solve"] = None if at is None else at + solve
            for column in ("step", "images_seen", "mse"):
                there = None if at is None else float(np.interp(at, seconds, [r[column] for r in profile]))
                row[f"{name}_{column}"] = there
        rows.append(row)
    return rows


def final_metrics(left: Left) -> list[dict[str, float]]:
    """Return MSE and SSIM of each picture's last sample, as published (scaled to [0, 1]) and clipped to [0, 1]."""
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in zip(left.images, left.samples, strict=True)]
    return [
        {"mse": mse(*pair), "ssim": ssim(*pair), "mse_clip": mse(*pair, "clip"), "ssim_clip": ssim(*pair, "clip")}
        for pair in pairs
    ]


def write(kind: str, config: PicturesConfig, folder: str | Path, profile: bool = False) -> Path:
    """Write NAME.report.pdf beside what the run has left, and return its path; errors as :func:`read`."""
    left = read(kind, config, folder, profile)
    try:
        from matplotlib.backends.backend_pdf import PdfPages
    except ImportError:
        raise UserError("a report needs matplotlib: pip install 'dmcmc-core[notebooks]'") from None

    from dmcmc_core.report.plots.style import styled

    path = Path(folder) / f"{config.name}.report.pdf"
    pages = [_numbers_page, _curves_page, _strip_page]
    with replacing(path) as part, PdfPages(part, metadata={"CreationDate": None, "Title": config.name}) as pdf:
        for page in pages:
            pdf.savefig(styled(page)(kind, config, left))
    path.chmod(0o644)
    return path


def parameters(kind: str, config: PicturesConfig, left: Left) -> dict[str, str]:
    """Return what the report says about a run, name -> text."""
    train, solve = left.log[-1]["seconds"], left.facts.get("solve")
    before = solve["density_seconds"] + solve["solve_seconds"] if solve else 0.0
    h, w = left.images.shape[-2:]
    rows = {
        "method": kind,
        "pictures": f"{len(left.images)} of {config.pictures}, {h} x {w}",
        "steps": f"{config.steps} of {config.batch} noised images, {config.steps * config.batch} in all",
        "seconds": f"{before + train:.1f} in all, {train:.1f} of them training",
        "learning rate": f"{config.lr:g}, risen to over {config.warmup} steps" if config.warmup else f"{config.lr:g}",
        "averaging, clip, seed": f"{config.ema:g}, {config.clip:g}, {config.seed}",
        "sampler": f"{'RK45' if solve else kind}, {config.start} start"
        + (f" of weight {config.weight:g}" if config.start == "conditional" else "")
        + f", {left.nfe} network calls",
    }
    if solve:
        rows |= {
            "sigma, N": f"{left.facts['config']['sigma']:g}, {left.facts['config']['times']}",
            "field": f"{left.facts['config']['mode']}, {left.facts['config']['density']} density, tolerance "
            f"{left.facts['config']['tol']:g}, dh {left.facts['config']['dh']:g}",
            "solve": f"{solve['density_seconds']:.2f} s density, {solve['solve_seconds']:.2f} s solve, passes "
            + ", ".join(map(str, solve["passes"])),
            "time embedding": "{time_embedding}, multiplier {multiplier:g}".format_map(left.facts["config"]),
        }
    else:
        rows["betas"] = f"{left.facts['config']['beta_min']:g} to {left.facts['config']['beta_max']:g}"
        rows["betas"] += f", {left.facts['config']['times']} times"
    return rows


def _numbers_page(kind: str, config: PicturesConfig, left: Left) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=PAGE, layout="constrained")
    blocks = [("Parameters", ["", ""], [list(row) for row in parameters(kind, config, left).items()])]
    final = [[str(i), *(f"{v:.5f}" for v in row.values())] for i, row in enumerate(final_metrics(left), 1)]
    head = ["picture", "MSE", "SSIM", "MSE, clipped", "SSIM, clipped"]
    blocks.append(("Last samples, scaled to [0, 1] as published or clipped to it", head, final))
    if left.profile:
        names = ("seconds", "seconds_with_solve", "step", "mse")
        head = ["SSIM", *(f"{which}\n{name.replace('_', ' ')}" for which in ("first", "sustained") for name in names)]
        body = [
            [f"{row['level']:.2f}", *(_text(row[f"{which}_{n}"]) for which in ("first", "sustained") for n in names)]
            for row in crossing_rows(left.profile)
        ]
        blocks.append(("Crossings of the mean SSIM; sustained: for three profiles in a row", head, body))
    heights = [len(body) + 2 for _, _, body in blocks]
    for axes, (title, head, body) in zip(figure.subplots(len(blocks), 1, height_ratios=heights), blocks, strict=True):
        _table(axes, title, head, body)
    figure.suptitle(config.name)
    return figure


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.1f}"


def _table(axes: Axes, title: str, head: list[str], body: list[list[str]]) -> None:
    axes.axis("off")
    axes.set_title(title, loc="left")
    two = len(head) == 2
    labels = {} if two else {"colLabels": head}
    table = axes.table(
        body, **labels, loc="upper left", cellLoc="left", edges="horizontal", colWidths=[0.22, 0.78] if two else None
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.3)
    if not two:
        for column in range(len(head)):
            table[0, column].set_height(table[1, column].get_height() * (1 + max(h.count("\n") for h in head)))


def _curves_page(kind: str, config: PicturesConfig, left: Left) -> Figure:
    """Draw the loss of each picture, and SSIM and MSE against seconds with an axis of steps above."""
    from matplotlib.figure import Figure

    from dmcmc_core.report.plots.style import GREY, look

    figure = Figure(figsize=PAGE, layout="constrained")
    panels = list(figure.subplots(3 if left.profile else 1, 1, squeeze=False)[:, 0])
    turns = len(left.images) if kind == "embedded" else 1
    for turn in range(turns):
        rows = [row for row in left.log if (row["step"] - 1) % turns == turn]
        label = f"picture {turn + 1}" if turns > 1 else None
        x, y = [row["step"] for row in rows], [row["loss"] for row in rows]
        panels[0].plot(x, y, ".-", label=label, color=look(turn)["color"])
    panels[0].set(xlabel="step", ylabel="loss", yscale="log", title="Loss")
    for axes, name in zip(panels[1:], ("ssim", "mse"), strict=bool(left.profile)):
        seconds = [row["train_seconds"] for row in left.profile]
        for i in range(1, len(left.images) + 1 if len(left.images) > 1 else 1):
            values = [row[f"{name}_{i}"] for row in left.profile]
            axes.plot(seconds, values, label=f"picture {i}", linewidth=0.8, color=look(i - 1)["color"])
        axes.plot(seconds, [row[name] for row in left.profile], "k.-", label="mean" if len(left.images) > 1 else None)
        axes.set(xlabel="seconds of training, solve and sampling not counted", ylabel=name.upper())
        axes.set_yscale("log" if name == "mse" else "linear")
        if name == "ssim":
            for level in LEVELS:
                axes.axhline(level, color=GREY, linewidth=0.5, linestyle=":")
        _steps_above(axes, seconds, [row["step"] for row in left.profile])
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _steps_above(axes: Axes, seconds: Sequence[float], steps: Sequence[float]) -> None:
    """Put an axis of steps above one of seconds; both begin at 0 and rise together."""
    x, y = [0.0, *seconds], [0.0, *steps]
    above, wanted = axes.twiny(), np.linspace(0, y[-1], 6)
    above.set_xticks(np.interp(wanted, y, x), [f"{step:.0f}" for step in wanted])
    for each in (axes, above):
        each.set_xlim(0, 1.02 * x[-1])
    above.set_xlabel("step")
    above.grid(False)


def _strip_page(kind: str, config: PicturesConfig, left: Left) -> Figure:
    """Draw frames of the sampler from its start to the sample, and the picture."""
    from matplotlib.figure import Figure

    from dmcmc_core.report.plots.images import as_pictures

    frames, n = left.frames, len(left.images)
    figure = Figure(figsize=(PAGE[0], 1.6 * n + 0.6), layout="constrained")
    for i, across in enumerate(figure.subplots(n, len(frames) + 1, squeeze=False)):
        titles = [*(f"{100 * k / (len(frames) - 1):.0f} % of steps" for k in range(len(frames))), "picture"]
        for axes, image, title in zip(across, as_pictures([*frames[:, i], left.images[i]]), titles, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.axis("off")
            axes.set_title(title if not i else "")
    figure.suptitle(f"{config.name}: samples on their way")
    return figure
