"""The study of preconditioned sampling: exact chains on Gaussians, recursions, and claims that can hold and fail."""

import math

import pytest
import torch

from dmcmc_core.preconditioning import Preconditioner
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import pds, pds_chains, pds_gaussians, pds_noise
from dmcmc_core.workbench.studies import pds_claims as claims

MANY = [
    "vanilla",
    "TDAS",
    "frequency",
    "space",
    "both",
    "inverse",
    "covariance",
    "as frequency",
    "as both",
    "as inverse",
]
MANY += ["no corrections", "ancestral", "karras"]
PLAIN, FIT = Preconditioner(pixel=torch.ones(64)), "covariance"


def near(value, spread=0.1):
    return Spread(value, spread, 3)


def test_a_chain_of_covariances_ends_where_doubling_says():
    K = pds_gaussians.gaussians()["pixels scaled"]
    m, e = pds_gaussians.arms(K, 5.0)[FIT], 0.02
    *_, last = pds_gaussians.covariances(m, e, K, 800)
    assert pds_gaussians.worst_error(last, K) == pytest.approx(pds_gaussians.stationary_error(m, e, K), rel=1e-6)
    assert pds_gaussians.stationary_error(m, 3.0, K) == math.inf


def test_the_largest_step_has_the_bias_that_is_allowed():
    K = pds_gaussians.gaussians()["stationary"]
    e = pds_gaussians.largest_step(PLAIN, K)
    assert pds_gaussians.stationary_error(PLAIN, e, K) == pytest.approx(pds_gaussians.BIAS, abs=1e-6)
    assert torch.allclose(pds_gaussians.per_frequency(K), pds_gaussians.spectrum())
    assert pds_gaussians.worst_error(1.3 * K, K) == pytest.approx(0.3)


def test_the_ratio_of_the_noise_settles_where_it_should():
    grid = torch.logspace(1, -2, 60, dtype=torch.float64)
    r = (grid[1] / grid[0]).item() ** 2
    assert pds_noise.ratio_after(grid, 1.0, snr=0.0) == pytest.approx(1 / r, rel=1e-3)
    c = 1.5
    assert pds_noise.ratio_after(grid, c, snr=0.0) == pytest.approx(c / (2 * c - 1 - c**2 * (1 - r)), rel=1e-3)


def test_white_data_are_denoised_by_their_share():
    x, sigma = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 10.0])
    assert torch.equal(pds_noise.White(1.0)(x, sigma), x / (1 + sigma[:, None] ** 2))
    assert not pds_noise.White(0.0)(x, sigma).any()


