"""The diagram of chains on a line and Figure 1: what is measured, and that each claim can fail."""

import math

import pytest
import torch

from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import dlg_claims as claims
from dmcmc_core.workbench.studies import dlg_diagram as diagram
from dmcmc_core.workbench.studies import dlg_levels as climbing
from dmcmc_core.workbench.studies.dlg_starts import CONSTANT, DLG, MEAN, ZERO

LINE = diagram.Line([-4.0, 4.0], 0.3, [0.5, 0.5], 0.05, 30.0, 1.0, chains=8, steps=20, shown=11, n_skip=5, levels=6)


@pytest.fixture(scope="module")
def measured():
    runs = [LINE.run(kernel, 0) for kernel in (LINE.joint(), LINE.in_x())]
    return runs, diagram.measure(LINE, *runs, 0)


def test_chains_begin_in_the_first_mode_and_only_noise_takes_them_elsewhere(measured):
    (run, fixed), found = measured
    assert run.x.shape == run.sigma.shape == (21, 8) and run.ran_at.shape == (20, 8)
    assert (LINE.mode(run.x[0]) == 0).all() and (fixed.sigma == 0.05).all()
    assert found.quantities[diagram.CHANGES] == (LINE.mode(run.x[1:]) != LINE.mode(run.x[:-1])).sum() > 0
    assert found.quantities[diagram.STILL] == 0
    assert found.visits.shape == (8, 2) and torch.allclose(found.visits.sum(1), torch.ones(8, dtype=torch.float64))


def test_paths_end_in_a_mode_and_begin_at_their_starts(measured):
    (run, _), found = measured
    calm = LINE.calmest(run, 10)
    assert torch.equal(found.short.x[0], calm.x[:, 0]) and torch.equal(found.short.sigma[0], calm.sigma)
    assert torch.equal(calm.sigma, run.sigma[10:16].min(0).values)
    assert ((found.long.end[:, None] - LINE.modes).abs().min(1).values < 2).all()
    assert found.quantities[f"{diagram.LENGTH} from noise"] == pytest.approx(math.log(600))
    figure, rows = diagram.figure(LINE, run, found)
    assert len(figure.axes) == 1 and {row["what"] for row in rows} >= {"chain", "denoising from noise"}


def holds(made, text):
    (found,) = [c for c in made if text in c["claim"]]
    return found["holds"]


def test_claims_on_the_line_can_fail():
    good = {diagram.ABOVE: 1.0, diagram.OTHERS_ABOVE: 0.4, diagram.LOWEST: 2.0, diagram.STILL: 0, diagram.CHANGES: 9}
    good |= {f"{what} from {where}": v for what in ("length of paths", "way in x") for where, v in _ENDS.items()}
    shares = [Spread(0.55, 0.1, 8), Spread(0.45, 0.1, 8)]

    def said(changed=None, visits=shares):
        quantities = {k: Spread(v, 0.0, 2) for k, v in (good | (changed or {})).items()}
        return claims.of_line(LINE, quantities, visits, "here")

    assert all(c["holds"] for c in said())
    assert not holds(said({diagram.ABOVE: 0.98}), "only at high noise")
    assert not holds(said({diagram.STILL: 1}), "without noise levels")
    assert not holds(said(visits=[Spread(0.6, 0.1, 8), Spread(0.4, 0.1, 8)]), "as often as they weigh")
    assert not holds(said({"way in x from chains": 3.0}), "nearer to the end")


_ENDS = {"chains": 1.0, "noise": 2.0}


def test_claims_on_starts_say_which_way():
    far = {ZERO: Spread(9.0, 0.1, 3), MEAN: Spread(5.0, 0.1, 3), DLG: Spread(7.0, 0.1, 3), CONSTANT: Spread(5, 0.1, 3)}
    made = claims.of_starts("toy", far, 9, "distance", "here")
    assert [c["holds"] for c in made] == [True, False, False]
    assert [c["note"] for c in made] == ["", "it is worse", "the seeds cannot tell"]
    assert [bool(c["published"]) for c in made] == [True, False, False]


def test_the_claim_on_windows_can_fail():
    def said(medians, arm=DLG, full=0.0):
        rows = [{"median sigma": m, "at sigma_max": full} for m in medians]
        settings = {"eta": 1.0, "step": "sigma2", "chains": 8, "n_skip": 5, "renoise": 2.0}
        return claims.of_windows("toy", arm, rows, 50.0, settings, 0)

    assert (
        said([1, 2, 3])["holds"]
        and said([1, 50, 50], full=0.5)["note"] == "50% of the chains are at sigma_max in window 2"
    )
    assert not said([1, 2, 2])["holds"] and "so few pixels" in said([1, 2, 2])["note"]
    assert said([1, 2], CONSTANT)["published"] == "1.41, 1.68, 1.79, 2.03"
    assert "12.5, 7.2, 21.0 steps" in said([1, 2], CONSTANT)["note"]


@pytest.mark.parametrize("kernel", [{"step": "constant", "eta": 0.5}, {"step": "sigma2", "eta": 0.3}])
def test_the_bias_is_that_of_an_unadjusted_step_on_a_fixed_image(kernel):
    """Of a data set of one image D never changes: the variance of x - D follows the step's own recursion, to e⁴."""
    sigma, variance = torch.tensor(1.5, dtype=torch.float64), 1.5**2
    for k in range(1, 4):
        e = kernel["eta"] * (1 if kernel["step"] == "constant" else variance)
        variance = variance * (1 - e / (2 * variance)) ** 2 + e
        assert climbing.expected(kernel, sigma, 3)[k].item() == pytest.approx(variance**0.5, rel=3e-4)


def test_claims_on_levels_can_fail():
    kernel, other = ({"kernel": k, "step": "constant", "eta": 0.5} for k in ("langevin", "mala"))
    path = climbing.expected(kernel, torch.tensor(1.0, dtype=torch.float64), 4)
    rising, still = (levels[:, None, None].expand(5, 2, 3) for levels in (path, torch.ones(5, dtype=torch.float64)))

    def said(kernel, levels):
        curve, row = climbing.climb("toy", kernel, levels, 0.9)
        assert sum(bool(p.get("expected")) for p in curve) == (0 if row["adjusted"] else 5)
        return claims.of_level(row, 4, 6)

    assert said(kernel, rising)["holds"] and not said(kernel, still)["holds"]
    assert "rises by 0 ± 0 of the expected" in said(kernel, still)["note"]
    assert said(other, still)["holds"] and not said(other, rising)["holds"]
