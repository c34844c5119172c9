"""What chains are worth: traces, autocorrelation, effective sample size, changes of class, coverage of the classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.report.tables import Spread, spread_of
from dmcmc_core.workbench.studies.mixing import KERNELS, RESTARTS, Bed, Plan, Run

STATISTICS = ("class", "brightness", "log sigma")
DRAWS = 200
"""Repetitions of as many independent draws."""
Runs = Mapping[tuple[str, str], Run]
"""By test-bed and kernel."""


class Covered(NamedTuple):
    """At the end of the chains: distance to the class weights, records, and that of as many independent draws."""

    distance: Spread
    n: int
    independent: float
    bound: float
    """95 % of independent draws are below it."""


def traces(bed: Bed, runs: Runs, plan: Plan) -> tuple[dict[str, tuple], list[dict[str, Any]]]:
    """Return what :func:`dmcmc_core.report.plots.class_traces` draws of four chains of each kernel, and its rows."""
    shown = range(0, plan.chains, max(1, plan.chains // 4))[:4]
    of = {kernel: runs[bed.name, kernel] for kernel in bed.kernels}
    drawn = {kernel: (one.calls, one.sigmas[:, shown], one.labels[:, shown]) for kernel, one in of.items()}
    rows = [
        {"kernel": kernel, "chain": c, "calls": t} | {"sigma": float(one.sigmas[i, c]), "class": int(one.labels[i, c])}
        for kernel, one in of.items()
        for c in shown
        for i, t in enumerate(one.calls)
    ]
    return drawn, rows


def centred(bed: Bed, run: Run) -> dict[str, tuple[Tensor, float]]:
    """Return each statistic (records, chains, k) less its exact mean, and its exact variance summed over k."""
    onehot = torch.nn.functional.one_hot(run.labels, len(bed.weights)).double()
    light = bed.images.flatten(1).mean(1).double()
    return {
        "class": (onehot - bed.weights, float((bed.weights * (1 - bed.weights)).sum())),
        "brightness": ((run.bright.double() - light.mean())[..., None], float(light.var(correction=0))),
        "log sigma": ((run.sigmas.double().log() - bed.span.mean())[..., None], float(bed.span.var(correction=0))),
    }


def autocorrelation(beds: Mapping[str, Bed], runs: Runs, group: int) -> list[dict[str, Any]]:
    """Return curves against the lag in network calls, with the mean and variance of the joint distribution itself."""
    rows = []
    for (name, kernel), one in runs.items():
        for statistic, (f, variance) in () if kernel == RESTARTS else centred(beds[name], one).items():
            total = len(f)
            for lag in range(total // 2 + 1):
                product = (f[: total - lag] * f[lag:]).sum(-1)  # (records - lag, chains)
                value = spread_of([p.mean() / variance for p in product.split(group, 1)])
                rows.append({"panel": f"{name}: {statistic}", "arm": kernel, "x": one.calls[lag], "y": value})
    return in_order(rows)


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows by kernel, so that each has the same colour in every figure."""
    return sorted(rows, key=lambda row: KERNELS.index(row["arm"]))


def worth(bed: Bed, run: Run, group: int) -> dict[str, list[float]]:
    """Return by statistic how many independent draws a chain is worth, group by group.

    As many as would miss the exact mean by as much: the variance over the mean square of (mean of a chain - exact
    mean). A chain that never moves is worth 1, its exact beginning, which is left out as it is no merit of the kernel.
    """
    return {
        statistic: [float(variance / p.mean(0).square().sum(-1).mean()) for p in f[1:].split(group, 1)]
        for statistic, (f, variance) in centred(bed, run).items()
    }