def test_one_gain_is_as_strong_as_the_gains_it_stands_for():
    m = Preconditioner(pixel=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(pds.constant(m).pixel.float(), torch.full((4,), 7.5**0.5))


ARMS = {"vanilla": [10, 20], "both": [10, 20], "as both": [20], "no corrections": [10], "ancestral": [10]}


def cells(**changed):
    far = {(arm, k): 5.0 for arm, some in ARMS.items() for k in some} | {("both", 10): 2.0, ("both", 20): 3.0}
    far |= {("ancestral", 10): 4.0} | changed.pop("far", {})
    return {("toy", arm, k): near(value) for (arm, k), value in far.items()}


def test_claims_on_arms_hold_and_fail():
    better, beyond, ancestral = claims.of_arms(cells(), "toy", ARMS, 100, "toy, n = 3, 3 seeds")
    assert better["holds"] and beyond["holds"] and ancestral["holds"]
    assert (
        better["here"]
        == "10 iterations: 2 ± 0.1 against 5 ± 0.1; 5 iterations: 3 ± 0.1 against 5 ± 0.1 (toy, n = 3, 3 seeds)"
    )
    worse = cells(far={("both", 20): 9.0, ("ancestral", 10): 5.0})
    better, beyond, ancestral = claims.of_arms(worse, "toy", ARMS, 100, "here")
    assert not (better["holds"] or beyond["holds"] or ancestral["holds"])
    assert better["note"] == "surely better at 1 of 2, surely worse at [5]"


def test_speed_ups_are_limited_by_the_first_that_fails():
    far = {("toy", "vanilla", k): near(v) for k, v in {10: 4.0, 20: 5.0, 30: 9.0, 60: 4.0}.items()}
    sampling = pds.Sampling(None, 1000, 5.0, 10)  # pyright: ignore
    (row,) = pds.limits(sampling, {"toy": {"vanilla": [10, 20, 30, 60]}}, far)
    assert row["own"] == row["plain"] == 20 and row["against"] == 100


def gaussian_rows(**changed):
    rows = {
        "plain": {"condition": 80.0, "rate": 0.1, "step": 0.1, "steps": 100},
        "published gains": {"condition": 60.0, "rate": 0.1, "step": 0.1, "steps": None},
        "inverse gains": {"condition": 90.0, "rate": 0.1, "step": 0.1, "steps": 100},
        FIT: {"condition": 1.0, "rate": 1.0, "step": 0.1, "steps": 10},
        "plain + S": {"condition": 80.0, "rate": 0.1, "step": 0.1, "steps": 100},
        "covariance + S": {"condition": 1.0, "rate": 2.0, "step": 0.1, "steps": 5},
    }
    rows = {arm: row | changed.get(arm, {}) for arm, row in rows.items()}
    return [{"of": of, "arm": arm} | row for of in ("stationary", "pixels scaled") for arm, row in rows.items()]


def test_claims_on_gaussians_hold_and_fail():
    assert all(c["holds"] for c in claims.of_gaussians(gaussian_rows(), 200))
    wrong = {"published gains": {"condition": 90.0}, FIT: {"steps": 11}, "covariance + S": {"steps": None}}
    made = claims.of_gaussians(gaussian_rows(**wrong), 200)
    assert not any(c["holds"] for c in made) and "published gains more than 200" in made[1]["here"]


def test_claims_on_the_predictor_and_its_noise_hold_and_fail():
    bias = {"c": 1.0, "formula": 1.0, "recursion": 1.04, "made0": near(1.05), "made1": near(1.03)}
    assert claims.of_predictor([bias, bias])["holds"]
    assert not claims.of_predictor([bias, bias | {"made0": near(1.2)}])["holds"]
    assert not claims.of_predictor([bias, bias | {"made1": near(1.2)}])["holds"]
    noise = {"top": 50, "iterations": 9, "part": 0.5, "plain": 1.5, "one": 1.2, "both": 1.7}
    noise |= {f"made_{what}": noise[what] for what in ("plain", "one", "both")}
    squared = {"plain": 1.0, "one": 1.5, "both": 2.5}
    assert claims.of_noise([noise], squared)["holds"]
    assert not claims.of_noise([noise | {"made_one": 1.4}], squared)["holds"]
    assert not claims.of_noise([noise | {"one": 1.6, "made_one": 1.6}], squared)["holds"]


def test_the_claim_on_corrections_holds_and_fails():
    about = {"bed": "toy", "speed_up": 10, "score": "network", "calls": 20.0, "chi2": 9.0}
    rows = [
        about | {"corrector": c, "distance": near(v)} for c, v in (("snr 0.16", 2.0), ("none, twice the levels", 3.0))
    ]
    (made,) = claims.of_corrections(rows)
    assert made["holds"] and "snr 0.16, 20 calls: 2 ± 0.1, chi² 9" in made["here"]
    (made,) = claims.of_corrections([rows[0] | {"distance": near(4.0)}, rows[1]])
    assert not made["holds"] and made["note"] == "surely worse"


def test_claims_on_chains_take_the_better_eta():
    def said(**far):
        made = {("toy", kind, eta, 10): near(value) for (kind, eta), value in far["far"].items()}
        (one,) = claims.of_chains(made, "toy", ["vanilla", "both", "as both"], [0.3, 1.0], [10], "here")
        return one

    far = {("vanilla", 0.3): 5.0, ("both", 0.3): 9.0, ("both", 1.0): 2.0, ("as both", 0.3): 4.0}
    assert said(far=far)["holds"] and said(far=far)["here"].startswith("2 ± 0.1 against 5 ± 0.1 (vanilla)")
    assert not said(far=far | {("as both", 0.3): 2.0})["holds"]
    assert said(far=far | {("both", 1.0): 9.0})["note"] == "surely worse"


def test_claims_on_mixing_hold_and_fail():
    def said(gained, drift):
        mixed = {
            ("langevin", k, 0.3): pds_chains.Mixed(near(v), Spread(drift, 0.01, 3), 1.0) for k, v in gained.items()
        }
        return [c["holds"] for c in claims.of_mixing(mixed, 3.4, 3)]

    assert said({"vanilla": 1.0, "both": 5.0, "as both": 2.0}, 0.1) == [True, True]
    assert said({"vanilla": 1.0, "both": 2.0, "as both": 2.0}, 1.0) == [False, False]


def test_mixing_of_exact_digits_begins_in_the_law():
    truth = pds_chains.truth()
    made = pds_chains.mixing(truth, None, "langevin", 1e-6, 1, 0, 2)
    assert abs(made.drift.mean) < 1.0 and pds_chains.highest_drift(truth) == pytest.approx(3.45, abs=0.01)
    assert list(pds_chains.mixing_gains(truth, 5.0, 50)) == [
        "vanilla",
        "both",
        "as both",
        "covariance",
        "as covariance",
    ]


def test_a_panel_has_eight_lines_at_most_and_an_arm_one_look():
    panels = pds.panels_of("digits", MANY)
    assert list(panels) == ["digits", "digits: other gains", "digits: without gains"]
    assert max(map(len, panels.values())) <= 8 and {arm for shown in panels.values() for arm in shown} == set(MANY)
    assert all(shown[0] == pds.VANILLA for shown in panels.values())
    assert set(MANY) == set(pds.LOOKS) and len(set(pds.LOOKS.values())) == len(MANY)
    assert pds.LOOKS["as both"] % 8 == pds.LOOKS["both"], "the same colour, as strong"
    assert pds.panels_of("glyphs", ["vanilla", "both"]) == {"glyphs": ["vanilla", "both"]}
