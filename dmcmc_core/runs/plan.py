"""What a run will do, decided before anything is written: model, posterior and plan, resolved once and together."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dmcmc_core import files, gddim, integrators, schedules
from dmcmc_core.aliases import known_as
from dmcmc_core.chains import ChainSettings
from dmcmc_core.denoiser import BLOCK, Denoiser
from dmcmc_core.dmcmc import AnyPosterior
from dmcmc_core.errors import Absent, TooFew, UserError, is_number, native, number, one_of, unknown
from dmcmc_core.guidance import EACH, RANDOM
from dmcmc_core.integrators.fitted import FromLevels, load_all, load_from_levels
from dmcmc_core.integrators.fitted.file import listed
from dmcmc_core.noise_level import ClassifierPosterior, ExactPosterior, NoiseLevelPosterior
from dmcmc_core.runs import classifiers
from dmcmc_core.runs.kinds import (
    ChainedFittedPlan,
    ChainedPlan,
    FittedPlan,
    IntegratorPlan,
    LinearPlan,
    Plan,
    split,
)
from dmcmc_core.runs.model import Model, prepared
from dmcmc_core.runs.settings import (
    CASTS,
    LARGEST_BLOCK,
    LINEAR_NAMES,
    LINEAR_SAMPLERS,
    LINEAR_SETTINGS,
    POSTERIORS,
    SETTINGS,
)
from dmcmc_core.samplers import FITTED, INTEGRATORS

CHAIN_SETTINGS = {f.name for f in fields(ChainSettings)}


class Request:
    """A model, a sampler and settings, as somebody asks for them; it makes plans, and reads a classifier at most once.

    Attributes:
        model: as the sampler takes it: of a class, preconditioned, asked through a linear diffusion.
        settings: all but those that have become part of the model.

    Raises:
        UserError: an unknown sampler, and settings that do not fit the model.
    """

    def __init__(self, model: Model, sampler: str, settings: dict[str, Any] | None = None) -> None:
        self.sampler = known_as(sampler)
        settings = {name: native(value) for name, value in (settings or {}).items()}
        self.model, self.settings = prepared(model, self.sampler, settings)
        self._classifiers: dict[str | None, classifiers.Classifier | Absent] = {}

    def bare(self, settings: dict[str, Any]) -> Request:
        """Return the same request with other settings than those that belong to the model."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def plan(self, nfe: float, num: int, settings: dict[str, Any] | None = None) -> Plan:
        """Return the largest setting of the sampler whose full count is at most ``nfe``; see :func:`plan`."""
        number("nfe", nfe, above=0)
        settings = self.settings if settings is None else settings
        if self.sampler in LINEAR_SAMPLERS:
            return _linear_plan(self.model, self.sampler, nfe, settings)
        if split(self.sampler)[1] is FITTED:
            return _fitted_plan(self, nfe, num, settings)
        return _integrator_plan(self, nfe, num, settings)

    def classifier(self, posterior: str = "classifier") -> classifiers.Classifier:
        """Return the model's own noise-level classifier, or that of a file that ``posterior`` names.

        Raises:
            Absent: where there is none, see :func:`dmcmc_core.runs.classifiers.load`.
        """
        file = posterior if classifiers.is_file(posterior) else None
        if file not in self._classifiers:
            try:
                self._classifiers[file] = classifiers.load(self.model, file)
            except Absent as error:
                self._classifiers[file] = error
        found = self._classifiers[file]
        if isinstance(found, Absent):
            raise found
        return found

    def best_posterior(self) -> str:
        """Name the best that there is: the exact one, a classifier that ships or was trained, else the residual."""
        if hasattr(self.model, "log_prob_levels"):
            return "exact"
        try:
            self.classifier()
        except Absent:
            return "residual"
        return "classifier"

    def posterior(self, plan: Plan) -> NoiseLevelPosterior | None:
        """Return the posterior that a plan names; None without chains, and for ``residual``, which chains calibrate.

        Raises:
            UserError: where there is no such posterior.
        """
        name = plan.posterior if isinstance(plan, ChainedPlan) else None
        if name == "exact":
            return ExactPosterior(self.model)
        if name == "classifier" or classifiers.is_file(name):
            found = self.classifier(name)
            if found.sha256 != plan.classifier:
                raise UserError(f"the classifier of {name!r} is another one than when this was planned: plan it anew")
            return ClassifierPosterior(found.net, found.levels, plan.block)
        return None


