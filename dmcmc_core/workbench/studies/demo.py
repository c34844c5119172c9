"""A first look at a model: chains on images and noise levels, paths from noise, and four samplers at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import data, dmcmc, integrators, load_model, metrics, schedules
from dmcmc_core.mcmc import ChainState
from dmcmc_core.report import plots
from dmcmc_core.report.tables import Spread, claim, grouped, in_words
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.model import Model, conditioned
from dmcmc_core.runs.plan import load_posterior, plan
from dmcmc_core.streams import Streams

Rows = list[dict[str, Any]]
DLG, ZERO, MEAN = "DLG + Heun", "Heun, zero mean", "Heun, data mean"
PICTURES = 25
"""Images of a sampler that are shown."""
WATCHED = {"chains": 16, "step": "sigma2", "eta": 0.3, "renoise": 0.5, "warmup_levels": 6, "warmup_steps": 0}
"""Settings of the chains that are watched: steps are small, so that one can follow them."""


class Opened(NamedTuple):
    """A model, and around which mean all begins: ``mean`` of the data where that is known, else ``zero``."""

    name: str
    model: Model
    start: str

    @property
    def card(self) -> str:
        """The facts of the model's card, on a line."""
        return ", ".join(f"{k}: {v}" for k, v in self.model.card.items() if isinstance(v, (str, int, float)))

    def __str__(self) -> str:
        net = self.model
        return f"{self.name}: images {net.shape} in {net.data_range}, noise levels {net.sigma_min} to {net.sigma_max}"


class Made(NamedTuple):
    """Rows of each sampler and seed, and first images of each sampler, (at most 25, C, H, W) in [0, 1]."""

    rows: Rows
    pictures: dict[str, Tensor]


def open_model(name: str, label: int, device: str, nfe: float, n: int, chain: Mapping[str, Any]) -> Opened:
    """Load a model and make sure that it can be shown, and that a budget pays for its chains, before the first image.

    Args:
        name: for :func:`dmcmc_core.load_model`.
        label: class of every image, below 0 for none.
        device: where it computes.
        nfe, n, chain: full NFE of an image, number of images, and settings of their chains.

    Raises:
        UserError: for latents, and channels that no figure shows.
        TooFew: for a budget that is too small.
    """
    net, _ = conditioned(load_model(name, device), {"label": label} if label >= 0 else {})
    plots.check_shown(net)
    start = "zero" if getattr(net, "mean", None) is None else "mean"
    plan(net, "dlg+heun", nfe, n, {"start": start, **chain})
    return Opened(name, net, start)


def reference_of(opened: Opened, reference: str, features: str, device: str) -> metrics.Reference | None:
    """Return what images are compared with, None where there is none of their shape, which is said."""
    shape = tuple(opened.model.shape)
    if reference and tuple(data.open_images(reference).shape[1:]) == shape:
        return metrics.make_reference(data.load_images(reference), features, reference, device=device)
    print(f"reference {reference!r} holds no images of this shape: samples are shown, no distance is measured")
    return None


@torch.no_grad()
def watch(opened: Opened, seed: int, steps: int = 60) -> list[ChainState]:
    """Return the states of chains, first of all that after their warm-up, and the next ones step by step."""
    net, settings = opened.model, dmcmc.ChainSettings(start=opened.start, **WATCHED)
    rng = Streams(seed, "chain", range(settings.chains))
    posterior = load_posterior(net, plan(net, "dlg+heun", 1000, 16, WATCHED))
    posterior = posterior or dmcmc.calibrated(net, settings, seed)
    first = dmcmc.warm_up(net, posterior, settings, rng)
    step = dmcmc.kernel(net, posterior, settings, settings.eta)
    rng.state = first.drawn
    states = [first.state]
    for _ in range(steps):
        states.append(step(states[-1], rng)[0])
    return states


class Seen(NamedTuple):
    """Some states of two chains, each above what it becomes: images and levels (4, states, ...), labels, rows."""

    images: Tensor
    sigmas: Tensor
    labels: list[str]
    rows: Rows


