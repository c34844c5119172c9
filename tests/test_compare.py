"""Samplers side by side: the right verdict on exact models, none where nothing differs, one sentence for bad input."""

import csv
import functools

import numpy as np
import pytest
import torch
from exact import images_mixture
from PIL import Image

import dmcmc_core
from dmcmc_core import metrics
from dmcmc_core.data import open_samples
from dmcmc_core.errors import UserError
from dmcmc_core.report.verdicts import BETTER, UNTOLD, WORSE, Distance, of_distances, of_errors
from dmcmc_core.runs.make import run
from dmcmc_core.workbench.cli import main

PIXELS = metrics.Extractor("pixels", lambda x: x.flatten(1))


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    return functools.partial(dmcmc_core.compare, cache_dir=tmp_path_factory.mktemp("cache"))


def made(folder, sampler="heun", nfe=5, num=32, seed=0, model=None, **settings):
    run(model or images_mixture(), sampler, nfe, num, seed, folder, settings, progress=False)
    return folder


def told(found, by=None):
    """(sampler, budget, other, its budget) -> verdict."""
    rows = [pair for pair in found.pairs if by is None or pair["by"] == by]
    return {(p["sampler"], p["budget"], p["than"], p["than_budget"]): p["verdict"] for p in rows}


# Verdicts


def some(seed, n=200, scale=1.0):
    return scale * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pairs_tell_what_images_alone_do_not():
    one, other = {0: some(0), 1: some(1)}, {0: some(0) + 0.01, 1: some(1) + 0.01}
    verdict = of_errors(one, other)
    assert (verdict.word, verdict.test) == (BETTER, "paired t") and verdict.difference < 0
    assert of_errors(other, one).word == WORSE
    apart = of_errors(one, {2: other[0], 3: other[1]})
    assert (apart.word, apart.test) == (UNTOLD, "Welch over images"), "of other noise the same errors are no pairs"
    assert of_errors(one, {2: 3 * some(2), 3: 3 * some(3)}).word == BETTER


def test_errors_that_are_the_same_or_below_rounding_cannot_be_told():
    one = {0: some(0)}
    assert of_errors(one, one)[:3] == (UNTOLD, 0.0, 1.0)
    other = {0: 0.5 * one[0]}
    assert of_errors(other, one).word == BETTER and of_errors(other, one, rounding=1.0).word == UNTOLD


def test_a_mean_that_one_outlier_turns_round_is_no_verdict():
    one, other = some(0), some(0) + 0.01
    one[0] = 5.0  # less in the mean over pairs, more in the root mean square
    other[0] = 4.0
    verdict = of_errors({0: one}, {0: other})
    assert verdict.difference > 0 and verdict.word == UNTOLD


def test_chance_is_called_a_difference_as_often_as_said():
    told = []
    for k in range(400):
        a, b, c = (some(3 * k + i, 30) for i in range(3))
        told.append(of_errors({0: a + c}, {0: b + c}).word != UNTOLD)
    assert 0.005 < np.mean(told) < 0.08


def test_distances_by_seeds_or_by_spreads():
    near, far = ({k: Distance(v) for k, v in enumerate(values)} for values in ((1.0, 1.1, 0.9), (2.0, 2.1, 1.9)))
    assert of_distances(near, far)[::3] == (BETTER, "Welch over seeds")
    assert of_distances(near, {0: Distance(1.02), 1: Distance(1.1), 2: Distance(0.95)}).word == UNTOLD
    spreads = of_distances({0: Distance(1.0, 0.3)}, {5: Distance(2.0, 0.4)})  # two standard errors
    assert spreads[::3] == (BETTER, "bootstrap spreads") and spreads.p == pytest.approx(0.0455, abs=1e-4)
    assert of_distances({0: Distance(1.0, 0.3)}, {0: Distance(1.9, 0.4)}).word == UNTOLD
    assert of_distances({0: Distance(1.0)}, {0: Distance(9.0)})[::2] == (UNTOLD, None)


# Runs


