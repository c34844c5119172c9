"""Grids: the published values, one row per start, and refusal of what no integrator could walk."""

import math

import pytest
import torch

from dmcmc_core import schedules
from dmcmc_core.errors import UserError
from dmcmc_core.schedules import SCHEDULES


def test_karras_formula():
    """Karras et al. 2022, eq. 5, written out."""
    n, top, bottom, rho = 7, 80.0, 0.002, 7.0
    expected = [(top ** (1 / rho) + i / (n - 1) * (bottom ** (1 / rho) - top ** (1 / rho))) ** rho for i in range(n)]
    sigmas = schedules.karras(n, top, bottom)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (8,)
    assert sigmas[:-1].tolist() == pytest.approx(expected, rel=1e-12)
    straight = schedules.karras(5, 5.0, 1.0, rho=1.0)
    assert straight.tolist() == pytest.approx([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], rel=1e-14)


def test_log_uniform_ratio_is_constant():
    sigmas = schedules.log_uniform(50, 348.0, 0.01)[:-1]
    ratios = sigmas[:-1] / sigmas[1:]
    assert torch.allclose(ratios, torch.full_like(ratios, 34800.0 ** (1 / 49)), rtol=1e-12, atol=0)


def test_time_uniform_is_uniform_in_the_time_of_the_vp_diffusion():
    """The time is found again by bisection of sigma(t), independent of the closed-form inverse."""
    sigmas = schedules.time_uniform(11, 100.0, 0.02)[:-1]

    def sigma(t):
        return torch.expm1(0.1 * t + (20.0 - 0.1) * t**2 / 2).sqrt()

    low, high = torch.zeros_like(sigmas), torch.full_like(sigmas, 2.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = torch.where(sigma(middle) < sigmas, middle, low), torch.where(sigma(middle) < sigmas, high, middle)
    gaps = low.diff()
    assert (gaps < 0).all() and torch.allclose(gaps, gaps.mean().expand(10), rtol=1e-9, atol=0)


def test_time_uniform_near_zero_keeps_its_digits():
    """At small sigma the time is sigma^2 / beta_min: a naive inverse would lose it."""
    sigmas = schedules.time_uniform(3, 2e-7, 1e-7, beta_min=1.0, beta_max=2.0)
    assert sigmas[1].item() == pytest.approx(2.5**0.5 * 1e-7, rel=1e-6)


def test_shifted_power():
    assert schedules.shifted_power(5, 5.0, 1.0, exponent=1.0).tolist() == pytest.approx([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    assert schedules.shifted_power(3, 5.0, 1.0, exponent=2.0).tolist() == pytest.approx([5.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_are_met_exactly_and_zero_follows(name):
    sigmas = SCHEDULES[name](9, 50.0, 0.01)
    assert sigmas[0] == 50.0 and sigmas[-2] == 0.01 and sigmas[-1] == 0.0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_level_is_sigma_max_alone(name):
    assert SCHEDULES[name](1, 50.0, 0.01).tolist() == [50.0, 0.0]
    assert SCHEDULES[name](1, torch.tensor([50.0, 0.5]), 0.01).tolist() == [[50.0, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_start_per_sample(name):
    starts = torch.tensor([0.3, 50.0, 7.0])
    sigmas = SCHEDULES[name](6, starts, 0.01)
    assert sigmas.shape == (3, 7)
    for row, start in zip(sigmas, starts, strict=True):
        assert torch.equal(row, SCHEDULES[name](6, start, 0.01))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 400])
def test_a_start_at_or_below_sigma_min_descends_from_itself(name, n):
    starts = torch.tensor([0.01, 0.004, 1e-5, 0.01 * (1 + 1e-6), 1.0], dtype=torch.float64)
    sigmas = SCHEDULES[name](n, starts, 0.01)
    assert torch.equal(sigmas[:, 0], starts)
    assert (sigmas.float().diff() < 0).all() and (sigmas[:, -1] == 0).all()
    if n > 1:
        assert torch.allclose(sigmas[:4, -2], starts[:4] / 2) and sigmas[4, -2] == 0.01


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("n", "sigma_max", "sigma_min", "message"),
    [
        (0, 1.0, 0.1, "n must be a whole number of levels, at least 1, not 0"),
        (2.5, 1.0, 0.1, "at least 1, not 2.5"),
        ("a", 1.0, 0.1, "at least 1, not 'a'"),
        (True, 1.0, 0.1, "at least 1, not True"),
        (3, None, 0.1, "must be numbers, not None and 0.1"),
        (3, -1.0, 0.1, "sigma_max must be positive and finite, not -1"),
        (3, math.nan, 0.1, "sigma_max must be positive and finite, not nan"),
        (3, math.inf, 0.1, "sigma_max must be positive and finite, not inf"),
        (3, torch.tensor([1.0, 0.0]), 0.1, "sigma_max must be positive and finite, not 0"),
        (3, torch.ones(2, 2), 0.1, r"sigma_max must have shape \(\) or \(B,\), not \(2, 2\)"),
        (3, 1.0, 0.0, "sigma_min must be positive and finite, not 0"),
        (3, 1.0, math.nan, "sigma_min must be positive and finite, not nan"),
        (3, 0.01, 10.0, r"sigma_max=0.01 \(where the grid starts\) lies below sigma_min=10 \(where it ends\): swap"),
    ],
)
def test_bad_arguments(name, n, sigma_max, sigma_min, message):
    with pytest.raises(UserError, match=message):
        SCHEDULES[name](n, sigma_max, sigma_min)


def test_bad_shapes_of_curves():
    with pytest.raises(UserError, match="rho must be above 0 and finite, not 0"):
        schedules.karras(3, 1.0, 0.1, rho=0)
    with pytest.raises(UserError, match="exponent must be above 0, not -1"):
        schedules.shifted_power(3, 1.0, 0.1, exponent=-1)


def test_explicit_levels():
    sigmas = schedules.explicit([3.0, 1.0, 0.2])
    assert sigmas.dtype == torch.float64 and sigmas.tolist() == [3.0, 1.0, 0.2]
    assert schedules.explicit([[3.0, 0.0], [2.0, 0.0]]).shape == (2, 2)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0, 2.0], "strictly descend, but 1 is followed by 2 at position 0"),
        ([2.0, 1.0, 1.0], "1 is followed by 1 at position 1"),
        ([[2.0, 1.0], [1.0, 3.0]], "1 is followed by 3 at position 0"),
        ([2.0, -1.0], "at least 0: found -1"),
        ([2.0, math.nan], "finite: found nan"),
        ([math.inf, 1.0], "finite: found inf"),
        ([2.0], r"not \(1,\)"),
        ([[[2.0, 1.0]]], r"not \(1, 1, 2\)"),
        ([[2.0, 1.0], [2.0, 0.0]], "all rows of sigmas must end at 0, or all above 0"),
    ],
)
def test_explicit_refuses(levels, message):
    with pytest.raises(UserError, match=message):
        schedules.explicit(levels)


