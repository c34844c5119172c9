"""What once went wrong without a word: training mode, kept graphs, ranges, an interval beside its estimate."""

import functools
import logging
import math

import numpy as np
import pytest
import torch

from dmcmc_core import UserError, dmcmc, gddim, integrators, metrics, schedules
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.data import digits
from dmcmc_core.denoiser import Adapter
from dmcmc_core.linear_sde import make_sde
from dmcmc_core.metrics.comparison import interval
from dmcmc_core.metrics.feature_sets import FeatureSet
from dmcmc_core.runs.make import run

SHAPE = (1, 2, 2)


class Net(torch.nn.Module):
    """A denoiser with dropout."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)

    def forward(self, x, sigma):
        return self.dropout(self.layer(x.flatten(1))).reshape(x.shape)


def adapted(function):
    return Adapter(function, SHAPE, sigma_min=0.01, sigma_max=10.0, mean=torch.zeros(SHAPE))


def closure(net):
    return lambda x, sigma: net(x, sigma)


def bound(net):
    return net.forward


def partial(net):
    return functools.partial(lambda n, x, sigma: n(x, sigma), net)


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, x, sigma):
        return self.net(x, sigma)


GRID = schedules.karras(4, 10.0, 0.01)


# a network that is being trained


@pytest.mark.parametrize("way", [lambda net: net, closure, bound, partial, Holder])
def test_a_network_in_training_is_switched_to_evaluation(way, caplog):
    torch.manual_seed(0)
    net = Net().train()
    model = adapted(way(net))
    x = 10 * torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        one, other = (integrators.heun(model, x, GRID) for _ in range(2))
    assert torch.equal(one, other)
    assert not net.training
    assert caplog.text.count("was in training mode") == 1


def test_a_network_of_the_module_is_found_too():
    scope = {"net": Net().train()}
    exec("def answer(x, sigma):\n    return net(x, sigma)", scope)
    model = adapted(scope["answer"])
    model(torch.zeros(1, *SHAPE), torch.tensor(1.0))
    assert not scope["net"].training


def test_the_same_recipe_gives_the_same_images_again(tmp_path):
    net = Net().train()
    shards = []
    for name in ("one", "two"):
        net.train()
        run(adapted(net), "dpmpp_2m", 4, 8, 0, tmp_path / name, progress=False)
        shards.append(np.load(next((tmp_path / name).glob("shard-*.npz")))["arr_0"])
    assert np.array_equal(*shards)


def test_features_posteriors_and_linear_diffusions_switch_too():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).train()
    images = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    extractor = metrics.Extractor("own", net)
    assert torch.equal(metrics.extract(images, extractor), metrics.extract(images, extractor))
    assert not net.training
    from dmcmc_core.noise_level import ClassifierPosterior

    net.train()
    posterior = ClassifierPosterior(net, torch.tensor([0.1, 1.0, 5.0]))
    assert torch.equal(posterior.log_probs(images), posterior.log_probs(images))
    sde, own = make_sde("VP"), Net().train()
    gddim.sample(sde, lambda u, t: own(u, t), torch.zeros(2, *SHAPE), gddim.times(sde, 3, 2.0))
    assert not own.training


# gradients


@pytest.mark.parametrize("name", list(integrators.INTEGRATORS))
def test_integrators_keep_no_graph_unless_asked(name):
    model = adapted(Net().eval())
    entry = integrators.INTEGRATORS[name]
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    grid = schedules.SCHEDULES[entry.schedule](3, 10.0, 0.01)
    assert not entry(model, x, grid).requires_grad
    if name == "rk45":
        with pytest.raises(UserError, match="keeps no graph"):
            entry(model, x, grid, grad=True)
        return
    kept = entry(model, x.requires_grad_(), grid, grad=True)
    assert kept.requires_grad
    kept.sum().backward()
    assert x.grad.isfinite().all()
    with torch.no_grad():
        assert not entry(model, x, grid, grad=True).requires_grad


def test_chains_keep_no_graph():
    model = adapted(Net().eval())
    from dmcmc_core.chains import ChainSettings

    settings = ChainSettings(chains=4, n_skip=2)
    posterior = dmcmc.calibrated(model, settings, 0)
    assert not posterior.expected.requires_grad
    batches = dmcmc.denoising_mcmc(model, posterior, integrators.INTEGRATORS["heun"], 2, settings)
    images, window, chain = next(batches)
    assert not any(t.requires_grad for t in (images, window.start.x, chain.state.x))


# ranges


def test_images_of_another_range_are_refused_and_uint8_is_taken():
    reference = metrics.make_reference(digits("heldout").images, "random-conv", "digits-heldout")
    images = digits("train").images[:300]
    whole = metrics.measure(images, reference)["frechet"]
    assert metrics.measure((images * 255).round().to(torch.uint8), reference)["frechet"] == pytest.approx(whole)
    for wrong in (2 * images - 1, 255 * images):
        with pytest.raises(UserError, match=r"images must be uint8, or floats in \[0, 1\], and these go from"):
            metrics.measure(wrong, reference)
    a_little = images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(metrics.measure(a_little, reference)["frechet"])


def test_uint8_images_are_no_others_in_the_cache():
    images = (digits("train").images[:4] * 255).round()
    contents = [metrics.content(some)["sha256"] for some in (images / 255, images.to(torch.uint8))]
    assert contents[0] == contents[1]
    assert metrics.content((images / 2).round().to(torch.uint8))["sha256"] != contents[0]


def test_a_data_set_outside_its_range_is_refused():
    images = digits("train").images[:4]
    with pytest.raises(UserError, match=r"outside data_range=\(0.0, 1.0\), they go from 0 to 255"):
        EmpiricalData(images * 255)
    assert EmpiricalData(images * 255, data_range=(0.0, 255.0), sigma_max=1e4).data_range == (0.0, 255.0)


def test_a_cast_that_clips_much_is_said(tmp_path, caplog):
    wide = digits("train").images[:64] * 2 - 1

    def model(**about):
        exact = EmpiricalData(wide, data_range=(-1.0, 1.0))
        one = Adapter(lambda x, sigma: exact(x, sigma), (1, 8, 8), **about)
        one.net = torch.nn.Linear(1, 1)  # what a run is named by
        return one

    with caplog.at_level(logging.WARNING):
        run(model(), "dpmpp_2m", 6, 128, 0, tmp_path / "wrong", progress=False)
    assert caplog.text.count("% of all numbers lie outside the data range 0 to 1") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(model(data_range=(-1.0, 1.0)), "dpmpp_2m", 6, 128, 0, tmp_path / "right", progress=False)
    assert not caplog.text


# the interval


def described(n, seed, scale=1.0):
    x = scale * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return FeatureSet(x)


@pytest.mark.parametrize(("scale", "wide"), [(1.0, 1.5), (1.3, 1.1)])
def test_the_interval_covers_the_expected_distance_and_holds_the_estimate(scale, wide):
    """Of 60 sets of exact draws about 95 % have an interval around the mean distance of such sets, and about as wide.

    At equal distributions it is too wide, as the distance cannot fall below 0; at others by what resamples repeat.
    Bounds are 4.5 standard errors away: of 60 widths (3 %), of the spread of 400 distances (3.5 %), of the share.
    """
    n, trials = 100, 60
    mu, cov = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    nothing = metrics.Extractor("none", torch.nn.Identity())
    reference = metrics.Reference("exact", nothing, None, None, mu, cov, None, None, 3)
    sets = [described(n, seed, scale) for seed in range(400)]
    estimates = [metrics.frechet_distance(*one.statistics, mu, cov) for one in sets]
    expected, covered, widths = np.mean(estimates), 0, []
    for one, estimate in zip(sets[:trials], estimates[:trials], strict=True):
        found = interval(one, reference, 50)
        assert found["low"] <= estimate <= found["high"]
        covered += found["low"] <= expected <= found["high"]
        widths.append(found["high"] - found["low"])
    assert covered / trials >= 0.82
    assert np.mean(widths) / (2 * 1.96 * np.std(estimates)) == pytest.approx(wide, rel=0.21)


def test_the_error_of_kid_is_that_of_its_draws():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2000, 4, generator=generator)
    values, errors = [], []
    for _ in range(60):
        x = 0.3 + torch.randn(200, 4, generator=generator)
        values.append(metrics.kid(x, y))
        errors.append(metrics.kid_error(x, y))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)
    with pytest.raises(UserError, match="groups must be"):
        metrics.kid_error(torch.zeros(3, 2), y[:, :2])


# what blocks cost


def test_rows_of_images_and_of_padding_are_both_counted_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        manifest = run("digits", "euler", 5, 4, 0, tmp_path / "few", progress=False)
    assert (sum(manifest["rows"].values()), manifest["rows_of_padding"]) == (20, 5 * 60)
    assert "20 rows of the network were of images, 300 only filled its blocks of 64: block=4 leaves them" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        manifest = run("digits", "euler", 5, 4, 0, tmp_path / "four", {"block": 4}, progress=False)
        whole = run("digits", "euler", 5, 64, 0, tmp_path / "whole", progress=False)
    assert manifest["rows_of_padding"] == whole["rows_of_padding"] == 0
    assert not caplog.text
