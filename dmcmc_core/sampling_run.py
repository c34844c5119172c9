"""n images from a model and a sampler onto disk, in shards: seeded per image, resumable, the same in any division.

A sampler is an integrator's name, or ``dlg+NAME``: Denoising Langevin Gibbs, then that integrator. A run's folder
holds ``manifest.json`` (the whole recipe, what it cost) and ``shard-*.npz`` (``arr_0``, uint8, NHWC). Image i of a seed
is the same image however many are made, in whatever shards, by however many processes (RANK and WORLD_SIZE share out
the shards), before or after an interruption.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dmcmc_core import checkpoints, dmcmc, integrators, schedules, shards
from dmcmc_core.data import to_uint8
from dmcmc_core.denoiser import BLOCK, Conditioned, CountNFE, Denoiser, count_nfe
from dmcmc_core.dmcmc import Chain, ChainSettings, Window
from dmcmc_core.errors import TooFew, UserError, unknown
from dmcmc_core.mcmc import ChainState
from dmcmc_core.noise_level import ClassifierPosterior, ExactPosterior, NoiseLevelPosterior, ResidualPosterior
from dmcmc_core.shards import finished, load_images, read_manifest
from dmcmc_core.streams import Drawn, Streams

SHARD = BLOCK  # images
TOLERANCES = tuple(10 ** (-k / 4) for k in range(25))  # 1 to 1e-6, tried for an adaptive integrator
_PILOT, _PILOT_WINDOWS = 64, 8  # images that such a trial integrates, and windows that it waits for at most
POSTERIORS = ("exact", "classifier", "residual")
SEARCHES = ("dlg+auto", "auto")  # samplers of the command line, whose settings dmcmc_core.tuning finds
TUNING = "tuning.json"  # how the settings of a run were found, if they were

SETTINGS = {
    "start": "mean of the noise that all begins with: zero or mean (mean, where the model knows that of its data)",
    "schedule": f"grid of noise levels: {', '.join(schedules.SCHEDULES)} (the integrator's own)",
    "levels": "noise levels of the integrator, at least 1 (as many as the budget pays for)",
    "tweedie": "noise level of one more denoising after the integrator, from sigma_min to sigma_max (none)",
    "posterior": f"p(sigma | x) of the chains: {', '.join(POSTERIORS)} (the first of these that there is)",
    "label": "class of every image, a whole number from 0, for a model with classes (none)",
    "guidance": "w of classifier-free guidance, D_uncond + w (D_cond - D_uncond), at least 0; any but 0 and 1 "
    "costs two network evaluations a call (1.0)",
    "unconditional": "class that stands for none in guidance (what the checkpoint tells)",
}
"""Settings of a run beside those of the chains and of the integrator: what each may be (and is by default)."""
CLASS = ("label", "guidance", "unconditional")
"""Those of them that choose a class; they belong to the model, see :func:`conditioned`."""


@dataclass(frozen=True)
class Plan:
    """A sampler with every choice made: all that decides its images, beside model, seed and index.

    ``levels`` is None where ``options["tol"]`` sets the cost; ``chain`` is None for a plain integrator, whose noise is
    centred on ``start``; ``tweedie`` is the level of one more denoising after the integrator (None: none).
    ``held_to`` is that of a :class:`dmcmc_core.denoiser.Conditioned` model (None: no class), which takes
    ``rows_per_image`` of the network in a call.
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

    @property
    def integrator(self) -> integrators.Integrator:
        return split(self.sampler)[1]


class Samples(NamedTuple):
    """Images (n, C, H, W) float32 in the model's data range after rounding to uint8, and the run's manifest."""

    images: Tensor
    manifest: dict[str, Any]


def split(sampler: str) -> tuple[bool, integrators.Integrator]:
    """Whether chains run first, and the integrator: of ``NAME`` or ``dlg+NAME``."""
    method, _, name = sampler.rpartition("+")
    if sampler in SEARCHES:
        raise UserError(
            f"{sampler} has to find its integrator first: dmcmc_core.tuning.auto does, or the command sample"
        )
    if method not in ("", "dlg") or name not in integrators.INTEGRATORS:
        names = list(integrators.INTEGRATORS)
        raise unknown("sampler", sampler, [*names, *(f"dlg+{n}" for n in names), *SEARCHES])
    return method == "dlg", integrators.INTEGRATORS[name]