def test_rows_must_fit():
    sigmas = schedules.karras(3, torch.ones(4), 0.1)
    assert schedules.check(sigmas, rows=4) is sigmas
    assert schedules.check(sigmas[0], rows=7) is not None
    with pytest.raises(UserError, match="4 rows for 5 samples"):
        schedules.check(sigmas, rows=5)


@pytest.mark.parametrize("levels", [["a"], [[1, 0], [1]], None])
def test_explicit_levels_that_are_no_numbers(levels):
    with pytest.raises(UserError, match="levels must be numbers"):
        schedules.explicit(levels)


def test_power_is_the_grid_of_times_of_gddim():
    grid = schedules.power(10, 1.0, 1e-3, 2.0)
    published = [
        1,
        0.8157021,
        0.65015929,
        0.50337157,
        0.37533893,
        0.26606139,
        0.17553893,
        0.10377157,
        0.05075929,
        0.0165021,
        0.001,
    ]
    assert grid.dtype == torch.float64 and grid.tolist() == pytest.approx(published, abs=5e-9)
    assert schedules.power(1, 0.9, 0.0, 7.0).tolist() == [0.9, 0.0]
    for wrong in ((0, 1.0, 0.1), (2.5, 1.0, 0.1), (3, 0.1, 1.0), (3, 1.0, -0.1), (3, 1.0, 0.1, 0.0)):
        with pytest.raises(UserError, match="must be"):
            schedules.power(*wrong)
