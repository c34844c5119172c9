"""What a run depends on, the key made of it, and the provenance that its results carry."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.files import sha256
from dmcmc_core.workbench.experiments.manifest import Item, Project
from dmcmc_core.workbench.notebooks import FROM_RUNNER, declared

LIBRARIES = ("torch", "scikit-learn", "matplotlib", "pillow")
"""Their versions are part of a run's key: torch computes, the others ship the digits, the fonts and what draws them."""
CHEAP = 10**9
"""Bytes of a published set that are read for a run's key: CIFAR-10 takes a second, sets of faces would take minutes."""


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Read type, source and tags of a notebook's cells: all of it that decides what a run does.

    Raises:
        UserError: for a file that is not there or no notebook.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [
            {
                "type": cell["cell_type"],
                "source": "".join(cell["source"]),
                "tags": sorted(cell.get("metadata", {}).get("tags", [])),
            }
            for cell in cells
        ]
    except FileNotFoundError:
        raise UserError(f"there is no notebook {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a notebook of format 4 ({type(error).__name__}: {error})") from None


def declared_parameters(cells: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names that are assigned in the cells tagged ``parameters``."""
    tagged = (cell["source"] for cell in cells if cell["type"] == "code" and "parameters" in cell["tags"])
    return {name for source in tagged for name in declared(source)}


def check_parameters(project: Project, item: Item, profile: str) -> None:
    """Raise UserError for a parameter that the notebook does not declare; papermill would run the default instead."""
    try:
        names = declared_parameters(read_cells(project.root / item.notebook))
    except SyntaxError as error:
        raise UserError(f"{item.notebook}: the cell tagged 'parameters' is not Python ({error.msg})") from None
    for name in item.parameters_for(profile):
        if name not in names and name not in FROM_RUNNER:
            raise unknown(f"parameter of {item.notebook}", name, names)
    for name in FROM_RUNNER:
        if name not in names:
            raise UserError(f"{item.notebook}: the cell tagged 'parameters' must declare {name!r}")


def imported_modules(sources: Iterable[str], root: Path, package: str) -> list[Path]:
    """Return the files of ``package`` that run when ``sources`` do; imports are followed, nothing is executed.

    Imports inside functions count, and so do strings that name a module (lazy attributes). A source that cannot be
    parsed is taken to import everything.
    """
    found: dict[Path, None] = {}
    try:
        todo = [name for source in sources for name in _names(_without_magics(source), package, package)]
    except SyntaxError:
        return sorted((root / package).rglob("*.py"))
    while todo:
        for path, module in _files(todo.pop(), root, package):
            if path in found:
                continue
            found[path] = None
            parent = module if path.name == "__init__.py" else module.rpartition(".")[0]
            with contextlib.suppress(SyntaxError):  # it cannot be imported either
                todo += _names(path.read_text(encoding="utf-8"), package, parent)
    return sorted(found)


def _without_magics(source: str) -> str:
    """Replace IPython's %magic and !shell lines, which are no Python, by a pass that keeps the indentation valid."""
    return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def _names(source: str, package: str, parent: str) -> Iterator[str]:
    """Yield the dotted names within ``package`` that ``source``, a module of the package ``parent``, may import."""
    dotted = re.compile(r"\.?\w+(\.\w+)*")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parent.split(".")[: len(parent.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and dotted.fullmatch(node.value):
            names = [parent + node.value if node.value.startswith(".") else node.value]
        else:
            continue
        yield from (name for name in names if name == package or name.startswith(package + "."))


def _files(name: str, root: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Yield each file that importing a dotted name runs, with its module name: packages above it, then itself."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:n])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                yield path, ".".join(parts[:n])


def version(library: str) -> str:
    """Return the installed version of a library, or ``not installed``."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def ingredients(project: Project, item: Item, profile: str) -> dict[str, str]:
    """Return everything that decides the result of a run, by name; the run's key is the hash of it."""
    cells = read_cells(project.root / item.notebook)
    code = [cell["source"] for cell in cells if cell["type"] == "code"]
    checkpoints = [*item.models, *(file.path for file in item.files if profile == "paper")]
    return {
        item.notebook: hashlib.sha256(_canonical(cells)).hexdigest(),
        "parameters": _canonical(item.parameters_for(profile)).decode(),
        **{
            path.relative_to(project.root).as_posix(): sha256(path)
            for path in imported_modules(code, project.root, project.package)
        },
        **{name: sha256(project.root / name) for name in checkpoints},
        **{name: set_key(name) for name in (item.sets if profile == "paper" else ())},
        **{library: version(library) for library in LIBRARIES},
    }


def set_key(name: str) -> str:
    """Return the hash of a published set; of more than ``CHEAP`` bytes only that of names and sizes, and it says so."""
    from dmcmc_core.data import open_images

    images = open_images(name)
    folder, files = images.files
    listed = [[file, (folder / file).stat().st_size] for file in files]
    if sum(size for _, size in listed) <= CHEAP:
        return str(images.recipe()["sha256"])
    return f"{hashlib.sha256(_canonical(listed)).hexdigest()} of the names and sizes of its files alone"


def run_key(inputs: Mapping[str, str]) -> str:
    """Return the SHA-256 of all ingredients of a run."""
    return hashlib.sha256(_canonical(dict(inputs))).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def missing_files(project: Project, item: Item, profile: str) -> list[str]:
    """Return a line for each file that a run needs and that is not there, or is there with other content."""
    lines = []
    for name in item.models:
        if not (project.root / name).is_file():
            lines.append(f"{name}: a checkpoint that ships with the project, needed by {item.id}")
    for file in item.files if profile == "paper" else ():
        path, digest = project.root / file.path, f"SHA-256 {file.sha256 or 'not known'}"
        if not path.is_file():
            lines.append(f"{file.path}: {file.what}; from {file.source}; {digest}")
        elif file.sha256 and sha256(path) != file.sha256.lower():
            lines.append(
                f"{file.path}: {file.what} is there with SHA-256 {sha256(path)}; right is {digest} from {file.source}"
            )
    for name in item.sets if profile == "paper" else ():
        from dmcmc_core.data import open_images

        try:
            open_images(name)
        except UserError as error:
            lines.append(str(error))
    return lines


def provenance(project: Project, item: Item, profile: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return where a result comes from: commit, parameters, key, versions, device, threads."""
    parameters = item.parameters_for(profile)
    return {
        "item": item.id,
        "notebook": item.notebook,
        **origin(project),
        "profile": profile,
        "seed": parameters["seed"],
        "parameters": parameters,
        "key": run_key(inputs),
        "threads": int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))),
        "inputs": dict(inputs),
    }


def origin(project: Project) -> dict[str, Any]:
    """Return what made a result of this checkout: commit, versions, device."""
    commit, dirty = _commit(project)
    versions = {"python": platform.python_version(), **{n: version(n) for n in (*LIBRARIES, "numpy", "scipy")}}
    return {"commit": commit, "dirty": dirty, "versions": versions, "device": _device()}


def _commit(project: Project) -> tuple[str | None, bool | None]:
    """Return HEAD, and whether anything that runs differs from it; figures/, which runs rewrite, does not count."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=project.root, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        sources = [project.package, "notebooks", "exp", "requirements.txt", "pyproject.toml"]
        sources = [name for name in sources if (project.root / name).exists()]
        outputs = [":(exclude)exp/runs", ":(exclude)exp/cache"]
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *sources, *outputs))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _device() -> str:
    """Name the processor, and the GPUs that are visible, without the cost of importing torch."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1].strip() if found else cpu
    gpus = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            gpus += re.findall(r"^Model:\s*(.+)$", info.read_text(), re.MULTILINE)
    return " + ".join([cpu, *gpus])