def table(
    beds: Mapping[str, Bed], runs: Runs, plan: Plan
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each test-bed and kernel, and one for each of their groups, for ``results.csv``."""
    made, measured = {}, []
    for (name, kernel), one in runs.items():
        found = worth(beds[name], one, plan.group)
        row = {"bed": name, "kernel": kernel, "cost": one.cost, "calls": one.nfe, "acceptance": one.acceptance}
        row |= {statistic: spread_of(values) for statistic, values in found.items()}
        gained = [100 * (w - int(kernel != RESTARTS)) / one.nfe for w in found["class"]]  # a restart pays for all
        row |= {"gain": spread_of(gained)} | ({} if kernel == RESTARTS else _whereabouts(beds[name], one, plan.group))
        made[name, kernel] = row | {"interval": one.calls[1]}
        about = {"bed": name, "method": kernel, "nfe": one.nfe, "n": plan.group}
        about |= {"settings": None if kernel == RESTARTS else plan.given(kernel)}
        measured += [
            about | {"seed": g} | {f"worth, {statistic}": values[g] for statistic, values in found.items()}
            for g in range(plan.groups)
        ]
    return made, measured


def _whereabouts(bed: Bed, run: Run, group: int) -> dict[str, Any]:
    """Return where chains change class, and at which noise levels they are: low is below the middle of log sigma."""
    middle = math.exp(float(bed.span.mean()))
    changed, low = run.labels[1:] != run.labels[:-1], run.sigmas < middle
    made: dict[str, Any] = {}
    for part, where in (("low", low[:-1]), ("high", ~low[:-1])):
        parts = zip(changed.split(group, 1), where.split(group, 1), strict=True)
        made[part] = spread_of([(c & w).sum() / w.sum().clamp(min=1) for c, w in parts])
    made["never"] = spread_of([(p == p[0]).all(0).double().mean() for p in run.labels.split(group, 1)])
    made["drift"] = spread_of([p[1:].double().mean() - p[0].double().mean() for p in low.split(group, 1)])
    made["records low"] = spread_of([p.double().mean() for p in low[1:].split(group, 1)])
    ends = run.sigmas[1:].quantile(0.1), run.sigmas[1:].quantile(0.9)
    return made | {"middle 80 %": f"{ends[0]:.3g} to {ends[1]:.3g}"}


HEADS = {
    "bed": "test-bed",
    "kernel": "kernel",
    "cost": "calls per step",
    "calls": "calls per chain",
    "acceptance": "acceptance",
    **{statistic: f"worth of a chain: {statistic}" for statistic in STATISTICS},
    "gain": "class: draws gained per 100 calls",
    "never": "chains that never change class",
    "interval": "calls per record",
    "low": "class changes per record, low σ",
    "high": "the same, high σ",
    "records low": "share at low σ",
    "middle 80 %": "σ, middle 80 %",
}
"""Columns of that table: key -> heading."""


def coverage(
    beds: Mapping[str, Bed], runs: Runs, plan: Plan
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Covered]]:
    """Return curves of the distance between classes seen so far and their weights, and where each ends.

    All records of a group count together; as many independent draws are the curves ``expected``.
    """
    rows, last, known = [], {}, {}
    for (name, kernel), one in runs.items():
        weights = beds[name].weights
        for until in range(1, len(one.calls)):
            parts, n = one.labels[1 : until + 1].split(plan.group, 1), until * plan.group
            value = spread_of([total_variation(part.flatten(), weights) for part in parts])
            if (name, n) not in known:  # the same for every kernel of a bed
                known[name, n] = independent(weights, n, plan.seed)
            row = {"panel": name, "arm": kernel, "x": one.calls[until], "y": value}
            mean, bound = float(np.mean(known[name, n])), float(np.quantile(known[name, n], 0.95))
            rows += [row, row | {"y": mean, "expected": True}]
            last[name, kernel] = Covered(value, n, mean, bound)
    return in_order(rows), last


def total_variation(labels: Tensor, weights: Tensor) -> float:
    """Return the total variation between the shares of classes (n,) and their weights (classes,)."""
    counts = torch.bincount(labels, minlength=len(weights)).double()
    return float((counts / counts.sum() - weights).abs().sum() / 2)


def independent(weights: Tensor, n: int, seed: int) -> Sequence[float]:
    """Return that distance of n independent draws, DRAWS times."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(weights, DRAWS * n, True, generator=generator).reshape(DRAWS, n)
    return [total_variation(row, weights) for row in draws]


def caption(plan: Plan) -> str:
    """Return what stands above the table."""
    return (
        f"{plan.chains} chains, spread over {plan.groups} groups of {plan.group}. Worth: independent draws that are as "
        "near to the exact mean; 1 for a chain that never moves. Low and high σ: below and above the middle of log σ. "
        f"Step sizes of the adapted kernel took {plan.adapt_calls} calls per chain before, not counted."
    )
