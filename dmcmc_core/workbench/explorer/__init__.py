"""The explorer: watch a sampler at work in JupyterLab, compare two, steer, and see the theory in the plane.

From the bottom up: ``choice`` (a recipe and what is wrong with it), ``watching`` (a run that is looked at), ``session``
(one run at a time on a thread), ``compare``, ``control`` and ``theory`` (what is computed for the other panels), all
without widgets; ``pictures`` and ``figures`` draw; the panels show.
"""

from __future__ import annotations

from typing import Any

__all__ = ["explore"]


def __getattr__(name: str) -> Any:
    """Import the panels, which need ipywidgets, when they are asked for."""
    if name == "explore":
        from dmcmc_core.workbench.explorer.panel import explore

        return explore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
