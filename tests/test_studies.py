"""The logic of notebooks: what the study of score embedding makes of profiles, and what it claims."""

import math

import pytest
import torch

from dmcmc_core.errors import UserError
from dmcmc_core.training.loop import threads
from dmcmc_core.workbench.studies import score_embedding as study
from dmcmc_core.workbench.studies import score_embedding_curves as curves
from dmcmc_core.workbench.studies.fokker_planck import exact, residuals, solver_rows

METHOD = {"name": "x", "steps": 3, "pictures": "skimage", "lr": 1e-3, "size": 16}
DDPM = {"name": "y", "steps": 3, "pictures": "skimage", "lr": 2e-3, "warmup": 50, "clip": 1}


def profile(arm, seed, rise, steps=200, every=10, solve=2.0):
    """Rows of a training whose similarity rises linearly and is 1 at step ``rise``."""
    return [
        {"arm": arm, "seed": seed, "step": step, "ssim": min(1.0, step / rise), "mse": 1 - min(1.0, step / rise)}
        | {"train_seconds": step / 10, "solve_seconds": solve}
        for step in range(every, steps + 1, every)
    ]


def rows_of(rises):
    return [row for arm, own in rises.items() for seed, rise in enumerate(own) for row in profile(arm, seed, rise)]


def test_controls_change_one_thing():
    arms = study.arms(METHOD, DDPM, DDPM | {"name": "z"}, {"DDPM": {"steps": 9}})
    base = arms[study.METHOD].config
    for name, changed in (("random shift", {"mode"}), ("no embedding", {"mode"}), ("consistent equation", {"mode"})):
        config = arms[name].config
        assert arms[name].kind == "embedded"
        assert {key for key in config if config[key] != base.get(key)} == changed
    matched = arms["DDPM, rate of the method"].config
    assert (matched["lr"], matched["warmup"], matched["clip"]) == (1e-3, 0, 0.0)
    assert matched == DDPM | {"lr": 1e-3, "warmup": 0, "clip": 0.0}
    raw = arms["DDPM, rate of the method, raw weights"].config
    assert raw == matched | {"ema": 0.0}
    slow = arms["embedding, rate of DDPM"].config
    assert (slow["lr"], slow["warmup"], slow["clip"]) == (2e-3, 50, 1)
    assert arms["DDPM"].config["steps"] == 9 and arms["DDIM"].kind == "ddim"
    with pytest.raises(UserError, match="unknown arm 'DDMP': did you mean 'DDPM'"):
        study.arms(METHOD, DDPM, DDPM, {"DDMP": {}})


def test_crossings_are_where_the_line_reaches_the_level():
    found = study.crossing_rows(rows_of({"embedding": [100.0, 1000.0]}), levels=(0.905, 0.95))
    first = next(row for row in found if row["seed"] == 0 and row["level"] == 0.905)
    assert first["first"] == first["sustained"] == pytest.approx(90.5)
    assert first["train_seconds"] == pytest.approx(9.05) and first["with_solve"] == pytest.approx(11.05)
    assert first["mse"] == pytest.approx(0.095) and first["last"] == 1 and first["steps"] == 200
    never = next(row for row in found if row["seed"] == 1 and row["level"] == 0.95)
    assert all(math.isnan(never[key]) for key in ("first", "sustained", "train_seconds", "with_solve", "mse"))


def test_a_table_pairs_the_seeds():
    rises = {"embedding": [100.0, 120.0, 140.0], study.PLAIN: [110.0, 130.0, 152.0], "DDPM": [150.0, 900.0, 900.0]}
    table = {row["arm"]: row for row in study.crossing_table(study.crossing_rows(rows_of(rises)), 0.95)}
    assert table["embedding"]["difference"].mean == pytest.approx(-0.95 * (10 + 10 + 12) / 3)
    assert table["embedding"]["p"] < 0.01 and table["embedding"]["crossed"] == "3 of 3"
    assert table["DDPM"]["crossed"] == "1 of 3" and table["DDPM"]["first"].mean == pytest.approx(142.5)
    assert table[study.PLAIN]["difference"] is None and table[study.PLAIN]["p"] is None


def claims_of(rises):
    found = study.crossing_rows(rows_of(rises))
    return {claim["claim"]: claim["holds"] for claim in study.claims(found, 0.95, "here")}


def test_claims_can_go_either_way():
    embedding = "the embedding itself makes it faster: fewer steps to SSIM 0.95 than without it"
    warm_up = "DDPM reaches SSIM 0.95 in fewer steps at the rate of the method, without warm-up"
    faster, slower, even = [100.0, 102.0, 104.0, 99.0], [120.0, 123.0, 125.0, 118.0], [104.0, 98.0, 107.0, 97.0]
    assert claims_of({"embedding": faster, study.PLAIN: slower})[embedding]
    assert not claims_of({"embedding": slower, study.PLAIN: faster})[embedding]
    assert not claims_of({"embedding": faster, study.PLAIN: even})[embedding]
    direction = "its direction matters: fewer steps to SSIM 0.95 than with a random shift of the same size"
    assert claims_of({"embedding": faster, "random shift": slower})[direction]
    assert not claims_of({"embedding": even, "random shift": faster})[direction]
    rate = "DDPM, rate of the method"
    assert claims_of({"DDPM": [900.0] * 4, rate: faster})[warm_up]  # none of the one crosses, all of the other do
    assert not claims_of({"DDPM": [900.0] * 4, rate: [900.0] * 4})[warm_up]
    assert not claims_of({"DDPM": faster, rate: [900.0] * 4})[warm_up]
    assert warm_up not in claims_of({"embedding": faster, study.PLAIN: slower})


