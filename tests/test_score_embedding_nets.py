"""The networks and files of score embedding: parity with published code, names and shapes, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import score_embedding as se
from dmcmc_core.checkpoints import convert, load_model, score_embedding, score_sde
from dmcmc_core.errors import UserError
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.song import UNet

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs of published code are not here")
FILES = ("linear_small", "fourier_avgpool_small", "baseline_small")
SMALL = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
SMALL |= {"attention": [], "rescale": False}


def path_of(name):
    return PARITY / f"score_embedding_net_{name}.pth"


@parity
@pytest.mark.parametrize(("name", "parameters"), [("cifar1", 35_218_947), ("celeb1", 32_120_963)])
def test_sizes_and_names_as_published(name, parameters):
    about = json.loads((PARITY / f"score_embedding_net_{name}.shapes.json").read_text())
    with torch.device("meta"):
        net, card = score_embedding.build(about["config"])
    assert sum(p.numel() for p in net.parameters()) == about["num_parameters"] == parameters
    entries, own = score_sde.entries_of(net.net)
    assert [entry.name for entry in entries if entry.trained] == about["trainable"]
    assert {e.name: list(e.shape(own[e.own])) for e in entries} == about["state_dict"]
    assert card["sigma_max"] == pytest.approx(se.std(torch.tensor(1.0), about["config"]["diffusion"]["sigma"]).item())


@parity
@pytest.mark.parametrize("name", FILES)
def test_answers_as_published(name):
    z = {key: torch.from_numpy(value) for key, value in np.load(PARITY / f"score_embedding_net_{name}.npz").items()}
    net, _ = score_embedding.read(path_of(name))
    net.eval()
    with torch.no_grad():
        for x, wanted, tol in (("x", "output", 1e-5), ("x_flat", "output_flat", 5e-4)):
            found = net.net(2 * z[x] - 1, z["label"][: len(z[x])])
            assert (found - z[wanted]).abs().max() < tol * z[wanted].abs().max()


@parity
def test_raw_weights_of_a_baseline_are_others(tmp_path):
    z = np.load(PARITY / "score_embedding_net_baseline_small.npz")
    with torch.serialization.safe_globals(score_embedding._NUMPY):
        content = torch.load(path_of("baseline_small"), weights_only=True)
    torch.save({key: value for key, value in content.items() if key != "ema"}, tmp_path / "raw.pth")
    net, _ = score_embedding.read(tmp_path / "raw.pth")
    found = net.eval().net(2 * torch.from_numpy(z["x"]) - 1, torch.from_numpy(z["label"])).detach()
    assert np.abs(found.numpy() - z["output_raw"]).max() < 1e-5 * np.abs(z["output_raw"]).max()


@parity
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_denoiser_and_can_be_converted(name, tmp_path):
    model = load_model(path_of(name))
    x, sigma = torch.rand(2, *model.shape), torch.tensor([model.sigma_min * 3, model.sigma_max / 3])
    clean = model(x, sigma)
    assert clean.shape == x.shape and clean.isfinite().all()
    convert(path_of(name), tmp_path / "ours.safetensors")
    torch.testing.assert_close(load_model(tmp_path / "ours.safetensors")(x, sigma), clean)


@parity
def test_a_denoiser_is_its_score(tmp_path):
    """D = x + sigma^2 s(x, t(sigma)), with the time that the published sampler gives the network."""
    model, (net, _) = load_model(path_of("linear_small")), score_embedding.read(path_of("linear_small"))
    x, t = torch.rand(3, *model.shape), torch.tensor([0.2, 0.5, 0.9])
    sigma = se.std(t, 5.0)
    score = net.eval().net(2 * x - 1, se.network_time(t, 0, 1, embedding="linear", multiplier=1, sampling=True))
    wanted = x + sigma[:, None, None, None] ** 2 * score
    torch.testing.assert_close(model(x, sigma), wanted.detach(), rtol=1e-4, atol=1e-5)


def test_resolutions_change_without_weights():
    net = UNet(**SMALL, plain=True)
    assert [type(level.resample).__name__ for level in net.down] == ["NoneType", "Resample"]
    assert not list(net.down[1].resample.parameters())
    assert net(torch.rand(2, 1, 8, 8), torch.rand(2)).shape == (2, 1, 8, 8)


def test_a_constant_embedding_and_the_period_of_waves():
    net = UNet(**SMALL, waves="constant")
    assert torch.equal(net.embed.waves(torch.tensor([0.25, 2.0])), torch.tensor([[0.25] * 8, [2.0] * 8]))
    frequencies = [UNet(**SMALL, period=period).embed.waves.frequencies[-1].item() for period in (1000.0, 10_000.0)]
    assert frequencies == pytest.approx([1e-3, 1e-4])
    with pytest.raises(UserError, match="period must be a finite number, above 0"):
        UNet(**SMALL, period=0.0)
    with pytest.raises(UserError, match="waves must be one of 'positional', 'fourier', 'constant', not 'sines'"):
        UNet(**SMALL, waves="sines")


def test_times_of_several_images():
    options = {"base": 2.0, "embedding": "linear", "multiplier": 2.0, "images": 3}
    seen = []
    for image in (0, 2):
        net = ScaledUNet("score_embedding", options | {"image": image}, SMALL, centre=True)
        net.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].item()))
        net(torch.rand(1, 1, 8, 8), se.std(torch.tensor([0.5]), 2.0))
    assert seen == pytest.approx([0.5 - 3, 0.5 + 1])


@parity
def test_files_that_are_refused(tmp_path):
    with torch.serialization.safe_globals(score_embedding._NUMPY):
        content = torch.load(path_of("linear_small"), weights_only=True)

    def saved(**change):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
        torch.save({**content, **change}, path)
        return path

    config = content["config"]
    wider = config | {"model": config["model"] | {"ch": 64}}
    odd = config | {"model": config["model"] | {"embedding_method": "sines"}}
    lost = {name: tensor for name, tensor in content["model"].items() if not name.endswith("2.bias")}
    nan = {name: tensor * float("nan") for name, tensor in content["model"].items()}
    for path, message in (
        (saved(config=wider), "does not fit its configuration"),
        (saved(config=odd), "embedding_method"),
        (saved(model=lost), "is missing"),
        (saved(model=nan), "NaN or infinity"),
        (saved(ema={"decay": 0.5}), "without a list of tensors 'shadow_params'"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(path)
    with pytest.raises(UserError, match="describes itself"):
        load_model(path_of("linear_small"), config="ve_cifar10_ncsnpp_continuous")
    shutil.copy(path_of("linear_small"), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        load_model(tmp_path / "cut.pth")
