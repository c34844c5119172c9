"""The study of the six integrators: which cells are made, and claims that can hold and fail."""

from typing import NamedTuple

import pytest

from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import six_integrators as study
from dmcmc_core.workbench.studies import six_integrators_claims as claims
from dmcmc_core.workbench.studies.six_integrators import DLG, INTEGRATORS, MEAN, ZERO

BUDGETS = {"toy": {"default": [10, 20], "rk45": [30, 40]}}
CHAIN, WINDOWS = {"toy": {"chains": 8, "eta": 0.3}}, {"toy": {"default": {"n_skip": 1}, "rk45": {"n_skip": 2}}}


def cells(changed=(), beginning=5.0):
    """Cells of every integrator at 10 and 20 NFE: 5 without chains, 2 with them, but for what is changed."""
    far = {
        ("toy", label, arm, b): 2.0 if arm == DLG else beginning
        for label in INTEGRATORS.values() for arm in (ZERO, MEAN, DLG) for b in (10, 20)
    } | dict(changed)  # fmt: skip
    details = {
        key: dict(zip(study.BY, key, strict=True)) | {"frechet": Spread(v, 0.1, 3), "nfe": Spread(key[3] - 0.4, 0.1, 3)}
        for key, v in far.items()
    }
    return study.Cells(details, {key: 4 if key[2] == DLG else 9 for key in far})


class Published(NamedTuple):
    what: str
    value: str
    source: str = "a paper"


def test_figure_3_has_three_arms_of_one_budget():
    wanted = study.equal_budgets({"heun": [(10, {"n_skip": 2})]}.get, CHAIN["toy"], {"block": 9})
    ((zero, mean, dlg),) = wanted("toy", "heun")
    assert zero == (ZERO, 10, "heun", {"start": "zero", "block": 9}) and mean.settings["start"] == "mean"
    assert dlg == (DLG, 10, "dlg+heun", {"start": "mean", "block": 9, "chains": 8, "eta": 0.3, "n_skip": 2})


def test_figure_4_has_a_low_budget_with_chains_and_a_control_at_both():
    (some,) = study.low_and_high(BUDGETS, CHAIN, WINDOWS)("toy", "rk45")
    assert [(w.arm, w.budget, w.sampler) for w in some] == [
        (ZERO, 40, "rk45"), (DLG, 30, "dlg+rk45"), (MEAN, 30, "rk45"), (MEAN, 40, "rk45"),
    ]  # fmt: skip
    assert some[1].settings == {"start": "mean", "chains": 8, "eta": 0.3, "n_skip": 2}
    assert study.of(WINDOWS, "toy", "heun") == {"n_skip": 1}


def test_tables_tell_of_copies_where_a_bed_can():
    row = {"bed": "toy", "integrator": "RK45", "arm": ZERO, "budget": 10, "levels": 5}
    row |= {k: 1.0 for k in (*study.HEADS, "nearer_train", "nearer_train_fresh")} | {"nearer_train_fresh": 0.68}
    heads = study.heads(study.cells_of([row]), copies=True)
    assert list(heads)[-1] == "nearer_train" and "data_covered" not in heads
    assert "nearer_train" not in study.heads(study.cells_of([row]))
    assert study.about_copies([row]).endswith("(0.68 for held-out images).")
    assert "0.900 is expected" in study.about_copies([{"data_covered": 1.0, "data_covered_by_exact_draws": 0.9}])


def test_claims_of_figure_3_hold_and_fail():
    budgets, paper = (
        dict.fromkeys(INTEGRATORS, [10, 20]),
        [Published("heun", "2.63"), Published("heun at 10 and 1000", "3.86")],
    )
    made = claims.at_equal_budgets(cells(), "toy", budgets, "toy, n = 8", paper)
    assert len(made) == 14 and all(c["holds"] for c in made)
    assert made[0]["published"] == "2.63" and made[1]["published"] is None and made[-2]["published"] == "3.86"
    assert made[0]["here"] == "2 against 5 at 10 NFE; 2 against 5 at 20 NFE (toy, n = 8)" and not made[0]["note"]
    assert made[4]["note"] == "adaptive: with and without DLG it used 10 and 10, 20 and 20 NFE"
    wrong = {("toy", label, DLG, 10): 9.0 for label in INTEGRATORS.values()}
    made = claims.at_equal_budgets(cells(wrong), "toy", budgets, "here")
    assert not any(c["holds"] for c in made) and made[0]["note"] == "DLG is worse at 10, better at 20 NFE"


@pytest.mark.parametrize(("value", "word"), [(9.0, "worse"), (5.0, "no sure difference")])
def test_claims_of_figure_4_hold_and_fail(value, word):
    budgets = {"toy": {"default": [10, 20]}}
    made = claims.low_against_high(cells(), "toy", budgets, "here", [Published("heun", "14.11")])
    assert len(made) == 12 and all(c["holds"] and not c["note"] for c in made)
    assert made[0]["published"] == "14.11" and made[6]["published"] is None
    wrong = {("toy", label, DLG, 10): value for label in INTEGRATORS.values()}
    made = claims.low_against_high(cells(wrong), "toy", budgets, "here")
    assert not any(c["holds"] for c in made) and made[0]["note"].startswith(f"{word}; at 10 NFE DLG is ")
    assert (
        "which has 9 levels where the chains leave 4; from 10 to 20 NFE that start gains nothing sure"
        in made[0]["note"]
    )
