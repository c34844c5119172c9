"""The layers of the package, and that its core needs none of the notebook packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dmcmc_core"

# From the bottom up. What a network is evaluated in (denoiser) is needed by all that evaluate one, so it lies below
# the networks and their files.
LAYERS = [
    {"errors"},
    {"streams", "denoiser", "trackers", "linear_sde"},
    {"data", "analytic", "nets", "preconditioning"},
    {"metrics", "checkpoints"},
    {"features"},
    {"evaluation"},
    {"integrators", "multistep", "registry", "schedules"},
    {"mcmc", "noise_level"},
    {"gddim", "score_embedding", "boundary"},
    {"dmcmc"},
    {"training"},
    {"shards", "ranks", "prepare"},
    {"sampling_run"},
    {"tables"},
    {"plots", "testbed"},
    {"tuning"},
    {"experiments"},
    {"doctor"},
    {"cli", "__main__", "explorer"},
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
NOTEBOOK_PACKAGES = [
    "papermill", "jupyter", "jupyter_client", "jupyterlab", "ipykernel", "ipywidgets", "IPython", "nbformat",
    "matplotlib", "sklearn", "PIL", "pytorch_fid", "torch_fidelity", "torchvision",
]  # fmt: skip


def part(path):
    """The name by which a file is in LAYERS: its own, or that of the folder it is in."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imported(path):
    """The parts of the package that a file imports anywhere, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dmcmc_core.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "dmcmc_core":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("dmcmc_core."):
                found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lower_layers_never_import_higher_ones(path):
    assert part(path) in ROW, f"{part(path)} has no row in LAYERS"
    for name in imported(path):
        assert name in ROW, f"{path.name} imports {name}, which has no row in LAYERS"
        assert ROW[name] <= ROW[part(path)], f"{path.name} imports {name} from above"


def test_no_circle():
    """Within a row too, modules can be put in an order in which each imports only those before it."""
    left = {part(p): set() for p in MODULES}
    for path in MODULES:
        left[part(path)] |= imported(path) - {part(path)}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"these import each other: {left}"
        left = {name: needs for name, needs in left.items() if name not in free}


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
    paths = [p for p in MODULES if part(p) not in {"plots", "explorer", "__main__"}]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]
    net = (ROOT / "exp" / "nets" / "digits.safetensors").is_file()
    code = WITHOUT.format(blocked=NOTEBOOK_PACKAGES, modules=["dmcmc_core", *names], net=net)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_blocking_would_be_noticed():
    code = WITHOUT.format(blocked=["matplotlib"], modules=["dmcmc_core.plots"], net=False)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "matplotlib" in done.stderr
