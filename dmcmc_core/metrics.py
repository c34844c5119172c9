"""How far one set of images is from another: distances between features, between distributions, between neighbours.

A feature extractor turns images into rows of numbers; everything else here is arithmetic on two such tables, done in
float64 and in blocks, so that 50,000 rows fit. Only features of the Inception network of 2015-12-05 may be called FID:
:func:`distance_name` says what a number is called.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from dmcmc_core.data import ImageSet, from_uint8, load_images, open_images, read_npz, root, to_uint8
from dmcmc_core.denoiser import BLOCK, apply_in_blocks
from dmcmc_core.errors import UserError, unknown

ROWS = 2048
"""Rows of a tile: pairs are always looked at in tiles of at most ROWS x ROWS (32 MB in float64)."""

NEIGHBOURS = 5
"""The k of precision, recall, density and coverage, as in Naeem et al. 2020."""

# ---- Fréchet distance ------------------------------------------------------------------------------------------------


def statistics(features: Tensor, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64; that of ``numpy.cov``.

    Raises:
        UserError: for fewer than two rows, or features that are not finite.
    """
    x = _features(features, "features")
    if len(x) < 2:
        raise UserError(f"a covariance needs at least 2 rows of features, not {len(x)}")
    mu = sum(part.double().sum(0) for part in x.split(rows)) / len(x)
    centred = ((part.double() - mu) for part in x.split(rows))
    return mu, sum(part.T @ part for part in centred) / (len(x) - 1)


def frechet_distance(mu1, cov1, mu2, cov2) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, |mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).

    Dowson & Landau 1982; of Inception features it is the FID of Heusel et al. 2017 (arXiv 1706.08500, eq. 6). The trace
    of the root is the sum of the roots of the eigenvalues of the symmetric product F^T cov F with F F^T the covariance
    of the lower rank. Working in the range of that covariance keeps singular ones exact: directions in which nothing
    varies cannot contribute the root of a rounding error.

    Args:
        mu1, mu2: means (d,), tensors or arrays.
        cov1, cov2: covariances (d, d), symmetric, singular ones included.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        UserError: for shapes that do not fit, values that are not finite, or matrices that are no covariances.
    """
    mu1, mu2 = _vector(mu1, "mu1"), _vector(mu2, "mu2")
    if mu1.shape != mu2.shape:
        raise UserError(f"means of the same number of features are needed, not mu1 {len(mu1)} and mu2 {len(mu2)}")
    cov1, factor1 = _covariance(cov1, "cov1", len(mu1))
    cov2, factor2 = _covariance(cov2, "cov2", len(mu1))
    factor, cov = (factor1, cov2) if factor1.shape[1] <= factor2.shape[1] else (factor2, cov1)
    product = factor.T @ cov @ factor
    root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return max(0.0, ((mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * root).item())


def _float64(values, name: str) -> Tensor:
    values = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values, dtype=np.float64))
    values = values.detach().cpu().double()
    if not values.isfinite().all():
        raise UserError(f"{name} holds values that are not finite")
    return values


def _vector(values, name: str) -> Tensor:
    values = torch.atleast_1d(_float64(values, name))
    if values.ndim != 1:
        raise UserError(f"{name} must have the shape (d,), not {tuple(values.shape)}")
    return values


def _covariance(values, name: str, d: int) -> tuple[Tensor, Tensor]:
    """A checked covariance C (d, d), made exactly symmetric, and F (d, rank) with F F^T = C."""
    cov = torch.atleast_2d(_float64(values, name))
    if cov.shape != (d, d):
        raise UserError(f"{name} must have the shape {(d, d)} as its mean has {d} features, not {tuple(cov.shape)}")
    scale = cov.abs().max()
    if (cov - cov.T).abs().max() > 1e-5 * scale:  # float32 covariances of thousands of features pass
        raise UserError(f"{name} must be symmetric")
    cov = (cov + cov.T) / 2
    values, vectors = torch.linalg.eigh(cov)
    if values[0] < -1e-4 * scale:
        raise UserError(f"{name} must be positive semidefinite: its least eigenvalue is {values[0].item():.3g}")
    kept = values > values[-1].clamp(min=0) * d * torch.finfo(torch.float64).eps
    return cov, vectors[:, kept] * values[kept].sqrt()


# ---- kernel distance -------------------------------------------------------------------------------------------------


def kid(x: Tensor, y: Tensor, *, within_y: float | None = None, rows: int = ROWS) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (x . y / d + 1)^3, all pairs.

    Binkowski et al. 2018 (arXiv 1801.01401, Section 4), of Inception features the KID. Its mean over draws from equal
    distributions is 0, so single values may be negative. The value itself, where many tables print it times 1000;
    :func:`kid_subsets` averages over subsets as they do. ``within_y`` may carry ``within(y)`` from an earlier call.

    Raises:
        UserError: for fewer than two rows, different numbers of features, or features that are not finite.
    """
    x, y = _pair(x, y, least=2)
    within_y = within(y, rows) if within_y is None else within_y
    return within(x, rows) + within_y - 2 * _kernel_sum(x, y, rows) / (len(x) * len(y))