@torch.no_grad()
def see(opened: Opened, states: Sequence[ChainState], seed: int, count: int = 8) -> Seen:
    """Denoise ``count`` of the states by Heun's method on eight levels, and put two chains above each other."""
    some = states[:: len(states) // count][:count]
    heun, chains = integrators.INTEGRATORS["heun"], range(len(states[0].sigma))
    denoised = [dmcmc.denoise(opened.model, s, heun, 8, Streams(seed, "demo", chains)) for s in some]
    images, sigmas, labels = [], [], []
    for c in (0, 1):
        images += [torch.stack([s.x[c] for s in some]), torch.stack([x[c] for x in denoised])]
        sigmas += 2 * [torch.stack([s.sigma[c] for s in some])]
        labels += [f"chain {c}", "denoised"]
    rows = [{"chain": c, "state": i, "sigma": float(s.sigma[c])} for c in (0, 1) for i, s in enumerate(some)]
    return Seen(torch.stack(images), torch.stack(sigmas), labels, rows)


def levels_of(states: Sequence[ChainState], chains: int = 8) -> tuple[Tensor, Rows]:
    """Return the noise levels of chains along their steps, (steps, chains), and a row for each."""
    sigmas = torch.stack([s.sigma for s in states])[:, :chains]
    return sigmas, [
        {"step": t, "chain": c, "sigma": float(sigma)} for t, each in enumerate(sigmas) for c, sigma in enumerate(each)
    ]


@torch.no_grad()
def trajectory(opened: Opened, integrator: str, levels: int, seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """Return states on the way from noise to 0, (count, levels + 1, C, H, W), and their noise levels."""
    net, entry = opened.model, integrators.INTEGRATORS[integrator]
    noise = Streams(seed, "image", range(count))
    x = dmcmc.prior(net, noise, count, opened.start)
    grid = schedules.SCHEDULES[entry.schedule](levels, net.sigma_max, net.sigma_min)
    seen = [(float(grid[0]), x)]
    entry(net, x, grid, noise=noise, callback=lambda i, steps, sigma, y: seen.append((float(sigma), y)))
    return torch.stack([y for _, y in seen], 1), torch.tensor([s for s, _ in seen])


def samplers(start: str, chain: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the samplers that are compared: label -> name and settings."""
    where = f"{'data' if start == 'mean' else 'zero'} mean"
    return {
        ZERO: ("heun", {"start": "zero"}),
        f"Heun, {where}": ("heun", {"start": start}),
        DLG: ("dlg+heun", {"start": start, **chain}),
        f"DPM-Solver++(2M), {where}": ("dpmpp_2m", {"start": start}),
    }


def sample(
    opened: Opened,
    some: Mapping[str, tuple[str, dict[str, Any]]],
    nfe: float,
    n: int,
    seeds: Sequence[int],
    reference: metrics.Reference | None,
    cache_dir: str | Path,
) -> Made:
    """Sample n images of each seed by each of :func:`samplers` at a budget, and measure them where there is by what."""
    net, made = opened.model, Made([], {})
    low, high = net.data_range
    for label, (sampler, settings) in some.items():
        for seed in seeds:
            samples = cached(net, sampler, nfe, n, seed, settings, cache_dir)
            images, manifest = (samples.images - low) / (high - low), samples.manifest
            measured = metrics.measure(images, reference) if reference else {"n": len(images)}
            cost = {"nfe": manifest["nfe_full"], "nfe_paper": manifest["nfe_paper"], "budget": nfe}
            how = {"bed": opened.name, "sampler": sampler, "settings": settings}
            how |= {"seconds": manifest.get("seconds", {})}
            made.rows.append({"method": label, "seed": seed} | how | cost | measured)
            made.pictures.setdefault(label, images[:PICTURES])
    return made


def shown(rows: Rows) -> Rows:
    """Return what the figure of samples has of each row."""
    keys = [key for key in ("method", "seed", "nfe", "frechet") if key in rows[0]]
    return [{key: row[key] for key in keys} for row in rows]


def table(rows: Rows, distance: str) -> tuple[Rows, dict[str, str]]:
    """Return a row for each sampler, with mean and spread over seeds, and the headings."""
    heads = {"nfe": "NFE, full", "frechet": distance, "kid": "KID", "precision": "precision", "recall": "recall"}
    heads = {key: head for key, head in heads.items() if key in rows[0]}
    means = grouped(rows, heads, ("method",))
    return [{"sampler": m, **row} for (m,), row in means.items()], {"sampler": "sampler"} | heads


def claims(rows: Rows, where: str) -> list[dict[str, Any]]:
    """Return the claims that DLG + Heun is better than Heun from either start, where that was measured."""
    far: dict[str, Spread] = {m: row["frechet"] for (m,), row in grouped(rows, ["frechet"], ("method",)).items()}
    made = []
    for label, start in ((ZERO, "around 0"), (MEAN, "around the data's mean")):
        if label not in far:
            continue
        dlg, other = far[DLG], far[label]
        better, paper = dlg.mean < other.mean, label == ZERO
        made.append(
            claim(
                f"{DLG} is better than Heun started {start}",
                better,
                f"{in_words(dlg)} against {in_words(other)} ({where})",
                "2.63 against 4.46 (CIFAR-10 FID, about 20 against 25 NFE)" if paper else None,
                "arXiv 2209.14593 v1, Figure 3, read off the figure" if paper else None,
                "" if better else "DistanceAgainstNFE.ipynb looks into it for every integrator and budget",
            )
        )
    return made
