"""What the study of preconditioned diffusion sampling claims, from its numbers alone.

A difference counts where Welch's t test over seeds, or groups of chains, puts it below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dmcmc_core import schedules
from dmcmc_core.report.tables import Spread, claim, compare, in_words
from dmcmc_core.workbench.studies.pds import CONTROLS, VANILLA, Cell, Rows
from dmcmc_core.workbench.studies.pds_chains import GROUP, Made, Mixing
from dmcmc_core.workbench.studies.pds_gaussians import SCALED, STATIONARY

Claim = dict[str, Any]
PUBLISHED = {"TDAS": "TDAS", "frequency": "PDS", "space": "PDS", "both": "PDS"}
"""Arm -> what the published numbers call it."""
EXACT = "Digits, exact score"


def of_gaussians(summary: Rows, steps: int) -> list[Claim]:
    """Return the claims on Gaussians, of rows of :class:`.pds_gaussians.Relaxed`, after so many steps."""
    of = {(row["of"], row["arm"]): row for row in summary}

    def needed(name: str, arm: str) -> int:
        return of[name, arm]["steps"] or steps

    def said(name: str, arm: str) -> Any:
        return of[name, arm]["steps"] or f"more than {steps}"

    def resolved(arm: str) -> str:
        return f"{of[STATIONARY, arm]['condition']:.4g}"

    plain, fit, skewed = "plain", "covariance", "covariance + S"
    return [
        claim(
            "On an ill-conditioned Gaussian the published gains lower the condition number that the step must resolve",
            of[STATIONARY, "published gains"]["condition"] < of[STATIONARY, plain]["condition"],
            f"{resolved(plain)} without, {resolved('published gains')} with the published gains, "
            f"{resolved('inverse gains')} with them the other way round, {resolved(fit)} with the covariance",
            note="gains that are largest where the data vary least make the curvature more uneven, not less",
        ),
        claim(
            "On that Gaussian, a preconditioner that fits the covariance needs at most a tenth of the steps",
            of[STATIONARY, fit]["steps"] is not None and of[STATIONARY, fit]["steps"] <= needed(STATIONARY, plain) / 10,
            f"{said(STATIONARY, fit)} steps against {said(STATIONARY, plain)}; "
            f"with the published gains {said(STATIONARY, 'published gains')}",
        ),
        claim(
            "S makes the slowest mode faster where it does not commute with the covariance, and pays in steps",
            of[SCALED, skewed]["rate"] > of[SCALED, fit]["rate"] and needed(SCALED, skewed) < needed(SCALED, fit),
            "; ".join(
                f"{arm}: rate {of[SCALED, arm]['rate']:.3g}, step {of[SCALED, arm]['step']:.3g}, "
                f"{said(SCALED, arm)} steps"
                for arm in (plain, "plain + S", fit, skewed)
            ),
            note="the largest step at equal bias falls by more than the rate rises",
        ),
    ]


def of_predictor(biases: Rows) -> Claim:
    """Return the claim on the predictor alone, of rows of :func:`.pds_noise.predictor_bias`."""
    right = biases[0]["made1"].mean
    return claim(
        "The predictor alone shrinks the data as its recursion tells; one correction brings back what c = 1 has",
        all(abs(r["made0"].mean - r["recursion"]) < 0.03 for r in biases)
        and all(abs(r["made1"].mean - right) < 0.05 for r in biases),
        "; ".join(
            f"c = {r['c']:g}: {r['made0'].mean:.3f} (formula {r['formula']:.3f}), corrected {r['made1'].mean:.3f}"
            for r in biases
        ),
        note="the formula is that of infinitely many levels, and the theorem of the paper is that of the corrector",
    )


def of_noise(noises: Rows, squared: Mapping[str, float]) -> Claim:
    """Return the claim on the noise that is left, of rows of :func:`.pds_noise.noise_left` and their squared gains."""
    return claim(
        "The sampler leaves the noise of the recursion, and with a gain above 1 less than without where c (1 - r) < 1",
        all(
            abs(math.log(r[f"made_{what}"] / r[what])) < 0.1
            and (what == "plain" or (r[what] < r["plain"]) == (c * r["part"] < 1))
            for r in noises
            for what, c in squared.items()
        ),
        "; ".join(
            f"{r['iterations']}: {r['plain']:.3g}, {r['one']:.3g}, {r['both']:.3g}" for r in noises if r["top"] == 50
        ),
        note=f"noise over what the network is told at sigma_max 50, by iterations, for c = 1, {squared['one']:.3g}, "
        f"{squared['both']:.3g}; more than 0.1 below 1 is too little as well",
    )


def of_corrections(corrected: Rows) -> list[Claim]:
    """Return a claim for each test-bed and speed-up of :meth:`.pds.Sampling.corrections`."""
    made = []
    for name, k in dict.fromkeys((r["bed"], r["speed_up"]) for r in corrected):
        of = {(r["score"], r["corrector"]): r for r in corrected if (r["bed"], r["speed_up"]) == (name, k)}
        with_them, without = of["network", "snr 0.16"], of["network", "none, twice the levels"]
        sign = compare(with_them["distance"], without["distance"])
        told = (
            f"{score}, {corrector}, {r['calls']:.0f} calls: {in_words(r['distance'])}, chi² {r['chi2']:.3g}"
            for (score, corrector), r in of.items()
        )
        text = f"{name}, {with_them['calls']:.0f} calls: corrections bring images nearer than as many calls without"
        made.append(claim(text, sign == 1, "; ".join(told), note="surely worse" if sign == -1 else ""))
    return made


def of_arms(
    cells: Mapping[Cell, Spread],
    name: str,
    arms: Mapping[str, Sequence[float]],
    base: int,
    where: str,
    published: Sequence[Any] = (),
) -> list[Claim]:
    """Return the claims on the arms of a test-bed: each beside the plain sampler, and beside one gain as strong.

    Args:
        cells: distances.
        name: of the test-bed.
        arms: arm -> its speed-ups.
        base: iterations that speed-ups refer to.
        where: test-bed, n and seeds.
        published: published values, with ``what``, ``value`` and ``source``.
    """
    gained = [arm for arm in arms if arm != VANILLA and arm not in CONTROLS and not arm.startswith("as ")]
    pairs = [(arm, VANILLA) for arm in gained]
    pairs += [(arm, f"as {arm}") for arm in gained if f"as {arm}" in arms]
    pairs += [("ancestral", "no corrections")] if {"ancestral", "no corrections"} <= arms.keys() else []
    made = []
    for arm, other in pairs:
        both = [k for k in arms[arm] if k in arms[other]]
        signs = {k: compare(cells[name, arm, k], cells[name, other, k]) for k in both}
        told = (
            f"{schedules.sped_up(k, base)} iterations: {in_words(cells[name, arm, k])} against "
            f"{in_words(cells[name, other, k])}"
            for k in both
        )
        better, harmed = ([k for k in both if signs[k] == sign] for sign in (1, -1))
        worse = [schedules.sped_up(k, base) for k in harmed] or "none"
        against = "the plain predictor-corrector" if other == VANILLA else f"the arm '{other}'"
        made.append(
            claim(
                f"{name}: {arm} is better than {against} at every speed-up",
                len(better) == len(both),
                f"{'; '.join(told)} ({where})",
                *(_quoted(published, PUBLISHED[arm]) if other == VANILLA and arm in PUBLISHED else ()),
                note=f"surely better at {len(better)} of {len(both)}, surely worse at {worse}",
            )
        )
    return made


def _quoted(published: Sequence[Any], what: str) -> tuple[str | None, str | None]:
    found = [p for p in published if what in p.what]
    text = "; ".join(f"{p.value} ({p.what})" for p in found)
    return text or None, "; ".join(dict.fromkeys(p.source for p in found)) or None


def of_chains(
    made: Made, name: str, kinds: Sequence[str], etas: Sequence[float], budgets: Iterable[int], where: str
) -> list[Claim]:
    """Return the claims on DLG + Heun of a test-bed: each kind of gains at its better eta, beside none and one gain."""
    said = []
    for budget in budgets:
        found = {kind: [made[cell] for eta in etas if (cell := (name, kind, eta, budget)) in made] for kind in kinds}
        least = {kind: min(some, key=lambda v: v.mean) for kind, some in found.items() if some}
        for kind in [k for k in kinds if k in least and k != VANILLA and not k.startswith("as ")]:
            others = {other: least[other] for other in (VANILLA, f"as {kind}") if other in least}
            beyond = ", beyond its size" if f"as {kind}" in least else ""
            told = " and ".join(f"{in_words(value)} ({other})" for other, value in others.items())
            signs = {compare(least[kind], value) for value in others.values()}
            said.append(
                claim(
                    f"{name}, {budget} NFE: DLG + Heun gains by {kind} preconditioning{beyond}",
                    signs == {1},
                    f"{in_words(least[kind])} against {told}, each at the better eta ({where})",
                    note="surely worse" if signs == {-1} else "",
                )
            )
    return said


def of_mixing(mixed: Mixing, highest: float, groups: int) -> list[Claim]:
    """Return the claims on mixing, each kind of gains at its better eta.

    Args:
        mixed: what was measured.
        highest: by how much the mean of log sigma would be off at the highest level.
        groups: of chains.
    """
    said = []
    for kernel in dict.fromkeys(kernel for kernel, _, _ in mixed):
        kinds = dict.fromkeys(kind for of, kind, _ in mixed if of == kernel)
        some = {kind: [m for (of, k, _), m in mixed.items() if (of, k) == (kernel, kind)] for kind in kinds}
        best = {kind: max(made, key=lambda v: v.gained.mean) for kind, made in some.items()}
        for kind in [k for k in best if f"as {k}" in best]:
            mine, same, none = (best[k].gained for k in (kind, f"as {kind}", VANILLA))
            text = (
                f"Digits, exact score: {kernel} chains gain more draws per call by {kind} gains than by one as strong"
            )
            here = f"{in_words(mine)} against {in_words(same)}, {in_words(none)} without gains"
            said.append(claim(text, compare(mine, same, lower=False) == 1, f"{here} ({GROUP} chains, {groups} groups)"))
        drift = max(best.values(), key=lambda v: v.gained.mean).drift
        said.append(
            claim(
                f"{EXACT}: the {kernel} chains that gain most keep the law of their levels",
                abs(drift.mean) < max(0.3, 3 * drift.spread / drift.n**0.5),
                f"their mean of log sigma is off by {in_words(drift)}; the highest level would be at {highest:.3g}",
                note="draws that are gained at the highest levels are forgotten classes, not mixing"
                if kernel == "langevin"
                else "",
            )
        )
    return said
