"""The study of fitted solvers: pairs, controls, networks of other kinds, and claims that can fail."""

import dataclasses

import pytest
import torch
from exact import images_mixture

from dmcmc_core import UserError, integrators, load_model, schedules
from dmcmc_core.data import digits
from dmcmc_core.integrators import Fitted
from dmcmc_core.workbench.studies import fitted_claims as claims
from dmcmc_core.workbench.studies import fitted_solvers as study
from dmcmc_core.workbench.studies.fitted_solvers import BEST, FITTED, GRID_ALONE, TWO_M

BUDGETS = [3, 6]


@pytest.fixture(scope="module")
def bed():
    return study.make_bed("mixture", images_mixture(10.0), 12, [3, 4])


@pytest.fixture(scope="module")
def fits(bed):
    return study.fits(bed, BUDGETS, 24)


@pytest.fixture(scope="module")
def found(bed, fits):
    classic, grids = study.classical_errors(bed, BUDGETS)
    return study.fitted_errors(bed, fits, FITTED) | classic, grids


def flat(*means, n=20, noise=0.0):
    """Errors of some seeds, all images of one alike but for a noise that other flat errors share."""
    shared = torch.randn(len(means), n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64)[:, None] + noise * shared.abs()


def test_errors_are_of_the_noise_of_each_seed(bed, found):
    accurate = study.errors(bed, lambda _: study.classical(bed.model, "unipc", "karras", study.ACCURATE))
    assert accurate.shape == (2, 12) and not accurate.any()
    assert not torch.equal(bed.noise[3], bed.noise[4])
    again = study.make_bed("again", bed.model, 5, [4])
    assert torch.equal(again.noise[4], bed.noise[4][:5])
    for solver in (FITTED, TWO_M):
        swapped = {3: bed.truth[4], 4: bed.truth[3]}
        other = study.errors(bed._replace(truth=swapped), lambda _: study.classical(bed.model, "dpmpp_2m", "karras", 6))
        assert (study.rms(other) > 3 * study.rms(found[0][solver, 6])).all()


def test_each_classical_solver_has_its_better_grid(bed, found):
    errors, grids = found
    assert set(grids) == {(label, nfe) for label in study.CLASSICAL.values() for nfe in BUDGETS}
    own = study.make_bed("own", bed.model, study.CHOOSING, [10_003])
    for name, label in study.CLASSICAL.items():
        tried = {g: study.errors(own, lambda _, g=g: study.classical(bed.model, name, g, 6)) for g in study.GRIDS}  # noqa: B023
        assert grids[label, 6] == min(tried, key=lambda g: study.rms(tried[g]).item())  # noqa: B023
        there = study.errors(bed, lambda _: study.classical(bed.model, name, grids[label, 6], 6))  # noqa: B023
        assert torch.equal(errors[label, 6], there)


@pytest.mark.parametrize("jump", [False, True])
def test_the_classical_solver_on_a_found_grid_is_itself_after_the_jump(bed, jump):
    sigmas = torch.tensor([10.0, 2.0, 0.7, 0.2, 0.0], dtype=torch.float64)
    rows = torch.zeros(4, 5, dtype=torch.float64)
    rows[0, 0] = 0.2
    one = study.on_grid(Fitted(sigmas, rows, jump, "mean", {"network": "another"}))
    x, entry = bed.noise[3], integrators.INTEGRATORS["dpmpp_2m"]
    wanted = entry(bed.model, x, sigmas)
    if jump:
        wanted = entry(bed.model, bed.model.mean + 0.2 * (x - bed.model.mean), sigmas[1:])
    assert one.nfe == 4 - jump and torch.allclose(one(bed.model, x), wanted, atol=1e-5)


def test_controls_lack_what_they_are_named_after(bed, fits, found):
    controls = study.control_errors(bed, fits, [6], 24)
    assert {solver for solver, _ in controls} == {GRID_ALONE, study.KARRAS, study.ASSUMED}
    on_karras = study.fits(bed, [6], 24, grid="karras")
    for one in (some[6] for some in on_karras.values()):
        assert torch.allclose(one.sigmas, schedules.karras(6, 10.0, bed.model.sigma_min))
    assert torch.equal(controls[study.KARRAS, 6], study.fitted_errors(bed, on_karras, "k")["k", 6])
    assert study.spread(found[0][FITTED, 6]).mean < study.spread(controls[GRID_ALONE, 6]).mean


