"""Paired errors of samplers from noise: to the accurate solution from the same noise, measured at most once each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import count_nfe
from dmcmc_core.dmcmc import prior
from dmcmc_core.errors import UserError
from dmcmc_core.guidance import in_blocks
from dmcmc_core.metrics import paired_errors
from dmcmc_core.runs.kinds import IntegratorPlan
from dmcmc_core.runs.measured import Measured
from dmcmc_core.runs.model import device_of
from dmcmc_core.runs.plan import plan
from dmcmc_core.runs.tuning.notes import Notes
from dmcmc_core.streams import Streams

FIRST, ALL = range(8), range(24)
"""Images on which all samplers are tried, and those on which the near ones are."""
ACCURATE = 60
"""Network calls of UniPC for the accurate solution, or twice those of the budget where that is more."""
PAIRED = -4
"""Seed of the noise that they begin with; those of runs are at least 0."""


class Paired:
    """The model, and what its accurate solution needs: ``common``, the settings that all samplers share.

    Args:
        model: of a class and between the levels of the settings.
        nfe: network evaluations per image that the samplers are given.
    """

    def __init__(
        self, model: Any, nfe: float, common: dict[str, Any], notes: Notes, say: Callable[[str], None]
    ) -> None:
        self.model, self.nfe, self.notes, self.say = in_blocks(model, len(ALL)), nfe, notes, say
        self.common = {name: common[name] for name in ("start", "tweedie") if name in common}

    @property
    def rows(self) -> int:
        """Rows evaluated, of samplers and of accurate solutions."""
        return self.notes.content.get("accurate", 0) + sum(row["rows"] for row in self.notes.paired.values())

    def row(self, made: IntegratorPlan, settings: dict[str, Any], images: range) -> dict[str, Any]:
        """Return sampler, settings, paired ``error`` over so many images from the first, and how many these are."""
        parts = [FIRST, *([range(len(FIRST), len(ALL))] if len(images) > len(FIRST) else [])]
        errors = [e for part in parts for e in self._errors(made, settings, part)]
        return {"sampler": made.sampler, "settings": settings, "error": _together(errors), "images": len(errors)}

    def _errors(self, made: IntegratorPlan, settings: dict[str, Any], images: range) -> list[float]:
        """Return the errors of some images, infinite where the sampler left the finite numbers."""
        known, name = self.notes.paired, json.dumps([made.sampler, settings, images.start], sort_keys=True)
        if name not in known:
            truth = self.truth[images.start : images.stop]
            counted = count_nfe(self.model)
            try:
                errors = paired_errors(_images(counted, made, images), truth).tolist()
            except UserError:
                errors = [math.inf] * len(images)
            known[name] = {"errors": errors, "rows": counted.rows}
            self.notes.keep()
            said = f"{made.sampler}, {made.schedule}: paired error {_together(errors):.4g}"
            self.say(f"{said} on images {images.start} to {images.stop - 1}")
        return known[name]["errors"]

    @cached_property
    def truth(self) -> Tensor:
        """The accurate solutions from the noise of all images, (n, *shape)."""
        each, counted = getattr(self.model, "rows_per_image", 1), count_nfe(self.model)
        calls = max(ACCURATE, round(2 * self.nfe / each)) + ("tweedie" in self.common)
        made: Any = plan(self.model, "unipc", each * calls, len(ALL), self.common | {"schedule": "karras"})
        images = _images(counted, made, ALL)
        self.notes.keep(accurate=self.notes.content.get("accurate", 0) + counted.rows)
        return images


def _together(errors: list[float]) -> float:
    """Return the paired error of images whose own these are."""
    return math.sqrt(sum(e * e for e in errors) / len(errors))


@torch.no_grad()
def _images(counted: Any, made: IntegratorPlan, images: range) -> Tensor:
    noise = Streams(PAIRED, "image", images)
    x = prior(counted, noise, len(images), made.start, device_of(counted))
    measured, sigma = Measured(made), x.new_full((len(x),), counted.sigma_max)
    return measured(counted, x, made.levels_from(counted, sigma), noise=noise)
