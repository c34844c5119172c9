"""Files of networks: what is saved comes back, and everything else is refused in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmcmc_core import checkpoints
from dmcmc_core.checkpoints import ARCHITECTURES, load_model, load_noise_level, read_card, save
from dmcmc_core.denoiser import InBlocks, count_nfe
from dmcmc_core.errors import UserError
from dmcmc_core.nets.noise_level_classifier import LightClassifier, PublishedClassifier
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.unet import DenoisingUNet
from dmcmc_core.noise_level import log_levels

GLYPHS_BOUNDS = {0.05: 0.08, 0.2: 0.18, 1.0: 0.4, 5.0: 0.22, 20.0: 0.3}
"""Noise level -> relative error about the mean."""
CARD = {"name": "tiny", "data_range": [0.0, 1.0], "sigma_min": 0.01, "sigma_max": 10.0}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = DenoisingUNet((1, 8, 8), 0.3, channels=(8, 16), blocks=(1, 1), embedding=16, dropout=0.5, augment=6)
    for parameter in net.parameters():  # the last layers start as zero, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.mean += torch.rand(1, 8, 8)
    return net


@pytest.fixture
def path(tmp_path, net):
    save(net, tmp_path / "tiny.safetensors", CARD)
    return tmp_path / "tiny.safetensors"


def test_what_is_saved_comes_back(path, net):
    model = load_model(path)
    assert isinstance(model, InBlocks) and model.block == 64
    assert (model.shape, model.data_range, model.sigma_min, model.sigma_max) == ((1, 8, 8), (0.0, 1.0), 0.01, 10.0)
    assert model.name == "tiny" and model.card["parameters"] == sum(p.numel() for p in net.parameters())
    assert torch.equal(model.mean, net.mean) and not model.net.training
    x, sigma = torch.randn(64, 1, 8, 8), torch.rand(64) + 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(x, sigma), net.eval()(x, sigma), atol=1e-5, rtol=1e-4)
    assert not model(x, sigma).requires_grad
    assert [p.name for p in path.parent.iterdir()] == ["tiny.safetensors"]


def test_rows_do_not_depend_on_their_company(path):
    model = load_model(path)
    x, sigma = torch.randn(100, 1, 8, 8), torch.rand(100) * 3 + 0.01
    whole = model(x, sigma)
    for n in (1, 7, 64):
        assert torch.equal(model(x[:n], sigma[:n]), whole[:n])
    order = torch.randperm(100)
    assert torch.equal(model(x[order], sigma[order]), whole[order])


def test_preconditioning_is_exact_at_the_ends(net):
    """Karras et al. 2022, Table 1: without noise D is the identity, with noise alone and F = 0 it is the mean."""
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(net.eval()(x, torch.tensor(1e-6)), x, atol=1e-4, rtol=0)
    for parameter in net.net.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(net(x * 1e4, torch.tensor(1e4)), net.mean.expand(5, 1, 8, 8), atol=1e-3, rtol=0)


def test_shipped_digits_net():
    model = load_model("digits")
    card = model.card
    assert card["architecture"] == "unet" and card["parameters"] <= 400_000 and "train score" in card["training"]
    assert model.shape == (1, 8, 8) and (model.sigma_min, model.sigma_max) == (0.01, 10.0)
    counted = count_nfe(model)
    x = model.mean + 0.05 * torch.randn(10, 1, 8, 8)
    assert counted(x, torch.tensor(0.05)).shape == x.shape and counted.nfe == 1


def test_shipped_noise_level_net_sees_the_noise():
    from dmcmc_core.data import digits

    net, sigmas, card = load_noise_level("digits")
    assert sigmas.shape == (1000,) and sigmas[0] == 10.0 and (sigmas.diff() < 0).all()
    assert sum(p.numel() for p in net.parameters()) == card["parameters"]
    images = digits("heldout").images
    for sigma in (0.1, 1.0, 5.0):
        guess = sigmas[net(images + sigma * torch.randn_like(images)).argmax(1)]
        assert abs((guess / sigma).log().median()) < 0.1  # 64 pixels give sigma to 1 / sqrt(128) = 0.09


def test_noise_level_net_of_glyphs_sees_the_noise_from_a_third_of_a_pixels_range_on():
    from dmcmc_core.data import glyphs32

    net, sigmas, card = load_noise_level("glyphs32")
    assert sigmas.shape == (1000,) and sigmas[0] == 50.0 and card["data_range"] == [0.0, 1.0]
    images = glyphs32(200, seed=3).images  # unseen
    torch.manual_seed(0)
    for sigma in (0.3, 1.0, 5.0, 20.0):
        guess = sigmas[net(images + sigma * torch.randn_like(images)).argmax(1)]
        assert (guess / sigma).log().abs().median() < 0.06  # 3,072 pixels give sigma to 1 / sqrt(6144) = 0.013


def test_published_classifiers_have_the_published_size():
    for shape, strides in (((3, 32, 32), (2, 2, 2, 2)), ((3, 256, 256), (4, 4, 4, 2))):
        net = PublishedClassifier(shape, strides=strides)
        assert sum(p.numel() for p in net.parameters()) == 1_413_416
        assert net(torch.zeros(1, *shape)).shape == (1, 1000)
    published = log_levels(50.0, 0.01)
    assert published[0] == 50 and round(float(published[-1]), 6) == 0.010086
    assert round(float(published[0] / published[1]), 5) == 1.00855


def test_light_classifier_starts_from_the_likelihood_of_pure_noise():
    """Untrained it takes the whole image for noise: its most probable level is then the image's root mean square."""
    net = LightClassifier((1, 8, 8), 0.01, 10.0)
    torch.nn.init.zeros_(net.basis)
    x = torch.randn(50, 1, 8, 8)
    size = x.square().mean((1, 2, 3)).sqrt()
    guess = log_levels(10.0, 0.01)[net(x).argmax(1)].float()
    assert (guess / size - 1).abs().max() < 0.01  # levels lie 0.7 % apart


