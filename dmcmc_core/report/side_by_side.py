"""Samplers of one model side by side: how far each is, which of two is better, a plot, and images of the same seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core import files
from dmcmc_core.checkpoints import load_model
from dmcmc_core.data.samples import MANIFEST, open_samples
from dmcmc_core.errors import UserError, is_number, native, number
from dmcmc_core.metrics import Extractor
from dmcmc_core.metrics.feature_sets import check_enough
from dmcmc_core.report.arms import Arm, Comparison, comparison
from dmcmc_core.report.measuring import Bench, Measured, pairs_with_accurate, prepare_reference
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.model import Model, check_model
from dmcmc_core.runs.plan import Request
from dmcmc_core.runs.sampling import settled
from dmcmc_core.runs.settings import SEARCHES
from dmcmc_core.samplers import FITTED

CONDITIONS = ("held_to", "preconditioned_by")
"""Of a plan: what makes another model of the same network."""


def compare(  # noqa: PLR0913  a design, what it is measured by, and where it goes
    *what: Any,
    model: str | Model | None = None,
    samplers: Sequence[str] | None = None,
    nfe: float | Sequence[float] | None = None,
    seeds: int | Iterable[int] = 3,
    n: int = 256,
    reference: str | Path | None = None,
    features: str | Extractor | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare runs, or samplers of a model that are run for it: ``compare("a", "b")``, ``compare(model, ["heun"], 9)``.

    Without a reference the paired error decides: how far an image is from the accurate solution of its noise. That is
    of :data:`dmcmc_core.report.testbed.ACCURATE`, made once and kept in the cache. With a reference the Fréchet
    distance is told too, with verdicts of its own. What adds noise on its way has no paired error and needs one.

    Args:
        what: folders of runs, one by one or in a list; or, where budgets are given, a model and names of samplers.
        model: a name, a file or a denoiser; beside runs, the one that made them, where its name does not load it.
        samplers: as of the command ``sample``: names, ``dlg+NAME``, ``fitted``, ``auto``.
        nfe: budgets of network evaluations for an image.
        seeds: how many, from 0 on, or which.
        n: images of a sampler, budget and seed.
        reference: as of :func:`dmcmc_core.metrics.evaluate`; another run's folder may be one.
        features: of the reference, a name or an extractor: those of its data set, else ``random-conv``.
        settings: of all samplers.
        out: folder for tables and figures, see :meth:`dmcmc_core.report.arms.Comparison.write`.
        cache_dir: where runs and features are kept; exp/cache of the checkout when None.

    Raises:
        UserError: for rows of unequal n or of another model, fewer than two, what is no run of ours, settings that a
            sampler does not take, and samplers that nothing compares without a reference.
    """
    kept = files.root() / "exp" / "cache" if cache_dir is None else Path(cache_dir)
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"out {out} is a file: name a folder")
    if out is not None and (Path(out) / MANIFEST).exists():
        raise UserError(f"out {out} holds a run: name another folder")
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(f"settings must be names and values, such as {{'rho': 5}}, not {settings!r:.60}")
    if features is not None and reference is None:
        raise UserError(f"features {getattr(features, 'name', features)} are those of a reference: give one")
    asked = Asked(reference, features, device, kept, progress)
    folders = list(_flat(what))
    named_runs = nfe is None and samplers is None and all(isinstance(one, str | Path) for one in folders)
    if named_runs and not _is_design(what):
        found = of_runs(folders, asked, load_model(model, device) if isinstance(model, str) else model)
    else:
        model, samplers, nfe = _three(what, model, samplers, nfe)
        net = load_model(model, device) if isinstance(model, str | Path) else model
        check_model(net)
        found = of_samplers(net, samplers, nfe, _seeds(seeds), number("n", n, least=1, whole=True), settings, asked)
    if out is not None:
        found.write(out)
    return found


class Asked(NamedTuple):
    """What runs are compared with, and where what is made for it is kept."""

    reference: str | Path | None
    features: str | Extractor | None
    device: str
    cache_dir: Path
    progress: bool

    def bench(self, shape: Sequence[int], n: int, model: Model | None) -> Bench:
        """Return what measures n images of a shape; UserError for fewer than the features need."""
        ref = self.reference
        ref = ref and prepare_reference(ref, self.features, self.device, self.cache_dir, tuple(shape))
        if ref:
            check_enough((n, len(ref.mu)), ref.extractor.name, "a run")
        return Bench(ref or None, self.cache_dir, self.device, model, self.progress)


def _is_design(what: Sequence[Any]) -> bool:
    """Tell whether these are the name of a model and those of samplers, and no folders."""
    one, *others = what or (None,)
    design = isinstance(one, str) and len(others) == 1 and isinstance(others[0], list | tuple)
    return design and not Path(str(one)).is_dir()


def _flat(what: Iterable[Any]) -> Iterable[Any]:
    for one in what:
        yield from one if isinstance(one, list | tuple) else (one,)


