"""Experiments: a manifest lists every figure and table; each is a notebook run in a folder named by what went into it.

The name of the folder is a hash of the notebook's source, its parameters, the modules of the core that it imports, the
checkpoints, the data and the torch version. An unchanged run is therefore found and not repeated, a changed one is not
taken for it, and a killed one leaves nothing that looks finished: a run gets its name only when it is complete.

A notebook's part of the contract: a cell tagged ``parameters`` that declares ``profile``, ``seed``, ``out_dir`` and
``cache_dir`` beside its own parameters; written to ``out_dir``, the outputs that the manifest promises and
``metrics.json``, ``{"claims": [{"claim", "holds", "here", "published", "source", "note"}], "numbers": {...}}``.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import fcntl
import filecmp
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dmcmc_core import tables
from dmcmc_core.errors import UserError, unknown

PROFILES = ("smoke", "local", "full", "paper")
FROM_RUNNER = ("profile", "seed", "out_dir", "cache_dir")
"""Parameters that every notebook declares and the runner fills."""
LIBRARIES = ("torch", "scikit-learn", "matplotlib", "pillow")
"""Their versions are part of a run's key: torch computes, the others ship the digits, the fonts and what draws them."""


# The manifest


@dataclass(frozen=True)
class Published:
    """One number of a paper: what it is, its value and where it stands."""

    what: str
    value: Any
    source: str


@dataclass(frozen=True)
class RequiredFile:
    """A file that the ``paper`` profile needs and that does not ship: its place, its origin, its SHA-256 if known."""

    path: str
    what: str
    source: str
    sha256: str | None = None


@dataclass(frozen=True)
class Item:
    """One figure or table: the notebook that makes it and what is promised about it."""

    id: str
    title: str
    paper_item: str
    notebook: str
    parameters: Mapping[str, Mapping[str, Any]]  # profile -> name -> value; under "all" what profiles share
    outputs: tuple[str, ...]  # file names; they appear in figures/
    models: tuple[str, ...] = ()  # checkpoints that ship, hashed into the key
    published: tuple[Published, ...] = ()
    tolerance: str = ""
    files: tuple[RequiredFile, ...] = field(default=())
    sets: tuple[str, ...] = ()  # of dmcmc_core.data.DATASETS, which the paper profile needs

    def parameters_for(self, profile: str) -> dict[str, Any]:
        """The notebook parameters under a profile; ``seed`` is 0 unless the manifest says otherwise."""
        shared = self.parameters.get("all", {})
        return {"seed": 0, **shared, **self.parameters[profile], "profile": profile}


def read_yaml(text: str) -> Any:
    """YAML as people write it: 1e-4 is a number (YAML 1.1 reads a string) and a key given twice is an error."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    pass


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_manifest(path: str | Path) -> tuple[Item, ...]:
    """The items of ``exp/manifest.yaml``. Raises UserError for a missing, unknown or repeated key, id or profile."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no manifest at {path}: run from a checkout of the project")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"items"}:
        raise UserError(f"{path} must have the one key 'items' at the top")
    items = tuple(_item(entry, f"{path.name}, item {n}") for n, entry in enumerate(content["items"] or (), 1))
    for name, values in (("id", [i.id for i in items]), ("output", [o for i in items for o in i.outputs])):
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{path.name}: {name} {value!r} appears twice")
    return items


def _item(entry: Any, where: str) -> Item:
    if isinstance(entry, dict) and "id" in entry:
        where = f"{where} ({entry['id']})"
    item = _build(Item, entry, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(item.id)):
        raise UserError(f"{where}: id must consist of letters, digits, - and _, not {item.id!r}")
    if not isinstance(item.parameters, dict):
        raise UserError(f"{where}: parameters must map profiles to parameters, not {item.parameters!r}")
    for profile, values in item.parameters.items():
        if profile not in (*PROFILES, "all"):
            raise unknown(f"profile in {where}", profile, (*PROFILES, "all"))
        if not isinstance(values, dict):
            raise UserError(f"{where}: the parameters of profile {profile!r} must be a mapping, not {values!r}")
        for name in {"profile", "out_dir", "cache_dir"} & set(values):
            raise UserError(f"{where}: parameter {name!r} is set by the runner, not by the manifest")
    return item


