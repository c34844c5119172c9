"""One run: a notebook executed in a process of its own, into a folder that is named when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmcmc_core.files import write_json
from dmcmc_core.workbench.experiments.keys import check_parameters, ingredients, provenance, read_cells, run_key
from dmcmc_core.workbench.experiments.manifest import Item, Project


class Failure(Exception):
    """A run that did not end as it should; the message says why."""


def run_files(item: Item) -> tuple[str, ...]:
    """Return the files that every finished run has; the executed notebook and its log lie beside them."""
    return ("provenance.json", "metrics.json", *item.outputs)


def is_complete(folder: Path, item: Item) -> bool:
    """Tell whether a run is finished: its folder has its name, and nothing was deleted from it since."""
    return all((folder / name).is_file() for name in run_files(item))


def run_one(project: Project, item_id: str, profile: str) -> Path:
    """Execute one item's notebook into its run folder and return the folder, at once if it is there already.

    papermill changes the working directory and a kernel takes its sockets, so every run has a process of its own; this
    is what that process does.

    Raises:
        Failure: when the notebook raises or does not keep its contract; what was executed is then in ``failed-<key>``
            beside the place of the run.
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
    """Return where what was executed of a run lies when it failed."""
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
    write_json(part / "provenance.json", origin, sort_keys=True)  # figures and tables embed it from here
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
    origin |= {"seconds": round(time.monotonic() - started, 1)}
    write_json(part / "provenance.json", origin, sort_keys=True)


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
                    _unformatted(notebook),
                    _unformatted(output),
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
                raise Failure(
                    f"{error.ename}: {error.evalue} (cell {_failed_cell(output, error.cell_index)})"
                ) from None
            except Exception as error:
                if attempt == 2 or cells_done(output)[0]:  # only a kernel that never answered is worth a second try
                    raise Failure(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _unformatted(path: Path) -> str:
    """Return a path as papermill takes it, which puts parameters in the place of names in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _failed_cell(executed: Path, index: int) -> int:
    """Return the number of the cell that raised, from 1, in the notebook without the cells that papermill adds.

    papermill counts ``index`` from 0 and with its parameters, before it marks the error by two cells more. A cell that
    only shows an error has no exception in its metadata, and fails too.
    """
    tags = [cell["tags"] for cell in read_cells(executed)]
    before = [own for own in tags if "papermill-error-cell-tag" not in own][:index]
    return 1 + sum("injected-parameters" not in own for own in before)


def _short_directory() -> str | None:
    """Return where sockets can lie, as their paths may have 107 characters; None for the usual place."""
    return None if len(tempfile.gettempdir()) < 60 else "/tmp"


def _kernel_manager(address: str) -> type:
    """Return a class of kernels that talk over sockets of their own; TCP ports are raced for, shared ones mixed up."""
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


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the claims and numbers that a notebook wrote.

    Raises:
        Failure: when they do not have the form agreed on.
    """
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
    """Count the cells that a notebook has completed, and those that it has; papermill saves it after each.

    When a kernel dies or a cell takes too long, papermill 2.7.0 calls all cells completed. Those that never began have
    no ``exception``, begun ones False; the one that never ended lacks the kernel's reply among its times.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return 0, 0
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    return sum(_is_done(cell.get("metadata", {})) for cell in cells), len(cells)


def _is_done(metadata: Mapping[str, Any]) -> bool:
    """Tell from a cell's metadata whether a kernel has answered for it; an empty cell needs none and has no times."""
    state, reply = metadata.get("papermill", {}), "shell.execute_reply"
    ended = state.get("status") == "completed" and state.get("exception") is False
    return ended and reply in metadata.get("execution", (reply,))


def newest_run(project: Project, item: Item, profile: str) -> Path | None:
    """Return the latest finished run of an item under a profile, whatever has changed since."""
    runs = []
    for path in (project.root / "exp" / "runs" / item.id).glob("*/provenance.json"):
        named = re.fullmatch("[0-9a-f]{20}", path.parent.name)  # neither failed nor being made
        if named and is_complete(path.parent, item) and json.loads(path.read_text())["profile"] == profile:
            runs.append((path.stat().st_mtime, path.parent))
    return max(runs)[1] if runs else None
