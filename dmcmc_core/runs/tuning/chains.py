"""Settings of chains, found by trial: the step, the window, the split of the budget, and where chains start.

Images that the model makes slowly stand for the data, and settings are compared by how far their images at the budget
are from those, in features that need no training. From settings that do well on whatever was at hand, one after the
other moves to a neighbouring value as long as that is surely better: by two standard errors, without which the search
chases noise and reports the luckiest trial.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dmcmc_core import metrics
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.errors import TooFew, UserError
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.kinds import split
from dmcmc_core.runs.plan import CHAIN_SETTINGS, plan
from dmcmc_core.runs.settings import OF_MODEL
from dmcmc_core.runs.tuning.fits import OF_FITTED, fitted_file
from dmcmc_core.runs.tuning.notes import Notes
from dmcmc_core.runs.tuning.result import surely_less
from dmcmc_core.runs.tuning.slow import slow_images
from dmcmc_core.samplers import FITTED

IMAGES, REFERENCE = 256, 256
"""Images of a trial; images that stand for the data."""
TRIAL, FRESH = -1, -3
"""Seeds of the trials, and of the last comparison; those of runs are at least 0."""
GROUPS = 16
"""Groups of chains that the jackknife leaves out in turn."""
INTEGRATOR = "dpmpp_2m"
"""What a budget is checked with, before an integrator is chosen."""
FOLLOWED = f"dlg+{FITTED.name}"


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
    }


class Chains:
    """Trials of chains at a budget, and the climb from one to the next.

    Attributes:
        integrator: settings ``integrator`` and ``schedule`` of what follows the chains, as far as they are not fixed.
    """

    def __init__(  # noqa: PLR0913  what a search is asked for, and where it tells of itself
        self, model: Any, nfe: float, num: int, fixed: dict[str, Any], say: Callable[[str], None], notes: Notes
    ) -> None:
        self.model, self.nfe, self.num, self.fixed, self.say, self.notes = model, nfe, num, fixed, say, notes
        self.values = {name: v for name, v in choices(model, nfe).items() if name not in fixed}
        self.integrator: dict[str, Any] = {"integrator": INTEGRATOR}
        if fixed.get("chains", 64) == 1:
            raise UserError("one chain cannot tell luck from a better setting: chains must be at least 2 for a search")
        if fixed.get("step") == "constant" and "eta" not in fixed:
            raise UserError("the values tried for eta are in units of sigma^2: with step=constant, fix eta too")
        self.start = {name: values[at] for name, (values, at) in self.values.items()}
        if split(self.recipe(self.start)[0])[1].calls is None:
            raise UserError(f"a search needs an integrator with a fixed number of calls, not {fixed['integrator']}")
        # A round tries each other value of a setting once at most; then come fitted solvers after the chains, and last
        # the chains chosen and a plain sampler.
        self.most = 4 + 2 * sum(len(values) - 1 for values, _ in self.values.values())
        self.seconds: list[float] = []  # of the trials made here
        self.levels(*self.recipe(self.start))  # the least n_skip: what nothing can pay for is refused here

    def recipe(self, choice: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the sampler and all settings of a choice."""
        fewer = {"chains": max(16, self.num // 4)} if self.num < 256 else {}  # so that few images share a warm-up
        settings = {"step": "sigma2", **fewer, **self.integrator, **choice, **self.fixed}
        return f"dlg+{settings.pop('integrator')}", settings

    def levels(self, sampler: str, settings: dict[str, Any]) -> int:
        """Return the levels of the integrator at the budget, with the warm-up shared by all ``num``."""
        return plan(self.model, sampler, self.nfe, self.num, settings).levels or 0

    def follow_by(self, rows: list[dict[str, Any]]) -> None:
        """Let the first of these plain integrators that the budget pays for follow the chains."""
        for row in rows:
            self.integrator = {"integrator": row["sampler"], "schedule": row["settings"]["schedule"]}
            try:
                self.levels(*self.recipe(self.start))
            except UserError:
                continue
            return
        self.integrator = {"integrator": INTEGRATOR}

    def search(self, cache_dir: Path) -> int:
        """Climb from setting to setting, and return the rows of the slow images that stand for the data."""
        images, rows = slow_images(self.model, REFERENCE)
        self.low, self.range = self.model.data_range[0], self.model.data_range[1] - self.model.data_range[0]
        clean = ((images - self.low) / self.range).clamp(0, 1)
        self.reference = metrics.make_reference(clean, "random-conv", "slow images")
        least = math.ceil((self.reference.features.shape[1] + 1) * GROUPS / (GROUPS - 1)) + 1  # a group left out
        self.cache_dir, self.n = cache_dir, min(IMAGES, max(self.num, least))
        self.best = self.recipe(self.climb())
        return rows

    def consider_fitted(self, model: Any, asked: Mapping[str, Any], cache_dir: str | Path | None) -> tuple[int, str]:
        """Let fitted solvers follow the chains chosen where trials say surely better; return their cost, and why.

        Args:
            model, asked, cache_dir: see :func:`dmcmc_core.runs.tuning.fits.fitted_file`.
        """
        sampler, settings = self.best
        kept = {name: settings[name] for name in settings if name in {*CHAIN_SETTINGS, *OF_FITTED, "posterior"}}
        of_model = {name: asked["fixed"][name] for name in OF_MODEL if name in asked["fixed"]}
        file, cost, why = fitted_file(model, FOLLOWED, of_model | kept, asked, self.notes, self.say, cache_dir)
        if file is None:
            return 0, why
        followed = FOLLOWED, kept | {"file": str(file)}
        row, before = self.measured(*followed), self.measured(*self.best)
        self.best = followed if surely_less(row, before) else self.best
        return (
            cost,
            f"in trials {FOLLOWED} is at {row['distance']:.3g}, {sampler} at {before['distance']:.3g}, and {why}",
        )

    def finals(self, plain: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the chains chosen and a plain sampler on fresh seeds."""
        return [self.measured(*one, FRESH) for one in (self.best, plain)]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Those of the climb and of what may follow the chains, as tried."""
        return [row for row in self.notes.compared.values() if row["seed"] == TRIAL]

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
        if split(sampler)[1] is not FITTED:
            settings = settings | {"levels": self.levels(sampler, settings)}
        known, name = self.notes.compared, json.dumps([sampler, settings, seed], sort_keys=True)
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
        """Return the distance of features to those of the slow images."""
        return metrics.frechet_distance(*metrics.statistics(features), self.reference.mu, self.reference.cov)
