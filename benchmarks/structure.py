"""What importing a module pulls in, what a sampling run executes: two commits counted by the same script.

    python benchmarks/structure.py              # this checkout
    python benchmarks/structure.py --base REV   # this checkout beside a commit, with their ratios

Lines are those of all modules of the package that are there after ``import dmcmc_core.NAME`` in a fresh process. A file
is executed when one of its functions is called, other than while modules are imported; it is entered again when a call
comes into it from another file while one of its own calls still runs, as when A calls B and B calls A. Start-up times
are the least of some alternating runs, of processes that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
MODULES = ("integrators", "mcmc", "dmcmc", "noise_level", "linear_sde", "gddim", "preconditioning")
STARTS = {
    "import dmcmc_core": ["-c", "import dmcmc_core"],
    "--help": ["-m", "dmcmc_core", "--help"],
    "models": ["-m", "dmcmc_core", "models"],
    "sample --help": ["-m", "dmcmc_core", "sample", "--help"],
}
SAMPLE = "sample --model digits --sampler dlg+heun --nfe 20 --num 64 --set n_skip=6".split()

IMPORTED = """
import importlib, json, sys
importlib.import_module("dmcmc_core." + sys.argv[1])
files = {m.__file__ for n, m in list(sys.modules.items()) if n.split(".")[0] == "dmcmc_core" and m.__file__}
print(json.dumps(sorted(files)))
"""

EXECUTED = """
import json, os, sys
import dmcmc_core
package = os.path.dirname(dmcmc_core.__file__)
calls, again = {}, {}
ours = lambda frame: frame.f_code.co_filename.startswith(package)
def look(frame, event, _):
    if event != "call" or not ours(frame) or frame.f_code.co_name == "<module>":
        return
    name, below, left = frame.f_code.co_filename, frame.f_back, False
    entered = below is not None and below.f_code.co_filename != name
    while below is not None:
        if ours(below):
            if below.f_code.co_name == "<module>":
                return  # while a module is imported
            left = left or below.f_code.co_filename != name
            if left and entered and below.f_code.co_filename == name:
                again[name] = again.get(name, 0) + 1
                entered = False
        below = below.f_back
    calls[name] = calls.get(name, 0) + 1
try:
    from dmcmc_core.workbench.cli import main
except ImportError:
    from dmcmc_core.cli import main
sys.setprofile(look)
status = main(sys.argv[1:])
sys.setprofile(None)
short = lambda counts: {os.path.relpath(n, package): c for n, c in sorted(counts.items())}
print(json.dumps({"status": status, "calls": short(calls), "again": short(again)}))
"""


def python(tree: Path, *words: str) -> str:
    """Return what a fresh process prints, with the package of a tree."""
    how = {"cwd": tree, "env": os.environ | {"PYTHONPATH": str(tree)}, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, *words], check=True, **how).stdout


def lines(tree: Path, module: str) -> tuple[int, int]:
    """Return the lines and the number of files that importing a module pulls in."""
    files = json.loads(python(tree, "-c", IMPORTED, module).splitlines()[-1])
    return sum(len(Path(file).read_text().splitlines()) for file in files), len(files)


def executed(tree: Path) -> dict:
    """Return the files that a run executes, with their calls, and those that are entered again."""
    with tempfile.TemporaryDirectory() as folder:
        return json.loads(python(tree, "-c", EXECUTED, *SAMPLE, "--out", f"{folder}/out").splitlines()[-1])


def starts(trees: list[Path], words: list[str], times: int) -> list[float]:
    """Return the least seconds that a command takes in each tree, alternating."""
    least = [float("inf")] * len(trees)
    for _ in range(times):
        for i, tree in enumerate(trees):
            started = time.perf_counter()
            python(tree, *words)
            least[i] = min(least[i], time.perf_counter() - started)
    return least


def main() -> None:
    """Print the counts, of two commits side by side where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="REV", help="a commit to compare with")
    parser.add_argument("--times", type=int, default=5, help="runs of each start (default: 5)")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = [CHECKOUT]
        if a.base:
            archive = subprocess.run(
                ["git", "archive", a.base], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE
            ).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            trees = [Path(folder), CHECKOUT]
        print(f"{'lines imported':<22}" + "".join(f"{name:>14}" for name in [*([a.base] if a.base else []), "here"]))
        for module in MODULES:
            counts = [lines(tree, module) for tree in trees]
            row = "".join(f"{n:>7} in {files:>3}" for n, files in counts)
            print(f"{module:<22}{row}" + (f"   {counts[1][0] / counts[0][0]:.2f}" if a.base else ""))
        print("\nseconds to start")
        for name, words in STARTS.items():
            seconds = starts(trees, words, a.times)
            print(f"{name:<22}" + "".join(f"{s:>14.2f}" for s in seconds))
        for tree in trees:
            found = executed(tree)
            print(f"\nfiles executed by {' '.join(SAMPLE)}, {'here' if tree == CHECKOUT else a.base}:")
            print(f"  {len(found['calls'])}: {', '.join(found['calls'])}")
            print(f"  entered again: {', '.join(found['again']) or 'none'}")


if __name__ == "__main__":
    main()
