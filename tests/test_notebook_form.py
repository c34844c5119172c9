"""A notebook is a story: short cells, one function at most, what it computes and claims in its study."""

import ast
import statistics
from pathlib import Path

import pytest

from dmcmc_core.workbench.experiments import read_cells

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