def test_glyphs32_exact():
    model = load_model("glyphs32-exact")
    assert model.shape == (3, 32, 32) and (model.sigma_min, model.sigma_max) == (0.01, 50.0)
    image = model.images[7:8]
    assert torch.allclose(model(image + 0.05 * torch.randn_like(image), torch.tensor(0.05)), image, atol=1e-4)


def test_shipped_glyphs_net_is_near_the_exact_denoiser():
    model, exact = load_model("glyphs32"), load_model("glyphs32-exact")
    assert model.card["architecture"] == "preconditioned" and model.card["parameters"] <= 8_000_000
    assert (model.shape, model.sigma_min, model.sigma_max) == (exact.shape, exact.sigma_min, exact.sigma_max)
    torch.testing.assert_close(model.mean, exact.mean)
    torch.manual_seed(0)
    for level, bound in GLYPHS_BOUNDS.items():
        x = exact.images[:64] + level * torch.randn(64, *exact.shape)
        truth = exact(x, torch.tensor(level))
        error = (model(x, torch.tensor(level)) - truth).norm() / (truth - exact.mean).norm()
        assert error < bound, f"at {level}: {error:.3f}"


@pytest.mark.parametrize("name, bounds", [("digits-ddpm", (0.45, 0.2, 0.03)), ("glyphs32-ddpm", (0.16, 0.05, 0.008))])
def test_shipped_networks_of_ddpm_tell_the_noise(name, bounds):
    """Mean square error of epsilon on unseen images; 1 is that of a network that knows nothing."""
    from dmcmc_core import boundary
    from dmcmc_core.data import digits, glyphs32

    model = load_model(name)
    images = glyphs32(32, seed=3).images if "glyphs" in name else digits("heldout").images[:32]
    assert model.data_range == (-1, 1) and model.card["training"].endswith(f"train discrete --config {name}.yaml")
    epsilon, bars = boundary.epsilon_of(model), boundary.kept_shares()
    torch.manual_seed(0)
    for t, bound in zip((50, 200, 500), bounds, strict=True):
        z, bar = torch.randn_like(images), bars[t].float()
        noised = bar.sqrt() * (2 * images - 1) + (1 - bar).sqrt() * z
        error = (epsilon(noised, torch.full((32,), float(t))) - z).square().mean()
        assert error < bound, f"at {t}: {error:.3f}"


def test_network_about_the_mean_is_the_plain_one_shifted():
    torch.manual_seed(0)
    sizes = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
    about, plain = (ScaledUNet("edm", {"sigma_data": 0.3}, sizes, about_mean=here).eval() for here in (True, False))
    mean = torch.rand(1, 8, 8)
    plain.load_state_dict({k: v for k, v in about.state_dict().items() if k != "mean"})
    about.mean.copy_(mean)
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    torch.testing.assert_close(about(x, sigma), mean + plain(x - mean, sigma))
    assert (about(x, sigma) - plain(x, sigma)).abs().max() > 0.1
    assert "about_mean" not in plain.config and "mean" not in plain.state_dict()


