"""A share of benchmarks/mutations.py: broken files of every format load soundly or are refused in one sentence."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import mutations  # noqa: E402


@pytest.mark.parametrize("name", list(mutations.FORMATS))
def test_broken_files(name):
    if name.startswith("diffusers"):
        pytest.importorskip("diffusers", reason="needs diffusers: pip install 'dmcmc-core[diffusers]'")
    if name in ("png", "jpeg"):
        pytest.importorskip("PIL")
    rows = mutations.run(name, n=25, seed=1)
    wrong = [row for row in rows if row["outcome"] not in ("loaded", "refused")]
    assert not wrong and {row["outcome"] for row in rows} == {"loaded", "refused"}