def test_runs_are_rows_by_recipe_and_the_nearer_one_is_better(tmp_path, compare):
    model = images_mixture()
    runs = [made(tmp_path / f"{s}-{k}", s, nfe, seed=k) for s, nfe in (("dpmpp_2m", 30), ("euler", 8)) for k in (0, 1)]
    found = compare(runs, model=model)
    assert [(r["sampler"], r["budget"], r["n"], r["seeds"]) for r in found.rows] == [
        ("dpmpp_2m", 30, 32, 2),
        ("euler", 8, 32, 2),
    ]
    assert told(found) == {("dpmpp_2m", 30, "euler", 8): BETTER}
    accurate = made(tmp_path / "accurate", "unipc", 60)
    expected = metrics.paired_folders(runs[0], accurate)["error"]
    other = metrics.paired_folders(runs[1], made(tmp_path / "accurate-1", "unipc", 60, seed=1))["error"]
    assert found.rows[0]["paired_error"].mean == pytest.approx((expected + other) / 2, rel=1e-6)
    assert told(compare(*reversed(runs), model=model)) == {("euler", 8, "dpmpp_2m", 30): WORSE}


def test_the_same_sampler_from_other_noise_cannot_be_told(tmp_path, compare):
    """9 and 10 evaluations are the same five levels of Heun's method: only the noise differs."""
    one, other = made(tmp_path / "a", nfe=9, num=64), made(tmp_path / "b", nfe=10, num=64, seed=1)
    found = compare(one, other, model=images_mixture())
    assert told(found) == {("heun", 9, "heun", 10): UNTOLD}
    assert found.pairs[0]["test"] == "Welch over images" and found.pairs[0]["difference"] != 0


def test_a_run_is_the_reference_and_noise_on_the_way_needs_one(tmp_path, compare):
    model = images_mixture()
    noisy = [made(tmp_path / f"n{k}", "euler_maruyama", 30, 100, k) for k in range(2)]
    coarse = [made(tmp_path / f"c{k}", "euler_maruyama", 2, 100, k) for k in range(2)]
    with pytest.raises(UserError, match="n0 adds noise on its way.*give a reference"):
        compare(noisy, coarse, model=model)
    truth = made(tmp_path / "truth", "heun", 61, 200, 9)
    found = compare(noisy, coarse, model=model, reference=truth, features=PIXELS)
    assert told(found) == {("euler_maruyama", 30, "euler_maruyama", 2): BETTER}
    assert found.rows[0]["paired_error"] is None and found.distance == "Fréchet distance (pixels features)"
    expected = [metrics.evaluate(run, truth, PIXELS, cache_dir=tmp_path, bootstrap=0)["frechet"] for run in noisy]
    assert found.rows[0]["frechet"].mean == pytest.approx(np.mean(expected), rel=1e-9)


# Samplers


def test_samplers_are_run_and_written(tmp_path, compare):
    model, out = images_mixture(), tmp_path / "out"
    found = compare(model, ["euler", "dpmpp_2m"], [5, 24], n=32, seeds=2, out=out)
    assert told(found)["euler", 24, "dpmpp_2m", 24] == WORSE and len(found.pairs) == 6
    text = str(found)
    assert text.count("p < 0.05") == 1 and "4 pairs of unequal budgets" in text
    with (out / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["paired_error"]) for row in rows] == [row["paired_error"].mean for row in found.rows]
    assert {row["paired_error_n"] for row in rows} == {"2"}
    assert "| worse |" in (out / "pairs.md").read_text()
    assert max(Image.open(out / "grid.png").size) >= 512 and min(Image.open(out / "plot.png").size) >= 512
    assert set(found.pictures) == {"5 NFE, seed 0", "24 NFE, seed 0"}
    folder = made(tmp_path / "run", "euler", 5)
    first = open_samples(folder).images[:8]
    assert torch.equal(found.pictures["5 NFE, seed 0"]["euler"], first), "the images of sample, seed for seed"
    again = compare(model=model, samplers=["euler", "dpmpp_2m"], nfe=[5, 24], n=32, seeds=[0, 1])
    assert again.rows == found.rows and again.pairs == found.pairs


def test_settings_reach_all_samplers_and_their_accurate_solution(compare):
    found = compare(
        images_mixture(), ["heun", "dpmpp_2m"], 41, n=16, seeds=1, settings={"start": "zero", "sigma_max": 2.0}
    )
    assert max(row["paired_error"].mean for row in found.rows) < 0.02