def test_config_for_files_without_a_card(tmp_path, path, net):
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(path), bare)
    with pytest.raises(UserError, match="no model card"):
        load_model(bare)
    config = {"architecture": "unet", "config": net.config, "sigma_min": 0.02, "sigma_max": 5.0, "data_range": [0, 1]}
    assert load_model(bare, config=config).sigma_max == 5.0
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert load_model(bare, config=tmp_path / "c.json").name == "bare"
    with pytest.raises(UserError, match="did you mean 'sigma_min'"):
        load_model(bare, config={**config, "sigma_mim": 1})
    with pytest.raises(UserError, match="carries its own card"):
        load_model(path, config=config)


def test_files_that_cannot_be_used(tmp_path, path, net):
    def refused(match, name, load=load_model):
        with pytest.raises(UserError, match=match) as caught:
            load(name)
        assert "\n" not in str(caught.value)

    refused("did you mean 'digits'", "digit")
    refused("no such file", tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"")
    refused("is an empty file", cut)
    for size in (5, 200, path.stat().st_size - 1):
        cut.write_bytes(path.read_bytes()[:size])
        refused("truncated", cut)
    for suffix, match in (
        (".pth", "cannot be read as a PyTorch file"),
        (".pkl", "cannot be read as a pickle of EDM"),
        (".bin", "cannot be read as a PyTorch file"),
    ):
        (tmp_path / f"x{suffix}").write_bytes(b"\x80\x04.")
        refused(match, tmp_path / f"x{suffix}")

    for content in (b"", b"a text"):
        (tmp_path / "x.pth").write_bytes(content)
        refused("is an empty file|begins like no archive", tmp_path / "x.pth")
    refused("which is no score network", checkpoints.NETS / "digits-cnn.safetensors")
    refused("ve_cifar10_ncsnpp_continuous is not here: it goes to .*checkpoint_24.pth", "ve_cifar10_ncsnpp_continuous")
    refused("device 'gpu' cannot be used here", path, lambda name: load_model(name, "gpu"))

    tensors, metadata = load_file(path), {"card": json.dumps(read_card(path))}
    wrong = tmp_path / "wrong.safetensors"
    stem = tensors["net.stem.weight"]
    save_file({**tensors, "net.stem.weight": stem[:4].contiguous()}, wrong, metadata)
    refused(r"'net.stem.weight' has shape \(4, 1, 3, 3\), the network needs \(8, 1, 3, 3\)", wrong)
    save_file({k: v for k, v in tensors.items() if k != "mean"}, wrong, metadata)
    refused("'mean' is missing", wrong)
    save_file({**tensors, "more": stem.clone()}, wrong, metadata)
    refused("unknown tensor 'more'", wrong)
    save_file(tensors, wrong, {"card": json.dumps({**read_card(path), "architecture": "u-net"})})
    refused("did you mean 'unet'", wrong)
    save_file(tensors, wrong, {"card": "{"})
    refused("not JSON", wrong)

    classifier = tmp_path / "classifier.safetensors"
    save(LightClassifier((1, 8, 8), 0.01, 10.0, width=8), classifier, CARD)
    refused("no score network", classifier)
    refused("no noise-level classifier", path, load_noise_level)
    refused("did you mean 'digits'", "digitz", load_noise_level)


def test_every_architecture_makes_itself_again_from_its_config(tmp_path, net):
    from dmcmc_core.nets.classifiers import DigitsCNN, GlyphsCNN
    from dmcmc_core.nets.edm2 import MagnitudePreservingNet
    from dmcmc_core.nets.glyph_reader import GlyphReader
    from dmcmc_core.nets.linear import EpsilonNet, PublishedEpsilonNet

    arguments = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
    made = [net, LightClassifier((1, 8, 8), 0.01, 10.0), PublishedClassifier((1, 16, 16)), DigitsCNN(features=32)]
    made += [GlyphsCNN(width=4), GlyphReader(width=4)]
    made.append(MagnitudePreservingNet(8, 1, width=8, multipliers=(1, 2), blocks=1, attention=(4,), head=8, logvar=8))
    made.append(ScaledUNet("ve", {}, arguments, centre=True))
    made.append(EpsilonNet((1, 8, 8), {"name": "CLD"}, 0.5, channels=(8, 16), blocks=(1, 1), embedding=16))
    made.append(PublishedEpsilonNet({"name": "CLD"}, arguments | {"in_channels": 2, "out_channels": 2}))
    assert {type(module) for module in made} == set(ARCHITECTURES.values())
    for module in made:
        again = type(module)(**json.loads(json.dumps(module.config)))
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in module.state_dict().items()
        }