def test_a_vp_network_is_a_denoiser_of_digits():
    model, own, images = study.load("digits-vp"), load_model("digits"), digits("heldout").images[:64]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (model.sigma_min, model.sigma_max, tuple(model.shape)) == (0.01, 10.0, (1, 8, 8))
    for sigma in (0.05, 0.3, 2.0):
        x = images + sigma * noise
        errors = [(net(x, torch.tensor(sigma)) - images).square().mean().sqrt().item() for net in (model, own)]
        assert 0.9 < errors[0] / errors[1] < 1.2, (sigma, errors)
    with pytest.raises(UserError, match="digits-cld is of CLD: only VP"):
        study.load("digits-cld")


def test_a_solver_serves_another_network_only_where_its_card_forgets(bed, fits):
    known = {
        seed: {6: dataclasses.replace(some[6], card=some[6].card | {"network": "0" * 16})}
        for seed, some in fits.items()
    }
    with pytest.raises(UserError, match="fitted to another network"):
        study.fitted_errors(bed, known, FITTED)
    moved = study.transfer_errors({"a": bed}, {"a": fits, "b": known}, [6], {})
    assert set(moved) == {("a", "a", 6), ("b", "a", 6), (BEST, "a", 6)}
    assert torch.equal(moved["a", "a", 6], moved["b", "a", 6])
    assert torch.equal(moved["a", "a", 6], study.fitted_errors(bed, fits, FITTED)[FITTED, 6])
    far = study.Bed("far", bed.model, bed.noise, {seed: x + 0.5 for seed, x in bed.truth.items()})
    assert study.apart({"a": bed, "far": far}) == {("a", "far"): pytest.approx(0.5)}


def test_rows_for_figures_and_tables(bed, fits, found):
    rows = study.rows_of(bed, *found)
    assert len(rows) == 8 * len(BUDGETS) * 2 and {r["nfe"] for r in rows if r["solver"] == "Heun (KAR1)"} == {3, 5}
    (line,) = [r for r in study.table(rows, BUDGETS) if r["solver"] == FITTED]
    assert line["nfe6"] == study.spread(found[0][FITTED, 6]) and line["nfe6"].n == 2
    some = study.controls(rows, [6])
    assert {(r["solver"], r["budget"]) for r in some} == {(FITTED, 6), (TWO_M, 6)} and "nfe6" in study.heads([6])
    levels = study.grid_rows(bed, fits, [6])
    assert [r["x"] for r in levels if not r["expected"]] == [1, 2, 3, 4, 5, 6]
    assert levels[-1]["expected"] and levels[-1]["y"].mean == pytest.approx(bed.model.sigma_min)
    coefficients = study.coefficient_rows(fits, 6)
    assert len(study.lines(rows)) < len(rows) / 2, "an error above the data's range is not drawn"
    assert len(coefficients) == 2 * sum(len(some[6].coefficients) for some in fits.values())
    first = coefficients[0]
    assert (first["from"], first["a"]) == (10.0, fits[3][6].coefficients[0, 0].item())
    assert all(row["x"] >= 1 for row in study.coefficient_curves(coefficients))
    crossed = study.between_seeds(bed, fits, 6)
    assert torch.allclose(crossed.diag(), study.rms(found[0][FITTED, 6]))
    assert not torch.allclose(crossed[0, 1], crossed[0, 0])
    panels = study.pictures(bed, fits, [6], 4)
    assert torch.equal(panels["6 calls"]["accurate"], bed.truth[3][:4])
    assert torch.allclose(panels["6 calls"][FITTED], fits[3][6](bed.model, bed.noise[3][:4]))


def test_cost_rows_have_both_noises(bed, fits, found):
    rows = study.cost_rows(bed, {24: fits}, found[0], [6])
    line = {(row["line"], row["seed"]): row["error"] for row in rows}
    assert line[study.OTHER_NOISE, 4] == study.rms(found[0][FITTED, 6])[1].item()
    assert line[study.OWN_NOISE, 4] == fits[4][6].card["fit"]
    assert {row["cost"] for row in rows} == {some[6].cost for some in fits.values()} and rows[0]["together"] == 2
    drawn, ylabels = study.cost_lines(rows)
    assert {row["line"] for row in drawn} == {row["line"] for row in rows} and all(
        row["distance"].n == 2 for row in drawn
    )
    assert set(ylabels) == {row["panel"] for row in rows} and set(study.COSTS) <= set(rows[0])


