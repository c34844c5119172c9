"""Figures: one function draws each kind, one writes it as PNG and PDF with its numbers as CSV and provenance inside.

Figures are plain ``matplotlib.figure.Figure`` objects without pyplot's global state, so that any thread may draw.
Colours are those of Okabe and Ito but for one, which people with a colour deficiency can tell apart. Arms also differ
in marker and line. A panel has eight lines at most, and the letters of a page that shows it are of 7 points or more.
"""

# ruff: noqa: F401  the names are imported for those who import this package
from dmcmc_core.report.plots.chains import class_traces, concept, noise_level_trace, paths
from dmcmc_core.report.plots.curves import curve_panels, posterior_panels
from dmcmc_core.report.plots.distances import distance_against_nfe, distance_lines, dots_and_crosses
from dmcmc_core.report.plots.factors import ablation, waterfall
from dmcmc_core.report.plots.images import (
    as_pictures,
    check_shown,
    image_grid,
    image_panels,
    image_rows,
    mosaic,
    start_panels,
    trajectories,
)
from dmcmc_core.report.plots.style import ARMS, COLOURS, COLUMN, LINES, MARKERS, STYLE, save_figure, save_png, styled
