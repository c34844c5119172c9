"""Exact models against brute force: densities, denoisers, posteriors over the noise level, memory, bits."""

import math
import subprocess
import sys

import pytest
import torch
from exact import F64, gaussian, images_mixture, mixture
from scipy import integrate, stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmcmc_core import integrators, schedules
from dmcmc_core.analytic import EmpiricalData, GaussianMixture
from dmcmc_core.denoiser import score
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.noise_level import log_levels
from dmcmc_core.ranges import outside

# Gaussian mixtures


def brute_force(model, x, sigma):
    """log p and E[x0 | x] from full covariance matrices and their inverses, row by row."""
    means, weights = model.means, model.weights
    axes = model.axes if model.axes is not None else torch.eye(means.shape[1], dtype=F64).expand(len(means), -1, -1)
    covariances = axes.double() @ torch.diag_embed(model.variances.double()) @ axes.double().mT
    log_p, mean = [], []
    for row, s in zip(x.double().flatten(1), sigma.double(), strict=True):
        joint, parts = [], []
        for m, c, w in zip(means.double(), covariances.double(), weights.double(), strict=True):
            noisy = c + s**2 * torch.eye(len(m), dtype=F64)
            joint.append(math.log(w) + stats.multivariate_normal(m, noisy).logpdf(row))
            parts.append(m + c @ torch.linalg.solve(noisy, row - m))
        joint = torch.tensor(joint, dtype=F64)
        log_p.append(joint.logsumexp(0))
        mean.append((joint.softmax(0)[:, None] * torch.stack(parts)).sum(0))
    return torch.stack(log_p), torch.stack(mean).reshape(x.shape)


@pytest.mark.parametrize("model", [gaussian, mixture, images_mixture])
def test_mixture_is_what_the_formulas_say(model):
    model = model()
    sigma = torch.logspace(-2, 1, 9, dtype=F64)
    x = model.sample(9, sigma)
    log_p, mean = brute_force(model, x, sigma)
    tolerance = 1e-10 if x.dtype == F64 else 1e-4
    assert torch.allclose(model.log_prob(x, sigma).double(), log_p, rtol=tolerance, atol=tolerance)
    assert torch.allclose(model(x, sigma).double(), mean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", [gaussian, mixture])
def test_score_is_the_gradient_of_the_density(model):
    model = model()
    sigma = torch.tensor([0.05, 0.5, 5.0], dtype=F64)
    x = model.sample(3, sigma).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
    assert torch.allclose(score(model, x.detach(), sigma), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 3.0])
def test_density_integrates_to_one(sigma):
    model = GaussianMixture(
        torch.tensor([[-1.0], [2.0]], dtype=F64), torch.tensor([0.3, 0.7]), torch.tensor([1.0, 3.0])
    )

    def density(x):
        return model.log_prob(torch.tensor([[x]], dtype=F64), torch.tensor(sigma)).exp().item()

    assert integrate.quad(density, -40, 40, points=[-1, 2], limit=200)[0] == pytest.approx(1, abs=1e-8)


def test_scales_and_covariances_are_the_same_model():
    means, scales, weights = torch.randn(3, 1, 2, 2, dtype=F64), torch.tensor([0.1, 0.5, 2.0]), torch.ones(3)
    full = GaussianMixture(means, scales.double()[:, None, None] ** 2 * torch.eye(4, dtype=F64), weights)
    model, sigma = GaussianMixture(means, scales, weights), torch.tensor([0.1, 1.0, 10.0])
    x = model.sample(3, sigma)
    assert torch.allclose(model(x, sigma), full(x, sigma), rtol=1e-6, atol=1e-6)
    assert torch.allclose(model.log_prob(x, sigma), full.log_prob(x, sigma), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 1.5])
@pytest.mark.parametrize("model", [mixture, images_mixture])
def test_samples_have_the_models_moments(model, sigma):
    """Mean, covariance and component weights within 4.5 standard errors."""
    model, n = model(), 6000
    x = model.sample(n, sigma, seed=2).double().flatten(1)
    d = x.shape[1]
    means, weights = model.means.double(), model.weights.double()
    axes = model.axes if model.axes is not None else torch.eye(d, dtype=F64).expand(len(means), -1, -1)
    within = axes @ torch.diag_embed(model.variances.double() + sigma**2) @ axes.mT
    mean = (weights[:, None] * means).sum(0)
    second = (weights[:, None, None] * (within + means[:, :, None] * means[:, None])).sum(0)
    assert torch.allclose(mean, model.mean.double().flatten(), atol=1e-6)
    products = (x[:, :, None] * x[:, None]).flatten(1)
    for values, expected in ((x, mean), (products, second.flatten())):
        assert ((values.mean(0) - expected).abs() / (values.std(0) / n**0.5)).max() < 4.5


