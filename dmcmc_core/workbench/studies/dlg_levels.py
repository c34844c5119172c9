"""Why the noise level of unadjusted chains climbs.

Where the denoised image D does not change, an unadjusted step e takes x - D to (1 - e / 2 sigma²)(x - D) + sqrt(e) z:
the noise variance grows by the factor 1 + (e / sigma²)² / 4, and sigma drawn anew from x sees it. A Metropolis test
removes that bias; chains with one are the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import dmcmc
from dmcmc_core.report.tables import spread_of
from dmcmc_core.report.testbed import Testbed
from dmcmc_core.runs.plan import load_posterior, plan
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.exact_models import exact_model

PUBLISHED = (1.41, 1.68, 1.79, 2.03)
"""Noise levels of consecutive states in the paper's Figure 1 (b), on CelebA-HQ-256."""
PUBLISHED_ETA = 0.8
"""The constant step that ships for CelebA-HQ."""


def label(kernel: Mapping[str, Any]) -> str:
    """Return what a kernel is called."""
    return f"{kernel['kernel']}, {kernel['step']}, eta {kernel['eta']:g}"


def expected(kernel: Mapping[str, Any], sigma: Tensor, steps: int) -> Tensor:
    """Return the levels (steps + 1,) to which the bias of an unadjusted step takes ``sigma``.

    sigma_k = (sigma_0⁴ + e² k / 2)^(1/4) of a constant step e, sigma_0 (1 + eta² / 4)^(k/2) of e = eta sigma².
    """
    k = torch.arange(steps + 1, dtype=torch.float64)
    if kernel["step"] == "constant":
        return (sigma**4 + kernel["eta"] ** 2 * k / 2) ** 0.25
    return sigma * (1 + kernel["eta"] ** 2 / 4) ** (k / 2)


def steps_of_bias(levels: Sequence[float] = PUBLISHED, eta: float = PUBLISHED_ETA) -> list[float]:
    """Return how many steps of the bias of a constant ``eta`` lie between consecutive levels."""
    return (np.diff(np.array(levels) ** 4) / (eta**2 / 2)).tolist()


@torch.no_grad()
def follow(
    bed: Testbed, settings: Mapping[str, Any], groups: int, group: int, steps: int, seed: int
) -> tuple[Tensor, float]:
    """Walk chains that begin at one level; return their levels (steps + 1, groups, group) and the mean acceptance.

    Args:
        bed: of the model; a test of acceptance needs a density, for which the ideal denoiser stands in for a network.
        settings: of the chains.
        groups, group: chains, which are independent, by group.
        steps: of each chain.
        seed: of the noise.
    """
    adjusted = settings["kernel"] != "langevin" and not hasattr(bed.model, "log_prob")
    model = exact_model(bed) if adjusted else bed.model
    own = dict(settings) | {"chains": group * groups, "warmup_steps": 0}
    known = plan(model, "dlg+heun", 1000, group * groups, own)
    posterior, rng = load_posterior(model, known), Streams(seed, "levels", range(group * groups))
    state = dmcmc.warm_up(model, posterior, known.chain, rng).state
    step, seen, accepted = dmcmc.kernel(model, posterior, known.chain, settings["eta"]), [state.sigma], []
    for _ in range(steps):
        state, info = step(state, rng)
        seen.append(state.sigma)
        accepted.append(info.acceptance.mean().item())
    return torch.stack(seen).double().reshape(steps + 1, groups, group), sum(accepted) / steps


def climb(
    name: str, kernel: Mapping[str, Any], levels: Tensor, acceptance: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the curve of a kernel, measured and expected of the bias, and its row of the table.

    Args:
        name: of the test-bed.
        kernel: ``kernel``, ``step`` and ``eta``.
        levels: (steps + 1, groups, group), as :func:`follow` returns them.
        acceptance: mean acceptance.
    """
    average, steps = levels.log().mean(-1).exp(), len(levels) - 1  # (steps + 1, groups)
    predicted = expected(kernel, average[0].mean(), steps)
    adjusted = kernel["kernel"] != "langevin"
    curve = []
    for t in range(steps + 1):
        point = {"panel": name, "arm": label(kernel), "x": t}
        curve.append(point | {"y": spread_of(average[t].tolist())})
        if not adjusted:
            curve.append(point | {"y": float(predicted[t]), "expected": True})
    rise = (average[-1] ** 4 - average[0] ** 4) / (predicted[-1] ** 4 - predicted[0] ** 4)
    row = {"bed": name, "kernel": label(kernel), "adjusted": adjusted, "step": kernel["step"]}
    row |= {"acceptance": acceptance if adjusted else None}
    row |= {"first": spread_of(average[0].tolist()), "last": spread_of(average[-1].tolist())}
    row |= {"expected": float(predicted[-1]), "rise": spread_of(rise.tolist())}
    return curve, row | {"scatter": levels.log().diff(dim=0).std().item()}


def caption(groups: int, group: int) -> str:
    """Return what stands above the table of kernels."""
    return (
        f"Noise levels of {group * groups} chains, spread over {groups} groups of {group}; σ is their geometric mean. "
        "For adjusted kernels, the expected is what the unadjusted one of the same step would do. Adjusted kernels on "
        "a network's test-bed run on the ideal denoiser of its training images."
    )
