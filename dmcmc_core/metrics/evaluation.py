"""Folders of images measured against a reference, without all of them in memory at a time.

Features are computed a few blocks of images at a time and kept on disk, under a name made of the contents of the images
and of all else that they depend on; every distance then goes over them in blocks of rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dmcmc_core.data import ImageSet, open_images, root, to_uint8
from dmcmc_core.denoiser import BLOCK
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.files import key, read_npz
from dmcmc_core.metrics import (
    NEIGHBOURS,
    Prdc,
    Rows,
    Table,
    bootstrap_frechet,
    class_coverage,
    covariance,
    frechet_distance,
    kid,
    memorisation,
    prdc,
    radii,
    require_equal_n,
    statistics,
    total_variation,
    vector,
    within,
)
from dmcmc_core.metrics.features import Extractor, distance_name, extract, extract_parts, load_features

BOOTSTRAP, FEW_FEATURES = 100, 128
"""Resamples of the bootstrap unless told, for at most so many features: each costs an eigendecomposition."""

BLOCKS = 3
"""Equal parts of the images, in their order, whose distances show a spread."""

SPLITS = (("digits-train", "digits-heldout"), ("cifar10-train", "cifar10-test"))
"""References that name training and held-out images of one data set."""

# ---- features on disk ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Described:
    """Images as their features, and what distances need of these, each computed when it is first asked for.

    Attributes:
        features: (n, d).
        folder: where what was computed is kept, None for nowhere.
    """

    features: Table
    folder: Path | None = None

    @functools.cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d), float64; ``statistics.npz`` has them as ``mu`` and ``sigma``."""
        made = self._kept("statistics", lambda: dict(zip(("mu", "sigma"), statistics(self.features), strict=True)))
        return made["mu"], made["sigma"]

    def radii(self, k: int) -> Tensor:
        """(n,) float64, to the k-th neighbour."""
        return self._kept(f"radii-{k}", lambda: {"radii": radii(self.features, k)})["radii"]

    @functools.cached_property
    def within(self) -> float:
        """Of :func:`dmcmc_core.metrics.within`."""
        made = self._kept("within", lambda: {"within": torch.tensor(within(self.features), dtype=torch.float64)})
        return made["within"].item()

    def part(self, start: int, length: int) -> Described:
        return Described(self.features.narrow(0, start, length))

    def _kept(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.folder / f"{name}.npz" if self.folder else None
        try:
            if path and path.is_file():
                kept = read_npz(path, ("mu", "sigma", "radii", "within"))
                return {name: torch.from_numpy(array).to(self.features.device) for name, array in kept.items()}
        except UserError:  # a broken file is made again
            pass
        made = compute()
        if path:
            buffer = io.BytesIO()
            np.savez(buffer, **{name: value.cpu().numpy() for name, value in made.items()})
            _write(path, buffer.getvalue())
        return made


def describe(
    images: Tensor | ImageSet, extractor: Extractor, what: str, *, cache_dir: str | Path | None = None, device="cpu"
) -> Described:
    """Features of images (n, C, H, W) in [0, 1]: in memory, or on disk below ``cache_dir`` if one is given.

    There, each has a folder ``features-KEY``: ``recipe.json`` (the images' content, the features with the hash of
    their weights, torch's version), ``features.npy`` (n, d) float32, and what was asked for of these. An interrupted
    computation goes on where it was, and a second process waits for the first. Features of unknown weights are never
    kept.

    Raises:
        UserError: for fewer images than the features need, and as :func:`dmcmc_core.metrics.features.extract`.
    """
    if cache_dir is None or not extractor.weights:
        features = extract(images, extractor, device=device)
        _enough(features.shape, extractor.name, what)
        return Described(features)
    recipe = _recipe(images, extractor, device)
    folder = Path(cache_dir) / f"features-{hashlib.sha256(recipe.encode()).hexdigest()[:20]}"
    path = folder / "features.npy"
    if _stored(path, len(images), device) is None:
        folder.mkdir(parents=True, exist_ok=True)
        _extract_to(path, images, extractor, what, device)
        _write(folder / "recipe.json", recipe.encode())
    features = _stored(path, len(images), device)
    _enough(features.shape, extractor.name, what)
    return Described(features, folder)


def _recipe(images: Tensor | ImageSet, extractor: Extractor, device) -> str:
    """All that features depend on, as JSON."""
    features = {
        "name": extractor.name,
        "sha256": extractor.weights,
        "block": BLOCK,
        "device": torch.device(device).type,
    }
    about = {"format": 2, "images": content(images), "features": features, "torch": torch.__version__}
    return json.dumps(about, sort_keys=True, indent=1)


def content(images: Tensor | ImageSet) -> dict[str, Any]:
    """What tells images from others: the hash of the files that they are in, else that of their 256 levels."""
    if isinstance(images, ImageSet) and images.files[1]:
        return images.recipe()
    digest = hashlib.sha256()
    floats = images.in_range(0.0, 1.0) if isinstance(images, ImageSet) else images
    for part in floats.split(BLOCK):
        digest.update(to_uint8(part))
    reader = images.reader if isinstance(images, ImageSet) else ""
    return {"shape": list(images.shape), "sha256": digest.hexdigest(), "reader": reader}


def _stored(path: Path, n: int, device) -> Rows | None:
    """The features in a file, if they are there and whole."""
    read = functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)
    try:
        shape = read().shape
    except (OSError, ValueError, EOFError):
        return None
    if len(shape) != 2 or shape[0] != n:
        return None
    # the file is mapped for one block at a time, so that what was read does not stay in memory
    block = lambda rows: torch.from_numpy(np.array(read()[rows])).to(device)  # noqa: E731
    return Rows(shape, block, torch.device(device))


