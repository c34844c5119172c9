"""The published half of ``figures/``: what the project shows, committed, beside what every machine makes for itself.

``figures/published/PROFILE`` has the pictures, CSVs and Markdown tables of items. CSVs are the bytes of the run and
pictures are made small. Where an item comes from stands once in ``provenance.json`` instead of in each of its files.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError
from dmcmc_core.files import part_name, write_json, write_text
from dmcmc_core.report import tables
from dmcmc_core.report.compare import difference
from dmcmc_core.workbench.experiments.gallery import write_gallery
from dmcmc_core.workbench.experiments.keys import ingredients, missing_files, run_key
from dmcmc_core.workbench.experiments.manifest import Item, Project
from dmcmc_core.workbench.experiments.reports import Outcome, columns, outcome_of, write_claims, write_results
from dmcmc_core.workbench.experiments.runs import is_complete, lock, newest_run

LONG = re.compile(r"-?\b\d+\.\d{7,}(?:e[-+]?\d+)?\b")
"""A number with more digits than a published table needs, which float32 does not have either."""
SHOWN = (".png", ".csv", ".md")
"""Endings of the files that are published; PDF and LaTeX are for whoever runs an item."""
WIDE = 1000
"""Pixels beyond which a picture is halved: figures are drawn at twice the density at which a page shows them."""
COLOURS = (64, 96, 128, 256)
"""As many as are tried for a picture: with 16, thin lines of blue and green became one colour."""
ERROR = 2.5
"""Root mean square error, of 255, above which a picture gets more of these colours."""


def publish(project: Project, profile: str = "local", only: Sequence[str] = ()) -> Path:
    """Copy what finished runs made into ``figures/published``, all or nothing, and write the gallery.

    Args:
        project: the checkout.
        profile: one that is shown: ``local``, ``full`` or ``paper``.
        only: ids of items; all of the profile's items when empty. What is published of others stays.

    Returns:
        The profile's published folder.

    Raises:
        UserError: for unknown names, and for items that have not run or whose run is out of date.
    """
    items = project.select(only, profile)
    if project.figures(profile) is None:
        raise UserError(f"profile {profile!r} is shown nowhere and cannot be published; local, full and paper can")
    runs, folder = _finished(project, items, profile), project.published(profile)
    with lock(project.root / "exp" / "runs" / ".publish.lock"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = part_name(folder)
        try:
            _build(part, project, items, profile, runs)
            _replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        write_gallery(project)
    return folder


def _finished(project: Project, items: Sequence[Item], profile: str) -> dict[str, Path]:
    """Return the folder of each item's run as it would be made now; UserError where one is not there."""
    runs, missing = {}, {"not run": [], "out of date": []}
    for item in items:
        here = not missing_files(project, item, profile)
        folder = project.folder(item, run_key(ingredients(project, item, profile))) if here else None
        if folder and is_complete(folder, item):
            runs[item.id] = folder
        else:
            missing["out of date" if newest_run(project, item, profile) else "not run"].append(item.id)
    if any(missing.values()):
        which = "; ".join(f"{why}: {', '.join(ids)}" for why, ids in missing.items() if ids)
        remedy = f"python -m dmcmc_core reproduce --profile {profile}"
        raise UserError(f"nothing is published, as runs under {profile} are missing ({which}): {remedy} makes them")
    return runs


def _build(part: Path, project: Project, items: Sequence[Item], profile: str, runs: Mapping[str, Path]) -> None:
    """Write the folder as it is to be: what is published already, these items in the place of their older selves."""
    folder, entries = project.published(profile), project.published_items(profile)
    shutil.copytree(folder, part) if folder.is_dir() else part.mkdir()
    for item in items:
        for name in entries.get(item.id, {}).get("files", ()):
            (part / name).unlink(missing_ok=True)
        entries[item.id] = entry(item, runs[item.id], profile)
        for name in entries[item.id]["files"]:
            copy_small(runs[item.id] / name, part / name)
    write_provenance(part, project, profile, entries)
    write_claims(project, profile, part, runs)
    write_results(project, profile, part / "results.csv", runs)
    copy_small(part / "results.csv", part / "results.csv")
    for name in ("claims.tex", "results.parquet"):
        (part / name).unlink(missing_ok=True)
    if (part / "claims.md").is_file():
        copy_small(part / "claims.md", part / "claims.md")


