"""The flow of the data's Gaussian, exact: on Gaussians, beside DPM-Solver++(2M), and on what no Gaussian is."""

import math

import numpy as np
import pytest
import torch
from exact import F64, digits_net, dop853_flow, gaussian, gaussian_flow, images_mixture, mixture

from dmcmc_core import UserError, integrators, schedules
from dmcmc_core.analytic import EmpiricalData, GaussianMixture
from dmcmc_core.data import digits
from dmcmc_core.denoiser import count_nfe
from dmcmc_core.integrators import Spectrum, dpmpp_2m, gaussian_split
from dmcmc_core.linear_sde import dct
from dmcmc_core.streams import Streams

START, END = 10.0, 0.1


# exact where the data are Gaussian


@pytest.mark.parametrize("end", [END, 0.0])
@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-6)])
def test_a_gaussian_is_integrated_exactly_in_two_calls(dtype, tolerance, jump, end):
    exact = gaussian()
    model = count_nfe(exact if dtype == F64 else GaussianMixture(*single(exact), torch.ones(1), sigma_max=START))
    x = exact.sample(6, START, seed=1)
    sigmas = torch.tensor([START, *([4.0] if jump else []), 0.7, end], dtype=F64)
    y = gaussian_split(model, x.to(dtype), sigmas, covariance=Spectrum.of_model(exact), jump=jump)
    assert model.calls == 2 and y.dtype == dtype
    assert (y - gaussian_flow(exact, x, START, end)).square().mean().sqrt() < tolerance
    assert (dpmpp_2m(exact, x, sigmas) - gaussian_flow(exact, x, START, end)).abs().max() > 0.01


def single(model):
    c = model.axes @ torch.diag_embed(model.variances) @ model.axes.mT
    return model.means.float(), c.float()


def test_frequencies_of_a_gaussian_are_its_modes():
    """A Gaussian whose variance each coefficient of the DCT has for itself."""
    variances = torch.tensor([3.0, 0.5, 0.2, 0.01], dtype=F64)
    basis = dct(torch.eye(4, dtype=F64).reshape(4, 1, 2, 2)).reshape(4, 4)
    mean = torch.full((1, 1, 2, 2), 0.4, dtype=F64)
    model = GaussianMixture(mean, (basis @ variances.diag() @ basis.T)[None], torch.ones(1), sigma_max=START)
    x = model.sample(5, START)
    y = gaussian_split(model, x, torch.tensor([START, 1.0, 0.0]), covariance=Spectrum(mean[0], variances))
    exact = gaussian_flow(model, x.flatten(1), START, 0.0).reshape(x.shape)
    assert (y - exact).abs().max() < 1e-12


# what it is without a covariance, and its order


@pytest.mark.parametrize("axes", ["dct", "eigen"])
def test_without_variances_it_is_dpmpp_2m(axes):
    model = images_mixture(START)
    x, mean = model.sample(7, START).double(), model.mean
    basis = None if axes == "dct" else Spectrum.of_model(model).axes
    nothing = Spectrum(mean, torch.zeros(4), basis)
    sigmas = schedules.karras(6, START, 0.01)
    y = gaussian_split(model, x, sigmas, covariance=nothing)
    assert (y - dpmpp_2m(model, x, sigmas)).abs().max() < 1e-6  # the model answers in float32


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_order_is_two_where_the_covariance_is_another_s(factor, jump):
    """From a level at which the mixture is no Gaussian; a jump that is refined with the grid is of order 2 as well."""
    model, start = mixture(), 3.0
    x = model.sample(6, start, seed=1)
    exact = dop853_flow(model, x, start, END)
    whole = Spectrum.of_model(model)
    some = Spectrum(whole.mean, factor * whole.variances, whole.axes)
    counts, errors = [80, 160, 320, 640], []
    for n in counts:
        sigmas = schedules.karras(n + 1, start, END)[:-1]
        if jump:
            sigmas = torch.cat([sigmas[:1], sigmas[:1] - 1 / n**2, sigmas[1:]])
        errors.append((gaussian_split(model, x, sigmas, covariance=some, jump=jump) - exact).abs().max().item())
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - 2) < 0.2, errors
    assert errors[-1] < 1e-4


