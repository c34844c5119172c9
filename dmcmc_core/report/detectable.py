"""How large a difference would have been seen: the other half of a test that cannot tell.

A two-sided t test at level ``ALPHA`` finds a true difference when that of the seeds lies beyond a bound, which varies
with the spreads that the seeds happen to have. Those are scaled chi-squared variables, independent of the means, so
that the probability is a mean over their quantiles. The least difference is that which is found with the probability
``POWER`` (Cohen 1988, Statistical Power Analysis, section 2.2); measured spreads stand for the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmcmc_core.errors import UserError
from dmcmc_core.report.tables import Spread, spread_of

ALPHA, POWER = 0.05, 0.8
"""Level of a test, and the share of repeats in which the least difference would be found."""
QUANTILES = 200
"""Of each spread that seeds happen to have."""


class Comparison(NamedTuple):
    """What a t test says of two means.

    Attributes:
        difference: of the means.
        p: of the test.
        least: the smallest true difference that so many seeds find in 80 of 100 repeats.
    """

    difference: float
    p: float
    least: float


def welch(a: Spread, b: Spread) -> Comparison:
    """Compare two means by Welch's t test, with the degrees of freedom of Satterthwaite.

    Raises:
        UserError: for fewer than two seeds on a side.
    """
    _check(a.n, b.n)
    parts = [np.array(side.spread**2 / side.n) for side in (a, b)]
    drawn = [part * _chances(side.n) for part, side in zip(parts, (a, b), strict=True)]
    bounds = _bound(drawn[0][:, None], drawn[1][None, :], a.n, b.n) if sum(parts) else np.zeros(1)
    freedom = _freedom(*parts, a.n, b.n) if sum(parts) else 1.0
    return _compared(a.mean - b.mean, math.sqrt(sum(parts)), float(freedom), bounds)


def paired(differences: Sequence[float] | Spread) -> Comparison:
    """Compare two means by the t test on the differences of each seed, whose noise both sides share.

    Raises:
        UserError: for fewer than two seeds.
    """
    from scipy import stats  # a second of imports, which the commands do without

    of = differences if isinstance(differences, Spread) else spread_of(differences)
    _check(of.n)
    error = of.spread / math.sqrt(of.n)
    bounds = stats.t.ppf(1 - ALPHA / 2, of.n - 1) * error * np.sqrt(_chances(of.n))
    return _compared(of.mean, error, of.n - 1, bounds)


def power(difference: float, error: float, bounds: np.ndarray) -> float:
    """Return the probability that a test finds a true difference of this standard error; all bounds are as likely."""
    from scipy import stats

    return float(
        np.mean(stats.norm.cdf((difference - bounds) / error) + stats.norm.cdf((-difference - bounds) / error))
    )


def _chances(n: int) -> np.ndarray:
    """Return quantiles of the square of a spread over n seeds, over its true value."""
    from scipy import stats

    return stats.chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, n - 1) / (n - 1)


def _freedom(a: np.ndarray, b: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Return the degrees of freedom of Satterthwaite, of the squared standard errors of two means."""
    return (a + b) ** 2 / (a**2 / (n_a - 1) + b**2 / (n_b - 1))


def _bound(a: np.ndarray, b: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Return the differences from which Welch's test calls them significant."""
    from scipy import stats

    return stats.t.ppf(1 - ALPHA / 2, _freedom(a, b, n_a, n_b)) * np.sqrt(a + b)


def _compared(difference: float, error: float, freedom: float, bounds: np.ndarray) -> Comparison:
    from scipy import optimize, stats

    if error == 0:
        return Comparison(difference, float(difference == 0), 0.0)
    p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    least = optimize.brentq(lambda d: power(d, error, bounds) - POWER, 0.0, float(bounds.max()) + 10 * error)
    return Comparison(difference, p, float(least))


def _check(*counts: int) -> None:
    if min(counts) < 2:
        raise UserError(f"a difference needs at least 2 seeds on either side, not {min(counts)}")
