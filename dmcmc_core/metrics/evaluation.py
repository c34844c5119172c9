"""Images on disk against a reference, without all of them in memory at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmcmc_core.data import ImageSet, SampleFolder, open_generated, open_images, root
from dmcmc_core.errors import UserError
from dmcmc_core.files import from_json
from dmcmc_core.metrics.comparison import (
    PARTS,
    compare,
    compare_classes,
    describe_for,
    interval,
    require_equal_n,
    same_n_floor,
    spread_over_parts,
)
from dmcmc_core.metrics.feature_sets import content, describe
from dmcmc_core.metrics.features import Extractor, load_features
from dmcmc_core.metrics.memorisation import memorisation
from dmcmc_core.metrics.neighbours import Prdc
from dmcmc_core.metrics.paired import paired_folders
from dmcmc_core.metrics.protocol import by_protocol, encodings
from dmcmc_core.metrics.references import Reference, make_reference, published_statistics

BOOTSTRAP, FEW_FEATURES = 100, 128
"""Resamples of the bootstrap unless told, for at most so many features: each costs an eigendecomposition."""

SPLITS = (("digits-train", "digits-heldout"), ("cifar10-train", "cifar10-test"))
"""References that name training and held-out images of one data set."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How :func:`evaluate` compares a folder with a reference."""

    reference_images: Tensor | ImageSet | None = None
    """(N, C, H, W) in [0, 1], if given taken in place of what ``reference`` names."""
    weights: str | Path | None = None
    """Of the Inception network, as in :func:`dmcmc_core.metrics.inception_file`."""
    device: Any = "cpu"
    cache_dir: str | Path | None = None
    """As in :func:`dmcmc_core.metrics.describe`; exp/cache of the checkout when None."""
    bootstrap: int | None = None
    """Resamples of :func:`interval`; None: ``BOOTSTRAP`` for at most ``FEW_FEATURES`` features, else 0."""
    protocol: str = "lossless"
    """``lossless``, or ``dmcmc``: the images through JPEG, as :func:`by_protocol` has it."""
    allow_mixed_encodings: bool = False
    """Compare lossless images with a reference in JPEG files or the other way round. The protocol ``dmcmc`` means just
    that and asks for no further leave."""
    first: int | None = None
    """Only so many images, from the first on: those of a longer run beside a shorter one."""
    against: str | Path | None = None
    """A JSON file of an earlier result, for images of the same number, features and reference."""
    paired_with: str | Path | None = None
    """A folder of accurate solutions from the same noise, as of :func:`dmcmc_core.metrics.paired_folders`."""