def test_nearer_is_of_pairs_and_of_every_seed():
    near, far = flat(0.1, 0.2, noise=0.5), flat(0.11, 0.21, noise=0.5)
    assert study.nearer(near, far) and not study.nearer(far, near)
    assert not study.nearer(near, near)
    assert not study.nearer(flat(0.1, 0.3, noise=0.5), far), "one of the seeds is farther"
    tails = near.clone()
    tails[:, 0] += 5
    assert not study.nearer(tails, far), "of most images it is, of the root mean square it is not"
    turned = far.flip(1)
    assert not study.nearer(near, turned), "without pairs the same difference is lost in the spread of images"


def test_the_paired_error_of_a_seed_is_that_of_all_its_pixels():
    assert study.rms(torch.tensor([[3.0, 4.0], [1.0, 1.0]])).tolist() == pytest.approx([12.5**0.5, 1.0])
    assert study.spread(torch.tensor([[1.0], [3.0]]))[:2] == pytest.approx((2.0, 2.0**0.5))


def holds(made):
    return [c["holds"] for c in made]


def test_claims_on_errors_can_fail():
    errors = {
        (label, nfe): flat(0.4 + 0.01 * k, 0.5) for k, label in enumerate(study.CLASSICAL.values()) for nfe in (4, 8)
    }
    errors |= {(FITTED, 4): flat(0.1, 0.1), (FITTED, 8): flat(0.1, 0.1)}
    assert holds(claims.of_errors(errors, "here")) == [True, True, True]
    errors[FITTED, 8] = flat(0.3, 0.3)
    made = claims.of_errors(errors, "here")
    assert holds(made) == [True, False, True] and "0.67 at 8" in made[1]["here"] and made[1]["note"]
    errors[FITTED, 8] = flat(0.39, 0.6)
    made = claims.of_errors(errors, "here")
    assert holds(made) == [False, False, True] and made[0]["note"] == "not surely at 8"
    errors[TWO_M, 8] = flat(0.1, 0.1)
    assert claims.of_errors(errors, "here")[2]["note"] == "of all budgets surely at none"


def test_claims_on_controls_can_fail():
    errors = {(name, 5): flat(0.2, 0.3) for name in (GRID_ALONE, study.KARRAS, study.ASSUMED, TWO_M)}
    errors[FITTED, 5] = flat(0.1, 0.1)
    assert holds(claims.of_controls(errors, "here")) == [True, True, True]
    errors[study.ASSUMED, 5] = flat(0.1, 0.1)
    made = claims.of_controls(errors, "here")
    assert holds(made) == [True, True, False] and made[2]["note"].endswith("2 of 2 fits took the same solver")


def test_claims_on_cost_can_fail():
    def rows(own, other):
        lines = {study.OWN_NOISE: own, study.OTHER_NOISE: other, BEST: {8: 0.5, 64: 0.5}}
        about = {"budget": 5, "seed": 0, "solver": FITTED}
        return [{**about, "line": k, "trajectories": t, "error": e} for k, es in lines.items() for t, e in es.items()]

    assert holds(claims.of_cost(rows({8: 0.05, 64: 0.1}, {8: 0.12, 64: 0.12}), "here")) == [True, True, True]
    made = claims.of_cost(rows({8: 0.05, 64: 0.1}, {8: 0.6, 64: 0.2}), "here")
    assert holds(made) == [False, False, False] and "2.00 at 5; of 8 trajectories 12.00 at 5" in made[0]["here"]


def test_claims_on_other_networks_and_noise_can_fail():
    errors = {(a, b, 5): flat(0.1, 0.1) if a == b else flat(0.2, 0.2) for a in "cd" for b in "cd"}
    errors |= {(BEST, b, 5): flat(0.3, 0.3) for b in "cd"}
    assert holds(claims.of_transfer(errors, {}, "here")) == [True] * 3
    errors["d", "c", 5], errors["c", "d", 5] = flat(0.05, 0.2), flat(0.4, 0.4)
    made = claims.of_transfer(errors, {("c", "d"): 0.25}, "here")
    assert holds(made) == [False, True, False] and made[0]["note"] == "surely at none of them"
    assert made[2]["note"].startswith("not surely: d on c; ") and made[2]["note"].endswith("c and d 0.250")
    assert claims.of_seeds({5: torch.tensor([[1.0, 2.0], [1.05, 2.1]])}, "here")["holds"]
    assert not claims.of_seeds({5: torch.tensor([[1.0, 2.0], [1.3, 2.6]])}, "here")["holds"]
