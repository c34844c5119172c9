"""Mixtures of low-rank Gaussians: the same model as its full covariances, its moments, and the fit to images."""

import math

import pytest
import torch
from exact import F64

from dmcmc_core import checkpoints, files
from dmcmc_core.analytic import GaussianMixture, LowRankMixture
from dmcmc_core.checkpoints import mixtures
from dmcmc_core.denoiser import score
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint

K, SHAPE, D, R = 3, (3, 2, 2), 12, 4


def parts(dtype=F64, noise=(0.05, 0.2, 0.01)):
    """Overlapping components whose axes are not orthogonal."""
    g = torch.Generator().manual_seed(0)
    means, factors = torch.randn(K, *SHAPE, generator=g, dtype=F64), torch.randn(K, D, R, generator=g, dtype=F64)
    factors = factors * torch.tensor([1.0, 0.7, 0.3, 0.05])
    weights = torch.tensor([1.0, 3.0, 2.0])
    return [t.to(dtype) for t in (means / 2, factors, torch.tensor(noise, dtype=F64), weights)]


def full(means, factors, noise, weights):
    return GaussianMixture(means, factors @ factors.mT + noise[:, None, None] * torch.eye(D).to(means), weights)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-11), (torch.float32, 1e-3)])
def test_it_is_the_mixture_of_the_same_covariances(dtype, tolerance):
    given = parts(dtype)
    model, expected = LowRankMixture(*given), full(*(t.double() for t in given))
    sigma = torch.logspace(-2, 1, 70, dtype=F64)
    x = expected.sample(70, sigma)
    levels = torch.logspace(-2, 1, 7, dtype=F64)
    for got, wanted in (
        (model(x, sigma), expected(x, sigma)),
        (model.log_prob(x, sigma), expected.log_prob(x, sigma)),
        (model.log_prob_levels(x, levels).double(), expected.log_prob_levels(x, levels)),
        (model.log_joint(x, sigma).double(), expected.log_joint(x, sigma)),
        (model.log_prob(x, torch.tensor(0.0)), expected.log_prob(x, torch.tensor(0.0))),
    ):
        assert ((got - wanted).abs() / (1 + wanted.abs())).max() < tolerance
    assert model.shape == SHAPE and torch.allclose(model.mean.double(), expected.mean, atol=tolerance)


def test_levels_are_split_and_rows_padded_without_a_trace(monkeypatch):
    model, levels = LowRankMixture(*parts()), torch.logspace(-2, 1, 50, dtype=F64)
    x = model.sample(130, 1.0)
    whole = model.log_prob_levels(x, levels)
    monkeypatch.setattr("dmcmc_core.analytic._NUMBERS", 8 * 64 * K * R * 7)
    torch.testing.assert_close(model.log_prob_levels(x, levels), whole, rtol=1e-12, atol=0)
    assert torch.equal(model(x, torch.tensor(0.3))[100:103], model(x[100:103], torch.tensor(0.3)))


def test_the_denoiser_is_tweedies():
    model, sigma = LowRankMixture(*parts()), torch.tensor([0.05, 0.5, 5.0], dtype=F64)
    x = model.sample(3, sigma).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
    assert torch.allclose(score(model, x.detach(), sigma), gradient, rtol=1e-9, atol=1e-9)


