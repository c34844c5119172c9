"""Semantic control of a frozen diffusion model by linear boundaries in its latents, without any training.

Zhu et al. 2023, "Boundary Guided Learning-Free Semantic Control with Diffusion Models" (arXiv 2302.08357): images are
inverted to a mixing time, moved across a boundary there, in pixels, in the bottleneck or in both, and denoised.
"""

from __future__ import annotations

from dmcmc_core.boundary.bottleneck import Injected, WithBottleneck, place
from dmcmc_core.boundary.hyperplane import Boundary, edit, fit, load, orthogonal
from dmcmc_core.boundary.search import Radii, accuracies, mixing_time, radii
from dmcmc_core.boundary.trajectory import STEPS, epsilon_of, grid, invert, kept_shares, radius, reverse

__all__ = [
    "STEPS",
    "Boundary",
    "Injected",
    "Radii",
    "WithBottleneck",
    "accuracies",
    "edit",
    "epsilon_of",
    "fit",
    "grid",
    "invert",
    "kept_shares",
    "load",
    "mixing_time",
    "orthogonal",
    "place",
    "radii",
    "radius",
    "reverse",
]
