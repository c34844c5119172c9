"""Images compared with a reference: all distances, their spread and chance, the classes; and when one may compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.data import ImageSet
from dmcmc_core.denoiser import BLOCK
from dmcmc_core.errors import UserError
from dmcmc_core.metrics.classes import class_coverage, total_variation
from dmcmc_core.metrics.feature_sets import FeatureSet, describe
from dmcmc_core.metrics.features import Extractor, distance_name, extract
from dmcmc_core.metrics.frechet import bootstrap_frechet, frechet_distance, statistics
from dmcmc_core.metrics.kid import kid, kid_error
from dmcmc_core.metrics.neighbours import Prdc, prdc
from dmcmc_core.metrics.references import Reference
from dmcmc_core.metrics.rows import Rows, Table

GROUPS = 16
"""Groups of images or chains that the jackknife leaves out."""
PARTS = 3
"""Equal parts of the images, in their order, whose distances show a spread."""


def measure(images: Tensor | ImageSet, reference: Reference) -> dict[str, Any]:
    """Measure every distance between images (n, C, H, W) in [0, 1] and a prepared reference, by its extractor.

    Returns:
        ``features`` and ``name`` (what the distance is called), ``n``, ``reference`` and ``reference_n``, ``k``;
        ``frechet``, ``kid`` (:func:`kid`: all pairs, unbiased, not times 1000), ``precision``, ``recall``, ``density``,
        ``coverage``. Of a reference without features all but ``frechet`` are None, and ``missing`` says why.

    Raises:
        UserError: for images of another shape, fewer than the features need, or not finite.
    """
    return compare(describe_for(reference, images), reference)


def check_shape(shape: Sequence[int], reference: str, wanted: Sequence[int]) -> None:
    """Raise UserError for images, such as a model makes, of another shape (C, H, W) than those of a reference."""
    if tuple(shape) != tuple(wanted):
        raise UserError(
            f"images of shape (C, H, W) = {tuple(shape)} cannot be compared with reference {reference!r}, whose images "
            f"are {tuple(wanted)}"
        )


def describe_for(reference: Reference, images: Tensor | ImageSet, cache_dir: str | Path | None = None) -> FeatureSet:
    """Describe images (n, C, H, W) in [0, 1] by the features of a reference, as :func:`describe` does.

    Raises:
        UserError: for images of another shape than the reference's, a reference of other features, and as
            :func:`describe`.
    """
    if reference.shape is not None:
        check_shape(images.shape[1:], reference.name, reference.shape)
    extractor, device = reference.extractor, reference.mu.device
    if reference.shape is None:  # of another network? That is told before minutes are spent on all images
        width = extract(images[:1], extractor, device=device).shape[1]
        if width != len(reference.mu):
            raise UserError(
                f"reference {reference.name!r} is of {len(reference.mu)} features, {extractor.name} has {width}: "
                f"statistics of the same features are needed"
            )
    return describe(images, extractor, "the images", cache_dir=cache_dir, device=device)


def compare(described: FeatureSet, reference: Reference) -> dict[str, Any]:
    """Return what :func:`measure` does, of images whose features are there."""
    x, k = described.features, reference.k
    if reference.features is None:
        others = dict.fromkeys(("kid", *Prdc._fields)) | {
            "missing": f"{reference.name} holds the mean and covariance of features alone: {', '.join(Prdc._fields)} "
            f"and kid need the features themselves, and it does not say of how many images or by which network"
        }
    else:
        near = prdc(x, reference.features, k, generated_radii=described.radii(k), reference_radii=reference.radii)
        others = {"kid": _kid(described, reference), **near._asdict()}
    return {
        "features": reference.extractor.name,
        "name": distance_name(reference.extractor.name),
        "n": len(x),
        "reference": reference.name,
        "reference_n": reference.n,
        "k": k,
        "frechet": frechet_distance(*described.statistics, reference.mu, reference.cov),
        **others,
    }


def _kid(described: FeatureSet, reference: Reference) -> float:
    return kid(described.features, reference.features, within_x=described.within, within_y=reference.within)


def spread_over_parts(described: FeatureSet, reference: Reference) -> dict[str, Any]:
    """Compare three equal parts of the images, in their order: ``n`` of each, mean, sample spread and minimum.

    They are of fewer images than the whole and so do not compare with its distance. ``frechet`` is None where a part
    holds fewer images than the features need, ``kid`` where the reference has no features. The last one or two images
    are in no part where their number is no multiple of three.
    """
    n, d = len(described.features) // PARTS, described.features.shape[1]
    parts = [described.part(i * n, n) for i in range(PARTS)] if n > 1 else []
    distances, kids = [], []
    if n > d:
        distances = [frechet_distance(*part.statistics, reference.mu, reference.cov) for part in parts]
    if reference.features is not None:
        kids = [_kid(part, reference) for part in parts]
    return {"n": n, "frechet": _spread(distances), "kid": _spread(kids)}


def same_n_floor(reference: Reference, n: int, draws: int = PARTS, seed: int = 0) -> float | None:
    """Return the mean Fréchet distance of n images drawn, with replacement, from the reference itself.

    So far are n images with which nothing is wrong, but that they are few. None where the reference has no features,
    and for n not above their number.
    """
    features = reference.features
    if features is None or n <= features.shape[1]:
        return None
    distances = []
    for k in range(draws):
        drawn = torch.randint(len(features), (n,), generator=torch.Generator().manual_seed(seed + k))
        rows = Rows((n, features.shape[1]), lambda some, drawn=drawn: features[drawn[some]], features.device)
        distances.append(frechet_distance(*statistics(rows), reference.mu, reference.cov))
    return float(np.mean(distances))


def _spread(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)), "minimum": min(values)}


def interval(
    described: FeatureSet, reference: Reference, resamples: int, chains: int | None = None, seed: int = 0
) -> dict[str, Any] | None:
    """Return a 95 % interval of the Fréchet distance that so many images are expected to have.

    It covers the chance in which images were drawn, not that in the reference, and not the dependence within a chain:
    with ``chains`` (image i belongs to chain i mod chains) whole chains are drawn instead of images. As resamples
    repeat images, their distances lie above that of the images themselves (``mean`` says by how much): the interval is
    that of the percentiles, moved by this bias (Efron & Tibshirani 1993, An Introduction to the Bootstrap, Chapter
    10), and so holds the distance itself.

    Returns:
        ``resamples``, ``of`` (chains or images) and how many ``units`` of them, ``level``, ``low``, ``high``, ``mean``,
        ``spread``; ``kid_error`` (:func:`kid_error`; None where there is no KID, or too few units); None for no
        resamples or one chain.
    """
    n = len(described.features)
    units = min(chains or n, n)
    if not resamples or units < 2:
        return None
    groups = torch.arange(n) % units
    values = bootstrap_frechet(
        described.features, reference.mu, reference.cov, resamples=resamples, groups=groups, seed=seed
    ).numpy()
    bias = values.mean() - frechet_distance(*described.statistics, reference.mu, reference.cov)
    low, high = np.quantile(values, (0.025, 0.975)) - bias
    error = None
    if reference.features is not None and units > 3:
        error = kid_error(described.features, reference.features, groups=min(GROUPS, units // 2))
    return {
        "resamples": resamples,
        "of": "chains" if chains else "images",
        "units": units,
        "level": 0.95,
        "low": max(0.0, float(low)),
        "high": float(high),
        "mean": float(values.mean()),
        "spread": float(values.std(ddof=1)) if resamples > 1 else None,
        "kid_error": error,
    }


def compare_classes(described: FeatureSet, reference: Reference) -> dict[str, Any] | None:
    """Compare the classes that the classifier behind the features sees in the images with those of the reference.

    Returns:
        ``counts`` and ``reference_counts``, of each class; ``coverage``, the share of the reference's classes that
        occur at all; ``distance``, the share of images that would have to change class (total variation). None for
        features without classes, and a reference without features.
    """
    if reference.extractor.head is None or reference.features is None:
        return None
    counts, expected = (_class_counts(x, reference.extractor) for x in (described.features, reference.features))
    return {
        "coverage": class_coverage(counts, expected),
        "distance": total_variation(counts, expected),
        "counts": counts.tolist(),
        "reference_counts": expected.tolist(),
    }


@torch.no_grad()
def _class_counts(x: Table, extractor: Extractor) -> Tensor:
    logits = (extractor.head(part) for part in x.split(16 * BLOCK))
    return sum(part.argmax(1).bincount(minlength=part.shape[1]) for part in logits)


def require_equal_n(a: Mapping | int, b: Mapping | int) -> None:
    """Refuse to compare two results (of :func:`measure`, or bare numbers of images) that were made at different n.

    Every one of these estimates is biased or spread by an amount that depends on n (Chong & Forsyth 2020, arXiv
    1911.07023). Results must also share the features, the reference and its number of images.

    Results must not differ in protocol and encoding of their images either, where they tell them.

    Raises:
        UserError: that names what differs.
    """
    a, b = ({"n": r} if isinstance(r, int) else r for r in (a, b))
    for key in ("n", "reference_n", "reference", "features", "protocol", "encoding"):
        if key in a and key in b and a[key] != b[key]:
            raise UserError(f"results of different {key} must not be compared: {a[key]!r} and {b[key]!r}")
