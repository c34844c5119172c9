"""Images measured against a reference: what is computed once is kept, and ``evaluate`` prints the rest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.data import ImageSet, load_images, open_images, read_npz, root
from dmcmc_core.denoiser import BLOCK
from dmcmc_core.errors import UserError
from dmcmc_core.features import Extractor, distance_name, extract, load_features
from dmcmc_core.metrics import (
    NEIGHBOURS,
    Prdc,
    covariance,
    frechet_distance,
    kid,
    prdc,
    radii,
    statistics,
    vector,
    within,
)


class Reference(NamedTuple):
    """What images are compared with, its features and their statistics computed once.

    Of published statistics (:func:`published_statistics`) ``shape``, ``features``, ``radii``, ``within`` and ``n`` are
    None: nobody recorded them.
    """

    name: str
    extractor: Extractor
    shape: tuple[int, ...] | None
    """(C, H, W) of its images."""
    features: Tensor | None
    """(n, d)."""
    mu: Tensor
    """(d,) float64."""
    cov: Tensor
    """(d, d) float64."""
    radii: Tensor | None
    """(n,) float64, to the k-th neighbour."""
    within: float | None
    """Of :func:`within`."""
    k: int

    @property
    def n(self) -> int | None:
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
    """Prepare images (n, C, H, W) in [0, 1] for :func:`measure`, rounded to 256 levels as generated images are.

    With ``cache_dir`` what was computed of a set that lies in files is kept there as ``reference-KEY.npz`` and taken
    from it next time. Inside is its recipe: names and contents of the files, how they were resized, the features and
    the hash of their weights, and the versions that made them. Under another recipe it is computed anew.

    Raises:
        UserError: for fewer images than the features need, and as :func:`extract`.
    """
    if isinstance(extractor, str):
        extractor = load_features(extractor, device=device)
    path = None
    if cache_dir is not None and isinstance(images, ImageSet) and images.files[1] and extractor.weights:
        recipe = _recipe(images, extractor, k, device)
        path = Path(cache_dir) / f"reference-{hashlib.sha256(recipe.encode()).hexdigest()[:20]}.npz"
    kept = _kept(path, recipe) if path else None
    if kept is None:
        features = extract(images, extractor, device=device)
        _enough(features, extractor.name, f"reference {name!r}")
        kept = dict(zip(KEPT, (features, *statistics(features), radii(features, k), within(features)), strict=True))
        if path:
            _keep(path, recipe, kept)
    features, mu, cov, distances, mean = (kept[part] for part in KEPT)
    once = [t.to(device) for t in (features, mu, cov, distances)]
    return Reference(name, extractor, tuple(images.shape[1:]), *once, float(mean), k)


KEPT = ("features", "mu", "cov", "radii", "within")
"""Arrays of a cached reference, beside its ``recipe`` and ``n``."""


def _recipe(images: ImageSet, extractor: Extractor, k: int, device) -> str:
    """All that the numbers of a reference depend on, as JSON."""
    features = {
        "name": extractor.name,
        "sha256": extractor.weights,
        "block": BLOCK,
        "device": torch.device(device).type,
    }
    about = {"format": 1, "images": images.recipe(), "features": features, "k": k, "torch": torch.__version__}
    return json.dumps(about, sort_keys=True)


def _kept(path: Path, recipe: str) -> dict[str, Tensor] | None:
    """A cached reference if it is there, whole, and of this recipe."""
    try:
        arrays = read_npz(path, ("recipe", *KEPT))
        if arrays["recipe"].item() == recipe:
            return {part: torch.from_numpy(arrays[part]) for part in KEPT}
    except (UserError, KeyError, ValueError):
        pass
    return None


def _keep(path: Path, recipe: str, kept: Mapping[str, Tensor | float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    arrays = {k: v.cpu().numpy() if isinstance(v, Tensor) else np.array(v) for k, v in kept.items()}
    try:
        with part.open("wb") as file:
            np.savez(file, recipe=np.array(recipe), n=np.array(len(arrays["features"])), **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def published_statistics(
    path: str | Path, extractor: Extractor | str, *, k: int = NEIGHBOURS, device="cpu"
) -> Reference | None:
    """The reference that an NPZ of mean ``mu`` (d,) and covariance ``sigma`` (d, d) is, None for any other path.

    Such files are what pytorch-fid writes. They serve for the Fréchet distance alone, and it is the reader who knows
    that they were made in the same features: the file does not say.

    Raises:
        UserError: for a file that cannot be read, or whose arrays are no mean and covariance.
    """
    path = Path(path)
    if path.suffix != ".npz" or not path.is_file():
        return None
    found = read_npz(path, ("arr_0", "mu", "sigma"))
    if set(found) != {"mu", "sigma"}:
        return None
    if isinstance(extractor, str):
        extractor = load_features(extractor, device=device)
    mu = vector(found["mu"], f"mu of {path}")
    cov, _ = covariance(found["sigma"], f"sigma of {path}", len(mu))
    return Reference(str(path), extractor, None, None, mu.to(device), cov.to(device), None, None, k)


def measure(images: Tensor, reference: Reference) -> dict:
    """Every distance between images (n, C, H, W) in [0, 1] and a prepared reference, by its feature extractor.

    Returns:
        ``features`` and ``name`` (what the distance is called), ``n``, ``reference`` and ``reference_n``, ``k``;
        ``frechet``, ``kid`` (:func:`kid`: all pairs, unbiased, not times 1000), ``precision``, ``recall``, ``density``,
        ``coverage``. Of a reference without features all but ``frechet`` are None, and ``missing`` says why.

    Raises:
        UserError: for images of another shape, fewer than the features need, or not finite.
    """
    if reference.shape is not None and tuple(images.shape[1:]) != reference.shape:
        raise UserError(
            f"images of shape (C, H, W) = {tuple(images.shape[1:])} cannot be compared with reference "
            f"{reference.name!r}, whose images are {reference.shape}"
        )
    extractor, k = reference.extractor, reference.k
    device = reference.mu.device
    if reference.features is None:  # told before minutes are spent on the features of all images
        width = extract(images[:1], extractor, device=device).shape[1]
        if width != len(reference.mu):
            raise UserError(
                f"reference {reference.name!r} is of {len(reference.mu)} features, {extractor.name} has {width}: "
                f"statistics of the same features are needed"
            )
    x = extract(images, extractor, device=device)
    _enough(x, extractor.name, "the images")
    if reference.features is None:
        others = dict.fromkeys(("kid", *Prdc._fields)) | {
            "missing": f"{reference.name} holds the mean and covariance of features alone: {', '.join(Prdc._fields)} "
            f"and kid need the features themselves, and it does not say of how many images or by which network"
        }
    else:
        others = {
            "kid": kid(x, reference.features, within_y=reference.within),
            **prdc(x, reference.features, k, reference_radii=reference.radii)._asdict(),
        }
    return {
        "features": extractor.name,
        "name": distance_name(extractor.name),
        "n": len(x),
        "reference": reference.name,
        "reference_n": reference.n,
        "k": k,
        "frechet": frechet_distance(*statistics(x), reference.mu, reference.cov),
        **others,
    }


def _enough(features: Tensor, name: str, what: str) -> None:
    """A covariance of n rows has at most the rank n - 1."""
    n, d = features.shape
    if n < d + 1:
        raise UserError(
            f"{what}: {n} images are fewer than the {d} {name} features need: at least {d + 1}, or their "
            f"covariance is singular"
        )


def evaluate(
    directory: str | Path,
    reference: str | Path,
    features: str | Extractor,
    *,
    reference_images: Tensor | None = None,
    weights: str | Path | None = None,
    device="cpu",
    cache_dir: str | Path | None = None,
) -> dict:
    """Compare a directory of generated images with a reference; what ``python -m dmcmc_core evaluate`` prints.

    Args:
        directory: holds ``manifest.json`` with the number of images, ``num``, and shards as in :func:`load_samples`.
        reference: a name known to :func:`dmcmc_core.data.open_images`, an NPZ file of images, or one of statistics as
            in :func:`published_statistics`.
        features: a name of ``FEATURES``, or an extractor.
        reference_images: (N, C, H, W) in [0, 1], if given taken in place of what ``reference`` names.
        weights: of the Inception network, as in :func:`inception_file`.
        cache_dir: as in :func:`make_reference`; exp/cache of the checkout when None.

    Returns:
        As :func:`measure`: plain numbers and text, ready for JSON.

    Raises:
        UserError: for a directory without images or without all of them, and as :func:`measure`.
    """
    images = load_samples(directory)
    extractor = load_features(features, weights, device=device) if isinstance(features, str) else features
    if reference_images is None:
        published = published_statistics(reference, extractor, device=device)
        if published is not None:
            return measure(images, published)
        reference_images = open_images(reference)
    if images.shape[1:] != reference_images.shape[1:]:  # told before minutes are spent on the reference's features
        raise UserError(
            f"images of shape (C, H, W) = {tuple(images.shape[1:])} in {directory} cannot be compared with reference "
            f"{str(reference)!r}, whose images are {tuple(reference_images.shape[1:])}"
        )
    cache_dir = root() / "exp" / "cache" if cache_dir is None else cache_dir
    made = make_reference(reference_images, extractor, str(reference), device=device, cache_dir=cache_dir)
    return measure(images, made)


def load_samples(directory: str | Path) -> Tensor:
    """Images (n, C, H, W) float32 in [0, 1] of the ``shard-*.npz`` in a directory, in the order of their names.

    Each shard holds ``arr_0``, uint8 (B, H, W, C); ``manifest.json`` says under ``num`` how many there should be.

    Raises:
        UserError: for no such directory, no manifest, no shards, shards of different shapes, or another number of
            images than promised.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    shards = sorted(directory.glob("shard-*.npz"))
    if not shards:
        raise UserError(f"{directory} holds no shards (shard-*.npz): nothing to evaluate")
    promised = _promised(directory / "manifest.json")
    parts = [load_images(shard) for shard in shards]
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise UserError(f"the shards in {directory} hold images of different shapes: {sorted(shapes)}")
    images = torch.cat(parts)
    if len(images) < promised:
        raise UserError(
            f"{directory} holds {len(images)} of the {promised} images that its manifest promises: "
            f"run the same sample command again with --out {directory}, and it goes on where it stopped"
        )
    if len(images) > promised:
        raise UserError(f"{directory} holds {len(images)} images, more than the {promised} of its manifest")
    return images


def _promised(manifest: Path) -> int:
    try:
        num = json.loads(manifest.read_text(encoding="utf-8"))["num"]
    except OSError as error:
        raise UserError(f"{manifest} cannot be read, so nobody knows how many images belong here") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest} does not say under 'num' how many images belong here") from error
    if not isinstance(num, int) or num < 1:
        raise UserError(f"{manifest} must say under 'num' how many images belong here, not {num!r}")
    return num
