"""n images from a model and a sampler onto disk, in shards: seeded per image, resumable, the same in any division.

A sampler is an integrator's name, or ``dlg+NAME``: Denoising Langevin Gibbs, then that integrator; or, of a linear
diffusion, ``gddim`` or ``sde+NAME``, one of those that gDDIM is compared with. A run's folder holds ``manifest.json``
(the whole recipe, what it cost) and ``shard-*.npz`` (``arr_0``, uint8, NHWC). Image i of a seed is the same image
however many are made, in whatever shards, by however many processes (:mod:`dmcmc_core.runs.ranks` tells which of the
shards this one makes), before or after an interruption; :mod:`dmcmc_core.runs.shards` keeps the folder.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dmcmc_core import checkpoints, dmcmc, gddim, integrators, schedules
from dmcmc_core.data import CASTS, to_uint8
from dmcmc_core.denoiser import BLOCK, CountNFE, Denoiser, count_nfe, per_row
from dmcmc_core.dmcmc import Chain, ChainSettings, Window
from dmcmc_core.errors import TooFew, UserError, unknown
from dmcmc_core.linear_sde import DIFFUSIONS
from dmcmc_core.mcmc import ChainState
from dmcmc_core.noise_level import ClassifierPosterior, ExactPosterior, NoiseLevelPosterior, ResidualPosterior
from dmcmc_core.runs import ranks, shards
from dmcmc_core.runs.prepare import LINEAR_SAMPLERS, STATISTICS, device_of, fingerprint, in_blocks, prepared
from dmcmc_core.runs.ranks import Ranks
from dmcmc_core.runs.shards import Shard, finished, key, load_images, read_manifest
from dmcmc_core.streams import Drawn, Streams

SHARD = BLOCK  # images, where no larger block is asked for
LARGEST_BLOCK = 4096
TOLERANCES = tuple(10 ** (-k / 4) for k in range(25))  # 1 to 1e-6, tried for an adaptive integrator
_PILOT, _PILOT_WINDOWS = 64, 8  # images that such a trial integrates, and windows that it waits for at most
POSTERIORS = ("exact", "classifier", "residual")
SEARCHES = ("dlg+auto", "auto")  # samplers of the command line, whose settings dmcmc_core.runs.tuning finds
TUNING = "tuning.json"  # how the settings of a run were found, if they were

SETTINGS = {
    "start": "mean of the noise that all begins with: zero or mean (mean, where the model knows that of its data)",
    "schedule": f"grid of noise levels: {', '.join(schedules.SCHEDULES)} (the integrator's own)",
    "levels": "noise levels of the integrator, at least 1 (as many as the budget pays for)",
    "speed_up": "k, for int(1000 / k) levels, as Preconditioned Diffusion Sampling counts them (none)",
    "tweedie": "noise level of one more denoising after the integrator, from sigma_min to sigma_max (none)",
    "posterior": f"p(sigma | x) of the chains: {', '.join(POSTERIORS)} (the first of these that there is)",
    "block": f"rows of one network evaluation, 1 to {LARGEST_BLOCK}, on which last digits of images depend, and the "
    f"most chains of a group; exact models compute in blocks of their own ({BLOCK})",
    "cast": f"how values become 256 levels: {' or '.join(CASTS)}, as the code published with DMCMC does (round)",
    "label": "class of every image, a whole number from 0, for a model with classes (none)",
    "guidance": "w of classifier-free guidance, D_uncond + w (D_cond - D_uncond), at least 0; any but 0 and 1 "
    "costs two network evaluations a call (1.0)",
    "unconditional": "class that stands for none in guidance (what the checkpoint tells)",
    "preconditioner": "M of the chains, of predictor_corrector and of reverse_diffusion: frequency, pixel or both, "
    "gains from images, or a .safetensors file that Preconditioner.save wrote (none)",
    "statistics": f"images that such gains come from, {STATISTICS} of them: a reference's name, an NPZ, or a "
    "folder of samples, of the model's own too (the images that an exact model has)",
    "alpha": "strength of such gains, above 1, the smaller the stronger, inf for none (5.0)",
    "omega": "strength of a skew term beside M, for langevin, mala and those integrators (0.0)",
}
"""Settings of a run beside those of the chains and of the integrator: what each may be (and is by default)."""
OF_LINEAR = {
    "sde": f"diffusion through which a denoiser is asked: {', '.join(DIFFUSIONS)} (that of a network for one)",
    "kappa": "of the grid of times, uniform in t^(1 / kappa), above 0 (2.0)",
    "levels": "times of that grid, at least 2 (as many as the budget pays for)",
    "last": "one more denoising, a call: clean, the predicted image; euler, as published; or null (clean)",
    "cast": SETTINGS["cast"],
}
"""Those of a run of a linear diffusion, beside the options of its sampler."""


@dataclass(frozen=True)
class Plan:
    """A sampler with every choice made: all that decides its images, beside model, seed and index.

    ``levels`` is None where ``options["tol"]`` sets the cost; ``chain`` is None for a plain integrator, whose noise is
    centred on ``start``; ``tweedie`` is the level of one more denoising after the integrator (None: none).
    ``held_to`` is that of a :class:`dmcmc_core.denoiser.Conditioned` model (None: no class), which takes
    ``rows_per_image`` of the network in a call; ``preconditioned_by`` that of a
    :class:`dmcmc_core.preconditioning.WithPreconditioner`.
    """

    sampler: str
    levels: int | None
    schedule: str
    start: str
    tweedie: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chain: ChainSettings | None = None
    posterior: str | None = None
    held_to: dict[str, Any] | None = None
    rows_per_image: int = 1
    block: int = BLOCK
    cast: str = "round"
    preconditioned_by: dict[str, Any] | None = None

    @property
    def integrator(self) -> integrators.Integrator:
        return split(self.sampler)[1]

    @property
    def linear(self) -> str | None:
        """Its name in :data:`dmcmc_core.gddim.SAMPLERS`, None of an integrator; its levels are times then."""
        return LINEAR_SAMPLERS.get(self.sampler)

    @property
    def adapts(self) -> bool:
        """Whether a tolerance, not a number of levels, sets its cost."""
        return self.linear is None and self.integrator.calls is None


class Samples(NamedTuple):
    """Images (n, C, H, W) float32 in the model's data range after rounding to uint8, and the run's manifest."""

    images: Tensor
    manifest: dict[str, Any]


def split(sampler: str) -> tuple[bool, integrators.Integrator]:
    """Whether chains run first, and the integrator: of ``NAME`` or ``dlg+NAME``."""
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


def plan(model: Denoiser, sampler: str, nfe: float, num: int, settings: dict[str, Any] | None = None) -> Plan:
    """The largest setting of a sampler whose full count is at most ``nfe``: warm-up too, shared out over the images.

    Args:
        nfe: network evaluations per image; one of a guided denoiser takes two.
        num: images, over which the chains' warm-up is shared out.
        settings: choices by name: one of :data:`SETTINGS`, a field of :class:`dmcmc_core.dmcmc.ChainSettings`, or an
            option of the integrator.

    Raises:
        UserError: an unknown sampler or setting (with the nearest name), a value of another type or out of range, or
            an NFE that the sampler cannot keep to.
    """
    integrators.number("nfe", nfe, above=0)
    model, settings = prepared(model, sampler, settings)
    if sampler in LINEAR_SAMPLERS:
        return _linear_plan(model, sampler, nfe, settings)
    chained, entry = split(sampler)
    each = getattr(model, "rows_per_image", 1)
    parameters = inspect.signature(entry.function).parameters.values()
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"noise", "callback"}
    chain_names = {f.name for f in fields(ChainSettings)} if chained else set()
    known = own | chain_names | SETTINGS.keys() - (set() if chained else {"posterior"})
    for name in settings:
        if name not in known and name in {f.name for f in fields(ChainSettings)}:
            raise UserError(f"{name} is a setting of the chains, which {sampler} has not: use dlg+{sampler}")
        if name not in known:
            raise unknown(f"setting of {sampler}", name, known)
    options = {name: settings[name] for name in settings if name in own}
    entry.check(**options)
    preconditioned_by = getattr(model, "preconditioned_by", None)
    if preconditioned_by and not chained and not entry.preconditioned:
        able = ", ".join(name for name, other in integrators.INTEGRATORS.items() if other.preconditioned)
        raise UserError(f"{entry.name} knows no preconditioner: choose {able}, or chains by dlg+{entry.name}")
    start = settings.get("start", "mean" if getattr(model, "mean", None) is not None else "zero")
    integrators.one_of("start", start, "zero", "mean")
    schedule = settings.get("schedule", entry.schedule)
    if schedule not in tuple(schedules.SCHEDULES):
        raise unknown("schedule", schedule, schedules.SCHEDULES)
    tweedie = settings.get("tweedie")
    if tweedie is not None:
        integrators.number("tweedie", tweedie, least=model.sigma_min, most=model.sigma_max)
    block = settings.get("block", BLOCK)
    integrators.number("block", block, least=1, most=LARGEST_BLOCK, whole=True)
    cast = settings.get("cast", "round")
    integrators.one_of("cast", cast, *CASTS)
    chain, posterior, spent = None, None, float(tweedie is not None)
    if chained:
        chosen = {name: settings[name] for name in chain_names & settings.keys()}
        if "renoise" in chosen:
            integrators.number("renoise", chosen["renoise"], above=0, most=model.sigma_max)
        chain = ChainSettings(**{"start": start, "n_skip": 1} | chosen)
        posterior = settings.get("posterior", default_posterior(model))
        integrators.one_of("posterior", posterior, *POSTERIORS)
        if "n_skip" not in chosen:
            step = chain.step_calls(posterior == "residual")
            warm = (
                chain_cost(chain, num, posterior) - step
            )  # so as not to starve the integrator where few images share it
            chain = replace(chain, n_skip=default_n_skip(nfe / each - warm, step))
        spent += chain_cost(chain, num, posterior)
    least = each * (spent + (entry.calls(1, **options) if entry.calls else 1))
    if nfe < least:
        why = f": {_remedy(chain, num, posterior, least, each)}" if chain else ""
        raise TooFew(f"{nfe:g} NFE are too few for {sampler}, which needs at least {least:.2f} per image{why}")
    left = nfe / each - spent + 1e-9
    levels = settings.get("levels")
    if "speed_up" in settings:
        if levels is not None:
            raise UserError("speed_up and levels say the same in two ways: leave one out")
        levels = schedules.sped_up(settings["speed_up"])
        if entry.calls is not None and entry.calls(levels, **options) > left:
            needed = math.ceil(each * (spent + entry.calls(levels, **options)))
            raise UserError(
                f"speed_up={settings['speed_up']!r} means {levels} levels, for which {sampler} needs {needed} NFE, "
                f"not {nfe:g}"
            )
    if levels is not None:
        integrators.number("levels", levels, least=1, whole=True)
    if entry.calls is None:
        options.setdefault("tol", None)
    elif levels is None:
        levels = entry.levels(left, **options)
    elif entry.calls(levels, **options) > left:
        raise UserError(
            f"levels={levels!r} is not a whole number that {sampler} can pay for: {each * left:.2f} NFE are left for it"
        )
    held_to = getattr(model, "held_to", None)
    return Plan(
        sampler,
        levels,
        schedule,
        start,
        tweedie,
        options,
        chain,
        posterior,
        held_to,
        each,
        block,
        cast,
        preconditioned_by,
    )


def _linear_plan(model: gddim.Epsilon, sampler: str, nfe: float, settings: dict[str, Any]) -> Plan:
    """That of a sampler of linear diffusions."""
    name, each = LINEAR_SAMPLERS[sampler], getattr(model, "rows_per_image", 1)
    known = gddim.options_of(name) | OF_LINEAR.keys() - {"sde"}
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of {sampler}", setting, known)
    options = {"kappa": 2.0, "last": "clean"} | {n: v for n, v in settings.items() if n not in ("levels", "cast")}
    integrators.one_of("last", options["last"], None, "clean", "euler")
    left = math.floor(nfe / each + 1e-9) - (options["last"] is not None)
    levels, most = settings.get("levels"), 1 + gddim.steps_of(name, left, **options)
    if levels is not None:
        integrators.number("levels", levels, least=2, most=most, whole=True)
    levels, cast = levels or most, settings.get("cast", "round")
    integrators.one_of("cast", cast, *CASTS)
    gddim.check_options(model, name, levels - 1, **options)
    held_to = getattr(model, "held_to", None)
    return Plan(sampler, levels, "power", "zero", None, options, None, None, held_to, each, BLOCK, cast)


def _remedy(chain: ChainSettings, num: int, posterior: str | None, least: float, each: int) -> str:
    """What the chains cost, the budget that would do, and what makes them cheaper."""
    less = ["more images", *["fewer chains"] * (min(chain.chains, num) > 1), *["a smaller n_skip"] * (chain.n_skip > 1)]
    return (
        f"{each * chain_cost(chain, num, posterior):.2f} for the chains, whose warm-up {num} images share; "
        f"{math.ceil(least)} NFE with n_skip={chain.n_skip} would do, and {' or '.join(less)} would cost less"
    )


def default_n_skip(left: float, step_calls: int = 1) -> int:
    """Steps of a window, where none are asked for: a third of the calls that warm-up has ``left`` of a budget."""
    return max(1, round(left / (3 * step_calls)))


def default_posterior(model: Denoiser) -> str:
    """The best that there is: the exact one, a classifier that ships or was trained, else the denoiser's own."""
    if hasattr(model, "log_prob_levels"):
        return "exact"
    try:
        checkpoints.load_noise_level(model.name, like=model)
    except (AttributeError, UserError):
        return "residual"
    return "classifier"


