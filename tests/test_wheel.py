"""The package as a wheel, away from any checkout: its networks are in it, and it writes to the current folder only."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOADS = """
import sys
import dmcmc_core
from dmcmc_core import checkpoints, files
print(dmcmc_core.__file__, dmcmc_core.load_model("digits").shape, checkpoints.load("digits-cld").shape, files.root())
from dmcmc_core.workbench import cli
sys.exit(cli.main(sys.argv[1:]))
"""
"""One process for what a program does and what the command does: torch takes long to import."""


def output(*command, **how):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(folder):
    """A wheel of the checkout, built and installed below ``folder``; nothing is written into the checkout."""
    (folder / "egg").mkdir(parents=True)
    config = folder / "setup.cfg"
    config.write_text(f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder / 'egg'}\n")
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input")
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    output(*pip, "wheel", ROOT, *options, "-w", folder, env=os.environ | {"DIST_EXTRA_CONFIG": str(config)})
    (wheel,) = folder.glob("*.whl")
    output(*pip, "install", wheel, "--no-deps", "--no-index", "--no-compile", "--target", folder / "site")
    return folder / "site"


def listed(folder, pattern="*"):
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def test_a_wheel_samples_and_evaluates_in_an_empty_folder(tmp_path):
    site, here = installed(tmp_path / "wheel"), tmp_path / "empty"
    package, before = site / "dmcmc_core", listed(site)
    assert listed(package, "*.py") == listed(ROOT / "dmcmc_core", "*.py") and (package / "py.typed").is_file()
    assert listed(package / "shipped") == {path.name for path in (ROOT / "exp" / "nets").glob("*.safetensors")}

    here.mkdir()
    away = {"cwd": here, "env": os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}}
    words = "sample --model digits --sampler dlg+heun --nfe 12 --num 70 --out images".split()
    told = output("-c", LOADS, *words, **away)
    assert told.startswith(f"{package / '__init__.py'} (1, 8, 8) (1, 8, 8) {here}\n")
    words = "evaluate images --reference digits-heldout --features digits-cnn --bootstrap 0 --json".split()
    result = json.loads(output("-m", "dmcmc_core", *words, **away))
    assert result["n"] == 70 and result["frechet"] > 0
    assert {path.name for path in here.iterdir()} == {"images", "exp"} and listed(here / "exp" / "cache")
    assert listed(site) == before, "nothing is written into an installed package"
