#!/usr/bin/env bash
# Snakemake 9.27.1: `--resources gpu=0` does not mean none: all jobs that ask for a GPU run, and all at once.
#
# One would guess: that a limit of 0 stops the jobs whose rule has `resources: gpu=1`, or is refused as too small, as
#   1 runs them one by one.
# What happens: what a job asks for is lowered to the limit without a word. {resources.gpu} is 0 in its command, and
#   jobs that ask for nothing are not limited. A limit of 1 lowers a job of gpu=2 in the same way.
# Why it matters: `gpu=0` is what one writes for a machine without a GPU, or to keep a shared one free. The run then
#   puts more on the GPU than any other limit would. That nothing is limited without --resources is in the manual.
#
# Output seen (Python 3.11, 4 cores given, 4 jobs):
#   asked  limit  at once  told
#   1      1      1        1
#   2      1      1        1
#   1      2      2        1
#   1      0      4        0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check snakemake==9.27.1

cat > "$folder/Snakefile" <<'SNAKEFILE'
rule all:
    input: expand("{n}.done", n=range(4))

rule one:
    output: "{n}.done"
    resources: gpu=int(config["gpu"])
    shell: "echo begin {resources.gpu} >> jobs.txt; sleep 4; echo end 0 >> jobs.txt; touch {output}"
SNAKEFILE

cat > "$folder/limits.py" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def seen(asked, limit):
    """The most jobs at once, and what each is told that it has."""
    (folder / "jobs.txt").unlink(missing_ok=True)
    command = [sys.executable, "-m", "snakemake", "--cores", "4", "--forceall"]
    command += ["--config", f"gpu={asked}", "--resources", f"gpu={limit}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    running, most, told = 0, 0, set()
    for line in (folder / "jobs.txt").read_text().splitlines():
        event, gpu = line.split()
        running += 1 if event == "begin" else -1
        most = max(most, running)
        told |= {gpu} if event == "begin" else set()
    (gpu,) = told
    return most, int(gpu)


print("asked  limit  at once  told")
for asked, limit, expected in ((1, 1, (1, 1)), (2, 1, (1, 1)), (1, 2, (2, 1)), (1, 0, (4, 0))):
    most, told = seen(asked, limit)
    print(f"{asked:<6} {limit:<6} {most:<8} {told}")
    assert (most, told) == expected, f"a limit of {limit} means something else now"
PYTHON
"$folder/venv/bin/python" "$folder/limits.py" "$folder"
