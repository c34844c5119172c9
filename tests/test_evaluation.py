"""A folder of images against a reference: the same numbers however it is read, and one sentence for bad input."""

import functools
import json

import numpy as np
import pytest
import torch

from dmcmc_core import evaluation
from dmcmc_core.data import load_images, to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.evaluation import make_reference, measure
from dmcmc_core.features import Extractor, extract
from dmcmc_core.metrics import frechet_distance, kid, prdc, statistics

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
    assert result == measure(x, make_reference(y, PIXELS, name))
    assert result == evaluation.evaluate(folder, name, PIXELS, reference_images=y)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_evaluate_by_names(tmp_path):
    pytest.importorskip("sklearn")
    digits = load_images("digits-train")[:100]
    result = evaluation.evaluate(sample_directory(tmp_path / "run", digits), "digits-heldout", "random-conv")
    assert result["reference"] == "digits-heldout" and result["reference_n"] == 600 and result["n"] == 100
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = evaluation.evaluate(sample_directory(tmp_path / "noise", noise), "digits-heldout", "random-conv")
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