def _build(cls: type, entry: Any, where: str) -> Any:
    """A dataclass from a mapping; an unknown or missing key is an error."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping, not {entry!r}")
    known = {f.name: f for f in fields(cls)}
    for key in entry:
        if key not in known:
            raise unknown(f"key in {where}", key, known)
    for name, f in known.items():
        if name not in entry and f.default is MISSING:
            raise UserError(f"{where}: key {name!r} is missing")
    parts = {"published": Published, "files": RequiredFile}
    values = {}
    for name, value in entry.items():
        if name in parts:
            value = tuple(_build(parts[name], v, f"{where}, {name}") for v in value or ())
        elif name in ("outputs", "models", "sets"):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UserError(
                    f"{where}: {name} must be a list of {'set' if name == 'sets' else 'file'} names, not {value!r}"
                )
            value = tuple(value)
        values[name] = value
    return cls(**values)


@dataclass(frozen=True)
class Project:
    """Where things are: the checkout that holds notebooks/, exp/ and figures/, and the package whose changes count."""

    root: Path
    package: str = "dmcmc_core"

    @cached_property
    def items(self) -> tuple[Item, ...]:
        return load_manifest(self.root / "exp" / "manifest.yaml")

    def folder(self, item: Item, key: str) -> Path:
        """The finished run of an item with this key."""
        return self.root / "exp" / "runs" / item.id / key[:20]

    def figures(self, profile: str) -> Path | None:
        """Where a profile's outputs are shown: the local ones in figures/, smoke nowhere, the others beside them."""
        if profile == "smoke":
            return None
        return self.root / "figures" / ("" if profile == "local" else profile)

    def select(self, only: Iterable[str], profile: str) -> list[Item]:
        """The items named, or all that have the profile. Raises UserError for names and profiles that are not there."""
        if profile not in PROFILES:
            raise unknown("profile", profile, PROFILES)
        by_id = {item.id: item for item in self.items}
        only = list(dict.fromkeys(only))
        for name in only:
            if name not in by_id:
                raise unknown("item", name, by_id)
            if profile not in by_id[name].parameters:
                has = ", ".join(p for p in PROFILES if p in by_id[name].parameters)
                raise UserError(f"item {name!r} has no profile {profile!r}; it has {has}")
        return [i for i in self.items if profile in i.parameters and (not only or i.id in only)]


def here() -> Project:
    """The project around the working directory, or else the checkout that this package lies in."""
    cwd = Path.cwd()
    has = (cwd / "exp" / "manifest.yaml").is_file()
    return Project(cwd if has else Path(__file__).resolve().parents[1])


# What a run depends on


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Type, source and tags of a notebook's cells: all of it that decides what a run does."""
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
    """Names assigned in the cells tagged ``parameters``."""
    names = set()
    for cell in cells:
        if cell["type"] != "code" or "parameters" not in cell["tags"]:
            continue
        for statement in ast.parse(cell["source"]).body:
            if isinstance(statement, ast.Assign):
                names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                names.add(statement.target.id)
    return names


def check_parameters(project: Project, item: Item, profile: str) -> None:
    """Raise UserError for a parameter that the notebook does not declare; papermill would run the default instead."""
    try:
        declared = declared_parameters(read_cells(project.root / item.notebook))
    except SyntaxError as error:
        raise UserError(f"{item.notebook}: the cell tagged 'parameters' is not Python ({error.msg})") from None
    for name in item.parameters_for(profile):
        if name not in declared and name not in FROM_RUNNER:
            raise unknown(f"parameter of {item.notebook}", name, declared)
    for name in FROM_RUNNER:
        if name not in declared:
            raise UserError(f"{item.notebook}: the cell tagged 'parameters' must declare {name!r}")


