"""Boundary diffusion where all is known: mixtures of two Gaussians of one covariance, their flow, their Bayes boundary.

The hinge loss of such a mixture is least along Bayes' normal, and the angle of a support vector machine to it has a law
that n alone scales (Koo et al. 2008, "A Bahadur representation of the linear support vector machine").
"""

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.integrate import cumulative_trapezoid
from torch.distributions import MultivariateNormal

from dmcmc_core import boundary
from dmcmc_core.analytic import GaussianMixture

BARS = boundary.kept_shares()
TIME, D = 400, 6
BAR, FIRST = BARS[TIME].item(), BARS[0].item()
AXIS = torch.zeros(D, dtype=torch.float64)
AXIS[:2] = torch.tensor([0.6, 0.8])  # the classes' means are +- this, where they are


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def anisotropic() -> torch.Tensor:
    """A covariance whose axes are not those of the classes, and of variances from 0.2 to 8."""
    axes = torch.linalg.qr(draws(D, D, seed=3))[0]
    return axes @ torch.diag(torch.logspace(-0.7, 0.9, D, dtype=torch.float64)) @ axes.T


def spread(y: np.ndarray, density: np.ndarray) -> float:
    """Return n tan^2 of the machine's angle in each direction across, where all have variance 1.

    ``density`` is that of y, the latent along the normal times its label. The margin c is where the mean of y below c
    is 0; the variance of a weight is then P(y < c) / density(c)^2 / n.
    """
    below = cumulative_trapezoid(density * y, y, initial=0)
    margin = np.flatnonzero(below < 0)[-1]
    return cumulative_trapezoid(density, y, initial=0)[margin] / density[margin] ** 2


