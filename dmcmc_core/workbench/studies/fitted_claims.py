"""What the study of fitted solvers claims, from the numbers of :mod:`.fitted_solvers` alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dmcmc_core.report.tables import Spread, claim
from dmcmc_core.workbench.studies.fitted_solvers import (
    ASSUMED,
    BEST,
    FITTED,
    GRID_ALONE,
    KARRAS,
    OTHER_NOISE,
    OWN_NOISE,
    TWO_M,
    Errors,
    best_of,
    nearer,
    rms,
    spread,
)

HALF = 0.5
"""Of the best classical error: what a fitted solver is to stay below."""
WORSE, GAIN, SCATTER = 1.25, 0.1, 0.1
"""At most: error on other noise over that on its own, gain of twice as many trajectories, spread over fits."""


def of_errors(found: Errors, where: str) -> list[dict[str, Any]]:
    """Return the claims on fitted solvers beside the best classical one of each budget, on the same noise."""
    budgets = [nfe for solver, nfe in found if solver == FITTED]
    best = {nfe: best_of(found, nfe) for nfe in budgets}
    pairs = {nfe: (found[FITTED, nfe], found[best[nfe], nfe]) for nfe in budgets}
    said = "; ".join(f"{nfe}: {_told(a)} against {_told(b)} of {best[nfe]}" for nfe, (a, b) in pairs.items())
    farther = [nfe for nfe, pair in pairs.items() if not nearer(*pair)]
    ratios = {nfe: spread(a).mean / spread(b).mean for nfe, (a, b) in pairs.items()}
    above = [nfe for nfe, ratio in ratios.items() if ratio > HALF]
    told = ", ".join(f"{ratio:.2f} at {nfe}" for nfe, ratio in ratios.items())
    made = [
        claim(
            "fitted is nearer to the accurate solution than every classical solver, at every budget",
            not farther,
            f"{said} ({where})",
            note=f"not surely at {_listed(farther)}" if farther else "",
        ),
        claim(
            f"the error of fitted is at most {HALF:g} of the best classical one, at every budget",
            not above,
            f"{told} ({where})",
            note=f"above at {_listed(above)}" if above else "",
        ),
    ]
    return made + [_half_the_calls(found, nfe, where) for nfe in budgets if 2 * nfe in budgets]


def _half_the_calls(found: Errors, nfe: int, where: str) -> dict[str, Any]:
    best = best_of(found, 2 * nfe)
    sure = [
        budget for solver, budget in found if solver == FITTED and nearer(found[FITTED, budget], found[best, 2 * nfe])
    ]
    said = f"{_told(found[FITTED, nfe])} against {_told(found[best, 2 * nfe])} of {best} ({where})"
    note = "" if nfe in sure else f"of all budgets surely at {_listed(sure)}"
    return claim(
        f"fitted at {nfe} calls is nearer than the best classical solver at {2 * nfe}", nfe in sure, said, note=note
    )


def of_controls(found: Errors, where: str) -> list[dict[str, Any]]:
    """Return the claims on what each part of a fit is worth, all on the same noise."""
    budgets = [nfe for solver, nfe in found if solver == KARRAS]
    made = []
    for text, control in (
        (f"the found grid alone, with the coefficients of {TWO_M}, is farther than fitted", GRID_ALONE),
        ("fitted coefficients on the Karras grid are farther than on the found one", KARRAS),
        ("a grid searched with the response assumed is farther than one with the response measured too", ASSUMED),
    ):
        pairs = {nfe: (found[FITTED, nfe], found[control, nfe]) for nfe in budgets}
        said = "; ".join(f"{nfe}: {_told(b)}, fitted {_told(a)}" for nfe, (a, b) in pairs.items())
        said += (
            f"; {TWO_M} on its grid " + ", ".join(_told(found[TWO_M, nfe]) for nfe in budgets)
            if control == GRID_ALONE
            else ""
        )
        sure = [nfe for nfe, pair in pairs.items() if nearer(*pair)]
        same = sum(int((a == b).all(1).sum()) for a, b in pairs.values())
        note = "" if len(sure) == len(budgets) else f"surely at {_listed(sure)} of them"
        note += (
            f"; {same} of {len(budgets) * len(found[FITTED, budgets[0]])} fits took the same solver"
            if same and note
            else ""
        )
        made.append(claim(text, len(sure) == len(budgets), f"{said} ({where})", note=note))
    return made


def of_cost(rows: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return the claims on trajectories, from :func:`.fitted_solvers.cost_rows`."""
    counts, budgets = (sorted({row[key] for row in rows}) for key in ("trajectories", "budget"))
    least, most = counts[0], counts[-1]

    def mean(line: str, nfe: int, count: int) -> float:
        return statistics.fmean(
            r["error"] for r in rows if (r["line"], r["budget"], r["trajectories"]) == (line, nfe, count)
        )

    own = {nfe: mean(OTHER_NOISE, nfe, most) / mean(OWN_NOISE, nfe, most) for nfe in budgets}
    few = {nfe: mean(OTHER_NOISE, nfe, least) / mean(OWN_NOISE, nfe, least) for nfe in budgets}
    made = [
        claim(
            f"{most} trajectories do not fit their own noise: on other noise at most {WORSE:g} times the error",
            max(own.values()) <= WORSE,
            f"{_ratios(own)}; of {least} trajectories {_ratios(few)} ({where})",
        )
    ]
    ratio = {nfe: mean(OTHER_NOISE, nfe, least) / mean(BEST, nfe, least) for nfe in budgets}
    taken = [r["solver"] for r in rows if r["trajectories"] == least and r["line"] == OTHER_NOISE]
    said = f"{_ratios(ratio)} of its error; {sum(s != FITTED for s in taken)} of {len(taken)} took one ({where})"
    made.append(claim(f"{least} trajectories already beat the best classical solver", max(ratio.values()) < 1, said))
    if len(counts) > 1:
        gain = {nfe: 1 - mean(OTHER_NOISE, nfe, most) / mean(OTHER_NOISE, nfe, counts[-2]) for nfe in budgets}
        said = "; ".join(f"{nfe} calls: {g:+.0%}" for nfe, g in gain.items())
        text = f"from {counts[-2]} to {most} trajectories the error on other noise falls by at most {GAIN:.0%}"
        made.append(claim(text, max(gain.values()) <= GAIN, f"{said} ({where})"))
    return made