def imported_modules(sources: Iterable[str], root: Path, package: str) -> list[Path]:
    """Files of ``package`` that run when ``sources`` do, found by following imports without executing anything.

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
    """IPython's %magic and !shell lines are no Python; a pass keeps the indentation valid."""
    return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def _names(source: str, package: str, parent: str) -> Iterator[str]:
    """Dotted names within ``package`` that ``source``, a module of the package ``parent``, may import."""
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
    """The files that importing a dotted name runs, each with its module name: every package above it, then itself."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:n])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                yield path, ".".join(parts[:n])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def ingredients(project: Project, item: Item, profile: str) -> dict[str, str]:
    """Everything that decides the result of a run, by name; the run's key is the hash of it."""
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
        **{name: _listing(name) for name in (item.sets if profile == "paper" else ())},
        **{library: version(library) for library in LIBRARIES},
    }


def _listing(name: str) -> str:
    """SHA-256 over the names and sizes of a published set's files, whose content would take minutes to read."""
    from dmcmc_core.data import open_images

    folder, files = open_images(name).files
    return hashlib.sha256(_canonical([[file, (folder / file).stat().st_size] for file in files])).hexdigest()


def run_key(inputs: Mapping[str, str]) -> str:
    return hashlib.sha256(_canonical(dict(inputs))).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def missing_files(project: Project, item: Item, profile: str) -> list[str]:
    """One line for each file that a run needs and that is not there, or is there with other content."""
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


# Provenance


def provenance(project: Project, item: Item, profile: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Where a result comes from: commit, parameters, key, versions, device, threads."""
    commit, dirty = _commit(project)
    parameters = item.parameters_for(profile)
    return {
        "item": item.id,
        "notebook": item.notebook,
        "commit": commit,
        "dirty": dirty,
        "profile": profile,
        "seed": parameters["seed"],
        "parameters": parameters,
        "key": run_key(inputs),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in (*LIBRARIES, "numpy", "scipy")}},
        "device": _device(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))),
        "inputs": dict(inputs),
    }


def _commit(project: Project) -> tuple[str | None, bool | None]:
    """HEAD, and whether anything that runs differs from it (figures/, which runs rewrite, do not count)."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=project.root, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        sources = [project.package, "notebooks", "exp", "requirements.txt", "pyproject.toml"]
        sources = [name for name in sources if (project.root / name).exists()]
        made = [":(exclude)exp/runs", ":(exclude)exp/cache"]
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *sources, *made))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _device() -> str:
    """The processor, and the GPUs that are visible, without the cost of importing torch."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1].strip() if found else cpu
    gpus = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            gpus += re.findall(r"^Model:\s*(.+)$", info.read_text(), re.MULTILINE)
    return " + ".join([cpu, *gpus])


# One run, in a process of its own


class Failure(Exception):
    """A run that did not end as it should; the message says why."""


def is_complete(folder: Path, item: Item) -> bool:
    """A run folder gets its name when it is complete; what someone deleted from it later makes it incomplete."""
    return all((folder / name).is_file() for name in ("provenance.json", "metrics.json", *item.outputs))


def run_one(project: Project, item_id: str, profile: str) -> Path:
    """Execute one item's notebook into its run folder and return it; at once if it is there already.

    papermill changes the working directory and a kernel takes its sockets, so every run has a process of its own; this
    is what that process does. Raises Failure when the notebook raises or does not keep its contract; what was executed
    is then in ``failed-<key>`` beside the place of the run.
    """
    (item,) = project.select([item_id], profile)
    check_parameters(project, item, profile)
    inputs = ingredients(project, item, profile)
    folder = project.folder(item, run_key(inputs))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock")):
        if is_complete(folder, item):
            return folder
        for stale in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        part.mkdir()
        try:
            _execute_into(part, project, item, profile, inputs)
        except Failure as failure:
            (part / "failure.txt").write_text(f"{failure}\n", encoding="utf-8")
            _replace(part, failed_folder(folder))
            raise
        _replace(part, folder)
        shutil.rmtree(failed_folder(folder), ignore_errors=True)
    return folder


def failed_folder(folder: Path) -> Path:
    return folder.with_name(f"failed-{folder.name}")


def _replace(part: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` alone, waiting while another process does. The system frees the lock of a process that died."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _execute_into(part: Path, project: Project, item: Item, profile: str, inputs: Mapping[str, str]) -> None:
    started = time.monotonic()
    origin = provenance(project, item, profile, inputs)
    write_json(part / "provenance.json", origin)  # figures and tables embed it from here
    cache = project.root / "exp" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    parameters = {**item.parameters_for(profile), "out_dir": str(part), "cache_dir": str(cache)}
    with _output_to(part / "log.txt"):
        _execute(project.root / item.notebook, part / "run.ipynb", parameters, project.root)
    read_metrics(part)
    absent = [name for name in item.outputs if not (part / name).is_file()]
    if absent:
        raise Failure(f"the notebook did not write {', '.join(absent)}")
    now = ingredients(project, item, profile)
    changed = sorted(name for name in {*inputs, *now} if inputs.get(name) != now.get(name))
    if changed:
        raise Failure(f"{', '.join(changed)} changed while it ran: run again")
    write_json(part / "provenance.json", origin | {"seconds": round(time.monotonic() - started, 1)})


def _execute(notebook: Path, output: Path, parameters: Mapping[str, Any], cwd: Path) -> None:
    """Run a notebook through papermill, with this interpreter as its kernel whatever kernels are installed."""
    # jsonschema builds a grammar for addresses when it finds this package: seconds of work that no notebook needs, as
    # without it addresses are only checked less strictly.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from papermill.exceptions import PapermillExecutionError

    for attempt in (1, 2):
        with tempfile.TemporaryDirectory(prefix="dmcmc-", dir=_short_directory()) as sockets:
            os.environ["JUPYTER_RUNTIME_DIR"] = os.environ["IPYTHONDIR"] = sockets
            try:
                papermill.execute_notebook(
                    str(notebook),
                    str(output),
                    parameters=dict(parameters),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    log_output=True,
                    cwd=str(cwd),
                    kernel_manager_class=_kernel_manager(f"{sockets}/kernel"),
                )
                return
            except PapermillExecutionError as error:
                raise Failure(f"{error.ename}: {error.evalue} (cell {_failed_cell(output)})") from None
            except Exception as error:
                if attempt == 2 or cells_done(output)[0]:  # only a kernel that never answered is worth a second try
                    raise Failure(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _failed_cell(executed: Path) -> int:
    """Number of the cell that raised, from 1, in the notebook without the cells that papermill adds."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    added = {"injected-parameters", "papermill-error-cell-tag"}
    own = [cell for cell in cells if not added & set(cell["metadata"].get("tags", []))]
    return 1 + [bool(cell["metadata"].get("papermill", {}).get("exception")) for cell in own].index(True)


