"""The layers of the package, and that its core needs none of the notebook packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dmcmc_core"

CORE = "core"
ROOMS = ["data", "nets", "checkpoints", "metrics", "training", "runs", "report", "workbench"]
"""Folders that are no part of the core, from the bottom up: each imports the core and rooms before it."""
CORE_NEEDS = {"torch", "numpy", "scipy", "safetensors"}
BORROWED = {"dmcmc_core.boundary.hyperplane": {"sklearn"}}
"""What a module of the core imports more, within the one function that needs it: a support vector machine."""
DOORS = {"__init__", "__main__", "sampling_run"}
"""Files beside the core that only open a door to a room: they may import any."""
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOK_PACKAGES = [
    "papermill", "jupyter", "jupyter_client", "jupyterlab", "ipykernel", "ipywidgets", "IPython", "nbformat",
    "matplotlib", "sklearn", "skimage", "PIL", "pytorch_fid", "torch_fidelity", "torchvision",
]  # fmt: skip


def room(path):
    """The room that a file lies in; the core's files and folders are one."""
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in ROOMS else CORE


def name_of(path):
    """The dotted name of a file's module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def file_of(name):
    """The file of a module of ours; None for a name inside one."""
    base = ROOT.joinpath(*name.split("."))
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)


def imported(path, typing=True):
    """Dotted names that a file imports anywhere, within functions too; without those for type checkers if asked."""
    tree = ast.parse(path.read_text())
    skipped = set()
    if not typing:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours = node.module.split(".")[0] == PACKAGE.name
                yield whole if ours and file_of(whole) else node.module


def ours(path, **how):
    """Files of the package that a file imports."""
    names = {name for name in imported(path, **how) if name.split(".")[0] == PACKAGE.name}
    return {file_of(name) for name in names} - {None}


def test_every_folder_is_the_core_or_a_room():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert set(ROOMS) <= folders
    assert folders - set(ROOMS) <= {
        "integrators",
        "linear_sde",
        "gddim",
        "preconditioning",
        "score_embedding",
        "boundary",
    }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_the_core_and_rooms_before_it(path):
    floors = [CORE, *ROOMS]
    if path.parent == PACKAGE and path.stem in DOORS:
        return
    for other in ours(path):
        assert other.parent != PACKAGE or other.stem not in DOORS - {"__init__"}, f"{path.name} goes in by a door"
        above = floors.index(room(other)) > floors.index(room(path))
        assert not above, f"{name_of(path)} imports {name_of(other)} from a room above it"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) == CORE], ids=name_of)
def test_the_core_needs_four_libraries(path):
    if path.stem in DOORS and path.parent == PACKAGE:
        return
    outside = {name.split(".")[0] for name in imported(path)} - {PACKAGE.name} - sys.stdlib_module_names
    assert outside <= CORE_NEEDS | BORROWED.get(name_of(path), set())


def test_no_circle():
    """Modules can be put in an order in which each imports only those before it, imports within functions included."""
    left = {p: ours(p) - {p, PACKAGE / "__init__.py"} for p in MODULES if p != PACKAGE / "__init__.py"}
    while left:
        free = {path for path, needs in left.items() if not needs & left.keys()}
        assert free, f"these import each other: {sorted(map(name_of, left))}"
        left = {path: needs for path, needs in left.items() if path not in free}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_imported_by_a_string(path):
    """Neither importlib nor __import__: arrows that no reader and no tool can see. The top door alone is lazy."""
    if path == PACKAGE / "__init__.py":
        return
    called = [ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [name for name in called if name.endswith(("import_module", "__import__"))]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} in {path} has {length} lines"


WITHOUT = """
import importlib, sys
for name in {blocked}:
    sys.modules[name] = None
for name in {modules}:
    importlib.import_module(name)
import torch
import dmcmc_core
from dmcmc_core import analytic, dmcmc, integrators, noise_level, schedules
model = analytic.GaussianMixture(torch.zeros(1, 1, 2, 2), torch.ones(1), torch.ones(1), sigma_max=2.0)
settings = dmcmc.ChainSettings(chains=2, n_skip=1, warmup_levels=1, warmup_steps=0)
posterior = noise_level.ExactPosterior(model)
images, *_ = next(dmcmc.denoising_mcmc(model, posterior, integrators.INTEGRATORS["heun"], 2, settings))
assert images.shape == (2, 1, 2, 2)
if {net}:
    model = dmcmc_core.load_model("digits")
    x = torch.zeros(1, *model.shape)
    assert integrators.heun(model, x, schedules.karras(2, 1.0, 0.01)).shape == x.shape
"""


def test_the_core_works_without_the_notebook_packages():
    drawing = ("plots", "explorer", "studies")
    names = [name_of(p) for p in MODULES if p.stem != "__main__" and not set(drawing) & set(p.parts)]
    net = (ROOT / "exp" / "nets" / "digits.safetensors").is_file()
    code = WITHOUT.format(blocked=NOTEBOOK_PACKAGES, modules=names, net=net)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_blocking_would_be_noticed():
    code = WITHOUT.format(blocked=["matplotlib"], modules=["dmcmc_core.report.plots"], net=False)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "matplotlib" in done.stderr
