"""Exact models: data distributions whose denoiser, density and noise-level posterior are known in closed form.

Every sampler is tested on them, because there the truth is known. All run in padded blocks of fixed size, so a row's
bits do not depend on the rows that come with it, and forget whatever cannot change the answer in the last digit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.centred_images import CentredImages
from dmcmc_core.denoiser import BLOCK, apply_in_blocks, check_shape, per_row, total
from dmcmc_core.errors import UserError
from dmcmc_core.ranges import outside
from dmcmc_core.streams import Streams

_NUMBERS = 2**25  # numbers in the largest intermediate of a block, 128 MB in float32
_CACHED = 2**20  # numbers that stay in a cache, where one is read several times over


class _Mixture:
    """What mixtures of Gaussians share, however their covariances are written: noisy data are again such a mixture.

    A kind of them brings ``_offsets``, what a row has to a component whatever the noise level, and ``_log_joint`` and
    ``_posterior_mean`` made of it, and ``_draw``; a row is held in ``_numbers`` of them.
    """

    _offsets: Any
    _log_joint: Any
    _posterior_mean: Any
    _draw: Any

    def __init__(self, means: Tensor, weights: Tensor, numbers: int) -> None:
        k = len(means)
        if weights.shape != (k,) or (weights < 0).any() or not weights.sum() > 0:
            raise UserError(f"weights must be {k} numbers >= 0 with a positive sum, not {weights.tolist()}")
        self.shape, self.means, self.weights = tuple(means.shape[1:]), means.reshape(k, -1), weights / weights.sum()
        self.mean = (self.weights[:, None] * self.means).sum(0).reshape(self.shape)
        self._numbers, self._block = numbers, max(1, min(BLOCK, _NUMBERS // numbers))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x, sigma], (B, *shape), in the dtype of ``x``."""
        return self._in_blocks(self._posterior_mean, x, sigma).reshape(x.shape).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p(x; sigma) in nats, (B,), in the dtype of ``x``."""
        return self.log_joint(x, sigma).logsumexp(-1).to(x)

    def log_prob_levels(self, x: Tensor, levels: Tensor) -> Tensor:
        """Return log p(x; sigma) at each of ``levels``, (L,) -> (B, L)."""
        check_shape(x, self.shape)
        x = x.to(self.means)
        some = levels.to(x)[:, None].split(max(1, _NUMBERS // (8 * self._block * self._numbers)))

        def block(rows: Tensor) -> Tensor:
            offsets = self._offsets(rows)
            return torch.cat([self._log_joint(*offsets, s).logsumexp(-1) for s in some]).T.contiguous()

        return apply_in_blocks(block, self._block, x.flatten(1))

    def log_joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log (p(k) p(x; sigma | k)) of each component in nats, (B, K), in the means' dtype."""
        return self._in_blocks(lambda r, s: self._log_joint(*self._offsets(r), s), x, sigma)

    def sample(self, n: int, sigma: float | Tensor = 0.0, *, seed: int = 0, purpose: str = "exact") -> Tensor:
        """Return n exact draws at noise level ``sigma``, () or (n,): (n, *shape) in the means' dtype."""
        if n < 0:
            raise UserError(f"n must be a number of draws, at least 0, not {n}")
        rng = Streams(seed, purpose, range(n))
        like = self.means.new_empty(n, self.means.shape[1])
        component = torch.searchsorted(self.weights.cumsum(0), rng.uniform(like[:, :1])[:, 0].contiguous())
        component = component.clamp(max=len(self.weights) - 1)
        z = self._draw(component, per_row(sigma, like)[:, None], rng, like)
        return (self.means[component] + z).reshape(n, *self.shape)

    def _in_blocks(self, function, x: Tensor, sigma: Tensor) -> Tensor:
        check_shape(x, self.shape)
        x = x.to(self.means)
        return apply_in_blocks(function, self._block, x.flatten(1), per_row(sigma, x))