def conditioned(model: Denoiser, settings: dict[str, Any] | None) -> tuple[Denoiser, dict[str, Any]]:
    """The model held to the class that the settings name, if they name one, and the settings without it.

    Raises:
        UserError: see :class:`dmcmc_core.denoiser.Conditioned`; and for a guidance without a label.
    """
    rest = dict(settings or {})
    chosen = {name: rest.pop(name) for name in CLASS if name in rest}
    classes = getattr(model, "classes", 0)
    if chosen and not classes:
        raise UserError(f"this model has no classes: leave {next(iter(chosen))} out")
    if classes and not chosen and not hasattr(model, "held_to") and getattr(model, "unconditional", None) is None:
        raise UserError(
            f"this model has classes and was never trained without: choose one by label, 0 to {classes - 1}"
        )
    if chosen and "label" not in chosen:
        raise UserError(f"{next(iter(chosen))} is a setting of a class: choose one by label")
    return (Conditioned(model, **chosen) if chosen else model), rest


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
    chained, entry = split(sampler)
    model, settings = conditioned(model, settings)
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
    start = settings.get("start", "mean" if getattr(model, "mean", None) is not None else "zero")
    integrators.one_of("start", start, "zero", "mean")
    schedule = settings.get("schedule", entry.schedule)
    if schedule not in tuple(schedules.SCHEDULES):
        raise unknown("schedule", schedule, schedules.SCHEDULES)
    tweedie = settings.get("tweedie")
    if tweedie is not None:
        integrators.number("tweedie", tweedie, least=model.sigma_min, most=model.sigma_max)
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
    return Plan(sampler, levels, schedule, start, tweedie, options, chain, posterior, held_to, each)


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
    if the.integrator.calls is not None or the.options.get("tol") is not None:
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
            f"the plan is for {plan_of} and the model for {model_of}: both need that of sampling_run.conditioned"
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
        return ClassifierPosterior(net, levels)
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
    shard: int = SHARD,
    trial: bool = False,
) -> dict[str, Any]:
    """Make ``num`` images in the folder ``out``, or go on where an earlier run of the same recipe stopped.

    Args:
        model: a name or path for :func:`dmcmc_core.checkpoints.load_model`, or a denoiser.
        sampler, nfe, settings: see :func:`plan`.
        chains_dir: where states of chains are kept; runs that differ only in their integrator share them.
        seed: at least 0.
        shard: images in a file; with chains, as many whole windows as that holds, at least one window of 64 chains.
        trial: whether a seed below 0 is meant: those are for trials, so that no run shares their random numbers.

    Returns:
        The manifest. ``nfe_full`` counts all real rows per image, ``nfe_paper`` leaves out warm-up and final Tweedie.
        ``block_halved``: rows of a block, where 64 did not fit into the device's memory.

    Raises:
        UserError: bad input (before anything is written), a folder that holds another run, or values that are not
            finite; where that is so from the first image on, nothing stays of a run that began here.
    """
    if int(num) != num or num < 1:
        raise UserError(f"num must be a whole number of images, at least 1, not {num}")
    if int(shard) != shard or shard < 1:
        raise UserError(f"shard must be a whole number of images, at least 1, not {shard}")
    if int(seed) != seed or (seed < 0 and not trial):
        raise UserError(f"seed must be a whole number, at least 0, not {seed}")
    name = model if isinstance(model, str) else getattr(model, "name", type(model).__name__)
    split(sampler)  # a wrong name should not wait for the model
    model = checkpoints.load_model(model, device=device) if isinstance(model, str) else model
    model, chosen = conditioned(model, settings)
    _check_range(model)
    the = plan(model, sampler, nfe, num, chosen)
    posterior = load_posterior(model, the)
    out = Path(out)
    recipe = {
        "model": str(name),
        "model_sha256": fingerprint(model),
        "seed": int(seed),
        "nfe": nfe,
        "block": BLOCK,
        "shard": int(shard),
        "asked": {"sampler": sampler, "settings": dict(sorted((settings or {}).items()))},
    }
    manifest = _open(out, recipe, num)
    begun = manifest is not None
    if manifest is None or "plan" not in manifest:
        with torch.no_grad():
            the = with_tolerance(model, the, nfe, num, posterior)
        manifest = recipe | {"plan": asdict(the), "versions": {"torch": torch.__version__, "numpy": np.__version__}}
    else:
        stored = manifest["plan"]
        if stored["chain"] != (asdict(the.chain) if the.chain else None) or stored["levels"] != the.levels:
            raise UserError(
                f"{num} images at {nfe:g} NFE need other settings than the {manifest['num']} in {out}, as warm-up is "
                "shared out differently: fix levels by a setting, or choose another folder"
            )
        the = replace(the, options=stored["options"])
        if "block_halved" in manifest:  # as it was for the images that are there
            model.block = min(model.block, manifest["block_halved"])
        if finished(out, num):
            return manifest
    manifest |= {"num": int(num), "shape": list(model.shape), "data_range": list(model.data_range), "complete": False}
    shards.write_json(out / "manifest.json", manifest)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with tqdm(total=num, unit="image", desc=sampler, disable=not progress, mininterval=1.0) as bar, torch.no_grad():
        counted = count_nfe(model)
        work = _chained if the.chain else _plain
        where = Path(chains_dir) if chains_dir else out / "chains"
        try:
            for n in work(counted, the, num, int(seed), out, where, posterior, shard, rank, world, manifest):
                bar.update(n)
                _note_block(out, manifest, model)
        except UserError:
            if not begun and world == 1:
                _take_back(out)
            raise
    return _close(out, manifest, the, num, where)


