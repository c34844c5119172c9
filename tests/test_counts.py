"""Too few images for what is asked of them: one sentence says how many there are, and how many are needed."""

import json

import numpy as np
import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.data import to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.metrics import Extractor, evaluation, make_reference, published_statistics

MEANS = Extractor("means", lambda x: x.mean((2, 3)))
"""As many features as channels: fewer than the neighbours of precision and recall."""
WIDE = Extractor("inception", lambda x: x.flatten(1).repeat(1, 2048 // x[0].numel()))
"""As many features as the Inception network has."""


def rows(n: int, d: int = 3) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(n))


def images(n: int) -> torch.Tensor:
    return rows(n, 64).view(n, 1, 8, 8)


def folder_of(path, batch):
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({"num": len(batch)}))
    np.savez(path / "shard-00000.npz", arr_0=to_uint8(batch))
    return path


GAUSSIAN = torch.zeros(3), torch.eye(3)
TOO_FEW = {
    "covariance": (lambda n: metrics.statistics(rows(n)), 2),
    "bootstrap": (lambda n: metrics.bootstrap_frechet(rows(n), *GAUSSIAN, resamples=2), 2),
    "within": (lambda n: metrics.within(rows(n)), 2),
    "kid": (lambda n: metrics.kid(rows(n), rows(9)), 2),
    "kid of a reference": (lambda n: metrics.kid(rows(9), rows(n)), 2),
    "kid_subsets": (lambda n: metrics.kid_subsets(rows(n), rows(9), size=2), 2),
    "radii": (lambda n: metrics.radii(rows(n), 4), 5),
    "prdc": (lambda n: metrics.prdc(rows(n), rows(9)), 6),
    "prdc of a reference": (lambda n: metrics.prdc(rows(9), rows(n)), 6),
    "distance to a set": (lambda n: metrics.distance_to_set(rows(9), rows(n)), 1),
    "expected coverage": (lambda n: metrics.expected_coverage(9, n), 1),
    "memorisation": (lambda n: metrics.memorisation(rows(n), rows(9), rows(9)), 1),
    "held-out images": (lambda n: metrics.memorisation(rows(9), rows(9), rows(n)), 2),
    "features": (lambda n: metrics.describe(images(n), MEANS, "x"), 2),
    "features of Inception": (lambda n: metrics.describe(images(n), WIDE, "x"), 2049),
    "a reference": (lambda n: make_reference(images(n), MEANS), 6),
}


@pytest.mark.parametrize("kind", TOO_FEW)
def test_one_image_too_few_is_refused_with_both_numbers_and_as_many_as_are_needed_are_taken(kind):
    compute, needed = TOO_FEW[kind]
    with pytest.raises(
        UserError, match=rf"at least (one|{needed})\b.* {needed - 1}\b|\b{needed - 1} .*at least {needed}\b"
    ):
        compute(needed - 1)
    compute(needed)


def test_one_image_is_one_sentence_whatever_the_features(tmp_path):
    one = folder_of(tmp_path / "one", images(1))
    with pytest.raises(
        UserError, match="the images: 1 image is fewer than the 2048 inception features need: at least 2049"
    ):
        evaluation.evaluate(one, "given", WIDE, reference_images=images(9), cache_dir=tmp_path)
    with pytest.raises(UserError, match="reference 'given': 1 image is fewer than the 64 random-conv features need"):
        evaluation.evaluate(one, "given", "random-conv", reference_images=images(1), cache_dir=tmp_path)


@pytest.mark.parametrize("few", ["the images", "reference 'given'"])
def test_too_few_images_are_told_before_the_larger_set_is_looked_at(tmp_path, few):
    seen = []
    extractor = Extractor("pixels", lambda x: seen.append(len(x)) or x.flatten(1))
    ours, theirs = (20, 1000) if few == "the images" else (1000, 20)
    folder = folder_of(tmp_path / "run", images(ours))
    with pytest.raises(UserError, match=f"{few}: 20 images are fewer than the 64 pixels features need: at least 65"):
        evaluation.evaluate(folder, "given", extractor, reference_images=images(theirs), cache_dir=tmp_path / "cache")
    assert len(seen) == 1, "one block, of the smaller set"


def test_statistics_of_one_image_say_what_they_are(tmp_path):
    """numpy.cov of one row is NaN, and so is what libraries have written for it."""
    np.savez(tmp_path / "one.npz", mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(UserError, match="sigma of .*one.npz .* single image .* at least 2 are needed"):
        published_statistics(tmp_path / "one.npz", MEANS)
    np.savez(tmp_path / "hole.npz", mu=np.zeros(3), sigma=np.diag([1, 1, np.nan]))
    with pytest.raises(UserError, match="sigma of .*hole.npz holds values that are not finite$"):
        published_statistics(tmp_path / "hole.npz", MEANS)
