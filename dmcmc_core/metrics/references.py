"""References: what images are compared with, their features and statistics computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dmcmc_core.checkpoints.torch_files import TorchFile, Unread, is_tensor
from dmcmc_core.data import ImageSet
from dmcmc_core.data.images import STATISTICS
from dmcmc_core.errors import UserError
from dmcmc_core.files import read_npz
from dmcmc_core.metrics.feature_sets import describe
from dmcmc_core.metrics.features import Extractor, load_features
from dmcmc_core.metrics.frechet import covariance, vector
from dmcmc_core.metrics.neighbours import NEIGHBOURS
from dmcmc_core.metrics.rows import Table

NAMES = {"mu": "mu", "sigma": "sigma", "mean": "mu", "cov": "sigma"}
"""Array of a file of statistics -> what it is."""


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
    """Read the reference that a file of statistics is; None for any other path.

    That is an NPZ of mean ``mu`` (d,) or (1, d) and covariance ``sigma`` (d, d), as pytorch-fid writes it, of ``mean``
    and ``cov``, or of the features ``pool_3`` (n, d) themselves; or a ``.pt`` of ``mu`` and ``sigma``, torch-fidelity's
    cache. They serve for the Fréchet distance alone, and it is the reader who knows that they were made in the same
    features: the file does not say.

    Raises:
        UserError: for a file that cannot be read or holds images as well, whose arrays are no mean and covariance, and
            for a pickle, which is never executed.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".pt", ".pkl") or not path.is_file():
        return None
    if path.suffix == ".pkl":
        raise UserError(
            f"{path} is a pickle, which is never executed: save its statistics in its own project as an NPZ, "
            "np.savez(file, mu=..., sigma=...); in those of EDM2 they lie under 'fid'"
        )
    found = read_npz(path, ("arr_0", *NAMES, "pool_3")) if path.suffix == ".npz" else _of_torch(path)
    if "arr_0" in found:
        return None  # images, which tell more
    kinds = [names for names in STATISTICS if names <= found.keys()]
    if len(kinds) > 1:
        said = " and ".join(", ".join(sorted(names)) for names in kinds)
        raise UserError(f"{path} holds {said}: either could be meant, keep one of them")
    named = {NAMES[name]: array for name, array in found.items() if name in NAMES}
    if kinds == [{"pool_3"}]:
        named = _of_features(found["pool_3"], path)
    if set(named) != {"mu", "sigma"}:
        return None  # neither, which the reader of images tells
    if isinstance(extractor, str):
        extractor = load_features(extractor, device=device)
    mean, key = ("mean", "cov") if "mean" in found else ("mu", "sigma")
    mu = np.asarray(named["mu"])
    mu = vector(mu[0] if mu.ndim == 2 and len(mu) == 1 else mu, f"{mean} of {path}")
    cov, _ = covariance(named["sigma"], f"{key} of {path}", len(mu))
    return Reference(str(path), extractor, None, None, mu.to(device), cov.to(device), None, None, k)


def _of_features(features: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    if features.ndim != 2 or len(features) < 2 or features.dtype.kind != "f":
        raise UserError(
            f"pool_3 of {path} is of shape {features.shape}: features (n, d) of 2 images or more are needed"
        )
    return {"mu": features.mean(0, dtype=np.float64), "sigma": np.cov(features, rowvar=False, dtype=np.float64)}


def _array(file: TorchFile, value: Any) -> Any:
    return file.numbers(value).numpy() if is_tensor(value) else value.array() if isinstance(value, Unread) else None


def _of_torch(path: Path) -> dict[str, np.ndarray]:
    file = TorchFile(path)
    held = file.content if isinstance(file.content, dict) else {}
    found = {name: _array(file, held.get(name)) for name in ("mu", "sigma")}
    if any(array is None for array in found.values()):
        said = ", ".join(map(str, held)) or f"a {type(file.content).__name__}"
        raise UserError(f"{path} holds {said:.100}: statistics are arrays mu and sigma, images are NPZ or PNG files")
    return found