def chain_cost(chain: ChainSettings, num: int, posterior: str | None) -> float:
    """Network calls of the chains per image, warm-up and calibration shared out over ``num`` images."""
    rows, residual = min(chain.chains, num), posterior == "residual"
    calls = rows * (chain.warmup_calls(residual) + math.ceil(num / chain.chains) * chain.window_calls(residual))
    return (calls + residual * dmcmc.CALIBRATION * (chain.first_calls + dmcmc.NODES)) / num


def with_tolerance(
    model: Denoiser,
    the: Plan,
    nfe: float,
    num: int,
    posterior: NoiseLevelPosterior | None,
    tried: dict[str, float] | None = None,
) -> Plan:
    """The plan of an adaptive integrator with the smallest tolerance that keeps to ``nfe`` in a trial on other seeds.

    The trial takes 64 images, from windows early and late, and leaves 3 % of the budget as a margin, as other images
    need a little more or less.

    Args:
        tried: NFE of the integrator by tolerance, as far as known from trials at other budgets; more are added.

    Raises:
        UserError: when not even the loosest tolerance does.
    """
    if not the.adapts or the.options.get("tol") is not None:
        return the
    fixed = (chain_cost(the.chain, num, the.posterior) if the.chain else 0.0) + (the.tweedie is not None)
    fixed *= the.rows_per_image
    counted, tried = count_nfe(model), {} if tried is None else tried
    start = functools.cache(lambda: _pilot_start(model, the, _windows(the, num), posterior))

    def used(tol: float) -> float:
        name = f"{tol:.6g}"
        if name not in tried:
            counted.reset()
            trial = replace(the, options={**the.options, "tol": tol})
            _integrate(counted, trial, start(), Streams(0, "pilot", range(_PILOT)))
            tried[name] = counted.nfe
        return fixed + tried[name]

    low, high = 0, len(TOLERANCES)  # bisection: tolerances before low keep to the budget, those from high on do not
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if used(TOLERANCES[middle]) <= 0.97 * nfe else (low, middle)
    if low == 0:
        raise TooFew(
            f"{the.sampler} uses {used(TOLERANCES[0]):.1f} NFE at its loosest tolerance {TOLERANCES[0]:g}: "
            f"{nfe:g}, less a margin of 3 %, is too small"
        )
    return replace(the, options={**the.options, "tol": TOLERANCES[low - 1]})


