"""Reports on runs: the table at the end, every claim and every measured cell in one table, the list of items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.files import write_text
from dmcmc_core.report import tables
from dmcmc_core.workbench.experiments.keys import ingredients, missing_files, run_key
from dmcmc_core.workbench.experiments.manifest import PROFILES, Item, Project, here
from dmcmc_core.workbench.experiments.runs import failed_folder, is_complete, newest_run, read_metrics


class Outcome(NamedTuple):
    """The result of asking for an item: its verdict, the time of its run, whether that run was already there."""

    item: Item
    verdict: str
    seconds: float | None
    failed: bool = False
    unchanged: bool = False
    folder: Path | None = None


def verdict(metrics: Mapping[str, Any]) -> str:
    """Say how many claims of a run hold; one that does not is a result like one that does."""
    claims = metrics["claims"]
    if not claims:
        return "done, claims nothing"
    held = sum(c["holds"] for c in claims)
    return f"{held} of {len(claims)} claims hold" if len(claims) > 1 else f"{held} of 1 claim holds"


def outcome_of(folder: Path, item: Item, unchanged: bool = False) -> Outcome:
    """Return the outcome that a finished run tells."""
    seconds = json.loads((folder / "provenance.json").read_text())["seconds"]
    return Outcome(item, verdict(read_metrics(folder)), seconds, unchanged=unchanged, folder=folder)


def numbers(outcome: Outcome) -> dict[str, float]:
    """Return what a tracker records of a run that has ended, under the item's name; its step is the time in seconds."""
    found = {"seconds": round(outcome.seconds, 1), "failed": int(outcome.failed)}
    if not outcome.failed:
        claims = read_metrics(outcome.folder)["claims"]
        found |= {"claims": len(claims), "claims that hold": sum(claim["holds"] for claim in claims)}
    return {f"{outcome.item.id}/{name}": number for name, number in found.items()}


CLAIM = {
    "item": "item", "claim": "claim", "published": "published", "source": "source", "here": "here", "holds": "holds",
    "note": "note",
}  # fmt: skip


def newest_runs(project: Project, profile: str) -> dict[str, Path]:
    """Return the folder of the newest finished run of each item that has one under a profile."""
    runs = {item.id: newest_run(project, item, profile) for item in project.items if profile in item.parameters}
    return {id: run for id, run in runs.items() if run}


def write_claims(
    project: Project, profile: str, folder: Path | None = None, runs: Mapping[str, Path] | None = None
) -> list[Path]:
    """Write every claim of every item's run under a profile as one table, ``claims.*``.

    Args:
        folder: where to; among the figures when None, and nowhere for a profile that has none.
        runs: id -> folder of a run; the newest ones when None. Of other items the claims stay that the table has
            already, as their other figures do.

    Returns:
        The paths written, none where there is no claim.
    """
    folder, rows = folder or project.figures(profile), []
    if folder is None:
        return []
    runs, there = newest_runs(project, profile) if runs is None else runs, tables.read_csv(folder / "claims.csv")
    for item in project.items:
        if item.id in runs:
            rows += [{"item": item.id, **claim} for claim in read_metrics(runs[item.id])["claims"]]
        else:
            rows += [row | {"holds": row["holds"] == "True"} for row in there if row["item"] == item.id]
    if not rows:
        return []
    held = sum(row["holds"] for row in rows)
    caption = f"Every claim that a notebook looks into, profile {profile}: {held} of {len(rows)} hold here."
    return tables.write_table(rows, CLAIM, folder, "claims", caption)


def write_results(
    project: Project, profile: str, path: Path | None = None, runs: Mapping[str, Path] | None = None
) -> list[Path]:
    """Write every measured cell of every item's run under a profile as one long table, ``results.csv``.

    Where pyarrow is importable ``results.parquet`` is beside it. No file is written where there is neither run nor row.

    Args:
        path: where to; among the figures when None, and for smoke in ``exp/runs``.
        runs: id -> folder of a run; the newest ones when None. Of other items the rows stay that the table has.
    """
    path, rows = path or project.results(profile), []
    runs, there = newest_runs(project, profile) if runs is None else runs, tables.read_csv(path)
    for item in project.items:
        if item.id in runs:
            rows += tables.read_csv(runs[item.id] / "results.csv")
        else:
            rows += [row for row in there if row["item"] == item.id]
    if not rows and not runs:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys([*tables.RESULT, *(key for row in rows for key in row)])
    return [tables.write_csv(rows, list(columns), path), *tables.write_parquet(path)]


