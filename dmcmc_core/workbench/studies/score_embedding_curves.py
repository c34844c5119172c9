"""Curves of the study of score embedding: similarity against optimiser steps, in two panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmcmc_core.report import plots
from dmcmc_core.report.tables import mean_and_spread
from dmcmc_core.workbench.studies.score_embedding import METHOD, PLAIN, RATE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
PANELS = {
    "the embedding and its controls": {
        METHOD: 0,
        "consistent equation": 1,
        "random shift": 2,
        PLAIN: 3,
        "embedding, rate of DDPM": 8,
    },
    "its baselines": {"DDPM": 4, RATE: 6, f"{RATE}, raw weights": 7, "DDIM": 5, "DDIM, rate of the method": 13},
}
"""Panel -> arm -> its look, see :func:`dmcmc_core.report.plots.style.look`."""


def mean_curves(profiles: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the mean similarity of each arm over its seeds by step, as ``arm``, ``step`` and ``ssim``, a Spread."""
    return mean_and_spread(profiles, "ssim", ("arm", "step"))


def figure(curves: Sequence[Mapping[str, Any]], where: str) -> Figure:
    """Draw the rows of :func:`mean_curves`; ``where`` says picture, size and seeds."""
    rows = [
        {"panel": panel, "arm": row["arm"], "x": row["step"], "y": row["ssim"], "look": looks[row["arm"]]}
        for panel, looks in PANELS.items()
        for row in curves
        if row["arm"] in looks
    ]
    title = f"{where}, bands: standard deviation"
    return plots.curve_panels(rows, "optimiser steps", "SSIM, mean over seeds", share_y=True, title=title)
