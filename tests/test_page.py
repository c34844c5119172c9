"""A page of a notebook: what it shows is what it writes, under its prefix."""

import json
import math

import pytest
from matplotlib.figure import Figure

from dmcmc_core.errors import UserError
from dmcmc_core.report import tables
from dmcmc_core.report.page import CLAIM, Page


@pytest.fixture
def shown(monkeypatch):
    display = pytest.importorskip("IPython.display")
    seen = []
    monkeypatch.setattr(display, "display", seen.append)
    return seen


def test_a_page_shows_what_it_writes(tmp_path, shown):
    page = Page(tmp_path, "toy-")
    page.table([{"a": 1.5}], {"a": "head"}, "numbers", "A caption.", best={"a": "max"})
    assert shown[0].data == (tmp_path / "toy-numbers.md").read_text() and "**1.500**" in shown[0].data
    page.figure(Figure(figsize=(1, 1)), "picture", [{"x": 1}], 300)
    assert shown[1].data == (tmp_path / "toy-picture.png").read_bytes() and shown[1].width == 300
    with pytest.raises(UserError, match="toy-empty"):
        page.figure(Figure(figsize=(1, 1)), "empty", [])


def test_a_page_ends_with_claims_and_metrics(tmp_path, shown):
    Page(tmp_path).finish([tables.claim("is so", False, "2", note="why")], {"n": 3}, "Claims.", CLAIM, "toy-claims")
    assert json.loads((tmp_path / "metrics.json").read_text())["numbers"] == {"n": 3}
    assert tables.read_csv(tmp_path / "toy-claims.csv") == [
        {"claim": "is so", "here": "2", "holds": "False", "note": "why"}
    ]
    assert "| is so | 2 | no | why |" in shown[0].data


def test_groups_have_what_their_rows_have():
    rows = [{"bed": "a", "x": 1.0, "y": None}, {"bed": "a", "x": 3.0}, {"bed": "b", "x": 5.0, "y": 2.0}]
    found = tables.grouped(rows, ["x", "y"], ["bed"])
    assert list(found) == [("a",), ("b",)]
    assert found["a",] == {"bed": "a", "x": tables.Spread(2.0, math.sqrt(2), 2)}
    assert found["b",]["y"].mean == 2.0 and found["b",]["y"].n == 1


def test_spreads_of_numbers_and_their_words():
    spread = tables.spread_of([1.0, 3.0])
    assert spread == tables.Spread(2.0, math.sqrt(2), 2) and tables.in_words(spread) == "2 ± 1.4"