def _extract_to(path: Path, images: Tensor | ImageSet, extractor: Extractor, what: str, device) -> None:
    """Write features as they are computed; what an interrupted process has written is taken over."""
    n, part = len(images), path.with_name("features.npy.part")
    with part.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if _stored(path, n, device):  # by the process that had the lock
            return
        try:
            done = _begun(file)
            with tqdm(total=n, initial=done, unit="image", desc=f"features of {what}", disable=None) as bar:
                for features in extract_parts(images, extractor, device=device, start=done):
                    if not done:
                        _enough((n, features.shape[1]), extractor.name, what)
                        about = {"descr": "<f4", "fortran_order": False, "shape": (n, features.shape[1])}
                        np.lib.format.write_array_header_1_0(file, about)
                    done += len(features)
                    file.write(features.float().cpu().numpy().tobytes())
                    file.flush()
                    bar.update(len(features))
        except UserError:
            part.unlink()
            with contextlib.suppress(OSError):  # statistics are there already, of features that were damaged
                path.parent.rmdir()
            raise
        os.replace(part, path)


def _begun(file) -> int:
    """How many rows a file has of the table that its header tells, in whole blocks; the rest is cut off."""
    file.seek(0)
    try:
        np.lib.format.read_magic(file)
        (_, d), _, _ = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        file.truncate(0)
        return 0
    start = file.tell()
    done = (file.seek(0, os.SEEK_END) - start) // (4 * d) // BLOCK * BLOCK
    file.truncate(start + 4 * d * done if done else 0)
    return done


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _enough(shape: tuple[int, int], name: str, what: str) -> None:
    """A covariance of n rows has at most the rank n - 1."""
    n, d = shape
    if n < d + 1:
        raise UserError(
            f"{what}: {n} images are fewer than the {d} {name} features need: at least {d + 1}, or their "
            f"covariance is singular"
        )


