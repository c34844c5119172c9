"""Exact models that generalise: mixtures of low-rank Gaussians, fitted to the digits and to the glyphs.

The exact denoiser of a finite set of images (``glyphs32-exact``) ends at one of them. That of a smooth density does
not, and its truth is known all the same. A fit is made when its model is first asked for, and kept in exp/cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dmcmc_core import analytic
from dmcmc_core.analytic import LowRankMixture
from dmcmc_core.data import digits, glyphs32
from dmcmc_core.errors import UserError, number
from dmcmc_core.files import key, read_npz, root, sha256, write_npz

DIRECTIONS = 400
"""Principal components of all images in which the components' axes lie, where an image has more numbers than these."""
PARTS = ("means", "factors", "noise", "weights")
_TINY = 1e-9  # images of a component that has none; and of the images' variance, what is rounding


@dataclass(frozen=True)
class Mixture:
    """A mixture by name: what it is fitted to, how, and the levels that it is asked at."""

    images: Callable[[], Tensor]
    data: str
    components: int
    rank: int
    prior: float
    sigma_max: float
    sigma_min: float = 0.01
    seed: int = 0


MIXTURES = {
    "digits-mixture": Mixture(lambda: digits("train").images, "digits-train", 20, 60, 20.0, 10.0),
    "glyphs32-mixture": Mixture(lambda: glyphs32(4000).images, "glyphs32(n=4000, seed=0)", 5, 399, 400.0, 50.0),
}
"""K, r and prior have the largest held-out likelihood that ``benchmarks/mixtures.py`` found, K r at most 2,000."""


def load(name: str, device: str = "cpu") -> LowRankMixture:
    """Return a mixture of :data:`MIXTURES`, from the cache where it is there, else fitted and put there.

    The same machine, versions and number of threads give the same bits.

    Raises:
        UserError: where scikit-learn, or what the images are made with, is not installed.
    """
    about = MIXTURES[name]
    images = about.images()
    recipe = {n: v for n, v in asdict(about).items() if n != "images"}
    content = hashlib.sha256(images.numpy()).hexdigest()
    versions = [version(package) for package in ("torch", "numpy", "scikit-learn")]
    code = [sha256(file) for file in (__file__, analytic.__file__)]
    path = root() / "exp" / "cache" / "mixtures" / f"{name}-{key([recipe, content, versions, code])}.npz"
    try:
        parts = {n: torch.from_numpy(a) for n, a in read_npz(path, listed=True).items()}
    except UserError:  # not there, or damaged
        parts = fit(images, about.components, about.rank, about.prior, about.seed)
        with suppress(OSError):  # a folder that is read only: it is fitted again next time
            write_npz(path, **parts)
    facts = {"sigma_min": about.sigma_min, "sigma_max": about.sigma_max, "data_range": (0.0, 1.0)}
    model = LowRankMixture(*(parts[n].to(device) for n in PARTS), **facts)
    model.name = name
    model.card = {"name": name, "architecture": "exact", **recipe}
    return model


def fit(
    images: Tensor, components: int, rank: int, prior: float = 20.0, seed: int = 0, iterations: int = 20
) -> dict[str, Tensor]:
    """Fit a mixture of probabilistic principal component analysers to images by expectation maximisation.

    Tipping & Bishop 1999 (Neural Computation 11, 443-482), from k-means, with a prior on the covariances (Fraley &
    Raftery 2007, Journal of Classification 24, 155-181): that of a component is as if ``prior`` more images of it had
    been seen, with the covariance that all components have in common. Axes lie in the first :data:`DIRECTIONS`
    principal components of all images; what is across these counts as noise.

    Args:
        images: (N, *shape), in the units of the data; all is computed in float64.
        components: K, from 1 to N.
        rank: r, at least 1 and below the number of directions.
        prior: images, at least 0.
        seed: of k-means and of the principal components.
        iterations: at least 1; always so many, as a threshold would turn on rounding.

    Returns:
        means (K, *shape), factors (K, d, r), noise (K,) and weights (K,) of a
        :class:`dmcmc_core.analytic.LowRankMixture`.

    Raises:
        UserError: for numbers out of range, values that are not finite, and where scikit-learn is not installed.
    """
    x = images.double().flatten(1)
    n, d = x.shape
    q = min(d, DIRECTIONS, n)
    number("components", components, least=1, most=n, whole=True)
    number("rank", rank, least=1, most=q - 1, whole=True)
    number("prior", prior, least=0)
    number("iterations", iterations, least=1, whole=True)
    if not x.isfinite().all():
        raise UserError("images must be finite: some hold NaN or infinity")
    centre = x.mean(0)
    directions, labels = _begin(x - centre, q, components, seed)
    y = (x - centre) @ directions
    across = ((x - centre) ** 2).sum(1) - (y**2).sum(1)
    shares = one_hot(labels, components).to(x)
    for _ in range(iterations):
        means, factors, noise = _analysers(y, across, shares, rank, prior, d)
        if not (noise > _TINY * y.square().mean()).all():
            raise UserError(f"rank {rank} leaves no noise across the axes: choose a smaller rank or a larger prior")
        model = LowRankMixture(means, factors, noise, shares.mean(0))
        joint = model.log_joint(y, torch.tensor(0.0)) - (across[:, None] / noise + (d - q) * noise.log()) / 2
        weights, shares = model.weights, joint.softmax(1)
    means = (centre + means @ directions.T).reshape(-1, *images.shape[1:])
    return dict(zip(PARTS, (means, directions @ factors, noise, weights), strict=True))


def _begin(x: Tensor, directions: int, components: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the first principal components of rows around their mean, (d, q), and a cluster of each row, (N,)."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise UserError(
            "mixtures are fitted by scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    solver: Any = "full" if directions == x.shape[1] else "randomized"
    analysis = PCA(directions, svd_solver=solver, random_state=seed).fit(x.numpy())
    axes = torch.from_numpy(analysis.components_.T).contiguous()
    labels = KMeans(components, n_init=4, random_state=seed).fit_predict((x @ axes).numpy())
    return axes, torch.from_numpy(labels).long()


def _analysers(
    y: Tensor, across: Tensor, shares: Tensor, rank: int, prior: float, d: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means (K, q), factors (K, q, r) and noise (K,) that are the likeliest for rows of these shares (N, K).

    With the eigenvalues l and axes U of a component's covariance, noise is the mean of the d - r smallest, and the
    factors are U_r (l_r - noise)^(1/2): Tipping & Bishop 1999, appendix A. ``across`` (N,) is what rows of d numbers
    have, squared, outside of these q.
    """
    counts = shares.sum(0).clamp(min=_TINY)
    means = shares.T @ y / counts[:, None]
    scatter = torch.stack([(y - m).T @ (s[:, None] * (y - m)) for m, s in zip(means, shares.T, strict=True)])
    scatter = (scatter + prior * scatter.sum(0) / len(y)) / (counts + prior)[:, None, None]
    outside = (shares.T @ across + prior * across.mean()) / (counts + prior)
    values, axes = torch.linalg.eigh(scatter)  # ascending
    noise = (values[:, :-rank].clamp(min=0).sum(1) + outside) / (d - rank)
    factors = axes[..., -rank:] * (values[:, None, -rank:] - noise[:, None, None]).clamp(min=0).sqrt()
    return means, factors, noise
