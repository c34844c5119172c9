"""``boundary``: fit a semantic boundary, search the time to edit at, and edit images across boundaries."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmcmc_core.errors import UserError, number, one_of
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb

if TYPE_CHECKING:
    from torch import Tensor


STEPS = 40
OF_STEPS = {
    "fit": "times of the inversion",
    "search": "times, up to the last that the model knows",
    "edit": "times from noise to the boundary's; those of --image are the boundary's",
}


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``boundary``."""
    jobs = p.add_subparsers(dest="job", metavar="JOB", required=True, help="fit, search or edit")
    fit = jobs.add_parser("fit", help="the boundary between images of two kinds")
    fit.add_argument("--positive", required=True, metavar="IMAGES", help="what the boundary points to")
    fit.add_argument("--negative", required=True, metavar="IMAGES", help="what it points away from")
    fit.add_argument("--level", default="z", metavar="L", help="z, the pixels of latents, or h, the bottleneck")
    fit.add_argument("--time", type=int, default=500, metavar="T", help="of the edit, of 1000 times (default: 500)")
    fit.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    search = jobs.add_parser("search", help="radii of inverted and sampled latents, and the mixing time")
    search.add_argument("--images", required=True, metavar="IMAGES")
    search.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets radii.csv and radii.png")
    edit = jobs.add_parser("edit", help="images across boundaries, at several strengths")
    edit.add_argument("--boundary", type=Path, nargs="+", required=True, metavar="FILE", help="one or more, of a time")
    edit.add_argument("--image", metavar="IMAGES", help="to edit; else images that begin as noise")
    edit.add_argument("--seed", type=int, default=0, metavar="S", help="of what begins as noise, and of the way back")
    edit.add_argument("--strength", type=float, nargs="+", default=[-3, -1, 1, 3], metavar="Z", help="zeta")
    edit.add_argument("--how", default="set", metavar="H", help="set the projection, as released, or add to it")
    edit.add_argument("--eta", type=float, default=1.0, metavar="E", help="noise of the way back, 0 to 1 (default: 1)")
    edit.add_argument("--injection", default="lagged", metavar="I", help="of level h: lagged, as released, or first")
    edit.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets strip.png and edited.npz")
    for job in (fit, search, edit):
        job.add_argument("--model", required=True, metavar="M", help="a name or a checkpoint; see models")
        job.add_argument("--num", type=int, default=100, metavar="N", help="images at most, of either kind")
        job.add_argument("--steps", type=int, metavar="K", help=f"{OF_STEPS[job.prog.split()[-1]]} (default: {STEPS})")
        job.add_argument("--label", type=int, metavar="K", help="the class that a network with classes is held to")
        job.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")


def boundary(a: argparse.Namespace) -> int:
    """Do the job, once all that its words alone can tell is right."""
    from dmcmc_core.checkpoints import load_model
    from dmcmc_core.runs.model import conditioned, encoder_of

    if a.num < 1:
        raise UserError(f"--num must be at least 1, not {a.num}")
    {"fit": _check_fit, "search": _check_search, "edit": _check_edit}[a.job](a)
    model = load_model(a.model, a.device)
    if encoder := encoder_of(model):
        raise UserError(f"{a.model} makes latents of {encoder}, and a boundary is one of images")
    model, _ = conditioned(model, {} if a.label is None else {"label": a.label}, starts=False)
    a.steps = STEPS if a.steps is None else a.steps
    return {"fit": _fit, "search": _search, "edit": _edit}[a.job](a, model)


def _check_fit(a: argparse.Namespace) -> None:
    from dmcmc_core import boundary as core
    from dmcmc_core.workbench.studies import boundary as study

    one_of("--level", a.level, *study.LEVELS)
    number("--time", a.time, least=1, below=core.STEPS, whole=True)
    number("--steps", STEPS if a.steps is None else a.steps, least=2, most=a.time + 1, whole=True)
    if a.positive == a.negative:
        raise UserError(f"--positive and --negative are both {a.positive}: two kinds are needed")
    if a.out.suffix != ".safetensors":
        raise UserError(f"a boundary must end in .safetensors, not {str(a.out)!r}")
    _check_place(a.out.parent)
    if a.out.exists():
        try:
            core.load(a.out)
        except UserError as error:
            raise UserError(f"{a.out} is there and is no boundary: choose another name") from error


def _check_search(a: argparse.Namespace) -> None:
    number("--steps", STEPS if a.steps is None else a.steps, least=2, whole=True)
    _check_place(a.out)


def _check_edit(a: argparse.Namespace) -> None:
    for strength in a.strength:
        number("--strength", strength)
    if len({f"{strength:g}" for strength in a.strength}) < len(a.strength):
        raise UserError(f"every --strength must be another one in six digits, not {a.strength}")
    if a.steps is not None:
        if a.image is not None:
            raise UserError("the way of --image is that of the boundary: leave --steps out")
        number("--steps", a.steps, least=2, whole=True)
    one_of("--how", a.how, "set", "add")
    number("--eta", a.eta, least=0, most=1)
    one_of("--injection", a.injection, "lagged", "first")
    _check_place(a.out)


