"""Runs measured as comparisons need them: paired errors of single images, a distance, and a few pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dmcmc_core import metrics
from dmcmc_core.checkpoints import load_model
from dmcmc_core.data import ImageSet, open_images
from dmcmc_core.errors import UserError
from dmcmc_core.report.testbed import ACCURATE
from dmcmc_core.report.verdicts import Distance
from dmcmc_core.runs.cache import cached
from dmcmc_core.runs.model import Model
from dmcmc_core.runs.settings import LINEAR_SAMPLERS, OF_MODEL

PICTURES = 8
"""Images of a run that a grid shows."""
BEGINS = (*OF_MODEL, "start", "block", "cast")
"""Settings that a run shares with the accurate solution from its noise."""
FEATURES = {"digits": "digits-cnn", "glyphs32": "glyphs-cnn"}
"""Features of references whose names begin so; others take those of :data:`OTHERWISE`."""
OTHERWISE = "random-conv"
RESAMPLES = 20
"""Resamples of the bootstrap for more features than :data:`dmcmc_core.metrics.FEW_FEATURES`."""


class Measured(NamedTuple):
    """What a comparison keeps of a run; ``errors`` (n,) and ``distance`` are None where there is none."""

    seed: int
    n: int
    nfe: float
    errors: Tensor | None
    distance: Distance | None
    pictures: Tensor
    """(at most :data:`PICTURES`, C, H, W) in the data range."""


def pairs_with_accurate(plan: Mapping[str, Any]) -> bool:
    """Tell whether a plan, as manifests have it, leads from noise to one solution: no chains, no noise on the way."""
    return not plan["chain"] and plan["sampler"] not in LINEAR_SAMPLERS and not metrics.adds_noise(plan)


def prepare_reference(
    reference: str | Path,
    features: str | metrics.Extractor | None,
    device: str,
    cache_dir: Path,
    shape: tuple[int, ...],
) -> metrics.Reference:
    """Return the reference of a name, a file or a run's folder; of features by its name unless some are given.

    Raises:
        UserError: for what is no reference, and images of another shape.
    """
    name = str(reference)
    found = (chosen for start, chosen in FEATURES.items() if name.startswith(start))
    features = features or next(found, OTHERWISE)
    published = metrics.published_statistics(reference, features, device=device)
    if published:
        return published
    images = open_images(reference)
    metrics.check_shape(shape, name, tuple(images.shape[1:]))
    return metrics.make_reference(images, features, name, device=device, cache_dir=cache_dir)


@dataclass
class Bench:
    """What runs are measured by: a reference (None: none), and the model whose accurate solutions they pair with.

    Without ``model`` that of the name in the first manifest is loaded; ``missing`` says why none was.
    """

    reference: metrics.Reference | None
    cache_dir: Path
    device: str = "cpu"
    model: Model | None = None
    progress: bool = False
    missing: str = ""
    _last: dict[str, Any] = field(default_factory=dict)

    def measured(
        self,
        images: Tensor | ImageSet,
        manifest: Mapping[str, Any],
        settings: Mapping[str, Any],
        where: str,
        alone: bool,
    ) -> Measured:
        """Measure images in their data range; ``alone``: of one seed, whose distance takes its spread by resampling."""
        errors = None
        if pairs_with_accurate(manifest["plan"]) and (accurate := self._accurate(manifest, settings, len(images))):
            theirs, theirs_manifest = accurate
            metrics.check_begun(manifest, theirs_manifest, where, "its accurate solution")
            errors = metrics.paired_errors(images, theirs)
        distance = self._distance(images, manifest, alone) if self.reference else None
        first = images[: min(PICTURES, len(images))]
        return Measured(manifest["seed"], len(images), manifest["nfe_full"], errors, distance, first)

    def _accurate(self, manifest: Mapping[str, Any], settings: Mapping[str, Any], n: int) -> Any:
        """Return the accurate solutions by :data:`ACCURATE` from a run's noise; None where its model is not here."""
        begins = {name: settings[name] for name in BEGINS if name in settings}
        asked = manifest["seed"], n, repr(sorted(begins.items()))
        if self._last.get("asked") == asked:
            return self._last["found"]
        if self.model is None and not self.missing:
            try:
                self.model = load_model(manifest["model"], self.device)
            except UserError as error:
                self.missing = (
                    f"no accurate solution: model {manifest['model']!r} of the runs cannot be loaded ({error})"
                )
        if self.model is None:
            return None
        sampler, nfe = ACCURATE
        found = cached(self.model, sampler, nfe, n, manifest["seed"], begins, self.cache_dir, self.progress)
        self._last = {"asked": asked, "found": found}
        return found

    def _distance(self, images: Tensor | ImageSet, manifest: Mapping[str, Any], alone: bool) -> Distance:
        low, high = manifest["data_range"]
        unit = images.in_range(0.0, 1.0) if isinstance(images, ImageSet) else (images - low) / (high - low)
        ref = self.reference
        assert ref is not None
        described = metrics.describe_for(ref, unit, self.cache_dir)
        value = metrics.frechet_distance(*described.statistics, ref.mu, ref.cov)
        if not alone:
            return Distance(value)
        few = described.features.shape[1] <= metrics.FEW_FEATURES
        chains = (manifest["plan"]["chain"] or {}).get("chains")
        made = metrics.interval(described, ref, metrics.BOOTSTRAP if few else RESAMPLES, chains)
        return Distance(value, made and made["spread"])
