"""What a run will do, decided before anything is written: model, posterior and plan, resolved once and together.

A sampler is an integrator's name, or ``dlg+NAME``: Denoising Langevin Gibbs, then that integrator; or, of a linear
diffusion, ``gddim`` or ``sde+NAME``, one of those that gDDIM is compared with.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from dmcmc_core import checkpoints, gddim, integrators, schedules
from dmcmc_core.chains import ChainSettings
from dmcmc_core.denoiser import BLOCK, Denoiser
from dmcmc_core.dmcmc import AnyPosterior
from dmcmc_core.errors import Absent, TooFew, UserError, number, one_of, unknown
from dmcmc_core.noise_level import ClassifierPosterior, ExactPosterior, NoiseLevelPosterior
from dmcmc_core.runs.model import Model, device_of, prepared
from dmcmc_core.runs.settings import (
    CASTS,
    LARGEST_BLOCK,
    LINEAR_NAMES,
    LINEAR_SAMPLERS,
    LINEAR_SETTINGS,
    POSTERIORS,
    SEARCHES,
    SETTINGS,
)
from dmcmc_core.streams import Streams

CHAIN_SETTINGS = {f.name for f in fields(ChainSettings)}


@dataclass(frozen=True)
class Plan:
    """A sampler with every choice made: all that decides its images, beside model, seed and index.

    ``condition`` is that of a :class:`dmcmc_core.guidance.Conditioned` model (None: no class), which takes
    ``rows_per_image`` of the network in a call; ``preconditioned_by`` that of a
    :class:`dmcmc_core.preconditioning.WithPreconditioner`.
    """

    sampler: str
    levels: int | None
    options: dict[str, Any] = field(default_factory=dict)
    condition: dict[str, Any] | None = None
    rows_per_image: int = 1
    block: int = BLOCK
    cast: str = "round"
    preconditioned_by: dict[str, Any] | None = None
    chain = posterior = None
    """Only a :class:`ChainedPlan` has them."""

    def record(self) -> dict[str, Any]:
        """Return the plan as plain values, as manifests have it: every kind of plan has the same names there."""
        held = {"schedule": "power", "start": "zero", "tweedie": None, "chain": None, "posterior": None}
        held |= asdict(self)
        return {("held_to" if name == "condition" else name): value for name, value in held.items()}


@dataclass(frozen=True)
class LinearPlan(Plan):
    """A sampler of a linear diffusion; its levels are times, and all begins with the diffusion's prior."""

    @property
    def name(self) -> str:
        """The sampler's name in :data:`dmcmc_core.gddim.SAMPLERS`."""
        return LINEAR_NAMES[self.sampler]

    def grid(self, model: gddim.Epsilon) -> dict[str, list[float]]:
        """Return the times of the sampler, from the diffusion's first to its last, for the manifest."""
        return {"times": gddim.times(model.sde, self.levels - 1, self.options["kappa"]).tolist()}


@dataclass(frozen=True)
class IntegratorPlan(Plan):
    """An integrator of a denoiser, whose noise is centred on ``start``.

    ``levels`` is None where ``options["tol"]`` sets the cost; ``tweedie`` is the level of one more denoising after the
    integrator (None: none).
    """

    schedule: str = "karras"
    start: str = "mean"
    tweedie: float | None = None

    @property
    def integrator(self) -> integrators.Integrator:
        """The entry of :data:`dmcmc_core.integrators.INTEGRATORS`."""
        return split(self.sampler)[1]

    @property
    def adapts(self) -> bool:
        """Whether a tolerance, not a number of levels, sets its cost."""
        return self.integrator.calls is None

    def grid(self, model: Denoiser) -> dict[str, list[float]]:
        """Return the levels of the integrator, from sigma_max to 0, for the manifest."""
        return {"sigmas": self.levels_from(model, model.sigma_max).tolist()}

    def levels_from(self, model: Denoiser, sigma: Any) -> Any:
        """Return the grid of the integrator from the level (), or the levels (B,), that it starts at."""
        return schedules.SCHEDULES[self.schedule](self.levels or 2, sigma, model.sigma_min)

    def integrate(self, model: Denoiser, x: Tensor, sigmas: Tensor, noise: Streams, **more: Any) -> Tensor:
        """Return images from x, down a grid by the integrator, then by the last denoising where there is one."""
        x = self.integrator(model, x, sigmas, noise=noise, **self.options, **more)
        return x if self.tweedie is None else integrators.tweedie(model, x, self.tweedie)

    def windows(self, num: int) -> int:
        """Return the windows that each chain runs for ``num`` images; 0 without chains."""
        return 0