# ---- references ------------------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """What images are compared with, its features and their statistics computed once.

    Of published statistics (:func:`published_statistics`) ``shape``, ``features``, ``radii``, ``within`` and ``n`` are
    None: nobody recorded them.
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

    With ``cache_dir`` what is computed is kept there by the content of the images, as :func:`describe` has it, and
    taken from there next time.

    Raises:
        UserError: for fewer images than the features need, and as :func:`dmcmc_core.metrics.features.extract`.
    """
    if isinstance(extractor, str):
        extractor = load_features(extractor, device=device)
    the = describe(images, extractor, f"reference {name!r}", cache_dir=cache_dir, device=device)
    return Reference(
        name, extractor, tuple(images.shape[1:]), the.features, *the.statistics, the.radii(k), the.within, k
    )


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


# ---- what is measured ------------------------------------------------------------------------------------------------


def measure(images: Tensor | ImageSet, reference: Reference) -> dict:
    """Every distance between images (n, C, H, W) in [0, 1] and a prepared reference, by its feature extractor.

    Returns:
        ``features`` and ``name`` (what the distance is called), ``n``, ``reference`` and ``reference_n``, ``k``;
        ``frechet``, ``kid`` (:func:`kid`: all pairs, unbiased, not times 1000), ``precision``, ``recall``, ``density``,
        ``coverage``. Of a reference without features all but ``frechet`` are None, and ``missing`` says why.

    Raises:
        UserError: for images of another shape, fewer than the features need, or not finite.
    """
    return compare(_described(images, reference), reference)


def _described(images: Tensor | ImageSet, reference: Reference, cache_dir: str | Path | None = None) -> Described:
    if reference.shape is not None and tuple(images.shape[1:]) != reference.shape:
        raise UserError(
            f"images of shape (C, H, W) = {tuple(images.shape[1:])} cannot be compared with reference "
            f"{reference.name!r}, whose images are {reference.shape}"
        )
    extractor, device = reference.extractor, reference.mu.device
    if reference.features is None:  # told before minutes are spent on the features of all images
        width = extract(images[:1], extractor, device=device).shape[1]
        if width != len(reference.mu):
            raise UserError(
                f"reference {reference.name!r} is of {len(reference.mu)} features, {extractor.name} has {width}: "
                f"statistics of the same features are needed"
            )
    return describe(images, extractor, "the images", cache_dir=cache_dir, device=device)


def compare(the: Described, reference: Reference) -> dict:
    """What :func:`measure` returns, of images whose features are there."""
    x, k = the.features, reference.k
    if reference.features is None:
        others = dict.fromkeys(("kid", *Prdc._fields)) | {
            "missing": f"{reference.name} holds the mean and covariance of features alone: {', '.join(Prdc._fields)} "
            f"and kid need the features themselves, and it does not say of how many images or by which network"
        }
    else:
        near = prdc(x, reference.features, k, generated_radii=the.radii(k), reference_radii=reference.radii)
        others = {"kid": _kid(the, reference), **near._asdict()}
    return {
        "features": reference.extractor.name,
        "name": distance_name(reference.extractor.name),
        "n": len(x),
        "reference": reference.name,
        "reference_n": reference.n,
        "k": k,
        "frechet": frechet_distance(*the.statistics, reference.mu, reference.cov),
        **others,
    }


def _kid(the: Described, reference: Reference) -> float:
    return kid(the.features, reference.features, within_x=the.within, within_y=reference.within)


def in_blocks(the: Described, reference: Reference) -> dict[str, Any]:
    """Distances of three equal parts of the images, in their order: ``n`` of each, mean, sample spread and minimum.

    They are of fewer images than the whole and so do not compare with its distance. ``frechet`` is None where a part
    holds fewer images than the features need, ``kid`` where the reference has no features. The last one or two images
    are in no part where their number is no multiple of three.
    """
    n, d = len(the.features) // BLOCKS, the.features.shape[1]
    parts = [the.part(i * n, n) for i in range(BLOCKS)] if n > 1 else []
    distances, kids = [], []
    if n > d:
        distances = [frechet_distance(*part.statistics, reference.mu, reference.cov) for part in parts]
    if reference.features is not None:
        kids = [_kid(part, reference) for part in parts]
    return {"n": n, "frechet": _spread(distances), "kid": _spread(kids)}


def _spread(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)), "minimum": min(values)}


def interval(
    the: Described, reference: Reference, resamples: int, chains: int | None = None, seed: int = 0
) -> dict[str, Any] | None:
    """95 % percentile interval of the Fréchet distance over resampled images; None for no resamples or one chain.

    It covers the chance in which images were drawn, not that in the reference, and not the dependence within a chain:
    with ``chains`` (image i belongs to chain i mod chains) whole chains are drawn instead of images. As resamples
    repeat images, their distances lie above that of the images themselves (``mean`` says by how much): it is the
    width, or ``spread``, that tells how sure a distance is.
    """
    n = len(the.features)
    units = min(chains or n, n)
    if not resamples or units < 2:
        return None
    groups = torch.arange(n) % units
    values = bootstrap_frechet(
        the.features, reference.mu, reference.cov, resamples=resamples, groups=groups, seed=seed
    ).numpy()
    low, high = np.quantile(values, (0.025, 0.975))
    return {
        "resamples": resamples,
        "of": "chains" if chains else "images",
        "units": units,
        "level": 0.95,
        "low": float(low),
        "high": float(high),
        "mean": float(values.mean()),
        "spread": float(values.std(ddof=1)) if resamples > 1 else None,
    }


def classes(the: Described, reference: Reference) -> dict[str, Any] | None:
    """Which classes the classifier behind the features sees in the images; None for features without classes.

    Returns:
        ``counts`` and ``reference_counts``, of each class; ``coverage``, the share of the reference's classes that
        occur at all; ``distance``, the share of images that would have to change class (total variation).
    """
    if reference.extractor.head is None or reference.features is None:
        return None
    counts, expected = (_class_counts(x, reference.extractor) for x in (the.features, reference.features))
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


# ---- encodings -------------------------------------------------------------------------------------------------------

PROTOCOLS = ("lossless", "dmcmc")


def jpeg(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) uint8, C = 1 or 3, as Pillow saves them to a .jpg and reads them: quality 75, 4:2:0.

    Raises:
        UserError: without pillow.
    """
    image = _pillow()

    def through(pixels: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "JPEG")
        return np.asarray(image.open(file)).reshape(pixels.shape)

    return np.stack([through(pixels) for pixels in images])