def test_no_noise_of_its_own_is_a_model_above_level_0():
    given = parts(noise=(0.0, 0.0, 0.1))
    sigma = torch.tensor([0.1, 1.0])
    x = full(*given).sample(2, sigma)
    torch.testing.assert_close(LowRankMixture(*given)(x, sigma), full(*given)(x, sigma))


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_samples_have_its_moments(sigma):
    """Mean and covariance within 4.5 standard errors, and the classes of components that lie far apart."""
    means, factors, noise, weights = parts()
    model, n = LowRankMixture(means, factors, noise, weights), 6000
    x = model.sample(n, sigma, seed=2).flatten(1)
    p, m = weights / weights.sum(), means.flatten(1)
    within = factors @ factors.mT + (noise + sigma**2)[:, None, None] * torch.eye(D, dtype=F64)
    second = (p[:, None, None] * (within + m[:, :, None] * m[:, None])).sum(0)
    products = (x[:, :, None] * x[:, None]).flatten(1)
    for values, expected in ((x, (p[:, None] * m).sum(0)), (products, second.flatten())):
        assert ((values.mean(0) - expected).abs() / (values.std(0) / n**0.5)).max() < 4.5
    assert torch.equal(model.sample(70, sigma, seed=2), x[:70].reshape(70, *SHAPE))
    apart = LowRankMixture(means + 100 * torch.arange(3.0).reshape(3, 1, 1, 1), factors, noise, weights)
    counts = (apart.sample(n, sigma).flatten(1).mean(1) / 100).round().long().bincount()
    assert ((counts / n - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (1, torch.ones(K, D), r"factors must have shape \(3, 12, r\), 1 <= r < 12, not \(3, 12\)"),
        (1, torch.ones(K, D, D), r"1 <= r < 12, not \(3, 12, 12\)"),
        (1, torch.ones(K, 2, D), r"not \(3, 2, 12\)"),
        (1, torch.full((K, D, R), math.nan), "must be finite"),
        (2, torch.tensor([0.1, -0.1, 0.1]), "noise must be 3 variances >= 0"),
        (2, torch.ones(2), "noise must be 3 variances >= 0"),
        (3, torch.ones(2), "weights must be 3 numbers >= 0"),
    ],
)
def test_it_refuses(which, value, message):
    given = parts()
    given[which] = value
    with pytest.raises(UserError, match=message):
        LowRankMixture(*given)


def test_its_fingerprint_tells_noise_and_axes():
    given = parts()
    same, other, turned = (
        LowRankMixture(*p, data_range=(0, 1)) for p in (given, parts(noise=(0.05, 0.2, 0.02)), given)
    )
    turned.axes = turned.axes.flip(0)
    assert fingerprint(same) == fingerprint(LowRankMixture(*given, data_range=(0, 1)))
    assert len({fingerprint(m) for m in (same, other, turned)}) == 3


# The fit


def drawn(n=600, seed=0):
    """Images of two components of rank 2 in 9 pixels."""
    g = torch.Generator().manual_seed(7)
    factors = torch.randn(2, 9, 2, generator=g, dtype=F64)
    means = torch.stack([torch.zeros(1, 3, 3), 3 * torch.ones(1, 3, 3)]).double()
    truth = LowRankMixture(means, factors, torch.tensor([0.04, 0.09]), torch.tensor([1.0, 2.0]))
    return truth, truth.sample(n, seed=seed)


def fitted(images, *how, **more):
    return LowRankMixture(*mixtures.fit(images, *how, **more).values())


def test_a_fit_finds_what_the_images_were_drawn_from():
    truth, images = drawn(4000)
    model = fitted(images, 2, 2, prior=0.0)
    order = model.means.mean(1).argsort()
    assert torch.allclose(model.weights[order], truth.weights, atol=0.03)
    assert torch.allclose(model.means[order], truth.means, atol=0.15)
    assert torch.allclose(model.noise_variances[order], truth.noise_variances, rtol=0.05)
    fresh = truth.sample(2000, seed=1)
    zero = torch.tensor(0.0)
    lost = (truth.log_prob(fresh, zero) - model.log_prob(fresh, zero)).mean()
    assert 0 <= lost < 0.05  # about half the 40 free numbers over 4,000 images


def test_no_iteration_of_a_fit_lowers_the_likelihood():
    images = checkpoints.mixtures.digits("train").images[:300]
    values = [
        fitted(images, 5, 6, prior=0.0, iterations=i).log_prob(images.double(), torch.tensor(0.0)).mean().item()
        for i in (1, 2, 3, 5, 9)
    ]
    assert values == sorted(values) and values[-1] > values[0] + 0.1


def test_a_large_prior_is_one_covariance_for_all():
    _, images = drawn()
    model = fitted(images, 2, 4, prior=1e9)
    assert torch.allclose(model.variances[0], model.variances[1], rtol=1e-4)
    apart = fitted(images, 2, 4, prior=0.0)
    assert not torch.allclose(apart.variances[0], apart.variances[1], rtol=0.1)


