"""References: what images are compared with, their features and statistics computed once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmcmc_core.data import ImageSet
from dmcmc_core.metrics.feature_sets import FeatureSet, check_enough, describe
from dmcmc_core.metrics.features import Extractor, load_features
from dmcmc_core.metrics.frechet import covariance, vector
from dmcmc_core.metrics.neighbours import NEIGHBOURS
from dmcmc_core.metrics.rows import Table, table
from dmcmc_core.metrics.statistics_files import read_published


class Reference(NamedTuple):
    """What images are compared with, its features and their statistics computed once.

    Of published statistics and features (:func:`published_statistics`) ``shape`` is None, and of statistics also
    ``features``, ``radii``, ``within`` and ``n``: nobody recorded them.
    """

    name: str
    extractor: Extractor
    shape: tuple[int, ...] | None
    """(C, H, W) of its images."""
    features: Table | None
    """(n, d)."""
    mu: Tensor
    """(d,) float64."""
    cov: Tensor
    """(d, d) float64."""
    radii: Tensor | None
    """(n,) float64, to the k-th neighbour."""
    within: float | None
    """Of :func:`dmcmc_core.metrics.within`."""
    k: int
    source: str = ""
    """What a published one is, in words; empty for images."""

    @property
    def n(self) -> int | None:
        """Number of images, None where nobody recorded it."""
        return None if self.features is None else len(self.features)


def make_reference(
    images: Tensor | ImageSet,
    extractor: Extractor | str,
    name: str = "given images",
    *,
    k: int = NEIGHBOURS,
    device="cpu",
    cache_dir: str | Path | None = None,
) -> Reference:
    """Prepare images (n, C, H, W) in [0, 1] for comparisons, rounded to 256 levels as generated images are.

    With ``cache_dir`` what is computed is kept there by the content of the images, as
    :func:`dmcmc_core.metrics.describe` has it, and taken from there next time.

    Args:
        extractor: an extractor, or a name of :data:`dmcmc_core.metrics.FEATURES`.
        name: what results call the reference.
        k: of precision, recall, density and coverage.

    Raises:
        UserError: for fewer images than the features need, and as :func:`dmcmc_core.metrics.extract`.
    """
    if isinstance(extractor, str):
        extractor = load_features(extractor, device=device)
    described = describe(images, extractor, f"reference {name!r}", cache_dir=cache_dir, device=device)
    mu, cov = described.statistics
    shape = tuple(images.shape[1:])
    return Reference(name, extractor, shape, described.features, mu, cov, described.radii(k), described.within, k)


def published_statistics(
    path: str | Path, extractor: Extractor | str, *, k: int = NEIGHBOURS, device="cpu"
) -> Reference | None:
    """Read the reference that a file of statistics or features is; None for a file of images and any other path.

    Which files, says :func:`dmcmc_core.metrics.statistics_files.read_published`. Statistics serve for the Fréchet
    distance alone, features for every distance. It is the reader who knows that they were made by the same network:
    the file does not say.

    Raises:
        UserError: for a file that cannot be read, whose arrays are no mean and covariance, or whose features are fewer
            than they need.
    """
    found = read_published(Path(path))
    if found is None:
        return None
    if isinstance(extractor, str):
        extractor = load_features(extractor, device=device)
    name, source = str(path), found.source
    if found.features is None:
        mu = vector(found.mu, f"mu of {path}")
        cov, _ = covariance(found.sigma, f"sigma of {path}", len(mu))
        return Reference(name, extractor, None, None, mu.to(device), cov.to(device), None, None, k, source)
    features = table(torch.from_numpy(found.features).to(device), f"features of {path}")
    check_enough(tuple(features.shape), extractor.name, f"reference {name!r}")
    described = FeatureSet(features)
    mu, cov = described.statistics
    return Reference(name, extractor, None, features, mu, cov, described.radii(k), described.within, k, source)
