"""A model beside its reference: the rows that figures and tables are made of."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import data, metrics
from dmcmc_core.checkpoints import load_model
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.files import key, write_json
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.report.tables import Spread, mean_and_spread
from dmcmc_core.runs.cache import Samples, cached, code_key

ACCURATE = "unipc", 60
"""Sampler and budget of the solutions that others are paired with."""
IN_MEMORY = 5 * 10**8
"""Numbers of a reference's images (2 GB as float32) beyond which they are left on disk."""


class Testbed(NamedTuple):
    """A model, the reference that its images are compared with, and where measurements are kept.

    ``heldout``: the images of the reference, float32; where they exceed ``IN_MEMORY``, read as asked for.
    ``train``: the images that the model has learned from, ``heldout`` itself where those are the reference; None where
    none were named, and for exact models, whose own images are the truth.
    """

    name: str
    model: Denoiser
    reference: metrics.Reference
    heldout: Tensor | data.ImageSet
    train: Tensor | None
    cache_dir: Path
    block: int | None = None

    @property
    def distance(self) -> str:
        """The name of the distance, with that of its features."""
        return metrics.distance_name(self.reference.extractor.name)

    def samples(self, sampler: str, nfe: float, n: int, seed: int, settings: dict[str, Any] | None = None) -> Samples:
        """Return n images of a sampler at a full budget, from the cache where they are there."""
        settings = ({} if self.block is None else {"block": self.block}) | (settings or {})
        return cached(self.model, sampler, nfe, n, seed, settings, self.cache_dir)

    def accurate(self, n: int, seed: int, settings: dict[str, Any] | None = None) -> Tensor:
        """Return the accurate solutions, by :data:`ACCURATE`, from the noise that :meth:`samples` begin with."""
        sampler, nfe = ACCURATE
        return self.samples(sampler, nfe, n, seed, settings).images

    def row(
        self,
        sampler: str,
        nfe: float,
        n: int,
        seed: int,
        settings: dict[str, Any] | None = None,
        accurate: Tensor | None = None,
        **about: Any,
    ) -> dict[str, Any]:
        """Measure those images: ``about``, their cost, :func:`dmcmc_core.metrics.measure`, how near they are to copies.

        With ``accurate``, images of :meth:`accurate` from the same start, also their ``paired_error``, both rounded to
        256 levels.

        ``seconds`` are those that making all n images took, chains (posterior and classifier included) and integrator,
        when that was done: the cell may be of another day, and the machine had other work. Empty where not recorded.
        """
        images, manifest = self.samples(sampler, nfe, n, seed, settings)
        plan = manifest["plan"]
        cost = {"budget": nfe, "nfe": manifest["nfe_full"], "nfe_paper": manifest["nfe_paper"]}
        sampled = {"seed": seed, "levels": plan["levels"], "tol": plan["options"].get("tol"), "sampler": sampler}
        sampled |= {"settings": dict(settings or {}), "seconds": manifest.get("seconds", {})}
        paired = {} if accurate is None else {"paired_error": metrics.paired_error(images, accurate)}
        return about | sampled | cost | self.measured(images) | paired

    def measured(self, images: Tensor) -> dict[str, Any]:
        """Return :func:`dmcmc_core.metrics.measure` and :meth:`copies` of images in the model's data range.

        They are kept in the cache by the content of all that they depend on, as items share cells; but not for
        features of unknown weights.
        """
        ref = self.reference
        path = self.cache_dir / code_key() / "measured" / f"{self._key(images)}.json"
        if ref.extractor.weights and path.is_file():
            return json.loads(path.read_text())
        measured = metrics.measure(self.unit(images), ref) | self.copies(images)
        if ref.extractor.weights:
            write_json(path, measured, default=str)
        return measured

    def _key(self, images: Tensor) -> str:
        """Return a name for the measurement of images, made of all that it depends on."""
        ref, others = self.reference, () if self.train is None else (self.train, self.heldout)
        arrays = [
            None if t is None else hashlib.sha256(t.cpu().numpy()).hexdigest() for t in (ref.mu, ref.cov, ref.radii)
        ]
        about = [metrics.content(some) for some in (self.unit(images), *others)]
        about += [ref.name, ref.n, ref.k, ref.extractor.name, ref.extractor.weights, arrays]
        return key([*about, fingerprint(self.model), _code()])

    def unit(self, images: Tensor) -> Tensor:
        """Return images in the model's data range as they are measured: in [0, 1]."""
        low, high = self.model.data_range
        return (images - low) / (high - low)

    def copies(self, images: Tensor) -> dict[str, float]:
        """Return how near images in the model's data range are to those it has seen, beside what is expected."""
        if self.train is self.heldout:  # no others to tell copies by
            return {}
        if self.train is not None:
            m = metrics.memorisation(self.unit(images), self.train, self.heldout)
            return {"nearer_train": m.nearer_train, "nearer_train_fresh": m.nearer_train_fresh, "copies": m.copies}
        if not hasattr(self.model, "images"):
            return {}
        known = self.model.images
        images = images.to(known)
        index = self.model.squared_distances(images).argmin(1)
        low, high = self.model.data_range
        distance = (images - known[index]).double().flatten(1).norm(dim=1) / (high - low)
        return {
            "to_data_median": distance.median().item(),
            "data_covered": metrics.coverage_of_set(index, len(known)),
            "data_covered_by_exact_draws": metrics.expected_coverage(len(images), len(known)),
        }

    def floor(self, n: int, seeds: Iterable[int]) -> Spread:
        """Return the distance of n images that nothing is wrong with: independent draws from what the model has seen.

        Those are the training images, the images of an exact model, exact draws from one that can be drawn from, in
        its data range, or else the reference itself.
        """
        rows = [metrics.measure(self._faultless(n, 1000 + seed), self.reference) for seed in seeds]
        return mean_and_spread(rows, "frechet", ())[0]["frechet"]

    def _faultless(self, n: int, seed: int) -> Tensor:
        """Return those draws, in [0, 1]."""
        seen = hasattr(self.model, "images")
        if self.train is None and not seen and hasattr(self.model, "sample"):
            return self.unit(self.model.sample(n, seed=seed).clamp(*self.model.data_range)).float()
        own = self.train if self.train is not None else self.unit(self.model.images) if seen else self.heldout
        return own[torch.randint(len(own), (n,), generator=torch.Generator().manual_seed(seed))]