def of_transfer(
    found: Mapping[tuple[str, str, int], Tensor], apart: Mapping[tuple[str, str], float], where: str
) -> list[dict[str, Any]]:
    """Return the claims on networks that a solver was not fitted to.

    Args:
        found: as :func:`.fitted_solvers.transfer_errors` returns it.
        apart: distances of accurate solutions, of :func:`.fitted_solvers.apart`.
        where: data set, n and seeds.
    """
    networks, budgets = (list(dict.fromkeys(key[i] for key in found)) for i in (1, 2))
    made, farther, near, shares = [], [], [], []
    for name, used in itertools.permutations(networks, 2):
        ones = {nfe: [found[key, used, nfe] for key in (name, used, BEST)] for nfe in budgets}
        told = "; ".join(
            f"{nfe}: {_told(other)}, best classical {_told(best)}" for nfe, (other, _, best) in ones.items()
        )
        sure = [nfe for nfe, (other, _, best) in ones.items() if nearer(other, best)]
        note = "" if len(sure) == len(budgets) else f"surely at {_listed(sure)} of them"
        text = f"a solver of {name} is nearer on {used} than every classical one"
        made.append(claim(text, not note, f"{told} ({where})", note=note))
        is_farther = all(nearer(own, other) for other, own, _ in ones.values())
        (farther if is_farther else near).append(f"{name} on {used}")
        ratio = ", ".join(f"{spread(other).mean / spread(own).mean:.2f}" for other, own, _ in ones.values())
        shares.append(f"{name} on {used} {ratio}")
    said = f"times the error of its own at {_listed(budgets)}: {'; '.join(shares)} ({where})"
    gaps = "; ".join(f"{a} and {b} {gap:.3f}" for (a, b), gap in apart.items())
    note = (
        f"not surely: {', '.join(near)}; from the same noise the accurate solutions are apart by {gaps}" if near else ""
    )
    return [*made, claim("every solver is farther on a network than that network's own", not near, said, note=note)]


def of_seeds(crossed: Mapping[int, Tensor], where: str) -> dict[str, Any]:
    """Return the claim on the noise of a fit, of errors (fits, noises) by budget."""
    scatter = {nfe: (errors.std(0) / errors.mean(0)).mean().item() for nfe, errors in crossed.items()}
    said = "; ".join(f"{nfe} calls: {s:.0%}" for nfe, s in scatter.items())
    text = f"fits to other noise are as good: their errors on the same noise spread by at most {SCATTER:.0%}"
    most = max((errors / errors.mean(0)).max().item() for errors in crossed.values())
    note = f"the worst fit has {most:.2f} times the mean error" if max(scatter.values()) > SCATTER else ""
    return claim(text, not note, f"{said} ({where})", note=note)


def _told(each: Tensor) -> str:
    value: Spread = spread(each)
    return f"{value.mean:.4f}" + (f" ± {value.spread:.4f}" if len(rms(each)) > 1 else "")


def _ratios(of: Mapping[int, float]) -> str:
    return ", ".join(f"{ratio:.2f} at {nfe}" for nfe, ratio in of.items())


def _listed(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets)) or "none"