def _check_place(folder: Path) -> None:
    """Raise UserError unless a folder is there, or can be made."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"{place} is no folder: choose another --out")
    if not os.access(place, os.W_OK):
        raise UserError(f"nothing can be written to {place}: choose another --out")


def _images(a: argparse.Namespace, model: Any, name: str) -> Tensor:
    """Read at most ``--num`` images, of the shape of the model, to its device."""
    from dmcmc_core.data import open_images
    from dmcmc_core.workbench.studies import boundary as study

    read = study.images_of if name.partition(":")[0] in study.LABELLED else open_images
    images = read(name)[: a.num]
    if images.shape[1:] != tuple(model.shape):
        raise UserError(f"the model is of images {tuple(model.shape)}, those of {name} are {tuple(images.shape[1:])}")
    return images.to(a.device)


@contextmanager
def _progress(model: Any, rows: int, calls: int) -> Iterator[None]:
    """Show a bar of network calls on a terminal, of so many for each block of rows; none where there is no network."""
    from tqdm import tqdm

    from dmcmc_core.denoiser import BLOCK

    net, blocks = getattr(model, "net", None), -(-rows // getattr(model, "block", BLOCK))
    with tqdm(total=blocks * calls, unit="call", disable=None if net is not None else True) as bar:
        handle = None if net is None else net.register_forward_hook(lambda *_: bar.update())
        try:
            yield
        finally:
            if handle:
                handle.remove()


def _fit(a: argparse.Namespace, model: Any) -> int:
    from dmcmc_core.boundary.hyperplane import LEAST
    from dmcmc_core.workbench.studies import boundary as study

    study.check_time(model, a.time)
    negative, positive = (_images(a, model, name) for name in (a.negative, a.positive))
    for name, images in ((a.negative, negative), (a.positive, positive)):
        if len(images) < LEAST:
            raise UserError(f"each kind needs {LEAST} latents, of {name} there is {len(images)}")
    with _progress(model, len(negative) + len(positive), a.steps - 1):
        made = study.fit(model, negative, positive, time=a.time, count=a.steps, level=a.level)
    made.save(a.out)
    held_out = made.card["held_out"]
    of = f"{held_out} images held out" if held_out else f"the {len(negative) + len(positive)} images it was fitted to"
    print(f"{a.out}: {made.accuracy:.1%} of {of} are on their side, at time {a.time}, level {a.level}")
    return 0


def _search(a: argparse.Namespace, model: Any) -> int:
    from dmcmc_core.report import plots, tables
    from dmcmc_core.workbench.studies import boundary as study

    images = _images(a, model, a.images)
    with _progress(model, len(images), 2 * a.steps - 1):
        rows, time = study.search(model, images, a.steps)
    columns = {"time": "time", "inverted": "radius, inverted", "sampled": "radius, sampled", "apart": "widths apart"}
    caption = f"Mean radii of {len(images)} latents on both ways."
    tables.write_table(rows, columns, a.out, "radii", caption, provenance={})
    drawn = [
        {"panel": "latents", "arm": w, "x": row["time"], "y": row[w]} for row in rows for w in ("inverted", "sampled")
    ]
    plots.save_figure(plots.curve_panels(drawn, "time", "mean radius"), a.out, "radii", rows)
    at = "nowhere within one width of the shell" if time is None else f"within one width of the shell up to time {time}"
    print(f"{a.out / 'radii.csv'}: inverted and sampled latents are {at}")
    return 0


def _edit(a: argparse.Namespace, model: Any) -> int:
    from dmcmc_core import boundary as core
    from dmcmc_core.data import to_uint8
    from dmcmc_core.files import write_npz
    from dmcmc_core.workbench.studies import boundary as study

    boundaries = [core.load(path) for path in a.boundary]
    times, h = study.times_of(model, boundaries), None
    deep = any(study.level_of(one) == "h" for one in boundaries)
    columns, names = [], []
    if a.image is not None:
        columns, names = [_images(a, model, a.image)], ["image"]
        with _progress(model, len(columns[0]), len(times) - 1):
            z, h = study.last_of_both(model, columns[0], times, deep)
    else:
        z = study.sampled(model, a.seed, a.num, times[-1], a.steps)
        h = study.bottleneck(model, z, times) if deep else None
    way = study.Way(a.how, a.eta, a.injection, a.seed)
    for strength in (None, *a.strength):
        with _progress(model, len(z), len(times)):
            columns.append(study.edited(model, z, boundaries, strength, h, way))
        names.append("unedited" if strength is None else f"{strength:g}")
        print(f"{names[-1]}: {len(z)} images", flush=True)
    arrays = {name: to_uint8(images) for name, images in zip(names, columns, strict=True)}
    write_npz(a.out / "edited.npz", **arrays)
    path = study.strip(columns, a.out / "strip.png")
    print(f"{path}: a row for each image, columns {', '.join(names)}")
    return 0


BOUNDARY = Verb(
    boundary,
    arguments,
    "Control what a frozen network's images show, without training: a hyperplane between latents of images of two\n"
    "kinds, and edits along its normal (Zhu et al. 2023). IMAGES are a name, a folder, an NPZ file, or a kind of a\n"
    "labelled set: digits-train:3, digits-heldout:7, glyphs32:weight=700,slant=0, glyphs32-heldout:font=...",
    f"examples:\n  {PROGRAM} boundary fit --model digits-ddpm --positive digits-train:3 --negative digits-train:7 "
    f"--time 400 --out three.safetensors\n  {PROGRAM} boundary edit --model digits-ddpm --boundary three.safetensors "
    "--image digits-heldout:7 --num 8 --out edited",
)
