"""The doctor: looks for all that the project uses, and says what each missing thing costs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core.errors import UserError
from dmcmc_core.files import sha256
from dmcmc_core.workbench.experiments import Project, here, version


class Finding(NamedTuple):
    """A thing that was looked for: whether it was found, how, and what its absence costs."""

    name: str
    found: bool
    detail: str
    cost: str = ""


def examine(weights: str | Path | None = None, project: Project | None = None) -> dict[str, list[dict[str, Any]]]:
    """Look for everything that some part of the project uses.

    Args:
        weights: where the Inception weights are, if not in the places that are looked at anyway.
        project: where the manifest is; the checkout around the working directory when None.

    Returns:
        Section -> findings with ``name``, ``found``, ``detail`` and ``cost``, the last empty for what was found.
    """
    project = project or here()
    sections = {
        "computing": [_python(), _torch(), _cuda()],
        "libraries": [_library(*row) for row in LIBRARIES],
        "extras": [_library(*row, f"pip install 'dmcmc-core[{extra}]'") for *row, extra in EXTRAS],
        "data": [_digits(), _fonts(), *_published()],
        "models": _shipped(project),
        "weights": [_inception(weights)],
        "paper profile": _paper(project),
        "disk": [_disk(project.root)],
    }
    return {
        section: [f._replace(cost="" if f.found else f.cost)._asdict() for f in findings]
        for section, findings in sections.items()
    }


def report(sections: dict[str, list[dict[str, Any]]]) -> str:
    """Return the findings as text, each missing thing with its cost below it."""
    width = max(len(f["name"]) for findings in sections.values() for f in findings)
    lines = []
    for section, findings in sections.items():
        lines += ["", section] if lines else [section]
        for f in findings:
            lines.append(f"  {'ok     ' if f['found'] else 'missing'}  {f['name']:<{width}}  {f['detail']}".rstrip())
            if f["cost"]:
                lines.append(f"           {'':<{width}}  without it: {f['cost']}")
    return "\n".join(lines)


LIBRARIES = (
    ("numpy", "numpy", "nothing runs"),
    ("scipy", "scipy", "no rk45 with joint error control"),
    ("safetensors", "safetensors", "no model can be loaded or saved"),
    ("yaml", "pyyaml", "no command line"),
    ("sklearn", "scikit-learn", "no handwritten digits: nothing on real images runs"),
    (
        "skimage",
        "scikit-image",
        "no structural similarity: no profile of score embedding, and no stand-ins",
    ),
    ("matplotlib", "matplotlib", "no figures, and no fonts for the glyphs"),
    ("PIL", "pillow", "no glyphs and no image files"),
    ("papermill", "papermill", "reproduce cannot run notebooks"),
    ("ipykernel", "ipykernel", "reproduce cannot run notebooks"),
    ("jupyterlab", "jupyterlab", "notebooks can be run but not opened"),
    ("ipywidgets", "ipywidgets", "no explorer"),
    ("pytorch_fid", "pytorch-fid", "no inception features, so no FID"),
    ("torch_fidelity", "torch-fidelity", "metrics are not compared with it by the tests"),
    ("pytest", "pytest", "make test does not run"),
    ("xdist", "pytest-xdist", "make test does not run"),
    ("pytest_timeout", "pytest-timeout", "make test does not run"),
    ("ruff", "ruff", "make lint does not run"),
    ("pyright", "pyright", "make lint does not run"),
)
"""Module, distribution and the cost of its absence, of what requirements.txt names."""

EXTRAS = (
    ("diffusers", "diffusers", "folders of diffusers cannot be loaded", "diffusers"),
    ("msgpack", "msgpack", "published checkpoints of Flax cannot be loaded", "flax"),
    ("snakemake", "snakemake", "an exported Snakefile cannot be run here", "snakemake"),
    ("distributed", "distributed", "no --executor dask", "dask"),
)
"""The same of optional libraries, and the extra that installs each."""


def _library(module: str, distribution: str, cost: str, remedy: str = "pip install -r requirements.txt") -> Finding:
    found = importlib.util.find_spec(module) is not None
    return Finding(distribution, found, version(distribution) if found else remedy, cost)


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), platform.python_version(), "Python 3.11 or newer is needed")


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", False, "pip install -r requirements.txt", "nothing runs")
    import torch

    cores = len(os.sched_getaffinity(0))
    return Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads on {cores} cores")


def _cuda() -> Finding:
    cost = "the paper profile is out of reach and the full profile takes hours"
    if importlib.util.find_spec("torch") is None:
        return Finding("CUDA device", False, "", cost)
    import torch

    names = (
        [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return Finding("CUDA device", bool(names), ", ".join(names) or "none", cost)


def _digits() -> Finding:
    cost = "nothing on real images runs"
    try:
        from sklearn.datasets import load_digits

        images = load_digits().images
    except (ImportError, OSError) as error:
        return Finding("handwritten digits", False, f"scikit-learn's data cannot be read: {error}", cost)
    return Finding("handwritten digits", True, f"{len(images)} images of {images.shape[1]}x{images.shape[2]}")


def _fonts() -> Finding:
    cost = "no glyphs32, the test-bed with exact scores"
    try:
        import matplotlib
    except ImportError:
        return Finding("fonts", False, "matplotlib, which carries them, is not installed", cost)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    count = len(list(folder.glob("DejaVu*.ttf")))
    return Finding("fonts", count >= 8, f"{count} DejaVu fonts in matplotlib", cost)


def _published() -> list[Finding]:
    """Return a finding per published set; what lies there is counted, not read."""
    try:
        from dmcmc_core.data import DATASETS, open_images
    except ImportError as error:
        return [Finding("published sets", False, str(error), "nothing runs")]
    findings = []
    for name, about in DATASETS.items():
        cost = f"nothing is compared with {name} or trained on it under profile paper"
        try:
            images = open_images(name)
        except UserError as error:
            findings.append(Finding(name, False, str(error), cost))
        else:
            detail = f"{len(images):,} images in {images.files[0]}; from {about.source}"
            findings.append(Finding(name, True, detail))
    return findings


def _shipped(project: Project) -> list[Finding]:
    folder = project.root / "exp" / "nets"
    users = {path.relative_to(project.root).as_posix(): [] for path in sorted(folder.glob("*.safetensors"))}
    for item in _items(project):
        for model in item.models:
            users.setdefault(model, []).append(item.id)
    if not users:  # no checkout around: those that are installed with the package
        from dmcmc_core.checkpoints.catalogue import NETS

        found = [Finding(f.name, True, f"{f.stat().st_size / 1e6:.2f} MB") for f in sorted(NETS.glob("*.safetensors"))]
        return found or [Finding("shipped nets", False, f"none in {folder}", "only exact models can be sampled")]
    findings = []
    for name, items in users.items():
        path = project.root / name
        detail = f"{path.stat().st_size / 1e6:.2f} MB" if path.is_file() else "not there"
        findings.append(Finding(name, path.is_file(), detail, f"{', '.join(items)} cannot run"))
    return findings


def _inception(weights: str | Path | None) -> Finding:
    cost = "no FID; distances in other features are not comparable with published ones"
    try:
        from dmcmc_core.metrics import INCEPTION_SHA256, inception_file

        path = inception_file(weights)
    except (UserError, ImportError) as error:
        return Finding("Inception weights", False, str(error), cost)
    right = sha256(path) == INCEPTION_SHA256
    return Finding("Inception weights", right, str(path) if right else f"{path} is another file: SHA-256 differs", cost)


def _paper(project: Project) -> list[Finding]:
    """Return a finding per file that the paper profile needs, with all the items that wait for it."""
    files, waiting = {}, {}
    for item in _items(project):
        for file in item.files:
            files.setdefault(file.path, file)
            waiting.setdefault(file.path, []).append(item.id)
    findings = []
    for path, file in files.items():
        detail = f"{file.what}; from {file.source}; SHA-256 {file.sha256 or 'not known'}"
        cost = f"{', '.join(waiting[path])} cannot run under profile paper"
        findings.append(Finding(path, (project.root / path).is_file(), detail, cost))
    return findings or [Finding("files", True, "no item has a paper profile that needs files")]


def _items(project: Project) -> Sequence[Any]:
    try:
        return project.items
    except UserError:  # installed without a checkout: there is nothing to reproduce
        return ()


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    return Finding("free disk", free > 2, f"{free:.0f} GB at {folder}", "runs and cached samples may not fit (2 GB)")