def test_directions_that_are_left_out_count_as_noise(monkeypatch):
    """With fewer directions than pixels the density is that of the likeliest model whose axes lie in them."""
    _, images = drawn()
    whole = fitted(images, 1, 2, prior=0.0)
    monkeypatch.setattr(mixtures, "DIRECTIONS", 4)
    few = fitted(images, 1, 2, prior=0.0)  # one Gaussian: its axes are the first principal components either way
    assert torch.allclose(few.noise_variances, whole.noise_variances, rtol=1e-9)
    assert torch.allclose(few.variances, whole.variances, rtol=1e-9)
    zero = torch.tensor(0.0)
    assert torch.allclose(few.log_prob(images, zero), whole.log_prob(images, zero), rtol=1e-9)
    two = fitted(images, 2, 2, prior=0.0)
    assert two.log_prob(images, zero).mean() > few.log_prob(images, zero).mean() + 0.5


def test_a_fit_is_the_same_every_time():
    _, images = drawn(100)
    one, other = (mixtures.fit(images, 2, 2, seed=3) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in mixtures.PARTS)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"components": 0}, "components must be a whole number, at least 1 and at most 100, not 0"),
        ({"components": 101}, "components must be a whole number"),
        ({"rank": 9}, "rank must be a whole number, at least 1 and at most 8, not 9"),
        ({"prior": -1.0}, "prior must be a finite number, at least 0, not -1.0"),
        ({"iterations": 0}, "iterations must be a whole number, at least 1, not 0"),
        ({"images": torch.full((100, 1, 3, 3), math.nan)}, "images must be finite"),
        ({"images": torch.rand(100, 1, 1, 1).expand(100, 1, 3, 3)}, "rank 2 leaves no noise"),
    ],
)
def test_a_fit_refuses(how, message):
    _, images = drawn(100)
    with pytest.raises(UserError, match=message):
        mixtures.fit(**{"images": images, "components": 2, "rank": 2} | how)


# The models by name


def test_the_mixture_of_the_digits_is_smooth_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "root", lambda: tmp_path)
    model = checkpoints.load_model("digits-mixture")
    assert (model.shape, model.sigma_min, model.sigma_max, model.data_range) == ((1, 8, 8), 0.01, 10.0, (0.0, 1.0))
    assert model.name == model.card["name"] == "digits-mixture" and model.card["architecture"] == "exact"
    held_out = mixtures.digits("heldout").images.double()
    single = mixtures.digits("train").images.double()
    covariance = torch.cov(single.flatten(1).T, correction=0)
    single = GaussianMixture(single.mean(0, keepdim=True), covariance[None], torch.ones(1))
    noise, level = (
        torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0), dtype=F64),
        torch.tensor(0.01),
    )
    x = held_out + 0.01 * noise
    assert model.log_prob(x, level).mean() > single.log_prob(x, level).mean() + 10
    draws = model.sample(500).flatten(1)
    nearest = torch.cdist(draws, mixtures.digits("train").images.double().flatten(1)).amin(1)
    assert nearest.median() > 0.5  # it makes digits of its own

    (path,) = (tmp_path / "exp" / "cache" / "mixtures").iterdir()
    monkeypatch.setattr(mixtures, "fit", None)
    assert fingerprint(checkpoints.load_model("digits-mixture")) == fingerprint(model)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TypeError):  # damaged: it is fitted again
        checkpoints.load_model("digits-mixture")


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "root", lambda: tmp_path / "file")
    (tmp_path / "file").write_text("no folder")
    small = {name: t for name, t in zip(mixtures.PARTS, parts(), strict=True)}
    monkeypatch.setattr(mixtures, "fit", lambda *_: small)
    assert checkpoints.load_model("digits-mixture").means.shape == (K, D)


def test_the_catalogue_lists_them():
    names = [row["name"] for row in checkpoints.known(files.root()) if row["here"]]
    assert set(mixtures.MIXTURES) <= set(names) and set(mixtures.MIXTURES) <= set(checkpoints.MODELS)