class GaussianMixture(_Mixture):
    """Data x0 = means[k] + scale_k * normal with probability weights[k]; noisy data are again such a mixture.

    Args:
        means: (K, *shape); everything is computed in their dtype and on their device.
        scales: (K,) standard deviations >= 0, or (K, d, d) covariances over the d = prod(shape) flattened coordinates.
        weights: (K,) >= 0, normalised here.
        sigma_min, sigma_max: the noise levels that samplers should use.
        data_range: what images would be clipped to; a mixture has no bounds.

    Raises:
        UserError: shapes that do not fit each other, a negative weight or scale, or a covariance that is not symmetric
            positive semi-definite.
    """

    def __init__(
        self,
        means: Tensor,
        scales: Tensor,
        weights: Tensor,
        *,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        data_range: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        means, scales, weights = _floats(means, scales, weights)
        k, d = len(means), means[0].numel()
        super().__init__(means, weights, k * d)
        if scales.shape == (k,):
            if (scales < 0).any():
                raise UserError(f"scales must be standard deviations >= 0, not {scales.tolist()}")
            self.variances, self.axes = (scales**2)[:, None].expand(k, d), None
        elif scales.shape == (k, d, d):
            self.variances, self.axes = torch.linalg.eigh(scales)
            if not torch.allclose(scales, scales.mT) or (self.variances < -1e-6 * self.variances.abs().max()).any():
                raise UserError("covariances must be symmetric and positive semi-definite")
            self.variances = self.variances.clamp(min=0)
        else:
            raise UserError(f"scales must have shape ({k},) or ({k}, {d}, {d}), not {tuple(scales.shape)}")
        self.sigma_min, self.sigma_max, self.data_range = sigma_min, sigma_max, data_range

    def _draw(self, component: Tensor, sigma: Tensor, rng: Streams, like: Tensor) -> Tensor:
        z = rng(like) * (self.variances[component] + sigma**2).sqrt()
        return z if self.axes is None else (self.axes[component] @ z[..., None])[..., 0]

    def _offsets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x - mean of each component, plain and in its principal axes: both (B, K, d)."""
        r = x[:, None] - self.means
        return r, r if self.axes is None else torch.einsum("bki,kij->bkj", r, self.axes)

    def _log_joint(self, r: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """Return log (weight_k N(x; mean_k, C_k + sigma^2 I)), (B, K); (L, B, K) for sigma of shape (L, 1)."""
        v = self.variances + sigma[..., None, None] ** 2
        return self.weights.log() - (z**2 / v + v.log() + math.log(2 * math.pi)).sum(-1) / 2

    def _posterior_mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Sum over k of p(k | x) (mean_k + C_k (C_k + sigma^2 I)^-1 (x - mean_k))."""
        r, z = self._offsets(x)
        p = self._log_joint(r, z, sigma).softmax(-1)
        shrunk = z * self.variances / (self.variances + sigma.reshape(-1, 1, 1) ** 2)
        if self.axes is not None:
            shrunk = torch.einsum("bkj,kij->bki", shrunk, self.axes)
        return (p[..., None] * (self.means + shrunk)).sum(1)


class LowRankMixture(_Mixture):
    """Data x0 = means[k] + factors[k] z + sqrt(noise[k]) e with probability weights[k], z (r,) and e (d,) normal.

    A mixture of probabilistic principal component analysers (Tipping & Bishop 1999, Neural Computation 11, 443-482).
    With W = U S V^T the covariance W W^T + (noise + sigma^2) I has the axes U, the variances S^2 + noise + sigma^2
    along them and noise + sigma^2 across, at every level: its inverse is Woodbury's, a row costs O(K d r) and no matrix
    of d x d is ever made.

    Args:
        means: (K, *shape); everything is computed in their dtype and on their device.
        factors: (K, d, r) loadings over the d = prod(shape) flattened coordinates, 1 <= r < d.
        noise: (K,) variances >= 0, the same in all directions.
        weights: (K,) >= 0, normalised here.
        sigma_min, sigma_max: the noise levels that samplers should use.
        data_range: what images would be clipped to; a mixture has no bounds.

    Raises:
        UserError: shapes that do not fit each other, a negative weight or variance, or values that are not finite.
    """

    def __init__(
        self,
        means: Tensor,
        factors: Tensor,
        noise: Tensor,
        weights: Tensor,
        *,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        data_range: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        means, factors, noise, weights = _floats(means, factors, noise, weights)
        k, d = len(means), means[0].numel()
        if factors.ndim != 3 or factors.shape[:2] != (k, d) or not 1 <= factors.shape[2] < d:
            raise UserError(f"factors must have shape ({k}, {d}, r), 1 <= r < {d}, not {tuple(factors.shape)}")
        if noise.shape != (k,) or (noise < 0).any():
            raise UserError(f"noise must be {k} variances >= 0, not {noise.tolist()}")
        if not all(t.isfinite().all() for t in (means, factors, noise, weights)):
            raise UserError("means, factors, noise and weights must be finite: one of them holds NaN or infinity")
        super().__init__(means, weights, k * factors.shape[2])
        self.axes, spreads, _ = torch.linalg.svd(factors, full_matrices=False)
        self.variances, self.noise_variances = spreads**2 + noise[:, None], noise
        self.sigma_min, self.sigma_max, self.data_range = sigma_min, sigma_max, data_range
        # Around the mean of all: small numbers lose less when distances are taken from inner products.
        self._centres = self.means - self.mean.flatten()
        self._columns = self.axes.transpose(0, 1).reshape(d, -1)  # all axes side by side: (d, K r)
        self._projected = torch.einsum("ki,kij->kj", self._centres, self.axes)

    def _draw(self, component: Tensor, sigma: Tensor, rng: Streams, like: Tensor) -> Tensor:
        extra = (self.variances - self.noise_variances[:, None])[component]
        z = rng(like[:, : extra.shape[1]]) * extra.sqrt()
        along = apply_in_blocks(lambda k, z: (self.axes[k] @ z[..., None])[..., 0], self._block, component, z)
        return along + rng(like) * (self.noise_variances[component][:, None] + sigma**2).sqrt()

    def _offsets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what x - mean of each component is along its axes, (B, K, r), and its square across, (B, K)."""
        x = x - self.mean.flatten()
        z = (x @ self._columns).reshape(len(x), *self._projected.shape) - self._projected
        whole = (x**2).sum(1, keepdim=True) - 2 * x @ self._centres.T + (self._centres**2).sum(1)
        return z, (whole - (z**2).sum(-1)).clamp(min=0)

    def _log_joint(self, z: Tensor, rest: Tensor, sigma: Tensor) -> Tensor:
        """Return log (weight_k N(x; mean_k, C_k + sigma^2 I)), (B, K); (L, B, K) for sigma of shape (L, 1)."""
        along = self.variances + sigma[..., None, None] ** 2
        across = self.noise_variances + sigma[..., None] ** 2
        pattern = "bkj,bkj->bk" if sigma.ndim == 1 else "bkj,lukj->lbk"
        squares = torch.einsum(pattern, z**2, 1 / along) + rest / across
        d, r = self.means.shape[1], z.shape[-1]
        size = along.log().sum(-1) + (d - r) * across.log() + d * math.log(2 * math.pi)
        return self.weights.log() - (squares + size) / 2

    def _posterior_mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Sum over k of p(k | x) (mean_k + C_k (C_k + sigma^2 I)^-1 (x - mean_k))."""
        z, rest = self._offsets(x)
        p, variance = self._log_joint(z, rest, sigma).softmax(-1), sigma[:, None] ** 2
        across = self.noise_variances / (self.noise_variances + variance)  # shrinks what is across the axes,
        along = self.variances / (self.variances + variance[..., None]) - across[..., None]  # and this the rest of it
        kept = (p * across).sum(1, keepdim=True)
        shrunk = kept * x + (p * (1 - across)) @ self.means
        return shrunk + (p[..., None] * along * z).flatten(1) @ self._columns.T


def _floats(means: Tensor, *others: Tensor) -> list[Tensor]:
    """Return all as floating point, in the dtype and on the device of the means."""
    means = torch.as_tensor(means)
    means = means if means.is_floating_point() else means.double()
    return [means, *(torch.as_tensor(t).to(means) for t in others)]


class EmpiricalData:
    """The ideal denoiser of a finite data set: x0 is one of the images, each equally likely (Karras et al. 2022, B.3).

    The score, the density and the noise-level posterior of the same ``x`` share one computation of its distances to the
    images: the last ones are remembered.

    Args:
        images: (K, *shape); everything is computed in their dtype and on their device.
        sigma_min, sigma_max: the noise levels that samplers should use.
        data_range: smallest and largest possible value of clean data.
    """

    _SURELY = 30.0  # nats: with fewer than e^13 images, all that lies so far below the largest is under 1e-7 of it
    _FEW = 256  # so many images at most are picked out, for a mean and for a density, where no others matter
    _CHUNK = 1000  # images that a matrix product takes at a time, for all rows: 12 MB of 3,072 numbers stay in a cache

    def __init__(
        self,
        images: Tensor,
        *,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        images = torch.as_tensor(images)
        if (
            images.ndim < 2
            or not images.numel()
            or not images.is_floating_point()
            or not all(map(math.isfinite, images.aminmax()))
        ):
            raise UserError(
                "images must be floats of shape (K, *shape) without NaN or infinity, "
                f"not {images.dtype} of shape {tuple(images.shape)}, or with such values"
            )
        if outside(images, data_range, 2) > 0.05:  # points of a toy may lie around it
            raise UserError(
                f"images lie outside data_range={data_range}, they go from {images.min():g} to {images.max():g}: name "
                "the range that they have"
            )
        self.shape, self.data_range = tuple(images.shape[1:]), data_range
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.images, self.mean = images, images.mean(0)
        # Around their mean: small numbers lose less when distances are taken from inner products.
        self._points = CentredImages(images, self.mean, self._CHUNK, kept=images.numel() <= _NUMBERS)
        self._norms = self._points.squared_norms()
        self._few = min(self._FEW, len(images))
        self._surely = max(self._SURELY, math.log(len(images)) + 17)
        self._last: tuple | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x, sigma], (B, *shape), in the dtype of ``x``: images weighted by exp(-distance^2 / 2 sigma^2)."""
        sigma = per_row(sigma, self._norms.new_empty(len(x)))
        if not (sigma > 0).all():
            raise UserError(f"sigma must be above 0, not {sigma[~(sigma > 0)][0].item():g}")
        logits = self.squared_distances(x) / (-2 * sigma[:, None] ** 2)
        matters = logits >= logits.amax(1, keepdim=True) - self._surely
        few = matters.sum(1) <= self._few
        out = logits.new_empty(len(x), self.mean.numel())
        if few.any():
            out[few] = self._mean_of_few(logits[few], matters[few])
        if not few.all():
            out[~few] = self._mean_of_all(logits[~few])
        return (out.reshape(x.shape) + self.mean).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log p(x; sigma) in nats, (B,), in the dtype of ``x``."""
        s = per_row(sigma, self._norms.new_empty(len(x)))
        return self._log_prob(self.squared_distances(x), s).to(x)

    def log_prob_levels(self, x: Tensor, levels: Tensor) -> Tensor:
        """Return log p(x; sigma) at each of ``levels`` (L,): (B, L), -inf where surely e^30 below a row's largest.

        The nearest image alone bounds log p from below, K such images bound it from above: in high dimension that
        leaves few levels to compute.
        """
        squared, levels = self.squared_distances(x), levels.to(self._norms)
        k, d = len(self.images), self.mean.numel()
        nearest = squared.amin(1, keepdim=True)
        floor = -nearest / (2 * levels**2) - d * levels.log()  # and log p + constants <= floor + log K
        open_ = floor + math.log(k) >= floor.amax(1, keepdim=True) - self._SURELY
        widest = (open_ * levels).amax(1, keepdim=True)
        near = (squared - nearest <= 2 * widest**2 * self._surely).sum(1) <= self._few
        out = torch.full_like(floor, -math.inf)
        for group, narrow in ((near, True), (~near, False)):
            rows, columns = (open_ & group[:, None]).nonzero(as_tuple=True)
            distances = squared.topk(self._few, dim=1, largest=False).values if narrow and len(rows) else squared
            step = max(1, _CACHED // distances.shape[1])
            for r, c in zip(rows.split(step), columns.split(step), strict=True):
                out[r, c] = self._log_prob(distances[r], levels[c])
        return out

    def squared_distances(self, x: Tensor) -> Tensor:
        """Return the (B, K) squared distances of ``x`` (B, *shape) to every image, in the images' dtype."""
        check_shape(x, self.shape)
        if self._last is not None and self._last[0] is x and self._last[1] == _version(x):
            return self._last[2]
        squared = self._squared_distances(x.to(self.mean).flatten(1) - self.mean.flatten())
        small = squared.numel() <= _NUMBERS and not x.is_inference()  # inference tensors do not tell when they change
        self._last = (x, _version(x), squared) if small else None
        return squared

    def _squared_distances(self, x: Tensor) -> Tensor:
        own = apply_in_blocks(lambda rows: (rows**2).sum(1, keepdim=True), BLOCK, x)
        inner, done = x.new_empty(len(x), len(self.images)), 0  # parts of its own would keep memory in pieces
        for some in self._points:
            part = apply_in_blocks(lambda rows, some=some: rows @ some.T, BLOCK, x)
            inner[:, done : (done := done + len(some))] = part
        return (own + self._norms - 2 * inner).clamp(min=0)

    def _log_prob(self, squared: Tensor, sigma: Tensor) -> Tensor:
        k, d = len(self.images), self.mean.numel()
        gauss = _logsumexp(squared / (-2 * sigma[:, None] ** 2))
        return gauss - math.log(k) - d / 2 * (2 * math.pi * sigma**2).log()

    def _mean_of_all(self, logits: Tensor) -> Tensor:
        parts = zip(logits.softmax(1).split(self._CHUNK, 1), self._points, strict=True)
        return total(apply_in_blocks(lambda rows, some=some: rows @ some, BLOCK, weights) for weights, some in parts)

    def _mean_of_few(self, logits: Tensor, matters: Tensor) -> Tensor:
        weights, count = logits.masked_fill(~matters, -math.inf).softmax(1), matters.sum(1)
        row, image = matters.nonzero(as_tuple=True)
        weights = weights[row, image]
        return self._points.weighted(image, weights, count)


def _logsumexp(rows: Tensor) -> Tensor:
    """Return the log of the sum of exp, (B, K) -> (B,); torch's own takes much longer where terms underflow."""
    return rows.amax(1) - rows.log_softmax(1).amax(1)


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version
