"""The study of gDDIM: exact trajectories, the cells of its tables, and claims that can hold and fail."""

import math

import pytest
import torch

from dmcmc_core import gddim, schedules
from dmcmc_core.errors import UserError
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import gddim_claims as claims
from dmcmc_core.workbench.studies import gddim_tables as study
from dmcmc_core.workbench.studies import gddim_trajectories as exact


def here(**means):
    """Distances of labels of CLD at 10 NFE, of n = 8."""
    return study.Found({("CLD", label, 10): Spread(v, 0.1, 3) for label, v in means.pop("of").items()}, 8)


def test_two_atoms_end_at_the_nearer_one():
    rows, (times, places, density) = exact.two_atoms(60)
    assert density.shape == (len(places), len(times)) and density.max() == 1
    last = {row["arm"]: row["y"] for row in rows if row["panel"] == "trajectory"}
    assert last["from -1.5"] == pytest.approx(-0.5, abs=0.05) and last["from +1.5"] == pytest.approx(0.5, abs=0.05)


def test_errors_fall_with_the_steps_and_no_noise_is_no_noise():
    plane = exact.plane(0, 2)
    (row,) = exact.errors_by_degree(plane, [4, 30], [1], tol=1e-4)
    assert row["degree"] == 1 and row["R 30"] < row["R 4"] and row["R 30"] < row["L 30"]
    grid = schedules.power(5, 1.0, 1e-3)
    same = gddim.sample(plane.sde, plane.model, plane.noise, grid, degree=0)
    noise = {"lam": 0.0, "noise": torch.zeros_like}
    assert torch.equal(same, gddim.sample(plane.sde, plane.model, plane.noise, grid, degree=0, **noise))
    weights = gddim.predictor_coefficients(plane.sde, schedules.power(20, 1.0, 1e-3), 3)
    assert all(math.isfinite(float(w.abs().max())) for w in weights)


def test_cells_are_those_of_the_tables():
    three = study.cells_of_table3(["VP", "CLD"], [10, 20], [70, 66])
    assert len(three) == 2 * (4 + 4 + 1 + 1)
    assert {c.sizes for c in three if c.diffusion in study.UNTRAINED} == {(70,)}
    assert [c.label for c in study.cells_of_table1([0, 2], [10], 70)] == [
        "R, degree 0", "R, degree 2", "L, degree 0", "L, degree 2", "R, degree 2, corrector",
    ]  # fmt: skip
    assert [c.options.get("released", False) for c in study.cells_of_table2([1.0], 10, 70)] == [False, True, False]
    assert all(c.together for c in study.cells_of_more(["VP"], [100], 66))


def test_cells_that_cost_too_much_are_empty_and_other_errors_are_told(monkeypatch):
    nets = study.Nets({}, "digits", "digits-heldout", "digits-cnn", "cpu", None)  # pyright: ignore
    cell = study.Cell("CLD", "gDDIM", "gddim", 1, (8,), {})

    def refused(self, cell, seeds):
        raise UserError("1 NFE are too few" if cell.budget == 1 else "another reason")

    monkeypatch.setattr(study.Nets, "drawn", refused)
    assert nets.rows([cell], [0, 1], 8) == []
    with pytest.raises(UserError, match="another reason"):
        nets.rows([cell._replace(budget=2)], [0], 8)


def test_images_are_measured_by_size_and_seed(monkeypatch):
    nets = study.Nets({}, "digits", "digits-heldout", "digits-cnn", "cpu", None)  # pyright: ignore
    monkeypatch.setattr(study.Nets, "drawn", lambda self, cell, seeds: (torch.zeros(len(seeds), 8, 1, 2, 2), 9.0))
    monkeypatch.setattr(study.Nets, "measure", "the reference")
    monkeypatch.setattr(study.metrics, "measure", lambda images, ref: {"n": len(images), "frechet": float(len(images))})
    rows = nets.rows([study.Cell("CLD", "gDDIM", "gddim", 10, (8, 6), {}, together=True)], [3, 4], 8)
    assert [(r["seed"], r["n"], r["method"]) for r in rows] == [
        (seed, size, label) for seed in (3, 4) for size, label in ((8, "gDDIM"), (6, "gDDIM, 6 images"))
    ]
    found = study.found(rows, 8)
    assert found.mean("CLD", "gDDIM", 10).mean == 8 and found.mean("CLD", "gDDIM", 10, 6).mean == 6
    assert found.mean("CLD", "gDDIM", 20) is None


def test_tables_have_published_numbers_beside_those_here():
    found = here(of={"gDDIM": 5.0, "SSCS": 6.0, "R, degree 0": 7.0, "gDDIM, lambda 0": 8.0})
    rows = study.table3(found, ["CLD"], [10], [8])
    assert [r["sampler"] for r in rows if r["diffusion"] == "CLD"] == list(study.SAMPLERS["CLD"])
    assert rows[3]["here 10"].mean == 5 and rows[3]["paper 10"] == "13.41" and rows[1]["paper 10"] is None
    assert study.table1(found, [0], [10])[0]["10"].mean == 7 and study.table1(found, [0], [20])[-1]["20"] == "368"
    assert study.table2(found, [0.0], 10)[0]["gddim"].mean == 8
    assert [line["arm"] for line in study.lines(found, ["CLD"], [10])] == ["SSCS", "gDDIM"]


def test_claims_on_tables_hold_and_fail():
    def said(value):
        found = here(of={"gDDIM": value, "SSCS": 5.0, "Euler-Maruyama": 5.0})
        return claims.of_table3(found, ["CLD"], [10, 11], {10: 8, 11: 8}, 3)

    assert [c["holds"] for c in said(2.0)] == [True, True] and [c["holds"] for c in said(5.0)] == [False, False]
    em, sscs = said(9.0)
    assert em["note"] == "the other way round" and em["published"] == "13.41 against >100" and not sscs["published"]
    assert em["here"] == "gDDIM 9 ± 0.1, Euler-Maruyama 5 ± 0.1 (CLD, 10 NFE, digits, n = 8, 3 seeds)"


@pytest.mark.parametrize("holds", [True, False])
def test_claims_on_roots_noise_and_untrained_networks_hold_and_fail(holds):
    far, near = (9.0, 2.0) if holds else (2.0, 9.0)
    found = here(of={"R, degree 2": near, "L, degree 2": far})
    assert [c["holds"] for c in claims.of_roots(found, [0, 2], [10], 3)] == [holds]
    found = here(of={"gDDIM, lambda 0": near, "gDDIM, lambda 1": 5.0, "as released, lambda 1": far})
    assert [c["holds"] for c in claims.of_noise(found, [0.0, 1.0], 10, 3)] == [holds, holds]
    means = {(f"{sde}{end}", "gDDIM", 10): Spread(v, 0.1, 3)
             for sde in ("VP", "CLD") for end, v in (("", far), (" from the VE net", near))}  # fmt: skip
    assert [c["holds"] for c in claims.of_untrained(study.Found(means, 8), [10], 3)] == [holds, holds]


def test_claims_on_exact_scores_hold_and_fail():
    low, high = {"R 20": 1.0, "L 20": 1.0}, {"R 20": 1.2, "L 20": 20.0}
    assert all(c["holds"] for c in claims.of_trajectories({"R": 1.0, "L": 2.0}, [low, {}, {}, high], 20))
    made = claims.of_trajectories({"R": 2.0, "L": 2.0}, [low, {}, {}, high | {"R 20": 2.0}], 20)
    assert not any(c["holds"] for c in made)
