"""A notebook is a story: short cells, one function at most, what it computes and claims in its study."""

import ast
import re
import statistics
from pathlib import Path

import pytest

from dmcmc_core.workbench.experiments import here, read_cells

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
MEDIAN, LONGEST, WHOLE, FUNCTIONS = 6, 25, 120, 1
"""At most: code lines of the median cell, of the longest cell, of a notebook, and functions of a notebook."""


def code_lines(source):
    """Lines of a cell that are neither empty nor a comment alone."""
    return [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_story(path):
    cells = [c for c in read_cells(path) if c["type"] == "code" and "parameters" not in c["tags"]]
    lengths = [len(code_lines(cell["source"])) for cell in cells]
    assert statistics.median(lengths) <= MEDIAN, lengths
    assert max(lengths) <= LONGEST and sum(lengths) <= WHOLE, (lengths, sum(lengths))
    trees = [ast.parse(cell["source"]) for cell in cells]
    made = [n for tree in trees for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert len(made) <= FUNCTIONS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_named_for_what_it_is_about_and_its_title_has_the_item_of_the_paper(path):
    assert not re.search(r"(?i)fig(ure)?s?\d|tables?\d", path.stem)
    title = read_cells(path)[0]["source"].splitlines()[0]
    papers = {item.paper_item for item in here().items if item.notebook == f"notebooks/{path.name}"}
    if path.stem not in ("Demo", "Explorer"):  # these two show what is in figures of a paper, and measure none of them
        numbers = {number for paper in papers for number in re.findall(r"(?:Figures?|Tables?) \d", paper)}
        assert all(number in title for number in numbers), (title, papers)