def test_an_arm_that_had_no_time_to_cross_says_nothing():
    found = study.crossing_rows(
        [r for r in rows_of({"embedding": [100.0, 110.0]})] + profile("DDPM", 0, 900.0, steps=50)
    )
    claims = {claim["claim"]: claim["holds"] for claim in study.claims(found, 0.95, "here")}
    assert not claims["the method reaches SSIM 0.95 in fewer steps than DDPM as published"]


def test_published_numbers_stand_beside_those_of_their_level_and_pictures():
    found = study.crossing_rows(rows_of({"embedding": [100.0, 120.0], "DDPM": [900.0, 900.0]}))
    entries = [(f"CIFAR-10, {what}", 1, "x") for what in (
        "1 picture, SSIM 0.98, method", "1 picture, SSIM 0.95, DDPM", "1 picture, SSIM 0.95, DDIM",
        "3 pictures, SSIM 0.95, method",
    )]  # fmt: skip
    here = [row["here"] for row in study.beside_published(entries, found, 1)]
    assert here[0].mean == pytest.approx(0.98 * 110) and here[1:] == ["not reached", None, None]


def test_the_closed_form_needs_no_training():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = exact(images, {"sigma": 5.0, "times": 10, "tol": 1e-4}, range(2))
    assert len(rows) == 4
    plain, shifted = (
        [row["ssim"] for row in rows if row["arm"] == name]
        for name in ("closed form", "closed form of the shifted picture")
    )
    assert min(plain) > 0.95
    assert plain != shifted and all(abs(a - b) < 0.005 for a, b in zip(plain, shifted, strict=True))


def test_the_solver_is_measured_against_the_exact_field():
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = solver_rows({16: image}, {"sigma": 5.0, "times": 10, "tol": 1e-6})
    assert [row["mode"] for row in rows] == ["as_published", "consistent", "direct"]
    assert rows[0]["error"] > 0.5 > 0.1 > rows[1]["error"] and len(rows[0]["residuals"]) == rows[0]["passes"]


def test_passes_are_drawn_by_size_and_scheme():
    rows = [
        {"size": 8, "mode": "direct", "residuals": [0.5, 0.1]},
        {"size": 16, "mode": "consistent", "residuals": [0.3]},
    ]
    assert residuals(rows) == [
        {"panel": "8 pixels", "arm": "direct", "x": 1, "y": 0.5},
        {"panel": "8 pixels", "arm": "direct", "x": 2, "y": 0.1},
        {"panel": "16 pixels", "arm": "consistent", "x": 1, "y": 0.3},
    ]


def test_trainings_side_by_side_are_those_one_after_another(tmp_path):
    tiny = METHOD | {"net": {"width": 16, "multipliers": [1, 1], "blocks": 1, "attention": []}, "profile_steps": 1}
    tiny |= {"sigma": 2, "times": 3, "tol": 1e-2, "batch": 2}
    arms, found = {"embedding": study.Arm("embedded", tiny)}, []
    for number in (1, 2):
        with threads(number):
            rows = study.profiles(arms, range(2), tmp_path / str(number))
        found.append([{name: value for name, value in row.items() if "seconds" not in name} for row in rows])
    assert found[0] == found[1] and len({row["seed"] for row in found[0]}) == 2


def test_other_pictures_have_their_own_arms_seeds_and_lengths(tmp_path, monkeypatch):
    for name in ("own", "ddpm", "ddim"):
        (tmp_path / f"{name}.yaml").write_text(f"{{name: {name}, steps: 3, pictures: skimage, size: 16, lr: 1.0e-3}}")
    asked = []

    def profiles(chosen, seeds, cache_dir):
        asked.append(({name: arm.config["steps"] for name, arm in chosen.items()}, list(seeds)))
        return rows_of(dict.fromkeys(chosen, [100.0, 120.0][: len(seeds)]))

    monkeypatch.setattr(study, "profiles", profiles)
    other = {"method": "own", "baselines": {"ddpm": "ddpm", "ddim": "ddim"}, "arms": [study.METHOD, study.PLAIN]}
    other |= {"n_seeds": 2, "lengths": {study.PLAIN: {"steps": 7}}, "change": {"steps": 5}}
    rows = study.other_pictures("three", other, tmp_path, range(3, 6), "cache")
    assert asked == [({study.METHOD: 5, study.PLAIN: 7}, [3, 4])]
    assert [(r["pictures"], r["level"], r["arm"], r["crossed"]) for r in rows] == [
        ("three", level, arm, "2 of 2") for level in study.LEVELS[:2] for arm in (study.METHOD, study.PLAIN)
    ]


def test_every_training_is_a_line_of_one_of_two_panels():
    shown = [arm for panel in curves.PANELS.values() for arm in panel]
    assert sorted(shown) == sorted(study.arms(METHOD, DDPM, DDPM)) and max(map(len, curves.PANELS.values())) <= 8
    means = curves.mean_curves(rows_of({"embedding": (100, 200), "DDPM": (150, 150)}))
    assert means[0]["step"] == 10 and means[0]["ssim"] == pytest.approx((0.075, 0.05 / 2**0.5, 2))
    first, second = curves.figure(means, "a picture").axes
    assert [len(axes.lines) for axes in (first, second)] == [1, 1]
    assert first.lines[0].get_color() != second.lines[0].get_color()
