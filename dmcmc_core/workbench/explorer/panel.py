"""``explore()``: all panels in one, below the cell that asks for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as w

from dmcmc_core.errors import number, unknown
from dmcmc_core.runs.settings import LINEAR_SAMPLERS
from dmcmc_core.workbench.explorer import fields
from dmcmc_core.workbench.explorer.choice import Choice, samplers_of
from dmcmc_core.workbench.explorer.compare import Comparison
from dmcmc_core.workbench.explorer.compare_panel import ComparePanel
from dmcmc_core.workbench.explorer.control import Steering
from dmcmc_core.workbench.explorer.control_panel import ControlPanel
from dmcmc_core.workbench.explorer.sample_panel import SamplePanel, is_linear
from dmcmc_core.workbench.explorer.session import Models, Session
from dmcmc_core.workbench.explorer.theory_panel import TheoryPanel

PANELS = ("One sampler", "Side by side", "Semantic control", "Theory in the plane")
_open: list[Explorer] = []
_opening = threading.Lock()


class Explorer:
    """The explorer; a notebook shows it where it is the value of a cell.

    Attributes:
        session: the :class:`dmcmc_core.workbench.explorer.session.Session` of the first panel.
        panels: what was opened so far, by name.
    """

    def __init__(self, models: Models, choice: Choice) -> None:
        self.models, self.choice, self._lock = models, choice, threading.RLock()
        self.session = Session(models)
        self.panels: dict[str, Any] = {}
        self.tabs = w.ToggleButtons(options=PANELS, style={"button_width": "auto"})
        self.place = w.VBox([])
        self.box = w.VBox([w.HTML(fields.STYLE), self.tabs, self.place], layout=w.Layout(grid_gap="10px"))
        self.box.add_class("dmcmc-explorer")
        self.tabs.observe(lambda _: self.open(self.tabs.value), names="value")
        self.open(PANELS[0])

    def open(self, name: str) -> Any:
        """Show a panel, made when it is first shown; return it."""
        with self._lock:
            if name not in self.panels:
                self.panels[name] = self._made(name)
            panel = self.panels[name]
            self.place.children = [panel.box]
        if name == PANELS[3]:
            panel.ask()
        return panel

    def _made(self, name: str) -> Any:
        if name == PANELS[0]:
            return SamplePanel(self.session, self.choice)
        if name == PANELS[1]:
            return ComparePanel(Comparison(self.models), self.choice.model)
        return ControlPanel(Steering(self.models)) if name == PANELS[2] else TheoryPanel()

    def workers(self) -> list[Any]:
        """Return what may run in the panels."""
        names = ("session", "comparison", "steering")
        return [getattr(panel, name) for panel in self.panels.values() for name in names if hasattr(panel, name)]

    def close(self) -> None:
        """End what runs, and take all widgets away, in the kernel and in the browser."""
        for worker in self.workers():
            worker.cancel()
        for worker in self.workers():
            worker.wait(5)
        for panel in self.panels.values():
            for thread in (getattr(panel, "follower", None), getattr(panel, "soon", None)):
                if thread is not None:
                    thread.wait(5)
        with self._lock:
            fields.close(self.box, *(panel.box for panel in self.panels.values()))

    def _repr_mimebundle_(self, **how: Any) -> Any:
        return self.box._repr_mimebundle_(**how)


def explore(
    model: Any = None,
    *,
    sampler: str | None = None,
    nfe: int = 10,
    n: int = 64,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Explorer:
    """Open the explorer; one that is open already in this kernel is closed.

    Args:
        model: a name or file as of :func:`dmcmc_core.load_model`; a denoiser, a pipeline of diffusers, or, with
            ``shape`` (and ``data_range``), a network or function (x, sigma) -> x0. By default ``digits``.
        sampler, nfe, n, seed, settings: what the controls begin with; the sampler is by default ``dpmpp_2m``, or the
            first that the model has. Settings that no control shows are kept for this sampler.
        facts: ``shape``, ``data_range`` and ``device`` of a model in memory.

    Raises:
        UserError: for a model in memory that is no denoiser of images, and for what no control can show: a sampler that
            the model has not, and text for a number.
    """
    models = Models(model, **facts)
    name = models.own or (str(model) if isinstance(model, str | Path) else "digits")
    names = samplers_of(type("Linear", (), {"sde": None}) if is_linear(models, name) else None)
    sampler = sampler or ("dpmpp_2m" if "dpmpp_2m" in names else names[0])
    if str(sampler).removeprefix("dlg+") not in names or names[0] in LINEAR_SAMPLERS and sampler not in names:
        raise unknown("sampler", sampler, names)
    choice = replace(Choice(name, sampler, nfe, n, seed), settings=dict(settings or {}))
    for name in ("nfe", "n", "seed"):
        number(name, choice[name], whole=True)
    for name in {"eta", "n_skip", "chains"} & {*choice.settings}:
        number(name, choice.settings[name], whole=name != "eta")
    with _opening:
        while _open:
            _open.pop().close()
        _open.append(Explorer(models, choice))
        return _open[0]
