"""The study of semantic control beside its edits: when to edit, what inversion loses, and other uses of boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import boundary
from dmcmc_core.boundary import Boundary
from dmcmc_core.data import to_uint8
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.report.tables import Spread, claim, mean_and_spread
from dmcmc_core.workbench.studies import boundary as jobs
from dmcmc_core.workbench.studies.boundary import LEVELS, Latents, Way
from dmcmc_core.workbench.studies.boundary_measures import Bed, directions

EDITS = {
    "bed": "bed",
    "arm": "arm",
    "strength": "strength",
    "flipped": "flipped",
    "kept": "other attributes kept",
    "moved": "change of numbers",
    "identity": "distance to itself",
    "frechet": "Fréchet distance to real ones",
    "calls": "network calls, inversion included",
    "n": "n",
}
FITS = {
    "bed": "bed",
    "level": "level",
    "dimension": "numbers",
    "accuracy": "accuracy, held out",
    "spread": "spread of projections",
    "angle": "degrees to the difference of the means",
}
"""Columns of the tables of edits and of boundaries: key -> heading."""


def mixing(
    beds: Mapping[str, Bed], count: int, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return radii and accuracies at each of some times, and for each bed what follows.

    Radii are of the images of both kinds on their way up, and of as many samples on their way down, in units of the
    root of the dimension; accuracies are of boundaries fitted to one half of the images, on the other. ``time`` is the
    mixing time, None where there is none; ``inside`` the radius of images over that of samples at the last time.
    """
    rows, about = [], {}
    for name, bed in beds.items():
        images = torch.cat([bed.negative, bed.positive])
        found, at = jobs.search(bed.model, images, count, seed)
        about[name] = {"time": at, "inside": found[-1]["inverted"] / found[-1]["sampled"]}
        for row in found:
            at = {"panel": f"{name}: radius / √d", "x": row["time"]}
            rows += [{**at, "arm": arm, "y": row[arm] / images[0].numel() ** 0.5} for arm in ("inverted", "sampled")]
        rows += _accuracies(bed, [row["time"] for row in found])
    return rows, about


def _accuracies(bed: Bed, times: Sequence[int]) -> list[dict[str, Any]]:
    sides, rows = [jobs.both(bed.model, part, times) for part in (bed.negative, bed.positive)], []
    labels = [torch.tensor([0] * a + [1] * b) for a, b in (_halves(sides, even) for even in (0, 1))]
    for i, time in enumerate(times[1:]):
        for level in LEVELS:
            own, other = (torch.cat([getattr(side[i], level)[even::2] for side in sides]) for even in (0, 1))
            accuracy = boundary.fit(own, labels[0], (other, labels[1])).accuracy
            rows.append({"panel": f"{bed.name}: accuracy", "arm": f"boundary in {level}", "x": time, "y": accuracy})
    return rows


def _halves(sides: Sequence[Sequence[Latents]], even: int) -> list[int]:
    return [len(side[0].z[even::2]) for side in sides]


RETURNS, PUBLISHED = "back to the first time", "back to the image, as published"


def inversion_rows(bed: Bed, counts: Sequence[int], time: int) -> list[dict[str, Any]]:
    """Return the root mean square error, in [-1, 1], of sources that are inverted and brought back without noise.

    As published, images enter as states of time 0 and leave by one step more; the state at time 0 before that step is
    what returns to what entered.
    """
    epsilon, rows = boundary.epsilon_of(bed.model), []
    images = 2 * bed.source - 1
    for count in counts:
        times, states = boundary.grid(time, count), []
        boundary.reverse(epsilon, boundary.invert(epsilon, images, times), times, callback=states.append)
        for arm, end in ((RETURNS, states[-2]), (PUBLISHED, states[-1])):
            error = (end - images).square().mean().sqrt().item()
            rows.append({"panel": bed.name, "arm": arm, "x": count, "y": error})
    return rows


def order(rows: Sequence[Mapping[str, Any]], panel: str, arm: str) -> float:
    """Return the order of the error in the steps, of the two largest numbers of them."""
    (x, y), (x2, y2) = [(row["x"], row["y"]) for row in rows if (row["panel"], row["arm"]) == (panel, arm)][-2:]
    return math.log(y / y2) / math.log((x2 - 1) / (x - 1))