def test_sample_takes_one_level_per_row_and_rows_are_named():
    model, sigma = mixture(), torch.linspace(0, 3, 50)
    x = model.sample(50, sigma)
    assert torch.equal(model.sample(50, sigma)[:7], model.sample(7, sigma[:7]))
    assert not torch.equal(model.sample(50, sigma, seed=1), x)
    assert model.sample(2000, torch.tensor(100.0)).std() == pytest.approx(100, rel=0.05)


def test_mixture_computes_in_its_means_dtype_and_answers_in_the_xs():
    means = torch.tensor([[0.5, 1.0], [0.0, 1.0]], dtype=F64)
    model, sigma = GaussianMixture(means, torch.tensor([0.01, 0.02]), torch.ones(2)), torch.tensor(0.3)
    x = torch.rand(4, 2)
    assert model(x, sigma).dtype == torch.float32 and model(x.double(), sigma).dtype == F64
    assert torch.equal(model(x, sigma), model(x.double(), sigma).float())
    assert model.log_prob(x, sigma).dtype == torch.float32
    assert GaussianMixture(torch.tensor([[0], [1]]), torch.ones(2), torch.ones(2)).means.dtype == F64


@pytest.mark.parametrize(
    ("means", "scales", "weights", "message"),
    [
        (torch.zeros(2, 3), torch.ones(3), torch.ones(2), r"scales must have shape \(2,\) or \(2, 3, 3\), not \(3,\)"),
        (torch.zeros(2, 3), torch.ones(2), torch.ones(3), "weights must be 2 numbers >= 0"),
        (torch.zeros(2, 3), torch.ones(2), torch.tensor([1.0, -1.0]), "weights must be 2 numbers >= 0"),
        (torch.zeros(2, 3), torch.ones(2), torch.zeros(2), "positive sum"),
        (torch.zeros(2, 3), torch.tensor([1.0, -1.0]), torch.ones(2), "standard deviations >= 0"),
        (torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]]), torch.ones(1), "symmetric"),
        (torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]), torch.ones(1), "positive semi-definite"),
    ],
)
def test_mixture_refuses(means, scales, weights, message):
    with pytest.raises(UserError, match=message):
        GaussianMixture(means, scales, weights)


# Finite data sets


def data(k=400, shape=(3, 4, 4), dtype=torch.float32):
    return torch.rand(k, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def noisy(images, sigma, n=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    picked = images[torch.randint(len(images), (n,), generator=generator)]
    return picked + sigma * torch.randn(picked.shape, generator=generator)


def softmax_mean(images, x, sigma):
    """E[x0 | x] and log p(x) in float64, from differences of pixels."""
    squared = ((x.double()[:, None] - images.double()) ** 2).flatten(2).sum(2)
    d, logits = images[0].numel(), -squared / (2 * sigma**2)
    log_p = logits.logsumexp(1) - math.log(len(images)) - d / 2 * math.log(2 * math.pi * sigma**2)
    return torch.einsum("bk,kd->bd", logits.softmax(1), images.double().flatten(1)).reshape(x.shape), log_p


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.3, 1.0, 5.0, 50.0])
def test_empirical_denoiser_is_the_softmax_of_brute_force(sigma):
    """On both sides of the number of images up to which only the nearest are looked at."""
    images = data()
    model, x = EmpiricalData(images), noisy(images, sigma)
    mean, log_p = softmax_mean(images, x, sigma)
    assert (model(x, torch.tensor(sigma)).double() - mean).abs().max() < 2e-5
    assert torch.allclose(model.log_prob(x, torch.tensor(sigma)).double(), log_p, rtol=1e-5, atol=2e-2)
    double = EmpiricalData(images.double())
    sigma = torch.tensor(sigma, dtype=F64)
    assert (double(x.double(), sigma) - mean).abs().max() < 1e-9
    assert torch.allclose(double.log_prob(x.double(), sigma), log_p, rtol=1e-9, atol=1e-7)


