"""What the machine lacks is skipped by name; a toy project stands in for the real one where runs are counted."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

# Before torch is imported, here and by what tests start: a thread each, so that two workers do not get in their way.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

# A job in the background may have been started with SIGINT ignored, and its children would then never see Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = "notebooks sampling_run preconditioning integrators experiments docs mcmc gddim networks training".split()
"""Files that take longest, in this order: workers that take file by file begin with these, and end together."""


def pytest_configure(config):
    config.option.loadscopereorder = False  # of pytest-xdist, which would begin with the files of most tests


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        if item.get_closest_marker("cuda") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("weights") and not _weights():
            item.add_marker(pytest.mark.skip(reason="needs published weights: see python -m dmcmc_core doctor"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _weights() -> bool:
    from dmcmc_core.errors import UserError
    from dmcmc_core.metrics import inception_file

    try:
        return inception_file().is_file()
    except UserError:
        return False


HEAD = """
profile = "local"
seed = 0
out_dir = "."
cache_dir = "."
n: int = 3  # how many
"""

RESULT = """
import json, os, sys
from pathlib import Path
{imports}
name = "{name}"
with open(f"{{cache_dir}}/{{name}}-runs.txt", "a") as file:
    file.write("run\\n")
Path(out_dir, f"{{name}}.csv").write_text("\\n".join(str({value} * i + seed) for i in range(n)) + "\\n")
claims = [
    dict(claim="true", holds=True, here="1", published=None, source=None, note=""),
    dict(claim="false", holds=False, here="0", published="1", source="a paper", note="found to be so"),
]
numbers = dict(threads=os.environ["OMP_NUM_THREADS"], cwd=os.getcwd(), executable=sys.executable)
Path(out_dir, "metrics.json").write_text(json.dumps(dict(claims=claims, numbers=numbers)))
"""


MEET = """
import time
from pathlib import Path
Path(cache_dir, "{me}-here").touch()
for _ in range(600):
    if Path(cache_dir, "{other}-here").exists():
        break
    time.sleep(0.1)
else:
    raise TimeoutError("the other notebook is not running at the same time")
"""
"""A cell that goes on when another notebook, with the same cell, runs at the same time."""


class ToyProject:
    """A project of small notebooks around a package ``toy_core``, with the same manifest and runner as the real one."""

    def __init__(self, root: Path) -> None:
        self.root, self.entries = root, []
        for name, text in {
            "toy_core/__init__.py": "",
            "toy_core/base.py": "from . import deeper\n\nVALUE = deeper.VALUE\n",
            "toy_core/deeper.py": "VALUE = 2\n",
            "toy_core/unrelated.py": "",
            "docs/reproduce.md": "# Toy\n<!-- items -->\nold\n<!-- items -->\nend\n",
        }.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def add(self, name: str, *code: str, before: str = "", core: bool = True, **changes) -> None:
        """An item with a notebook: ``code``, or one that writes its CSV after ``before`` with the package or not."""
        self.write_notebook(name, *code, before=before, core=core)
        entry = dict(
            id=name,
            title=f"Toy {name}",
            paper_item="Figure 0",
            notebook=f"notebooks/{name}.ipynb",
            parameters={profile: {"n": 4} for profile in ("smoke", "local", "full", "paper")},
            outputs=[f"{name}.csv"],
        )
        self.entries.append(entry | changes)
        self.write_manifest(self.entries)

    def write_notebook(self, name: str, *code: str, before: str = "", core: bool = True, after: str = "") -> None:
        import nbformat.v4 as nbf

        if not code:
            imports, value = ("from toy_core import base", "base.VALUE") if core else ("", "2")
            code = (before, RESULT.format(name=name, imports=imports, value=value), after)
        cells = [nbf.new_code_cell(textwrap.dedent(c).strip()) for c in (HEAD, *code) if c]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(nbf.new_notebook(cells=cells, metadata=kernel)))

    def write_manifest(self, entries: list[dict]) -> None:
        import yaml

        path = self.root / "exp" / "manifest.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"items": entries}))

    @property
    def project(self):
        from dmcmc_core.workbench.experiments import Project

        return Project(self.root, "toy_core")

    def runs(self, name: str) -> int:
        """How often a notebook was executed."""
        path = self.root / "exp" / "cache" / f"{name}-runs.txt"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def command(self, *words: str) -> list[str]:
        """The command line of ``reproduce`` in this project."""
        place = ["--root", str(self.root), "--package", "toy_core"]
        return [sys.executable, "-m", "dmcmc_core", "reproduce", *place, *words]


@pytest.fixture
def toy(tmp_path) -> ToyProject:
    return ToyProject(tmp_path)
