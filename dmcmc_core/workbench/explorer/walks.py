"""Chains as they walk, as text of a page made in milliseconds: a run that is watched must not wait for its pictures.

The same pictures without a browser are ``trace`` and ``along`` of :mod:`dmcmc_core.workbench.explorer.figures`.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from dmcmc_core.report.plots.style import COLOURS
from dmcmc_core.workbench.explorer.figures import TRACES, spread, walk
from dmcmc_core.workbench.explorer.pictures import THEME, png, sheet
from dmcmc_core.workbench.explorer.watching import Frame

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 8, 40
POINTS = 600
"""Points of a line at most: of longer walks every second is drawn, or every fourth."""
PIXELS = 64
"""Pixels of an image along a chain, at most, each way."""


def trace(
    windows: Sequence[Mapping[str, np.ndarray]], ends: tuple[float, float] | None = None, chain: int | None = None
) -> str:
    """Return noise levels of chains against their steps as SVG, dots where images start; one chain may stand out.

    Args:
        windows: as :meth:`dmcmc_core.workbench.explorer.session.Session.windows` returns them.
        ends: lowest and highest noise level of the model.
    """
    levels, starts = walk(windows)
    steps = len(levels) - 1
    low, high = min(levels.min(), *ends or (math.inf,)), max(levels.max(), *ends or (0.0,))
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, steps)  # noqa: E731
    span = math.log(high / low) if high > low else 1.0
    y = lambda level: TOP + (HEIGHT - TOP - BOTTOM) * (1 - np.log(level / low) / span)  # noqa: E731
    parts = [*_axes(x, y, steps, (low, high)), *(_line(x, y, levels, starts, c, chain) for c in _shown(levels, chain))]
    about = f"noise levels of {len(_shown(levels, chain))} chains over {steps} steps"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" style="max-width:100%;height:auto"'
    return f'<svg role="img" aria-label="{about}" {size} font-size="11" fill="{THEME}">{"".join(parts)}</svg>'


def _shown(levels: np.ndarray, chain: int | None) -> list[int]:
    """Return the chains that are drawn, the one that stands out last."""
    others = [c for c in range(min(TRACES, levels.shape[1])) if c != chain]
    return others if chain is None else [*others, chain]


def _line(x, y, levels: np.ndarray, starts: np.ndarray, c: int, chain: int | None) -> str:
    every = math.ceil(len(levels) / POINTS)
    at = np.unique([*range(0, len(levels), every), len(levels) - 1])
    points = " ".join(f"{x(step):.1f},{y(levels[step, c]):.1f}" for step in at)
    dots = starts[:: math.ceil(len(starts) / POINTS), c]
    faint, wide = ("1", 2) if chain == c else ("1" if chain is None else "0.3", 1)
    drawn = "".join(f'<circle cx="{x(step):.1f}" cy="{y(levels[step, c]):.1f}" r="3"/>' for step in dots)
    colour = COLOURS[c % len(COLOURS)]
    line = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{wide}"/>'
    return f'<g opacity="{faint}" fill="{colour}">{line}{drawn}</g>'


def _axes(x, y, steps: int, ends: tuple[float, float]) -> list[str]:
    bottom = HEIGHT - BOTTOM
    made = []
    for level in _decades(*ends):
        made.append(f'<path d="M{LEFT} {y(level):.1f}H{WIDTH - RIGHT}" stroke="#888888" opacity="0.3"/>')
        made.append(f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>')
    for step in np.unique(np.linspace(0, steps, 6).round().astype(int)):
        made.append(f'<text x="{x(step):.1f}" y="{bottom + 15}" text-anchor="middle">{step}</text>')
    made.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="{THEME}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    made.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">chain step; dots: where images start</text>')
    turned = (TOP + bottom) / 2
    made.append(f'<text transform="translate(12 {turned}) rotate(-90)" text-anchor="middle">noise level σ</text>')
    return made


def _decades(low: float, high: float) -> list[float]:
    """Return round levels between two ends: powers of ten, or 1, 2 and 5 of them where those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        chosen = [m * 10.0**k for k in powers for m in factors if low <= m * 10.0**k <= high]
        if len(chosen) > 2:
            break
    return chosen


def along(frames: Sequence[Frame], chain: int, classes: Sequence[int] | None = None) -> str:
    """Return states of one chain above what the network makes of them, as HTML.

    Args:
        frames: of the chains.
        chain: row of the chain.
        classes: of the answers in the frames that :func:`spread` chooses, where they are known.
    """
    chosen = [frames[i] for i in spread(len(frames))]
    cells = ["<span>σ</span>", *(f"<span>{frame.sigma[chain]:.2g}</span>" for frame in chosen)]
    cells += ["<span>x</span>", *(_image(frame.x[chain]) for frame in chosen)]
    cells += ["<span>x̂0</span>", *(_image(frame.denoised[chain]) for frame in chosen)]
    cells += ["<span>class</span>", *(f"<span>{html.escape(str(one))}</span>" for one in classes)] if classes else []
    columns = f"grid-template-columns: 36px repeat({len(chosen)}, minmax(0, 46px))"
    return f'<div class="dmcmc-along" style="{columns}">{"".join(cells)}</div>'


def _image(image: np.ndarray) -> str:
    every = math.ceil(max(image.shape[1:]) / PIXELS)
    file = base64.b64encode(png(sheet(image[None, :, ::every, ::every]))).decode()
    return f'<img class="dmcmc-pixels" alt="" src="data:image/png;base64,{file}">'