# What cannot be compared


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ((), {}, "at least two runs, not 0"),
        ((["heun", "heun"], 9), {"model": images_mixture()}, "samplers must be different.*heun, heun"),
        ((["heun"], 9), {"model": images_mixture()}, "at least two samplers or budgets"),
        ((), {"samplers": ["heun"], "nfe": [5, 9]}, "model missing"),
        (("digits", ["heun", "euler"]), {}, "needs a model, samplers and nfe: nfe missing"),
        ((images_mixture(), ["heun", "euler"], 9), {"settings": ["a"]}, r"settings must be names and values.*\['a'\]"),
        ((images_mixture(), ["heun"], 5, 6), {"n": 8}, "folders of runs, or a model, samplers and nfe: not both"),
        ((images_mixture(), ["heun", "hoin"], 9), {}, "unknown .*'hoin'"),
        ((images_mixture(), ["heun", "euler"], 9), {"seeds": 0}, "seeds must be a whole number, at least 1, not 0"),
        ((images_mixture(), ["heun", "euler"], 9), {"seeds": [1, 1]}, "seeds must be different"),
        ((images_mixture(), ["heun", "euler"], 9), {"n": 0}, "n must be a whole number, at least 1, not 0"),
        ((images_mixture(), ["heun", "euler"], 9), {"settings": {"eta": 1}}, "'eta'|eta "),
        ((images_mixture(), ["heun", "euler_maruyama"], 9), {}, "euler_maruyama adds noise on its way.*reference"),
        ((images_mixture(), ["heun", "dlg+heun"], 19), {}, r"dlg\+heun adds noise"),
        ((images_mixture(), ["heun", "euler"], 9), {"features": "random-conv"}, "features random-conv are.*give one"),
        ((images_mixture(), ["heun", "euler"], 9), {"reference": "digits-heldout"}, "digits-heldout"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, what, options, message):
    with pytest.raises(UserError, match=message) as refused:
        dmcmc_core.compare(*what, cache_dir=tmp_path / "cache", out=tmp_path / "out", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("shard-*"))


def test_runs_that_do_not_compare(tmp_path, compare):
    one, fewer = made(tmp_path / "one"), made(tmp_path / "fewer", "euler", num=31)
    with pytest.raises(UserError, match="one holds 32 images and .*fewer 31: rows of unequal n do not compare"):
        compare(one, fewer)
    other = made(tmp_path / "other", model=images_mixture(5.0), sampler="euler")
    with pytest.raises(UserError, match="rows of another model do not compare"):
        compare(one, other)
    with pytest.raises(UserError, match="are of the same recipe and seed: leave one out"):
        compare(one, one)
    with pytest.raises(UserError, match="no such directory"):
        compare(one, tmp_path / "nowhere")
    second = made(tmp_path / "second", "euler")
    with pytest.raises(UserError, match="model 'GaussianMixture' of the runs cannot be loaded.*give model, or a ref"):
        compare(one, second)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    np.savez(foreign / "shard-0.npz", arr_0=np.zeros((32, 2, 2, 1), np.uint8))
    (foreign / "manifest.json").write_text('{"num": 32}')
    with pytest.raises(UserError, match="foreign does not tell its sampler, seed and model"):
        compare(one, foreign)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("L", (2, 2)).save(pictures / "0.png")
    with pytest.raises(UserError, match="pictures holds images, but none of a run .*evaluate compares it"):
        compare(one, pictures)
    before = sorted(path.name for path in second.iterdir())
    with pytest.raises(UserError, match="out .*second holds a run: name another folder"):
        compare(one, second, model=images_mixture(), out=second)
    assert sorted(path.name for path in second.iterdir()) == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        compare(one, second, out=tmp_path / "file")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "name two runs, or give --model, --samplers, --nfe too"),
        ("a b --nfe 5", "runs are there already: leave --nfe out, or the runs"),
        ("--model digits --samplers heun euler", "name two runs, or give --nfe too"),
        ("--model digits --samplers heun euler --nfe 5 --seeds x", "--seeds takes how many, such as 3, or a-b"),
        ("--model digits --samplers heun euler --nfe 5 --seeds 4-2", "--seeds takes how many, such as 3, or a-b"),
        ("--model digits --samplers heun euler --nfe five", "argument --nfe: invalid int value: 'five'"),
        ("nowhere-a nowhere-b", "no such directory: nowhere-a"),
    ],
)
def test_bad_words_are_one_sentence(capsys, words, sentence):
    assert main(["compare", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
