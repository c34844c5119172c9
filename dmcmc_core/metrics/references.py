"""References: what images are compared with, their features and statistics computed once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dmcmc_core.data import ImageSet
from dmcmc_core.files import read_npz
from dmcmc_core.metrics.feature_sets import describe
from dmcmc_core.metrics.features import Extractor, load_features
from dmcmc_core.metrics.frechet import covariance, vector
from dmcmc_core.metrics.neighbours import NEIGHBOURS
from dmcmc_core.metrics.rows import Table


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
    """Of :func:`dmcmc_core.metrics.within`."""
    k: int

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
    """Read the reference that an NPZ of mean ``mu`` (d,) and covariance ``sigma`` (d, d) is; None for any other path.

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
