"""Denoising MCMC and modern training-free samplers for score-based (diffusion) models.

The core lies in this folder and needs torch, numpy, scipy and safetensors: tensors in, tensors out. The rooms behind
it are, from the bottom up: data, nets, checkpoints, metrics, training, runs, report, workbench.
"""

from __future__ import annotations

import importlib
from typing import Any

from dmcmc_core.errors import UserError

CORE = (
    "adaptation", "analytic", "chains", "compiled", "denoiser", "dmcmc", "errors", "files", "gddim", "guidance",
    "integrators", "linear_sde", "mcmc", "memory_format", "noise_level", "number_format", "preconditioning",
    "quadrature", "samplers", "schedules", "streams",
)  # fmt: skip
ROOMS = ("data", "nets", "checkpoints", "metrics", "training", "runs", "report", "workbench")
__all__ = ["UserError", "auto", "compare", "explore", "load_model", "sample", *CORE, *ROOMS]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and torch with it: commands that compute nothing then start at once."""
    if name == "load_model":
        from dmcmc_core.checkpoints import load_model

        return load_model
    if name == "auto":
        from dmcmc_core.runs.tuning import auto

        return auto
    if name == "sample":
        from dmcmc_core.runs.sampling import sample

        return sample
    if name == "explore":
        from dmcmc_core.workbench.explorer import explore

        return explore
    if name == "compare":
        from dmcmc_core.report.side_by_side import compare

        return compare
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("dmcmc-core")
        except PackageNotFoundError:  # a checkout that nobody has installed
            return "unknown"
    if name in (*CORE, *ROOMS):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
