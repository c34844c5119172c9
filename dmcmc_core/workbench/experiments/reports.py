"""What is told of the runs: the table at the end, every claim in one table, the list in README.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.report import tables
from dmcmc_core.workbench.experiments.keys import ingredients, missing_files, run_key
from dmcmc_core.workbench.experiments.manifest import PROFILES, Item, Project, here
from dmcmc_core.workbench.experiments.runs import failed_folder, is_complete, newest_run, read_metrics


class Outcome(NamedTuple):
    """What became of an item: its verdict, the time of its run, and whether that run was already there."""

    item: Item
    verdict: str
    seconds: float | None
    failed: bool = False
    unchanged: bool = False
    folder: Path | None = None


def verdict(metrics: Mapping[str, Any]) -> str:
    """A claim that does not hold is a result like one that does."""
    claims = metrics["claims"]
    if not claims:
        return "done, claims nothing"
    held = sum(c["holds"] for c in claims)
    return f"{held} of {len(claims)} claims hold" if len(claims) > 1 else f"{held} of 1 claim holds"


def outcome_of(folder: Path, item: Item, unchanged: bool = False) -> Outcome:
    seconds = json.loads((folder / "provenance.json").read_text())["seconds"]
    return Outcome(item, verdict(read_metrics(folder)), seconds, unchanged=unchanged, folder=folder)


def numbers(outcome: Outcome) -> dict[str, float]:
    """What a tracker is told of a run that has ended, under the item's name; its step is the time in seconds."""
    found = {"seconds": round(outcome.seconds, 1), "failed": int(outcome.failed)}
    if not outcome.failed:
        claims = read_metrics(outcome.folder)["claims"]
        found |= {"claims": len(claims), "claims that hold": sum(claim["holds"] for claim in claims)}
    return {f"{outcome.item.id}/{name}": number for name, number in found.items()}


CLAIM = {
    "item": "item", "claim": "claim", "published": "published", "source": "source", "here": "here", "holds": "holds",
    "note": "note",
}  # fmt: skip


def write_claims(project: Project, profile: str) -> list[Path]:
    """Every claim of every item's newest run under a profile as one table, ``claims.*`` among the figures.

    Of an item that has no run here the claims stay that the table has already, as its other figures do.
    """
    folder, rows = project.figures(profile), []
    if folder is None:
        return []
    there = tables.read_csv(folder / "claims.csv")
    for item in project.items:
        if run := newest_run(project, item, profile) if profile in item.parameters else None:
            rows += [{"item": item.id, **claim} for claim in read_metrics(run)["claims"]]
        else:
            rows += [row | {"holds": row["holds"] == "True"} for row in there if row["item"] == item.id]
    if not rows:
        return []
    held = sum(row["holds"] for row in rows)
    caption = f"Every claim that a notebook looks into, profile {profile}: {held} of {len(rows)} hold here."
    return tables.write_table(rows, CLAIM, folder, "claims", caption)


def write_results(project: Project, profile: str) -> list[Path]:
    """Every measured cell of every item's newest run under a profile as one long table, ``results.csv``.

    It is among the figures, of smoke in ``exp/runs``; where pyarrow is importable ``results.parquet`` is beside it. The
    rows of an item that has no run here stay, as those of its claims do. No file where there is neither run nor row.
    """
    path, rows, runs = project.results(profile), [], 0
    there = tables.read_csv(path)
    for item in project.items:
        if run := newest_run(project, item, profile) if profile in item.parameters else None:
            rows, runs = rows + tables.read_csv(run / "results.csv"), runs + 1
        else:
            rows += [row for row in there if row["item"] == item.id]
    if not rows and not runs:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys([*tables.RESULT, *(key for row in rows for key in row)])
    return [tables.write_csv(rows, list(columns), path), *tables.write_parquet(path)]


def clock(seconds: float) -> str:
    """A duration for people: 8 s, 3 min 05 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first row as the head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def report(outcomes: Sequence[Outcome]) -> str:
    """The table that a reproduction ends with, the claims that do not hold, and where failed runs can be looked at."""
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


def state(project: Project, item: Item, profile: str) -> tuple[str, str]:
    """Verdict and time of an item's run under a profile, as far as there is one."""
    if profile not in item.parameters:
        return f"only under {', '.join(p for p in PROFILES if p in item.parameters)}", ""
    if missing_files(project, item, profile):
        return "files missing", ""
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    last = folder if is_complete(folder, item) else newest_run(project, item, profile)
    if last is None:
        return "failed" if failed_folder(folder).is_dir() else "not run", ""
    outcome = outcome_of(last, item)
    return outcome.verdict + ("" if last == folder else " (out of date)"), clock(outcome.seconds)


def overview(profile: str = "local", only: Sequence[str] = (), project: Project | None = None) -> str:
    """Every item with its paper item, notebook, verdict and time, as aligned text; nothing is run."""
    project = project or here()
    items = project.select(only, profile) if only else project.items
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    rows = [("item", "paper item", "notebook", f"verdict ({profile})", "time")]
    rows += [(i.id, i.paper_item, i.notebook, *state(project, i, profile)) for i in items]
    return columns(rows)


def readme_table(project: Project | None = None, profile: str = "local") -> str:
    """The table of items in Markdown, from the manifest and the newest runs; of the outputs those that are there."""
    project = project or here()
    lines = ["| Item | Paper | Notebook | Verdict | Time | Outputs |", "|---|---|---|---|---|---|"]
    for item in project.items:
        result, took = state(project, item, profile)
        there = [name for name in item.outputs if (project.root / "figures" / name).is_file()]
        seen = [name for name in there if name.endswith((".png", ".md"))] or there
        shown = ", ".join(f"[{name.removeprefix(f'{item.id}-')}](figures/{name})" for name in seen)
        title, paper = (text.replace("|", "\\|") for text in (item.title, item.paper_item))
        notebook = f"[{Path(item.notebook).name}]({item.notebook})"
        lines.append(f"| `{item.id}`: {title} | {paper} | {notebook} | {result} | {took} | {shown} |")
    return "\n".join(lines)


def write_readme(project: Project | None = None, profile: str = "local") -> Path:
    """Rewrite what stands between the two ``<!-- items -->`` markers of README.md; raises UserError without them."""
    project = project or here()
    path = project.root / "README.md"
    mark = "<!-- items -->"
    parts = path.read_text(encoding="utf-8").split(mark) if path.is_file() else []
    if len(parts) != 3:
        raise UserError(f"{path} must hold the marker {mark} exactly twice, around the table of items")
    text = f"{parts[0]}{mark}\n{readme_table(project, profile)}\n{mark}{parts[2]}"
    temporary = path.with_name("README.md.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