def plan(model: Model, sampler: str, nfe: float, num: int, settings: dict[str, Any] | None = None) -> Plan:
    """Return the largest setting of a sampler whose full count is at most ``nfe``: warm-up shared out over images.

    Args:
        nfe: network evaluations per image; one of a guided denoiser takes two.
        num: images, over which the chains' warm-up is shared out.
        settings: choices by name: one of :data:`dmcmc_core.runs.settings.SETTINGS`, a field of
            :class:`dmcmc_core.chains.ChainSettings`, or an option of the integrator.

    Raises:
        UserError: an unknown sampler or setting (with the nearest name), a value of another type or out of range, or
            an NFE that the sampler cannot keep to.
    """
    number("nfe", nfe, above=0)
    return Request(model, sampler, settings).plan(nfe, num)


def load_posterior(model: Model, plan: Plan) -> AnyPosterior | None:
    """Return the noise-level posterior that a plan names; see :meth:`Request.posterior`.

    Raises:
        UserError: for a plan of another class than the model's, and where there is no such posterior.
    """
    own = getattr(model, "condition", None)
    if plan.condition != own:
        plan_of, model_of = (condition or "no class" for condition in (plan.condition, own))
        raise UserError(
            f"the plan is for {plan_of} and the model for {model_of}: both need that of runs.model.conditioned"
        )
    asked, own = ((plan.sigma_min, plan.sigma_max), _narrowing(model)) if isinstance(plan, IntegratorPlan) else (0, 0)
    if asked != own:
        raise UserError(
            f"the plan is for other noise levels, {asked}, than the model, {own}: both need those of "
            f"runs.levels.narrowed"
        )
    return Request(model, plan.sampler).posterior(plan)


def _known_settings(sampler: str, own: set[str], chained: bool, settings: dict[str, Any]) -> None:
    """Raise UserError for a setting that the sampler has not."""
    known = own | (CHAIN_SETTINGS if chained else set()) | SETTINGS.keys() - (set() if chained else {"posterior"})
    for name in settings:
        if name not in known and name in CHAIN_SETTINGS:
            raise UserError(f"{name} is a setting of the chains, which {sampler} has not: use dlg+{sampler}")
        if name not in known:
            raise unknown(f"setting of {sampler}", name, known)


