"""Settings found by trial: ``dlg+auto`` chooses the integrator, the step, the window, the split and where chains start.

All that a user has may be a checkpoint and a budget, so the model is its own judge: images that it makes slowly stand
for the data, and settings are compared by how far their images at the budget are from those, in features that need no
training. From settings that do well on whatever was at hand, one after the other moves to a neighbouring value as long
as that is surely better: by two standard errors, without which the search chases noise and reports the luckiest trial.
What is chosen then meets the plain integrators on fresh seeds, and that is the distance reported. ``auto`` takes a
plain integrator where chains are not surely better. No run uses the seeds of a search.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dmcmc_core import checkpoints, integrators, metrics, schedules
from dmcmc_core.chains import ChainSettings
from dmcmc_core.denoiser import Denoiser, count_nfe
from dmcmc_core.dmcmc import prior
from dmcmc_core.errors import TooFew, UserError
from dmcmc_core.files import write_json
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import of_images
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.kinds import split
from dmcmc_core.runs.model import conditioned, device_of
from dmcmc_core.runs.plan import plan
from dmcmc_core.runs.settings import CLASS, GAINS, LEVELS, SEARCHES
from dmcmc_core.streams import Streams

AUTO, AUTO_OR_PLAIN = SEARCHES
IMAGES, REFERENCE, FINE = 256, 256, 50
"""Images of a trial; images that stand for the data; levels at which a network makes them."""
TRIAL, SLOW, FRESH = -1, -2, -3
"""Seeds of the trials, of the slow images, and of the last comparison; those of runs are at least 0."""
OF_CHAINS = {"integrator", "posterior", "levels"} | {f.name for f in fields(ChainSettings)} - {"start"}
"""Settings that a plain integrator does not share with the chains."""
GROUPS, SURELY = 16, 2.0
"""Groups of chains that the jackknife leaves out in turn; standard errors that make a difference count."""


@dataclass
class Tuned:
    """What was chosen, for :func:`dmcmc_core.runs.make.run`, and what it rests on.

    ``trials``: settings, distance and the rows evaluated for each, as tried. ``finals``: the chosen chains, then plain
    integrators at the same budget, all on fresh seeds; ``distance`` is of those. ``rows`` were evaluated for all of it
    together, ``nfe`` that is per image asked for.
    """

    sampler: str
    settings: dict[str, Any]
    distance: float
    nfe: float
    rows: int
    distance_name: str
    asked: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)

    def or_plain(self) -> Tuned:
        """Return what ``auto`` makes of the same search: a plain integrator, where chains are not surely better."""
        best = min(self.finals[1:], key=lambda row: row["distance"])
        if surely_less(self.finals[0], best):
            return self
        settings = {name: value for name, value in self.asked["fixed"].items() if name not in OF_CHAINS}
        return replace(self, sampler=best["sampler"], settings=settings, distance=best["distance"])

    def __str__(self) -> str:
        chosen = " with " + ", ".join(f"{k}={v}" for k, v in self.settings.items()) if self.settings else ""
        text = f"chosen: {self.sampler}{chosen}: {self.distance_name} {self.distance:.3g} to slow images of the "
        text += f"model itself; tuning cost {self.rows} evaluations, {self.nfe:.2f} NFE per image asked for"
        chains, plain = self.finals[0], min(self.finals[1:], key=lambda row: row["distance"])
        if self.sampler == plain["sampler"]:
            return f"{text}; {chains['sampler']}, at {chains['distance']:.3g}, is not surely better"
        if surely_less(chains, plain):
            return f"{text}; without chains {plain['sampler']} is at {plain['distance']:.3g}, surely worse"
        return (
            f"{text}; not surely better than {plain['sampler']} without chains, at {plain['distance']:.3g}: "
            f"--sampler {AUTO_OR_PLAIN} would choose that"
        )


def surely_less(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether trial a has the lower distance by two standard errors of a jackknife over chains."""
    one, other = torch.tensor(a["without"]), torch.tensor(b["without"])
    parts = [one - other] if len(one) == len(other) else [one, other]  # fewer chains than groups: no pairs
    error = sum((len(part) - 1) * part.var(correction=0) for part in parts).sqrt().item()
    return a["distance"] - b["distance"] < -SURELY * error


def choices(model: Denoiser, nfe: float) -> dict[str, tuple[list[Any], int]]:
    """Return the values of each setting in their order, and which of them the search begins with.

    ``renoise`` is where chains start, in shares of sigma_max: high, they forget their image, low, they keep it.
    ``n_skip`` splits the budget between chain and integrator.
    """
    calls = nfe / getattr(model, "rows_per_image", 1)
    return {
        "renoise": ([round(share * model.sigma_max, 6) for share in (0.01, 0.03, 0.1, 0.25, 0.5)], 3),
        "eta": ([0.1, 0.3, 1.0, 2.0], 2),
        "n_skip": (sorted({max(1, round(calls * share)) for share in (0.1, 0.2, 0.35, 0.5)}), 0),
        "integrator": (["dpmpp_2m", "heun"], 0),
    }


