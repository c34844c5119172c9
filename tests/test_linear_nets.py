"""Networks of linear diffusions: what stands around them, how they are trained, and images drawn from them."""

import pytest
import torch

from dmcmc_core import checkpoints, data, gddim, linear_sde, load_model, training
from dmcmc_core.errors import UserError
from dmcmc_core.nets.linear import PREDICTS, EpsilonNet

SDES = [{"name": "VP"}, {"name": "VE"}, {"name": "BDM", "image_size": 4, "sigma_blur_max": 1.0}, {"name": "CLD"}]
SMALL = {"channels": (8, 8), "blocks": (1, 1), "attention": (False, False), "embedding": 8}


def make(sde, predicts="data", **more):
    torch.manual_seed(0)
    net = EpsilonNet((2, 4, 4), sde, 0.5, predicts, **SMALL, **more)
    net.mean.copy_(torch.randn(2, 4, 4) / 4)
    return net.double().eval()


def states(net, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, *net.shape, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.01, 0.95, n, dtype=torch.float64)
    epsilon = torch.randn(n, *net.state_shape, dtype=torch.float64, generator=generator)
    return clean, t, epsilon, net.sde.forward(clean, t, epsilon)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: sde["name"])
def test_an_untrained_network_knows_gaussian_data(sde):
    """Its last layer is 0, so its epsilon is R^T S^-1 (u - Psi m), S the covariance of u."""
    net = make(sde)
    _, t, _, u = states(net)
    diffusion = net.sde
    for i in range(len(u)):
        gain, root = diffusion.gain(t[i]), diffusion.R(t[i])
        forth = diffusion.product(0.25 * diffusion.of_data, diffusion.transpose(gain))
        total = diffusion.product(gain, forth) + diffusion.Sigma(t[i])
        back = diffusion.product(diffusion.transpose(root), diffusion.inverse(total))
        centred = u[i : i + 1] - diffusion.apply(gain, diffusion.lift(net.mean[None]))
        assert torch.allclose(net(u, t)[i : i + 1], diffusion.apply(back, centred), atol=1e-7)
        assert torch.allclose(net(u[i : i + 1], t[i]), net(u, t)[i : i + 1], atol=1e-10)  # () and (B,) times


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: sde["name"])
def test_the_target_of_training_means_the_noise_that_was_drawn(sde, predicts):
    if predicts == "mixed" and sde["name"] != "CLD":
        with pytest.raises(UserError, match="'mixed' is for the velocities of CLD"):
            make(sde, predicts)
        return
    net = make(sde, predicts)
    clean, t, epsilon, u = states(net)
    around = net.around(t)
    target = net.target(around, u, clean, epsilon)
    assert target.shape == net.answer(around, u, t).shape
    assert torch.allclose(net.epsilon(around, u, target), epsilon, atol=1e-6)


@pytest.mark.slow
def test_training_leaves_a_network_that_loads_and_samples(tmp_path):
    config = {
        "name": "tiny",
        "steps": 3,
        "batch": 8,
        "log_every": 3,
        "net": {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()},
    }
    for sde, predicts in (("CLD", "mixed"), ("CLD", "data"), ("VP", "epsilon")):
        made = training.make_config("epsilon", config | {"sde": {"name": sde}, "predicts": predicts})
        path = training.train_epsilon(made, tmp_path / f"{sde}-{predicts}", progress=False)
        net = checkpoints.load_epsilon(path)
        assert net.card["architecture"] == "epsilon" and net.predicts == predicts and net.shape == (1, 8, 8)
        images, nfe = gddim.draw(net, "gddim", 4, 3, 0)
        assert images.shape == (3, 1, 8, 8) and images.isfinite().all() and nfe == 4
    with pytest.raises(UserError, match="which is no network of a linear diffusion"):
        checkpoints.load_epsilon(checkpoints.NETS / "digits.safetensors")
    with pytest.raises(UserError, match="which is no score network"):
        load_model(path)
    with pytest.raises(UserError, match="did you mean 'digits-cld'"):
        checkpoints.load_epsilon("digits-cdl")


@pytest.mark.parametrize("name", ["digits-vp", "digits-bdm", "digits-cld"])
def test_shipped_networks_draw_the_same_images_in_any_company(name):
    net = checkpoints.load_epsilon(name)
    many, nfe = gddim.draw(net, "gddim", 8, 70, 3)
    few, _ = gddim.draw(net, "gddim", 8, 5, 3)
    assert nfe == 8 and torch.equal(many[:5], few) and not torch.equal(gddim.draw(net, "gddim", 8, 5, 4).images, few)
    assert 0.8 < many.clamp(0, 1).std() / data.load_images("digits-train").std() < 1.2
    noisy = gddim.draw(net, "gddim", 8, 70, 3, lam=1.0)
    assert torch.equal(gddim.draw(net, "gddim", 8, 5, 3, lam=1.0).images, noisy.images[:5])
    with pytest.raises(UserError, match="u must be"):
        net(torch.zeros(2, 5, 8, 8), torch.tensor(0.5))


@pytest.mark.slow
def test_budgets_are_kept_to():
    net = gddim.from_denoiser(linear_sde.VP(), load_model("digits"))
    for sampler, options, used in (
        ("gddim", {}, 9),
        ("gddim", {"last": None}, 9),
        ("gddim", {"corrector": True}, 8),
        ("heun", {}, 9),
        ("euler_maruyama", {}, 9),
        ("ancestral", {}, 9),
    ):
        assert gddim.draw(net, sampler, 9, 4, 0, **options).nfe == used
    assert gddim.draw(net, "rk45", 40, 4, 0).nfe <= 40
    for sampler, nfe, words in (
        ("gdim", 10, "did you mean 'gddim'"),
        ("heun", 2, "heun needs at least 2 NFE"),
        ("rk45", 5, "5 are too few"),
    ):
        with pytest.raises(UserError, match=words):
            gddim.draw(net, sampler, nfe, 4, 0)
    for options, words in (
        ({"num": 0}, "num must be"),
        ({"nfe": 2.5}, "nfe must be"),
        ({"foo": 1}, "unknown option of gddim"),
    ):
        with pytest.raises(UserError, match=words):
            gddim.draw(net, "gddim", **{"nfe": 9, "num": 4, "seed": 0} | options)
    with pytest.raises(UserError, match="load_epsilon or from_denoiser"):
        gddim.draw(load_model("digits"), "gddim", 9, 4, 0)


def test_a_denoiser_is_a_network_of_cld_and_vp_alike():
    """Both make what the denoiser's own sampler makes, where steps are fine: the same flow in other variables."""
    net = load_model("digits")
    for sde in (linear_sde.VP(), linear_sde.CLD()):
        images = gddim.draw(gddim.from_denoiser(sde, net), "gddim", 60, 64, 0).images
        assert images.min() > -0.2 and images.max() < 1.2
        assert abs(images.mean() - net.mean.mean()) < 0.03
