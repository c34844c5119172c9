"""n images from a model and a sampler onto disk, in shards: seeded per image, resumable, the same in any division.

A run's folder holds ``manifest.json`` (the whole recipe, what it cost) and ``shard-*.npz`` (``arr_0``, uint8, NHWC).
Image i of a seed is the same image however many are made, in whatever shards, by however many processes
(:mod:`dmcmc_core.runs.ranks` tells which of the shards this one makes), before or after an interruption;
:mod:`dmcmc_core.runs.folder` keeps the folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dmcmc_core import checkpoints, dmcmc, gddim
from dmcmc_core.aliases import known_as
from dmcmc_core.compiled import gain
from dmcmc_core.data import to_uint8
from dmcmc_core.denoiser import CountNFE, Narrowed, count_nfe
from dmcmc_core.dmcmc import AnyPosterior, Share
from dmcmc_core.errors import LOG, UserError, native
from dmcmc_core.files import key
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import in_blocks, of_images
from dmcmc_core.number_format import InFormat
from dmcmc_core.ranges import outside
from dmcmc_core.runs import folder, layout, windows
from dmcmc_core.runs import recipe as recipes
from dmcmc_core.runs.fitting import say_unused
from dmcmc_core.runs.kinds import ChainedPlan, IntegratorPlan, LinearPlan, Plan, split
from dmcmc_core.runs.layout import Shard
from dmcmc_core.runs.levels import levels_of
from dmcmc_core.runs.means import Centred, say_start
from dmcmc_core.runs.measured import Measured, Watch
from dmcmc_core.runs.model import Model, check_model, check_range, device_of, encoder_of
from dmcmc_core.runs.pictures import announce
from dmcmc_core.runs.plan import Request
from dmcmc_core.runs.ranks import Ranks, current
from dmcmc_core.runs.settings import LINEAR_SAMPLERS
from dmcmc_core.runs.tolerance import with_tolerance
from dmcmc_core.streams import Streams

CLIPPED, CLIPPED_BY = 0.2, 0.05
"""Share of numbers outside the data range that is said, and how far outside they lie at least, in units of it."""
PADDED = 0.3
"""Rows that only fill blocks, as a share of the others, that are said."""


@dataclass
class Job:
    """All that decides the images of a run, and where they go."""

    model: Model
    plan: Plan
    posterior: AnyPosterior | None
    nfe: float
    num: int
    seed: int
    out: Path
    chains_dir: Path
    recipe: dict[str, Any]
    ranks: Ranks
    quiet: bool = False
    watch: Watch | None = None
    clipped: bool = False

    def __post_init__(self) -> None:
        self.padding = getattr(self.model, "padding", [0])[0]  # of all that this model was asked before


@torch.no_grad()
def run(  # noqa: PLR0913  what a command line may say of a run
    model: str | Model | Request,
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
    pictures: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Make ``num`` images in the folder ``out``, or go on where an earlier run of the same recipe stopped.

    Args:
        model: a name or path for :func:`dmcmc_core.checkpoints.load`, a denoiser, or a network of a linear diffusion;
            or a :class:`dmcmc_core.runs.plan.Request` of that sampler, which has them with its settings.
        sampler, nfe, settings: see :func:`dmcmc_core.runs.plan.plan`.
        chains_dir: where states of chains are kept; runs that differ only in their integrator share them.
        seed: at least 0.
        shard: images in a file (None: 64, or a larger block); with chains, as many whole windows as it holds, or one.
        trial: whether a seed below 0 is meant, for trials, which share their random numbers with no run.
        share: (i, n), 0 <= i < n: make one of n shares alone and wait for no other; whichever finds all images there
            completes the manifest. By default what :func:`dmcmc_core.runs.ranks.current` tells.
        alone: whether to make everything here whatever the environment tells, waiting for another that does the same.
        pictures: whether pictures of the images are wanted afterwards: a model whose images make none is refused.
        watch: who looks on.

    Returns:
        The manifest. ``nfe_full`` counts all real rows per image, ``nfe_paper`` leaves out warm-up and final Tweedie; a
        window that several ranks walk through is counted once. ``sigmas`` (``times`` of a linear diffusion) is the grid
        from sigma_max; with chains it begins at the ``start_sigma`` of each image, which its shard tells.
        ``block_halved``: rows of a block, where the device had no memory for all.

    Raises:
        UserError: bad input (before anything is written), a folder that holds another run or that another process
            holds, a full disk, or values that are not finite, of which nothing stays if the first image has them.
    """
    nfe, num, seed, shard = map(native, (nfe, num, seed, shard))
    recipes.check_numbers(num, shard, seed, trial)
    ranks, out, sampler = _ranks(share, alone), Path(out), known_as(sampler)
    name, request = _resolved(model, sampler, settings, device)
    announce(request.model, pictures, say=ranks.leads and not trial)
    plan = request.plan(nfe, num)
    _say_of_plan(request, plan, nfe, num, say=ranks.leads and not trial)
    request.model = in_blocks(request.model, request.settings.get("block"))
    recipe = recipes.recipe(name, request, plan, recipes.asked(sampler, settings), nfe, seed, shard)
    posterior, chains = request.posterior(plan), Path(chains_dir or out / "chains")
    job = Job(request.model, plan, posterior, nfe, int(num), int(seed), out, chains, recipe, ranks, trial, watch)
    before = folder.earlier(out, recipe, job.num, say=ranks.leads)
    _check_same_plan(before, job)
    if before and folder.finished(out, job.num):
        return before  # before anything is written or held: it may be in use, or on a disk that is read only
    return _in_folder(job, before, alone, progress)


