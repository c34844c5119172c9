"""The parts of ``docs/`` that are made from what is published: the list of items, tables of findings, their origins.

A page holds ``<!-- table ... -->``, or ``differences``, ``origin`` or ``gallery``, and what is made of it up to
``<!-- end -->``. All else of a page is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError, one_of
from dmcmc_core.files import write_text
from dmcmc_core.workbench.experiments.differences import HEADS, differences
from dmcmc_core.workbench.experiments.manifest import Project, here, read_yaml
from dmcmc_core.workbench.experiments.reports import write_items

PART = re.compile(r"(<!-- (table|origin|differences|gallery)\s(.*?)-->\n).*?(<!-- end -->)", re.S)
NUMBER = re.compile(r"-?\d[\d.]*(?:e[-+]?\d+)?")

Rows = list[dict[str, str]]


def write_pages(project: Project | None = None, profile: str = "local") -> list[Path]:
    """Write the list of items and the made parts of every page of ``docs/`` again, and return the pages changed.

    Raises:
        UserError: for a part whose table, column, row or item is not published; no page is then changed.
    """
    project = project or here()
    paths = sorted((project.root / "docs").rglob("*.md"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    made = {path: filled(project, path, text) for path, text in texts.items()}
    for path, text in made.items():
        if text != texts[path]:
            write_text(path, text)
    items = write_items(project, profile)
    return sorted({items, *(path for path in paths if made[path] != texts[path])})


def filled(project: Project, path: Path, text: str) -> str:
    """Return a page with its tables and origins as they are published now."""
    up = "../" * len(path.relative_to(project.root).parts[:-1])

    def part(found: re.Match[str]) -> str:
        try:
            content = MADE[found[2]](project, found[3], up)
        except UserError as error:
            raise UserError(f"{path}, {found[2]} {found[3].split()[0]}: {error}") from None
        return f"{found[1]}{content}\n{found[4]}"

    return PART.sub(part, text)


def _table(project: Project, about: str, up: str) -> str:
    """Return a table of ``figures/published`` by its settings in YAML, linked to its numbers.

    ``from`` is its file without an ending; ``rows`` keeps those whose column is among some values; ``columns`` keeps
    and renames columns. ``down``, ``across`` and ``value`` make a table of two ways instead. ``words`` renames cells,
    and ``best`` (least or most) shows in bold the measured number of each column that is so.
    """
    given = read_yaml(about)
    source = project.root / "figures" / "published" / f"{given['from']}.md"
    rows = _chosen(_read(source), given.get("rows", {}))
    if "across" in given:
        rows = _two_ways(rows, given["down"], given["across"], given["value"], given.get("unit", ""))
    elif "columns" in given:
        rows = [{new: _of(row, old) for old, new in _renamed(given["columns"]).items()} for row in rows]
    words = {str(old): str(new) for old, new in given.get("words", {}).items()}
    rows = [{words.get(name, name): words.get(cell, cell) for name, cell in row.items()} for row in rows]
    if "best" in given:
        _embolden(rows, one_of("best", given["best"], "least", "most"))
    place = f"{up}figures/published/{given['from']}"
    numbers = f", [numbers]({place}.csv)" if source.with_suffix(".csv").is_file() else ""
    return f"{_markdown(rows)}\n\n[Whole table]({place}.md){numbers}"


def _read(path: Path) -> Rows:
    """Return the rows of the table in a Markdown file that was published."""
    if not path.is_file():
        raise UserError(f"{path} is not published")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def _of(row: Mapping[str, str], column: str) -> str:
    if column not in row:
        raise UserError(f"there is no column {column!r}, only {', '.join(row)}")
    return row[column]


def _chosen(rows: Rows, kept: Mapping[str, Any]) -> Rows:
    """Return the rows whose columns have one of the values given for them, in the order of the table."""
    for column, values in kept.items():
        values = [str(value) for value in (values if isinstance(values, list) else [values])]
        there = {_of(row, column) for row in rows}
        if missing := [value for value in values if value not in there]:
            raise UserError(f"column {column!r} has no {', '.join(missing)}, only {', '.join(sorted(there))}")
        rows = [row for row in rows if row[column] in values]
    return rows


def _renamed(columns: Mapping[str, str | None] | Sequence[str]) -> dict[str, str]:
    """Return the columns that are kept and what each is called."""
    named = columns if isinstance(columns, Mapping) else dict.fromkeys(columns)
    return {str(old): str(new or old) for old, new in named.items()}


def _two_ways(rows: Rows, down: str | list[str], across: str, value: str, unit: str) -> Rows:
    """Return a row per value of ``down`` with a column per value of ``across``."""
    keys, made = [down] if isinstance(down, str) else down, {}
    for row in rows:
        line = made.setdefault(tuple(_of(row, key) for key in keys), {key: row[key] for key in keys})
        line[f"{_of(row, across)}{unit}"] = _of(row, value)
    return list(made.values())


def _embolden(rows: Rows, best: str) -> None:
    """Show in bold the best cell of each column of numbers, where one is."""
    for column in rows[0]:
        found = {n: NUMBER.match(row.get(column, "")) for n, row in enumerate(rows)}
        numbers = {n: float(number[0]) for n, number in found.items() if number}
        measured = any("±" in row.get(column, "") or "." in row.get(column, "") for row in rows)
        if measured and len(set(numbers.values())) > 1:
            which = (min if best == "least" else max)(numbers, key=numbers.__getitem__)
            rows[which][column] = f"**{rows[which][column]}**"


def _markdown(rows: Rows) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _origin(project: Project, about: str, up: str) -> str:
    """Return command, files and commit of items, named as ``PROFILE/ID``."""
    lines = []
    for name in about.split():
        profile, _, id = name.partition("/")
        entry = project.published_items(profile).get(id)
        if entry is None:
            raise UserError(f"item {id!r} is not published under {profile!r}")
        place = f"{up}figures/README.md#{profile}-{id}"
        commit = f", commit `{entry['commit'][:8]}`" if entry.get("commit") else ""
        lines.append(f"- `{entry['command']}`{commit}, [files and figures]({place})")
    return "\n".join(lines)


def _differences(project: Project, about: str, up: str) -> str:
    """Return what seeds tell of two means, and would have told; see :func:`.differences.differences`."""
    given = read_yaml(about)
    rows = differences(project.root / "figures" / "published", given)
    table = _markdown([{head: row[head] for head in HEADS} for row in rows])
    return f"{table}\n\n[Numbers]({up}figures/published/{given['from']}.csv)"


def _gallery(project: Project, about: str, up: str) -> str:
    """Return the picture of each finding under its question, linked to its page; ``about`` names the pages in order."""
    parts = []
    for name in about.split():
        path = project.root / "docs" / "findings" / f"{name}.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = re.match(r"# (.+)\n\n!\[(.+)\]\((?:\.\./)+(figures/.+)\)", text)
        if not found:
            raise UserError(f"{path} has no question with a picture below it")
        question, caption, picture = found.groups()
        parts.append(f"## [{question}](findings/{name}.md)\n\n![{caption}]({up}{picture})")
    return "\n\n".join(parts)


MADE = {"table": _table, "origin": _origin, "differences": _differences, "gallery": _gallery}
"""Kind of part -> what makes it."""
