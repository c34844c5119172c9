"""Every notebook runs under the smoke profile, by the same runner as ``make reproduce``, and keeps its contract."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from dmcmc_core.report import tables
from dmcmc_core.workbench import experiments

PROJECT = experiments.Project(Path(__file__).resolve().parents[1])


@pytest.fixture(scope="session")
def smoke():
    """The outcome of every item by its id, of one run side by side as ``make reproduce`` does it."""
    outcomes = experiments.reproduce("smoke", jobs=2, project=PROJECT)
    return {outcome.item.id: outcome for outcome in outcomes}


@pytest.mark.slow
@pytest.mark.timeout(2700)  # the first of them waits for all, on a busy machine too
@pytest.mark.parametrize("name", [item.id for item in PROJECT.items if "smoke" in item.parameters])
def test_notebook_runs(smoke, name):
    outcome = smoke[name]
    assert not outcome.failed, outcome.verdict
    assert experiments.read_metrics(outcome.folder)["claims"]
    results = tables.read_csv(outcome.folder / "results.csv")
    assert results and {row["item"] for row in results} == {name} and all(row["method"] for row in results)
    tables_are_of(results, outcome)


def tables_are_of(results, outcome):
    """Every mean distance in a table of an item is that of cells in results.csv."""
    cells = {}
    for row in results:
        if row.get("frechet"):
            cell = tuple(row[key] for key in ("bed", "method", "settings", "budget"))
            cells.setdefault(cell, []).append(float(row["frechet"]))
    means = [statistics.fmean(cell) for cell in cells.values()]
    for output in (o for o in outcome.item.outputs if o.endswith(".csv")):
        for row in tables.read_csv(outcome.folder / output):
            if row.get("frechet") and "frechet_spread" in row:
                assert any(math.isclose(float(row["frechet"]), mean, rel_tol=1e-9) for mean in means), (output, row)