def _say_of_plan(request: Request, plan: Plan, nfe: float, num: int, say: bool) -> None:
    """Say what a plan does that nobody may have expected."""
    if say:
        say_start(request.model, plan, request.settings)
        say_unused(request, plan, nfe, num)


def _ranks(share: tuple[int, int] | None, alone: bool) -> Ranks:
    """Return which of the processes that share the run this one is."""
    if share is not None and current().world > 1:
        raise UserError("a share i/n is for runs that nobody splits already: leave it out where ranks share the run")
    return Ranks() if alone else current() if share is None else Ranks(*share)


def _resolved(
    model: str | Model | Request, sampler: str, settings: dict[str, Any] | None, device: str
) -> tuple[str, Request]:
    """Return the model's name, and the model with the settings as the sampler takes them."""
    request = model if isinstance(model, Request) else None
    if request is None and sampler not in LINEAR_SAMPLERS:
        split(sampler)  # a wrong name should not wait for the model
    named = model if request is None else request.model
    while isinstance(named, Narrowed | Centred | InFormat):
        named = named.denoiser
    name = named if isinstance(named, str) else getattr(named, "name", type(named).__name__)
    if request is None:
        model = checkpoints.load(model, device=device) if isinstance(model, str) else model
        check_model(model)
        request = Request(model, sampler, settings)
    check_range(request.model)
    return name, request


def _check_same_plan(before: dict[str, Any] | None, job: Job) -> None:
    """Raise UserError where more images would need another plan than those that are there."""
    record = job.plan.record()
    if before and any(before["plan"][name] != record[name] for name in ("chain", "levels")):
        raise UserError(
            f"{job.num} images at {job.nfe:g} NFE need other settings than the {before['num']} in {job.out}, as "
            "warm-up is shared out differently: fix levels by a setting, or choose another folder"
        )


def _in_folder(job: Job, before: dict[str, Any] | None, wait: bool, progress: bool) -> dict[str, Any]:
    """Hold the folder, make what is missing, and return the manifest at the end."""
    out, ranks = job.out, job.ranks
    with ExitStack() as stack:
        stack.enter_context(folder.disk_errors(out, job.num))
        if ranks.leads:
            rank, world = (ranks.rank, ranks.world) if ranks.store is None else (0, 1)
            stack.enter_context(folder.held(out, rank, world, wait=wait))
        else:
            ranks.barrier()
        existed = folder.in_use(out)
        try:
            manifest = _open(job, before)
            if ranks.leads:
                ranks.barrier()
            every = list(itertools.chain(*layout.layout_of(manifest)))
            done = folder.whole_shards(out, every, manifest["recipe"])
            _make_missing(job, manifest, done, progress)
        except UserError:
            if not existed and ranks.world == 1:
                folder.take_back(out)
            raise
        ranks.barrier()
        if ranks.leads:
            manifest = folder.close(out, manifest, every, done)
            _say_padding(job, manifest)
        ranks.barrier()
        return manifest if ranks.leads else folder.read_manifest(out)