def test_empirical_takes_one_level_per_row():
    images, sigma = data(), torch.logspace(-2, 1.5, 12)
    x = noisy(images, sigma.reshape(-1, 1, 1, 1))
    y = EmpiricalData(images)(x, sigma)
    rows = [EmpiricalData(images)(x[i : i + 1], sigma[i]) for i in range(12)]
    assert torch.equal(y, torch.cat(rows))


@pytest.mark.parametrize("k", [1, 5, 400])
def test_density_at_many_levels(k):
    """Each level that is kept is exact, each that is dropped lies e^30 below the largest."""
    images = data(k, dtype=F64)
    model, levels = EmpiricalData(images), log_levels(50.0, 0.01)
    kept = 0
    for sigma in (0.01, 0.2, 1.0, 30.0):
        x = noisy(images.float(), sigma, n=3).double()
        got = model.log_prob_levels(x, levels)
        exact = torch.stack([softmax_mean(images, x, s.item())[1] for s in levels], 1)
        finite = torch.isfinite(got)
        assert (finite.sum(1) > 0).all() and finite.gather(1, exact.argmax(1, keepdim=True)).all()
        assert torch.allclose(got[finite], exact[finite], rtol=1e-9, atol=1e-6)
        assert (exact - exact.amax(1, keepdim=True))[~finite].max() < -30
        assert (got[~finite] == -math.inf).all()
        kept += finite.float().mean().item() / 4
    assert kept < 0.6  # or nothing would be saved


def test_density_at_many_levels_in_float32_is_the_same_posterior():
    images, levels = data(), log_levels(50.0, 0.01)
    for sigma in (0.02, 0.5, 5.0):
        x = noisy(images, sigma, n=4)
        got = EmpiricalData(images).log_prob_levels(x, levels).softmax(1)
        exact = EmpiricalData(images.double()).log_prob_levels(x.double(), levels).softmax(1)
        assert (got - exact).abs().sum(1).max() < 2e-2


@pytest.mark.parametrize("what", ["denoiser", "log_prob", "log_prob_levels"])
def test_empirical_bits_do_not_depend_on_the_other_rows(what):
    images, sigma = data(), torch.logspace(-2, 1.5, 100)
    x = noisy(images, sigma.reshape(-1, 1, 1, 1), n=100)[
        torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ]
    levels = log_levels(50.0, 0.01, 100)

    def answer(rows):
        model = EmpiricalData(images)
        if what == "log_prob_levels":
            return model.log_prob_levels(x[rows], levels)
        return (model if what == "denoiser" else model.log_prob)(x[rows], sigma[rows])

    whole = answer(torch.arange(100))
    for rows in (torch.arange(1), torch.arange(7), torch.arange(64), torch.tensor([93, 4, 50])):
        assert torch.equal(answer(rows), whole[rows]), len(rows)


def test_mixture_bits_do_not_depend_on_the_other_rows():
    model, sigma = images_mixture(50.0), torch.logspace(-2, 1.5, 100)
    x, levels = model.sample(100, sigma), log_levels(50.0, 0.01, 100)
    whole = model(x, sigma), model.log_prob(x, sigma), model.log_prob_levels(x, levels)
    for n in (1, 7, 64):
        some = model(x[:n], sigma[:n]), model.log_prob(x[:n], sigma[:n]), model.log_prob_levels(x[:n], levels)
        assert all(torch.equal(a, b[:n]) for a, b in zip(some, whole, strict=True)), n


@pytest.mark.parametrize("model", [mixture, images_mixture])
def test_mixture_density_at_many_levels(model):
    model, levels = model(), log_levels(10.0, 0.01, 20)
    x = model.sample(5, 1.0)
    expected = torch.stack([model.log_prob(x, s) for s in levels], 1)
    assert torch.allclose(model.log_prob_levels(x, levels).to(x), expected, rtol=1e-6, atol=1e-6)


def test_distances_are_shared_but_never_those_of_another_x():
    """Asked again for the same tensor, nothing is computed; changed in place, everything is."""
    images, calls = data(), []
    model, sigma = EmpiricalData(images), torch.tensor(0.3)
    inner = model._squared_distances
    model._squared_distances = lambda x: calls.append(1) or inner(x)
    x = noisy(images, 0.3)
    first = model(x, sigma)
    model.log_prob(x, sigma)
    model.log_prob_levels(x, log_levels(50.0, 0.01, 50))
    assert len(calls) == 1
    x += 0.1
    fresh = EmpiricalData(images)
    assert torch.equal(model(x, sigma), fresh(x.clone(), sigma)) and not torch.equal(model(x, sigma), first)
    assert torch.equal(model.log_prob(x.clone(), sigma), fresh.log_prob(x, sigma))
    with torch.inference_mode():  # such tensors do not tell when they change
        y = noisy(images, 0.3)
        before = model(y, sigma)
        y += 0.1
        assert torch.equal(model(y, sigma), fresh(y.clone(), sigma)) and not torch.equal(model(y, sigma), before)


