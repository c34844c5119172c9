"""Networks of one's own in variance-preserving form as models: exact answers, levels, times, bits, bad input."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from exact import F64, images_mixture, mixture

from dmcmc_core import UserError, integrators, load_model, schedules
from dmcmc_core.checkpoints import load_network
from dmcmc_core.checkpoints.diffusers import PREDICTIONS, Unet
from dmcmc_core.denoiser import Adapter, InBlocks, epsilon
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.nets.shipped import NETS
from dmcmc_core.schedules import vp_time

KEPT = (1 - torch.linspace(1e-3, 0.1, 100, dtype=F64)).cumprod(0)
SIGMAS = ((1 - KEPT) / KEPT).sqrt()


def answer(model, predicts, x, sigma):
    """What a network that is exact would say of alpha x at sigma, by the formulas of its prediction."""
    alpha = (1 + sigma**2).rsqrt()[:, None]
    x = x / alpha
    clean, noise = model(x, sigma), epsilon(model, x, sigma)
    return {"x0": clean, "epsilon": noise, "v": alpha * noise - sigma[:, None] * alpha * clean}[predicts]


def by_index(predicts, model=None, seen=None):
    """An exact network of discrete times, which refuses a time that it was not trained at."""
    model = model or mixture()

    def net(x, t):
        if seen is not None:
            seen.append(t)
        nearest = t.round().long()
        assert (t - nearest).abs().max() < 1e-6
        return answer(model, predicts, x, SIGMAS[nearest])

    return net


@pytest.mark.parametrize("predicts", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("quantize", [True, False])
def test_a_discrete_network_is_the_exact_denoiser_at_its_levels(predicts, quantize):
    exact, seen = mixture(), []
    model = Adapter.from_ddpm(by_index(predicts, seen=seen), KEPT, predicts=predicts, shape=(3,), quantize=quantize)
    assert (model.sigma_min, model.sigma_max, model.data_range) == (SIGMAS[0].item(), SIGMAS[-1].item(), (-1.0, 1.0))
    x = torch.cat([exact.sample(1, sigma.item(), seed=i) for i, sigma in enumerate(SIGMAS)])
    torch.testing.assert_close(model(x, SIGMAS), exact(x, SIGMAS), rtol=1e-5, atol=1e-5)
    assert seen[-1].dtype == (torch.int64 if quantize else F64)
    assert torch.equal(seen[-1].round(), torch.arange(100).to(seen[-1]))


def test_times_between_levels():
    seen = []
    sigma = torch.stack([SIGMAS[30] ** 0.75 * SIGMAS[31] ** 0.25, SIGMAS[30] ** 0.25 * SIGMAS[31] ** 0.75])
    for quantize in (False, True):
        Adapter.from_ddpm(lambda x, t: seen.append(t) or x, KEPT, shape=(3,), quantize=quantize)(
            torch.ones(2, 3), sigma
        )
    torch.testing.assert_close(seen[0], torch.tensor([30.25, 30.75]))
    assert seen[1].tolist() == [30, 31]


@pytest.mark.parametrize("predicts", ["epsilon", "v", "x0"])
def test_a_network_of_times_in_0_1_is_the_exact_denoiser(predicts):
    exact = mixture()

    def net(x, t):
        t = t / 999
        return answer(exact, predicts, x, torch.expm1(0.1 * t + 9.95 * t**2).sqrt())

    model = Adapter.from_vp(net, predicts=predicts, shape=(3,), unit=999.0, sigma_max=10.0)
    sigma = torch.tensor([model.sigma_min, 0.3, 2.0, 10.0], dtype=F64)
    assert vp_time(sigma[0]) == pytest.approx(1e-3)
    x = torch.cat([exact.sample(1, level.item(), seed=i) for i, level in enumerate(sigma)])
    torch.testing.assert_close(model(x, sigma), exact(x, sigma), rtol=1e-9, atol=1e-9)


def test_an_adapter_takes_v():
    exact, sigma = mixture(), torch.linspace(0.1, 5, 6, dtype=F64)
    model = Adapter(lambda x, s: answer(exact, "v", x, s), (3,), predicts="v")
    x = exact.sample(6, 2.0)
    torch.testing.assert_close(model(x, sigma), exact(x, sigma), rtol=1e-10, atol=1e-10)
    assert torch.equal(model(x, torch.tensor(0.7, dtype=F64)), model(x, torch.full((6,), 0.7, dtype=F64)))


class Small(torch.nn.Module):
    """An untrained network with dropout, which learns variances too if asked."""

    def __init__(self, twice=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = torch.nn.Conv2d(1, 1 + twice, 3, padding=1), torch.nn.Dropout(0.5)

    def forward(self, x, t):
        return self.dropout(self.layer(x) + 0.001 * t[:, None, None, None])


def test_answers_of_twice_the_channels_and_of_diffusers():
    net, x = Small(twice=True).eval(), torch.randn(4, 1, 2, 2)
    whole = Adapter.from_ddpm(lambda x, t: net(x, t)[:, :1], KEPT, shape=(1, 2, 2))(x, SIGMAS[40])
    assert torch.equal(Adapter.from_ddpm(net, KEPT, shape=(1, 2, 2))(x, SIGMAS[40]), whole)
    wrapped = Adapter.from_ddpm(lambda x, t: SimpleNamespace(sample=net(x, t)), KEPT, shape=(1, 2, 2))
    assert torch.equal(wrapped(x, SIGMAS[40]), whole)


@pytest.mark.parametrize("way", [lambda net: net, lambda net: lambda x, t: net(x, t)])
def test_a_network_in_training_is_switched_to_evaluation(way, caplog):
    net, logger = Small().train(), logging.getLogger("dmcmc_core")
    logger.addHandler(caplog.handler)
    try:
        model = Adapter.from_ddpm(way(net), KEPT, shape=(1, 2, 2))
        model(torch.ones(2, 1, 2, 2), SIGMAS[40])
    finally:
        logger.removeHandler(caplog.handler)
    assert not net.training
    assert caplog.text.count("the network, a Small, was in training mode") == 1


def test_labels_reach_the_network():
    seen = []
    model = Adapter.from_ddpm(lambda x, t, y: seen.append(y) or x, KEPT, shape=(3,), classes=4)
    model(torch.ones(2, 3), SIGMAS[40], torch.tensor([1, 3]))
    assert seen[0].tolist() == [1, 3]


def test_runs_are_named_by_all_that_makes_the_model():
    net, other = Small().eval(), KEPT.clone()
    other[50] *= 0.999
    ways = [{}, {"predicts": "v"}, {"quantize": True}, {"sigma_max": 2.0}]
    names = {fingerprint(Adapter.from_ddpm(net, KEPT, shape=(1, 2, 2), **way)) for way in ways}
    names.add(fingerprint(Adapter.from_ddpm(net, other, shape=(1, 2, 2))))
    names.add(fingerprint(Adapter.from_vp(net, shape=(1, 2, 2))))
    assert len(names) == 6
    assert fingerprint(Adapter(net, (1, 2, 2))) != fingerprint(Adapter(net, (1, 2, 2), predicts="epsilon"))
    with pytest.raises(UserError, match="this one has no weights"):
        fingerprint(Adapter.from_ddpm(lambda x, t: net(x, t), KEPT, shape=(1, 2, 2)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_network_of_diffusers_samples_the_bits_of_its_folder(prediction, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from test_diffusers import saved, unet

    net, scheduler = unet("ddpm"), diffusers.DDPMScheduler(prediction_type=prediction)
    net = net.to(memory_format=torch.channels_last)
    read = load_model(saved(tmp_path, net, scheduler))
    predicts = {"v_prediction": "v", "sample": "x0"}.get(prediction, prediction)
    model = InBlocks(Adapter.from_ddpm(net, scheduler.alphas_cumprod, predicts=predicts, shape=(3, 8, 8)))
    assert (model.sigma_min, model.sigma_max, model.data_range) == (read.sigma_min, read.sigma_max, read.data_range)
    x = 100 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grid = schedules.karras(4, 100.0, read.sigma_min)
    assert torch.equal(integrators.dpmpp_2m(model, x, grid), integrators.dpmpp_2m(read, x, grid))


class Config(dict):
    """A configuration as diffusers has them: keys are attributes too."""

    __getattr__ = dict.get


class Stub(Small):
    """A network that answers as those of diffusers do, of learned variances."""

    config = Config(in_channels=1, sample_size=4, num_class_embeds=None)

    def forward(self, x, t, labels=None, return_dict=True):
        answer = super().forward(x, t)
        return SimpleNamespace(sample=answer) if return_dict else (answer,)


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "x0")])
def test_what_reads_folders_of_diffusers_answers_with_the_same_bits(theirs, ours):
    net, x = Stub(twice=True).eval(), 3 * torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    read = Unet(net, PREDICTIONS[theirs], SIGMAS)
    model = Adapter.from_ddpm(net, KEPT, predicts=ours, shape=(1, 4, 4))
    for sigma in (0.05, 0.7, 5.0):
        assert torch.equal(model(x, torch.tensor(sigma)), read(x, torch.tensor(sigma)))


def test_a_network_of_a_file_samples_the_bits_of_its_reader():
    read, net = load_model("digits-ddpm"), load_network(NETS / "digits-ddpm.safetensors")
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
    net = net.to(memory_format=torch.channels_last)  # as the reader lays it out: kernels then sum in the same order
    model = InBlocks(Adapter.from_ddpm(net, kept, shape=read.shape))
    assert (model.sigma_min, model.sigma_max) == pytest.approx((read.sigma_min, read.sigma_max), rel=1e-12)
    x = 100 * torch.randn(3, *read.shape, generator=torch.Generator().manual_seed(0))
    grid = schedules.karras(4, 100.0, 0.02)
    assert torch.equal(integrators.dpmpp_2m(model, x, grid), integrators.dpmpp_2m(read, x, grid))


def test_zero_terminal_noise_is_left_out():
    kept = torch.cat([KEPT, KEPT.new_zeros(1)])
    assert Adapter.from_ddpm(lambda x, t: x, kept, shape=(3,)).sigma_max == SIGMAS[-1].item()


def test_alphas_that_are_no_product_are_told(caplog):
    logger = logging.getLogger("dmcmc_core")
    logger.addHandler(caplog.handler)
    try:
        Adapter.from_ddpm(lambda x, t: x, 1 - torch.linspace(1e-4, 0.02, 1000), shape=(3,))
    finally:
        logger.removeHandler(caplog.handler)
    assert "alphas_cumprod ends at 0.98" in caplog.text and "(1 - betas).cumprod(0)" in caplog.text


@pytest.mark.parametrize(
    ("kept", "more", "message"),
    [
        (torch.linspace(1e-4, 0.02, 1000), {}, "must fall with time, as .* is followed by .* at time 1$"),
        ([0.9, 0.5, 0.5], {}, "must fall with time, .* but 0.5 is followed by 0.5 at time 2"),
        ([1.0, 0.5, 0.1], {}, r"must lie within \(0, 1\), not be 1 at time 0"),
        ([0.9, -0.5, -0.7], {}, r"must lie within \(0, 1\), not be -0.5 at time 1"),
        ([0.9, math.nan, 0.1], {}, r"must lie within \(0, 1\), not be nan at time 1"),
        (KEPT[:, None], {}, r"must have shape \(T,\), one number for each time, not \(100, 1\)"),
        ([0.5, 0.0], {}, "must have two numbers above 0 at least, not 1"),
        ("linear", {}, r"must be a list of numbers or a tensor \(T,\), not a str"),
        (None, {}, r"must be a list of numbers or a tensor \(T,\), not a NoneType"),
        (KEPT, {"predicts": "noise"}, "predicts must be one of 'epsilon', 'v', 'x0', not 'noise'"),
        (KEPT, {"quantize": "yes"}, "quantize must be true or false, not 'yes'"),
        (KEPT, {"data_range": (1, 1)}, "data_range must be"),
    ],
)
def test_bad_input_is_one_sentence(kept, more, message):
    with pytest.raises(UserError, match=message) as error:
        Adapter.from_ddpm(lambda x, t: x, kept, **{"shape": (3,)} | more)
    assert "\n" not in str(error.value)


def test_more_bad_input():
    with pytest.raises(UserError, match="shape is missing"):
        Adapter.from_ddpm(lambda x, t: x, KEPT)
    with pytest.raises(UserError, match=r"net must be callable as net\(x, t\), not a str"):
        Adapter.from_ddpm("net", KEPT, shape=(3,))
    model = Adapter.from_ddpm(lambda x, t: x[:, :1], KEPT, shape=(3,))
    with pytest.raises(UserError, match=r"must answer in the shape of x, \(B, 3\), not \(B, 1\)"):
        model(torch.ones(2, 3), SIGMAS[40])
    with pytest.raises(UserError, match="a tensor of the shape of x, not a tuple"):
        Adapter.from_ddpm(lambda x, t: (x,), KEPT, shape=(3,))(torch.ones(2, 3), SIGMAS[40])
    with pytest.raises(UserError, match="beta_max must be a finite number, above 0.1"):
        Adapter.from_vp(lambda x, t: x, shape=(3,), beta_max=0.05)


def test_a_discrete_network_samples_as_the_exact_model():
    """At the network's own levels, whole images: from its first call to its last."""
    exact = images_mixture()

    def net(x, t):
        sigma = SIGMAS[t].float()
        alpha = (1 + sigma**2).rsqrt()[:, None, None, None]
        return epsilon(exact, x / alpha, sigma)

    model = Adapter.from_ddpm(net, KEPT, shape=(1, 2, 2), data_range=(0, 1), quantize=True, sigma_max=4.0)
    x = 4 * torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    grid = torch.cat([SIGMAS[SIGMAS < 4].flip(0)[::10], SIGMAS.new_zeros(1)])
    torch.testing.assert_close(
        integrators.dpmpp_2m(model, x, grid), integrators.dpmpp_2m(exact, x, grid), rtol=1e-4, atol=1e-4
    )