def fitted(bed: Bed, seed: int, *, time: int, count: int) -> dict[str, Any]:
    """Return the directions of :func:`dmcmc_core.workbench.studies.boundary_measures.directions`, of all images."""
    times = boundary.grid(time, count)
    sides = [jobs.both(bed.model, images, times)[-1] for images in (bed.negative, bed.positive)]
    return directions(sides, sides, {"time": time, "count": count, "network": fingerprint(bed.model)[:16]}, seed)


def unconditional_rows(
    bed: Bed, made: Mapping[str, Any], strengths: Sequence[float], seeds: Sequence[int], num: int, count: int
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Return which share of what began as noise is of the positive kind after edits, and the images of one seed.

    Boundaries and random directions are edited in z and h, as released; strengths of both signs.
    """
    rows, shown = [], []
    about = made["boundary"].of["z"].card
    times = boundary.grid(about["time"], about["count"])
    for seed in seeds:
        z = jobs.sampled(bed.model, seed, num, about["time"], count)
        h = jobs.bottleneck(bed.model, z, times)
        for name in ("boundary", "random"):
            chosen = [made[name].of[level] for level in LEVELS]
            for strength in strengths:
                images = jobs.edited(bed.model, z, chosen, strength, h, Way(seed=seed))
                share = bed.read(images).positive.double().mean().item()
                rows.append({"bed": bed.name, "arm": name, "strength": strength, "seed": seed, "positive": share})
                if seed == seeds[0] and name == "boundary":
                    shown.append(images)
    return rows, shown


def several(
    beds: Sequence[Bed], source: Tensor, strengths: Sequence[float], seeds: Sequence[int], *, time: int, count: int
) -> list[dict[str, Any]]:
    """Edit two attributes of the same images at once, in z, and each alone; a row for each way and seed.

    Args:
        beds: of the two attributes, of one model.
        source: images (N, C, H, W) in [0, 1].
        strengths: of either attribute.
        seeds: of the noise on the way back.
        time, count: as of :func:`fitted`.
    """
    made = [fitted(bed, 0, time=time, count=count)["boundary"].of["z"] for bed in beds]
    source = source.to(beds[0].negative.device)
    z = jobs.both(beds[0].model, source, boundary.grid(time, count))[-1].z
    one, two = (bed.name for bed in beds)
    ways = {one: [0], two: [1], f"{one}, {two}": [0, 1], f"{one}, {two}, not orthogonal": [0, 1]}
    before, rows = [bed.read(source).positive for bed in beds], []
    for seed in seeds:
        for name, chosen in ways.items():
            way = Way(seed=seed, orthogonal="not" not in name)
            images = jobs.edited(beds[0].model, z, [made[k] for k in chosen], [strengths[k] for k in chosen], None, way)
            changed = [bed.read(images).positive != was for bed, was in zip(beds, before, strict=True)]
            shares = {f"changed {k + 1}": c.double().mean().item() for k, c in enumerate(changed)}
            both = (changed[0] & changed[1]).double().mean().item()
            rows.append({"edited": name, "seed": seed, "n": len(images), **shares, "both": both})
    return [{**row, "cosine": (made[0].normal * made[1].normal).sum().item()} for row in rows]


def write_folder(images: Tensor, folder: str | Path) -> Path:
    """Write images (N, C, H, W) in [0, 1] as PNG files into a folder, as any program leaves them; return it."""
    from PIL import Image

    from dmcmc_core.files import replacing

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(to_uint8(images)):
        with replacing(folder / f"{i:05d}.png") as part:
            Image.fromarray(np.squeeze(image, -1) if image.shape[-1] == 1 else image).save(part, format="PNG")
    return folder


def of_folders(bed: Bed, folder: str | Path) -> Bed:
    """Return a bed whose images to fit with are two folders of PNG files, written from those of another one."""
    kinds = {}
    for kind in ("negative", "positive"):
        written = write_folder(getattr(bed, kind).cpu(), Path(folder) / kind)
        kinds[kind] = jobs.images_of(str(written)).to(bed.negative.device)
    return bed._replace(name=f"{bed.name}, folders", **kinds)


def spreads(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], by: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each group of equal ``by``, with mean and spread of each column over its seeds.

    None stands for a column that is no number.
    """
    made = {tuple(row[key] for key in by): dict.fromkeys(columns) for row in rows}
    for column in columns:
        for row in mean_and_spread((row for row in rows if not math.isnan(row[column])), column, by):
            made[tuple(row[key] for key in by)][column] = row[column]
    return [dict(zip(by, key, strict=True)) | row for key, row in made.items()]


def curves(table: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return rows for a figure of each column against the strength: a panel for each bed and column."""
    return [
        {"panel": f"{row['bed']}: {title}", "arm": row["arm"], "x": row["strength"], "y": row[column]}
        for row in table
        for column, title in columns.items()
        if row["strength"] and row[column] is not None
    ]


def best(table: Sequence[Mapping[str, Any]], bed: str, arm: str) -> Mapping[str, Any]:
    """Return the row of the strength at which an arm of a bed flips most."""
    return max((row for row in table if (row["bed"], row["arm"]) == (bed, arm)), key=lambda row: row["flipped"].mean)


def boundaries_agree(one: Boundary, other: Boundary) -> float:
    """Return the angle between two normals, in degrees."""
    return math.degrees(math.acos(min(1.0, (one.normal.double() * other.normal.double()).sum().item())))


FIGURE = "arXiv 2302.08357, the figure of strengths in each space; pictures, no numbers"


def claims(
    table: Sequence[Mapping[str, Any]],
    fits: Sequence[Mapping[str, Any]],
    returning: Sequence[Mapping[str, Any]],
    mixed: Mapping[str, Any],
    where: str,
) -> list[dict[str, Any]]:
    """Return what the paper shows and what was found here, some lines for each bed."""
    made = []
    for bed in dict.fromkeys(row["bed"] for row in table):
        made += _of_edits(
            [row for row in table if row["bed"] == bed], [row for row in fits if row["bed"] == bed], where
        )
        first = order(returning, bed, RETURNS)
        ends = [row["y"] for row in returning if row["panel"] == bed and row["arm"] == PUBLISHED]
        said = f"order {first:.2f}; as published {ends[-1]:.4f} at the most steps ({bed})"
        made.append(claim("inversion and the way back return the image at first order", first > 0.7, said))
        inside = mixed[bed]["inside"]
        said = f"their radius is {inside:.4f} of that of sampled ones at the last time ({bed})"
        made.append(claim("inverted latents lie inside the shell of sampled ones", inside < 1, said, "slightly inside"))
    return made


def _of_edits(
    table: Sequence[Mapping[str, Any]], fits: Sequence[Mapping[str, Any]], where: str
) -> list[dict[str, Any]]:
    """Return the claims on edits in one bed; of its levels only where edits change anything."""
    bed, arms = table[0]["bed"], {row["arm"] for row in table}
    full, chance, base = (best(table, bed, arm) for arm in ("z and h, as released", "z and h, random", "no edit"))
    right = next(row["accuracy"] for row in fits if row["level"] == "z")
    said = f"{_share(full)} against {_share(chance)} at random and {_share(base)} without an edit ({bed}, {where})"
    note = f"the boundary in z is right on {right.mean:.0%} of unseen latents"
    made = [claim("edits across a boundary change the attribute", _more(full, chance), said, note=note)]
    if not made[0]["holds"]:
        return made
    z, h, scaled = (best(table, bed, arm) for arm in ("z", "h", "h, scaled"))
    said = f"z alone {_share(z)}, both {_share(full)} ({bed}, {where})"
    near = z["flipped"].mean >= 0.8 * full["flipped"].mean
    made.append(claim("z alone controls as much as both", near, said, "nearly the same", FIGURE))
    said = f"h alone {_share(h)}, scaled {_share(scaled)}, no edit {_share(base)} ({bed}, {where})"
    rise = max(h["flipped"].mean, scaled["flipped"].mean) - base["flipped"].mean
    hardly = rise < 0.25 * (full["flipped"].mean - base["flipped"].mean)
    swapped = "h of another image"
    note = f"bottlenecks of other images in their place: {_share(best(table, bed, swapped))}" if swapped in arms else ""
    made.append(claim("h alone hardly controls", hardly, said, "essentially no change", FIGURE, note))
    if "z, mean difference" in arms:
        means = best(table, bed, "z, mean difference")
        said = f"boundary {_share(z)}, difference of the means {_share(means)}, both in z ({bed}, {where})"
        made.append(claim("a boundary changes more than the difference of the means", _more(z, means), said))
    return made


def _share(row: Mapping[str, Any]) -> str:
    flipped: Spread = row["flipped"]
    at = f" at {row['strength']:g}" if row["strength"] else ""
    return f"{flipped.mean:.0%} ± {flipped.spread:.0%}{at}"


def _more(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    a, b = one["flipped"], other["flipped"]
    return a.mean - a.spread > b.mean + b.spread