def angle(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the angle between two directions in degrees."""
    one, other = one.double().flatten(), other.double().flatten()
    return torch.rad2deg(torch.arccos((one @ other / one.norm() / other.norm()).clamp(-1, 1))).item()


def squared_tangent(one: torch.Tensor, other: torch.Tensor) -> float:
    return np.tan(np.deg2rad(angle(one, other))) ** 2


def holds(statistic: float, freedom: int) -> bool:
    """Tell whether a number may be drawn from chi^2, but for one in ten thousand at either end."""
    return stats.chi2.ppf(1e-4, freedom) < statistic < stats.chi2.ppf(1 - 1e-4, freedom)


@pytest.mark.parametrize("kind", ["isotropic", "anisotropic"])
def test_the_boundary_of_noisy_latents_is_that_of_bayes(kind):
    """Of sqrt(bar) x0 + sqrt(1 - bar) e: (C + sigma^2)^-1 (m1 - m0), to the angle that n latents leave.

    Twenty machines of 600 latents in 6 dimensions each: n tan^2 / spread, where the latents are white, is chi^2 of 5.
    """
    n, seeds, shift = 600, 20, 3 * 2 * AXIS
    covariance = torch.eye(D, dtype=torch.float64) if kind == "isotropic" else anisotropic()
    noisy = BAR * covariance + (1 - BAR) * torch.eye(D, dtype=torch.float64)
    root = torch.linalg.cholesky(noisy)
    white = torch.linalg.solve(root, BAR**0.5 * shift)
    y = np.linspace(-8, 16, 40001)
    each = spread(y, stats.norm.pdf(y, white.norm().item() / 2))
    bayes = torch.linalg.solve(covariance + (1 / BAR - 1) * torch.eye(D, dtype=torch.float64), shift)
    labels, found, angles = torch.arange(n) % 2, 0.0, []
    for seed in range(seeds):
        x0 = (labels[:, None] - 0.5) * shift + draws(n, D, seed=seed) @ torch.linalg.cholesky(covariance).T
        z = BAR**0.5 * x0 + (1 - BAR) ** 0.5 * draws(n, D, seed=1000 + seed)
        normal = boundary.fit(z, labels).normal.double()
        found += n * squared_tangent(root.T @ normal, white) / each
        angles.append(angle(normal, bayes))
    assert holds(found, seeds * (D - 1))
    if kind == "isotropic":
        assert angle(bayes, shift) < 1e-5
    else:  # the mean difference is another direction, farther off than any machine
        assert max(angles) < angle(bayes, shift)


def mixture(scale: float) -> GaussianMixture:
    means = torch.stack([-AXIS, AXIS])
    return GaussianMixture(means, torch.full((2,), scale).double(), torch.ones(2), sigma_min=1e-3, sigma_max=200.0)


def distribution(scale: float, bar: float):
    """Return CDF, density and inverse of the CDF of a state along the axis of the classes, of sqrt(bar) x0 + noise."""
    mean, std = bar**0.5, (bar * scale**2 + 1 - bar) ** 0.5
    cdf = lambda y: (stats.norm.cdf(y, -mean, std) + stats.norm.cdf(y, mean, std)) / 2  # noqa: E731
    pdf = lambda y: (stats.norm.pdf(y, -mean, std) + stats.norm.pdf(y, mean, std)) / 2  # noqa: E731
    inverse = lambda p: optimize.brentq(lambda y: cdf(y) - p, -20, 20, xtol=1e-14)  # noqa: E731
    return cdf, pdf, np.vectorize(inverse)


def flow(x: torch.Tensor, scale: float, start: float, end: float) -> torch.Tensor:
    """Return where the flow takes states (B, D) of bar ``start``: quantiles to quantiles along, scaled across."""
    along = x @ AXIS
    moved = torch.from_numpy(distribution(scale, end)[2](distribution(scale, start)[0](along.numpy())))
    stds = [(bar * scale**2 + 1 - bar) ** 0.5 for bar in (start, end)]
    return moved[:, None] * AXIS + stds[1] / stds[0] * (x - along[:, None] * AXIS)


def images(n: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return draws of both classes alternately, as they are, (n, D), and their labels (n,)."""
    labels = torch.arange(n) % 2
    return (2 * labels[:, None] - 1) * AXIS + scale * draws(n, D, seed=seed), labels


def rmse(gap: torch.Tensor) -> float:
    return gap.square().mean().sqrt().item()


def orders(errors: list[float]) -> np.ndarray:
    """Return the order of a method in each halving of its steps."""
    return np.log2(np.array(errors[:-1]) / errors[1:])


def test_inversion_and_the_way_back_are_of_first_order():
    """The latent goes to the flow's, the state at the first time to the image that entered there.

    The image itself is one step further, to bar = 1, which nothing on the way up undoes: the published pair of grids
    returns x0 - sigma epsilon(x0) at the first time's sigma = 0.01, however many steps there are.
    """
    scale = 0.5
    epsilon, (x0, _) = boundary.epsilon_of(mixture(scale)), images(64, scale)
    latent = flow(x0, scale, FIRST, BARS[512].item())
    limit = (x0 - (1 - FIRST) ** 0.5 * epsilon(x0, torch.zeros(len(x0)))) / FIRST**0.5
    up, down, ends, pair = [], [], [], rmse(limit - x0)
    for count in (33, 65, 129, 257):
        times, states = boundary.grid(512, count), []
        found = boundary.invert(epsilon, x0, times)
        back = boundary.reverse(epsilon, found, times, callback=states.append)
        up.append(rmse(found - latent))
        down.append(rmse(states[-2] - x0))
        ends.append(rmse(back - limit))
        assert rmse(back - x0) > pair
    for errors in (up, down, ends):
        assert ((0.8 < orders(errors)) & (orders(errors) < 1.25)).all()
    assert pair > 1e-4


def test_the_boundary_of_inverted_latents_is_that_of_bayes():
    """The flow keeps the plane between equal round classes, and so Bayes' boundary: normal to the mean difference."""
    n, seeds, scale = 600, 10, 1.0
    epsilon, times = boundary.epsilon_of(mixture(scale)), boundary.grid(TIME, 41)
    v = np.linspace(-5, 7, 601)
    start, end = distribution(scale, FIRST), distribution(scale, BAR)
    y = end[2](start[0](v))
    density = stats.norm.pdf(v, 1, scale) * end[1](y) / start[1](v)
    across, each = BAR * scale**2 + 1 - BAR, spread(y, density)
    found, angles = 0.0, []
    for seed in range(seeds):
        x0, labels = images(n, scale, seed)
        normal = boundary.fit(boundary.invert(epsilon, x0, times), labels).normal
        found += n * squared_tangent(normal, AXIS) * across / each
        angles.append(angle(normal, AXIS))
    assert holds(found, seeds * (D - 1))


def log_odds(z: torch.Tensor, covariance: torch.Tensor, shift: torch.Tensor, bar: float) -> torch.Tensor:
    """Return log p(1 | z) - log p(0 | z), of the densities themselves."""
    noisy = bar * covariance + (1 - bar) * torch.eye(D, dtype=torch.float64)
    one, none = (MultivariateNormal(side * bar**0.5 * shift / 2, noisy).log_prob(z) for side in (1, -1))
    return one - none


@pytest.mark.parametrize("how", ["set", "add"])
def test_an_edit_moves_the_log_odds_linearly(how):
    """By w . n a unit, w = sqrt(bar) (bar C + 1 - bar)^-1 (m1 - m0); `set` along Bayes' normal makes them all equal."""
    n, shift, covariance = 400, 6 * AXIS, anisotropic()
    noisy = BAR * covariance + (1 - BAR) * torch.eye(D, dtype=torch.float64)
    w = BAR**0.5 * torch.linalg.solve(noisy, shift)
    labels = torch.arange(n) % 2
    z = BAR**0.5 * (labels[:, None] - 0.5) * shift + draws(n, D, seed=0) @ torch.linalg.cholesky(noisy).T
    normal = boundary.fit(z, labels).normal
    n64, before = normal.double(), log_odds(z, covariance, shift, BAR)
    for strength in (-4.0, 0.0, 0.5, 3.0):
        after = log_odds(boundary.edit(z, normal, strength, how), covariance, shift, BAR)
        step = strength - z @ n64 if how == "set" else strength
        assert torch.allclose(after - before, step * (w @ n64), atol=1e-5)
        same = log_odds(boundary.edit(z, w / w.norm(), strength), covariance, shift, BAR)
        assert torch.allclose(same, (strength * w.norm()).expand(n), atol=1e-9)


def test_images_of_edited_latents_have_the_posterior_of_the_latents():
    """With eta = 1 the way back draws from p(x0 | latent): the share of the second class is that of the log odds.

    With eta = 0 it is the flow: the edited image lies along the normal where the quantile of zeta is, and across it
    where the image did.
    """
    n, scale = 2000, 0.15
    epsilon, times = boundary.epsilon_of(mixture(scale)), boundary.grid(TIME, 101)
    x0, _ = images(n, scale)
    z = boundary.invert(epsilon, x0, times)
    for odds in (-2.0, 1.0):
        zeta = odds * (BAR * scale**2 + 1 - BAR) / (2 * BAR**0.5)
        edited = boundary.edit(z, AXIS, zeta)
        noise = generator(1)
        draw = lambda x, noise=noise: torch.randn(x.shape, generator=noise, dtype=x.dtype)  # noqa: E731
        made = boundary.reverse(epsilon, edited, times, 1.0, draw)
        share, wanted = (made @ AXIS > 0).double().mean().item(), 1 / (1 + np.exp(-odds))
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5
        back = boundary.reverse(epsilon, edited, times)
        at = distribution(scale, FIRST)[2](distribution(scale, BAR)[0](zeta))
        assert torch.allclose(back @ AXIS, torch.full((n,), float(at)).double(), atol=0.02)
        assert rmse(back - x0 - ((back - x0) @ AXIS)[:, None] * AXIS) < 0.02


def test_set_puts_the_projection_on_its_target_in_as_many_dimensions_as_published():
    z, normal = draws(2, 3, 256, 256, seed=0).float(), draws(3, 256, 256, seed=1).float()
    normal = normal / normal.norm()
    for zeta in (-150.0, 0.0, 3.0, 150.0):
        edited = boundary.edit(z, normal, zeta)
        assert ((edited * normal).flatten(1).double().sum(1) - zeta).abs().max() < 2e-5 * max(1, abs(zeta))
        across = (edited - z) - ((edited - z) * normal).sum((1, 2, 3), keepdim=True) * normal
        assert across.abs().max() < 1e-4


def test_an_edit_of_one_attribute_keeps_the_distances_of_another():
    """Two attributes whose normals are far from orthogonal, both found of the same latents."""
    n, across = 400, torch.zeros(D, dtype=torch.float64)
    across[1:3] = torch.tensor([0.8, 0.6])
    one, two = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    z = draws(n, D, seed=0) + 2 * ((2 * one - 1)[:, None] * AXIS + (2 * two - 1)[:, None] * across)
    kept, other = boundary.fit(z, one), boundary.fit(z, two)
    assert abs(angle(kept.normal, other.normal) - 90) > 15
    same, free = boundary.orthogonal([kept.normal, other.normal])
    before, mean = kept.distances(z), other.distances(z).mean()
    for strength in (-3.0, 3.0):
        edited = boundary.edit(z, free, strength)
        assert (kept.distances(edited) - before).abs().max() < 1e-5
        assert (other.distances(edited).mean() - mean) * strength > 0
        assert (kept.distances(boundary.edit(z, other.normal, strength)) - before).abs().max() > 1
        both = boundary.edit(edited, same, 1.0)
        assert torch.allclose(both @ free.double(), torch.full((n,), strength).double(), atol=1e-5)