def _pillow():
    try:
        import PIL.Image
    except ImportError as error:
        raise UserError("protocol 'dmcmc' saves JPEG by pillow, which is not installed: pip install pillow") from error
    return PIL.Image


def encoding_of(images: Tensor | ImageSet) -> str:
    """``jpeg``, ``lossless``, or ``jpeg and lossless`` for a set of files of both kinds."""
    names = images.files[1] if isinstance(images, ImageSet) else ()
    lossy = {str(name).lower().endswith((".jpg", ".jpeg")) for name in names}
    return {frozenset({True}): "jpeg", frozenset({True, False}): "jpeg and lossless"}.get(frozenset(lossy), "lossless")


class Folder(NamedTuple):
    """Images of a folder of samples, and what its manifest tells."""

    images: ImageSet
    manifest: dict[str, Any]

    @property
    def chains(self) -> int | None:
        """Chains that the images are of; image i belongs to chain i mod chains."""
        try:
            return int(self.manifest["plan"]["chain"]["chains"])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def encoding(self) -> str:
        return str(self.manifest.get("encoding", "lossless"))

    def by_protocol(self, protocol: str) -> Folder:
        """The images as a protocol has them; ``dmcmc`` sends the levels of the shards through JPEG.

        The cast to 256 levels is past when shards are written: it truncated where the run was told ``cast=truncate``.
        """
        if protocol not in PROTOCOLS:
            raise unknown("protocol", protocol, PROTOCOLS)
        if protocol == "lossless":
            return self
        plan = self.manifest.get("plan")
        cast = "truncated" if isinstance(plan, dict) and plan.get("cast") == "truncate" else "rounded"
        read, reader = self.images.read, f"jpeg by pillow {_pillow().__version__}"
        saved = lambda rows: jpeg(read(rows).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # noqa: E731
        about = {"encoding": f"jpeg (quality 75, 4:2:0) of {cast} levels"}
        return Folder(replace(self.images, read=saved, reader=reader), self.manifest | about)


# ---- a folder against a reference ------------------------------------------------------------------------------------


def evaluate(
    directory: str | Path,
    reference: str | Path,
    features: str | Extractor,
    *,
    reference_images: Tensor | ImageSet | None = None,
    weights: str | Path | None = None,
    device="cpu",
    cache_dir: str | Path | None = None,
    bootstrap: int | None = None,
    protocol: str = "lossless",
    allow_mixed_encodings: bool = False,
    against: str | Path | None = None,
) -> dict:
    """Compare a directory of generated images with a reference; what ``python -m dmcmc_core evaluate`` prints.

    Args:
        directory: holds ``manifest.json`` with the number of images, ``num``, and shards as in :func:`open_samples`.
        reference: a name known to :func:`dmcmc_core.data.open_images`, an NPZ file of images, or one of statistics as
            in :func:`published_statistics`.
        features: a name of ``FEATURES``, or an extractor.
        reference_images: (N, C, H, W) in [0, 1], if given taken in place of what ``reference`` names.
        weights: of the Inception network, as in :func:`dmcmc_core.metrics.features.inception_file`.
        cache_dir: as in :func:`describe`; exp/cache of the checkout when None.
        bootstrap: resamples of :func:`interval`; None: ``BOOTSTRAP`` for at most ``FEW_FEATURES`` features, else 0.
        protocol: ``lossless``, or ``dmcmc``: the images through JPEG, as :meth:`Folder.by_protocol` has it.
        allow_mixed_encodings: compare lossless images with a reference in JPEG files or the other way round. The
            protocol ``dmcmc`` means just that and asks for no further leave.
        against: a JSON file of an earlier result, for images of the same number, features and reference.

    Returns:
        As :func:`measure`, and ``blocks`` (:func:`in_blocks`), ``bootstrap`` (:func:`interval`), ``classes``
        (:func:`classes`), ``memorisation`` (:class:`dmcmc_core.metrics.Memorisation`; None where the reference does not
        name training and held-out images, see ``SPLITS``), ``protocol``, ``encoding``, ``reference_encoding`` (None for
        statistics, which do not tell) and ``mixed_encodings``; with ``against`` the differences ``against``: numbers of
        this result less those. Plain numbers and text, ready for JSON.

    Raises:
        UserError: for a directory without images or without all of them, mixed encodings, an earlier result that must
            not be compared with, and as :func:`measure`.
    """
    if bootstrap is not None and bootstrap < 0:
        raise UserError(f"the bootstrap needs at least 0 resamples, not {bootstrap}")
    folder, name = open_samples(directory).by_protocol(protocol), str(reference)
    earlier = _earlier(against) if against else None
    extractor = load_features(features, weights, device=device) if isinstance(features, str) else features
    published = published_statistics(reference, extractor, device=device) if reference_images is None else None
    if reference_images is None and published is None:
        reference_images = open_images(reference)
    # all that can be wrong is told before minutes are spent on features
    about = _encodings(folder, protocol, reference_images, name, allow_mixed_encodings)
    if published is None and folder.images.shape[1:] != tuple(reference_images.shape[1:]):
        raise UserError(
            f"images of shape (C, H, W) = {tuple(folder.images.shape[1:])} in {directory} cannot be compared with "
            f"reference {name!r}, whose images are {tuple(reference_images.shape[1:])}"
        )
    if earlier:
        n = {"n": len(folder.images), "reference_n": None if published else len(reference_images)}
        require_equal_n(n | {"features": extractor.name, "reference": name} | about, earlier)
    cache_dir = root() / "exp" / "cache" if cache_dir is None else cache_dir
    prepared = published or make_reference(reference_images, extractor, name, device=device, cache_dir=cache_dir)
    the = _described(folder.images, prepared, cache_dir)
    if bootstrap is None:
        bootstrap = BOOTSTRAP if the.features.shape[1] <= FEW_FEATURES else 0
    result = compare(the, prepared) | {
        "blocks": in_blocks(the, prepared),
        "bootstrap": interval(the, prepared, bootstrap, folder.chains),
        "classes": classes(the, prepared),
        "memorisation": _memorisation(folder.images, name),
        **about,
    }
    return result | ({"against": _differences(result, earlier, against)} if earlier else {})


def _encodings(folder: Folder, protocol: str, images: Tensor | ImageSet | None, name: str, allowed: bool) -> dict:
    """What ``evaluate`` tells of encodings; UserError where they are mixed and nobody has asked for that."""
    ours, theirs = folder.encoding, None if images is None else encoding_of(images)
    mixed = theirs is not None and theirs != ("jpeg" if "jpeg" in ours else "lossless")
    if mixed and protocol == "lossless" and not allowed:
        raise UserError(
            f"the images in {folder.images.name} are {ours} and those of {name!r} are {theirs}: distances would show "
            f"the encoding; allow_mixed_encodings (--allow-mixed-encodings) compares them nevertheless"
        )
    return {"protocol": protocol, "encoding": ours, "reference_encoding": theirs, "mixed_encodings": mixed}


def _memorisation(images: ImageSet, reference: str) -> dict[str, float] | None:
    for train, heldout in SPLITS:
        if reference in (train, heldout):
            try:
                seen, unseen = open_images(train), open_images(heldout)
            except UserError:  # one of the two is not here
                return None
            return memorisation(images, seen, unseen)._asdict()
    return None


def _earlier(path: str | Path) -> dict[str, Any]:
    """An earlier result of :func:`evaluate`, from a JSON file."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as the JSON of an earlier evaluation: {error}") from error
    if not isinstance(result, dict) or not {"n", "features", "reference", "frechet"} <= result.keys():
        raise UserError(f"{path} is not what evaluate --json prints: n, features, reference and frechet are needed")
    return result


def _differences(result: dict[str, Any], earlier: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    compared = [name for name in ("frechet", "kid", *Prdc._fields) if None not in (result[name], earlier.get(name))]
    return {"file": str(path)} | {name: result[name] - earlier[name] for name in compared}


def open_samples(directory: str | Path) -> Folder:
    """The ``shard-*.npz`` of a directory, in the order of their names, read one at a time and as they are asked for.

    Each shard holds ``arr_0``, uint8 (B, H, W, C); ``manifest.json`` says under ``num`` how many there should be. Where
    it has a checksum, and it and the shards tell their recipe, these have to fit.

    Raises:
        UserError: for no such directory, no manifest or a damaged one, no shards, shards of different shapes or of
            another run, or another number of images than promised.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    shards = sorted(directory.glob("shard-*.npz"))
    if not shards:
        raise UserError(f"{directory} holds no shards (shard-*.npz): nothing to evaluate")
    manifest = _manifest(directory / "manifest.json")
    promised = manifest["num"]
    every = [open_images(shard).shape for shard in shards]
    shapes = {shape[1:] for shape in every}
    if len(shapes) > 1:
        raise UserError(f"the shards in {directory} hold images of different shapes: {sorted(shapes)}")
    ends = np.cumsum([shape[0] for shape in every])
    n = int(ends[-1])
    if n < promised:
        raise UserError(
            f"{directory} holds {n} of the {promised} images that its manifest promises: "
            f"run the same sample command again with --out {directory}, and it goes on where it stopped"
        )
    if n > promised:
        raise UserError(f"{directory} holds {n} images, more than the {promised} of its manifest")
    for path, end, shape in zip(shards, ends, every, strict=True):
        if not _belongs(path, manifest, [end - shape[0], end]):
            raise UserError(f"{path} is of another run or place: run the same sample command again to make it")
    shard = functools.lru_cache(maxsize=1)(lambda number: open_images(shards[number]))

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), *every[0][1:]), np.uint8)
        where = np.searchsorted(ends, rows, side="right")
        for number in np.unique(where):
            inside = where == number
            pixels[inside] = shard(int(number)).read(rows[inside] - ends[number] + every[number][0])
        return pixels

    return Folder(ImageSet(str(directory), (n, *every[0][1:]), read), manifest)


def _belongs(shard: Path, manifest: dict[str, Any], images: list[int]) -> bool:
    """Whether a shard is of the manifest's recipe and holds these images; True where either says nothing of it."""
    about = read_npz(shard, ("about",)).get("about")
    if about is None or "recipe" not in manifest:
        return True
    told = json.loads(str(about))
    return told["recipe"] == manifest["recipe"] and told["images"] == images


def load_samples(directory: str | Path) -> Tensor:
    """All images of :func:`open_samples` at once, in memory: (n, C, H, W) float32 in [0, 1]."""
    return open_samples(directory).images[:]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        num = manifest["num"]
    except OSError as error:
        raise UserError(f"{path} cannot be read, so nobody knows how many images belong here") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say under 'num' how many images belong here") from error
    if not isinstance(num, int) or num < 1:
        raise UserError(f"{path} must say under 'num' how many images belong here, not {num!r}")
    if manifest.get("checksum") not in (None, key({k: v for k, v in manifest.items() if k != "checksum"})):
        raise UserError(f"{path} is damaged: run the same sample command again to mend it")
    return manifest