def auto(
    model: str | Denoiser,
    nfe: float,
    num: int,
    fixed: dict[str, Any] | None = None,
    *,
    plain: bool = False,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Find the best settings for ``num`` images at a full budget of ``nfe``: two rounds, one setting at a time.

    Args:
        fixed: settings that the user has chosen and that are left alone; ``integrator`` may be one of them.
        plain: whether a plain integrator is chosen where chains are not surely better (``auto``, not ``dlg+auto``).
        path: JSON file that keeps what was measured, trial by trial, and the result: an interrupted search goes on
            from it, and the same question is answered from it.
        cache_dir: keeps the trials' images for another search; a temporary folder when None.
        say: takes a line for every trial.

    Raises:
        UserError: for unknown settings, a budget that nothing tried can keep to (before anything is evaluated), or a
            ``path`` that answers another question.
    """
    if int(num) != num or num < 1:
        raise UserError(f"num must be a whole number of images, at least 1, not {num}")
    model = checkpoints.load_model(model) if isinstance(model, str) else model
    fixed = dict(fixed or {})
    if fixed.keys() & GAINS:
        raise UserError("settings are searched for without a preconditioner: leave it out, or set the chains by hand")
    asked = {"nfe": nfe, "num": num, "fixed": fixed, "plain": plain}
    model, rest = conditioned(model, fixed)
    asked["model"] = fingerprint(model)
    search = _Search(model, nfe, num, rest, say, _Notes(path, asked))
    if "tuned" in search.notes.content:
        return Tuned(**search.notes.content["tuned"])
    with tempfile.TemporaryDirectory() as temporary:
        tuned = search.run(Path(cache_dir or temporary), asked)
    tuned.settings |= {name: fixed[name] for name in (*CLASS, *LEVELS) if name in fixed}
    tuned = tuned.or_plain() if plain else tuned
    search.notes.keep(tuned=asdict(tuned))
    return tuned


class _Search:
    def __init__(self, model, nfe, num, fixed, say, notes: _Notes) -> None:
        self.model, self.nfe, self.num, self.fixed, self.say, self.notes = model, nfe, num, fixed, say, notes
        self.values = {name: v for name, v in choices(model, nfe).items() if name not in fixed}
        if fixed.get("chains", 64) == 1:
            raise UserError("one chain cannot tell luck from a better setting: chains must be at least 2 for a search")
        if fixed.get("step") == "constant" and "eta" not in fixed:
            raise UserError("the values tried for eta are in units of sigma^2: with step=constant, fix eta too")
        self.start = {name: values[at] for name, (values, at) in self.values.items()}
        if split(self.recipe(self.start)[0])[1].calls is None:
            raise UserError(f"{AUTO} needs an integrator with a fixed number of calls, not {fixed['integrator']}")
        # A round tries each other value of a setting once at most; last come the chains chosen and plain integrators.
        self.most = 2 + 2 * sum(len(values) - 1 for values, _ in self.values.values()) + len(self.integrators)
        self.seconds: list[float] = []  # of the trials made here
        self.levels(*self.recipe(self.start))  # the least n_skip: what nothing can pay for is refused here

    @property
    def integrators(self) -> list[str]:
        return self.values["integrator"][0] if "integrator" in self.values else [self.fixed["integrator"]]

    def recipe(self, choice: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        fewer = {"chains": max(16, self.num // 4)} if self.num < 256 else {}  # so that few images share a warm-up
        settings = {"step": "sigma2", **fewer, **choice, **self.fixed}
        return f"dlg+{settings.pop('integrator')}", settings

    def levels(self, sampler: str, settings: dict[str, Any]) -> int:
        """Return the levels of the integrator at the budget, with the warm-up shared by all ``num``."""
        return plan(self.model, sampler, self.nfe, self.num, settings).levels

    def run(self, cache_dir: Path, asked: dict[str, Any]) -> Tuned:
        model = self.model
        images, rows = slow_images(model, REFERENCE)
        self.low, self.range = model.data_range[0], model.data_range[1] - model.data_range[0]
        clean = ((images - self.low) / self.range).clamp(0, 1)
        self.reference = metrics.make_reference(clean, "random-conv", "slow images")
        least = math.ceil((self.reference.features.shape[1] + 1) * GROUPS / (GROUPS - 1)) + 1  # a group left out
        self.cache_dir, self.n = cache_dir, min(IMAGES, max(self.num, least))
        sampler, settings = self.recipe(self.climb())
        trials = [row for row in self.notes.content["measured"].values() if row["seed"] == TRIAL]
        common = {k: v for k, v in self.fixed.items() if k not in OF_CHAINS}
        plain = [(name, common) for name in self.integrators]
        finals = [self.measured(*one, FRESH) for one in [(sampler, settings), *plain]]
        rows += sum(row["rows"] for row in trials + finals)
        name = metrics.distance_name(self.reference.extractor.name)
        return Tuned(sampler, settings, finals[0]["distance"], rows / self.num, rows, name, asked, trials, finals)

    def climb(self) -> dict[str, Any]:
        """From the start, each setting in turn up as long as that is better, or else down; twice."""
        best = self.start
        for _ in range(2):
            for name, (values, _) in self.values.items():
                at = first = values.index(best[name])
                for step in (1, -1):
                    while at == first or (at - first) * step > 0:
                        after = at + step
                        if not 0 <= after < len(values):
                            break
                        if not self.improves({**best, name: values[after]}, best):
                            break
                        at, best = after, {**best, name: values[after]}
        return best

    def improves(self, choice: dict[str, Any], best: dict[str, Any]) -> bool:
        """False too where the budget does not allow the choice."""
        try:
            return surely_less(self.measured(*self.recipe(choice)), self.measured(*self.recipe(best)))
        except TooFew:
            return False

    def measured(self, sampler: str, settings: dict[str, Any], seed: int = TRIAL) -> dict[str, Any]:
        """Return a trial, made or remembered: its distance, and those ``without`` each group of chains in turn."""
        settings = settings | {"levels": self.levels(sampler, settings)}
        known, name = self.notes.content["measured"], json.dumps([sampler, settings, seed], sort_keys=True)
        if name not in known:
            started = time.monotonic()
            samples = cached(self.model, sampler, 10**6, self.n, seed, settings, self.cache_dir)
            features = metrics.extract((samples.images - self.low) / self.range, self.reference.extractor)
            chains = (samples.manifest["plan"]["chain"] or {"chains": self.n})["chains"]
            groups = min(GROUPS, chains)
            group = torch.arange(self.n) % chains % groups
            distance, *without = (self.from_data(features[group != g]) for g in range(-1, groups))
            rows = sum(samples.manifest["rows"].values())
            row = {"sampler": sampler, **settings, "seed": seed, "distance": distance, "rows": rows}
            known[name] = row | {"without": without}
            self.notes.keep()
            self.seconds.append(time.monotonic() - started)
            left = (self.most - len(known)) * sum(self.seconds) / len(self.seconds)
            said = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            self.say(f"{said}; trial {len(known)} of at most {self.most}, {tqdm.format_interval(left)} left at most")
        return known[name]

    def from_data(self, features: Tensor) -> float:
        return metrics.frechet_distance(*metrics.statistics(features), self.reference.mu, self.reference.cov)


class _Notes:
    """The file of a search: ``asked``, ``measured`` so far, ``tuned`` at the end. Nothing is kept without a path."""

    def __init__(self, path: str | Path | None, asked: dict[str, Any]) -> None:
        asked = json.loads(json.dumps(asked))
        self.path, self.content = path and Path(path), {"asked": asked, "measured": {}}
        if not self.path or not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text())
            other = [name for name in asked if content["asked"][name] != asked[name]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not a file of {AUTO}: choose another place") from None
        if other:
            was, now = content["asked"][other[0]], asked[other[0]]
            raise UserError(f"{path} is of another search: its {other[0]} is {was!r}, not {now!r}; choose a new folder")
        self.content = content

    def keep(self, **more: Any) -> None:
        self.content |= more
        if not self.path:
            return
        write_json(self.path, self.content)


@torch.no_grad()
def slow_images(model: Denoiser, n: int) -> tuple[Tensor, int]:
    """Return n images that stand for the data, (n, *shape), and the rows evaluated for them.

    An exact model's own draws cost nothing; a network makes them by ancestral sampling, which forgets its start.
    """
    if hasattr(model, "sample"):
        return model.sample(n, seed=SLOW), 0
    if hasattr(model, "images"):
        draws = torch.randint(len(model.images), (n,), generator=torch.Generator().manual_seed(SLOW + 2**32))
        return model.images[draws], 0
    noise = Streams(SLOW, "image", range(n))
    counted = count_nfe(of_images(model, noise))
    start = "mean" if getattr(model, "mean", None) is not None else "zero"
    x = prior(model, noise, n, start, device_of(model))
    grid = schedules.karras(FINE, model.sigma_max, model.sigma_min)
    return integrators.ancestral(counted, x, grid, noise=noise), counted.rows
