"""The study of score embedding: the method, what it is compared with, and the controls that tell the two apart.

All arms train on the same pictures, with the same first weights, streams and batch for a seed; what a row tells is the
optimiser step, so that no machine decides. Na, Gao & Wan 2024 (arXiv 2404.06661), Tables 1 to 3.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dmcmc_core.checkpoints.configurations import read_mapping
from dmcmc_core.errors import unknown
from dmcmc_core.files import key
from dmcmc_core.metrics.similarity import crossings
from dmcmc_core.report.tables import Spread, claim
from dmcmc_core.training.config import make_config
from dmcmc_core.training.kinds import KINDS
from dmcmc_core.training.loop import threads
from dmcmc_core.training.profile import read_profile

LEVELS = (0.90, 0.95, 0.98, 0.99)
"""Structural similarities whose crossing is told, those of the published reports."""
METHOD, PLAIN = "embedding", "no embedding"
CODE = ("score_embedding", "data", "nets", "metrics", "training")
"""Folders whose modules decide what a training leaves, beside the core's own files."""


class Arm(NamedTuple):
    """A kind of training and its config, all but the seed."""

    kind: str
    config: dict[str, Any]


def configs(
    folder: str | Path,
    method: str,
    baselines: Mapping[str, str],
    change: Mapping[str, Any],
    change_baselines: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the configs of the method and of its baselines, DDPM and DDIM, from files of a folder, with changes."""
    names = [method, baselines["ddpm"], baselines["ddim"]]
    own, *compared = (read_mapping(Path(folder) / f"{name}.yaml", f"the config {name}") for name in names)
    return [own | change, *(config | change | change_baselines for config in compared)]


def arms(
    method: Mapping[str, Any],
    ddpm: Mapping[str, Any],
    ddim: Mapping[str, Any],
    lengths: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Arm]:
    """Return the arms of the study by name, from the configs of the method and of its two baselines.

    ``lengths``: arm -> other ``steps`` and ``profile_steps``, as those that learn slowly need more.

    Controls change one thing: the equation, the shift, the embedding itself; the rate of either side, which is learning
    rate, warm-up and clipping together; whether weights are averaged. ``no embedding`` is denoising score matching of
    the same diffusion, loss and network.
    """
    rates = [make_config(kind, dict(base)) for kind, base in (("embedded", method), ("ddpm", ddpm))]
    rate, slow = ({name: getattr(config, name) for name in ("lr", "warmup", "clip")} for config in rates)
    changes: dict[str, tuple[str, Mapping[str, Any], dict[str, Any]]] = {
        METHOD: ("embedded", method, {}),
        "consistent equation": ("embedded", method, {"mode": "consistent"}),
        "random shift": ("embedded", method, {"mode": "random"}),
        PLAIN: ("embedded", method, {"mode": "none"}),
        "embedding, rate of DDPM": ("embedded", method, slow),
        "DDPM": ("ddpm", ddpm, {}),
        "DDPM, rate of the method": ("ddpm", ddpm, rate),
        "DDPM, rate of the method, raw weights": ("ddpm", ddpm, rate | {"ema": 0.0}),
        "DDIM": ("ddim", ddim, {}),
        "DDIM, rate of the method": ("ddim", ddim, rate),
    }
    for name in lengths or {}:
        if name not in changes:
            raise unknown("arm", name, changes)
    lengths = lengths or {}
    return {n: Arm(kind, {**base, **change, **lengths.get(n, {})}) for n, (kind, base, change) in changes.items()}


def profiles(chosen: Mapping[str, Arm], seeds: Collection[int], cache_dir: str | Path) -> list[dict[str, Any]]:
    """Train each arm with each seed, or take what an earlier run left; return the rows of all profiles.

    A training has few threads, a part of its recipe: as many run at a time as this process has threads for.
    """
    missing = [
        (a, seed, Path(cache_dir)) for seed in seeds for a in chosen.values() if not _is_trained(a, seed, cache_dir)
    ]
    at_once = min(len(missing), torch.get_num_threads() // max(a.config.get("threads", 1) for a in chosen.values()))
    if at_once > 1:
        with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
            list(pool.map(_trained, *zip(*missing, strict=True)))
    rows = []
    for seed in seeds:
        for name, arm in chosen.items():
            stem = _trained(arm, seed, Path(cache_dir))
            rows += [{"arm": name, "seed": seed, **row} for row in read_profile(f"{stem}.profile.csv")]
    return rows


def strips(chosen: Mapping[str, Arm], seed: int, cache_dir: str | Path) -> dict[str, Tensor]:
    """Return how the last sample of the first picture formed in each arm, (frames, C, H, H), each frame from 0 to 1."""
    found = {}
    for name, arm in chosen.items():
        with np.load(f"{_trained(arm, seed, Path(cache_dir))}.samples.npz") as arrays:
            frames = torch.from_numpy(arrays["frames"][:, 0])
        low, high = (getattr(frames, end)((1, 2, 3), keepdim=True) for end in ("amin", "amax"))
        found[name] = (frames - low) / (high - low)
    return found


def _trained(arm: Arm, seed: int, cache_dir: Path) -> Path:
    """Return the files of a training, without their endings; it is made once for the same config and code."""
    config, stem = _place(arm, seed, cache_dir)
    if not _is_trained(arm, seed, cache_dir):
        with threads(config.threads):
            KINDS[arm.kind](config, stem.parent, progress=False, profile=True)
    return stem


def _place(arm: Arm, seed: int, cache_dir: str | Path) -> tuple[Any, Path]:
    """Return the config of a training and where its files lie, without their endings."""
    given = arm.config | {"seed": seed}
    config = make_config(arm.kind, given)
    return config, Path(cache_dir) / "training" / key([arm.kind, given, code()]) / config.name


def _is_trained(arm: Arm, seed: int, cache_dir: str | Path) -> bool:
    config, stem = _place(arm, seed, cache_dir)
    return stem.with_name(f"{config.name}.safetensors").is_file()


def code() -> str:
    """Return a hash of the modules that decide what a training leaves, and of torch's version."""
    package, digest = Path(__file__).parents[2], hashlib.sha256(torch.__version__.encode())
    for path in sorted([*package.glob("*.py"), *(p for room in CODE for p in (package / room).rglob("*.py"))]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def crossing_rows(rows: Sequence[Mapping[str, Any]], levels: Sequence[float] = LEVELS) -> list[dict[str, Any]]:
    """Return where each training crosses each level: a row per arm, seed and level.

    ``first`` and ``sustained``: optimiser steps, NaN where it does not; ``train_seconds`` and ``with_solve`` at the
    first, without and with the time of the field; ``mse`` there; ``last``: the similarity at the end.
    """
    found = []
    for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
        x, y = [row["step"] for row in own], [row["ssim"] for row in own]
        for level in levels:
            at = crossings(x, y, level)
            seconds = crossings([row["train_seconds"] for row in own], y, level).first
            found.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "level": level,
                    "first": _number(at.first),
                    "sustained": _number(at.sustained),
                    "train_seconds": _number(seconds),
                    "with_solve": _number(seconds) + own[0]["solve_seconds"],
                    "mse": _between(x, [row["mse"] for row in own], at.first),
                    "last": y[-1],
                    "steps": x[-1],
                }
            )
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _between(x: Sequence[float], y: Sequence[float], at: float | None) -> float:
    if at is None:
        return math.nan
    i = next(i for i, value in enumerate(x) if value >= at)
    return y[i] if i == 0 else y[i - 1] + (at - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])


