"""A folder of images against a reference: the same numbers however it is read, and one sentence for bad input."""

import functools
import json

import numpy as np
import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.data import ImageSet, digits, glyphs32, load_images, open_samples, to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.metrics import (
    Extractor,
    Rows,
    by_protocol,
    evaluation,
    extract,
    frechet_distance,
    jpeg,
    kid,
    make_reference,
    measure,
    prdc,
    statistics,
)
from dmcmc_core.runs.make import run

PIXELS = Extractor("pixels", lambda x: x.flatten(1))


@functools.cache
def images(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed))


def sample_directory(folder, batch, per_shard=20, num=None):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"num": len(batch) if num is None else num}))
    for i, part in enumerate(batch.split(per_shard)):
        np.savez(folder / f"shard-{i:05d}.npz", arr_0=to_uint8(part))
    return folder


def test_measure_is_its_parts():
    x, y = images(50, 0), images(60, 1)
    reference = make_reference(y, PIXELS, "uniform")
    result = measure(x, reference)
    a, b = extract(x, PIXELS), extract(y, PIXELS)
    assert torch.equal(a, torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2).flatten(1) / 255)
    assert result == {
        "features": "pixels",
        "name": "Fréchet distance (pixels features)",
        "n": 50,
        "reference": "uniform",
        "reference_n": 60,
        "k": 5,
        "frechet": frechet_distance(*statistics(a), *statistics(b)),
        "kid": kid(a, b),
        **prdc(a, b)._asdict(),
    }
    itself = measure(y, reference)
    assert itself["frechet"] < 1e-12 and itself["precision"] == itself["coverage"] == 1


def test_measure_refuses():
    reference = make_reference(images(60, 1), PIXELS, "uniform")
    with pytest.raises(UserError, match="the images: 9 images are fewer than the 9 pixels features need: at least 10"):
        measure(images(9, 0), reference)
    with pytest.raises(UserError, match="reference 'few': 9 images are fewer"):
        make_reference(images(9, 0), PIXELS, "few")
    with pytest.raises(UserError, match=r"\(1, 2, 3\) cannot be compared with reference 'uniform'.*\(1, 3, 3\)"):
        measure(images(50, 0)[:, :, :2], reference)


def test_evaluate_is_measure_on_what_the_shards_hold(tmp_path):
    x, y = images(50, 0), images(60, 1)
    np.savez(tmp_path / "reference.npz", arr_0=to_uint8(y))
    folder = sample_directory(tmp_path / "run", x)
    result = evaluation.evaluate(folder, tmp_path / "reference.npz", PIXELS)
    name = str(tmp_path / "reference.npz")
    assert result.items() >= measure(x, make_reference(y, PIXELS, name)).items()
    assert result == evaluation.evaluate(folder, name, PIXELS, reference_images=y)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def known(calls: list[int] | None = None) -> Extractor:
    """Pixels as features of known weights, which are kept; with the rows of each call."""
    return Extractor("pixels", lambda x: (calls if calls is not None else []).append(len(x)) or x.flatten(1), "none")


