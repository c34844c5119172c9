"""Settings found by trial: ``dlg+auto`` chooses the integrator, the step, the window, the split and where chains start.

All that a user has may be a checkpoint and a budget, so the model is its own judge: images that it makes slowly stand
for the data, and settings are compared by how far their images at the budget are from those, in features that need no
training. One setting after the other is varied and the best value kept; all candidates share their random numbers, and
these are of seeds that no run uses.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import checkpoints, integrators, metrics, sampling_run, schedules
from dmcmc_core.denoiser import Denoiser, count_nfe
from dmcmc_core.dmcmc import prior
from dmcmc_core.errors import UserError
from dmcmc_core.streams import Streams

AUTO = "dlg+auto"
IMAGES, REFERENCE, FINE = 256, 512, 50
"""Images of a trial; images that stand for the data; levels at which a network makes them."""
TRIAL, SLOW = -1, -2
"""Seeds of the trials and of the slow images; those of runs are at least 0."""


@dataclass
class Tuned:
    """What was chosen, for :func:`dmcmc_core.sampling_run.run`, and what it rests on.

    ``trials`` and ``controls`` (plain integrators at the same budget): settings, NFE and distance of each, as tried.
    ``rows`` were evaluated for all of it together, ``nfe`` that is per image asked for.
    """

    sampler: str
    settings: dict[str, Any]
    distance: float
    nfe: float
    rows: int
    distance_name: str
    asked: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        best = min(self.controls, key=lambda c: c["distance"])
        chosen = ", ".join(f"{k}={v}" for k, v in self.settings.items() if k in COORDINATES)
        text = f"chosen: {self.sampler} with {chosen}: {self.distance_name} {self.distance:.3g} to slow images of the "
        text += f"model itself; tuning cost {self.rows} evaluations, {self.nfe:.2f} NFE per image asked for"
        if best["distance"] < self.distance:
            text += f"; without chains {best['sampler']} would be at {best['distance']:.3g}"
        return text


def choices(model: Denoiser, nfe: float) -> dict[str, list[Any]]:
    """The values tried for each setting, the first ones together where the search begins.

    ``renoise`` is where chains start, in shares of sigma_max: high, they forget their image, low, they keep it.
    ``n_skip`` splits the budget between chain and integrator.
    """
    return {
        "renoise": [round(share * model.sigma_max, 6) for share in (0.2, 0.4, 0.1, 0.05, 0.02)],
        "integrator": ["dpmpp_2m", "heun", "ancestral"],
        "n_skip": sorted({max(1, round(nfe * share)) for share in (0.1, 0.2, 0.35, 0.5)}),
        "eta": [0.3, 1.0, 0.1],
        "warmup_levels": [6, 10, 4],
        "pick": ["smallest", "last"],
    }


COORDINATES = ("renoise", "n_skip", "eta", "warmup_levels", "pick")


def auto(
    model: str | Denoiser,
    nfe: float,
    num: int,
    fixed: dict[str, Any] | None = None,
    *,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """The best of the settings tried for ``num`` images at a full budget of ``nfe``: two rounds, one setting at a time.

    Args:
        fixed: settings that the user has chosen and that are left alone; ``integrator`` may be one of them.
        path: JSON file that keeps the result; the same question is answered from it.
        cache_dir: keeps the trials' images for another search; a temporary folder when None.
        say: takes a line for every trial.

    Raises:
        UserError: for unknown settings, or a budget that nothing tried can keep to.
    """
    model = checkpoints.load_model(model) if isinstance(model, str) else model
    fixed = dict(fixed or {})
    asked = {"nfe": nfe, "num": num, "fixed": fixed, "model": sampling_run.fingerprint(model)}
    known = _read(path, asked) if path else None
    if known is None:
        with tempfile.TemporaryDirectory() as temporary:
            known = _search(model, nfe, num, fixed, Path(cache_dir or temporary), asked, say)
        if path:
            _write(Path(path), known)
    return known


def _search(model, nfe, num, fixed, cache_dir, asked, say) -> Tuned:
    images, rows = slow_images(model, REFERENCE)
    low, high = model.data_range
    reference = metrics.make_reference(((images - low) / (high - low)).clamp(0, 1), "random-conv", "slow images")
    n = min(IMAGES, max(num, reference.features.shape[1] + 1))
    cost = {"slow images": rows}
    trials, controls = {}, []

    def measure(sampler: str, settings: dict[str, Any]) -> dict[str, Any]:
        levels = sampling_run.plan(model, sampler, nfe, num, settings).levels  # with the warm-up shared by all ``num``
        made = sampling_run.cached(model, sampler, 10**6, n, TRIAL, settings | {"levels": levels}, cache_dir)
        features = metrics.extract((made.images - low) / (high - low), reference.extractor)
        distance = metrics.frechet_distance(*metrics.statistics(features), reference.mu, reference.cov)
        row = {"sampler": sampler, **settings, "levels": levels, "distance": distance}
        cost[json.dumps(row)] = sum(made.manifest["rows"].values())
        say(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        return row

    def recipe(choice: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        settings = {"step": "sigma2", **choice, **fixed}
        return f"dlg+{settings.pop('integrator')}", settings

    def distance(choice: dict[str, Any]) -> float:
        """Infinite where the budget does not allow the choice."""
        name = json.dumps(choice)
        if name not in trials:
            try:
                trials[name] = measure(*recipe(choice))
            except UserError as error:
                if "too few" not in str(error):
                    raise
                trials[name] = {"distance": float("inf"), "why": str(error)}
        return trials[name]["distance"]

    values = {k: v for k, v in choices(model, nfe).items() if k not in fixed}
    best = {name: some[0] for name, some in values.items()}
    for _ in range(2):
        for name, some in values.items():
            best = min(({**best, name: value} for value in [best[name], *some]), key=distance)
    if distance(best) == float("inf"):
        raise UserError(f"no setting that was tried for {AUTO} keeps to the budget: {trials[json.dumps(best)]['why']}")
    sampler, settings = recipe(best)
    for name in values.get("integrator", [fixed.get("integrator")]):
        controls.append(measure(name, {}))
    done = [t for t in trials.values() if "why" not in t]
    total = sum(cost.values())
    name = metrics.distance_name(reference.extractor.name)
    return Tuned(sampler, settings, distance(best), total / num, total, name, asked, done, controls)


@torch.no_grad()
def slow_images(model: Denoiser, n: int) -> tuple[Tensor, int]:
    """n images that stand for the data, (n, *shape), and the rows evaluated for them.

    An exact model's own draws cost nothing; a network makes them by ancestral sampling, which forgets its start.
    """
    if hasattr(model, "sample"):
        return model.sample(n, seed=SLOW), 0
    if hasattr(model, "images"):
        draws = torch.randint(len(model.images), (n,), generator=torch.Generator().manual_seed(SLOW + 2**32))
        return model.images[draws], 0
    counted, noise = count_nfe(model), Streams(SLOW, "image", range(n))
    start = "mean" if getattr(model, "mean", None) is not None else "zero"
    x = prior(model, noise, n, start, sampling_run.device_of(model))
    grid = schedules.karras(FINE, model.sigma_max, model.sigma_min)
    return integrators.ancestral(counted, x, grid, noise=noise), counted.rows


def _read(path: str | Path, asked: dict[str, Any]) -> Tuned | None:
    try:
        tuned = Tuned(**json.loads(Path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return tuned if tuned.asked == json.loads(json.dumps(asked)) else None


def _write(path: Path, tuned: Tuned) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(asdict(tuned), indent=1) + "\n")
    os.replace(part, path)
