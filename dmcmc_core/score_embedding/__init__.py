"""Score embedding: an image shifted along a score that is solved for before training (Na, Gao & Wan, arXiv 2404.06661).

The log density of an image's pixel pairs (:func:`initial_field`) evolves by a Fokker-Planck equation over the pixel
lattice (:func:`solve`); training adds noise to the image shifted along the derivative of that field (:func:`embed`)
instead of to the image. :mod:`dmcmc_core.training.embedded` trains, :func:`sample` is the published sampler, and
:mod:`dmcmc_core.score_embedding.ddpm` has what the paper compares with.
"""

from __future__ import annotations

from dmcmc_core.score_embedding.density import initial_field
from dmcmc_core.score_embedding.diffusion import std, time_of_std, times, training_times
from dmcmc_core.score_embedding.embedding import embed
from dmcmc_core.score_embedding.fokker_planck import Field, closed_form, solve, solve_many
from dmcmc_core.score_embedding.objective import Batch, draw_batch, loss, network_time
from dmcmc_core.score_embedding.sampler import (
    Score,
    Trajectory,
    conditional_start,
    exact_score,
    sample,
    unconditional_start,
)

__all__ = [
    "Batch",
    "Field",
    "Score",
    "Trajectory",
    "closed_form",
    "conditional_start",
    "draw_batch",
    "embed",
    "exact_score",
    "initial_field",
    "loss",
    "network_time",
    "sample",
    "solve",
    "solve_many",
    "std",
    "time_of_std",
    "times",
    "training_times",
    "unconditional_start",
]
