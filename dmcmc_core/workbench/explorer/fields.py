"""Controls with a place for what is wrong with them, the look of all panels, and how widgets are taken away again."""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets as w
import numpy as np

from dmcmc_core.errors import UserError, sentence
from dmcmc_core.workbench.explorer import pictures
from dmcmc_core.workbench.explorer.choice import Problem
from dmcmc_core.workbench.explorer.session import Progress, Worker

FRAMES = 10
"""Pictures a second at most."""
DRAWING = 0.02
"""Share of its time that a run loses to each view at most: on a slow machine there are fewer pictures a second."""
SETTLED = 0.1
"""Seconds between a button and its job: JupyterLab sends messages over several threads, and one may be overtaken."""
STYLE = """<style>
.dmcmc-explorer {color: var(--jp-ui-font-color1); max-width: 1180px;}
.dmcmc-explorer .widget-html-content {line-height: 1.45; color: var(--jp-ui-font-color1);}
.dmcmc-explorer .widget-label {color: var(--jp-ui-font-color1);}
.dmcmc-pixels img, img.dmcmc-pixels {image-rendering: pixelated; object-fit: contain;}
.dmcmc-problem .widget-html-content, span.dmcmc-problem {color: #c62828; font-size: 12px; line-height: 1.35;}
[data-jp-theme-light="false"] .dmcmc-problem .widget-html-content,
[data-jp-theme-light="false"] span.dmcmc-problem {color: #ff9e94;}
[data-jp-theme-light="false"] .dmcmc-explorer .widget-dropdown > select {color-scheme: dark;
 background-image: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath \
fill='%23cccccc' d='M5.2 5.9 9 9.7l3.8-3.8 1.2 1.2-5 5-5-5z'/%3E%3C/svg%3E");}
.dmcmc-quiet .widget-html-content {color: var(--jp-ui-font-color2); font-size: 12px;}
.dmcmc-code {font-family: var(--jp-code-font-family, monospace); font-size: 12px; white-space: pre-wrap;
 word-break: break-word; background: var(--jp-layout-color2); padding: 6px 8px; border-radius: 3px; user-select: all;}
.dmcmc-verdict .widget-html-content {font-weight: 600; font-size: 14px;}
.dmcmc-along {display: grid; gap: 3px 6px; max-width: 640px; align-items: center; justify-items: center;
 font-size: 11px;}
.dmcmc-along img {width: 100%;}
.dmcmc-table {border-collapse: collapse; font-size: 13px;}
.dmcmc-table td, .dmcmc-table th {padding: 3px 12px 3px 0; text-align: right;
 border-bottom: 1px solid var(--jp-border-color2);}
.dmcmc-table th:first-child, .dmcmc-table td:first-child {text-align: left;}
.dmcmc-explorer :focus-visible {outline: 2px solid var(--jp-brand-color1); outline-offset: 1px;}
</style>"""
WIDE = {"description_width": "104px"}


class Fields:
    """Controls by name, one below the other, each above the place where its problem is told."""

    def __init__(self, controls: Mapping[str, Any]) -> None:
        self.controls = dict(controls)
        self.errors = {
            name: w.HTML(layout=w.Layout(display="none", margin="0 0 6px 112px")) for name in ("", *self.controls)
        }
        for name, error in self.errors.items():
            error.add_class("dmcmc-problem")
            error.add_class(f"dmcmc-problem-{name or 'run'}")
        self.rows = {name: w.VBox([control, self.errors[name]]) for name, control in self.controls.items()}
        self.box = w.VBox([*self.rows.values(), self.errors[""]], layout=w.Layout(width="310px", flex="0 0 310px"))

    def __getitem__(self, name: str) -> Any:
        return self.controls[name].value

    def show(self, name: str, shown: bool) -> None:
        """Show a control, or hide it."""
        self.rows[name].layout.display = "" if shown else "none"

    def tell(self, problem: Problem | None) -> None:
        """Tell a problem beside its control, and take away the one before; None: there is none."""
        at = "" if problem is not None and problem.control not in self.controls else problem and problem.control
        for name, error in self.errors.items():
            text = html.escape(short(problem.message)) if problem is not None and name == at else ""
            text = text and f'<span role="alert">{text}</span>'
            if error.value != text:
                error.value = text
                error.layout.display = "" if text else "none"

    def observe(self, changed: Callable[[], Any]) -> None:
        """Call a function when any value changes."""
        for control in self.controls.values():
            control.observe(lambda _: changed(), names="value")