def _open(job: Job, before: dict[str, Any] | None) -> dict[str, Any]:
    """Return the manifest of a run that begins or goes on, on disk, and settle in the plan what it settled."""
    leads, out = job.ranks.leads, job.out
    if folder.changed(out, before):  # by another process, before the folder was held
        before = folder.earlier(out, job.recipe, job.num, say=leads)
        _check_same_plan(before, job)
    if before is None:
        if isinstance(job.plan, IntegratorPlan) and job.plan.adapts and job.plan.options["tol"] is None:
            job.plan = with_tolerance(job.model, job.plan, job.nfe, job.num, job.posterior)
        about = {"plan": job.plan.record(), "dtype": getattr(job.model, "number_format", "float32")}
        manifest = job.recipe | about | job.plan.grid(job.model) | recipes.versions()
    else:
        job.plan = replace(job.plan, options=before["plan"]["options"])
        manifest = dict(before)
    record = job.plan.record()
    manifest["recipe"] = key([job.recipe["model_sha256"], job.seed, job.recipe["shard"], record])
    about = {"num": job.num, "shape": list(job.model.shape), "data_range": list(job.model.data_range)}
    encoder = encoder_of(job.model)
    manifest |= about | ({} if encoder is None else {"encoder": encoder}) | levels_of(job.model) | {"complete": False}
    if leads:
        if before is None:
            folder.check_strays(out, manifest["recipe"], job.num)
        if job.ranks.world == 1 or job.ranks.store is not None:
            folder.sweep(out)
        if manifest != before:
            folder.write_manifest(out, manifest)
    return manifest


def _make_missing(job: Job, manifest: dict[str, Any], done: dict[Shard, dict[str, Any]], progress: bool) -> None:
    """Make those shards that are this process's and not ``done`` yet, and enter them there."""
    if done:  # as it was for the images that are there
        halved = min(about["block"] for about in done.values())
        job.model = in_blocks(job.model, halved) if halved < job.plan.block else job.model
    mine = list(layout.dealt(layout.layout_of(manifest), job.ranks.rank, job.ranks.world))
    if len(done) < len(mine) and (told := gain(job.model, job.plan.block)):
        LOG.warning(told)
    hidden = not progress or job.ranks.rank > 0
    evaluations = lambda shards: round(job.nfe * sum(len(shard.images) for shard in shards))  # noqa: E731
    about_bar: dict[str, Any] = {"desc": job.plan.sampler, "disable": hidden, "mininterval": 1, "unit": " evaluations"}
    with tqdm(total=evaluations(mine), initial=evaluations(s for s in mine if s in done), **about_bar) as bar:
        asked = job.watch.around(job.model) if job.watch else job.model
        counted = count_nfe(asked, lambda rows: bar.update(max(0, min(rows, bar.total - bar.n))))
        begun = fingerprint(job.model)
        for shard, arrays, about in _shards(job, counted, [shard for shard in mine if shard not in done]):
            if fingerprint(job.model) != begun:
                raise UserError("the network's weights changed while it made images: sample from a copy that stays")
            about |= {"recipe": manifest["recipe"], "block": getattr(job.model, "block", job.plan.block)}
            done[shard] = folder.save(job.out, shard, arrays, about)
            bar.n = evaluations(s for s in mine if s in done)  # budgets are not always spent
            bar.refresh()


Made = tuple[Shard, dict[str, Any], dict[str, Any]]
"""A shard, its arrays, and the rows and seconds that they took."""


def _shards(job: Job, counted: CountNFE, missing: Sequence[Shard]) -> Iterator[Made]:
    """Yield the images of shards, by the kind of plan."""
    if isinstance(job.plan, ChainedPlan):
        for chains, group in itertools.groupby(missing, lambda shard: shard.group):
            yield from _from_chains(job, job.plan, counted, chains, list(group))
        return
    for shard in missing:
        measured, noise = Measured(job.plan, job.watch), Streams(job.seed, "image", shard.images)
        if isinstance(job.plan, LinearPlan):
            images = measured.linear(
                counted, gddim.prior(job.model, len(shard.images), noise, device_of(job.model)), noise
            )
        else:
            images = _from_noise(job, job.plan, counted, measured, noise)
        yield _made(job, shard, images, measured, {}, {"chains": 0, "warmup": 0}, 0.0)