def _short_directory() -> str | None:
    """The path of a socket may have 107 characters."""
    return None if len(tempfile.gettempdir()) < 60 else "/tmp"


def _kernel_manager(address: str) -> type:
    """Kernels that talk over sockets in a directory of their own: TCP ports are raced for, shared sockets mixed up."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnSockets(AsyncKernelManager):
        @default("transport")
        def _transport(self) -> str:
            return "ipc"

        @default("ip")
        def _ip(self) -> str:
            return address

        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return OwnSockets


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send this process's output, and that of the kernel it starts, to a file."""
    import logging

    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, target)
            os.close(saved)


def end_with_parent() -> None:
    """Let this process end when the one that started it has gone, however it went."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # in order, if that can be
        time.sleep(5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The claims and numbers that a notebook wrote. Raises Failure when they do not have the form agreed on."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failure("the notebook wrote no metrics.json") from None
    except ValueError as error:
        raise Failure(f"metrics.json is not JSON ({error})") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("claims"), list) or "numbers" not in metrics:
        raise Failure("metrics.json must hold a list 'claims' and 'numbers'")
    keys = {"claim", "holds", "here", "published", "source", "note"}
    for claim in metrics["claims"]:
        if not isinstance(claim, dict) or set(claim) != keys or not isinstance(claim["holds"], bool):
            raise Failure(
                f"each claim in metrics.json has {', '.join(sorted(keys))} ('holds' true or false), not {claim}"
            )
    return metrics


def cells_done(notebook: Path) -> tuple[int, int]:
    """Cells that a running notebook has completed, and how many it has; papermill saves after each."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return 0, 0
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    done = sum(c.get("metadata", {}).get("papermill", {}).get("status") == "completed" for c in cells)
    return done, len(cells)


# Every item


class Outcome(NamedTuple):
    """What became of an item: its verdict, the time of its run, and whether that run was already there."""

    item: Item
    verdict: str
    seconds: float | None
    failed: bool = False
    unchanged: bool = False
    folder: Path | None = None


