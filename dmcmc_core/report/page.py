"""What a notebook shows as it goes: figures and tables, written to its folder and displayed below the cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dmcmc_core.report import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = ("claim", "here", "holds", "note")
"""Columns of a table of claims, where nothing of the kind is published."""
PUBLISHED = ("claim", "published", "source", "here", "holds", "note")
"""The same beside what is published."""


class Page(NamedTuple):
    """Where a notebook's figures and tables go, and what their names begin with.

    Attributes:
        out_dir: folder of the run; its ``provenance.json`` is embedded in every file.
        prefix: before each name: ``figure(..., "levels", ...)`` of prefix ``mixing-`` writes ``mixing-levels.png``.
    """

    out_dir: str | Path
    prefix: str = ""

    def figure(self, figure: Figure, name: str, rows: Sequence[Mapping[str, Any]], width: int = 850) -> None:
        """Write a figure as PNG, PDF and CSV of its plotted numbers, and show it.

        Args:
            figure: as a function of :mod:`dmcmc_core.report.plots` draws it.
            name: file name without prefix and ending.
            rows: the plotted numbers.
            width: pixels on the page.

        Raises:
            UserError: without rows.
        """
        from IPython.display import Image, display

        from dmcmc_core.report import plots

        png = plots.save_figure(figure, self.out_dir, self.prefix + name, rows)[0]
        display(Image(str(png), width=width))

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        heads: Sequence[str] | Mapping[str, str],
        name: str,
        caption: str,
        best: Mapping[str, str] | None = None,
    ) -> None:
        """Write a table as CSV, Markdown and LaTeX, and show it; see :func:`dmcmc_core.report.tables.write_table`."""
        from IPython.display import Markdown, display

        markdown = tables.write_table(rows, heads, self.out_dir, self.prefix + name, caption, best=best)[1]
        display(Markdown(markdown.read_text(encoding="utf-8")))

    def finish(  # noqa: PLR0913  the last act of a notebook
        self,
        claims: Sequence[Mapping[str, Any]],
        numbers: Mapping[str, Any],
        caption: str,
        heads: Sequence[str] = PUBLISHED,
        name: str = "claims",
    ) -> None:
        """Show a table of :func:`dmcmc_core.report.tables.claim` and write ``metrics.json``, the last act."""
        self.table(claims, heads, name, caption)
        tables.write_metrics(self.out_dir, claims, numbers)