def _three(what: tuple, model: Any, samplers: Any, nfe: Any) -> tuple[Any, list[str], list[float]]:
    """Return model, samplers and budgets, whether they were given by place or by name."""
    given = {
        name: value for name, value in (("model", model), ("samplers", samplers), ("nfe", nfe)) if value is not None
    }
    missing = [name for name in ("model", "samplers", "nfe") if name not in given]
    if len(what) > len(missing):
        raise UserError("compare takes folders of runs, or a model, samplers and nfe: not both")
    given |= dict(zip(missing, what, strict=False))
    absent = [name for name in ("model", "samplers", "nfe") if name not in given]
    if absent:
        raise UserError(f"a comparison of samplers needs a model, samplers and nfe: {', '.join(absent)} missing")
    names = [given["samplers"]] if isinstance(given["samplers"], str) else list(given["samplers"])
    budgets = [*map(native, given["nfe"])] if isinstance(given["nfe"], Iterable) else [native(given["nfe"])]
    for about, some in (("samplers", names), ("nfe", budgets)):
        if len(set(some)) < len(some) or not some:
            raise UserError(f"{about} must be different, and at least one, not {', '.join(map(str, some)) or 'none'}")
    if len(names) * len(budgets) < 2:
        raise UserError("a comparison needs at least two samplers or budgets")
    return given["model"], names, budgets


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if is_number(seeds):
        return list(range(number("seeds", seeds, least=1, whole=True)))
    found = [number("a seed", seed, least=0, whole=True) for seed in seeds]
    if len(set(found)) < len(found) or not found:
        raise UserError(f"seeds must be different, and at least one, not {found}")
    return found


def of_runs(folders: Sequence[str | Path], asked: Asked, model: Model | None = None) -> Comparison:
    """Compare runs on disk; those that differ in their seed alone are one row. See :func:`compare`."""
    runs = [(str(folder), open_samples(folder)) for folder in folders]
    if len(runs) < 2:
        raise UserError(f"a comparison needs at least two runs, not {len(runs)}")
    arms: dict[Arm, dict[int, int]] = {}
    for k, (folder, run) in enumerate(runs):
        arm, seed = _arm(run.manifest, folder), run.manifest["seed"]
        if seed in arms.setdefault(arm, {}):
            raise UserError(f"{folder} and {runs[arms[arm][seed]][0]} are of the same recipe and seed: leave one out")
        arms[arm][seed] = k
    for folder, run in runs[1:]:
        _check_same(runs[0][0], runs[0][1].manifest, folder, run.manifest)
    _check_comparable([(folder, run.manifest["plan"]) for folder, run in runs], asked.reference)
    low, high = runs[0][1].manifest["data_range"]
    bench = asked.bench(runs[0][1].manifest["shape"], len(runs[0][1].images), model)
    found: dict[Arm, dict[int, Measured]] = {arm: {} for arm in arms}
    for seed, arm in sorted(
        ((run.manifest["seed"], _arm(run.manifest, folder)) for folder, run in runs), key=lambda cell: cell[0]
    ):
        folder, run = runs[arms[arm][seed]]
        alone = len(arms[arm]) == 1
        images = run.images.in_range(low, high)
        found[arm][seed] = bench.measured(images, run.manifest, json.loads(arm.settings), folder, alone)
        if bench.missing and bench.reference is None:
            raise UserError(f"{bench.missing}: give model, or a reference")
    return comparison(found, bench, str(runs[0][1].manifest["model"]), (low, high))


def _arm(manifest: Mapping[str, Any], folder: str) -> Arm:
    try:
        asked, _ = manifest["asked"], (manifest["plan"]["chain"], manifest["seed"], manifest["model_sha256"])
        return Arm(asked["sampler"], json.dumps(asked["settings"], sort_keys=True), manifest["nfe"])
    except (KeyError, TypeError):
        raise UserError(f"{folder} does not tell its sampler, seed and model: only what sample wrote does") from None


def _check_same(one: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any]) -> None:
    """Raise UserError for runs of unequal n or other models; a class, guidance or gains may differ."""
    if first["num"] != second["num"]:
        raise UserError(
            f"{one} holds {first['num']} images and {other} {second['num']}: rows of unequal n do not compare"
        )
    conditions = [[run["plan"].get(name) for name in CONDITIONS] for run in (first, second)]
    same_name = first["model"] == second["model"] and first["shape"] == second["shape"]
    if first["model_sha256"] != second["model_sha256"] and not (same_name and conditions[0] != conditions[1]):
        raise UserError(
            f"{one} is of model {first['model']!r} and {other} of {second['model']!r}, whose weights or levels are "
            "others: rows of another model do not compare"
        )


def _check_comparable(plans: Iterable[tuple[str, Mapping[str, Any]]], reference: Any) -> None:
    if reference is None and (noisy := [name for name, plan in plans if not pairs_with_accurate(plan)]):
        raise UserError(
            f"{noisy[0]} adds noise on its way (or goes through a linear diffusion), so no accurate solution pairs "
            "with it: give a reference"
        )


def of_samplers(  # noqa: PLR0913  a design, and what it is measured by
    model: Model,
    samplers: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
    n: int,
    settings: Mapping[str, Any] | None,
    asked: Asked,
) -> Comparison:
    """Run samplers at budgets from the same seeds, what is in the cache excepted, and compare. See :func:`compare`."""
    given = dict(settings or {})
    for name, nfe in itertools.product(samplers, budgets):  # what is wrong is told before anything is made
        if name not in (*SEARCHES, FITTED.name, f"dlg+{FITTED.name}"):
            _check_comparable([(name, Request(model, name, given).plan(nfe, n).record())], asked.reference)
        elif name != FITTED.name:
            _check_comparable([(name, {"chain": True})], asked.reference)
    bench = asked.bench(model.shape, n, model)
    found: dict[Arm, dict[int, Measured]] = {}
    for seed, nfe, name in itertools.product(seeds, budgets, samplers):
        sampler, chosen = settled(model, name, nfe, n, given, cache_dir=asked.cache_dir)
        images, manifest = cached(model, sampler, nfe, n, seed, chosen, asked.cache_dir, asked.progress)
        arm = Arm(name if name == sampler else f"{name} ({sampler})", json.dumps(given, sort_keys=True), nfe)
        found.setdefault(arm, {})[seed] = bench.measured(images, manifest, chosen, name, len(seeds) == 1)
    known = getattr(model, "name", type(model).__name__)
    return comparison(found, bench, str(known), model.data_range)