def _shared(model: Denoiser, entry: integrators.Integrator, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the choices that plans with and without chains share, each checked."""
    start = settings.get("start", "mean" if getattr(model, "mean", None) is not None else "zero")
    one_of("start", start, "zero", "mean")
    schedule = settings.get("schedule", entry.schedule)
    if schedule not in tuple(schedules.SCHEDULES):
        raise unknown("schedule", schedule, schedules.SCHEDULES)
    rho = settings.get("rho")
    if rho is not None:
        number("rho", rho, above=0)
        if schedule != "karras":
            raise UserError(f"rho bends the grid of karras, and this one is {schedule}: set schedule=karras too")
    tweedie = settings.get("tweedie")
    if tweedie is not None:
        number("tweedie", tweedie, least=model.sigma_min, most=model.sigma_max)
    block = number("block", settings.get("block", BLOCK), least=1, most=LARGEST_BLOCK, whole=True)
    cast = one_of("cast", settings.get("cast", "round"), *CASTS)
    low, high = _narrowing(model)
    shared = {"start": start, "schedule": schedule, "tweedie": tweedie, "block": int(block), "cast": cast}
    return shared | {"sigma_min": low, "sigma_max": high, "rho": rho}


def _narrowing(model: Denoiser) -> tuple[float | None, float | None]:
    """Return the sigma_min and sigma_max of a model, None where they are those of its network."""
    ends = (model.sigma_min, model.sigma_max)
    return tuple(  # pyright: ignore[reportReturnType]  two of them
        None if end == own else end for end, own in zip(ends, getattr(model, "network_levels", ends), strict=True)
    )


def _integrator_plan(request: Request, nfe: float, num: int, settings: dict[str, Any]) -> IntegratorPlan:
    """Return the plan of an integrator, with chains before it or without."""
    model, (chained, entry) = request.model, split(request.sampler)
    _known_settings(request.sampler, set(entry.options), chained, settings)
    options = {name: settings[name] for name in settings if name in entry.options}
    entry.check(**options)
    about = getattr(model, "preconditioned_by", None)
    if about and not chained and not entry.preconditioned:
        able = ", ".join(name for name, other in integrators.INTEGRATORS.items() if other.preconditioned)
        raise UserError(f"{entry.name} knows no preconditioner: choose {able}, or chains by dlg+{entry.name}")
    shared = _shared(model, entry, settings)
    shared |= {"condition": getattr(model, "condition", None), "preconditioned_by": about}
    shared |= {"rows_per_image": getattr(model, "rows_per_image", 1), "options": options}
    if not chained:
        _check_label(model, entry)
        whole = IntegratorPlan(request.sampler, None, **shared)
        return _with_levels(whole, nfe, num, settings)
    whole = ChainedPlan(request.sampler, None, **shared, **_chains(request, entry, shared["start"], settings))
    if "n_skip" not in settings:  # so as not to starve the integrator where few images share the warm-up
        step = whole.chain.step_calls(whole.posterior == "residual")
        warm = whole.chain_cost(num) - step
        n_skip = default_n_skip(nfe / whole.rows_per_image - warm, step)
        whole = replace(whole, chain=replace(whole.chain, n_skip=n_skip))
    return _with_levels(whole, nfe, num, settings)


def _chains(request: Request, entry: integrators.Integrator, start: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a :class:`ChainedPlan` has of the chains."""
    chain = _chain(request.model, start, settings)
    _check_label(request.model, entry, chain.chains)
    posterior = settings["posterior"] if "posterior" in settings else request.best_posterior()
    if not classifiers.is_file(posterior):
        one_of("posterior", posterior, *POSTERIORS)
    sha256 = request.classifier(posterior).sha256 if posterior not in ("exact", "residual") else None
    return {"chain": chain, "posterior": posterior, "classifier": sha256}


def calls_of_fitted(request: Request, nfe: float, num: int) -> int:
    """Return the network calls that a budget leaves to the fitted solver of ``fitted`` or ``dlg+fitted``."""
    each, chained = getattr(request.model, "rows_per_image", 1), split(request.sampler)[0]
    _known_settings(request.sampler, set(FITTED.options), chained, request.settings)
    if not chained:
        return int(nfe / each)
    start = "mean" if getattr(request.model, "mean", None) is not None else "zero"
    chains = ChainedFittedPlan(request.sampler, None, **_chains(request, FITTED, start, request.settings))
    return int(nfe / each - chains.chain_cost(num) + 1e-9)


def _fitted_plan(request: Request, nfe: float, num: int, settings: dict[str, Any]) -> FittedPlan | ChainedFittedPlan:
    """Return the plan of the largest solver of a file that the budget pays for."""
    model, chained = request.model, split(request.sampler)[0]
    _known_settings(request.sampler, set(FITTED.options), chained, settings)
    for name in ("schedule", "rho", "levels", "speed_up", "tweedie", *(() if chained else ("start",))):
        if name in settings:
            raise UserError(f"{name} is in the file of a fitted solver: leave it out")
    if getattr(model, "preconditioned_by", None):
        raise UserError("fitted knows no preconditioner: leave it out")
    if not isinstance(settings.get("file"), str | Path):
        raise UserError(
            f"{request.sampler} needs the file that the command fit wrote, by file=FILE, not {settings.get('file')!r}"
        )
    file, each, spent = str(settings["file"]), getattr(model, "rows_per_image", 1), 0.0
    solvers = load_from_levels(file) if chained else load_all(file)
    one = next(iter(solvers.values()))
    one = one.solvers[0] if isinstance(one, FromLevels) else one
    shared = _shared(model, INTEGRATORS["heun"], {n: v for n, v in settings.items() if n in ("block", "cast")})
    shared |= {"schedule": FITTED.schedule, "start": one.start, "condition": getattr(model, "condition", None)}
    shared |= {"rows_per_image": each, "file": file, "solver": files.sha256(file)}
    if chained:
        shared |= _chains(request, FITTED, one.start, settings)
        spent = ChainedFittedPlan(request.sampler, None, **shared).chain_cost(num)
    able = [calls for calls in solvers if each * (spent + calls) <= nfe + 1e-9]
    if not able:
        chains = f" after the {each * spent:.2f} of the chains" if chained else ""
        raise TooFew(f"{nfe:g} NFE are too few for the solvers in {file}, of {listed(solvers)} calls{chains}")
    one.check(model)
    _check_label(model, FITTED)
    return (ChainedFittedPlan if chained else FittedPlan)(request.sampler, max(able), **shared)


def _check_label(model: Denoiser, entry: integrators.Integrator, chains: int | None = None) -> None:
    """Raise UserError where images cannot have classes of their own: with chains, image i has that of chain i mod C."""
    label = (getattr(model, "condition", None) or {}).get("label")
    if label is None or is_number(label):
        return
    if entry.calls is None:
        raise UserError(f"{entry.name} takes images in steps of their own, and so of one class: choose one by label")
    if chains is None:
        return
    if label == RANDOM:
        raise UserError(f"a chain keeps its class, and few chains would draw few: with chains label={EACH} or a list")
    count = model.classes if label == EACH else len(label)  # pyright: ignore[reportAttributeAccessIssue]  it has
    if chains % count:
        near = count * max(1, round(chains / count))
        raise UserError(
            f"a chain keeps its class: chains must be a multiple of the {count} of label, such as {near}, not {chains}"
        )


def _chain(model: Denoiser, start: str, settings: dict[str, Any]) -> ChainSettings:
    chosen = {name: settings[name] for name in CHAIN_SETTINGS & settings.keys()}
    chain = ChainSettings(**{"start": start, "n_skip": 1} | chosen)
    if "renoise" in chosen or hasattr(model, "network_levels"):
        number("renoise", chain.renoise, above=0, most=model.sigma_max)
    return chain


def _with_levels(plan: IntegratorPlan, nfe: float, num: int, settings: dict[str, Any]) -> IntegratorPlan:
    """Return the plan with as many levels as the budget leaves to the integrator, or as the settings ask for."""
    entry, each, options = plan.integrator, plan.rows_per_image, plan.options
    spent = float(plan.tweedie is not None) + (plan.chain_cost(num) if isinstance(plan, ChainedPlan) else 0)
    least = each * (spent + (entry.calls(1, **options) if entry.calls else 1))
    if nfe < least:
        why = f": {_remedy(plan, num, least)}" if isinstance(plan, ChainedPlan) else ""
        raise TooFew(f"{nfe:g} NFE are too few for {plan.sampler}, which needs at least {least:.2f} per image{why}")
    left, levels = nfe / each - spent + 1e-9, settings.get("levels")
    if "speed_up" in settings:
        if levels is not None:
            raise UserError("speed_up and levels say the same in two ways: leave one out")
        levels = schedules.sped_up(settings["speed_up"])
        if entry.calls is not None and entry.calls(levels, **options) > left:
            needed = math.ceil(each * (spent + entry.calls(levels, **options)))
            raise UserError(
                f"speed_up={settings['speed_up']!r} means {levels} levels, for which {plan.sampler} needs {needed} "
                f"NFE, not {nfe:g}"
            )
    if levels is not None:
        number("levels", levels, least=1, whole=True)
    if entry.calls is None:
        options = {"tol": None} | options
    elif levels is None:
        levels = entry.levels(left, **options)
    elif entry.calls(levels, **options) > left:
        raise UserError(
            f"levels={levels!r} is not a whole number that {plan.sampler} can pay for: {each * left:.2f} NFE are left "
            "for it"
        )
    return replace(plan, levels=levels, options=options)


def _remedy(plan: ChainedPlan, num: int, least: float) -> str:
    """Say what the chains cost, the budget that would do, and what makes them cheaper."""
    chain = plan.chain
    less = ["more images", *["fewer chains"] * (min(chain.chains, num) > 1), *["a smaller n_skip"] * (chain.n_skip > 1)]
    return (
        f"{plan.rows_per_image * plan.chain_cost(num):.2f} for the chains, whose warm-up {num} images share; "
        f"{math.ceil(least)} NFE with n_skip={chain.n_skip} would do, and {' or '.join(less)} would cost less"
    )


def default_n_skip(left: float, step_calls: int = 1) -> int:
    """Return the steps of a window, where none are asked for: a third of the calls that warm-up leaves of a budget."""
    return max(1, round(left / (3 * step_calls)))


def _linear_plan(model: gddim.Epsilon, sampler: str, nfe: float, settings: dict[str, Any]) -> LinearPlan:
    """Return the plan of a sampler of linear diffusions."""
    name, each = LINEAR_NAMES[sampler], getattr(model, "rows_per_image", 1)
    known = gddim.options_of(name) | LINEAR_SETTINGS.keys() - {"sde"}
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of {sampler}", setting, known)
    options = {"kappa": 2.0, "last": "clean"} | {n: v for n, v in settings.items() if n not in ("levels", "cast")}
    one_of("last", options["last"], None, "clean", "euler")
    left = math.floor(nfe / each + 1e-9) - (options["last"] is not None)
    levels, most = settings.get("levels"), 1 + gddim.steps_of(name, left, **options)
    if levels is not None:
        number("levels", levels, least=2, most=most, whole=True)
    levels, cast = levels or most, settings.get("cast", "round")
    one_of("cast", cast, *CASTS)
    gddim.check_options(model, name, levels - 1, **options)
    return LinearPlan(sampler, levels, options, getattr(model, "condition", None), each, BLOCK, cast)
