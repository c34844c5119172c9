#!/usr/bin/env bash
# papermill 2.7.0: the same text is a number after -p and a string, or another number, after -y and in a file of -f.
#
# One would guess: that `-p eta 1e-4`, `-y "eta: 1e-4"` and a file with the line `eta: 1e-4` give a notebook one value.
# What happens: -p tries int() and float() of Python; -y and -f are YAML 1.1, in which a number with an exponent has both a
#   point and a sign in the exponent. So `1e-4` and `1.0e4` arrive as strings, `nan` too, and `010` is eight.
# Why it matters: step sizes, tolerances and learning rates are written in this way. A string often goes far before
#   anything stops: `"1e-4" * 2` is "1e-41e-4", and a comparison with a choice of strings is only false. Parameters of
#   a manifest have to be read by a loader that knows exponents, or be checked against the default's type.
#
# --prepare-only writes the notebook with its parameters and runs nothing, so that no kernel is needed.
#
# Output seen (Python 3.11, PyYAML 6.0.4):
#   text    -p                    -y, -f
#   1e-4    eta = 0.0001          eta = "1e-4"
#   1.0e-4  eta = 0.0001          eta = 0.0001
#   1.0e4   eta = 10000.0         eta = "1.0e4"
#   1.0e+4  eta = 10000.0         eta = 10000.0
#   nan     eta = float('nan')    eta = "nan"
#   010     eta = 10              eta = 8
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 PyYAML==6.0.4 nbformat==5.11.1

cat > "$folder/readers.py" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import nbformat.v4 as nbf
import nbformat

folder = Path(sys.argv[1])
parameters = nbf.new_code_cell("eta = 0.1", metadata={"tags": ["parameters"]})
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
nbformat.write(nbf.new_notebook(cells=[parameters], metadata=kernel), folder / "in.ipynb")


def injected(*options):
    """What papermill writes below the parameters."""
    command = [sys.executable, "-m", "papermill", "--prepare-only", "in.ipynb", "out.ipynb", *options]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return nbformat.read(folder / "out.ipynb", 4).cells[1].source.removeprefix("# Parameters\n").strip()


EXPECTED = {
    "1e-4": ("eta = 0.0001", 'eta = "1e-4"'),
    "1.0e-4": ("eta = 0.0001", "eta = 0.0001"),
    "1.0e4": ("eta = 10000.0", 'eta = "1.0e4"'),
    "1.0e+4": ("eta = 10000.0", "eta = 10000.0"),
    "nan": ("eta = float('nan')", 'eta = "nan"'),
    "010": ("eta = 10", "eta = 8"),
}
print("text    -p                    -y, -f")
for text, expected in EXPECTED.items():
    (folder / "parameters.yaml").write_text(f"eta: {text}\n")
    by_word, by_yaml = injected("-p", "eta", text), injected("-y", f"eta: {text}")
    print(f"{text:<7} {by_word:<21} {by_yaml}")
    assert by_yaml == injected("-f", "parameters.yaml"), f"-y and -f differ on {text}"
    assert (by_word, by_yaml) == expected, f"{text} is read in another way now"
PYTHON
"$folder/venv/bin/python" "$folder/readers.py" "$folder"