def _replace(part: Path, folder: Path) -> None:
    """Put a folder in the place of another one, which comes back where that fails."""
    old = part_name(folder)
    if folder.is_dir():
        os.replace(folder, old)
    try:
        os.replace(part, folder)
    except BaseException:
        if old.is_dir():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def entry(item: Item, run: Path, profile: str) -> dict[str, Any]:
    """Return what ``provenance.json`` says of an item: its command, what made it, what came out, its files."""
    origin, outcome = tables.read_provenance(run), outcome_of(run, item)
    return {
        "command": f"python -m dmcmc_core reproduce --profile {profile} --only {item.id}",
        **{key: origin[key] for key in tables.EMBEDDED if key in origin and key not in ("item", "profile")},
        "verdict": outcome.verdict,
        "seconds": outcome.seconds,
        "files": [name for name in item.outputs if name.endswith(SHOWN)],
    }


def write_provenance(folder: Path, project: Project, profile: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the ``provenance.json`` of a published folder, its items in the order of the manifest."""
    order = [item.id for item in project.items if item.id in entries]
    order += [id for id in entries if id not in order]
    write_json(folder / "provenance.json", {"profile": profile, "items": {id: entries[id] for id in order}})


def copy_small(source: Path, target: Path) -> None:
    """Copy a file as it is published: pictures small, tables without their provenance, CSVs to seven digits."""
    if source.suffix == ".png":
        _copy_picture(source, target)
    elif source.suffix == ".csv":
        write_text(target, LONG.sub(lambda found: f"{float(found[0]):.7g}", source.read_text(encoding="utf-8")))
    elif source.suffix == ".md":
        write_text(target, tables.without_provenance(source.read_text(encoding="utf-8")))
    else:
        shutil.copyfile(source, target)


def _copy_picture(source: Path, target: Path) -> None:
    """Write a picture at the size at which a page shows it, with as many colours as it needs to look the same."""
    from PIL import Image, ImageChops, ImageStat

    with Image.open(source) as image:
        drawn = image.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    if picture.width > WIDE:
        picture = picture.reduce(2)
    for colours in COLOURS:
        small = picture.quantize(colours, kmeans=1, dither=Image.Dither.NONE)
        error = ImageStat.Stat(ImageChops.difference(picture, small.convert("RGB"))).rms
        if max(error) < ERROR:
            break
    small.save(target, "PNG", optimize=True)


def beside_published(project: Project, outcomes: Sequence[Outcome], profile: str) -> str:
    """Return how far each table of these runs is from the published one of its name, as aligned text.

    A table's number is the largest relative difference of two numbers in one place; times are left out.
    """
    rows = [("item", "table", "largest difference", "verdicts changed", "")]
    for outcome in outcomes:
        if not outcome.failed:
            rows += _differences(outcome, project.published(profile))
    place = project.published(profile).relative_to(project.root).as_posix()
    return f"relative to what is published in {place}, times left out:\n{columns(rows)}" if rows[1:] else ""


def _differences(outcome: Outcome, published: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row of that text for each CSV of a run."""
    for name in (name for name in outcome.item.outputs if name.endswith(".csv")):
        about = (outcome.item.id, name.removeprefix(f"{outcome.item.id}-").removesuffix(".csv"))
        if not (published / name).is_file():
            yield (*about, "", "", "not published yet")
            continue
        try:
            found = difference(outcome.folder / name, published / name)
        except (OSError, ValueError, csv.Error) as error:
            yield (*about, "", "", f"cannot be compared ({error})")
            continue
        if found.shape:
            yield (*about, "", "", found.shape)
        else:
            texts = f"{found.words} cells of text differ" if found.words else ""
            yield (*about, f"{found.number:.1g}", str(found.verdicts), texts)