def clock(seconds: float) -> str:
    """Return a duration for people: 8 s, 3 min 05 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns, the first row as the head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def report(outcomes: Sequence[Outcome]) -> str:
    """Return the table that a reproduction ends with, the claims that do not hold, and where failed runs lie."""
    rows = [("item", "verdict", "time", "")]
    notes = []
    for o in outcomes:
        took = clock(o.seconds) if o.seconds is not None else ""
        rows.append((o.item.id, o.verdict, took, "unchanged, not run again" if o.unchanged else ""))
        if o.failed:
            notes.append(f"{o.item.id}: see {o.folder / 'run.ipynb'} and log.txt beside it" if o.folder else "")
            continue
        for claim in read_metrics(o.folder)["claims"] if o.folder else ():
            if not claim["holds"]:
                published = f", published {claim['published']}" if claim["published"] else ""
                note = f" ({claim['note']})" if claim["note"] else ""
                notes.append(f"{o.item.id}: does not hold: {claim['claim']}; here {claim['here']}{published}{note}")
    return "\n".join([columns(rows), *([""] if any(notes) else []), *filter(None, notes)])


NOT_RUN = "not run"


def state(project: Project, item: Item, profile: str) -> tuple[str, str]:
    """Return verdict and time of an item's run under a profile, as far as there is one on this machine."""
    if profile not in item.parameters:
        return f"only under {', '.join(p for p in PROFILES if p in item.parameters)}", ""
    if missing_files(project, item, profile):
        return "files missing", ""
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    last = folder if is_complete(folder, item) else newest_run(project, item, profile)
    if last is None:
        return "failed" if failed_folder(folder).is_dir() else NOT_RUN, ""
    outcome = outcome_of(last, item)
    return outcome.verdict + ("" if last == folder else " (out of date)"), clock(outcome.seconds)


def overview(profile: str = "local", only: Sequence[str] = (), project: Project | None = None) -> str:
    """Return every item with its paper item, notebook, verdict and time, as aligned text; nothing is run."""
    project = project or here()
    items = project.select(only, profile) if only else project.items
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    rows = [("item", "paper item", "notebook", f"verdict ({profile})", "time")]
    rows += [(i.id, i.paper_item, i.notebook, *state(project, i, profile)) for i in items]
    return columns(rows)


def items_table(project: Project | None = None, profile: str = "local") -> str:
    """Return the table of items in Markdown, from the manifest and the newest runs, linked to what is published.

    Of an item that has not run on this machine verdict and time are those of the published run.
    """
    project = project or here()
    folder, entries, up = project.published(profile), project.published_items(profile), "../"  # it stands in docs/
    lines = ["| Item | Paper | Notebook | Verdict | Time | Outputs |", "|---|---|---|---|---|---|"]
    for item in project.items:
        result, took = state(project, item, profile)
        if result == NOT_RUN and item.id in entries:
            seconds = entries[item.id]["seconds"]
            result, took = entries[item.id]["verdict"], "" if seconds is None else clock(seconds)
        there = [name for name in item.outputs if (folder / name).is_file()]
        seen = [name for name in there if name.endswith((".png", ".md"))] or there
        place = folder.relative_to(project.root).as_posix()
        shown = ", ".join(f"[{name.removeprefix(f'{item.id}-')}]({up}{place}/{name})" for name in seen)
        title, paper = (text.replace("|", "\\|") for text in (item.title, item.paper_item))
        notebook = f"[{Path(item.notebook).name}]({up}{item.notebook})"
        lines.append(f"| `{item.id}`: {title} | {paper} | {notebook} | {result} | {took} | {shown} |")
    return "\n".join(lines)


def write_items(project: Project | None = None, profile: str = "local") -> Path:
    """Rewrite what stands between the two ``<!-- items -->`` markers of docs/reproduce.md.

    Raises:
        UserError: without them.
    """
    project = project or here()
    path = project.root / "docs" / "reproduce.md"
    mark = "<!-- items -->"
    parts = path.read_text(encoding="utf-8").split(mark) if path.is_file() else []
    if len(parts) != 3:
        raise UserError(f"{path} must hold the marker {mark} exactly twice, around the table of items")
    text = f"{parts[0]}{mark}\n{items_table(project, profile)}\n{mark}{parts[2]}"
    write_text(path, text)
    return path
