"""Images of runs that notebooks share: made at most once for the same recipe and code, kept beside their chains."""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.files import key, write_json
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import in_blocks
from dmcmc_core.runs import folder
from dmcmc_core.runs.kinds import IntegratorPlan, Plan
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import Model
from dmcmc_core.runs.plan import Request
from dmcmc_core.runs.tolerance import with_tolerance

ROOMS = ("integrators", "linear_sde", "gddim", "preconditioning", "data", "nets", "checkpoints", "runs")
"""Folders whose modules decide what an image is, beside the core's own files."""


class Samples(NamedTuple):
    """Images (n, C, H, W) float32 in the model's data range after rounding to uint8, and the run's manifest."""

    images: Tensor
    manifest: dict[str, Any]


def cached(  # noqa: PLR0913  a recipe, and where it is kept
    model: Model,
    sampler: str,
    nfe: float,
    num: int,
    seed: int,
    settings: dict[str, Any] | None,
    cache_dir: str | Path,
    progress: bool = False,
) -> Samples:
    """Return the images of a run kept under ``cache_dir``, made at most once for the same recipe and code.

    Chains are kept beside them, so that all integrators start from the same ones; so are the tolerances of adaptive
    integrators, which do not depend on the seed.
    """
    cache, request = Path(cache_dir) / code_key(), Request(model, sampler, settings)
    plan, settings = _bare(request, nfe, num)
    model = request.model = in_blocks(request.model, settings.get("block"))
    if isinstance(plan, IntegratorPlan) and plan.adapts and "tol" not in settings:
        about = [fingerprint(model), plan.record(), plan.windows(num)]
        path = cache / "tolerances" / f"{key(about)}.json"
        tried = json.loads(path.read_text()) if path.is_file() else {}
        known = len(tried)
        with torch.no_grad():
            settings["tol"] = with_tolerance(model, plan, nfe, num, request.posterior(plan), tried).options["tol"]
        if len(tried) > known:
            write_json(path, tried)
    about = [fingerprint(model), sampler, nfe, num, seed, sorted(settings.items())]
    # files may change under their names
    about += [plan_file for n in ("classifier", "solver") if (plan_file := getattr(plan, n, None))]
    out = cache / "samples" / key(about)
    more = {"progress": progress, "chains_dir": cache / "chains", "trial": True, "alone": True}
    manifest = run(request.bare(settings), sampler, nfe, num, seed, out, settings, **more)
    return Samples(folder.load_images(out), manifest | {"seconds": folder.seconds(out, manifest)})


def _bare(request: Request, nfe: float, num: int) -> tuple[Plan, dict[str, Any]]:
    """Return the plan, and the settings without which it would be another: a default spelled out names no new cell."""
    settings = request.settings
    plan = request.plan(nfe, num, settings)
    for name in sorted(settings):
        fewer = {k: v for k, v in settings.items() if k != name}
        with suppress(UserError):
            settings = fewer if request.plan(nfe, num, fewer) == plan else settings
    return plan, dict(settings)


@functools.cache  # the modules as this process has imported them
def code_key() -> str:
    """Return a hash of the modules that decide what an image is, the core and some rooms, and the torch version."""
    package = Path(__file__).parents[1]
    files = sorted([*package.glob("*.py"), *(path for name in ROOMS for path in (package / name).rglob("*.py"))])
    digest = hashlib.sha256(torch.__version__.encode())
    for path in files:
        if path.parent.name != "tuning":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