def _windows(the: Plan, num: int) -> int:
    """Windows that each chain runs for ``num`` images; 0 without chains."""
    return math.ceil(num / the.chain.chains) if the.chain else 0


def _pilot_start(model: Denoiser, the: Plan, windows: int, posterior: NoiseLevelPosterior | None) -> ChainState:
    """What 64 images of other seeds begin from, spread over the windows: chains may climb from one to the next."""
    rng = Streams(0, "pilot", range(_PILOT))
    if the.chain is None:
        x = dmcmc.prior(model, rng, _PILOT, the.start, device_of(model))
        return ChainState(x, x.new_full((_PILOT,), model.sigma_max))
    posterior = posterior or dmcmc.calibrated(model, the.chain, 0, device_of(model))
    chain = dmcmc.warm_up(model, posterior, the.chain, rng, device_of(model))
    step = dmcmc.kernel(model, posterior, the.chain, the.chain.eta)
    begun = dmcmc.windows(step, chain, the.chain, rng)
    starts = [window.start for window, _ in itertools.islice(begun, min(windows, _PILOT_WINDOWS))]
    which = (torch.arange(_PILOT) * windows // _PILOT).clamp(max=len(starts) - 1)
    x, sigma = (torch.stack([getattr(s, name) for s in starts])[which, range(_PILOT)] for name in ("x", "sigma"))
    return ChainState(x, sigma)


def load_posterior(model: Denoiser, the: Plan) -> NoiseLevelPosterior | None:
    """The noise-level posterior that the plan names; None without chains, and for ``residual``, calibrated by them.

    Raises:
        UserError: for a plan of another class than the model's, and where there is no such posterior.
    """
    if the.held_to != getattr(model, "held_to", None):
        plan_of, model_of = (held or "no class" for held in (the.held_to, getattr(model, "held_to", None)))
        raise UserError(
            f"the plan is for {plan_of} and the model for {model_of}: both need that of prepare.conditioned"
        )
    if the.posterior == "exact":
        return ExactPosterior(model)
    if the.posterior == "classifier":
        name = getattr(model, "name", None)
        if name is None:
            raise UserError(
                "posterior='classifier' needs a trained one: train it (train noise-level) and set model.name to the "
                "path of its file, or choose posterior='residual', which needs no training"
            )
        net, levels, _ = checkpoints.load_noise_level(name, device=str(device_of(model)), like=model)
        return ClassifierPosterior(net, levels, the.block)
    return None


def run(
    model: str | Denoiser,
    sampler: str,
    nfe: float,
    num: int,
    seed: int = 0,
    out: str | Path = "samples",
    settings: dict[str, Any] | None = None,
    device: str = "cpu",
    progress: bool = True,
    chains_dir: str | Path | None = None,
    shard: int | None = None,
    trial: bool = False,
    share: tuple[int, int] | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """Make ``num`` images in the folder ``out``, or go on where an earlier run of the same recipe stopped.

    Args:
        model: a name or path for :func:`dmcmc_core.checkpoints.load`, a denoiser, or a network of a linear diffusion.
        sampler, nfe, settings: see :func:`plan`.
        chains_dir: where states of chains are kept; runs that differ only in their integrator share them.
        seed: at least 0.
        shard: images in a file (None: 64, or a larger block); with chains, as many whole windows as that holds, at
            least one window of a group of chains.
        trial: whether a seed below 0 is meant: those are for trials, so that no run shares their random numbers.
        share: (i, n), 0 <= i < n: make one of n shares alone and wait for no other; whichever finds all images there
            completes the manifest. By default what :func:`dmcmc_core.runs.ranks.here` tells.
        alone: whether to make everything here whatever the environment tells, waiting for another that does the same.

    Returns:
        The manifest. ``nfe_full`` counts all real rows per image, ``nfe_paper`` leaves out warm-up and final Tweedie; a
        window that several ranks walk through is counted once. ``sigmas`` is the integrator's grid from sigma_max;
        with chains it begins at the ``start_sigma`` of each image, which its shard tells. ``times``, in its place, is
        the grid of a linear diffusion. ``block_halved``: rows of a block, where all did not fit into the device's
        memory.

    Raises:
        UserError: bad input (before anything is written), a folder that holds another run or that another process
            holds, a full disk, or values that are not finite; where that is so from the first image on, nothing stays
            of a run that began here.
    """
    if int(num) != num or num < 1:
        raise UserError(f"num must be a whole number of images, at least 1, not {num}")
    if shard is not None and (int(shard) != shard or shard < 1):
        raise UserError(f"shard must be a whole number of images, at least 1, not {shard}")
    if int(seed) != seed or (seed < 0 and not trial):
        raise UserError(f"seed must be a whole number, at least 0, not {seed}")
    us = Ranks() if alone else ranks.here() if share is None else Ranks(*share)
    if share is not None and ranks.here().world > 1:
        raise UserError("a share i/n is for runs that nobody splits already: leave it out where ranks share the run")
    name = model if isinstance(model, str) else getattr(model, "name", type(model).__name__)
    if sampler not in LINEAR_SAMPLERS:
        split(sampler)  # a wrong name should not wait for the model
    model = checkpoints.load(model, device=device) if isinstance(model, str) else model
    _check_model(model)
    model, chosen = prepared(model, sampler, settings)
    _check_range(model)
    the = plan(model, sampler, nfe, num, chosen)
    model = in_blocks(model, chosen.get("block"))
    posterior = load_posterior(model, the)
    recipe = {
        "model": str(name),
        "model_sha256": fingerprint(model),
        "seed": int(seed),
        "nfe": nfe,
        "block": the.block,
        "shard": int(shard or max(SHARD, the.block)),
        "asked": {"sampler": sampler, "settings": dict(sorted((settings or {}).items()))},
    }
    if the.preconditioned_by:  # a file of gains may change under its name
        recipe["gains_sha256"] = the.preconditioned_by["sha256"]
    out, made = Path(out), {}
    manifest = _stored(out, recipe, num, say=False)
    if manifest:
        _agree(manifest, the, nfe, num, out)
    if manifest and finished(out, num):
        return manifest  # before anything is written or held: it may be in use, or on a disk that is read only
    with ExitStack() as stack:
        stack.enter_context(shards.telling(out, num))
        if us.leads:
            rank, world = (us.rank, us.world) if us.store is None else (0, 1)
            stack.enter_context(shards.held(out, rank, world, wait=alone))
        else:
            us.meet()
        begun = shards.strange(out, own=(TUNING,))
        try:
            with torch.no_grad():
                manifest, the = _opened(out, recipe, model, the, num, posterior, us)
            if us.leads:
                us.meet()
            lists = shards.layout_of(manifest)
            every = list(itertools.chain(*lists))
            made |= shards.there(out, every, manifest["recipe"])
            if made:  # as it was for the images that are there
                halved = min(told["block"] for told in made.values())
                model = in_blocks(model, halved) if halved < the.block else model
            mine = list(shards.dealt(lists, us.rank, us.world))
            total = sum(len(s.images) for s in mine)
            with tqdm(
                total=total, unit="image", desc=sampler, disable=not progress or us.rank > 0, mininterval=1
            ) as bar:
                bar.update(sum(len(s.images) for s in mine if s in made))
                where = Path(chains_dir) if chains_dir else out / "chains"
                for some in _make(model, the, int(seed), out, where, posterior, manifest["recipe"], mine, made):
                    bar.update(len(some.images))
        except UserError:
            if not begun and us.world == 1:
                shards.take_back(out)
            raise
        us.meet()
        if us.leads:
            manifest = _closed(out, manifest, every, made)
        us.meet()
        return manifest if us.leads else read_manifest(out)


def _opened(
    out: Path,
    recipe: dict[str, Any],
    model: Denoiser,
    the: Plan,
    num: int,
    posterior: NoiseLevelPosterior | None,
    us: Ranks,
) -> tuple[dict[str, Any], Plan]:
    """The manifest of a run that begins or goes on, on disk, and the plan with all that an earlier run has settled."""
    before = _stored(out, recipe, num, say=us.leads)
    if before is None:
        the = with_tolerance(model, the, recipe["nfe"], num, posterior)
        manifest = recipe | {"plan": asdict(the), "dtype": "float32"} | _grid(model, the) | _versions()
    else:
        _agree(before, the, recipe["nfe"], num, out)
        the = replace(the, options=before["plan"]["options"])
        manifest = dict(before)
    manifest["recipe"] = key([recipe["model_sha256"], recipe["seed"], recipe["shard"], asdict(the)])
    manifest |= {"num": int(num), "shape": list(model.shape), "data_range": list(model.data_range), "complete": False}
    if us.leads:
        if before is None:
            shards.check_strays(out, manifest["recipe"], num)
        if us.world == 1 or us.store is not None:
            shards.sweep(out)
        if manifest != before:
            shards.write_manifest(out, manifest)
    return manifest, the


def _agree(stored: dict[str, Any], the: Plan, nfe: float, num: int, out: Path) -> None:
    """UserError where more images would need another plan than those that are there."""
    plan = stored["plan"]
    if plan["chain"] != (asdict(the.chain) if the.chain else None) or plan["levels"] != the.levels:
        raise UserError(
            f"{num} images at {nfe:g} NFE need other settings than the {stored['num']} in {out}, as warm-up is "
            "shared out differently: fix levels by a setting, or choose another folder"
        )


def _grid(model: Denoiser, the: Plan) -> dict[str, list[float]]:
    """The levels of the integrator, from sigma_max to 0, or the times of a linear diffusion."""
    if the.linear:
        return {"times": gddim.times(model.sde, the.levels - 1, the.options["kappa"]).tolist()}
    return {"sigmas": schedules.SCHEDULES[the.schedule](the.levels or 2, model.sigma_max, model.sigma_min).tolist()}


def _versions() -> dict[str, Any]:
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return {"versions": versions | {"machine": platform.machine()}}


def _check_model(model: Any) -> None:
    """UserError for what is no denoiser, as a bare network or function."""
    needed = ("shape", "data_range", *(() if hasattr(model, "sde") else ("sigma_min", "sigma_max")))
    missing = [n for n in needed if not hasattr(model, n)]
    if not callable(model) or missing:
        raise UserError(
            f"the model, a {type(model).__name__}, is no denoiser: it has no {', '.join(missing) or 'call'}; "
            "dmcmc_core.denoiser.Adapter makes one of a network or a function"
        )


def _check_range(model: Denoiser) -> None:
    """Images are written as uint8 over the data range: it must be finite, and an exact model's own images inside it."""
    low, high = model.data_range
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"images cannot be written over the data range {low} to {high}: give the model a data_range")
    images = getattr(model, "images", None)
    if images is not None and not (low - 1e-3 <= images.min() and images.max() <= high + 1e-3):
        raise UserError(
            f"the model's images go from {images.min():g} to {images.max():g}, outside its data range {low} to {high}: "
            "give it the right data_range"
        )


@torch.no_grad()
def _make(model, the, seed, out, where, posterior, recipe, mine, made) -> Iterator[Shard]:
    """Make those of the shards that are ``mine`` and not ``made`` yet, and enter them there; yields each when it is."""
    counted, walk = count_nfe(model), None
    for shard in mine:
        if shard in made:
            continue
        arrays, rows, noise = {}, {"chains": 0, "warmup": 0}, Streams(seed, "image", shard.images)
        seconds = {"chains": 0.0}
        if the.chain:
            if walk is None or walk.chains != shard.group:
                walk = Chains(model, the, posterior, seed, shard.group, where)
            starts, rows, seconds["chains"] = walk.starts(shard.windows)
            start = ChainState(starts.x[: len(shard.images)], starts.sigma[: len(shard.images)])
            arrays["start_sigma"] = start.sigma
        elif the.linear:
            x = gddim.prior(model, len(shard.images), noise, device_of(model))
            start = ChainState(x, x.new_full((len(x),), model.sde.t_max))
        else:
            filtered = the.integrator.preconditioned
            x = dmcmc.prior(counted, noise, len(shard.images), the.start, device_of(model), filtered)
            start = ChainState(x, x.new_full((len(x),), counted.sigma_max))
        counted.reset()
        begun = time.perf_counter()
        images = _images(counted, the, start, noise, shard)
        seconds["integrator"] = time.perf_counter() - begun
        final = the.rows_per_image * len(images) if the.tweedie is not None else 0
        rows |= {"integrator": counted.rows - final, "tweedie": final}
        arrays = {"arr_0": to_uint8(images, counted.data_range, the.cast)} | arrays
        about = {"recipe": recipe, "rows": rows, "block": getattr(model, "block", the.block), "seconds": seconds}
        made[shard] = shards.save(out, shard, arrays, about)
        yield shard


def _images(model: Denoiser, the: Plan, start: ChainState, noise: Streams, shard: Shard) -> Tensor:
    """The images of a shard; UserError with the sampler, the step and the level where one is not finite any more."""
    done, begun = [], noise.state
    try:
        x = _integrate(model, the, start, noise, callback=lambda step, *_: done.append(step))
    except UserError as error:
        images = f"images {shard.images[0]} to {shard.images[-1]}"
        step = "" if the.linear else f", step {len(done) + 1}"
        raise UserError(f"{error} ({the.sampler}, {images}{step})") from None
    if torch.isfinite(x).all():
        return x
    bad: list[str] = []

    def look(step: int, steps: int, sigma: Tensor, x: Tensor) -> None:
        rows = (~torch.isfinite(x)).flatten(1).any(1).nonzero()[:, 0]
        if len(rows) and not bad:
            row = int(rows[0])
            level = per_row(sigma, x)[row].item()
            bad.append(f"image {shard.images[row]} in step {step} of {steps}, to sigma = {level:g}")

    noise.state = begun
    with suppress(UserError):
        _integrate(model, the, start, noise, callback=look)
    if not bad:
        bad.append("at its end" if the.tweedie is None else f"in the denoising at sigma = {the.tweedie:g} after that")
    raise UserError(
        f"the sampler gave values that are not finite from image {shard.images[0]} on: {the.sampler}, "
        f"{bad[0]}; use more levels, or "
        "options nearer to their defaults"
    )


class Chains:
    """A group of chains, window by window: each window is kept in a folder, and taken from there if it is there.

    So a process that makes some of a group's shards walks through windows that others may be at too; what they cost is
    told by the files, once.
    """

    def __init__(
        self,
        model: Denoiser,
        the: Plan,
        posterior: NoiseLevelPosterior | None,
        seed: int,
        chains: range,
        where: Path,
    ) -> None:
        self.counted, self.the, self.chains, self.device = count_nfe(model), the, chains, device_of(model)
        self.folder = chain_folder(model, the, seed, where) / f"{chains.start:06d}-{chains.stop:06d}"
        self.rng, self.calibration, self.calibration_seconds = Streams(seed, "chain", chains), 0, 0.0
        if the.posterior == "residual":
            posterior, self.calibration, self.calibration_seconds = _calibrated(
                self.counted, the, seed, self.folder.parent / "posterior.npz"
            )
        self.posterior = posterior
        self.step = dmcmc.kernel(self.counted, posterior, the.chain, the.chain.eta)
        self.last: tuple[int, dict[str, np.ndarray] | None] = (-2, None)

    def starts(self, windows: range) -> tuple[ChainState, dict[str, int], float]:
        """What the integrator starts from, window after window; the rows and seconds that the chains took for them."""
        data = [self.window(number) for number in windows]
        some = [_start(d, self.device) for d in data]
        rows = {"chains": sum(int(d["rows"]) for d in data), "warmup": 0}
        seconds = sum(float(d["seconds"]) for d in data)
        if windows.start == 0:
            warmup, first = self.window(-1), self.chains.start == 0
            rows["warmup"] = int(warmup["rows"]) + (self.calibration if first else 0)
            seconds += float(warmup["seconds"]) + (self.calibration_seconds if first else 0)
        return ChainState(torch.cat([s.x for s in some]), torch.cat([s.sigma for s in some])), rows, seconds

    def window(self, number: int) -> dict[str, np.ndarray]:
        """What a window left, -1 being warm-up: as it is on disk, or made from the nearest one before it that is."""
        at = number
        while (data := self._kept(at)) is None and at >= 0:
            at -= 1
        if data is None:
            data = self._warmed_up()
        for later in range(at + 1, number + 1):
            data = self._walked(later, data)
        self.last = number, data
        return data

    def _path(self, number: int) -> Path:
        return self.folder / (f"window-{number:06d}.npz" if number >= 0 else "warmup.npz")

    def _kept(self, number: int) -> dict[str, np.ndarray] | None:
        return self.last[1] if self.last[0] == number else shards.read_npz(self._path(number))

    def _warmed_up(self) -> dict[str, np.ndarray]:
        self._begin()
        chain = dmcmc.warm_up(self.counted, self.posterior, self.the.chain, self.rng, self.device)
        return self._keep(-1, _chain_arrays(chain))

    def _walked(self, number: int, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._begin()
        walk = dmcmc.windows(self.step, _chain(before, self.device), self.the.chain, self.rng)
        window, chain = next(walk)
        return self._keep(number, _chain_arrays(chain) | _window_arrays(window))

    def _begin(self) -> None:
        self.counted.reset()
        self.begun = time.perf_counter()

    def _keep(self, number: int, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {n: a.cpu().numpy() if isinstance(a, Tensor) else a for n, a in arrays.items()}
        arrays |= {"rows": np.array(self.counted.rows), "seconds": np.array(time.perf_counter() - self.begun)}
        shards.save_npz(self._path(number), **arrays)
        return arrays


def starts(
    model: Denoiser, the: Plan, posterior: NoiseLevelPosterior, seed: int, chains: range, where: Path
) -> Iterator[ChainState]:
    """Starting points of one window after the other, from disk as far as they are there, else made and kept."""
    walk = Chains(model, the, posterior, seed, chains, where)
    for number in itertools.count():
        yield _start(walk.window(number), walk.device)


def _calibrated(counted: CountNFE, the: Plan, seed: int, path: Path) -> tuple[ResidualPosterior, int, float]:
    """The posterior from the denoiser's residual; the rows and seconds that its calibration took."""
    data = shards.read_npz(path)
    if data is None:
        counted.reset()
        begun = time.perf_counter()
        made = dmcmc.calibrated(counted, the.chain, seed, device_of(counted))
        data = {"levels": made.levels.cpu().numpy(), "expected": made.expected.cpu().numpy()}
        data |= {"rows": np.array(counted.rows), "seconds": np.array(time.perf_counter() - begun)}
        shards.save_npz(path, **data)
    levels, expected = (torch.from_numpy(data[n]).to(device_of(counted)) for n in ("levels", "expected"))
    return ResidualPosterior(levels, expected), int(data["rows"]), float(data["seconds"])


def chain_folder(model: Denoiser, the: Plan, seed: int, where: Path) -> Path:
    """Where the chains of (model, settings, seed) are kept; the integrator has no part in its name."""
    about = {"model": fingerprint(model), "chain": asdict(the.chain), "posterior": the.posterior, "seed": seed}
    about |= {"block": the.block}
    return Path(where) / key(about)


def cached(
    model: Denoiser,
    sampler: str,
    nfe: float,
    num: int,
    seed: int,
    settings: dict[str, Any] | None,
    cache_dir: str | Path,
    progress: bool = False,
) -> Samples:
    """The images of a run kept under ``cache_dir``, made at most once for the same recipe and code.

    Chains are kept beside them, so that all integrators start from the same ones; so are the tolerances of adaptive
    integrators, which do not depend on the seed.
    """
    cache, (model, settings) = Path(cache_dir) / code_key(), prepared(model, sampler, settings)
    the, settings = _bare(model, sampler, nfe, num, settings)
    model = in_blocks(model, settings.get("block"))
    if the.adapts and "tol" not in settings:
        path = cache / "tolerances" / f"{key([fingerprint(model), asdict(the), _windows(the, num)])}.json"
        tried = json.loads(path.read_text()) if path.is_file() else {}
        known = len(tried)
        with torch.no_grad():
            posterior = load_posterior(model, the)
            settings["tol"] = with_tolerance(model, the, nfe, num, posterior, tried).options["tol"]
        if len(tried) > known:
            shards.write_json(path, tried)
    out = cache / "samples" / key([fingerprint(model), sampler, nfe, num, seed, sorted(settings.items())])
    more = {"progress": progress, "chains_dir": cache / "chains", "trial": True, "alone": True}
    manifest = run(model, sampler, nfe, num, seed, out, settings, **more)
    return Samples(load_images(out), manifest | {"seconds": shards.seconds(out, manifest)})


def _bare(model: Denoiser, sampler: str, nfe: float, num: int, settings: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the settings without which it would be another: a default spelled out names no new cell."""
    the = plan(model, sampler, nfe, num, settings)
    for name in sorted(settings):
        fewer = {k: v for k, v in settings.items() if k != name}
        with suppress(UserError):
            settings = fewer if plan(model, sampler, nfe, num, fewer) == the else settings
    return the, settings


ROOMS = ("integrators", "linear_sde", "gddim", "preconditioning", "data", "nets", "checkpoints", "runs")
"""Folders whose modules decide what an image is, beside the core's own files."""


@functools.cache  # the modules as this process has imported them
def code_key() -> str:
    """Hash of the modules that decide what an image is, the core and some rooms, and the torch version."""
    package = Path(__file__).parents[1]
    files = sorted([*package.glob("*.py"), *(path for name in ROOMS for path in (package / name).rglob("*.py"))])
    digest = hashlib.sha256(torch.__version__.encode())
    for path in files:
        if path.stem != "tuning":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _integrate(model: Denoiser, the: Plan, start: ChainState, noise: Streams, **more: Any) -> Tensor:
    if the.linear:
        low, high = model.data_range
        return low + (high - low) * gddim.images(model, the.linear, start.x, the.levels - 1, noise, **the.options)
    options = the.options | more
    x = dmcmc.denoise(model, start, the.integrator, the.levels or 2, noise, schedule=the.schedule, **options)
    return x if the.tweedie is None else integrators.tweedie(model, x, the.tweedie)


def _stored(out: Path, recipe: dict[str, Any], num: int, say: bool = True) -> dict[str, Any] | None:
    """The manifest of an earlier run of this recipe; None in a new folder, and where it has to be made again."""
    try:
        manifest = read_manifest(out)
    except shards.Damaged:
        if say:
            print(f"{out / 'manifest.json'} is damaged: it is made again", file=sys.stderr)
        return None
    except UserError:
        if shards.strange(out, own=(TUNING,)) and not any(out.glob("shard-*.npz")):
            raise UserError(f"{out} is not empty and holds no run of this program: choose a new folder") from None
        return None
    was, now = _flat(manifest, recipe), _flat(json.loads(json.dumps(recipe)), recipe)
    for name in sorted(now | was, key=lambda name: (name.endswith("_sha256"), name)):  # last, as others change them
        if name not in was or name not in now or was[name] != now[name]:
            before, after = (repr(r[name]) if name in r else "the default" for r in (was, now))
            raise UserError(f"{out} holds another run: its {name} is {before}, not {after}; choose a new folder")
    if manifest["num"] > num:
        raise UserError(f"{out} already holds a run of {manifest['num']} images: num={num} would take some away")
    return manifest


def _flat(manifest: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest belongs to its recipe, the sampler and each setting under a name of its own."""
    known = {name: manifest.get(name) for name in recipe if name != "asked"}
    asked = manifest.get("asked") or {}
    return known | {"sampler": asked.get("sampler")} | asked.get("settings", {})


def _closed(
    out: Path, manifest: dict[str, Any], every: list[Shard], made: dict[Shard, dict[str, Any]]
) -> dict[str, Any]:
    """Write what is there into the manifest, and what it cost; complete once every image is."""
    made |= shards.there(out, [shard for shard in every if shard not in made], manifest["recipe"])
    n, num = sum(len(shard.images) for shard in made), manifest["num"]
    manifest = manifest | {"complete": n == num, "images": n}
    halved = min((told["block"] for told in made.values()), default=manifest["block"])
    if halved < manifest["block"]:
        manifest["block_halved"] = halved
    if n == num:
        kinds = ("integrator", "tweedie", "chains", "warmup")
        rows = {kind: sum(told["rows"][kind] for told in made.values()) for kind in kinds}
        paper = rows["integrator"] + rows["chains"]
        manifest |= {"nfe_full": sum(rows.values()) / num, "nfe_paper": paper / num, "rows": rows}
    shards.write_manifest(out, manifest)
    missing = [shard for shard in every if shard not in made]
    if shards.there(out, missing, manifest["recipe"]):  # another share ended meanwhile, and may have said so before
        return _closed(out, manifest, every, made)
    return manifest


def _chain_arrays(chain: Chain) -> dict[str, Any]:
    state = {name: value for name, value in chain.state._asdict().items() if value is not None}
    return state | {"emitted": chain.emitted, "drawn": np.array(chain.drawn)}


def _window_arrays(window: Window) -> dict[str, Any]:
    return {
        "start_x": window.start.x,
        "start_sigma": window.start.sigma,
        "chosen": window.chosen,
        "sigmas": window.sigmas,
        "acceptance": window.acceptance,
    }


def _chain(data: dict[str, np.ndarray], device: torch.device) -> Chain:
    state = {n: torch.from_numpy(data[n]).to(device) for n in ChainState._fields if n in data}
    return Chain(ChainState(**state), torch.from_numpy(data["emitted"]).to(device), Drawn(*data["drawn"].tolist()))


def _start(data: dict[str, np.ndarray], device: torch.device) -> ChainState:
    return ChainState(*(torch.from_numpy(data[n]).to(device) for n in ("start_x", "start_sigma")))