def short(text: str, most: int = 300) -> str:
    """Return a sentence that fits beside a control: lists of all that is known are cut."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " …"


def dropdown(name: str, options: Iterable[Any], value: Any, tip: str = "") -> w.Dropdown:
    return w.Dropdown(description=name, options=list(options), value=value, tooltip=tip, style=WIDE, layout=_control())


def whole(name: str, value: int, tip: str = "") -> w.IntText:
    return w.IntText(description=name, value=value, tooltip=tip, style=WIDE, layout=_control())


def real(name: str, value: float, tip: str = "") -> w.FloatText:
    return w.FloatText(description=name, value=value, tooltip=tip, style=WIDE, layout=_control(), step=None)


def text(name: str, value: str, tip: str = "") -> w.Text:
    return w.Text(description=name, value=value, tooltip=tip, style=WIDE, layout=_control(), continuous_update=False)


def _control() -> w.Layout:
    return w.Layout(width="300px")


def pixels(width: str = "264px") -> w.Image:
    """Return a picture of fixed size, whose pixels stay squares."""
    empty = pictures.png(np.full((1, 1, 4), (128, 128, 128, 24), dtype=np.uint8))
    image = w.Image(value=empty, format="png", layout=w.Layout(width=width, height=width, object_fit="contain"))
    image.add_class("dmcmc-pixels")
    return image


def told(notes: Iterable[str]) -> str:
    """Return what runs have said as HTML, what differs in numbers alone once."""
    first = {re.sub(r"[\d.,]+", "", note): note for note in reversed(list(notes))}
    return "<br>".join(html.escape(note) for note in reversed(first.values()))


def titled(title: str, *widgets: Any) -> w.VBox:
    return w.VBox([w.HTML(f"<b>{title}</b>"), *widgets])


def beside(controls: w.VBox, shown: w.VBox) -> w.HBox:
    """Return controls with what they show beside them, or below them in a narrow window."""
    shown.layout.flex, shown.layout.min_width = "1 1 420px", "0"
    return w.HBox([controls, shown], layout=w.Layout(grid_gap="20px", flex_flow="row wrap"))


def quiet(value: str = "") -> w.HTML:
    made = w.HTML(value)
    made.add_class("dmcmc-quiet")
    return made


class Bar:
    """Run and Cancel, a progress bar, and a line with NFE, rate and the time that is left."""

    def __init__(self, *starts: tuple[str, Callable[[], Any]], cancel: Callable[[], Any]) -> None:
        self.buttons = []
        for k, (name, start) in enumerate(starts):
            layout = w.Layout(width="auto", flex="0 0 auto")
            button = w.Button(description=name, button_style="primary" if not k else "", layout=layout)
            button.on_click(lambda _, start=start: start())
            self.buttons.append(button)
        self.cancel = w.Button(description="Cancel", disabled=True, layout=w.Layout(width="auto", flex="0 0 auto"))
        self.cancel.on_click(lambda _: cancel())
        self.bar = w.FloatProgress(min=0, max=1, layout=w.Layout(width="180px", margin="2px 8px 2px 12px"))
        self.line = quiet("")
        self.box = w.HBox([*self.buttons, self.cancel, self.bar, self.line])
        self.box.layout.align_items, self.box.layout.flex_flow = "center", "row wrap"

    def running(self, on: bool) -> None:
        """Let only Cancel be pressed while something runs."""
        for button in self.buttons:
            button.disabled = on
        self.cancel.disabled = not on

    def show(self, progress: Progress, doing: str = "") -> None:
        self.bar.value = progress.share
        self.bar.bar_style = {"done": "success", "failed": "danger", "cancelled": "warning"}.get(progress.status, "")
        self.line.value = line(progress, doing)


def line(progress: Progress, doing: str = "") -> str:
    """Say how far a run is."""
    p = progress
    if p.status == "idle":
        return ""
    parts = [{"running": doing or p.status, "done": f"done in {p.seconds:.1f} s"}.get(p.status, p.status)]
    parts += [f"{p.nfe:.1f} NFE"] if p.nfe == p.nfe else [f"{p.rows:,} evaluations"]
    parts += [f"{p.rate:,.0f}/s"] if p.rate else []
    parts += [f"{p.left:.0f} s left"] if p.left is not None and p.status == "running" else []
    return " · ".join(html.escape(part) for part in parts)


class Soon:
    """Does something on a thread of its own, after the last time that it is asked, and never twice at a time.

    What a browser sends may come on several threads, and a slow answer to one message would let others overtake it.
    """

    def __init__(self, do: Callable[[], Any]) -> None:
        self.do, self._lock, self._asked = do, threading.Lock(), False
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        with self._lock:
            self._asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._go, name="explorer-soon", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all that was asked for is done."""
        if (thread := self._thread) is not None:
            thread.join(seconds)

    def _go(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._thread = None
                    return
                self._asked = False
            self.do()


class Follower:
    """Starts a job and draws what its worker does, at most FRAMES times a second, on a thread that ends with the job.

    Args:
        draw: gets whether the job has ended.
        failed: gets the error of a job that could not begin, or of a view that could not be drawn.
        slow: another view, of the job as it goes on: it is drawn less often where drawing it takes longer.
    """

    def __init__(
        self,
        worker: Worker,
        draw: Callable[[bool], Any],
        failed: Callable[[UserError], Any],
        slow: Callable[[], Any] = lambda: None,
    ) -> None:
        self.worker, self.draw, self.failed, self.slow = worker, draw, failed, slow
        self._thread: threading.Thread | None = None

    def follow(self, start: Callable[[], Any]) -> None:
        """Begin a job a moment later, when values that were sent before the button have come, and follow it."""
        self._thread = threading.Thread(target=self._go, args=(start,), name="explorer-follower", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the end of the job is drawn."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _go(self, start: Callable[[], Any]) -> None:
        time.sleep(SETTLED)
        try:
            start()
        except UserError as error:
            self.failed(error)
            return
        try:
            try:
                self._follow()
            finally:
                self.worker.wait()
                self.draw(True)
        except Exception as error:  # a thread that ends in a traceback would leave the panel as it is
            self.failed(UserError(f"it cannot be drawn: {sentence(error)}"))

    def _follow(self) -> None:
        """Draw both views, each when its time has come, until the job has ended."""
        due: dict[Callable[[], Any], float] = {lambda: self.draw(False): 0.0, self.slow: 0.0}
        while self.worker.running:
            for view, at in due.items():
                started = time.perf_counter()
                if started >= at:
                    view()
                    ended = time.perf_counter()
                    due[view] = ended + max(1 / FRAMES, (ended - started) / DRAWING)
            self.worker.wait(max(0.0, min(due.values()) - time.perf_counter()))


def close(*roots: Any) -> None:
    """Close widgets with all that they hold: children, layouts and styles, each of which has a line to the browser."""
    seen: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, w.Widget) and id(one) not in seen:
            seen[id(one)] = one
            waiting += [getattr(one, name) for name in one.keys if name != "comm"]
    for one in seen.values():
        one.unobserve_all()
        one.close()