@functools.cache
def _code() -> str:
    """Hash the modules that decide what a measurement is, beside those of :func:`code_key`."""
    files = [__file__, *metrics.SOURCES]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def load(
    model: str | Denoiser,
    features: str,
    reference: str,
    train_reference: str = "",
    cache_dir: str | Path = "exp/cache",
    device: str = "cpu",
    block: int | None = None,
) -> Testbed:
    """Make a test-bed from names.

    Args:
        model: for :func:`dmcmc_core.checkpoints.load_model`, or a denoiser.
        features: a name of :data:`dmcmc_core.metrics.FEATURES`.
        reference, train_reference: for :func:`dmcmc_core.data.load_images`; the latter empty for exact models.
        device: where a model that is named, and the features, compute: ``cpu``, ``cuda`` or ``cuda:N``.
        block: see :class:`Testbed`.

    Raises:
        UserError: for unknown names, images that do not fit the features, and a model of images of another shape.
    """
    net = load_model(model, device) if isinstance(model, str) else model
    images = data.open_images(reference)
    metrics.check_shape(net.shape, reference, images.shape[1:])
    other = train_reference and train_reference != reference
    train = data.load_images(train_reference) if other else None
    ref = metrics.make_reference(images, features, reference, device=device, cache_dir=cache_dir)
    large = not train_reference and math.prod(images.shape) > IN_MEMORY
    heldout = images if large or isinstance(images, Tensor) else images[:]
    name = model if isinstance(model, str) else getattr(net, "name", type(net).__name__)
    train = heldout if train_reference == reference else train
    return Testbed(name, net, ref, heldout, train, Path(cache_dir), block)
