"""Denoising MCMC and modern training-free samplers for score-based (diffusion) models."""

from __future__ import annotations

import importlib

from dmcmc_core.errors import UserError

__all__ = ["UserError", "load_model"]


def __getattr__(name: str):
    """Import torch only when a model is asked for: commands that compute nothing then start at once."""
    if name == "load_model":
        return importlib.import_module("dmcmc_core.checkpoints").load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