def verdict(metrics: Mapping[str, Any]) -> str:
    """A claim that does not hold is a result like one that does."""
    claims = metrics["claims"]
    if not claims:
        return "done, claims nothing"
    held = sum(c["holds"] for c in claims)
    return f"{held} of {len(claims)} claims hold" if len(claims) > 1 else f"{held} of 1 claim holds"


def reproduce(
    profile: str = "local",
    only: Sequence[str] = (),
    jobs: int | None = None,
    project: Project | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Run every item whose run is not there yet and fill ``figures/``.

    Args:
        profile: ``smoke``, ``local``, ``full`` or ``paper``.
        only: ids of items; all of the profile's items when empty.
        jobs: notebooks at a time, each in a process with its share of the cores; 2 where there are two cores.
        say: takes the lines of the report; printed when None.

    Returns:
        One outcome per item, in the order of the manifest; a notebook that fails does not keep the others from running.

    Raises:
        UserError: before anything runs, for unknown names and parameters and for files that are not there.
    """
    project, say = project or here(), say or _print
    items = project.select(only, profile)
    cores = len(os.sched_getaffinity(0))
    jobs = min(2, cores) if jobs is None else jobs
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, not {jobs}")
    absent = [line for item in items for line in missing_files(project, item, profile)]
    if absent:
        lines = "\n  ".join(dict.fromkeys(absent))
        raise UserError(
            f"profile {profile!r} needs files that are not there (places are below {project.root}):\n  {lines}"
        )
    for item in items:
        check_parameters(project, item, profile)
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"running notebooks needs {package}: pip install -r requirements.txt")

    outcomes: dict[str, Outcome] = {}
    todo = []
    for item in items:
        outcome = _found(project, item, profile)
        if outcome:
            outcomes[item.id] = outcome
            say(f"{item.id}: unchanged, {outcome.verdict}")
        else:
            todo.append(item)
            say(f"{item.id}: to run{_reason(project, item, profile)}")
    for outcome in _run_all(project, todo, profile, jobs, max(1, cores // jobs), say):
        outcomes[outcome.item.id] = outcome
    result = [outcomes[item.id] for item in items]
    write_claims(project, profile)
    say(f"\n{report(result)}")
    return result


def _print(line: str) -> None:
    print(line, flush=True)


def _found(project: Project, item: Item, profile: str) -> Outcome | None:
    """The outcome of a run that is there, its outputs shown in ``figures/`` again if they had gone or changed."""
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    if not is_complete(folder, item):
        return None
    _publish(folder, item, project.figures(profile))
    return _outcome(folder, item, unchanged=True)


def _outcome(folder: Path, item: Item, unchanged: bool = False) -> Outcome:
    seconds = json.loads((folder / "provenance.json").read_text())["seconds"]
    return Outcome(item, verdict(read_metrics(folder)), seconds, unchanged=unchanged, folder=folder)


def _publish(folder: Path, item: Item, figures: Path | None) -> None:
    if figures is None:
        return
    figures.mkdir(parents=True, exist_ok=True)
    for name in item.outputs:
        if not (figures / name).is_file() or not filecmp.cmp(folder / name, figures / name, shallow=False):
            shutil.copyfile(folder / name, figures / f"{name}.part")
            os.replace(figures / f"{name}.part", figures / name)


def newest_run(project: Project, item: Item, profile: str) -> Path | None:
    """The latest finished run of an item under a profile, whatever has changed since."""
    runs = []
    for path in (project.root / "exp" / "runs" / item.id).glob("*/provenance.json"):
        named = re.fullmatch("[0-9a-f]{20}", path.parent.name)  # neither failed nor being made
        if named and is_complete(path.parent, item) and json.loads(path.read_text())["profile"] == profile:
            runs.append((path.stat().st_mtime, path.parent))
    return max(runs)[1] if runs else None


def _reason(project: Project, item: Item, profile: str) -> str:
    """Why an item that has run before runs again."""
    last = newest_run(project, item, profile)
    if last is None:
        return ""
    before = json.loads((last / "provenance.json").read_text())["inputs"]
    now = ingredients(project, item, profile)
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f", {', '.join(changed)} changed" if changed else ""


class _Running(NamedTuple):
    item: Item
    process: subprocess.Popen
    output: Any  # what the process says before its log opens
    folder: Path  # where its result will be
    started: float
    expected: float | None  # seconds that it took last time


def _run_all(
    project: Project, todo: Sequence[Item], profile: str, jobs: int, threads: int, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """Run items side by side, telling what starts, what goes on (twice a minute) and what ends."""
    waiting, running, done = list(todo), [], 0
    spoke = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(project, waiting.pop(0), profile, threads))
                last = running[-1].expected
                say(f"{running[-1].item.id}: started" + (f", took {clock(last)} last time" if last else ""))
            time.sleep(0.1)
            for run in [r for r in running if r.process.poll() is not None]:
                running.remove(run)
                outcome = _end(project, run, profile)
                done += 1
                spoke = time.monotonic()
                say(f"{run.item.id}: {outcome.verdict} ({clock(spoke - run.started)}; {done} of {len(todo)} done)")
                yield outcome
            if time.monotonic() - spoke > 30:
                spoke = time.monotonic()
                for run in running:
                    say(_progress(run))
    finally:  # also when interrupted: a process that is told to end leaves nothing that looks finished
        for run in running:
            run.process.terminate()
        for run in running:
            try:
                run.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                run.process.kill()


def _start(project: Project, item: Item, profile: str, threads: int) -> _Running:
    last = newest_run(project, item, profile)
    expected = json.loads((last / "provenance.json").read_text())["seconds"] if last else None
    above = [str(project.root), str(Path(__file__).resolve().parents[1])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*above, *filter(None, [os.environ.get("PYTHONPATH")])]),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
    }
    command = [sys.executable, "-m", "dmcmc_core", "run-one", item.id, "--profile", profile]
    command += ["--root", str(project.root), "--package", project.package, "--with-parent"]
    output = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
    )
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    return _Running(item, process, output, folder, time.monotonic(), expected)


def _end(project: Project, run: _Running, profile: str) -> Outcome:
    run.output.seek(0)
    said = run.output.read().strip().splitlines()
    run.output.close()
    seconds = time.monotonic() - run.started
    if run.process.returncode == 0 and is_complete(run.folder, run.item):
        _publish(run.folder, run.item, project.figures(profile))
        return _outcome(run.folder, run.item)
    failed = failed_folder(run.folder)
    if run.process.returncode < 0:
        why = f"ended by signal {-run.process.returncode}"
    else:
        why = said[-1].removeprefix("error: ") if said else f"ended with status {run.process.returncode}"
    kept = failed if (failed / "failure.txt").is_file() else None
    return Outcome(run.item, f"failed: {why}", seconds, failed=True, folder=kept)


def _progress(run: _Running) -> str:
    elapsed = time.monotonic() - run.started
    line = f"{run.item.id}: running for {clock(elapsed)}"
    parts = sorted(run.folder.parent.glob(f".{run.folder.name}.{run.process.pid}.part"))
    if not parts:
        return f"{line}, waiting for another process that makes the same"
    done, cells = cells_done(parts[0] / "run.ipynb")
    line += f", {done} of {cells} cells done" if cells else ""
    if run.expected and run.expected > elapsed:
        line += f", about {clock(run.expected - elapsed)} left"
    return line


# Reports


CLAIM = {
    "item": "item", "claim": "claim", "published": "published", "source": "source", "here": "here", "holds": "holds",
    "note": "note",
}  # fmt: skip


def write_claims(project: Project, profile: str) -> list[Path]:
    """Every claim of every item's newest run under a profile as one table, ``claims.*`` among the figures.

    Of an item that has no run here the claims stay that the table has already, as its other figures do.
    """
    folder, rows = project.figures(profile), []
    if folder is None:
        return []
    before, there = folder / "claims.csv", []
    if before.is_file():
        with before.open(newline="") as file:
            there = [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]
    for item in project.items:
        if run := newest_run(project, item, profile) if profile in item.parameters else None:
            rows += [{"item": item.id, **claim} for claim in read_metrics(run)["claims"]]
        else:
            rows += [row | {"holds": row["holds"] == "True"} for row in there if row["item"] == item.id]
    if not rows:
        return []
    held = sum(row["holds"] for row in rows)
    caption = f"Every claim that a notebook looks into, profile {profile}: {held} of {len(rows)} hold here."
    return tables.write_table(rows, CLAIM, folder, "claims", caption)


def clock(seconds: float) -> str:
    """A duration for people: 8 s, 3 min 05 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first row as the head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def report(outcomes: Sequence[Outcome]) -> str:
    """The table that a reproduction ends with, the claims that do not hold, and where failed runs can be looked at."""
    rows = [("item", "verdict", "time", "")]
    notes = []
    for o in outcomes:
        took = clock(o.seconds) if o.seconds is not None else ""
        rows.append((o.item.id, o.verdict, took, "unchanged, not run again" if o.unchanged else ""))
        if o.failed:
            notes.append(f"{o.item.id}: see {o.folder / 'run.ipynb'} and log.txt beside it" if o.folder else "")
            continue
        for claim in read_metrics(o.folder)["claims"] if o.folder else ():
            if not claim["holds"]:
                published = f", published {claim['published']}" if claim["published"] else ""
                note = f" ({claim['note']})" if claim["note"] else ""
                notes.append(f"{o.item.id}: does not hold: {claim['claim']}; here {claim['here']}{published}{note}")
    return "\n".join([columns(rows), *([""] if any(notes) else []), *filter(None, notes)])


def state(project: Project, item: Item, profile: str) -> tuple[str, str]:
    """Verdict and time of an item's run under a profile, as far as there is one."""
    if profile not in item.parameters:
        return f"only under {', '.join(p for p in PROFILES if p in item.parameters)}", ""
    if missing_files(project, item, profile):
        return "files missing", ""
    folder = project.folder(item, run_key(ingredients(project, item, profile)))
    last = folder if is_complete(folder, item) else newest_run(project, item, profile)
    if last is None:
        return "failed" if failed_folder(folder).is_dir() else "not run", ""
    outcome = _outcome(last, item)
    return outcome.verdict + ("" if last == folder else " (out of date)"), clock(outcome.seconds)


def overview(profile: str = "local", only: Sequence[str] = (), project: Project | None = None) -> str:
    """Every item with its paper item, notebook, verdict and time, as aligned text; nothing is run."""
    project = project or here()
    items = project.select(only, profile) if only else project.items
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    rows = [("item", "paper item", "notebook", f"verdict ({profile})", "time")]
    rows += [(i.id, i.paper_item, i.notebook, *state(project, i, profile)) for i in items]
    return columns(rows)


def readme_table(project: Project | None = None, profile: str = "local") -> str:
    """The table of items in Markdown, from the manifest and the newest runs; of the outputs those that are there."""
    project = project or here()
    lines = ["| Item | Paper | Notebook | Verdict | Time | Outputs |", "|---|---|---|---|---|---|"]
    for item in project.items:
        result, took = state(project, item, profile)
        there = [name for name in item.outputs if (project.root / "figures" / name).is_file()]
        seen = [name for name in there if name.endswith((".png", ".md"))] or there
        shown = ", ".join(f"[{name.removeprefix(f'{item.id}-')}](figures/{name})" for name in seen)
        title, paper = (text.replace("|", "\\|") for text in (item.title, item.paper_item))
        notebook = f"[{Path(item.notebook).name}]({item.notebook})"
        lines.append(f"| `{item.id}`: {title} | {paper} | {notebook} | {result} | {took} | {shown} |")
    return "\n".join(lines)


def write_readme(project: Project | None = None, profile: str = "local") -> Path:
    """Rewrite what stands between the two ``<!-- items -->`` markers of README.md; raises UserError without them."""
    project = project or here()
    path = project.root / "README.md"
    mark = "<!-- items -->"
    parts = path.read_text(encoding="utf-8").split(mark) if path.is_file() else []
    if len(parts) != 3:
        raise UserError(f"{path} must hold the marker {mark} exactly twice, around the table of items")
    text = f"{parts[0]}{mark}\n{readme_table(project, profile)}\n{mark}{parts[2]}"
    temporary = path.with_name("README.md.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