@dataclass(frozen=True)
class ChainedPlan(IntegratorPlan):
    """Chains, then an integrator from the starting points that they leave."""

    chain: ChainSettings = field(default_factory=ChainSettings)
    posterior: str = "residual"

    def windows(self, num: int) -> int:
        """Return the windows that each chain runs for ``num`` images."""
        return self.chain.windows(num)

    def chain_cost(self, num: int) -> float:
        """Return the network calls of the chains per image, warm-up and calibration shared out over ``num``."""
        return self.chain.calls_per_image(num, self.posterior == "residual")


def split(sampler: str) -> tuple[bool, integrators.Integrator]:
    """Tell whether chains run first, and return the integrator: of ``NAME`` or ``dlg+NAME``."""
    method, _, name = sampler.rpartition("+")
    if sampler == "sde+rk45":
        raise UserError(
            "sde+rk45 has one step size for all images of a batch, and an image of a run depends on no other: "
            "dmcmc_core.gddim.draw has it"
        )
    if sampler in SEARCHES:
        raise UserError(
            f"{sampler} has to find its integrator first: dmcmc_core.runs.tuning.auto does, or the command sample"
        )
    if method not in ("", "dlg") or name not in integrators.INTEGRATORS:
        names = list(integrators.INTEGRATORS)
        raise unknown("sampler", sampler, [*names, *(f"dlg+{n}" for n in names), *SEARCHES, *LINEAR_SAMPLERS])
    return method == "dlg", integrators.INTEGRATORS[name]


class Request:
    """A model, a sampler and settings, as somebody asks for them; it makes plans, and reads a classifier at most once.

    Attributes:
        model: as the sampler takes it: of a class, preconditioned, asked through a linear diffusion.
        settings: all but those that have become part of the model.

    Raises:
        UserError: an unknown sampler, and settings that do not fit the model.
    """

    def __init__(self, model: Model, sampler: str, settings: dict[str, Any] | None = None) -> None:
        self.sampler = sampler
        self.model, self.settings = prepared(model, sampler, settings)

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
        return _integrator_plan(self, nfe, num, settings)

    @functools.cached_property
    def classifier(self) -> tuple[Any, Any] | UserError:
        """The network and levels of the model's noise-level classifier, or why there is none."""
        name = getattr(self.model, "name", None)
        if name is None:
            return UserError(
                "posterior='classifier' needs a trained one: train it (train noise-level) and set model.name to the "
                "path of its file, or choose posterior='residual', which needs no training"
            )
        try:
            device = str(device_of(self.model))
            return checkpoints.load_noise_level(name, device=device, like=self.model)[:2]
        except Absent as error:
            return error

    def best_posterior(self) -> str:
        """Name the best that there is: the exact one, a classifier that ships or was trained, else the residual."""
        if hasattr(self.model, "log_prob_levels"):
            return "exact"
        return "residual" if isinstance(self.classifier, UserError) else "classifier"

    def posterior(self, plan: Plan) -> NoiseLevelPosterior | None:
        """Return the posterior that a plan names; None without chains, and for ``residual``, which chains calibrate.

        Raises:
            UserError: where there is no such posterior.
        """
        name = plan.posterior if isinstance(plan, ChainedPlan) else None
        if name == "exact":
            return ExactPosterior(self.model)
        if name == "classifier":
            if isinstance(self.classifier, UserError):
                raise self.classifier
            return ClassifierPosterior(*self.classifier, plan.block)
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
    tweedie = settings.get("tweedie")
    if tweedie is not None:
        number("tweedie", tweedie, least=model.sigma_min, most=model.sigma_max)
    block = number("block", settings.get("block", BLOCK), least=1, most=LARGEST_BLOCK, whole=True)
    cast = one_of("cast", settings.get("cast", "round"), *CASTS)
    return {"start": start, "schedule": schedule, "tweedie": tweedie, "block": int(block), "cast": cast}


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
        whole = IntegratorPlan(request.sampler, None, **shared)
        return _with_levels(whole, nfe, num, settings)
    chain = _chain(model, shared["start"], settings)
    posterior = settings["posterior"] if "posterior" in settings else request.best_posterior()
    whole = ChainedPlan(
        request.sampler, None, **shared, chain=chain, posterior=one_of("posterior", posterior, *POSTERIORS)
    )
    if "n_skip" not in settings:  # so as not to starve the integrator where few images share the warm-up
        step = chain.step_calls(posterior == "residual")
        warm = whole.chain_cost(num) - step
        n_skip = default_n_skip(nfe / whole.rows_per_image - warm, step)
        whole = replace(whole, chain=replace(chain, n_skip=n_skip))
    return _with_levels(whole, nfe, num, settings)


def _chain(model: Denoiser, start: str, settings: dict[str, Any]) -> ChainSettings:
    chosen = {name: settings[name] for name in CHAIN_SETTINGS & settings.keys()}
    if "renoise" in chosen:
        number("renoise", chosen["renoise"], above=0, most=model.sigma_max)
    return ChainSettings(**{"start": start, "n_skip": 1} | chosen)


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
