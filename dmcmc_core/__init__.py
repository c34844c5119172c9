"""Denoising MCMC and modern training-free samplers for score-based (diffusion) models."""

from __future__ import annotations

from dmcmc_core.checkpoints import load_model
from dmcmc_core.errors import UserError

__all__ = ["UserError", "load_model"]
