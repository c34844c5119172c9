"""What is claimed of the noise-level posterior from the denoiser alone, from the numbers of :mod:`.posterior`.

Near is within 10 % of the distance of chains with another posterior. Calibrated is one whose central 90 % interval
holds as many of the true levels as the exact one's, up to two standard errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmcmc_core.report.tables import claim, compare, in_words
from dmcmc_core.workbench.studies.posterior import CLASSIFIER, EXACT, IDEAL, IN_A_CHAIN, OFF, RESIDUAL, row_of

NEAR = 1.1
SURE = {1: "surely better", 0: "no sure difference", -1: "surely worse"}
Rows = Sequence[Mapping[str, Any]]


def of_chains(
    name: str, budget: float, kind: str, means: Mapping[tuple, Mapping[str, Any]], rows: Rows, where: str
) -> dict[str, Any]:
    """Return the claim that chains with the residual are near to those with another posterior.

    Args:
        name, budget: the test-bed, and full NFE.
        kind: the other posterior.
        means: of :func:`.posterior.means`.
        rows: of :func:`.posterior.judge`.
        where: test-bed, n and seeds.
    """
    own, other = (means[name, f"DLG, {posterior}", budget] for posterior in (RESIDUAL, kind))
    a, b = own["frechet"], other["frechet"]
    near, note = a.mean <= NEAR * b.mean, ""
    if not near and own["levels"] < other["levels"]:
        more = own["warmup"] - other["warmup"]
        note = f"Heun has {own['levels']:.0f} levels instead of {other['levels']:.0f}: calibration for {own['n']} "
        note += f"images and one more call at the start take {more:.2f} NFE each"
    elif not near:
        note = "Heun has as many levels, and total variation to the exact posterior is "
        note += f"{row_of(rows, name, RESIDUAL, IN_A_CHAIN)['total_variation']:.2g}"
    ratio = f"{100 * (a.mean / b.mean - 1):+.1f} %, {SURE[compare(a, b)]}"
    text = f"{name}: DLG with the residual is within 10 % of DLG with the {kind} posterior at {budget} NFE"
    return claim(text, near, f"{in_words(a)} against {in_words(b)}, {ratio} ({where})", note=note)


def of_cost(rows: Rows) -> dict[str, Any]:
    """Return the claim that a step with the residual costs no more than one with a classifier, of rows of chains."""
    found = {row["calls_per_step"] for row in rows if row["posterior"] == RESIDUAL}
    text = "a chain step with the residual costs one call, as with a classifier"
    return claim(text, found == {1.0}, f"calls per step: {', '.join(f'{v:.3g}' for v in sorted(found))}")


def of_classifier(name: str, rows: Rows) -> list[dict[str, Any]]:
    """Return the claim that the residual is nearer to the exact posterior than a classifier, where there is one."""
    exact, by_net = row_of(rows, name, EXACT), row_of(rows, name, CLASSIFIER)
    if by_net is None:
        return []
    own, both = row_of(rows, name, RESIDUAL, IN_A_CHAIN), ("total_variation", "cross_entropy")
    text = f"{name}: the residual of the net is nearer to the exact posterior than the classifier"
    said = f"total variation {own['total_variation']:.3f} against {by_net['total_variation']:.3f}, cross-entropy "
    said += f"{own['cross_entropy']:.3f} against {by_net['cross_entropy']:.3f}, exact {exact['cross_entropy']:.3f} "
    return [claim(text, all(own[key] < by_net[key] for key in both), f"{said}(n = {own['n']})")]


def of_calibration(name: str, off: str, rows: Rows) -> dict[str, Any]:
    """Return the claim that the residual is calibrated with its call so far off."""
    exact, own, ideal = (row_of(rows, name, *what) for what in ((EXACT,), (RESIDUAL, off), (IDEAL, off)))
    close = abs(own["inside_90"] - exact["inside_90"]) <= 2 * (2 * 0.09 / own["n"]) ** 0.5
    note = ""
    if not close:
        note = "a call so far off takes the denoiser's change with sigma for a residual"
        note += f"; with the exact denoiser {ideal['inside_90']:.3f}: it is the net that changes" if ideal else ""
    return claim(
        f"{name}: the residual is calibrated with its call {off}",
        close,
        f"{own['inside_90']:.3f} inside the central 90 %, {exact['inside_90']:.3f} exact; cross-entropy "
        f"{own['cross_entropy']:.3f} against {exact['cross_entropy']:.3f} (n = {own['n']})",
        note=note,
    )


def of_answers(name: str, rows: Rows) -> list[dict[str, Any]]:
    """Return the claims on known levels of a test-bed."""
    return [*of_classifier(name, rows), *(of_calibration(name, off, rows) for off in (IN_A_CHAIN, *OFF))]
