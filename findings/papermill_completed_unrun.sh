#!/usr/bin/env bash
# papermill 2.7.0: after a time-out, or with a kernel that ends before it answers, cells that never ran are "completed".
#
# One would guess: that the status of a cell, which is pending, running, completed or failed, tells how far a notebook
#   came, and that a cell that never began is still pending.
# What happens: only an exception in a cell leaves the later ones pending. Where a cell takes longer than
#   --execution-timeout, or the kernel ends before it answers, that cell and all after it are completed. One that never
#   began has `exception: null`; one that was cut off looks as if it had ended, and only lacks `shell.execute_reply`
#   among the times that nbclient keeps.
# Why it matters: whoever counts completed cells, to show progress or to decide whether a run is worth another try,
#   takes a notebook of which nothing ran for one that is done. Count `completed` with `exception: false` and a reply.
#
# The kernel that ends is Python with nothing to do, as where a kernel's own package is missing.
#
# Output seen (Python 3.11, nbclient 0.11.0, ipykernel 7.4.0):
#   raises    completed/false/reply  failed/true/reply      pending/null/none
#   too slow  completed/false/reply  completed/false/none   completed/null/none
#   gone      completed/null/none    completed/null/none    completed/null/none
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 nbclient==0.11.0 ipykernel==7.4.0

cat > "$folder/states.py" <<'PYTHON'
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import nbformat.v4 as nbf

folder = Path(sys.argv[1])
ends = folder / "kernels" / "ends"
ends.mkdir(parents=True)
argv = [sys.executable, "-c", "pass", "{connection_file}"]
(ends / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "ends", "language": "python"}))


def states(second, *options):
    """Status, exception and the kernel's reply of three cells, the second of which is given."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbf.new_code_cell(source) for source in ("a = 1", second, "b = 2")]
    nbformat.write(nbf.new_notebook(cells=cells, metadata=kernel), folder / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *options, "in.ipynb", "out.ipynb"]
    done = subprocess.run(command, cwd=folder, capture_output=True, env={**os.environ, "JUPYTER_PATH": str(folder)})
    assert done.returncode, "it does not fail now"
    found = []
    for cell in nbformat.read(folder / "out.ipynb", 4).cells:
        if cell.cell_type == "code":  # papermill marks an exception by two cells of text
            about = cell.metadata.papermill
            reply = "reply" if "shell.execute_reply" in cell.metadata.get("execution", {}) else "none"
            found.append(f"{about.status}/{json.dumps(about.exception)}/{reply}")
    return found


RUNS = {
    "raises": (["1 / 0"], ["completed/false/reply", "failed/true/reply", "pending/null/none"]),
    "too slow": (
        ["import time; time.sleep(5)", "--execution-timeout", "1"],
        ["completed/false/reply", "completed/false/none", "completed/null/none"],
    ),
    "gone": (["a = 2", "-k", "ends"], ["completed/null/none"] * 3),
}
for name, (given, expected) in RUNS.items():
    seen = states(*given)
    print(f"{name:<10}" + "".join(f"{state:<23}" for state in seen).rstrip())
    assert seen == expected, f"{name}: the cells have other states now"
PYTHON
"$folder/venv/bin/python" "$folder/states.py" "$folder"
