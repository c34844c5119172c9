"""Semantic control on a thread: boundaries of a frozen network, fitted once, and images moved across them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core.boundary import Boundary
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.explorer.session import Models, Worker
from dmcmc_core.workbench.explorer.watching import Log, Stoppable
from dmcmc_core.workbench.studies import boundary as jobs

TIME, COUNT = 200, 10
"""Time of the edit, and times of the way there and back."""
FITTED, EDITED = 40, 8
"""Images of either kind that a boundary is fitted to, and images that are edited."""
WAY = jobs.Way(how="add", eta=0.0)
"""Projections grow by the strength, and the way back is without noise: strength 0 gives the image back."""


class Bed(NamedTuple):
    """A network, the boundaries in its pixels by name, each between two kinds of images, and the images to edit."""

    model: str
    boundaries: dict[str, tuple[str, str]]
    source: str
    strengths: tuple[float, float]


BEDS = {
    "digits": Bed(
        "digits-ddpm",
        {"7 → 3": ("digits-train:7", "digits-train:3"), "7 → 9": ("digits-train:7", "digits-train:9")},
        "digits-heldout:7",
        (-6.0, 10.0),
    ),
    "glyphs": Bed(
        "glyphs32-ddpm",
        {
            "ink dark → light": ("glyphs32:ink=dark", "glyphs32:ink=light"),
            "ground bright → dark": ("glyphs32:ground=bright", "glyphs32:ground=dark"),
        },
        "glyphs32-heldout:ink=dark,ground=bright",
        (-15.0, 40.0),
    ),
}


class Steering(Worker):
    """Fits boundaries of a bed once and edits its images; of requests that come meanwhile the newest is done.

    Attributes:
        bed: name of the bed that is shown.
        source, edited: (EDITED, C, H, W) in [0, 1]; None before they are there.
        strengths: of ``edited``.
        accuracies: share of images held out that are on their side, by boundary.
    """

    def __init__(self, models: Models | None = None) -> None:
        super().__init__()
        self.models, self.log = models or Models(), Log(frames=False)
        self.bed, self.source, self.edited = "", None, None
        self.strengths: tuple[float, ...] = ()
        self.accuracies: dict[str, float] = {}
        self._beds: dict[str, tuple[list[Boundary], Tensor, Tensor]] = {}
        self._asked: tuple[str, tuple[float, ...]] | None = None
        self._guard, self._serving = threading.Lock(), False

    def ask(self, bed: str, strengths: Sequence[float]) -> None:
        """Ask for the images of a bed, moved by so much across each of its boundaries; return at once."""
        if bed not in BEDS:
            raise unknown("bed", bed, BEDS)
        if len(strengths) != len(BEDS[bed].boundaries):
            raise UserError(f"{bed} has {len(BEDS[bed].boundaries)} boundaries, each with a strength: not {strengths}")
        with self._guard:
            self._asked = bed, tuple(map(float, strengths))
            if not self._serving:
                super().wait()  # the job before has said that it ends
                self._serving = True
                self.begin(self._serve, self._ready)

    def wait(self, seconds: float | None = None) -> str:
        """Wait until all that was asked for is done."""
        while (status := super().wait(seconds)) and self.running:
            pass
        return status

    def _ready(self) -> None:
        self.log = Log(self.stop, frames=False)

    def _serve(self) -> None:
        try:
            while (asked := self._next()) is not None:
                name, strengths = asked
                boundaries, source, z = self._fitted(name)
                edited = jobs.edited(self._model(name), z, boundaries, strengths, way=WAY)
                self.bed, self.source, self.edited, self.strengths = name, source, edited, strengths
        finally:
            with self._guard:
                self._serving = False

    def _next(self) -> tuple[str, tuple[float, ...]] | None:
        """Take what is asked for; where that is nothing, whoever asks next begins anew."""
        with self._guard:
            asked, self._asked = self._asked, None
            self._serving = asked is not None
            return asked

    def _model(self, bed: str) -> Any:
        return Stoppable(self.models.get(BEDS[bed].model), self.log)

    @torch.no_grad()
    def _fitted(self, name: str) -> tuple[list[Boundary], Tensor, Tensor]:
        if name not in self._beds:
            bed, model = BEDS[name], self._model(name)
            made = []
            for kinds in bed.boundaries.values():
                sides = [jobs.images_of(kind)[:FITTED] for kind in kinds]
                made.append(jobs.fit(model, *sides, time=TIME, count=COUNT))
            source = jobs.images_of(bed.source)[:EDITED]
            z, _ = jobs.last_of_both(model, source, jobs.times_of(model, made), deep=False)
            self._beds[name] = made, source, z
        made = self._beds[name][0]
        self.accuracies = dict(zip(BEDS[name].boundaries, (one.accuracy for one in made), strict=True))
        return self._beds[name]