def evaluate(
    directory: str | Path,
    reference: str | Path | None = None,
    features: str | Extractor | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Compare a directory of generated images with a reference; what ``python -m dmcmc_core evaluate`` prints.

    With ``paired_with`` they are compared with accurate solutions too, or with these alone where there is no reference.

    Args:
        directory: a folder of samples or images, or a file of images, as for :func:`dmcmc_core.data.open_generated`.
        reference: a name or path of images known to :func:`dmcmc_core.data.open_images`, or a file of statistics or
            features as in :func:`published_statistics`. An NPZ file that holds both is one of images.
        features: a name of ``FEATURES``, or an extractor.
        settings: fields of :class:`EvaluationSettings`.

    Returns:
        As :func:`measure`, and ``same_n_floor`` (:func:`same_n_floor`), ``blocks`` (:func:`spread_over_parts`),
        ``bootstrap`` (:func:`interval`), ``classes`` (:func:`compare_classes`), ``memorisation``
        (:class:`dmcmc_core.metrics.Memorisation`; None where the reference does not name training and held-out images,
        see ``SPLITS``), ``protocol``, ``encoding``, ``reference_encoding`` (None for statistics, which do not tell) and
        ``mixed_encodings``; ``images_source`` and ``reference_source``, what each side is, and what beside it was not
        used; ``reference_content``, the hash of the reference; with ``against`` the differences ``against``: numbers of
        this result less those, and whether that of the Fréchet distances is ``significant``. ``paired``, with
        ``paired_with``: :func:`dmcmc_core.metrics.paired_folders`. Plain numbers and text, for JSON.

    Raises:
        UserError: for a directory without images or without all of them, mixed encodings, an earlier result that must
            not be compared with, a reference without features or the other way round, and as :func:`measure` and
            :func:`dmcmc_core.metrics.paired_folders`.
    """
    if not isinstance(directory, str | Path):
        raise UserError(f"evaluate takes a folder or a file of images, not a {type(directory).__name__}")
    chosen = EvaluationSettings(**settings)
    paired = (
        {} if chosen.paired_with is None else {"paired": paired_folders(directory, chosen.paired_with, chosen.first)}
    )
    if paired and reference is None and features is None:
        return paired
    if reference is None or features is None:
        raise UserError("a comparison with data needs both, reference and features; one with a solution paired_with")
    return _against_data(directory, reference, features, chosen) | paired


def _against_data(
    directory: str | Path, reference: str | Path, features: str | Extractor, chosen: EvaluationSettings
) -> dict[str, Any]:
    """Compare a directory with a reference; see :func:`evaluate`."""
    if chosen.bootstrap is not None and chosen.bootstrap < 0:
        raise UserError(f"the bootstrap needs at least 0 resamples, not {chosen.bootstrap}")
    generated, name, device = open_generated(directory), str(reference), chosen.device
    if chosen.first is not None:
        generated = generated._replace(images=generated.images.first(chosen.first))
    samples = by_protocol(generated, chosen.protocol)
    earlier = _read_earlier(chosen.against) if chosen.against else None
    extractor = load_features(features, chosen.weights, device=device) if isinstance(features, str) else features
    published, images = None, chosen.reference_images
    if images is None:
        published = published_statistics(reference, extractor, device=device)
        images = None if published else open_images(reference)
    # all that can be wrong is told before minutes are spent on features
    about = encodings(samples, images, name, chosen.protocol, chosen.allow_mixed_encodings)
    _check_shapes(samples, images, directory, name)
    about |= _sides(samples.images, published, images)
    if earlier:
        n = {"n": len(samples.images), "reference_n": published.n if published else len(images)}
        _check_earlier(n | {"features": extractor.name, "reference": name} | about, earlier, chosen.against)
    cache_dir = root() / "exp" / "cache" if chosen.cache_dir is None else chosen.cache_dir
    described = None
    if images is not None and len(samples.images) < len(images):  # the smaller set first: it may be too small
        described = describe(samples.images, extractor, "the images", cache_dir=cache_dir, device=device)
    prepared = published or make_reference(images, extractor, name, device=device, cache_dir=cache_dir)
    described = described or describe_for(prepared, samples.images, cache_dir)
    few, resamples = described.features.shape[1] <= FEW_FEATURES, chosen.bootstrap
    if resamples is None:
        resamples = BOOTSTRAP if few else 0
    result = compare(described, prepared) | {
        "same_n_floor": same_n_floor(prepared, len(samples.images), PARTS if few else 1),
        "blocks": spread_over_parts(described, prepared),
        "bootstrap": interval(described, prepared, resamples, samples.chains),
        "classes": compare_classes(described, prepared),
        "memorisation": _memorisation(samples.images, name),
        **about,
    }
    return result | ({"against": _differences(result, earlier, chosen.against)} if earlier else {})


def _sides(images: ImageSet, published: Reference | None, others: Tensor | ImageSet | None) -> dict[str, str]:
    """Say what images and reference are, such as ``120 PNG files``, and the hash of the reference, its name apart."""
    if published is None:
        source, digest = _source(others), content(others)["sha256"]
    else:
        tables = (published.mu, published.cov) if published.features is None else (published.features,)
        values = b"".join(np.ascontiguousarray(table[:].cpu().numpy()).tobytes() for table in tables)
        source, digest = published.source, hashlib.sha256(values).hexdigest()
    return {"images_source": _source(images), "reference_source": source, "reference_content": digest}


def _source(images: Tensor | ImageSet) -> str:
    return (images.source if isinstance(images, ImageSet) else "") or f"{len(images)} images"


def _check_earlier(result: Mapping[str, Any], earlier: Mapping[str, Any], path: str | Path) -> None:
    """Raise UserError unless a result may be compared with an earlier one, and its reference is what it was then."""
    require_equal_n(result, earlier)
    if earlier.get("reference_content") not in (None, result["reference_content"]):
        raise UserError(f"reference {result['reference']!r} has changed since {path} was made: evaluate both again")


def _check_shapes(samples: SampleFolder, reference: Tensor | ImageSet | None, directory: str | Path, name: str) -> None:
    """Raise UserError where a reference has images, and these are of another shape."""
    shape = tuple(samples.images.shape[1:])
    if reference is not None and shape != tuple(reference.shape[1:]):
        encoder = samples.manifest.get("encoder")
        raise UserError(
            f"images of shape (C, H, W) = {shape} in {directory} cannot be compared with "
            f"reference {name!r}, whose images are {tuple(reference.shape[1:])}"
            + (f": they are latents of {encoder}, to be decoded first" if encoder else "")
        )


def _memorisation(images: ImageSet, reference: str) -> dict[str, float] | None:
    """Return the memorisation check where the reference names a data set whose two parts are here."""
    for train, heldout in SPLITS:
        if reference in (train, heldout):
            try:
                seen, unseen = open_images(train), open_images(heldout)
            except UserError:  # one of the two is not here
                return None
            return memorisation(images, seen, unseen)._asdict()
    return None


def _read_earlier(path: str | Path) -> dict[str, Any]:
    """Read an earlier result of :func:`evaluate` from a JSON file; UserError where it is none."""
    try:
        result = from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as the JSON of an earlier evaluation: {error}") from error
    if not isinstance(result, dict) or not {"n", "features", "reference", "frechet"} <= result.keys():
        raise UserError(f"{path} is not what evaluate --json prints: n, features, reference and frechet are needed")
    return result


def _differences(result: dict[str, Any], earlier: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the numbers of a result less those of an earlier one, where both have them; how sure the first is.

    ``standard_error`` is that of the difference of Fréchet distances, from the spreads of both bootstraps, and
    ``significant`` whether it lies beyond two of them; None where one has no bootstrap.
    """
    compared = [name for name in ("frechet", "kid", *Prdc._fields) if None not in (result[name], earlier.get(name))]
    differences = {name: result[name] - earlier[name] for name in compared}
    spreads = [(one.get("bootstrap") or {}).get("spread") for one in (result, earlier)]
    error = None if None in spreads else math.hypot(*spreads)
    sure = None if error is None else abs(differences["frechet"]) > 2 * error
    return {"file": str(path)} | differences | {"standard_error": error, "significant": sure}
