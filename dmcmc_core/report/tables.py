"""Tables: rows are dictionaries, and one function writes them as CSV, Markdown and LaTeX with their provenance."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.files import replacing, write_json, write_text

EMBEDDED = ("item", "notebook", "commit", "dirty", "profile", "seed", "parameters", "key", "versions", "device")
"""Keys of the provenance in every figure and table; times and thread counts would change unchanged results."""


class Spread(NamedTuple):
    """A mean with its spread, the standard deviation over ``n`` seeds, as a value of a table's cell."""

    mean: float
    spread: float
    n: int


def mean_and_spread(rows: Iterable[Mapping[str, Any]], value: str, by: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per group of equal ``by``, in order of appearance: its keys, and ``value`` as a :class:`Spread`.

    The spread is the sample standard deviation, nan for a single row.
    """
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(float(row[value]))
    return [
        dict(zip(by, key, strict=True))
        | {value: Spread(statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else math.nan, len(v))}
        for key, v in groups.items()
    ]


def spread_of(values: Iterable[Any]) -> Spread:
    """Return mean and spread of one number per seed, or per group of chains; the numbers may be tensors."""
    return mean_and_spread([{"value": value} for value in values], "value", ())[0]["value"]


def grouped(
    rows: Sequence[Mapping[str, Any]], quantities: Iterable[str], by: Sequence[str]
) -> dict[tuple, dict[str, Any]]:
    """Return a row per group of equal ``by``, under its values: its keys, and each quantity as a :class:`Spread`.

    Rows without a quantity, or with None for it, have no part in its mean; a group without any such row lacks it.
    """
    groups: dict[tuple, dict[str, Any]] = {}
    for quantity in quantities:
        measured = [row for row in rows if row.get(quantity) is not None]
        for group in mean_and_spread(measured, quantity, by):
            about = {key: group[key] for key in by}
            groups.setdefault(tuple(about.values()), about)[quantity] = group[quantity]
    return groups


def in_words(spread: Spread) -> str:
    """Return mean and spread as a sentence has them: three significant digits, and two of the spread."""
    return f"{spread.mean:.3g} ± {spread.spread:.2g}"


COMPARED = {1: "better", 0: "cannot tell", -1: "worse"}
"""What :func:`compare` returns, in words."""


def compare(a: Spread, b: Spread, lower: bool = True) -> int:
    """Return 1 if ``a`` is surely better than ``b``, -1 if surely worse, 0 if the seeds cannot tell.

    Sure is a difference that Welch's t test puts below 5 %: with three seeds beyond about three standard errors.
    """
    from scipy import stats  # a second of imports, which the runner and its commands do without

    ends = (a.mean, a.spread, a.n), (b.mean, b.spread, b.n)
    constant = a.spread == b.spread == 0
    sure = constant or stats.ttest_ind_from_stats(*ends[0], *ends[1], equal_var=False).pvalue < 0.05
    sign = sure * ((a.mean < b.mean) - (a.mean > b.mean))
    return sign if lower else -sign


def write_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str],
    out_dir: str | Path,
    name: str,
    caption: str,
    provenance: Mapping[str, Any] | None = None,
    best: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write ``name.csv`` (full precision), ``name.md`` and ``name.tex`` (booktabs); return their paths.

    Args:
        rows: dictionaries; a value may be text, a number, a bool, None (empty) or a :class:`Spread`.
        columns: keys in order, or key -> heading. A Spread takes three columns of the CSV: key, key_spread, key_n.
        out_dir: where to; made if it is not there.
        name: file name without ending.
        caption: one sentence, put above the table.
        provenance: embedded as a comment; read from ``out_dir/provenance.json`` when None.
        best: column -> ``min`` or ``max``: its best number is printed bold.

    Raises:
        UserError: when no row has a column, or ``best`` is neither min nor max.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {c: c.replace("_", " ") for c in columns}
    for key in headings:
        if rows and not any(key in row for row in rows):
            raise unknown("column", key, {k for row in rows for k in row})
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    origin = embedded(provenance if provenance is not None else read_provenance(out_dir))
    marked = _best_rows(rows, best or {})
    cells = [[(_text(row.get(key)), (n, key) in marked) for key in headings] for n, row in enumerate(rows)]
    numeric = [all(_is_number(row.get(key)) for row in rows) for key in headings]
    paths = [write_csv(rows, list(headings), out_dir / f"{name}.csv")]
    for ending, text in (
        ("md", _markdown(headings, cells, numeric, caption, origin)),
        ("tex", _latex(headings, cells, numeric, caption, name, origin)),
    ):
        paths.append(out_dir / f"{name}.{ending}")
        write_text(paths[-1], text)
    return paths


def as_text(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return a table of columns, key -> heading, for a terminal: numbers to the right, all else to the left."""
    lines = [list(columns.values()), *([_text(row.get(key)) for key in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    right = [all(_is_number(row.get(key)) for row in rows) for key in columns]
    return "\n".join(
        "  ".join(f"{c:{'>' if r else '<'}{w}}" for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def read_csv(path: str | Path) -> list[dict[str, str | None]]:
    """Read the rows of a CSV as text, None where a cell is empty; no rows where there is no file."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def write_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: str | Path) -> Path:
    """Write rows as CSV in full precision: reading a number back gives the same bits."""
    path = Path(path)
    spreads = {c for c in columns if any(isinstance(row.get(c), Spread) for row in rows)}
    head = [h for c in columns for h in ((c, f"{c}_spread", f"{c}_n") if c in spreads else (c,))]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for row in rows:
            line = []
            for c in columns:
                value = row.get(c)
                if c not in spreads:
                    line.append(_plain(value))
                else:
                    line += [_plain(v) for v in (value if isinstance(value, Spread) else (value, None, None))]
            writer.writerow(line)
    return path


def write_parquet(path: Path) -> list[Path]:
    """Write the CSV at ``path`` as Parquet too, where pyarrow is importable; else not even an older one stays."""
    out = path.with_suffix(".parquet")
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError:
        out.unlink(missing_ok=True)
        return []
    options = arrow_csv.ConvertOptions(strings_can_be_null=True)
    with replacing(out) as part:
        parquet.write_table(arrow_csv.read_csv(path, convert_options=options), part)
    return [out]


RESULT = (
    "item", "bed", "method", "sampler", "settings", "budget", "seed", "n", "nfe_full", "nfe_paper",
    "seconds_chains", "seconds_integrator", "features", "reference", "reference_n",
)  # fmt: skip
"""The first columns of ``results.csv``; the others are what was measured."""


def write_results(
    rows: Iterable[Mapping[str, Any]], out_dir: str | Path, method: Sequence[str] = ("method",)
) -> list[dict[str, Any]]:
    """Write ``results.csv``, a row per method, setting and seed, and return the rows as they were given.

    Args:
        rows: as of :meth:`dmcmc_core.report.testbed.Testbed.row`. ``settings``, a mapping, is written as JSON.
            ``seconds``, for all n images, is empty or has ``chains`` (posterior and classifier are theirs) and
            ``integrator``. ``nfe`` is the full count. Numbers under other keys are measurements, a column each.
        out_dir: the run's folder; the item is that of its ``provenance.json``.
        method: the keys whose values, joined, name the method of a row.

    Raises:
        UserError: when two rows are of the same bed, method, sampler, settings, budget and seed.
    """
    rows, item = [dict(row) for row in rows], read_provenance(out_dir).get("item")
    long = [_result(row, method) | {"item": item} for row in rows]
    seen = set()
    for row in long:
        cell = tuple(row.get(key) for key in ("bed", "method", "sampler", "settings", "budget", "seed"))
        if cell in seen:
            raise UserError(f"results.csv has one row per method, setting and seed, and there are two of {cell}")
        seen.add(cell)
    measured = [key for row in long for key in row if key not in RESULT]
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    write_csv(long, [*RESULT, *dict.fromkeys(measured)], Path(out_dir) / "results.csv")
    return rows


def _result(row: Mapping[str, Any], method: Sequence[str]) -> dict[str, Any]:
    """Return a row of ``results.csv``, but for its item."""
    seconds, settings = row.get("seconds") or {}, row.get("settings")
    about = {key: row[key] for key in RESULT if key in row}
    about |= {"method": ", ".join(str(row[key]) for key in method), "nfe_full": row.get("nfe")}
    about |= {"settings": None if settings is None else json.dumps(settings, sort_keys=True)}
    about |= {f"seconds_{part}": seconds.get(part) for part in ("chains", "integrator")}
    described = {*RESULT, *method, "nfe", "seconds"}
    return about | {k: v for k, v in row.items() if k not in described and v is not None and _is_number(v)}


def claim(
    text: str, holds: Any, here: Any, published: Any = None, source: str | None = None, note: str = ""
) -> dict[str, Any]:
    """Return one line of a notebook's ``metrics.json`` and of its table "published / here".

    Args:
        text: what is claimed.
        holds: whether it holds here; False is a result, and ``note`` then says what was found to be the reason.
        here: what was found, with data set, network, n and seeds.
        published: what the paper says, None when it says nothing of the kind.
        source: paper and place of the published number.
        note: reason or reservation.
    """
    shown = None if published is None else _text(published)
    return dict(claim=text, holds=bool(holds), here=_text(here), published=shown, source=source, note=note)


def write_metrics(out_dir: str | Path, claims: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]) -> Path:
    """Write ``metrics.json``, a notebook's last act: its claims (see :func:`claim`) and any numbers behind them."""
    path = Path(out_dir) / "metrics.json"
    content = {"claims": [dict(c) for c in claims], "numbers": dict(numbers)}
    write_json(path, content, default=lambda value: value.tolist())
    return path


def read_provenance(out_dir: str | Path) -> dict[str, Any]:
    """Read the provenance that the runner leaves in ``out_dir`` before the notebook starts; empty outside of a run."""
    try:
        return json.loads((Path(out_dir) / "provenance.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def embedded(provenance: Mapping[str, Any]) -> str:
    """Return the part of the provenance that is embedded, as JSON on one line; keys unknown to the runner stay."""
    kept = {k: v for k, v in provenance.items() if k not in ("inputs", "seconds", "threads")}
    first = {k: kept.pop(k) for k in EMBEDDED if k in kept}
    return json.dumps(first | kept, default=str)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | str):
        return False
    return value is None or isinstance(value, Spread) or hasattr(value, "__float__")


def _plain(value: Any) -> Any:
    """Return a value as the CSV writer should see it: numbers of NumPy or torch as Python's, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    return repr(value.item() if hasattr(value, "item") else value)


def _text(value: Any) -> str:
    """Return a value for people: four significant digits, a mean only as far as its spread has meaning."""
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        return ""
    if isinstance(value, Spread):
        if not math.isfinite(value.spread) or not math.isfinite(value.mean):
            return _text(value.mean)
        digits = _decimals(value.spread, 2) if value.spread else _decimals(value.mean, 4)
        return f"{value.mean:.{digits}f} ± {value.spread:.{digits}f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        small_or_large = value and not 1e-4 <= abs(value) < 1e6
        return f"{value:.3e}" if small_or_large else f"{value:.{_decimals(value, 4)}f}"
    return str(value)


def _decimals(value: float, significant: int) -> int:
    """Return how many decimals show ``significant`` digits of a number, none for the places left of the point."""
    return min(12, max(0, significant - 1 - math.floor(math.log10(abs(value))))) if value else significant - 1


def _best_rows(rows: Sequence[Mapping[str, Any]], best: Mapping[str, str]) -> set[tuple[int, str]]:
    marked = set()
    for key, which in best.items():
        if which not in ("min", "max"):
            raise UserError(f"best of column {key!r} must be 'min' or 'max', not {which!r}")
        values = ((n, row.get(key)) for n, row in enumerate(rows))
        numbers = {n: v.mean if isinstance(v, Spread) else v for n, v in values}
        numbers = {n: float(v) for n, v in numbers.items() if v is not None and math.isfinite(float(v))}
        if numbers:
            target = min(numbers.values()) if which == "min" else max(numbers.values())
            marked |= {(n, key) for n, v in numbers.items() if v == target}
    return marked


def _markdown(headings: Mapping[str, str], cells: list, numeric: list[bool], caption: str, origin: str) -> str:
    def clean(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [caption, ""]
    lines.append("| " + " | ".join(clean(h) for h in headings.values()) + " |")
    lines.append("|" + "|".join("---:" if n else "---" for n in numeric) + "|")
    for row in cells:
        lines.append("| " + " | ".join(f"**{clean(t)}**" if bold else clean(t) for t, bold in row) + " |")
    return "\n".join([*lines, "", f"<!-- provenance: {origin.replace('--', '- -')} -->", ""])


def without_provenance(markdown: str) -> str:
    """Return the Markdown of a table without the comment that says where it comes from."""
    return re.sub(r"\n<!-- provenance: .* -->\n\Z", "", markdown)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "²": r"\textsuperscript{2}",
    "σ": r"$\sigma$",
    "η": r"$\eta$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "×": r"$\times$",
    "\n": " ",
}


def latex_escape(text: str) -> str:
    """Return text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex(headings: Mapping[str, str], cells: list, numeric: list[bool], caption: str, name: str, origin: str) -> str:
    def line(row: Iterable[str]) -> str:
        return " & ".join(row) + r" \\"

    body = [line(f"\\textbf{{{latex_escape(t)}}}" if bold else latex_escape(t) for t, bold in row) for row in cells]
    return "\n".join(
        [
            f"% provenance: {origin}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{latex_escape(caption)}}}",
            f"\\label{{tab:{name}}}",
            f"\\begin{{tabular}}{{{''.join('r' if n else 'l' for n in numeric)}}}",
            r"\toprule",
            line(latex_escape(h) for h in headings.values()),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
