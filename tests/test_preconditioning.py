"""Preconditioners: their algebra, the laws that they leave as they are, and those that they do not."""

import functools
import math

import numpy as np
import pytest
import torch
from exact import F64, OneStream, covariance
from torch import Tensor

from dmcmc_core import analytic, dmcmc, integrators, mcmc, preconditioning, schedules
from dmcmc_core.analytic import EmpiricalData, GaussianMixture
from dmcmc_core.denoiser import count_nfe, like
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.mcmc import ChainState, hamiltonian, langevin, mala
from dmcmc_core.noise_level import ExactPosterior, log_levels
from dmcmc_core.preconditioning import NoiseOnly, Preconditioner, WithPreconditioner
from dmcmc_core.runs.folder import load_images
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import conditioned
from dmcmc_core.streams import Streams

CHAINS = 400


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch):
    """Rows of the models here are small: one call for all chains, and none for rows that are not there."""
    monkeypatch.setattr(analytic, "BLOCK", CHAINS)


SHAPES = [(7,), (8,), (5, 6), (3, 8, 8), (2, 7, 9)]
PARTS = [set(), {"frequency"}, {"pixel"}, {"skew"}, {"frequency", "pixel"}, {"frequency", "pixel", "skew"}]


def gains(shape, parts, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = {name: torch.rand(shape, generator=g, dtype=F64) + 0.5 for name in ("frequency", "pixel")}
    made["skew"] = torch.randn(shape, generator=g, dtype=F64)
    return {name: made[name] for name in parts}


def matrix(method, shape) -> Tensor:
    """A linear method as a matrix, column by column."""
    unit = torch.eye(math.prod(shape), dtype=F64).reshape(-1, *shape)
    return method(unit).flatten(1).T


@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(sorted(p)) or "identity")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operators_are_what_they_are_called(shape, parts):
    p = Preconditioner(**gains(shape, parts))
    names = ("apply", "apply_transpose", "inverse", "squared", "skew", "drift")
    m, mt, inverse, squared, skew, drift = (matrix(getattr(p, name), shape) for name in names)
    for ours, theirs in (
        (mt, m.T),
        (squared, m @ m.T),
        (skew, -skew.T),
        (drift, m @ m.T + skew),
        (inverse @ m, torch.eye(len(m), dtype=F64)),
    ):
        assert (ours - theirs).abs().max() < 1e-12
    x, f, z = torch.randn(3, 4, *shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert (p.move(x, f, z) - (x + p.drift(f) + p.apply(z))).abs().max() < 1e-12
    assert (p.move(x.float(), f.float(), z.float()) - p.move(x, f, z)).abs().max() < 1e-4


def test_gains_act_as_full_complex_transforms_do():
    """M z = Re F^-1[b F(a z)] as published, and S f = Re F^-1[i q F f], for gains that are even and odd."""
    shape = (3, 6, 8)
    p = Preconditioner(**gains(shape, {"frequency", "pixel", "skew"}))
    x = torch.randn(5, *shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    by_hand = torch.fft.ifft2(p.frequency * torch.fft.fft2(p.pixel * x)).real
    assert (p.apply(x) - by_hand).abs().max() < 1e-12
    inner = torch.fft.ifft2(p.frequency * torch.fft.fft2(x)).real
    published = torch.fft.ifft2(p.frequency * torch.fft.fft2(p.pixel**2 * inner)).real
    assert (p.squared(x) - published).abs().max() < 1e-12
    turned = torch.fft.ifft2(1j * p.response * torch.fft.fft2(x)).real
    assert (p.skew(x) - turned).abs().max() < 1e-12 and turned.abs().max() > 0.1


def test_the_skew_term_couples_neighbours():
    p = Preconditioner(pixel=torch.ones(1, 6, 6)).with_skew(3.0, direction=(0, 1))
    x = torch.randn(2, 1, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert (p.skew(x) - 3 * (x.roll(-1, 3) - x.roll(1, 3)) / 2).abs().max() < 1e-12


def test_transforms_are_real_and_few(monkeypatch):
    counted = []
    for name in ("rfftn", "irfftn"):
        inner = getattr(torch.fft, name)
        monkeypatch.setattr(torch.fft, name, lambda *a, inner=inner, **k: counted.append(1) or inner(*a, **k))
    x = torch.randn(3, 2, 8, 8)
    for parts, move, drift, correction in (
        (set(), 0, 0, 0),
        ({"pixel"}, 0, 0, 0),
        ({"pixel", "skew"}, 2, 2, 2),
        ({"frequency"}, 3, 2, 3),
        ({"frequency", "skew"}, 3, 2, 3),
        ({"frequency", "pixel"}, 4, 4, 5),
        ({"frequency", "pixel", "skew"}, 4, 4, 5),
    ):
        p = Preconditioner(**gains((2, 8, 8), parts))
        for call, expected in (
            (lambda p=p: p.move(x, x, x), move),
            (lambda p=p: p.drift(x), drift),
            (lambda p=p: integrators.langevin_correction(p, x, x, x, 0.16, False), correction),
        ):
            counted.clear()
            call()
            assert len(counted) == expected, parts


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 5, 6), (7,), (8,)])
@pytest.mark.parametrize("parts", PARTS)
def test_a_correction_is_as_long_as_the_norms_of_its_images_say(shape, parts):
    """Norms in frequency space, by half of the spectrum, are those of pixels, whichever is the last axis."""
    p = Preconditioner(**gains(shape, parts))
    x, s, z = torch.randn(3, 4, *shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    seen = []
    out = p.correct(x, s, z, lambda *norms: seen.extend(norms) or (norms[1] / norms[0], norms[0]))
    drift, kick = (t.flatten(1) for t in (p.drift(s), p.apply(z)))
    for ours, theirs in zip(seen, (drift.norm(dim=1), kick.norm(dim=1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    expected = x.flatten(1) + (seen[1] / seen[0])[:, None] * drift + seen[0][:, None] * kick
    torch.testing.assert_close(out.flatten(1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", PARTS)
def test_a_step_and_a_correction_can_be_differentiated(parts):
    p = Preconditioner(**gains((1, 4, 3), parts))
    inputs = torch.randn(3, 2, 1, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for step in (p.move, lambda x, s, z: integrators.langevin_correction(p, x, s, z, 0.16, False)):
        assert torch.autograd.gradcheck(lambda t, step=step: step(*t), inputs)


@pytest.mark.parametrize("c", [1e-9, 1e9])
@pytest.mark.parametrize("size", [3, 8, 256])
def test_a_correction_takes_gains_from_end_to_end_in_single_precision(c, size):
    shape = (3, size, size)
    x, s, z = torch.randn(3, 2, *shape, generator=torch.Generator().manual_seed(0))
    s = 100 * s
    expected = integrators.langevin_correction(Preconditioner.identity(), x, s, z, 0.16, False)
    m = Preconditioner(torch.full(shape, c))
    ours = integrators.langevin_correction(m, x, s, z, 0.16, False)
    assert (ours - expected).abs().max() < 1e-4 * (expected - x).abs().max()


def test_steps_take_images_of_one_shape_only_and_keep_the_wider_precision():
    p = Preconditioner(**gains((1, 8, 8), {"frequency"}))
    x, wide = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 9)
    for step in (p.move, lambda x, s, z: p.correct(x, s, z, lambda a, b: (a, b))):
        for images in ((wide, x, x), (x, wide, x), (x, x, wide)):
            with pytest.raises(UserError, match="images of shape"):
                step(*images)
        assert step(x.double(), x, x).dtype == F64


def test_gains_are_the_preconditioners_own():
    given = {name: np.full((1, 4, 4), 2.0) for name in ("frequency", "pixel", "skew")}
    p = Preconditioner(**given)
    name, x = p.sha256, torch.ones(1, 1, 4, 4, dtype=F64)
    before = p.apply(x)
    for array in given.values():
        array[:] = -1.0
    assert p.sha256 == name and torch.equal(p.apply(x), before)


# The published filters


@pytest.fixture(scope="module")
def images():
    return torch.rand(30, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=F64)


def test_published_gains_by_the_formulas(images):
    p = Preconditioner.from_images(images, alpha=4.0)
    x = images.numpy()
    power = np.log1p((np.abs(np.fft.fft2(x)) ** 2).mean(0))
    square = (x**2).mean(0)
    for ours, statistic in ((p.frequency, power), (p.pixel, square)):
        theirs = 4.0 / (statistic / statistic.max() + 3.0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        assert 1 - 1e-12 <= ours.min() and ours.max() < 4 / 3
    assert p.frequency[:, 0, 0].min() == p.frequency.amin((1, 2)).min()  # the mean has the most power, the least gain


def test_recipes(images):
    published, log, old, inverse = (
        Preconditioner.from_images(images, 4.0, recipe=name) for name in ("published", "log", "before-2023", "inverse")
    )
    square = images.square().mean(0)
    power = (torch.fft.fft2(images).abs() ** 2).mean(0).log1p()
    assert torch.equal(log.frequency, published.frequency) and not torch.allclose(log.pixel, published.pixel)
    torch.testing.assert_close(old.pixel, 1 / square)
    torch.testing.assert_close(old.frequency, 4 / (power + 3))
    torch.testing.assert_close(inverse.frequency * published.frequency, torch.ones_like(square))
    assert Preconditioner.from_images(images, math.inf).shape is None
    assert Preconditioner.from_images(images, np.float32(3.0)).sha256 == Preconditioner.from_images(images, 3).sha256
    assert Preconditioner.from_images(list(images)).sha256 == Preconditioner.from_images(images).sha256
    bytes_ = (images * 255).to(torch.uint8)
    assert Preconditioner.from_images(list(bytes_)).sha256 == Preconditioner.from_images(bytes_).sha256
    torch.testing.assert_close(
        Preconditioner.from_images(bytes_).frequency, Preconditioner.from_images(bytes_.double() / 255).frequency
    )
    one = Preconditioner.from_images(images, frequency=True, pixel=False)
    assert one.pixel is None and one.frequency is not None


def test_exact_moments_are_those_of_draws():
    """Of 40,000 draws from a mixture of Gaussian images, within five standard errors of each number."""
    means = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    c = torch.stack([covariance([0.1 + 0.1 * i for i in range(12)], seed) for seed in (0, 1)])
    model = GaussianMixture(means, c, torch.tensor([0.3, 0.7]))
    draws, exact = model.sample(40_000, seed=1), preconditioning.exact_moments(model)
    power = torch.fft.fft2(draws).abs().square()
    for values, theirs in ((power, exact.power), (draws.square(), exact.square), (draws, exact.mean)):
        assert ((values.mean(0) - theirs) / (values.std(0) / len(draws) ** 0.5)).abs().max() < 5
    seen = preconditioning.moments(draws)
    torch.testing.assert_close(seen.spectrum, exact.spectrum, rtol=0.06, atol=0)
    torch.testing.assert_close(seen.variance, exact.variance, rtol=0.06, atol=0)
    data = EmpiricalData(draws[:50])
    assert torch.equal(Preconditioner.from_model(data).frequency, Preconditioner.from_images(draws[:50]).frequency)


def stationary(spectrum: Tensor) -> GaussianMixture:
    """A Gaussian whose covariance is a convolution with this (even) spectrum."""
    shape = spectrum.shape
    c = matrix(lambda x: torch.fft.ifftn(spectrum * torch.fft.fftn(x, dim=(-1,)), dim=(-1,)).real, shape)
    return GaussianMixture(torch.zeros(1, *shape, dtype=F64), (c + c.T)[None] / 2, torch.ones(1), sigma_max=10.0)


def test_the_covariance_makes_a_stationary_gaussian_round():
    k = torch.fft.fftfreq(16, dtype=F64).abs()
    model = stationary(0.001 + (-8 * k).exp())
    p = Preconditioner.from_covariance(preconditioning.exact_moments(model), sigma=0.1)
    m = matrix(p.inverse, (16,))
    c = model.axes[0] @ torch.diag(model.variances[0] + 0.01) @ model.axes[0].T
    white = m @ c @ m.T
    assert (white / white[0, 0] - torch.eye(16, dtype=F64)).abs().max() < 1e-9
    assert torch.linalg.cond(c) > 30 and abs(p.frequency.square().mean() - 1) < 1e-12


def test_filters_are_saved_and_loaded(tmp_path, images):
    p = Preconditioner.from_images(images).with_skew(2.0)
    p.save(tmp_path / "filter.safetensors", alpha=5.0)
    q = Preconditioner.load(tmp_path / "filter.safetensors")
    assert q.sha256 == p.sha256 != Preconditioner.from_images(images).sha256
    whole = (tmp_path / "filter.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        Preconditioner.load(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(UserError, match="damaged"):
        Preconditioner.load(tmp_path / "cut.safetensors")
    for name in ("filter.gain", "absent/filter.safetensors"):
        with pytest.raises(UserError, match="ends in .safetensors|cannot be written"):
            p.save(tmp_path / name)
    assert {f.name for f in tmp_path.iterdir()} == {"filter.safetensors", "cut.safetensors"}


def test_masks_in_the_layout_of_the_authors(tmp_path, images):
    power = np.log1p((np.abs(np.fft.fft2(images.numpy())) ** 2).mean(0))
    np.save(tmp_path / "freq.npy", power.astype(np.float32))
    np.save(tmp_path / "space.npy", (images.numpy() ** 2).mean(0))
    p, q = Preconditioner.from_masks(tmp_path / "freq.npy", tmp_path / "space.npy"), Preconditioner.from_images(images)
    torch.testing.assert_close(p.frequency, q.frequency, rtol=1e-6, atol=0)
    torch.testing.assert_close(p.pixel, q.pixel)
    assert Preconditioner.from_masks(frequency=tmp_path / "freq.npy").pixel is None
    for name, bad, message in (
        ("complex", power.astype(complex), "real"),
        ("nan", power * np.nan, "finite"),
        ("negative", -power, "at least 0"),
        ("zero", 0 * power, "0 everywhere"),
        ("huge", 1e6 * power, "below 700"),
        ("shifted", np.fft.fftshift(power, axes=(-2, -1)), "undo fftshift"),
    ):
        np.save(tmp_path / f"{name}.npy", bad)
        with pytest.raises(UserError, match=message):
            Preconditioner.from_masks(tmp_path / f"{name}.npy")
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("text", "objects", "absent"):
        with pytest.raises(UserError, match="cannot be read"):
            Preconditioner.from_masks(tmp_path / f"{name}.npy")


# Kernels


def chain(kernel, model, n=4000, steps=30, sigma=0.5, seed=0):
    """The states of n chains of that many steps from exact draws."""
    return walk(kernel, model.sample(n, sigma, seed=seed), steps, sigma, seed)[0][-1]


def walk(kernel, x, steps, sigma, seed):
    """All states after a start, (steps, n, d), and the mean acceptance."""
    state, rng = ChainState(x, torch.full((len(x),), sigma, dtype=F64)), OneStream(seed)
    seen, accepted = [], []
    for _ in range(steps):
        state, info = kernel(state, rng)
        seen.append(state.x)
        accepted.append(info.acceptance.mean().item())
    return torch.stack(seen), sum(accepted) / steps


def statistics(x: Tensor) -> Tensor:
    """First and second moments, (..., d + d(d + 1) / 2), and a fourth, which modes show in."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1])
    return torch.cat([x, x[..., i] * x[..., j], x**4], -1)


def worst(x: Tensor, model, sigma=0.5) -> float:
    """The largest difference of the statistics of draws from the exact law, in standard errors of both."""
    return difference(statistics(x), model, sigma)[0]


def difference(ours: Tensor, model, sigma) -> tuple[float, float]:
    """The same of independent values, (n, S), which may be means over a chain; and the draws that they are worth."""
    n, mean, variance = of_exact_draws(model, sigma)
    error = ours.var(0) / len(ours)
    z = (ours.mean(0) - mean).abs() / (error + variance / n).sqrt()
    return z.max().item(), (variance / error).min().item()


@functools.cache
def of_exact_draws(model, sigma) -> tuple[int, Tensor, Tensor]:
    """How many there are, and the mean and variance of their statistics."""
    exact = statistics(model.sample(40_000, sigma, seed=99))
    return len(exact), exact.mean(0), exact.var(0)


@functools.cache
def two_modes():
    c = torch.stack([covariance([0.005, 0.1, 1.0]), covariance([0.2, 0.2, 0.5], 1)])
    means = torch.tensor([[1.0, 0.5, -0.5], [-1.0, 1.0, 0.3]], dtype=F64)
    return GaussianMixture(means, c, torch.tensor([0.6, 0.4]), sigma_max=10.0)


@functools.cache
def one_mode():
    return GaussianMixture(torch.zeros(1, 3, dtype=F64), covariance([0.005, 0.1, 2.0])[None], torch.ones(1))


def strong(parts=("frequency", "pixel", "skew")):
    every = {"frequency": [0.6, 1.5, 1.5], "pixel": [0.7, 1.3, 1.1], "skew": [0.0, 2.0, -2.0]}
    return Preconditioner(**{name: torch.tensor(every[name], dtype=F64) for name in parts})


@pytest.mark.slow
@pytest.mark.parametrize("model", [one_mode, two_modes])
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda m: mala(m, 0.15), ("frequency", "pixel")),
        (lambda m: mala(m, 0.15), ("frequency", "pixel", "skew")),
        (lambda m: mala(m, 0.15), ("skew",)),
        (lambda m: hamiltonian(m, 0.08, leapfrogs=3), ("frequency", "pixel")),
        (lambda m: hamiltonian(m, 0.15, persistence=0.7), ("frequency",)),
    ],
)
def test_adjusted_kernels_reach_their_law_with_any_m_and_s(model, make, parts):
    """Chains from one bad start: within 4 standard errors (the largest of 12), from over 1,000 effective draws.

    What is wrong by a factor in M, in S or in the test is seen: see the next tests.
    """
    plain = model()
    start = (plain.means[0] + 0.5).expand(CHAINS, 3).clone()
    seen, accepted = walk(make(WithPreconditioner(plain, strong(parts))), start, 330, 0.5, seed=0)
    off, effective = difference(statistics(seen[80:]).mean(0), plain, 0.5)
    assert off < 4 and effective > 1000 and 0.5 < accepted < 0.995, (off, effective, accepted)


def test_a_test_without_the_skew_term_would_be_seen():
    plain = one_mode()

    class Forgets(Preconditioner):
        def inverse(self, x):
            return torch.zeros_like(x)

    p = strong()
    x = chain(mala(WithPreconditioner(plain, Forgets(p.frequency, p.pixel, p.response)), 0.3), plain)
    assert worst(x, plain) > 8


@pytest.mark.parametrize("model", [one_mode, two_modes])
def test_unadjusted_langevin_keeps_its_law_as_the_step_goes_to_0_and_tdas_does_not(model):
    plain = model()
    models = {"pds": WithPreconditioner(plain, strong()), "tdas": None}
    models["tdas"] = WithPreconditioner(plain, NoiseOnly(strong(("frequency", "pixel"))))
    for name, model in models.items():
        off = [worst(chain(langevin(model, eta), plain, steps=int(2 / eta)), plain) for eta in (0.2, 0.01)]
        assert off[0] > 6, (name, off)  # a large step is seen in both
        assert off[1] < 4.5 if name == "pds" else off[1] > 8, (name, off)


def test_preconditioning_mixes_faster_where_it_fits():
    """A Gaussian of condition 30: what its slow direction remembers after ten steps, at steps of like acceptance."""
    spectrum = 0.01 + 0.99 * torch.exp(-8 * torch.fft.fftfreq(16, dtype=F64).abs())
    plain = stationary(spectrum)
    fitting = Preconditioner.from_covariance(preconditioning.exact_moments(plain), sigma=0.1)
    slow = {}
    for name, model, eta in (("plain", plain, 0.05), ("fitting", WithPreconditioner(plain, fitting), 0.18)):
        x = plain.sample(500, 0.1, seed=0)
        state, rng, total = ChainState(x, torch.full((500,), 0.1, dtype=F64)), Streams(0, "t", range(500)), []
        kernel, accepted = mala(model, eta), []
        for _ in range(30):
            state, info = kernel(state, rng)
            total.append(state.x.sum(1))
            accepted.append(info.acceptance.mean().item())
        assert 0.7 < sum(accepted) / 30 < 0.85, (name, accepted[-1])
        series = torch.stack(total)
        slow[name] = (series[:-10] * series[10:]).mean() / (series**2).mean()  # autocorrelation after ten steps
    assert slow["fitting"] < 0.2 < 0.7 < slow["plain"], slow


def test_the_identity_changes_no_bit():
    plain = two_modes()
    masked = WithPreconditioner(plain, Preconditioner.identity())
    for make in (lambda m: langevin(m, 0.1), lambda m: mala(m, 0.1), lambda m: hamiltonian(m, 0.1, persistence=0.5)):
        assert torch.equal(chain(make(plain), plain, n=20, steps=5)[0], chain(make(masked), plain, n=20, steps=5)[0])
    x = 10 * torch.randn(8, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    grid = schedules.log_uniform(6, 10.0, 0.01)
    ones = WithPreconditioner(plain, Preconditioner(frequency=torch.ones(3), pixel=torch.ones(3)))
    results = [
        integrators.predictor_corrector(m, x, grid, noise=Streams(0, "t", range(8))) for m in (plain, masked, ones)
    ]
    assert torch.equal(results[0], results[1])
    assert (results[0] - results[2]).abs().max() < 1e-12 * results[0].abs().max()


# The predictor-corrector


class White:
    """White Gaussian data of 256 numbers: a denoiser that costs one product."""

    shape, sigma_max, sigma_min = (256,), 50.0, 0.01

    def __init__(self, variance: float = 1.0) -> None:
        self.variance = variance

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x * self.variance / (self.variance + like(sigma, x) ** 2)


GRID = schedules.log_uniform(500, 50.0, 0.01)[:-1]


@functools.cache
def final_variance(c: float, corrections: int, rows=100, variance=1.0) -> float:
    """What the predictor-corrector makes of that variance with gain sqrt(c) everywhere, down to sigma 0.01."""
    model = WithPreconditioner(White(variance), Preconditioner(pixel=torch.full((256,), c**0.5)))
    generator = torch.Generator().manual_seed(0)
    noise = lambda like: torch.randn(like.shape, generator=generator)  # noqa: E731
    x = dmcmc.prior(model, noise, rows, "zero", preconditioned=True)
    return integrators.predictor_corrector(model, x, GRID, noise=noise, corrections=corrections).var().item()


@pytest.mark.parametrize(("c", "of_data"), [(1.0, 1.0), (1.44, 1.0), (1.5625, 1.0), (1.44, 0.1)])
def test_the_predictor_alone_shrinks_the_data_and_one_correction_mends_it(c, of_data):
    """c / (2 c - 1) of the variance is left, by the formula in the limit; a correction brings it back to c = 1."""
    error, variance = (2 / 25_600) ** 0.5, 50.0**2 * c
    for now, after in zip(GRID[:-1].tolist(), GRID[1:].tolist(), strict=True):
        step = now**2 - after**2
        variance = variance * (1 - c * step / (of_data + now**2)) ** 2 + c * step
    assert abs(final_variance(c, 0, variance=of_data) - variance) < 4 * error * variance
    assert abs(variance / of_data - c / (2 * c - 1)) < 0.03
    corrected = [final_variance(some, 1, variance=of_data) for some in (c, 1.0)]
    assert abs(corrected[0] - corrected[1]) < 4 * error * of_data


def test_a_multiple_of_m_changes_the_predictor_and_not_the_corrector():
    x, s, z = torch.randn(3, 6, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    b = torch.tensor([0.6, 1.5, 1.1, 1.1, 1.5], dtype=F64)
    out = []
    for factor in (1.0, 3.0):
        m = Preconditioner(frequency=factor * b)
        moved = [integrators.langevin_correction(m, x, s, z, 0.16, joint) for joint in (True, False)]
        out.append((*moved, m.move(x, s, z)))
    for k, same in enumerate((True, True, False)):
        assert ((out[0][k] - out[1][k]).abs().max() < 1e-12) == same


def test_one_step_of_pds_by_the_published_formulas():
    """Init, corrector with the norms of M M^T s and M z, predictor with its noise-free mean: two calls a level."""
    model, p = two_modes(), strong(("frequency", "pixel"))
    counted, noise = count_nfe(WithPreconditioner(model, p)), torch.Generator().manual_seed(0)
    z0, z1 = torch.randn(2, 5, 3, dtype=F64, generator=noise)
    grid = torch.tensor([4.0, 0.0], dtype=F64)
    ours = integrators.predictor_corrector(counted, 4 * p.apply(z0), grid, noise=lambda x: z1, snr=0.2, joint=True)
    x = 4 * p.apply(z0)
    m = matrix(p.apply, (3,))
    s = (model(x, grid[0]) - x) / 16 @ (m @ m.T)
    e = z1 @ m.T
    d = 2 * (0.2 * e.norm(dim=1).mean() / s.norm(dim=1).mean()) ** 2
    x = x + d * s + (2 * d).sqrt() * e
    x = x + 16 * ((model(x, grid[0]) - x) / 16 @ (m @ m.T))
    assert (ours - x).abs().max() < 1e-12 and counted.nfe == 2


def test_the_variance_preserving_predictor_by_its_formulas():
    """Song et al. 2021, eq. 46-48: u + (1 - sqrt(1 - beta)) u + beta s_u + sqrt(beta) z, with M where PDS has it."""
    model, p = two_modes(), strong()
    x, z = torch.randn(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    now, after = torch.tensor(2.0, dtype=F64), torch.tensor(1.2, dtype=F64)
    for m in (Preconditioner.identity(), p):
        ours = integrators.reverse_diffusion(
            WithPreconditioner(model, m), x, torch.stack([now, after]), noise=lambda like: z, diffusion="vp"
        )
        beta = 1 - (1 + after**2) / (1 + now**2)
        u, s = x / (1 + now**2) ** 0.5, (model(x, now) - x) / now**2 * (1 + now**2) ** 0.5
        u = u + m.drift((1 - (1 - beta) ** 0.5) * u + beta * s) + beta**0.5 * m.apply(z)
        assert (ours - u * (1 + after**2) ** 0.5).abs().max() < 1e-12


def test_the_variance_preserving_corrector_by_its_formulas():
    """Song et al. 2021, Algorithm 5, with M: e = 2 alpha (snr |M z| / |M M^T s|)^2 in the coordinates u."""
    model, p = WithPreconditioner(two_modes(), strong(("frequency", "pixel"))), strong(("frequency", "pixel"))
    x, z = torch.randn(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([2.0, 1.2], dtype=F64)
    options = {"diffusion": "vp", "noise": lambda like: z, "snr": 0.3}
    ours = integrators.predictor_corrector(model, x, grid, **options)
    now, alpha = grid[0], (1 + grid[1] ** 2) / (1 + grid[0] ** 2)
    scale = (1 + now**2) ** 0.5
    u, s = x / scale, p.squared((model(x, now) - x) / now**2 * scale)
    e = 2 * alpha * (0.3 * p.apply(z).norm(dim=1) / s.norm(dim=1)) ** 2
    u = u + e[:, None] * s + (2 * e)[:, None].sqrt() * p.apply(z)
    after = integrators.reverse_diffusion(model, u * scale, grid, noise=lambda like: z, diffusion="vp")
    assert (ours - after).abs().max() < 1e-12


@pytest.mark.parametrize("corrections", [0, 1])
def test_the_variance_preserving_sampler_arrives(corrections):
    """At the unit variance of its data, but for 300 steps: four standard errors are 3.5 %."""
    x = 50 * torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    grid, noise = schedules.time_uniform(300, 50.0, 0.02)[:-1], Streams(0, "t", range(100))
    options = {"diffusion": "vp", "corrections": corrections, "snr": 0.1}
    made = integrators.predictor_corrector(White(), x, grid, noise=noise, **options)
    assert 0.98 < made.var().item() < 1.05


# In a run


def test_a_run_with_a_preconditioner(tmp_path):
    data = EmpiricalData(torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), sigma_max=5.0)
    settings = {"preconditioner": "both", "alpha": 2.0}
    plain = run(data, "predictor_corrector", 10, 6, out=tmp_path / "plain", progress=False)
    made = run(data, "predictor_corrector", 10, 6, out=tmp_path / "pds", settings=settings, progress=False)
    about = made["plan"]["preconditioned_by"]
    assert about["alpha"] == 2.0 and about["images"] == 40 and made["model_sha256"] != plain["model_sha256"]
    assert made["nfe_full"] == plain["nfe_full"] == 10
    again = run(data, "predictor_corrector", 10, 6, out=tmp_path / "pds", settings=settings)
    assert again == made
    images = [load_images(tmp_path / name) for name in ("plain", "pds")]
    assert not torch.equal(*images)
    chains = run(data, "dlg+heun", 20, 6, out=tmp_path / "dlg", settings=settings | {"omega": 0.5}, progress=False)
    assert chains["plan"]["preconditioned_by"]["omega"] == 0.5
    fast = run(data, "predictor_corrector", 20, 4, out=tmp_path / "fast", settings={"speed_up": 120}, progress=False)
    assert fast["plan"]["levels"] == 8 and fast["nfe_full"] == 16


def small(low=0.0, high=1.0):
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return EmpiricalData(low + (high - low) * images, sigma_max=5.0, data_range=(low, high))


def test_a_run_begins_with_m_and_walks_with_it(tmp_path):
    data = small()
    settings = {"preconditioner": "both", "alpha": 2.0, "levels": 3, "start": "zero"}
    run(data, "predictor_corrector", 6, 4, out=tmp_path, settings=settings, progress=False)
    model, _ = conditioned(data, {"preconditioner": "both", "alpha": 2.0})
    noise = Streams(0, "image", range(4))
    x = data.sigma_max * model.preconditioner.apply(noise(torch.zeros(4, 1, 4, 4)))
    grid = schedules.log_uniform(3, data.sigma_max, data.sigma_min)
    expected = integrators.predictor_corrector(model, x, grid, noise=noise)
    assert (load_images(tmp_path) - expected.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("name", ["langevin", "mala", "hamiltonian", "underdamped"])
def test_the_chains_of_dlg_walk_with_m(name):
    """One step of the chain that settings name is that of the kernel with M, and another one without."""
    data = small()
    model, _ = conditioned(data, {"preconditioner": "both", "alpha": 2.0})
    posterior, settings = ExactPosterior(data, log_levels(5.0, 0.05, 9)), dmcmc.ChainSettings(kernel=name, chains=6)
    noise = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    start = ChainState(data.images[:6] + noise, torch.ones(6))
    walked = [dmcmc.kernel(m, posterior, settings, 0.1)(start, Streams(0, "t", range(6)))[0].x for m in (model, data)]
    assert (walked[0] - walked[1]).abs().max() > 1e-3
    if name == "langevin":
        e = torch.tensor(0.1)  # sigma is 1
        gradient, z = (data(start.x, start.sigma) - start.x), Streams(0, "t", range(6))(start.x)
        by_hand = start.x + e / 2 * model.preconditioner.squared(gradient) + e**0.5 * model.preconditioner.apply(z)
        assert (walked[0] - by_hand).abs().max() < 1e-5


def test_the_first_images_of_chains_begin_with_m_where_their_integrator_takes_it():
    data, begun = small(), []

    class Listening(type(data)):
        def __call__(self, x, sigma):
            begun.append(x)
            return super().__call__(x, sigma)

    data.__class__ = Listening
    model, _ = conditioned(data, {"preconditioner": "both", "alpha": 2.0})
    z = Streams(0, "t", range(4))(torch.zeros(4, 1, 4, 4))
    for warmup, first in (("predictor_corrector", model.preconditioner.apply(z)), ("dpmpp_2m", z)):
        begun.clear()
        dmcmc.first_images(model, dmcmc.ChainSettings(warmup=warmup, start="zero"), Streams(0, "t", range(4)))
        assert torch.equal(begun[0], 5 * first)


def test_statistics_are_of_images_in_0_to_1(tmp_path):
    """Of the model's own whatever its range, of a folder of samples, and the same by the exact moments."""
    gains = [conditioned(small(*ends), {"preconditioner": "both"})[0] for ends in ((0.0, 1.0), (-1.0, 1.0))]
    torch.testing.assert_close(gains[0].preconditioner.frequency, gains[1].preconditioner.frequency, rtol=1e-5, atol=0)
    exact = [Preconditioner.from_model(small(*ends)) for ends in ((0.0, 1.0), (-1.0, 1.0))]
    for name in ("frequency", "pixel"):
        for other in (gains[0].preconditioner, exact[0]):
            torch.testing.assert_close(getattr(exact[1], name), getattr(other, name), rtol=1e-5, atol=0)
    made = small(-1.0, 1.0)
    run(made, "heun", 10, 8, out=tmp_path / "own", settings={"block": 4}, shard=4, progress=False)
    model, _ = conditioned(made, {"preconditioner": "both", "statistics": str(tmp_path / "own")})
    images = (load_images(tmp_path / "own") + 1) / 2
    theirs = Preconditioner.from_images(images)
    torch.testing.assert_close(model.preconditioner.frequency, theirs.frequency, rtol=1e-5, atol=0)


def test_statistics_are_of_images_that_other_programs_wrote(tmp_path):
    """The same gains from a folder of PNG files, NPZ and NPY, and a word for what holds no images."""
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", pixels[..., None])
    np.save(tmp_path / "a.npy", pixels[..., None])
    (tmp_path / "png" / "below").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for i, image in enumerate(pixels):
        pillow.fromarray(image).save(tmp_path / "png" / ("below" if i % 2 else "") / f"{i}.png")
    right = Preconditioner.from_images(torch.from_numpy(pixels)[:, None].float() / 255)
    for name in ("a.npz", "a.npy", "png"):
        model, _ = conditioned(small(), {"preconditioner": "both", "statistics": str(tmp_path / name)})
        torch.testing.assert_close(model.preconditioner.frequency, right.frequency, rtol=1e-5, atol=0)
        assert model.preconditioned_by["images"] == 9
    for name, words in (("empty", "holds no shards .* and no PNG or JPEG images"), ("none", "no folder, .npz or .npy")):
        with pytest.raises(UserError, match=words):
            conditioned(small(), {"preconditioner": "both", "statistics": str(tmp_path / name)})


def test_a_skew_term_of_settings_and_of_a_file(tmp_path):
    data = small()
    model, _ = conditioned(data, {"preconditioner": "both", "omega": 0.5})
    plain = Preconditioner.from_images(data.images)
    torch.testing.assert_close(model.preconditioner.response, plain.with_skew(0.5).response)
    plain.with_skew(0.7).save(tmp_path / "s.safetensors", omega=0.7)
    loaded, _ = conditioned(data, {"preconditioner": str(tmp_path / "s.safetensors")})
    assert loaded.preconditioned_by["omega"] == "of the file" and loaded.preconditioner.response.abs().max() > 0.1
    with pytest.raises(UserError, match="leave omega out"):
        conditioned(data, {"preconditioner": str(tmp_path / "s.safetensors"), "omega": 2.0})


def test_a_saved_filter_names_the_run_by_its_content(tmp_path):
    data = EmpiricalData(torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), sigma_max=5.0)
    hashes = []
    for alpha in (2.0, 3.0):
        Preconditioner.from_images(data.images, alpha).save(tmp_path / "f.safetensors")
        model, rest = conditioned(data, {"preconditioner": str(tmp_path / "f.safetensors")})
        hashes.append(fingerprint(count_nfe(model)))
        assert rest == {} and mcmc.walk(count_nfe(model)).shape == (1, 4, 4)
    assert len({*hashes, fingerprint(data)}) == 3


def test_a_folder_of_another_filter_says_so(tmp_path):
    data = EmpiricalData(torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), sigma_max=5.0)
    about = {"out": tmp_path / "run", "progress": False}
    for alpha, settings in ((2.0, {}), (3.0, {}), (3.0, {"omega": 1.0})):
        Preconditioner.from_images(data.images, alpha).save(tmp_path / "f.safetensors")
        settings = {"preconditioner": str(tmp_path / "f.safetensors")} | settings
        if alpha == 2.0:
            run(data, "predictor_corrector", 10, 4, settings=settings, **about)
            continue
        with pytest.raises(UserError, match="its omega is" if "omega" in settings else "its gains_sha256 is"):
            run(data, "predictor_corrector", 10, 4, settings=settings, **about)


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        ("heun", {"preconditioner": "both"}, "heun knows no preconditioner"),
        ("gddim", {"preconditioner": "both", "sde": "VP"}, "gddim knows no preconditioner"),
        ("predictor_corrector", {"preconditioner": "bth"}, "did you mean 'both'"),
        ("predictor_corrector", {"alpha": 3.0}, "choose one by preconditioner"),
        ("predictor_corrector", {"preconditioner": "both", "alpha": 1.0}, "alpha must be a number above 1"),
        ("predictor_corrector", {"preconditioner": "both", "statistics": "digits-train"}, "shape"),
        ("predictor_corrector", {"preconditioner": "no.safetensors"}, "no such file"),
        ("predictor_corrector", {"preconditioner": "no.safetensors", "alpha": 3.0}, "leave statistics and alpha out"),
        ("predictor_corrector", {"preconditioner": ["both"]}, "must be a name or a file"),
        ("predictor_corrector", {"preconditioner": "both", "statistics": 5}, "must be a name or a file"),
        ("predictor_corrector", {"speed_up": 10}, "100 levels, for which predictor_corrector needs 200 NFE, not 20"),
        ("predictor_corrector", {"speed_up": 0}, "speed_up must be a number above 0"),
        ("predictor_corrector", {"speed_up": 200, "levels": 5}, "leave one out"),
        ("predictor_corrector", {"diffusion": "sub-vp"}, "diffusion must be one of"),
    ],
)
def test_bad_settings_of_a_run(tmp_path, sampler, settings, message):
    data = EmpiricalData(torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), sigma_max=5.0)
    with pytest.raises(UserError, match=message):
        run(data, sampler, 20, 4, out=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preconditioner(frequency=torch.zeros(3, 4, 4)), "above 0"),
        (lambda: Preconditioner(pixel=-torch.ones(3, 4, 4)), "above 0"),
        (lambda: Preconditioner(pixel=torch.ones(3, 4, 4) * torch.nan), "finite"),
        (lambda: Preconditioner(frequency=torch.full((4,), 1e200, dtype=F64)), "1e-9 to 1e9, not 1e"),
        (lambda: Preconditioner.from_images(torch.rand(9, 1, 4, 4), recipe=["log"]), "recipe"),
        (lambda: Preconditioner.from_covariance(torch.rand(9, 1, 4, 4), 1.0), "moments"),
        (lambda: Preconditioner.identity().with_skew(1.0, shape=8), "such as"),
        (lambda: Preconditioner.identity().with_skew(1e200, shape=(1, 8, 8)), "at most 1e18"),
        (lambda: Preconditioner.from_images([torch.rand(1, 4, 4), torch.rand(1, 4, 5)]), "array of numbers"),
        (lambda: Preconditioner(frequency=torch.ones(4, dtype=torch.complex64)), "real numbers"),
        (lambda: Preconditioner(frequency=torch.ones(4), pixel=torch.ones(5)), "one shape"),
        (lambda: Preconditioner(frequency="low"), "numbers"),
        (lambda: Preconditioner(frequency=2.0), "shape of an image"),
        (lambda: Preconditioner(pixel=torch.ones(3, 4, 4)).apply(torch.ones(2, 3, 4, 5)), "of shape"),
        (lambda: Preconditioner(pixel=torch.ones(4)).apply(torch.ones(2, 4, dtype=torch.int64)), "real floats"),
        (lambda: Preconditioner.from_images(torch.rand(9, 1, 4, 4), alpha=1), "above 1"),
        (lambda: Preconditioner.from_images(torch.rand(9, 1, 4, 4), alpha=math.nan), "above 1"),
        (lambda: Preconditioner.from_images(torch.rand(9, 1, 4, 4), recipe="new"), "recipe"),
        (lambda: Preconditioner.from_images(torch.rand(0, 1, 4, 4)), "shape"),
        (lambda: Preconditioner.from_images(torch.zeros(9, 1, 4, 4)), "0 everywhere"),
        (lambda: Preconditioner.from_images(torch.zeros(9, 1, 4, 4), recipe="before-2023"), "divides by"),
        (lambda: Preconditioner.from_model(object()), "does not know"),
        (lambda: Preconditioner.identity().with_skew(1.0), "no shape"),
        (lambda: Preconditioner(pixel=torch.ones(4, 4)).with_skew(1.0, (1,)), "2 finite numbers"),
        (lambda: Preconditioner(pixel=torch.ones(4)).apply(np.ones((2, 4))), "must be a tensor"),
        (lambda: Preconditioner(frequency=torch.ones(4)).apply(torch.ones(0, 4)), "at least one image"),
        (lambda: Preconditioner.from_images(torch.rand(9, 1, 4, 4), frequency="yes"), "True or False"),
        (lambda: Preconditioner.load(3), "by a path"),
        (lambda: WithPreconditioner(two_modes(), None), "in this order"),
        (lambda: WithPreconditioner(WithPreconditioner(two_modes(), strong()), strong()), "preconditioned already"),
        (lambda: NoiseOnly(None), "not through NoneType"),
        (lambda: strong().apply(torch.ones(2, 3, dtype=torch.bfloat16)), "single or double precision"),
        (lambda: Preconditioner(pixel=torch.ones(4)).with_skew(math.nan), "omega"),
        (lambda: Preconditioner.identity().save("filter.safetensors"), "no gains"),
        (lambda: WithPreconditioner(two_modes(), Preconditioner(pixel=torch.ones(4))), "of shape"),
        (lambda: NoiseOnly(strong()), "no skew term"),
        (lambda: hamiltonian(WithPreconditioner(two_modes(), strong()), 0.1), "leapfrogs cannot follow"),
        (lambda: mala(WithPreconditioner(two_modes(), NoiseOnly(strong(("pixel",)))), 0.1), "keeps no law"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_images_near_a_filter_of_another_kind_are_like_levels():
    """A noise level per row goes through a preconditioned kernel as it does through a plain one."""
    plain = two_modes()
    model = WithPreconditioner(plain, strong())
    sigma = torch.tensor([0.2, 1.0, 3.0], dtype=F64)
    x = plain.sample(3, sigma, seed=0)
    together, _ = langevin(model, 0.1, "sigma2")(ChainState(x, sigma), Streams(0, "t", range(3)))
    z = Streams(0, "t", range(3))(x)
    e = 0.1 * sigma**2
    p = mcmc.walk(model)
    by_hand = x + p.drift(like(e / 2, x) * (plain(x, sigma) - x) / like(sigma**2, x)) + p.apply(like(e.sqrt(), x) * z)
    assert (together.x - by_hand).abs().max() < 1e-12