MEMORY = """
import resource, torch
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.noise_level import log_levels
from dmcmc_core.ranges import outside
torch.set_num_threads(1)
images = torch.rand({k}, 3, 32, 32, generator=torch.Generator().manual_seed(0))
model, levels = EmpiricalData(images), log_levels(50.0, 0.01)
x = images[:256] + torch.linspace(0.01, 3, 256).reshape(-1, 1, 1, 1) * torch.randn(256, 3, 32, 32)
model(x[:2], torch.tensor(1.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model(x, torch.linspace(0.01, 3, 256))
model.log_prob_levels(x, levels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_is_bounded():
    """256 images against 4,000 of 3,072 dimensions and 1,000 levels: the full table of one would be 4 GB."""
    run = subprocess.run([sys.executable, "-c", MEMORY.format(k=4000)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400 * 1024


@pytest.mark.parametrize(
    "images",
    [torch.zeros(0, 3), torch.zeros(4), torch.zeros(4, 3, dtype=torch.uint8), torch.full((4, 3), math.nan)],
)
def test_empirical_refuses(images):
    with pytest.raises(UserError, match="images must be floats of shape"):
        EmpiricalData(images)


def test_exact_models_refuse_what_does_not_fit_them():
    empirical = EmpiricalData(torch.rand(5, 1, 2, 2))
    for model, shape in ((mixture(), (3,)), (empirical, (1, 2, 2))):
        x, wrong = torch.zeros(3, *shape), torch.zeros(3, 7)
        for ask in (model, model.log_prob, lambda x, s, m=model: m.log_prob_levels(x, torch.ones(2)), heun_of(model)):
            with pytest.raises(UserError, match=r"x must have shape \(B, .*, not \(3, 7\)"):
                ask(wrong, torch.ones(3))
        with pytest.raises(UserError, match=r"one per row, \(3,\), not \(2,\)"):
            model(x, torch.ones(2))
    with pytest.raises(UserError, match="sigma must be above 0, not 0"):
        empirical(torch.zeros(3, 1, 2, 2), torch.zeros(3))
    with pytest.raises(UserError, match="at least 0, not -1"):
        mixture().sample(-1)


def heun_of(model):
    return lambda x, sigma: integrators.heun(model, x, schedules.karras(3, model.sigma_max, model.sigma_min))


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if torch.is_tensor(t)}
        found = function(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in before:
                self.numbers = max(self.numbers, t.numel())
        return found


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_many_images_are_never_copied_and_answer_the_same_bits(sigma, monkeypatch):
    images = torch.rand(2003, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x, few = noisy(images[:12], sigma), EmpiricalData(images)
    levels = log_levels(50.0, 0.01)
    expected = few(x, torch.tensor(sigma)), few.log_prob_levels(x, levels)
    monkeypatch.setattr("dmcmc_core.analytic._NUMBERS", 1000)
    with Largest() as largest:
        many = EmpiricalData(images)
        answer = many(x, torch.tensor(sigma))
        fingerprint(many)
    assert torch.equal(answer, expected[0]) and torch.equal(many.log_prob_levels(x, levels), expected[1])
    assert largest.numbers <= 1000 * 64, "a thousand images at most, and 12 rows of distances"


def test_images_outside_their_range_are_counted_in_parts(monkeypatch):
    images = torch.zeros(50, 1, 2, 2)
    images[:5] = 3.0
    monkeypatch.setattr("dmcmc_core.ranges.SOME", 7)
    assert outside(images, (0.0, 1.0), 0.5) == 0.1 and outside(images, (0.0, 1.0), 2) == 0.0
    assert outside(torch.full((2, 2), math.nan), (0.0, 1.0), 1) == 0.0 == outside(images[:0], (0.0, 1.0), 1)
    with pytest.raises(UserError, match="without NaN or infinity"):
        EmpiricalData(torch.full((3, 2), -math.inf))