def crossing_table(found: Sequence[Mapping[str, Any]], level: float) -> list[dict[str, Any]]:
    """Return a row per arm at one level: how many seeds crossed it, where on average, and against ``no embedding``.

    ``difference``: mean of the paired differences of the first crossing to ``no embedding``, over the seeds in which
    both crossed, and ``p`` of a paired t test, where there are at least two such seeds that differ.
    """
    table, plain = [], _steps(found, PLAIN, level)
    for arm in dict.fromkeys(row["arm"] for row in found):
        own = [row for row in found if row["arm"] == arm and row["level"] == level]
        steps = _steps(found, arm, level)
        both = [(steps[s], plain[s]) for s in steps if s in plain] if arm != PLAIN else []
        gaps = [a - b for a, b in both]
        table.append(
            {
                "arm": arm,
                "crossed": f"{len(steps)} of {len(own)}",
                "first": _spread([row["first"] for row in own]),
                "sustained": _spread([row["sustained"] for row in own]),
                "mse": _spread([row["mse"] for row in own]),
                "train_seconds": _spread([row["train_seconds"] for row in own]),
                "with_solve": _spread([row["with_solve"] for row in own]),
                "difference": _spread(gaps),
                "p": stats.ttest_rel(*zip(*both, strict=True)).pvalue if len(set(gaps)) > 1 else None,
                "last": _spread([row["last"] for row in own]),
            }
        )
    return table


def other_pictures(
    name: str, other: Mapping[str, Any], folder: str | Path, seeds: Sequence[int], cache_dir: str | Path
) -> list[dict[str, Any]]:
    """Return rows of :func:`crossing_table` at the first two levels, of arms that train on other pictures.

    Args:
        name: of the pictures.
        other: ``method``, ``baselines`` and ``arms``; ``change``, ``lengths`` and ``n_seeds`` where they are others.
        folder, seeds, cache_dir: as of :func:`configs` and :func:`profiles`.
    """
    every = arms(
        *configs(folder, other["method"], other["baselines"], other.get("change", {}), {}), other.get("lengths")
    )
    rows = profiles({arm: every[arm] for arm in other["arms"]}, seeds[: other.get("n_seeds", len(seeds))], cache_dir)
    found = crossing_rows(rows)
    return [{"pictures": name, "level": at, **row} for at in LEVELS[:2] for row in crossing_table(found, at)]


def _steps(found: Sequence[Mapping[str, Any]], arm: str, level: float) -> dict[int, float]:
    """Return the first crossing of each seed in which there is one."""
    own = (row for row in found if row["arm"] == arm and row["level"] == level)
    return {row["seed"]: row["first"] for row in own if not math.isnan(row["first"])}


