"""The panel of two samplers side by side: images, their difference, and the curve of paired errors by NFE."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as w
import numpy as np

from dmcmc_core.errors import UserError
from dmcmc_core.samplers import FITTED, INTEGRATORS
from dmcmc_core.workbench.explorer import fields, figures, pictures
from dmcmc_core.workbench.explorer.choice import Choice, Problem, problem_of
from dmcmc_core.workbench.explorer.compare import Comparison, Pair, Side
from dmcmc_core.workbench.explorer.sample_panel import STARTS, model_names
from dmcmc_core.workbench.explorer.session import FAILED

SAMPLERS = (*INTEGRATORS, FITTED.name, *(f"dlg+{name}" for name in (*INTEGRATORS, FITTED.name)))
SHOWN = 36
"""Images that are shown of each."""


class ComparePanel:
    """A view of a :class:`Comparison`."""

    def __init__(self, comparison: Comparison, model: str) -> None:
        self.comparison, self._lock = comparison, threading.RLock()
        own = comparison.models.own
        names = model_names(own)
        names = [name for name in names if name not in ("digits-cld", "digits-bdm", "digits-vp")]
        names += [] if model in names else [model]
        f = fields
        self.fields = f.Fields(
            {
                "model": f.dropdown("model", names, model),
                "a": f.dropdown("sampler A", SAMPLERS, "heun"),
                "b": f.dropdown("sampler B", SAMPLERS, "dpmpp_2m"),
                "nfe": f.whole("NFE", 10, "network evaluations per image of both"),
                "start": f.dropdown("start", STARTS.items(), ""),
                "seed": f.whole("seed", 0),
                "n": f.whole("images", 128, "the curve takes the first 64 of them"),
            }
        )
        self.bar = f.Bar(("Compare", self.compare), ("When are they the same?", self.curve), cancel=comparison.cancel)
        self.bar.buttons[1].tooltip = "the paired error of A to B by network evaluations"
        self.follower = f.Follower(comparison, self.draw, self._failed)
        self.images = [f.pixels("216px") for _ in range(3)]
        self.titles = [w.HTML("<b>A</b>"), w.HTML("<b>B</b>"), w.HTML("<b>difference</b>")]
        self.table, self.plot, self.verdict, self.notes = w.HTML(), w.HTML(), w.HTML(), f.quiet()
        self.verdict.add_class("dmcmc-verdict")
        self._drawn = 0
        self.box = self._layout()

    def _layout(self) -> w.HBox:
        pairs = [w.VBox([title, image]) for title, image in zip(self.titles, self.images, strict=True)]
        hint = fields.quiet(
            "Compare runs both at this NFE from the same noise. The other button raises the NFE until their images are "
            "indistinguishable."
        )
        self.side_by_side = w.HBox(pairs, layout=w.Layout(grid_gap="18px", display="none", flex_flow="row wrap"))
        shown = [self.bar.box, hint, self.verdict, self.plot, self.side_by_side, self.table, self.notes]
        return fields.beside(self.fields.box, w.VBox(shown, layout=w.Layout(grid_gap="8px")))

    def choices(self) -> tuple[Choice, Choice]:
        """Return what both sides are."""
        f = self.fields
        settings = {"start": f["start"]} if f["start"] else {}
        chains = {"chains": 16, "n_skip": 4}
        return tuple(  # pyright: ignore[reportReturnType]  two of them
            Choice(f["model"], f[side], f["nfe"], f["n"], f["seed"],
                   settings | (chains if f[side].startswith("dlg+") else {}))
            for side in "ab"
        )  # fmt: skip

    def compare(self) -> None:
        """Begin to compare both at the NFE of the panel."""
        self._begin(lambda: self.comparison.start(*self.choices()))

    def curve(self) -> None:
        """Begin the curve of errors by NFE."""
        self._begin(lambda: self.comparison.start_curve(*self.choices()))

    def _begin(self, start: Callable[[], Any]) -> None:
        with self._lock:
            self.fields.tell(None)
            self.bar.running(True)
            self.bar.line.value, self.notes.value, self._drawn = "starting", "", 0
        self.follower.follow(start)

    def _failed(self, error: UserError) -> None:
        with self._lock:
            self.bar.running(False)
            self.bar.line.value = ""
            self.fields.tell(problem_of(error))

    def draw(self, ended: bool) -> None:
        """Show what is known so far."""
        with self._lock:
            c = self.comparison
            self.bar.show(c.progress(), c.doing)
            if c.rows and (len(c.rows) != self._drawn or ended):
                self._drawn = len(c.rows)
                self.plot.value = pictures.svg(figures.curve(c.rows, c.names, c.rounding))
                self.verdict.value = html.escape(c.verdict()) if ended or c.same_from() else ""
            if not ended:
                return
            self.bar.running(False)
            self.notes.value = fields.told(c.notes)
            if c.status == FAILED:
                self.fields.tell(c.problem or Problem("", "the comparison failed"))
            if c.pair is not None:
                self._show(c.pair)

    def _show(self, pair: Pair) -> None:
        sides = pair.a, pair.b
        shown = [pictures.uint8(side.images[:SHOWN], side.images.data_range) for side in sides]
        low, high = pair.a.images.data_range
        difference = pair.difference[:SHOWN].numpy()
        gain = 0.5 * (high - low) / max(float(np.abs(difference).max()), (high - low) / 255)
        grey = (127.5 + 255 * gain * difference / (high - low)).clip(0, 255).astype(np.uint8)
        for image, levels in zip(self.images, (*shown, grey), strict=True):
            image.value = pictures.png(pictures.sheet(levels))
        for title, side, name in zip(self.titles, sides, "AB", strict=False):
            title.value = f"<b>{name}: {html.escape(side.choice.sampler)}</b>"
        self.titles[2].value = f"<b>B − A, × {gain:.3g}</b>"
        self.side_by_side.layout.display = ""
        self.table.value = table(pair)


def table(pair: Pair) -> str:
    """Return both sides as a table of HTML."""
    head = ["", "NFE", "seconds", "paired error to accurate", pair.distance_name or "distance"]
    rows = [_row(name, side) for name, side in (("A", pair.a), ("B", pair.b))]
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    below = pair.between < pair.rounding
    between = (
        f"A to B: paired error {pair.between:.3g}, {'below' if below else 'above'} the {pair.rounding:.2g} that "
        f"rounding to 256 levels makes{': indistinguishable.' if below else '.'}"
    )
    return f'<table class="dmcmc-table"><tr>{cells}</tr>{body}</table><p>{html.escape(between)}</p>'


def _row(name: str, side: Side) -> list[str]:
    error = "none: chains, or noise on the way" if side.error is None else f"{side.error:.3g}"
    distance = side.why if side.distance is None else f"{side.distance:.3g}"
    return [f"{name}: {side.choice.sampler}", f"{side.nfe:.2f}", f"{side.seconds:.2f}", error, distance]