def test_a_step_to_zero_is_the_denoised_image_and_what_the_gaussian_has_more():
    model, covariance = mixture(), Spectrum.of_model(mixture())
    x, sigma = model.sample(4, 2.0), torch.tensor(2.0, dtype=F64)
    d, y = model(x, sigma), (x - covariance.mean) @ covariance.axes
    share = covariance.variances / (covariance.variances + 4)
    expected = d + (y * (share.sqrt() - share)) @ covariance.axes.T
    got = gaussian_split(model, x, torch.tensor([2.0, 0.0], dtype=F64), covariance=covariance)
    assert torch.allclose(got, expected, rtol=0, atol=1e-13)


# levels, rows, cost


@pytest.mark.parametrize("jump", [False, True])
def test_levels_per_sample_rows_and_calls(jump):
    model = count_nfe(images_mixture(START))
    covariance = Spectrum.of_model(images_mixture())
    start = torch.logspace(-1, 1, 70)
    x = model.mean + start.reshape(-1, 1, 1, 1) * Streams(0, "x", range(70))(torch.zeros(70, 1, 2, 2))
    sigmas = schedules.karras(5, start, 0.01)

    def split(rows, sigmas):
        return gaussian_split(model, x[rows], sigmas, covariance=covariance, jump=jump)

    y = split(slice(None), sigmas)
    assert model.calls == 5 - jump and torch.isfinite(y).all()
    for rows in ([3], [69, 0, 33]):
        assert torch.equal(split(rows, sigmas[rows]), y[rows])
    assert torch.equal(split([7, 8], sigmas[7]), split([7, 8], sigmas[7].expand(2, -1)))


