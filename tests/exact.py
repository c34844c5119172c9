"""Models and numbers that several test modules share; everything here has a known answer."""

from __future__ import annotations

import math

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dmcmc_core import checkpoints
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.denoiser import Adapter, InBlocks
from dmcmc_core.starts import prior
from dmcmc_core.streams import Streams

F64 = torch.float64


def noise(model, rows: int, purpose: str = "test", start: str = "mean") -> Tensor:
    """Noise that sampling begins with, always the same for a purpose."""
    return prior(model, Streams(0, purpose, range(rows)), rows, start)


class OneStream:
    """Random numbers for kernels where no row needs a stream of its own: thousands of streams cost more than a step."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)

    def uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype)


def rms(a: Tensor, b: Tensor) -> float:
    """The root mean square of a difference."""
    return (a.double() - b.double()).square().mean().sqrt().item()


def rotation(d: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix, (d, d) float64."""
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]


def covariance(variances: list[float], seed: int = 0) -> Tensor:
    """A full covariance with these principal variances."""
    q = rotation(len(variances), seed)
    return q @ torch.diag(torch.tensor(variances, dtype=F64)) @ q.T


def gaussian() -> GaussianMixture:
    """One anisotropic Gaussian in 3 dimensions, float64."""
    c = covariance([0.01, 0.2, 2.0])
    return GaussianMixture(torch.tensor([[0.3, -0.2, 0.5]], dtype=F64), c[None], torch.ones(1), sigma_max=10.0)


def mixture() -> GaussianMixture:
    """Three overlapping anisotropic components in 3 dimensions, float64."""
    means = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.5, -0.5], [-1.0, 1.0, 0.3]], dtype=F64)
    c = torch.stack([0.3 * torch.eye(3, dtype=F64), covariance([0.005, 0.1, 1.0]), covariance([0.2, 0.2, 0.5], 1)])
    return GaussianMixture(means, c, torch.tensor([0.2, 0.5, 0.3]), sigma_max=10.0)


def images_mixture(sigma_max: float = 4.0) -> GaussianMixture:
    """Float32 images of shape (1, 2, 2) in [0, 1]: cheap enough to sample hundreds of times."""
    means = torch.tensor([[0.2, 0.2, 0.8, 0.8], [0.8, 0.3, 0.2, 0.7], [0.5, 0.9, 0.4, 0.1]]).reshape(3, 1, 2, 2)
    return GaussianMixture(
        means,
        torch.tensor([0.05, 0.1, 0.08]),
        torch.tensor([0.5, 0.3, 0.2]),
        sigma_min=0.01,
        sigma_max=sigma_max,
        data_range=(0.0, 1.0),
    )


class Classes(torch.nn.Module):
    """The components of :func:`images_mixture` as classes 0, 1 and 2; the label -1 is all of them."""

    def __init__(self) -> None:
        super().__init__()
        whole = images_mixture()
        self.register_buffer("means", whole.means)
        scales, ones = whole.variances[:, 0].sqrt(), torch.ones(1)
        means = whole.means.reshape(3, 1, 1, 2, 2)
        self.models = [*(GaussianMixture(m, s[None], ones) for m, s in zip(means, scales, strict=True)), whole]

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([model(x, sigma) for model in self.models])[labels, torch.arange(len(x))]


def classes() -> InBlocks:
    """A model with classes whose every denoiser is known: see :class:`Classes`."""
    net = Classes()
    about = {"sigma_min": 0.01, "sigma_max": 4.0, "mean": net.models[-1].mean, "classes": 3, "unconditional": -1}
    return InBlocks(Adapter(net, (1, 2, 2), **about))


def gaussian_flow(model: GaussianMixture, x: Tensor, start: float, end: float) -> Tensor:
    """The probability-flow ODE of one Gaussian in closed form: along each axis (x - mean) keeps its quantile."""
    mean, variances, axes = model.means[0], model.variances[0], model.axes[0]
    return mean + ((x - mean) @ axes * ((variances + end**2) / (variances + start**2)).sqrt()) @ axes.T


def dop853_flow(model: GaussianMixture, x: Tensor, start: float, end: float) -> Tensor:
    """The probability-flow ODE in log sigma by SciPy's eighth-order method."""

    def derivative(u, y):
        y = torch.from_numpy(y).reshape(x.shape)
        return (y - model(y, torch.tensor(math.exp(u), dtype=F64))).numpy().ravel()

    ends = math.log(start), math.log(end)
    solution = solve_ivp(derivative, ends, x.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    assert solution.success
    return torch.from_numpy(solution.y[:, -1]).reshape(x.shape)


def digits_net():
    """The shipped network, None where it has not been trained yet."""
    return checkpoints.load_model("digits") if (checkpoints.NETS / "digits.safetensors").is_file() else None