def test_what_is_kept_gives_the_same_bits_for_any_shards_and_is_computed_once(tmp_path):
    x, y = images(150, 0), images(130, 1)
    expected = measure(x, make_reference(y, known(), "given"))
    calls = []
    for i, per_shard in enumerate((7, 64, 150)):
        folder = sample_directory(tmp_path / f"run-{i}", x, per_shard)
        result = evaluation.evaluate(
            folder, "given", known(calls), reference_images=y, cache_dir=tmp_path / "cache", bootstrap=2
        )
        assert result.items() >= expected.items()
    assert len(calls) == 3 + 3, "the same images in other shards are known"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_no_more_than_some_blocks_of_images_are_in_memory(tmp_path, monkeypatch):
    read, rows = ImageSet.uint8, []
    monkeypatch.setattr(ImageSet, "uint8", lambda *a: (p := read(*a), rows.append(len(p)))[0])
    x = images(5000, 0)
    folder = open_samples(sample_directory(tmp_path / "run", x, 500))
    described = metrics.describe(folder.images, known(), "the images", cache_dir=tmp_path)
    assert max(rows) == 1024 and sum(rows) == 2 * 5000, "read for their hash, and for their features"
    expected = extract(x, known())
    assert isinstance(described.features, Rows)
    for got, wanted in zip(described.features.split(2048), expected.split(2048), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(described.part(700, 90).features[5:], expected[705:790])


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    x = images(3000, 0)
    whole = metrics.describe(x, known(), "x", cache_dir=tmp_path / "whole")
    calls = []

    def interrupted(block):
        calls.append(len(block))
        if len(calls) == 40:
            raise KeyboardInterrupt
        return block.flatten(1)

    describe = lambda network: metrics.describe(  # noqa: E731
        x, known()._replace(network=network), "x", cache_dir=tmp_path / "cache"
    )
    with pytest.raises(KeyboardInterrupt):
        describe(interrupted)
    part = next((tmp_path / "cache").rglob("*.part"))
    with part.open("ab") as file:  # half of what was being written
        file.write(b"x" * 100)
    with pytest.raises(UserError, match="not finite, first in row 2048"):
        describe(lambda block: block.flatten(1) / 0)
    assert not list((tmp_path / "cache").iterdir()), "what is wrong does not stay"

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        describe(interrupted)
    calls.clear()
    made = describe(lambda block: calls.append(len(block)) or block.flatten(1))
    assert torch.equal(made.features[:], whole.features[:]) and len(calls) == 15
    assert not list((tmp_path / "cache").rglob("*.part")), "the other 32 blocks were there"


def test_blocks_are_the_three_parts_measured_by_themselves(tmp_path):
    x, y = images(152, 0), images(60, 1)
    reference = make_reference(y, PIXELS, "given")
    parts = [measure(part, reference) for part in x[:150].split(50)]
    found = evaluation.evaluate(sample_directory(tmp_path / "run", x), "given", PIXELS, reference_images=y)["blocks"]
    assert found["n"] == 50
    for name in ("frechet", "kid"):
        values = [part[name] for part in parts]
        assert found[name] == {
            "mean": pytest.approx(np.mean(values)),
            "spread": pytest.approx(np.std(values, ddof=1)),
            "minimum": pytest.approx(min(values)),
        }
    few = evaluation.evaluate(sample_directory(tmp_path / "few", x[:27]), "given", PIXELS, reference_images=y)["blocks"]
    assert few["n"] == 9 and few["frechet"] is None and few["kid"]["spread"] > 0


def test_bootstrap_resamples_images_or_whole_chains(tmp_path):
    x, y = images(60, 0).repeat_interleave(5, 0), images(200, 1)  # five images of each chain, all the same
    x = x.view(60, 5, 1, 3, 3).transpose(0, 1).reshape(300, 1, 3, 3)  # image i belongs to chain i mod 60
    evaluate = functools.partial(evaluation.evaluate, reference="given", features=PIXELS, reference_images=y)
    folder = sample_directory(tmp_path / "run", x)
    single, again = evaluate(folder)["bootstrap"], evaluate(folder)["bootstrap"]
    assert single == again and (single["of"], single["units"], single["resamples"]) == ("images", 300, 100)
    assert 0 < single["low"] < single["mean"] < single["high"] and single["spread"] > 0
    manifest = json.dumps({"num": 300, "plan": {"chain": {"chains": 60}}})
    (folder / "manifest.json").write_text(manifest)
    chained = evaluate(folder)["bootstrap"]
    assert (chained["of"], chained["units"]) == ("chains", 60) and chained["spread"] > 1.5 * single["spread"]
    assert evaluate(folder, bootstrap=0)["bootstrap"] is None
    (folder / "manifest.json").write_text(manifest.replace("60", "1"))
    assert evaluate(folder)["bootstrap"] is None, "one chain tells nothing of its chance"
    with pytest.raises(UserError, match="at least 0 resamples, not -1"):
        evaluate(folder, bootstrap=-1)


def test_classes_and_memorisation_of_digits(tmp_path):
    pytest.importorskip("sklearn")
    train = digits("train")
    evaluate = functools.partial(
        evaluation.evaluate, reference="digits-heldout", features="digits-cnn", cache_dir=tmp_path, bootstrap=0
    )
    result = evaluate(sample_directory(tmp_path / "copies", train.images[:300]))
    assert sum(result["classes"]["counts"]) == 300 and result["classes"]["coverage"] == 1
    seen = torch.tensor(result["classes"]["counts"]) - train.labels[:300].bincount(minlength=10)
    assert seen.abs().sum() <= 6, "the classifier is nearly always right"
    assert result["memorisation"]["copies"] == result["memorisation"]["nearer_train"] == 1
    zeros = evaluate(sample_directory(tmp_path / "zeros", train.images[train.labels == 0]))["classes"]
    assert zeros["coverage"] <= 0.2 and zeros["distance"] > 0.85


def test_the_published_protocol_is_what_pillow_saves(tmp_path):
    image = pytest.importorskip("PIL.Image")
    colour = glyphs32(3).images + 0.001
    levels = to_uint8(colour, cast="truncate")
    assert (levels == np.floor(colour.clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255)).all()
    for pixels in (levels, levels[..., :1]):
        through = jpeg(pixels)
        assert through.shape == pixels.shape and through.dtype == np.uint8 and (through != pixels).any()
        for i, one in enumerate(pixels):
            image.fromarray(one.squeeze()).save(tmp_path / "a.jpg", quality=75, subsampling="4:2:0")
            assert (np.asarray(image.open(tmp_path / "a.jpg")) == through[i].squeeze()).all()
    with pytest.raises(UserError, match="unknown protocol 'dmcm': did you mean 'dmcmc'"):
        evaluation.evaluate(sample_directory(tmp_path / "run", colour), "given", PIXELS, protocol="dmcm")


def test_the_truncating_cast_is_a_setting_of_the_run_and_told_by_the_protocol(tmp_path):
    pytest.importorskip("PIL.Image")
    for cast in ("round", "truncate"):
        run("digits", "euler", 4, 70, 0, tmp_path / cast, {"cast": cast}, progress=False)
    near, below = (
        np.concatenate([np.load(f)["arr_0"] for f in sorted((tmp_path / c).glob("shard-*.npz"))])
        for c in ("round", "truncate")
    )
    assert set(np.unique(near.astype(int) - below)) == {0, 1}
    for cast, word in {"round": "rounded", "truncate": "truncated"}.items():
        folder = by_protocol(open_samples(tmp_path / cast), "dmcmc")
        assert folder.encoding == f"jpeg (quality 75, 4:2:0) of {word} levels"
    with pytest.raises(UserError, match="cast must be one of 'round', 'truncate', not 'floor'"):
        run("digits", "euler", 4, 70, 0, tmp_path / "other", {"cast": "floor"})
    assert not (tmp_path / "other").exists()


def test_an_earlier_result_is_compared_only_where_that_is_fair(tmp_path):
    x, y = images(50, 0), images(60, 1)
    evaluate = functools.partial(evaluation.evaluate, reference="given", features=PIXELS, reference_images=y)
    folder, file = sample_directory(tmp_path / "run", x), tmp_path / "a.json"
    first = evaluate(folder)
    file.write_text(json.dumps(first | {"frechet": first["frechet"] - 1}))
    zeros = dict.fromkeys(("kid", "precision", "recall", "density", "coverage"), 0)
    against = evaluate(folder, against=file)["against"]
    spread = first["bootstrap"]["spread"]
    sure = {"standard_error": pytest.approx(spread * 2**0.5), "significant": True}
    assert against == {"file": str(file), "frechet": pytest.approx(1), **zeros, **sure}
    for apart, significant in ((2.7 * spread, False), (2.9 * spread, True)):  # two standard errors are 2.83 spreads
        file.write_text(json.dumps(first | {"frechet": first["frechet"] + apart}))
        assert evaluate(folder, against=file)["against"]["significant"] is significant
    file.write_text(json.dumps(first | {"bootstrap": None}))
    assert evaluate(folder, against=file)["against"]["significant"] is None
    fewer = sample_directory(tmp_path / "fewer", x[:40])
    with pytest.raises(UserError, match="different n must not be compared: 40 and 50"):
        evaluate(fewer, against=file)
    for change in ({"reference": "other"}, {"reference_n": 61}, {"features": "random-conv"}, {"protocol": "dmcmc"}):
        file.write_text(json.dumps(first | change))
        with pytest.raises(UserError, match=f"different {next(iter(change))} must not"):
            evaluate(folder, against=file)
    for text, words in (("{", "cannot be read as the JSON"), ("[]", "is not what evaluate --json prints")):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            evaluate(folder, against=file)


def test_the_first_images_are_a_run_of_so_many(tmp_path):
    x, y = images(50, 0), images(60, 1)
    evaluate = functools.partial(evaluation.evaluate, reference="given", features=PIXELS, reference_images=y)
    whole = sample_directory(tmp_path / "whole", x)
    some, alone = evaluate(whole, first=33), evaluate(sample_directory(tmp_path / "alone", x[:33]))
    assert (some["n"], some.pop("images_source")) == (33, "the first 33 of 50 images in 3 shards")
    alone.pop("images_source")
    assert some == alone
    assert evaluate(whole, first=50) == evaluate(whole)
    for first in (0, 51):
        with pytest.raises(UserError, match=f"first must be 1 to the 50 images of .*whole, not {first}"):
            evaluate(whole, first=first)


def test_a_run_is_the_reference_of_another(tmp_path):
    x, y = images(50, 0), images(60, 1)
    one, other = sample_directory(tmp_path / "one", x), sample_directory(tmp_path / "other", y)
    result = evaluation.evaluate(one, other, PIXELS, cache_dir=tmp_path / "cache")
    assert (result["frechet"], result["reference_n"]) == (measure(x, make_reference(y, PIXELS))["frechet"], 60)


def test_the_floor_is_what_draws_of_the_reference_have():
    y = images(400, 1)
    reference = make_reference(y, PIXELS, "uniform")
    few, many = (metrics.same_n_floor(reference, n, draws=20) for n in (40, 320))
    fresh = [measure(images(40, seed), reference)["frechet"] for seed in range(2, 22)]
    assert few == pytest.approx(np.mean(fresh), rel=0.2) and few > 4 * many
    assert metrics.same_n_floor(reference, 9) is None, "their covariance is singular"


def test_evaluate_by_names(tmp_path):
    pytest.importorskip("sklearn")
    real = load_images("digits-train")[:100]
    evaluate = functools.partial(
        evaluation.evaluate, reference="digits-heldout", features="random-conv", cache_dir=tmp_path, bootstrap=2
    )
    result = evaluate(sample_directory(tmp_path / "run", real))
    assert result["reference"] == "digits-heldout" and result["reference_n"] == 600 and result["n"] == 100
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = evaluate(sample_directory(tmp_path / "noise", noise))
    assert other["frechet"] > 3 * result["frechet"] and other["kid"] > result["kid"]
    assert other["coverage"] < 0.1 < result["coverage"]


def test_evaluate_refuses(tmp_path):
    x, y = images(50, 0), images(60, 1)
    evaluate = functools.partial(evaluation.evaluate, reference="given", features=PIXELS, reference_images=y)
    with pytest.raises(UserError, match="no such directory"):
        evaluate(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no shards"):
        evaluate(tmp_path / "empty")
    folder = sample_directory(tmp_path / "half", x, num=70)
    with pytest.raises(UserError, match=f"50 of the 70 images.*again with --out {folder}"):
        evaluate(folder)
    with pytest.raises(UserError, match="more than the 40"):
        evaluate(sample_directory(tmp_path / "more", x, num=40))
    with pytest.raises(UserError, match="9 images are fewer than the 9 pixels features need"):
        evaluate(sample_directory(tmp_path / "few", x[:9]))
    with pytest.raises(UserError, match="cannot be compared with reference 'given'"):
        evaluate(sample_directory(tmp_path / "shape", x[:, :, :2]))

    (folder / "manifest.json").write_text('{"images": 50}')
    with pytest.raises(UserError, match="does not say under 'num'"):
        evaluate(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(folder)

    folder = sample_directory(tmp_path / "broken", x)
    shard = folder / "shard-00001.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="shard-00001.npz cannot be read"):
        evaluate(folder)