def _note_block(out: Path, manifest: dict[str, Any], model: Denoiser) -> None:
    """Say in the manifest that blocks did not fit into memory and were made smaller; images may depend on it."""
    block = getattr(model, "block", BLOCK)
    if block < manifest.get("block_halved", BLOCK):
        manifest["block_halved"] = block
        shards.write_json(out / "manifest.json", manifest)


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


def _plain(counted, the, num, seed, out, where, posterior, size, rank, world, manifest) -> Iterator[int]:
    for number, first in enumerate(range(0, num, size)):
        indices = range(first, min(first + size, num))
        if number % world == rank:
            if not shards.has(out, first, len(indices)):
                counted.reset()
                noise = Streams(seed, "image", indices)
                x = dmcmc.prior(counted, noise, len(indices), the.start, device_of(counted))
                begin = ChainState(x, x.new_full((len(x),), counted.sigma_max))
                _save_shard(out, first, _integrate(counted, the, begin, noise), counted)
            yield len(indices)


def _chained(counted, the, num, seed, out, where, posterior, size, rank, world, manifest) -> Iterator[int]:
    """Groups of up to 64 chains, each through all its windows: a process may take any of the groups."""
    c = the.chain.chains
    for group, low in enumerate(range(0, min(c, num), BLOCK)):
        chains = range(low, min(low + BLOCK, c, num))
        if group % world != rank:
            continue
        begun = starts(counted.denoiser, the, posterior, seed, chains, where)
        together, windows = max(1, size // c), math.ceil((num - low) / c)  # of few chains, more windows fill a block
        for number in range(0, windows, together):
            first, count = number * c + low, min(together, windows - number)
            indices = range(first, min(first + (count - 1) * c + len(chains), num))
            some = list(itertools.islice(begun, count))
            if not shards.has(out, first, len(indices)):
                counted.reset()
                x, sigma = (torch.cat([getattr(s, name) for s in some]) for name in ("x", "sigma"))
                start = ChainState(x[: len(indices)], sigma[: len(indices)])
                _save_shard(out, first, _integrate(counted, the, start, Streams(seed, "image", indices)), counted)
            yield len(indices)


def starts(
    model: Denoiser, the: Plan, posterior: NoiseLevelPosterior, seed: int, chains: range, where: Path
) -> Iterator[ChainState]:
    """Starting points of one window after the other, from disk as far as they are there, else made and kept."""
    folder = chain_folder(model, the, seed, where) / f"{chains.start:06d}-{chains.stop:06d}"
    rng = Streams(seed, "chain", chains)
    counted = count_nfe(model)
    if the.posterior == "residual":
        posterior = _calibrated(counted, the, seed, folder.parent / "posterior.npz")
        counted.reset()
    path = folder / "warmup.npz"
    if shards.whole(path):
        chain = _load_chain(path, model)
    else:
        chain = dmcmc.warm_up(counted, posterior, the.chain, rng, device_of(model))
        shards.save_npz(path, **_chain_arrays(chain), rows=counted.rows)
    step = dmcmc.kernel(counted, posterior, the.chain, the.chain.eta)
    number = 0
    while True:
        path = folder / f"window-{number:06d}.npz"
        if shards.whole(path):
            yield _load_start(path, model)
            chain = None
        else:
            if chain is None:
                chain = _load_chain(folder / f"window-{number - 1:06d}.npz", model)
            counted.reset()
            window, chain = next(dmcmc.windows(step, chain, the.chain, rng))
            shards.save_npz(path, **_chain_arrays(chain), **_window_arrays(window), rows=counted.rows)
            yield window.start
        number += 1


def _calibrated(counted: CountNFE, the: Plan, seed: int, path: Path) -> ResidualPosterior:
    if not shards.whole(path):
        made = dmcmc.calibrated(counted, the.chain, seed, device_of(counted))
        shards.save_npz(path, levels=made.levels, expected=made.expected, rows=counted.rows)
    data = np.load(path)
    return ResidualPosterior(*(torch.from_numpy(data[n]).to(device_of(counted)) for n in ("levels", "expected")))


def chain_folder(model: Denoiser, the: Plan, seed: int, where: Path) -> Path:
    """Where the chains of (model, settings, seed) are kept; the integrator has no part in its name."""
    about = {"model": fingerprint(model), "chain": asdict(the.chain), "posterior": the.posterior, "seed": seed}
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
    cache, (model, settings) = Path(cache_dir) / code_key(), conditioned(model, settings)
    the, settings = _bare(model, sampler, nfe, num, settings)
    if the.integrator.calls is None and "tol" not in settings:
        path = cache / "tolerances" / f"{key([fingerprint(model), asdict(the), _windows(the, num)])}.json"
        tried = json.loads(path.read_text()) if path.is_file() else {}
        known = len(tried)
        with torch.no_grad():
            posterior = load_posterior(model, the)
            settings["tol"] = with_tolerance(model, the, nfe, num, posterior, tried).options["tol"]
        if len(tried) > known:
            shards.write_json(path, tried)
    out = cache / "samples" / key([fingerprint(model), sampler, nfe, num, seed, sorted(settings.items())])
    more = {"progress": progress, "chains_dir": cache / "chains", "trial": True}
    manifest = run(model, sampler, nfe, num, seed, out, settings, **more)
    return Samples(load_images(out), manifest)


def _bare(model: Denoiser, sampler: str, nfe: float, num: int, settings: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the settings without which it would be another: a default spelled out names no new cell."""
    the = plan(model, sampler, nfe, num, settings)
    for name in sorted(settings):
        fewer = {k: v for k, v in settings.items() if k != name}
        with suppress(UserError):
            settings = fewer if plan(model, sampler, nfe, num, fewer) == the else settings
    return the, settings


def key(about: Any) -> str:
    """A short name for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:20]


@functools.cache  # the modules as this process has imported them
def code_key() -> str:
    """Hash of the modules that decide what an image is: this one and all below it, and the torch version."""
    above = set("cli __main__ explorer experiments doctor plots tables training metrics testbed tuning".split())
    package = Path(__file__).parent
    files = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    digest = hashlib.sha256(torch.__version__.encode())
    for inside, path in files.items():
        if inside.parts[0].removesuffix(".py") not in above:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(model: Denoiser) -> str:
    """SHA-256 over the tensors of a model, network weights, images or mixture, and the class that it is held to."""
    held_to = getattr(model, "held_to", None)
    if held_to:
        return hashlib.sha256(repr((fingerprint(model.denoiser), held_to)).encode()).hexdigest()
    known = getattr(model, "_fingerprint", None)
    if known is None:
        net = getattr(model, "net", None)
        parts = list(net.state_dict().values()) if net is not None else []
        parts += [getattr(model, n, None) for n in ("images", "means", "weights", "variances", "axes")]
        parts = [t for t in parts if t is not None]
        if not parts:
            raise UserError(
                "a run is named by the hash of its model, and this one has no weights: set adapter.net to the "
                "torch.nn.Module behind it"
            )
        digest = hashlib.sha256(
            repr((tuple(model.shape), tuple(model.data_range), model.sigma_min, model.sigma_max)).encode()
        )
        for tensor in parts:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        known = digest.hexdigest()
        model._fingerprint = known
    return known


def _integrate(model: Denoiser, the: Plan, start: ChainState, noise: Streams) -> Tensor:
    x = dmcmc.denoise(model, start, the.integrator, the.levels or 2, noise, schedule=the.schedule, **the.options)
    return x if the.tweedie is None else integrators.tweedie(model, x, the.tweedie)


def device_of(model: Denoiser) -> torch.device:
    """Where a model computes, as far as its mean tells."""
    mean = getattr(model, "mean", None)
    return mean.device if mean is not None else torch.device("cpu")


def _open(out: Path, recipe: dict[str, Any], num: int) -> dict[str, Any] | None:
    """The manifest of an earlier run of this recipe; None in a new folder."""
    if not (out / "manifest.json").is_file():
        if out.is_dir() and any(
            p.suffix != ".part" and p.name != TUNING for p in out.iterdir()
        ):  # what may precede a run
            raise UserError(f"{out} is not empty and holds no run of this program: choose a new folder")
        return None
    manifest = read_manifest(out)
    was, now = _flat(manifest, recipe), _flat(json.loads(json.dumps(recipe)), recipe)
    for name in sorted(now | was, key="model_sha256".__eq__):  # last, as label and others change it too
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


def _take_back(out: Path) -> None:
    """Remove what a run wrote that failed before its first images; the folder too, if nothing else is in it."""
    if any(out.glob("shard-*.npz")):
        return
    (out / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(out / "chains", ignore_errors=True)
    with suppress(OSError):
        out.rmdir()


def _close(out: Path, manifest: dict[str, Any], the: Plan, num: int, where: Path) -> dict[str, Any]:
    """Count what is there; complete once every image is."""
    n, rows = shards.count(out)
    manifest |= {"complete": n == num, "images": n}
    if n == num:
        warmup = window = 0
        if the.chain:
            warmup, window = _chain_rows(out, manifest, the, num, where)
        final = the.rows_per_image * num if the.tweedie is not None else 0
        manifest |= {
            "nfe_full": (rows + warmup + window) / num,
            "nfe_paper": (rows - final + window) / num,
            "rows": {"integrator": rows - final, "tweedie": final, "chains": window, "warmup": warmup},
        }
    shards.write_json(out / "manifest.json", manifest)
    if shards.count(out)[0] != n:  # another process ended meanwhile, and may have said so before this one wrote
        return _close(out, manifest, the, num, where)
    return manifest


def _chain_rows(out: Path, manifest: dict[str, Any], the: Plan, num: int, where: Path) -> tuple[int, int]:
    about = {"model": manifest["model_sha256"], "chain": asdict(the.chain), "posterior": the.posterior}
    folder = Path(where) / key(about | {"seed": manifest["seed"]})
    warmup = int(np.load(folder / "posterior.npz")["rows"]) if the.posterior == "residual" else 0
    window = 0
    c = the.chain.chains
    for low in range(0, min(c, num), BLOCK):
        group = folder / f"{low:06d}-{min(low + BLOCK, c, num):06d}"
        warmup += int(np.load(group / "warmup.npz")["rows"])
        for number in range(math.ceil((num - low) / c)):
            window += int(np.load(group / f"window-{number:06d}.npz")["rows"])
    return warmup, window


def _save_shard(out: Path, first: int, x: Tensor, counted: CountNFE) -> None:
    if not torch.isfinite(x).all():
        raise UserError(
            f"the sampler gave values that are not finite from image {first} on, though it got none from the network: "
            "use more levels, or options nearer to their defaults"
        )
    shards.save_npz(out / f"shard-{first:08d}.npz", arr_0=to_uint8(x, counted.data_range), rows=counted.rows)


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


def _load_chain(path: Path, model: Denoiser) -> Chain:
    data, device = np.load(path), device_of(model)
    state = {n: torch.from_numpy(data[n]).to(device) for n in ChainState._fields if n in data}
    return Chain(ChainState(**state), torch.from_numpy(data["emitted"]).to(device), Drawn(*data["drawn"].tolist()))


def _load_start(path: Path, model: Denoiser) -> ChainState:
    data, device = np.load(path), device_of(model)
    return ChainState(*(torch.from_numpy(data[n]).to(device) for n in ("start_x", "start_sigma")))
