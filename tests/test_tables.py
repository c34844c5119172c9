"""Tables: what is written reads back as it was and says where it comes from."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch

from dmcmc_core.errors import UserError
from dmcmc_core.report import tables
from dmcmc_core.report.tables import Spread

ORIGIN = {"commit": "abc", "seed": 3, "parameters": {"n": 4}, "inputs": {"x": "y"}, "seconds": 9.0, "threads": 2}
ROWS = [
    {"method": "heun_churn & 100%", "distance": Spread(1 / 3, 0.01234, 3), "nfe": 9, "holds": True, "x": math.pi},
    {"method": "a|b", "distance": Spread(20.0, math.nan, 1), "nfe": 25, "holds": False, "x": 1e-7},
    {"method": "none", "distance": None, "nfe": 49, "holds": True, "x": math.nan},
]


def test_csv_reads_back_to_the_same_bits(tmp_path):
    path, *_ = tables.write_table(ROWS, ["method", "distance", "nfe", "x"], tmp_path, "t", "Caption")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["method", "distance", "distance_spread", "distance_n", "nfe", "x"]
    assert float(rows[0]["distance"]) == 1 / 3 and float(rows[0]["distance_spread"]) == 0.01234
    assert float(rows[0]["x"]) == math.pi and float(rows[1]["x"]) == 1e-7 and math.isnan(float(rows[2]["x"]))
    assert rows[2]["distance"] == rows[2]["distance_n"] == "" and rows[0]["method"] == "heun_churn & 100%"


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    rows = [{"a": np.float32(0.1), "b": torch.tensor(2.5), "c": np.int64(3)}]
    path = tables.write_csv(rows, ["a", "b", "c"], tmp_path / "t.csv")
    assert path.read_text() == f"a,b,c\n{float(np.float32(0.1))!r},2.5,3\n"


def test_markdown_and_latex_say_the_same_for_people(tmp_path):
    columns = {"method": "Method", "distance": "Fréchet distance", "nfe": "NFE", "holds": "Holds", "x": "x_1"}
    _, markdown, latex = tables.write_table(
        ROWS, columns, tmp_path, "t", "5% of a & b", ORIGIN, best={"distance": "min", "nfe": "max"}
    )
    lines = markdown.read_text().splitlines()
    assert lines[2:7] == [
        "| Method | Fréchet distance | NFE | Holds | x_1 |",
        "|---|---:|---:|---|---:|",
        "| heun_churn & 100% | **0.333 ± 0.012** | 9 | yes | 3.142 |",
        "| a\\|b | 20.00 | 25 | no | 1.000e-07 |",
        "| none |  | **49** | yes | nan |",
    ]
    text = latex.read_text()
    assert r"heun\_churn \& 100\% & \textbf{0.333 $\pm$ 0.012} & 9 & yes & 3.142 \\" in text
    assert r"\caption{5\% of a \& b}" in text and r"\begin{tabular}{lrrlr}" in text and r"x\_1 \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_latex_escapes_every_special_character():
    assert tables.latex_escape(r"\{}$&#%_~^") == (r"\textbackslash{}\{\}\$\&\#\%\_\textasciitilde{}\textasciicircum{}")


def test_provenance_is_embedded_without_what_changes_from_run_to_run(tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps(ORIGIN))
    kept = {"commit": "abc", "seed": 3, "parameters": {"n": 4}}
    _, markdown, latex = tables.write_table(ROWS, ["method"], tmp_path, "t", "Caption")  # found beside the table
    embedded = markdown.read_text().partition("<!-- provenance: ")[2].partition(" -->")[0]
    assert json.loads(embedded) == kept
    assert json.loads(latex.read_text().splitlines()[0].removeprefix("% provenance: ")) == kept


def test_mean_and_spread_over_seeds():
    rows = [{"arm": arm, "seed": s, "d": s + bonus} for arm, bonus in (("b", 0), ("a", 10)) for s in (1, 2, 3)]
    first, second = tables.mean_and_spread(rows, "d", ["arm"])
    assert first == {"arm": "b", "d": Spread(2.0, 1.0, 3)} and second == {"arm": "a", "d": Spread(12.0, 1.0, 3)}
    (single,) = tables.mean_and_spread(rows[:1], "d", ["arm"])
    assert math.isnan(single["d"].spread) and single["d"].n == 1


def test_table_refuses_unknown_columns_and_orders(tmp_path):
    with pytest.raises(UserError, match="unknown column 'metod': did you mean 'method'"):
        tables.write_table(ROWS, ["metod"], tmp_path, "t", "Caption")
    with pytest.raises(UserError, match="must be 'min' or 'max'"):
        tables.write_table(ROWS, ["nfe"], tmp_path, "t", "Caption", best={"nfe": "lowest"})
    assert not list(tmp_path.iterdir())


def test_metrics_are_what_the_runner_reads(tmp_path):
    from dmcmc_core.workbench.experiments import read_metrics, verdict

    claims = [
        tables.claim("better", np.bool_(True), Spread(1.234, 0.1, 3), 3.86, "a paper"),
        tables.claim("worse", False, 2, note="because"),
    ]
    tables.write_metrics(tmp_path, claims, {"a": np.float32(0.5), "b": torch.tensor([1, 2])})
    metrics = read_metrics(tmp_path)
    assert verdict(metrics) == "1 of 2 claims hold" and metrics["numbers"] == {"a": 0.5, "b": [1, 2]}
    expected = dict(claim="better", holds=True, here="1.23 ± 0.10", published="3.860", source="a paper", note="")
    assert metrics["claims"][0] == expected


def test_a_difference_counts_where_welchs_test_says_so():
    """Three seeds each: t = 3.2 with 4 degrees of freedom is sure, 2.4 is not; no spread leaves no doubt."""
    a = Spread(1.0, 0.3, 3)
    for gap, sure in ((0.8, 1), (0.6, 0)):
        b = Spread(1.0 + gap, 0.3, 3)
        assert tables.compare(a, b) == sure and tables.compare(b, a) == -sure
        assert tables.compare(a, b, lower=False) == -sure
    assert tables.compare(Spread(1.0, 0.0, 3), Spread(1.1, 0.0, 3)) == 1
    assert tables.compare(a, a) == 0 and tables.compare(Spread(1.0, float("nan"), 1), Spread(9, 1, 3)) == 0


CELLS = [
    {"bed": "digits", "arm": arm, "sampler": "heun", "settings": {"start": arm}, "budget": 10, "seed": seed, "n": 64,
     "nfe": 9.0, "nfe_paper": 9.0, "seconds": seconds, "features": "digits-cnn", "reference": "digits-heldout",
     "reference_n": 600, "name": "Fréchet distance", "frechet": 7.25 + seed, "tol": None, "base": True}
    for arm, seconds in (("zero", None), ("mean", {"chains": 0.0, "integrator": 1.5}))
    for seed in (0, 1)
]  # fmt: skip


def test_results_have_one_row_per_method_setting_and_seed(tmp_path):
    (tmp_path / "provenance.json").write_text('{"item": "figure3"}')
    assert tables.write_results(CELLS, tmp_path, ("bed", "arm")) == CELLS
    rows = tables.read_csv(tmp_path / "results.csv")
    assert list(rows[0]) == [*tables.RESULT, "frechet"], "numbers are measurements; text, flags and nothing are not"
    assert len(rows) == 4 and rows[3] == {
        "item": "figure3", "bed": "digits", "method": "digits, mean", "sampler": "heun",
        "settings": '{"start": "mean"}', "budget": "10", "seed": "1", "n": "64", "nfe_full": "9.0",
        "nfe_paper": "9.0", "seconds_chains": "0.0", "seconds_integrator": "1.5", "features": "digits-cnn",
        "reference": "digits-heldout", "reference_n": "600", "frechet": "8.25",
    }  # fmt: skip
    assert rows[0]["seconds_chains"] is rows[0]["seconds_integrator"] is None

    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(UserError, match="one row per method, setting and seed.*'zero'"):
        tables.write_results([*CELLS, CELLS[0] | {"frechet": 1.0}], tmp_path, ("arm",))
    assert (tmp_path / "results.csv").read_bytes() == before
    assert tables.read_csv(tmp_path / "none.csv") == []


def test_results_are_there_as_parquet_too(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'dmcmc-core[parquet]'")
    tables.write_results(CELLS, tmp_path, ("arm",))
    (path,) = tables.write_parquet(tmp_path / "results.csv")
    columns = parquet.read_table(path).to_pydict()
    assert columns["frechet"] == [7.25, 8.25, 7.25, 8.25] and columns["seed"] == [0, 1, 0, 1]
    assert columns["seconds_integrator"] == [None, None, 1.5, 1.5] and columns["method"][2:] == ["mean"] * 2
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert tables.write_parquet(tmp_path / "results.csv") == [] and not path.exists(), "an old one would not agree"
