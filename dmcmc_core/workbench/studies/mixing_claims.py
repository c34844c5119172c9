"""What is claimed of how chains mix, from the numbers of :mod:`.mixing_measures` alone.

A difference counts where Welch's t test over the groups puts it below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dmcmc_core.report.tables import claim, compare, in_words
from dmcmc_core.workbench.studies.mixing import CONSTANT, RESTARTS, SIGMA2, Bed, Plan
from dmcmc_core.workbench.studies.mixing_measures import Covered

Row = Mapping[str, Any]


def of_bed(
    bed: Bed, rows: Mapping[tuple[str, str], Row], last: Mapping[tuple[str, str], Covered], plan: Plan
) -> list[dict[str, Any]]:
    """Return the claims on a test-bed, of its rows and coverages by test-bed and kernel."""
    name, where = bed.name, f"{bed.name}, {plan.chains} chains in {plan.groups} groups"
    here = {kernel: rows[name, kernel] for kernel in bed.kernels}
    control = here.pop(RESTARTS)
    adjusted = [kernel for kernel in here if kernel not in (CONSTANT, SIGMA2)]
    made = [of_changes(name, here, where)]
    for kernels in ([CONSTANT], [SIGMA2], adjusted):
        some = {kernel: here[kernel] for kernel in kernels}
        made.append(of_gain(name, some, control, plan.restart_calls, f"in {bed.calls} calls ({where})"))
    made += [of_coverage(name, k, plan.group, last[name, k], here[k], where) for k in (CONSTANT, SIGMA2)]
    return made + [of_drift(name, k, here[k], where) for k in (CONSTANT, SIGMA2)]


def of_changes(name: str, rows: Mapping[str, Row], where: str) -> dict[str, Any]:
    """Return the claim that classes change at high noise, of the rows of all kernels."""
    bad = [kernel for kernel, row in rows.items() if compare(row["high"], row["low"], lower=False) != 1]
    said = "; ".join(f"{k} {in_words(row['high'])} against {in_words(row['low'])}" for k, row in rows.items())
    reasons = ", ".join(f"{k}, whose records are at low σ to {rows[k]['records low'].mean:.1%}" for k in bad)
    text = f"{name}: with every kernel classes change at high noise more often than at low noise"
    return claim(text, not bad, f"{said} per record ({where})", note=f"not so: {reasons}" if bad else "")


def of_gain(name: str, rows: Mapping[str, Row], control: Row, calls: int, where: str) -> dict[str, Any]:
    """Return the claim that any of some kernels gains more than ``control``, restarts of so many ``calls``."""
    better = [kernel for kernel, row in rows.items() if compare(row["gain"], control["gain"], lower=False) == 1]
    gains = "; ".join(f"{kernel} {in_words(row['gain'])}" for kernel, row in rows.items())
    still = ", ".join(f"{row['never'].mean:.0%} with {kernel}" for kernel, row in rows.items())
    text = f"{name}: {'; '.join(rows)}{', any of them' * (len(rows) > 1)}: more independent classes gained per network "
    text += f"call than by restarts of {calls} calls"
    said = f"{gains}; restarts {in_words(control['gain'])}, per 100 calls, {where}"
    return claim(text, better, said, note=f"chains that never changed class: {still}")


def of_coverage(name: str, kernel: str, group: int, covered: Covered, row: Row, where: str) -> dict[str, Any]:
    """Return the claim that chains cover the classes as well as independent draws nearly always do."""
    value, n, mean, bound = covered
    short = value.mean > bound
    return claim(
        f"{name}: {group} chains of {kernel} cover the classes as independent draws do",
        not short,
        f"total variation {in_words(value)} after n = {n}; independent draws {mean:.3g}, "
        f"95 % of them below {bound:.3g} ({where})",
        note=f"a chain is worth {in_words(row['class'])} draws, not {n // group}" if short else "",
    )


def of_drift(name: str, kernel: str, row: Row, where: str) -> dict[str, Any]:
    """Return the claim that noise levels stay where the joint distribution has them, within two standard errors."""
    drift = row["drift"]
    climbs = drift.mean + 2 * drift.spread / math.sqrt(drift.n) < 0
    return claim(
        f"{name}: {kernel} leaves as many states in the lower half of log σ as the joint distribution",
        not climbs,
        f"{in_words(row['records low'])}, {drift.mean:+.2g} ± {drift.spread:.2g} against the exact beginning; σ from "
        f"{row['middle 80 %']} (middle 80 %; {where})",
        note="the bias of the unadjusted step drives σ up: DLG.ipynb measures it" if climbs else "",
    )
