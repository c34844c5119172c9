"""The size of a difference that would have been seen, against simulation and the distribution of noncentral t."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dmcmc_core.errors import UserError
from dmcmc_core.report import detectable
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.experiments.differences import differences


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_power_of_pairs_is_that_of_the_noncentral_t(n):
    least, error = detectable.paired(Spread(0.0, 2.0, n)).least, 2.0 / n**0.5
    bound = stats.t.ppf(0.975, n - 1)
    exact = stats.nct.sf(bound, n - 1, least / error) + stats.nct.cdf(-bound, n - 1, least / error)
    assert exact == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("n", [3, 5])
def test_the_least_difference_is_found_in_eighty_of_a_hundred_pairs(n):
    least = detectable.paired(Spread(0.0, 2.0, n)).least
    drawn = np.random.default_rng(0).normal(least, 2.0, (20_000, n))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("spreads", "n"), [((2.0, 2.0), 5), ((1.0, 3.0), 10), ((2.0, 2.0), 3), ((0.1, 2.0), 3)])
def test_the_least_difference_is_found_by_welch(spreads, n):
    """The degrees of freedom are of the spreads that a draw has: by the true ones three seeds find 69 of 100."""
    least = detectable.welch(Spread(0.0, spreads[0], n), Spread(0.0, spreads[1], n)).least
    rng = np.random.default_rng(1)
    a, b = (rng.normal(mean, spread, (20_000, n)) for mean, spread in ((least, spreads[0]), (0.0, spreads[1])))
    assert np.mean(stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05) == pytest.approx(0.8, abs=0.012)


def test_p_is_that_of_scipy():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([3.0, 3.5, 9.0])
    one, other = (Spread(x.mean(), x.std(ddof=1), 3) for x in (a, b))
    assert detectable.welch(one, other).p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    found = detectable.paired(list(a - b))
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue) and found.difference == pytest.approx((a - b).mean())
    assert detectable.welch(Spread(1.0, 0.0, 2), Spread(1.0, 0.0, 2)) == (0.0, 1.0, 0.0)
    assert detectable.paired(Spread(2.0, 0.0, 2)) == (2.0, 0.0, 0.0)
    with pytest.raises(UserError, match="at least 2 seeds on either side, not 1"):
        detectable.welch(one, Spread(1.0, 0.0, 1))


SEEDS = "arm,seed,d,other\na,0,1.0,5\na,1,2.0,5\na,2,4.0,5\nb,2,9.0,5\nb,0,3.0,5\nb,1,3.5,5\n"


def test_rows_of_one_seed_are_a_pair_whatever_their_order(tmp_path):
    (tmp_path / "x.csv").write_text(SEEDS)
    given = {"from": "x", "value": "d", "rows": {"a, b": [{"arm": "a"}, {"arm": "b"}]}}
    (welch,), (pairs,) = differences(tmp_path, given), differences(tmp_path, given | {"paired": True})
    assert welch["p"] == f"{stats.ttest_ind([1, 2, 4], [3, 3.5, 9], equal_var=False).pvalue:.2g}"
    assert pairs["p"] == f"{stats.ttest_rel([1, 2, 4], [3, 3.5, 9]).pvalue:.2g}"
    assert welch["here"] == "2.33 ± 1.5 against 5.17 ± 3.3" and pairs["here"].endswith("difference -2.83 ± 1.9")
    assert (welch["test"], pairs["test"]) == ("Welch, 3 seeds", "paired, 3 seeds")


def test_a_mean_may_stand_with_its_spread_or_be_a_difference_itself(tmp_path):
    (tmp_path / "x.csv").write_text("arm,d,d_spread,d_n\na,1.0,0.5,3\nb,2.0,0.5,3\n")
    (welch,) = differences(tmp_path, {"from": "x", "rows": {"a, b": [{"arm": "a"}, {"arm": "b"}, "d"]}})
    assert welch["p"] == f"{stats.ttest_ind_from_stats(1, 0.5, 3, 2, 0.5, 3, equal_var=False).pvalue:.2g}"
    (one,) = differences(tmp_path, {"from": "x", "value": "d", "rows": {"a": [{"arm": "a"}]}})
    assert one["p"] == f"{2 * stats.t.sf(1 / (0.5 / 3**0.5), 2):.2g}" and one["test"] == "paired, 3 seeds"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"from": "y"}, "y.csv is not published"),
        ({"rows": {"a": [{"arm": "c"}]}}, "no row has arm c"),
        ({"rows": {"a": [{"arms": "a"}]}}, "no column 'arms', only arm, seed"),
        ({"value": "e"}, "no column 'e', only arm, seed"),
        ({"rows": {"a": [{"other": 5}]}}, "6 rows of 3 seeds are of one side"),
    ],
)
def test_what_is_not_published_is_told(tmp_path, given, message):
    (tmp_path / "x.csv").write_text(SEEDS)
    with pytest.raises(UserError, match=message):
        differences(tmp_path, {"from": "x", "value": "d", "rows": {"a": [{"arm": "a"}]}} | given)
