"""What a run's folder has to agree on, whatever its number of images: model, plan, seed, and what was asked for."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from dmcmc_core.errors import UserError, native
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs.kinds import ChainedFittedPlan, ChainedPlan, FittedPlan, Plan
from dmcmc_core.runs.plan import Request
from dmcmc_core.runs.settings import BLOCK

SHARD = BLOCK
"""Images of a shard, where no larger block is asked for."""


def check_numbers(num: int, shard: int | None, seed: int, trial: bool) -> None:
    if int(num) != num or num < 1:
        raise UserError(f"num must be a whole number of images, at least 1, not {num}")
    if shard is not None and (int(shard) != shard or shard < 1):
        raise UserError(f"shard must be a whole number of images, at least 1, not {shard}")
    if int(seed) != seed or (seed < 0 and not trial):
        raise UserError(f"seed must be a whole number, at least 0, not {seed}")


def asked(sampler: str, settings: dict[str, Any] | None) -> dict[str, Any]:
    """Return the sampler and its settings as they were asked for, for JSON."""
    return {"sampler": sampler, "settings": {name: native(value) for name, value in sorted((settings or {}).items())}}


def recipe(  # noqa: PLR0913  all that decides a run
    name: str, request: Request, plan: Plan, asked: dict[str, Any], nfe: float, seed: int, shard: int | None
) -> dict[str, Any]:
    """Return what a run of this folder has to agree on, whatever its number of images."""
    about = {
        "model": str(name),
        "model_sha256": fingerprint(request.model),
        "seed": int(seed),
        "nfe": nfe,
        "block": plan.block,
        "shard": int(shard or max(SHARD, plan.block)),
        "asked": asked,
    }
    if plan.preconditioned_by:  # a file of gains may change under its name
        about["gains_sha256"] = plan.preconditioned_by["sha256"]
    if isinstance(plan, ChainedPlan) and plan.classifier:
        about["classifier_sha256"] = plan.classifier
    if isinstance(plan, FittedPlan | ChainedFittedPlan):
        about["solver_sha256"] = plan.solver
    return about


def versions() -> dict[str, Any]:
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return {"versions": versions | {"machine": platform.machine()}}
