"""The paired error: a root mean square, of the same noise only, and one sentence for what cannot be paired."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from exact import images_mixture

from dmcmc_core import metrics
from dmcmc_core.data import open_samples, to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.metrics import paired
from dmcmc_core.runs.make import run
from dmcmc_core.workbench.cli import main

# Tensors


def some(n=5, seed=0, dtype=torch.float32):
    return torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_it_is_the_root_mean_square_of_all_numbers():
    x, y = some(7), some(7, 1)
    difference = (x.double() - y.double()).numpy()
    assert metrics.paired_error(x, y) == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-12)
    each = np.sqrt((difference**2).mean(axis=(1, 2, 3)))
    assert metrics.paired_errors(x, y).tolist() == pytest.approx(each.tolist(), rel=1e-12)
    assert metrics.paired_error(x, x) == 0
    assert metrics.paired_error(3 * x, 3 * y) == pytest.approx(3 * metrics.paired_error(x, y), rel=1e-6)


def test_pairs_are_in_order():
    x = some(7)
    assert metrics.paired_error(x, x.flip(0)) > 0.1


def test_arrays_vectors_and_dtypes_may_be_mixed():
    x, y = some(4, dtype=torch.float64).flatten(1), some(4, 1).flatten(1)
    assert metrics.paired_error(x.numpy(), y) == pytest.approx(metrics.paired_error(x, y.double()), rel=1e-12)
    ones = torch.ones(2, 3, dtype=torch.float16)
    assert metrics.paired_error(ones, 2 * ones.double()) == 1


def test_parts_of_many_images_are_put_together(monkeypatch):
    x, y = some(11), some(11, 1)
    whole = metrics.paired_errors(x, y)
    monkeypatch.setattr(paired, "_ROWS", 4)
    assert torch.equal(metrics.paired_errors(x, y), whole)


def with_nan(x):
    x = x.clone()
    x[1, 0, 0, 0], x[3, 0, 1, 1] = math.nan, math.inf
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (some(5), some(4), r"\(n, \*shape\).* not \(5, 1, 3, 3\) and \(4, 1, 3, 3\)"),
        (some(5), some(5).flatten(1), r"not \(5, 1, 3, 3\) and \(5, 9\)"),
        (some(5), some(5)[:, :, :1], r"not \(5, 1, 3, 3\) and \(5, 1, 1, 3\)"),
        (some(0), some(0), "n at least 1"),
        (torch.ones(3), torch.ones(3), r"\(n, \*shape\)"),
        ((255 * some(5)).byte(), some(5), "images must be floats in units of the data, not uint8.*from_uint8"),
        (some(5), (255 * some(5)).byte(), "accurate must be floats in units of the data, not uint8"),
        ((255 * some(5)).byte().numpy(), some(5), "not uint8"),
        (with_nan(some(5)), some(5), "images must be finite: 2 of 5 hold NaN or infinity"),
        (some(5), with_nan(some(5)), "accurate must be finite: 2 of 5"),
    ],
)
def test_tensors_that_cannot_be_paired(x, y, message):
    with pytest.raises(UserError, match=message):
        metrics.paired_error(x, y)


# Folders


def made(folder, sampler="heun", nfe=5, num=10, seed=0, model=None, **settings):
    run(model or images_mixture(), sampler, nfe, num, seed, folder, settings, progress=False, shard=4)
    return folder


def test_folders_are_compared_pair_by_pair_in_units_of_the_data(tmp_path):
    few, many = made(tmp_path / "few"), made(tmp_path / "many", nfe=81)
    result = metrics.paired_folders(few, many)
    x, y = (open_samples(folder).images[:] for folder in (few, many))
    each = metrics.paired_errors(x, y)
    assert (result["with"], result["n"]) == (str(many), 10)
    assert result["error"] == metrics.paired_error(x, y) > 2 * result["rounding"]
    assert (result["mean"], result["largest"]) == (each.mean().item(), each.max().item())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    wide = images_mixture()
    wide.data_range = (-1.0, 3.0)
    few, many = made(tmp_path / "wide-few", model=wide), made(tmp_path / "wide-many", nfe=81, model=wide)
    four = metrics.paired_folders(few, many)
    unit = metrics.paired_error(*(open_samples(folder).images[:] for folder in (few, many)))
    assert four["error"] == pytest.approx(4 * unit) and four["rounding"] == pytest.approx(4 * result["rounding"])


def test_other_solvers_are_paired_and_rounding_is_what_two_roundings_make(tmp_path):
    one, other = made(tmp_path / "one", "dpmpp_3m", 100), made(tmp_path / "other", "heun", 201)
    result = metrics.paired_folders(one, other)
    assert result["error"] < 2 * result["rounding"]
    x = torch.rand(20_000, 1, 2, 2)
    shifted = (x + 0.3 / 255 * torch.randn(x.shape)).clamp(0, 1)
    rounded = [torch.from_numpy(to_uint8(t)).double() / 255 for t in (x, shifted)]
    independent = (rounded[0] - x.permute(0, 2, 3, 1)).square().mean().sqrt() * 2**0.5
    assert independent.item() == pytest.approx(result["rounding"], rel=0.02)


def test_only_images_that_both_have(tmp_path):
    few, many = made(tmp_path / "few", num=6), made(tmp_path / "many", nfe=81, num=11)
    both = metrics.paired_folders(few, many), metrics.paired_folders(many, few)
    whole = metrics.paired_folders(made(tmp_path / "more", num=11), many)
    assert both[0]["n"] == both[1]["n"] == 6 and both[0]["error"] == both[1]["error"] != whole["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "cannot be paired: seed is 0 there and 1 here"),
        ({"start": "zero"}, "start is 'mean' there and 'zero' here"),
        ({"sigma_max": 3.0}, "sigma_max is 4.0 there and 3.0 here"),
        ({"cast": "truncate"}, "cast is 'round' there and 'truncate' here"),
        ({"model": images_mixture(4.5)}, "sigma_max is 4.0 there and 4.5 here"),
        ({"sampler": "heun_churn"}, "made by heun_churn, which adds noise on its way"),
        ({"sampler": "gddim", "sde": "VP", "lam": 0.5, "nfe": 10}, "made by gddim, which adds noise on its way"),
        ({"sampler": "gddim", "sde": "VP", "nfe": 10}, "cannot be paired"),
        ({"sampler": "dlg+heun", "nfe": 40, "chains": 5}, "chain is None there"),
    ],
)
def test_runs_of_other_noise_or_another_equation_are_refused(tmp_path, change, message):
    one, other = made(tmp_path / "one"), made(tmp_path / "other", **change)
    with pytest.raises(UserError, match=message):
        metrics.paired_folders(one, other)


def test_another_model_of_the_same_name_is_refused(tmp_path):
    model = images_mixture()
    model.means = model.means + 0.1
    one, other = made(tmp_path / "one"), made(tmp_path / "other", model=model)
    with pytest.raises(UserError, match="model_sha256 is"):
        metrics.paired_folders(one, other)


def test_runs_of_the_same_chains_are_paired(tmp_path):
    settings = {"chains": 5, "n_skip": 2, "warmup_levels": 4}
    one, other = (made(tmp_path / str(nfe), "dlg+heun", nfe, **settings) for nfe in (20, 60))
    error = metrics.paired_folders(one, other)["error"]
    assert 0 < error < 0.1  # of other chains it is the distance of two images
    settings["n_skip"] = 3
    with pytest.raises(UserError, match="chain is"):
        metrics.paired_folders(one, made(tmp_path / "other", "dlg+heun", 60, **settings))


def test_folders_that_tell_too_little_are_refused(tmp_path):
    one, other = made(tmp_path / "one"), tmp_path / "other"
    shutil.copytree(one, other)
    (other / "manifest.json").write_text(json.dumps({"num": 10}))
    with pytest.raises(UserError, match="other does not tell the seed, the start and the model"):
        metrics.paired_folders(one, other)
    np.save(tmp_path / "images.npy", np.zeros((10, 2, 2, 1), np.uint8))
    with pytest.raises(UserError, match="images.npy does not tell"):
        metrics.paired_folders(one, tmp_path / "images.npy")
    with pytest.raises(UserError, match="no such directory"):
        metrics.paired_folders(one, tmp_path / "nowhere")
    next(iter(sorted(other.glob("shard-*.npz")))).unlink()
    with pytest.raises(UserError, match="holds 6 of the 10 images"):
        metrics.paired_folders(one, other)


# The command


def test_evaluate_prints_it_alone_or_beside_the_rest(tmp_path, capsys):
    one, other = made(tmp_path / "one"), made(tmp_path / "other", nfe=81)
    expected = metrics.paired_folders(one, other)
    words = ["evaluate", str(one), "--paired-with", str(other)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"paired": expected}
    assert main(words) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(lines["paired.error"]) == pytest.approx(expected["error"], rel=1e-5) and lines["paired.n"] == "10"
    pixels = metrics.Extractor("pixels", lambda x: x.flatten(1))
    y = torch.rand(30, 1, 2, 2)
    alone = metrics.evaluate(one, "given", pixels, reference_images=y, cache_dir=tmp_path / "cache")
    both = metrics.evaluate(one, "given", pixels, reference_images=y, cache_dir=tmp_path / "cache", paired_with=other)
    assert both == alone | {"paired": expected}


def test_evaluate_says_what_is_missing(tmp_path, capsys):
    one = str(made(tmp_path / "one"))
    assert main(["evaluate", one]) == 2
    assert "arguments are required: --reference, --features (see" in capsys.readouterr().err
    assert main(["evaluate", one, "--paired-with", one, "--reference", "digits-heldout"]) == 2
    assert "arguments are required: --features (see" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs both, reference and features"):
        metrics.evaluate(one, "digits-heldout")
