"""What Figure 1 and the conceptual diagram of Denoising MCMC say, held against what was measured of them.

A difference of distances counts where Welch's t test over the seeds puts it below 5 %. A rise of noise levels counts as
that of the bias from 0.8 to 1.25 of it, and as none below 0.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dmcmc_core.report.tables import Spread, claim, compare, in_words
from dmcmc_core.workbench.studies.dlg_diagram import ABOVE, CHANGES, LENGTH, LOWEST, OTHERS_ABOVE, STILL, WAY, Line
from dmcmc_core.workbench.studies.dlg_levels import PUBLISHED, PUBLISHED_ETA, steps_of_bias
from dmcmc_core.workbench.studies.dlg_starts import CONSTANT, DLG, MEAN, ZERO, Case

PAPER = "arXiv 2209.14593 v1"
NEARLY_ALL = 0.99
LEAST, MOST, NONE = 0.8, 1.25, 0.1
"""Rise of sigma⁴ as a share of what the bias adds: as much from LEAST to MOST, none below NONE."""


def of_line(line: Line, quantities: Mapping[str, Spread], shares: Sequence[Spread], where: str) -> list[dict[str, Any]]:
    """Return the claims on the diagram.

    Args:
        line: what was walked.
        quantities: of :func:`.dlg_diagram.over_seeds`.
        shares: visits by mode, of :func:`.dlg_diagram.visited`.
        where: chains, steps and seeds.
    """
    above, weights = quantities[ABOVE], line.shares.tolist()
    ways = {
        unit: (quantities[f"{what} from chains"], quantities[f"{what} from noise"])
        for what, unit in ((LENGTH, "log sigma"), (WAY, "x"))
    }
    drawn = {"published": "drawn, no numbers", "source": f"{PAPER}, conceptual diagram"}
    return [
        claim(
            "On the line: modes change only at high noise (99 % of changes above half of the level where modes merge)",
            above.mean > NEARLY_ALL,
            f"{above.mean:.2%} of changes and {quantities[OTHERS_ABOVE].mean:.1%} of other steps are above "
            f"{line.merge / 2:g}, the lowest change at {in_words(quantities[LOWEST])} ({where})",
            **drawn,
        ),
        claim(
            "On the line: without noise levels the same steps change no mode",
            quantities[STILL].mean == 0,
            f"{quantities[STILL].mean:g} changes against {quantities[CHANGES].mean:.0f} ({where})",
        ),
        claim(
            "On the line: modes are visited as often as they weigh, within two standard errors",
            all(abs(v.mean - w) <= 2 * v.spread / math.sqrt(v.n) for v, w in zip(shares, weights, strict=True)),
            ", ".join(f"{in_words(v)} for {w:g}" for v, w in zip(shares, weights, strict=True)) + f" ({where})",
            note="second half of the steps, all chains having begun in the first mode; spread over chains",
        ),
        claim(
            "On the line: chain starts are nearer to the end than noise is, in log sigma and in x",
            all(compare(short, long) == 1 for short, long in ways.values()),
            "; ".join(f"{in_words(short)} against {long.mean:.3g} in {unit}" for unit, (short, long) in ways.items())
            + f" ({where})",
            **drawn,
        ),
    ]


def of_starts(
    name: str, distances: Mapping[str, Spread], nfe: float, distance: str, where: str
) -> list[dict[str, Any]]:
    """Return the claims on Heun from chains beside Heun from noise.

    Args:
        name: of the test-bed.
        distances: by arm.
        nfe: of all arms.
        distance: what it is called.
        where: test-bed, n and seeds.
    """
    made = []
    for arm, other in ((DLG, ZERO), (DLG, MEAN), (CONSTANT, MEAN)):
        a, b = distances[arm], distances[other]
        sign, shown = compare(a, b), other == ZERO
        made.append(
            claim(
                f"{name}: at {nfe} NFE Heun {arm} is better than Heun from noise, {other}",
                sign == 1,
                f"{in_words(a)} against {in_words(b)}, {distance} ({where})",
                "images from noise broken, images from chains whole" if shown else None,
                f"{PAPER}, Figure 1" if shown else None,
                {1: "", 0: "the seeds cannot tell", -1: "it is worse"}[sign],
            )
        )
    return made


def of_windows(
    name: str, arm: str, windows: Sequence[Mapping[str, Any]], sigma_max: float, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return the claim that the levels of starting points rise.

    Args:
        name, arm: the test-bed, and which chains.
        windows: rows of :attr:`.dlg_starts.Case.levels` of them.
        sigma_max: of the model: levels that are there rise no more.
        settings: of the chains.
        seed: of the chains.
    """
    medians = [row["median sigma"] for row in windows]
    rises = all(b > a or b > NEARLY_ALL * sigma_max for a, b in itertools.pairwise(medians))
    as_published = arm == CONSTANT
    if as_published:
        steps = ", ".join(f"{v:.1f}" for v in steps_of_bias())
        note = f"with eta = {PUBLISHED_ETA:g} the published levels rise as in {steps} steps of the bias below; "
        note += "n_skip ships as 10"
    else:
        full = windows[-1]["at sigma_max"]
        note = f"{full:.0%} of the chains are at sigma_max in window {len(windows) - 1}" * (full > 0)
    if not rises:
        note += "; " * bool(note) + "so few pixels tell the level badly: see the scatter of log σ in a step"
    walked = "eta {eta:g}, {step}, {chains} chains, windows of {n_skip} steps from σ = {renoise:g}"
    return claim(
        f"{name}: the noise level of the starting points rises from window to window, {arm}",
        rises,
        f"medians {', '.join(f'{v:.3g}' for v in medians)} ({name}, seed {seed}, {walked.format(**settings)})",
        ", ".join(f"{v:g}" for v in PUBLISHED) if as_published else None,
        f"{PAPER}, Figure 1 (b), CelebA-HQ-256" if as_published else None,
        note,
    )


def of_case(case: Case) -> list[dict[str, Any]]:
    """Return the claims on the levels of both kinds of chains of a test-bed."""
    return [
        of_windows(
            case.name,
            arm,
            [row for row in case.levels if row["arm"] == arm],
            case.bed.model.sigma_max,
            case.arms[arm][1],
            case.seeds[0],
        )
        for arm in (DLG, CONSTANT)
    ]


def of_level(row: Mapping[str, Any], steps: int, chains: int) -> dict[str, Any]:
    """Return the claim on one kernel: that its levels climb by the bias and no more, or with a test not so.

    Args:
        row: of :func:`.dlg_levels.climb`.
        steps, chains: that were walked.
    """
    rise = row["rise"]
    here = f"σ {in_words(row['first'])} to {in_words(row['last'])} in {steps} steps, "
    here += f"expected of the bias {row['expected']:.3g} ({row['bed']}, {row['kernel']}, {chains} chains)"
    if row["adjusted"]:
        text = f"{row['bed']}: with a Metropolis test ({row['kernel']}) the noise level does not climb so"
        return claim(text, rise.mean < NONE, here, note=f"acceptance {row['acceptance']:.2g}")
    text = f"{row['bed']}: the noise level climbs by the bias of the unadjusted step ({row['kernel']}) and no more"
    holds, note = LEAST <= rise.mean <= MOST, ""
    if not holds:
        bias = math.log(row["expected"] / row["first"].mean) / steps
        note = f"σ⁴ rises by {rise.mean:.2g} ± {rise.spread:.2g} of the expected; a step scatters log σ "
        note += f"by {row['scatter']:.2g} where the bias adds {bias:.2g} to it"
    return claim(text, holds, here, note=note)
