"""A JupyterLab of its own for tests in a browser: a server on a free port, and a page that hears what goes wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSIDE = "http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def missing() -> str:
    """What this machine lacks for tests in a browser; empty for nothing."""
    try:
        import jupyterlab  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    return "" if Path(CHROMIUM).is_file() else f"there is no browser at {CHROMIUM}"


def write_notebook(path: Path, *cells: str) -> None:
    import nbformat.v4 as nbf

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps(nbf.new_notebook(cells=[nbf.new_code_cell(c) for c in cells], metadata=kernel)))


@contextmanager
def server(folder: Path, comms: str = "perCommTarget", theme: str = "JupyterLab Light"):
    """Run JupyterLab in a folder; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / "settings"
    settings.mkdir(exist_ok=True)
    overrides = {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/apputils-extension:themes": {"theme": theme},
        "@jupyterlab/apputils-extension:kernels-settings": {"commsOverSubshells": comms},
    }
    (settings / "overrides.json").write_text(json.dumps(overrides))
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "IdentityProvider.token": "", "ServerApp.root_dir": folder,
        "LabApp.app_settings_dir": settings, "LabApp.workspaces_dir": folder / "workspaces", "LabApp.news_url": "",
        "LabApp.user_settings_dir": folder / f"user-{port}",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.open_browser=False"]
    command += [f"--{name}={value}" for name, value in options.items()]
    place = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JUPYTER_CONFIG_DIR": str(folder / "config")}
    with (folder / f"lab-{port}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=place, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, process)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(address: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{address}/api/status", timeout=2):
                return
        except OSError:
            assert process.poll() is None, "JupyterLab did not start"
            time.sleep(0.1)
    raise TimeoutError("JupyterLab did not answer")


class Heard:
    """What a page asked for and complained of."""

    def __init__(self, page) -> None:
        self.errors, self.requests = [], []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def complaints(self) -> list[str]:
        """Errors of the page, but for what JupyterLab says of its own requests when a kernel restarts."""
        return [error for error in self.errors if "Canceled future for" not in error]

    def outside(self) -> list[str]:
        """Requests that would leave this machine."""
        return [url for url in self.requests if not url.startswith(INSIDE)]


def open_notebook(page, address: str, name: str = "nb.ipynb") -> None:
    page.goto(f"{address}/doc/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell .cm-content", timeout=60_000)
    page.wait_for_selector("[data-status='idle']", timeout=60_000)


def run_cell(page, number: int, tries: int = 10) -> None:
    """Run a cell by the keyboard until it is done or goes on; what is sent before the kernel listens is sent again."""
    cell = page.locator(".jp-Notebook .jp-Cell").nth(number)
    before = cell.locator(".jp-InputPrompt").inner_text()
    for _ in range(tries):
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        for _ in range(25):
            page.wait_for_timeout(100)
            now = cell.locator(".jp-InputPrompt").inner_text()
            if any(c.isdigit() for c in now) and now != before:
                return
        if "*" in now:
            return
    raise TimeoutError(f"cell {number} did not run")
