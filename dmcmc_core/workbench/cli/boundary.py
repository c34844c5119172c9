"""``boundary``: fit a semantic boundary, search the time to edit at, and edit images across boundaries."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmcmc_core.errors import UserError
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb


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
        job.add_argument("--steps", type=int, default=40, metavar="K", help="times of an inversion (default: 40)")
        job.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")


def boundary(a: argparse.Namespace) -> int:
    """Do the job."""
    from dmcmc_core.checkpoints import load_model

    if a.num < 1:
        raise UserError(f"--num must be at least 1, not {a.num}")
    return {"fit": _fit, "search": _search, "edit": _edit}[a.job](a, load_model(a.model, a.device))


def _fit(a: argparse.Namespace, model: object) -> int:
    from dmcmc_core.workbench.studies import boundary as study

    if a.out.suffix != ".safetensors":
        raise UserError(f"a boundary must end in .safetensors, not {str(a.out)!r}")
    negative, positive = (study.images_of(name)[: a.num].to(a.device) for name in (a.negative, a.positive))
    made = study.fit(model, negative, positive, time=a.time, count=a.steps, level=a.level)
    made.save(a.out)
    print(f"{a.out}: {made.accuracy:.1%} of the images held out are on their side, at time {a.time}, level {a.level}")
    return 0


def _search(a: argparse.Namespace, model: object) -> int:
    from dmcmc_core.report import plots, tables
    from dmcmc_core.workbench.studies import boundary as study

    rows, time = study.search(model, study.images_of(a.images)[: a.num].to(a.device), a.steps)
    columns = {"time": "time", "inverted": "radius, inverted", "sampled": "radius, sampled", "apart": "widths apart"}
    tables.write_table(rows, columns, a.out, "radii", f"Mean radii of {a.num} latents on both ways.", provenance={})
    drawn = [
        {"panel": "latents", "arm": w, "x": row["time"], "y": row[w]} for row in rows for w in ("inverted", "sampled")
    ]
    plots.save_figure(plots.curve_panels(drawn, "time", "mean radius"), a.out, "radii", rows)
    at = "nowhere within one width of the shell" if time is None else f"within one width of the shell up to time {time}"
    print(f"{a.out / 'radii.csv'}: inverted and sampled latents are {at}")
    return 0


def _edit(a: argparse.Namespace, model: object) -> int:
    from dmcmc_core import boundary as core
    from dmcmc_core.data import to_uint8
    from dmcmc_core.files import write_npz
    from dmcmc_core.workbench.studies import boundary as study

    boundaries = [core.load(path) for path in a.boundary]
    about = boundaries[0].card
    if missing := [name for name in ("time", "count", "level") if name not in about]:
        raise UserError(f"{a.boundary[0]} does not tell its {missing[0]}: boundary fit writes it")
    times, h = core.grid(about["time"], about["count"]), None
    if a.image:
        images = study.images_of(a.image)[: a.num].to(a.device)
        z = study.latents(model, images, times)
        columns, names = [images], ["image"]
    else:
        z, columns, names = study.sampled(model, a.seed, a.num, about["time"], a.steps), [], []
    if any(one.card.get("level") == "h" for one in boundaries):
        h = study.bottleneck(model, z, times)
    way = study.Way(a.how, a.eta, a.injection, a.seed)
    for strength in (None, *a.strength):
        columns.append(study.edited(model, z, boundaries, strength, h, way))
        names.append("unedited" if strength is None else f"{strength:g}")
        print(f"{names[-1]}: {len(z)} images")
    a.out.mkdir(parents=True, exist_ok=True)
    path = study.strip(columns, a.out / "strip.png")
    arrays = {name: to_uint8(images) for name, images in zip(names, columns, strict=True)}
    write_npz(a.out / "edited.npz", **arrays)
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