def within(x: Tensor, rows: int = ROWS) -> float:
    """Mean of KID's kernel over all pairs of different rows of features (n, d)."""
    return (_kernel_sum(x, x, rows) - _kernel(x, x, paired=True)) / (len(x) * (len(x) - 1))


def kid_subsets(x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation of :func:`kid` over random subsets, as published tables have it.

    The same subsets as torch-fidelity's for the same seed: drawn without replacement by NumPy's RandomState.

    Raises:
        UserError: for subsets larger than either set, and as :func:`kid`.
    """
    x, y = _pair(x, y, least=2)
    if not 2 <= size <= min(len(x), len(y)) or subsets < 1:
        raise UserError(
            f"subsets of 2 to {min(len(x), len(y))} rows are needed and at least one subset, "
            f"not size={size}, subsets={subsets}"
        )
    random = np.random.RandomState(seed)

    def draw(z: Tensor) -> Tensor:
        return z[torch.from_numpy(random.choice(len(z), size, replace=False)).to(z.device)]

    values = [kid(draw(x), draw(y)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: Tensor, y: Tensor, paired: bool = False) -> float:
    """Sum of the kernel over all pairs of rows, or over rows paired one with one."""
    x, y = x.double(), y.double()
    products = (x * y).sum(1) if paired else x @ y.T
    return (products / x.shape[1] + 1).pow(3).sum().item()


def _kernel_sum(x: Tensor, y: Tensor, rows: int) -> float:
    return sum(_kernel(a, b) for a in x.split(rows) for b in y.split(rows))


# ---- neighbours ------------------------------------------------------------------------------------------------------


class Prdc(NamedTuple):
    """What :func:`prdc` returns."""

    precision: float
    """Share of generated rows inside the ball of at least one reference row (Kynkäänniemi et al. 2019)."""
    recall: float
    """Share of reference rows inside the ball of at least one generated row."""
    density: float
    """Mean number of reference balls that a generated row is in, divided by k (Naeem et al. 2020); may exceed 1."""
    coverage: float
    """Share of reference balls that hold at least one generated row."""


def radii(x: Tensor, k: int = NEIGHBOURS, rows: int = ROWS) -> Tensor:
    """Distance of each row of features (n, d) to its k-th nearest other row, (n,) float64.

    Raises:
        UserError: unless 1 <= k < n.
    """
    if not 1 <= k < len(x):
        raise UserError(f"the k-th nearest neighbour needs 1 <= k < number of rows, not k={k} of {len(x)} rows")
    out = []
    for part in x.split(rows):
        nearest = part.new_empty(len(part), 0, dtype=torch.float64)
        for other in x.split(rows):
            tile = torch.cat([nearest, _distances(part, other)], 1)
            nearest = tile.topk(min(k + 1, tile.shape[1]), largest=False).values  # the row itself is one of them
        out.append(nearest[:, k])
    return torch.cat(out)


def prdc(
    generated: Tensor,
    reference: Tensor,
    k: int = NEIGHBOURS,
    *,
    reference_radii: Tensor | None = None,
    rows: int = ROWS,
) -> Prdc:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) of features (n, d) and (m, d).

    A row's ball reaches to its k-th nearest neighbour in its own set and is open, as in the authors' package ``prdc``.
    Distances are sums of squared differences in float64 without the shortcut through inner products, so that copies
    are at distance 0 and ties are ties. ``reference_radii`` may carry ``radii(reference, k)`` from an earlier call.

    Raises:
        UserError: unless 1 <= k < n, m; for different numbers of features, or features that are not finite.
    """
    x, y = _pair(generated, reference, least=k + 1)
    radius_x = radii(x, k, rows)
    radius_y = radii(y, k, rows) if reference_radii is None else reference_radii
    balls = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # reference balls that each generated row is in
    recalled = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    covered = torch.zeros_like(recalled)
    for i, j in _tiles(len(x), len(y), rows):
        distance = _distances(x[i], y[j])
        inside = distance < radius_y[j]
        balls[i] += inside.sum(1)
        covered[j] |= inside.any(0)
        recalled[j] |= (distance < radius_x[i, None]).any(0)
    precision, recall, depth, coverage = (t.double().mean().item() for t in (balls > 0, recalled, balls, covered))
    return Prdc(precision, recall, depth / k, coverage)


def _tiles(n: int, m: int, rows: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n, rows):
        for j in range(0, m, rows):
            yield slice(i, i + rows), slice(j, j + rows)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


# ---- classes ---------------------------------------------------------------------------------------------------------


def class_histogram(labels: Tensor, n_classes: int) -> Tensor:
    """How often each of ``n_classes`` occurs in integer labels (n,): counts (n_classes,) int64.

    Raises:
        UserError: for labels that are no integers in [0, n_classes).
    """
    labels = torch.as_tensor(labels)
    if (
        labels.is_floating_point()
        or labels.ndim != 1
        or (labels.numel() and not 0 <= labels.min() <= labels.max() < n_classes)
    ):
        raise UserError(f"labels must be integers in [0, {n_classes}) of shape (n,)")
    return labels.long().bincount(minlength=n_classes)


def total_variation(counts: Tensor, reference: Tensor) -> float:
    """Half the sum of |p - q| for two histograms, in [0, 1]: the share of images that would have to change class."""
    p, q = _shares(counts, "counts"), _shares(reference, "reference")
    if p.shape != q.shape:
        raise UserError(f"histograms over the same classes are needed, not over {len(p)} and {len(q)}")
    return ((p - q).abs().sum() / 2).item()


def class_coverage(counts: Tensor, reference: Tensor) -> float:
    """Share of the classes of the reference histogram that occur at all in the other one."""
    p, q = _shares(counts, "counts"), _shares(reference, "reference")
    if p.shape != q.shape:
        raise UserError(f"histograms over the same classes are needed, not over {len(p)} and {len(q)}")
    return (p[q > 0] > 0).double().mean().item()


def _shares(counts: Tensor, name: str) -> Tensor:
    counts = _vector(counts, name)
    if (counts < 0).any() or counts.sum() <= 0:
        raise UserError(f"{name} must be a histogram: numbers at least 0, not all of them 0")
    return counts / counts.sum()


# ---- distance to a data set, and memorisation ------------------------------------------------------------------------


class Nearest(NamedTuple):
    """Each image's nearest member of a data set."""

    distance: Tensor
    """(n,) float64, L2 over all pixels, in units of the pixels."""
    index: Tensor
    """(n,) int64 into the data set."""


def distance_to_set(images: Tensor, data: Tensor, *, exclude_self: bool = False, rows: int = ROWS) -> Nearest:
    """Nearest member of ``data`` (K, *shape) to each of ``images`` (n, *shape), by L2 over the pixels.

    Found through inner products in the dtype of the images; the distance itself is then computed from the difference in
    float64, so a copy is at exactly 0. With ``exclude_self`` image i is not compared with member i: the two sets are
    the same one.

    Raises:
        UserError: for different shapes, an empty set, or values that are not finite.
    """
    if images.shape[1:] != data.shape[1:]:
        raise UserError(f"images of shape {tuple(images.shape[1:])} cannot be compared with {tuple(data.shape[1:])}")
    x, y = _pair(images.flatten(1), data.flatten(1).to(images.device), least=1)
    if exclude_self and not (len(x) == len(y) > 1):
        raise UserError(f"exclude_self compares a set of at least 2 with itself, not {len(x)} images with {len(y)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    middle = y.mean(0)  # inner products of centred rows lose fewer digits
    best, index = x.new_full((len(x),), torch.inf), x.new_zeros(len(x), dtype=torch.int64)
    for i, j in _tiles(len(x), len(y), rows):
        a, b = x[i] - middle, y[j] - middle
        squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        if exclude_self and i == j:
            squared.fill_diagonal_(torch.inf)
        least, at = squared.min(1)
        index[i] = torch.where(least < best[i], at + j.start, index[i])
        best[i] = torch.minimum(best[i], least)
    pieces = zip(x.split(rows), index.split(rows), strict=True)
    return Nearest(torch.cat([(part.double() - y[at].double()).norm(dim=1) for part, at in pieces]), index)


def coverage_of_set(index: Tensor, size: int) -> float:
    """Share of a data set of ``size`` members that is the nearest one (``Nearest.index``) of at least one image."""
    return class_histogram(index, size).bool().double().mean().item()


def expected_coverage(n: int, size: int) -> float:
    """What :func:`coverage_of_set` is on average for n exact independent draws: 1 - (1 - 1/size)^n."""
    return 1 - (1 - 1 / size) ** n


class Memorisation(NamedTuple):
    """What :func:`memorisation` returns; ``fresh`` is the same for held-out images, which no training has seen."""

    nearer_train: float
    """Share of generated images that are nearer to some training image than to any held-out one."""
    nearer_train_fresh: float
    """The same share for the held-out images, each compared with the training images and the other held-out ones."""
    to_train: float
    """Median distance of generated images to their nearest training image."""
    to_heldout: float
    """Median distance of generated images to their nearest held-out image."""
    to_train_fresh: float
    """Median distance of held-out images to their nearest training image."""
    to_heldout_fresh: float
    """Median distance of held-out images to their nearest other held-out image."""
    copies: float
    """Share of generated images nearer to a training image than 99 % of the held-out images are; 0.01 by chance."""
    error: float
    """Standard error of ``nearer_train - nearer_train_fresh``, from the binomial spread of the two shares."""


def memorisation(generated: Tensor, train: Tensor, heldout: Tensor) -> Memorisation:
    """Does a model copy its training images? Nearest training image against nearest held-out image, L2 over pixels.

    How to read it. If training and held-out images are draws from one distribution and the model has learned that
    distribution and not the images, a generated image is to both sets what a held-out image is: ``nearer_train`` is
    ``nearer_train_fresh`` up to about three times ``error``, and ``to_train / to_heldout`` is its fresh counterpart.
    A model that copies every image has nearer_train = 1, to_train = 0 and copies = 1.

    The fresh share is about T / (T + H) for T training and H held-out images, since the larger set is more often the
    nearer one; as the held-out images are compared with sets of the same sizes (but for the image itself), the two
    shares may be compared whatever T and H are. One distance alone does not tell: a blurry image is near to everything.

    Args:
        generated: (n, *shape). train: (T, *shape). heldout: (H, *shape), H at least 2. All in the same units.

    Raises:
        UserError: for different shapes, fewer than two held-out images, or values that are not finite.
    """
    to_train, to_heldout = (distance_to_set(generated, data).distance for data in (train, heldout))
    fresh_train = distance_to_set(heldout, train).distance
    fresh_heldout = distance_to_set(heldout, heldout, exclude_self=True).distance
    shares = [
        (near < far).double().mean().item() for near, far in ((to_train, to_heldout), (fresh_train, fresh_heldout))
    ]
    medians = [d.median().item() for d in (to_train, to_heldout, fresh_train, fresh_heldout)]
    copies = (to_train < fresh_train.quantile(0.01)).double().mean().item()
    error = sum(p * (1 - p) / n for p, n in zip(shares, (len(generated), len(heldout)), strict=True)) ** 0.5
    return Memorisation(*shares, *medians, copies, error)


# ---- feature extractors ----------------------------------------------------------------------------------------------


class Extractor(NamedTuple):
    """A feature extractor and the name under which its numbers are printed."""

    name: str
    network: Callable[[Tensor], Tensor]
    """Images (B, C, H, W) float32 in [0, 1] -> features (B, d)."""
    weights: str = ""
    """SHA-256 of its weights; empty where nobody knows it: what it computes is then never cached."""


def digits_cnn() -> nn.Module:
    """The classifier of digits that ships with the workbench, up to its features: (B, 1, 8, 8) -> (B, at most 64)."""
    from dmcmc_core.nets.features import load_digits_cnn

    return load_digits_cnn()


def glyphs_cnn() -> nn.Module:
    """The classifier of glyphs that ships with the workbench, up to its features: (B, 3, 32, 32) -> (B, 64)."""
    from dmcmc_core.nets.features import load_glyphs_cnn

    return load_glyphs_cnn()


class RandomConv(nn.Module):
    """An untrained convolutional network with fixed weights: (B, C, H, W) with H, W >= 8 -> (B, 64).

    Four 3x3 layers with ReLU between them (32, 32, 32 and 16 channels, the second and third of stride 2), normal
    weights of variance 2 / fan-in (He et al. 2015), the mean over each quarter of the image. Three quarters of the
    first filters are made to sum to 0 and three times larger: through plain random filters the brightness of the image
    drowns everything, through these the distance also sees blur, noise and mixtures of images. Features are multiplied
    by 3, which brings their mean square on ``glyphs32`` near 1, where the kernel of KID is neither linear nor a bare
    cube.
    """

    WIDTHS, STRIDES = (32, 32, 32, 16), (1, 2, 2, 1)

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for width, stride in zip(self.WIDTHS, self.STRIDES, strict=True):
            conv = nn.utils.skip_init(  # no draw of the global generator for weights that are replaced at once
                nn.Conv2d, channels, width, 3, stride, padding=1, padding_mode="reflect", bias=False
            )
            weight = torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * channels)) ** 0.5
            if not layers:
                edges = weight[: 3 * width // 4]
                edges.sub_(edges.mean((2, 3), keepdim=True)).mul_(3)
            conv.weight = nn.Parameter(weight, requires_grad=False)
            layers += [conv, nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.layers(2 * images - 1)


def random_conv() -> Callable[[Tensor], Tensor]:
    """:class:`RandomConv` of seed 0 for as many channels as the images have."""
    made = functools.cache(lambda channels: RandomConv(channels).eval())

    def network(images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 8:
            raise UserError(f"random-conv needs images of at least 8x8 pixels, not {tuple(images.shape[-2:])}")
        return made(images.shape[1]).to(images.device)(images)

    return network


INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the file's content; its first eight digits are part of the file's name."""
WEIGHTS_VARIABLE = "DMCMC_WEIGHTS"


def inception_file(weights: str | Path | None = None) -> Path:
    """Where the Inception weights are: at ``weights``, else where DMCMC_WEIGHTS says, else in torch's hub cache.

    The argument and the environment variable name the file or a folder that holds it under its published name (a folder
    of other weights in the variable is passed over). Nothing is downloaded.

    Raises:
        UserError: that names the file, its SHA-256 and where to put it, when it is in none of these places; or when
            the place that was given does not exist or does not hold it.
    """
    about = f"{INCEPTION_FILE} (release 'fid_weights' of mseitzer/pytorch-fid, SHA-256 {INCEPTION_SHA256})"
    hub = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    variable = os.environ.get(WEIGHTS_VARIABLE)
    if weights or (variable and not Path(variable).expanduser().is_dir()):
        path = Path(weights or variable).expanduser()
        path = path / INCEPTION_FILE if path.is_dir() else path
        if not path.is_file():
            source = "the argument weights" if weights else f"the environment variable {WEIGHTS_VARIABLE}"
            raise UserError(f"{source} leads to no Inception weights: no such file: {path}; needed is {about}")
        return path
    candidates = [Path(variable).expanduser() / INCEPTION_FILE] if variable else []
    for path in (*candidates, hub):
        if path.is_file():
            return path
    raise UserError(
        f"features 'inception' need {about}, which is never downloaded by itself: put it at {hub}, or name the file or "
        f"its folder in the environment variable {WEIGHTS_VARIABLE}"
    )


def inception(weights: str | Path | None = None, *, check_hash: bool = True) -> nn.Module:
    """pytorch-fid's InceptionV3 up to its last pooling: (B, 1 or 3, H, W) in [0, 1] -> (B, 2048).

    Images are resized to 299x299 (bilinear) and scaled to [-1, 1] by that network itself; one channel becomes three
    equal ones. pytorch-fid fetches its weights by an address only: its loader is replaced while the network is built.

    Args:
        weights: as in :func:`inception_file`.
        check_hash: refuse a file that is not the published one, by its SHA-256.

    Raises:
        UserError: when pytorch-fid or the file is missing, or the file is another one.
    """
    path = inception_file(weights)
    try:
        from pytorch_fid import inception as module
    except ImportError as error:
        raise UserError("features 'inception' need pytorch-fid and torchvision: pip install pytorch-fid") from error
    if check_hash:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != INCEPTION_SHA256:
            raise UserError(
                f"{path} is not {INCEPTION_FILE}: its SHA-256 is {found}, not {INCEPTION_SHA256}; it may be truncated"
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: state):
            network = module.InceptionV3([module.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a file that it cannot read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} does not hold the weights of pytorch-fid's InceptionV3: {reason}") from error
    return _Inception(network)


class _Inception(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))[0].flatten(1)


FEATURES: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "digits-cnn": digits_cnn,
    "glyphs-cnn": glyphs_cnn,
    "random-conv": random_conv,
    "inception": inception,
}
"""Feature extractors by name: a function that makes the network. Only ``inception`` takes a weights file."""


def load_features(name: str, weights: str | Path | None = None, *, check_hash: bool = True, device="cpu") -> Extractor:
    """The feature extractor of that name, ready to use on ``device``.

    An Inception network whose file was not checked against the published SHA-256 does not carry the name that prints
    as FID.

    Raises:
        UserError: for an unknown name, or what the network needs and does not find.
    """
    if name not in FEATURES:
        raise unknown("features", name, FEATURES)
    if name != "inception":
        network = FEATURES[name]()
    else:
        network = inception(weights, check_hash=check_hash)
        name = name if check_hash else "inception with unchecked weights"
    weights = weights_sha256(network if isinstance(network, nn.Module) else RandomConv(3))
    if isinstance(network, nn.Module):
        network = network.eval().to(device)
    return Extractor(name, network, weights)


def weights_sha256(network: nn.Module) -> str:
    """Hash of a network's tensors, with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def distance_name(features: str) -> str:
    """What the Fréchet distance in these features is called: FID for ``inception`` alone."""
    return "FID" if features == "inception" else f"Fréchet distance ({features} features)"


@torch.no_grad()
def extract(images: Tensor | ImageSet, extractor: Extractor, *, device="cpu", block: int = BLOCK) -> Tensor:
    """Features (n, d) of images (n, C, H, W) in [0, 1], computed on ``device`` in padded blocks, returned on it.

    Of an :class:`dmcmc_core.data.ImageSet` only a few blocks are in memory at a time, beside the features.

    Images are first rounded to 256 levels, as files hold them, so that images in memory and the same images on disk
    have the same features.

    Raises:
        UserError: for images of the wrong shape or not finite, or features that are not finite.
    """
    if len(images.shape) != 4 or not len(images):
        raise UserError(f"images of shape (n, C, H, W) are needed, at least one, not {tuple(images.shape)}")
    if isinstance(images, ImageSet):
        images = images.in_range(0.0, 1.0)
    elif not images.isfinite().all():
        raise UserError("the images hold values that are not finite")
    features, done = None, 0
    for part in images.split(16 * block):  # rounded and moved piecewise: the whole set may not fit on the device
        rounded = from_uint8(to_uint8(part)).to(device)
        try:
            values = apply_in_blocks(extractor.network, block, rounded)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError | torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"features {extractor.name!r} do not fit images of shape {tuple(images.shape[1:])}: {reason}"
            ) from error
        if features is None:
            features = values.new_empty(len(images), *values.shape[1:])
        features[done : done + len(values)] = values
        done += len(values)
    return _features(features, f"features {extractor.name!r}")


def _features(x: Tensor, name: str) -> Tensor:
    x = torch.as_tensor(x)
    if x.ndim != 2:
        raise UserError(f"{name} must have the shape (n, d), not {tuple(x.shape)}")
    if not x.isfinite().all():
        row = (~x.isfinite().all(1)).nonzero()[0].item()
        raise UserError(f"{name} are not finite, first in row {row}")
    return x


def _pair(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    x, y = _features(x, "features"), _features(y, "reference features")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"rows of the same length are needed, not of {x.shape[1]} and {y.shape[1]} features")
    if min(len(x), len(y)) < least:
        raise UserError(f"at least {least} rows are needed in both sets, not {len(x)} and {len(y)}")
    return x, y


# ---- all of it at once -----------------------------------------------------------------------------------------------


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
    mu = _vector(found["mu"], f"mu of {path}")
    cov, _ = _covariance(found["sigma"], f"sigma of {path}", len(mu))
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


def require_equal_n(a: Mapping | int, b: Mapping | int) -> None:
    """Refuse to compare two results (of :func:`measure`, or bare numbers of images) that were made at different n.

    Every one of these estimates is biased or spread by an amount that depends on n (Chong & Forsyth 2020, arXiv
    1911.07023). Results must also share the features, the reference and its number of images.

    Raises:
        UserError: that names what differs.
    """
    a, b = ({"n": r} if isinstance(r, int) else r for r in (a, b))
    for key in ("n", "reference_n", "reference", "features"):
        if key in a and key in b and a[key] != b[key]:
            raise UserError(f"results of different {key} must not be compared: {a[key]!r} and {b[key]!r}")
