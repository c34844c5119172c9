"""Every notebook runs under the smoke profile, by the same runner as ``make reproduce``, and keeps its contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcmc_core import experiments

PROJECT = experiments.Project(Path(__file__).resolve().parents[1])


@pytest.mark.parametrize("name", [item.id for item in PROJECT.items if "smoke" in item.parameters])
def test_notebook_runs(name):
    (outcome,) = experiments.reproduce("smoke", [name], jobs=2, project=PROJECT)  # as make reproduce: a thread each
    assert not outcome.failed, outcome.verdict
    assert experiments.read_metrics(outcome.folder)["claims"]
