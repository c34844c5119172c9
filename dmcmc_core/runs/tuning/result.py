"""What a search found, and when one trial counts as better than another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dmcmc_core.runs.settings import SEARCHES

SURELY = 2.0
"""Standard errors that make a difference count."""


@dataclass
class Tuned:
    """What was chosen, for :func:`dmcmc_core.runs.make.run`, and what it rests on.

    ``paired``: plain samplers with their errors against the accurate solution, the chosen one first, and ``fitted``
    why a fitted solver is or is not among them. ``trials``: of chains, settings, distance and the rows evaluated for
    each, as tried. ``finals``: the chosen chains, then the chosen plain sampler at the same budget, on fresh seeds;
    ``distance`` is of those. ``rows`` were evaluated for all of it together, ``nfe`` that is per image asked for.
    """

    sampler: str
    settings: dict[str, Any]
    distance: float
    nfe: float
    rows: int
    distance_name: str
    asked: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)
    paired: list[dict[str, Any]] = field(default_factory=list)
    fitted: str = ""
    plain: dict[str, Any] = field(default_factory=dict)
    """Sampler, settings of the chosen plain sampler."""

    def or_plain(self) -> Tuned:
        """Return what ``auto`` makes of the same search: the plain sampler, where chains are not surely better."""
        if surely_less(*self.finals):
            return self
        return replace(self, **self.plain, distance=self.finals[1]["distance"])

    def __str__(self) -> str:
        text = f"chosen: {described(self.sampler, self.settings)}: {self.distance_name} {self.distance:.3g} to slow "
        text += f"images of the model itself; tuning cost {self.rows} evaluations, {self.nfe:.2f} NFE per image asked "
        text += f"for; {self._compared()}"
        if self.paired:
            best = self.paired[0]
            settings = {name: value for name, value in best["settings"].items() if name != "file"}
            text += f"; of {len(self.paired)} plain samplers {described(best['sampler'], settings)} is nearest "
            text += f"to the accurate solution, at a paired error of {best['error']:.3g}"
        return f"{text}; {self.fitted}" if self.fitted else text

    def _compared(self) -> str:
        """Say how chains and the plain sampler compare."""
        chains, plain = self.finals
        if self.sampler == plain["sampler"]:
            return f"{chains['sampler']}, at {chains['distance']:.3g}, is not surely better"
        if surely_less(chains, plain):
            return f"without chains {plain['sampler']} is at {plain['distance']:.3g}, surely worse"
        return (
            f"not surely better than {plain['sampler']} without chains, at {plain['distance']:.3g}: "
            f"--sampler {SEARCHES[1]} would choose a plain sampler"
        )


def described(sampler: str, settings: dict[str, Any]) -> str:
    """Return a sampler with its settings, in words."""
    return sampler + (" with " + ", ".join(f"{k}={v}" for k, v in settings.items()) if settings else "")


def surely_less(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether trial a has the lower distance by two standard errors of a jackknife over chains."""
    one, other = torch.tensor(a["without"]), torch.tensor(b["without"])
    parts = [one - other] if len(one) == len(other) else [one, other]  # fewer chains than groups: no pairs
    error = sum((len(part) - 1) * part.var(correction=0) for part in parts).sqrt().item()
    return a["distance"] - b["distance"] < -SURELY * error