def _from_noise(job: Job, plan: IntegratorPlan, counted: CountNFE, measured: Measured, noise: Streams) -> Tensor:
    """Return images from pure noise."""
    device, filtered = device_of(job.model), plan.integrator.preconditioned
    x = dmcmc.prior(counted, noise, len(noise.indices), plan.start, device, filtered)
    sigma = x.new_full((len(x),), counted.sigma_max)
    return measured(counted, x, plan.levels_from(counted, sigma), noise=noise)


def _from_chains(
    job: Job, plan: ChainedPlan, counted: CountNFE, chains: range, shards: Sequence[Shard]
) -> Iterator[Made]:
    """Yield the shards of a group of chains: those of Denoising MCMC."""
    where, device = windows.group_folder(job.model, plan, job.seed, chains, job.chains_dir), device_of(job.model)
    posterior, calibration = job.posterior, (0, 0.0)
    counted = of_images(counted, Streams(job.seed, "chain", chains))
    if plan.posterior == "residual":
        path = where.parent / "posterior.npz"
        posterior, *calibration = windows.calibrated(counted, plan, job.seed, path)
    measured, visits = Measured(plan, job.watch), windows.WindowFiles(where, counted, device)
    loop = dmcmc.denoising_mcmc(
        counted,
        posterior,
        measured,
        plan.levels or 2,
        plan.chain,
        seed=job.seed,
        share=Share(chains, (shard.windows for shard in shards), job.num, visits),
        schedule=lambda levels, sigma, end: plan.levels_from(counted, sigma),
        device=device,
    )
    for shard, (images, window, _) in zip(shards, loop, strict=False):
        rows, seconds = visits.cost(shard.windows)
        warmup = 0
        if shard.windows.start == 0:
            first = chains.start == 0
            if -1 not in visits:  # damaged, while the windows after it are whole
                rng = Streams(job.seed, "chain", chains)
                visits[-1] = None, dmcmc.warm_up(counted, posterior, plan.chain, rng, device)
            warmup, more = visits.cost(range(-1, 0))
            warmup, seconds = warmup + first * calibration[0], seconds + more + first * calibration[1]
        arrays = {"start_sigma": window.start.sigma}
        yield _made(job, shard, images, measured, arrays, {"chains": rows, "warmup": warmup}, seconds)


def _say_padding(job: Job, manifest: dict[str, Any]) -> None:
    """Say where blocks were filled with more than PADDED of what was asked for, and what costs less."""
    padding, rows = manifest.get("rows_of_padding", 0), sum(manifest.get("rows", {}).values())
    if not job.quiet and padding > PADDED * rows and job.num < job.plan.block:
        LOG.warning(
            f"{rows} rows of the network were of images, {padding} only filled its blocks of {job.plan.block}: "
            f"block={job.num} leaves them out, and changes last digits"
        )


def _say_clipped(job: Job, images: Tensor) -> None:
    """Say once where a fifth of all numbers would be clipped: the data range is then hardly that of the model."""
    share, (low, high) = outside(images, job.model.data_range, CLIPPED_BY), job.model.data_range
    if share > CLIPPED and not job.clipped:
        job.clipped = True
        LOG.warning(
            f"{share:.0%} of all numbers lie outside the data range {low:g} to {high:g}, and become its ends: the "
            "model was trained on another data_range, or the sampler overshoots and needs more levels"
        )


def _made(job, shard, images, measured, arrays, rows, seconds) -> Made:  # noqa: PLR0913
    """Return a shard with its arrays, and what it took."""
    final, padding = 0, getattr(job.model, "padding", [0])[0]
    padding, job.padding = padding - job.padding, padding
    if isinstance(job.plan, IntegratorPlan) and job.plan.tweedie is not None:
        final = job.plan.rows_per_image * len(images)
    rows |= {"integrator": measured.rows - final, "tweedie": final}
    if measured.labels is not None:
        arrays |= {"labels": measured.labels}
    _say_clipped(job, images)
    arrays = {"arr_0": to_uint8(images, job.model.data_range, job.plan.cast)} | arrays
    took = {"chains": seconds, "integrator": measured.seconds}
    return shard, arrays, {"rows": rows, "padding": padding, "seconds": took}