def test_callback_sees_every_step_and_the_callers_tensors_are_left_alone():
    model, seen = images_mixture(), []
    x, sigmas = model.sample(2, 4.0), schedules.karras(3, 4.0, 0.01)
    before, covariance = x.clone(), Spectrum.of_model(model)
    y = gaussian_split(model, x, sigmas, covariance=covariance, callback=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(seen[-1][3], y) and torch.equal(x, before)


def test_it_is_nearer_to_the_accurate_images_of_the_digits():
    """At 8 calls, by the training images' covariance; nearer still when the Gaussian makes the first step."""
    model = digits_net()
    if model is None:
        pytest.skip("the digits net is not there")
    x = model.mean + START * Streams(5, "image", range(32))(torch.zeros(32, *model.shape))
    grid = schedules.karras(8, START, 0.01)
    jumping = torch.cat([torch.tensor([START]), schedules.karras(8, START / 4, 0.01)])
    with torch.no_grad():
        truth = integrators.unipc(model, x, schedules.karras(40, START, 0.01))

        def error(y):
            return (y - truth).square().mean().sqrt().item()

        plain = error(dpmpp_2m(model, x, grid))
        for basis in ("eigen", "dct"):
            covariance = Spectrum.of_images(digits("train").images, basis)
            split = error(gaussian_split(model, x, grid, covariance=covariance))
            jumped = error(gaussian_split(model, x, jumping, covariance=covariance, jump=True))
            assert jumped < 0.8 * plain and split < plain


# spectra


def test_a_spectrum_is_the_covariance_of_what_it_was_made_of():
    model = mixture()
    draws = model.sample(200_000)
    of_images, of_model = Spectrum.of_images(draws), Spectrum.of_model(model)
    for one in (of_images, of_model):
        c = one.axes @ one.variances.diag() @ one.axes.T
        assert (c - torch.cov(draws.T)).abs().max() < 0.02
        assert (one.mean - draws.mean(0)).abs().max() < 0.01
    same = Spectrum.of_model(EmpiricalData(draws[:50].reshape(50, 3)))
    assert torch.allclose(same.variances, Spectrum.of_images(draws[:50]).variances)


@pytest.mark.parametrize("basis", ["eigen", "dct"])
def test_modes_go_back_to_images_and_have_their_variances(basis):
    images = digits("train").images.double()
    one = Spectrum.of_images(images, basis)
    modes, back = one.transforms(images)
    y = modes(images)
    assert torch.allclose(back(y), images, rtol=0, atol=1e-12)
    assert torch.allclose(y.square().mean(0), one.variances, rtol=0, atol=1e-12)
    assert one.variances.sum().item() == pytest.approx((images - images.mean(0)).square().sum((1, 2, 3)).mean().item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spectrum(torch.zeros(3), torch.ones(2)), r"variances must be one for each of the mean's 3 .* \(2,\)"),
        (lambda: Spectrum(torch.zeros(2, 2), torch.tensor([1.0, -2.0, 0, 0])), "variances must be at least 0, not -2"),
        (lambda: Spectrum(torch.zeros(2, 2), torch.tensor([1.0, math.nan, 0, 0])), "variances must be real, finite"),
        (lambda: Spectrum(torch.zeros(3), torch.ones(3)), "the DCT needs images of two dimensions"),
        (lambda: Spectrum(torch.zeros(3), torch.ones(3), torch.eye(2)), r"axes must have shape \(3, 3\)"),
        (lambda: Spectrum(torch.zeros(2), torch.ones(2), torch.ones(2, 2)), "axes must be orthonormal"),
        (lambda: Spectrum.of_covariance(torch.zeros(3), torch.eye(2)), r"covariance must have shape \(3, 3\)"),
        (lambda: Spectrum.of_covariance(torch.zeros(2), torch.tensor([[1.0, 1], [0, 1]])), "must be symmetric"),
        (lambda: Spectrum.of_covariance(torch.zeros(2), -torch.eye(2)), "no negative variance, but has -1"),
        (lambda: Spectrum.of_images(torch.zeros(1, 1, 2, 2)), r"N at least 2, not \(1, 1, 2, 2\)"),
        (lambda: Spectrum.of_images(torch.zeros(5, 1, 2, 2), "fft"), "basis must be one of 'eigen', 'dct', not 'fft'"),
        (lambda: Spectrum.of_images(torch.zeros(5, 4), "dct"), "take basis='eigen'"),
        (lambda: Spectrum.of_model(torch.nn.Identity()), "does not know its data's covariance"),
    ],
)
def test_spectra_that_are_none(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs covariance=Spectrum.of_images\(images\), or .* not NoneType"),
        ({"covariance": torch.eye(4)}, "needs covariance=Spectrum.* not Tensor"),
        ({"covariance": Spectrum(torch.zeros(2, 2), torch.ones(4))}, r"x must have shape \(B, 2, 2\)"),
        ({"covariance": Spectrum(torch.zeros(1, 2, 2), torch.ones(4)), "jump": "yes"}, "jump must be"),
    ],
)
def test_options_that_cannot_be(options, message):
    model = images_mixture()
    x, calls = model.sample(2, 4.0), count_nfe(model)
    with pytest.raises(UserError, match=message):
        gaussian_split(calls, x, schedules.karras(3, 4.0, 0.01), **options)
    assert calls.calls == 0


def test_a_jump_needs_a_level_to_jump_to_and_the_grid_is_checked():
    model, covariance = images_mixture(), Spectrum.of_model(images_mixture())
    x = model.sample(2, 4.0)
    with pytest.raises(UserError, match="needs a level to jump to"):
        gaussian_split(model, x, torch.tensor([4.0, 0.0]), covariance=covariance, jump=True)
    with pytest.raises(UserError, match="strictly descend"):
        gaussian_split(model, x, torch.tensor([1.0, 2.0, 0.0]), covariance=covariance)