def _spread(values: Iterable[float]) -> Spread | None:
    """Return mean and spread of those values that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return None
    one = torch.tensor(numbers, dtype=torch.float64)
    return Spread(one.mean().item(), one.std().item() if len(numbers) > 1 else 0.0, len(numbers))


RATE = "DDPM, rate of the method"
CLAIMS = (
    (
        "the method reaches SSIM {} in fewer steps than DDPM as published",
        "DDPM",
        METHOD,
        "rate, warm-up, loss, diffusion and averaging differ as well",
    ),
    (
        "DDPM reaches SSIM {} in fewer steps at the rate of the method, without warm-up",
        "DDPM",
        RATE,
        "learning rate, warm-up and clipping of the method; nothing else changes",
    ),
    (
        "the method reaches SSIM {} in fewer steps than DDPM at the same rate",
        RATE,
        METHOD,
        "loss, diffusion, sampler and averaging still differ",
    ),
    (
        "without the embedding training reaches SSIM {} in fewer steps than DDPM at the same rate",
        RATE,
        PLAIN,
        "what is left of the speed-up when the embedding is taken away",
    ),
    ("the embedding itself makes it faster: fewer steps to SSIM {} than without it", PLAIN, METHOD, ""),
    (
        "its direction matters: fewer steps to SSIM {} than with a random shift of the same size",
        "random shift",
        METHOD,
        "all else equal",
    ),
)
"""What is claimed, of which slower and which faster arm, and what to know of it."""


def claims(found: Sequence[Mapping[str, Any]], level: float, where: str) -> list[dict[str, Any]]:
    """Return what the paper claims, and what its controls say, at one level of similarity, of the arms that ran."""
    steps, made = {row["arm"]: row for row in crossing_table(found, level)}, []
    shifts = "all else equal"
    for arm, said in (
        ("random shift", "a random shift of that size"),
        ("consistent equation", "the equation as written"),
    ):
        if arm in steps:
            shifts += f"; {said} {_said(steps[arm])}"
    for text, slow, fast, note in CLAIMS:
        if {slow, fast} <= steps.keys():
            published: dict[str, Any] = {}
            if (slow, fast) == ("DDPM", METHOD):
                source = "arXiv 2404.06661, Table 1; CIFAR-10, SSIM 0.95, seconds on one GPU, single runs"
                published = {"published": 13.44, "source": source}
            holds, here = _fewer(found, slow, fast, level)
            made.append(claim(text.format(f"{level:g}"), holds, f"{here} ({where})", note=note or shifts, **published))
    return made


def _fewer(found: Sequence[Mapping[str, Any]], slow: str, fast: str, level: float) -> tuple[bool, str]:
    """Tell whether one arm crosses in fewer steps than the other, and in words by how much.

    A seed of the slow arm that never crosses counts with all the steps it had: fewer than it would have needed.
    """
    a, b = _steps(found, fast, level), _steps(found, slow, level)
    had = {row["seed"]: row["steps"] for row in found if row["arm"] == slow}
    both = sorted(set(a) & set(had))
    slower = [b.get(s, had[s]) for s in both]
    ratio = _spread([y / a[s] for s, y in zip(both, slower, strict=True)])
    p = stats.ttest_rel([a[s] for s in both], slower).pvalue if len(both) > 1 else math.nan
    least = "at least " if len(b) < len(had) else ""
    here = f"{len(both)} seeds to compare" if ratio is None else f"{least}{ratio.mean:.2f} times, p = {p:.2g}"
    here += f"; {slow} crossed in {len(b)}, {fast} in {len(a)} of {len(_all(found, fast))}"
    return len(a) == len(_all(found, fast)) and ratio is not None and ratio.mean > 1 and bool(p < 0.05), here


def _all(found: Sequence[Mapping[str, Any]], arm: str) -> set[int]:
    return {row["seed"] for row in found if row["arm"] == arm}


def _said(row: Mapping[str, Any]) -> str:
    first = row["first"]
    return f"takes {first.mean:.0f} ± {first.spread:.0f} steps" if first else "did not reach it"


ENTRY = re.compile(r"(\d) pictures?, SSIM (0\.\d+), (method|DDPM|DDIM)$")
"""How the manifest says of which run a published number is."""


def beside_published(
    entries: Iterable[tuple[str, Any, str]], found: Sequence[Mapping[str, Any]], pictures: int
) -> list[dict[str, Any]]:
    """Return published numbers beside the steps found here at the same level, of as many pictures and the same method.

    ``entries``: what of which run, the number and its source.
    """
    rows = []
    for what, value, source in entries:
        known = ENTRY.search(what)
        steps = None
        if known and int(known[1]) == pictures:
            arm = METHOD if known[3] == "method" else known[3]
            own = [row["first"] for row in found if row["arm"] == arm and row["level"] == float(known[2])]
            steps = (_spread(own) or "not reached") if own else None
        rows.append({"what": what, "published": value, "here": steps, "source": source})
    return rows
