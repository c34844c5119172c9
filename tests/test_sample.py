"""Images in one call: every kind of model, the command's bits, pictures, bad input."""

import numpy as np
import pytest
import torch
from exact import images_mixture
from PIL import Image

import dmcmc_core
from dmcmc_core import UserError, load_model
from dmcmc_core.runs.folder import load_images
from dmcmc_core.workbench.cli import main


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x, sigma):
        return self.layer(x.flatten(1) / (1 + sigma[:, None])).reshape(x.shape)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [("dpmpp_2m", {}), ("heun_churn", {"s_churn": 5.0}), ("dlg+heun", {"chains": 4, "n_skip": 2})],
)
def test_the_same_bits_as_the_command(sampler, settings, tmp_path):
    images = dmcmc_core.sample("digits", sampler, nfe=12, n=8, seed=3, **settings)
    command = ["sample", "--model", "digits", "--sampler", sampler, "--nfe", "12", "--num", "8", "--seed", "3"]
    more = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert main([*command, *more, "--out", str(tmp_path / "out")]) == 0
    assert torch.equal(torch.as_tensor(images), load_images(tmp_path / "out"))
    assert images.data_range == (0.0, 1.0)
    assert 10 < images.nfe <= 12
    assert images.recipe == {"model": "digits", "sampler": sampler, "nfe": 12, "n": 8, "seed": 3} | settings
    assert torch.equal(torch.as_tensor(dmcmc_core.sample(**images.recipe)), torch.as_tensor(images))


def test_images_are_a_tensor_and_what_is_computed_of_them_a_plain_one():
    images = dmcmc_core.sample("digits", "euler", nfe=3, n=4)
    assert isinstance(images, torch.Tensor)
    assert images.shape == (4, 1, 8, 8)
    assert type(images + 1) is type(images.mean()) is torch.Tensor


def test_a_network_a_function_and_a_denoiser_of_ones_own():
    net = Net()
    whole = {"shape": (1, 2, 2), "sigma_min": 0.02, "sigma_max": 20.0}
    of_net = dmcmc_core.sample(net, "heun", nfe=5, n=4, **whole)
    of_function = dmcmc_core.sample(lambda x, sigma: net(x, sigma), "heun", nfe=5, n=4, **whole)
    adapter = dmcmc_core.denoiser.Adapter(net, (1, 2, 2), sigma_min=0.02, sigma_max=20.0)
    assert torch.equal(torch.as_tensor(of_net), torch.as_tensor(of_function))
    assert torch.equal(torch.as_tensor(of_net), torch.as_tensor(dmcmc_core.sample(adapter, "heun", nfe=5, n=4)))
    assert of_net.manifest["sigmas"][0] == pytest.approx(20.0)
    two = dmcmc_core.sample(net, "heun", nfe=5, n=4, data_range=(-1.0, 1.0), **whole)
    assert two.data_range == (-1.0, 1.0)


def test_fitted_and_auto_find_what_they_need(monkeypatch, tmp_path):
    monkeypatch.setattr("dmcmc_core.files.root", lambda: tmp_path)
    model = images_mixture(10.0)
    images = dmcmc_core.sample(model, "fitted", nfe=3, n=4)
    assert images.nfe == 3
    assert images.manifest["plan"]["sampler"] == "fitted"


def test_a_file(tmp_path):
    path = next(p for p in (dmcmc_core.files.root() / "exp" / "nets").rglob("digits.safetensors"))
    of_file = dmcmc_core.sample(path, "dpmpp_2m", nfe=4, n=4)
    assert torch.equal(torch.as_tensor(of_file), torch.as_tensor(dmcmc_core.sample("digits", "dpmpp_2m", nfe=4, n=4)))


def test_a_pipeline_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=8,
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipe")
    images = dmcmc_core.sample(pipeline, "dpmpp_2m", nfe=4, n=2)
    assert torch.equal(
        torch.as_tensor(images), torch.as_tensor(dmcmc_core.sample(tmp_path / "pipe", "dpmpp_2m", nfe=4, n=2))
    )


def test_pictures_are_large_enough_to_see(tmp_path):
    images = dmcmc_core.sample("digits", "euler", nfe=3, n=4)
    path = images.save(tmp_path / "x.png")
    picture = np.array(Image.open(path))
    assert max(picture.shape) >= 512
    assert images.show().size == picture.shape[::-1]
    factor = len(picture) // 8
    assert np.array_equal(
        picture[::factor, ::factor][:8, :8], (torch.as_tensor(images)[0, 0] * 255).round().numpy().astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sampler": "heum"}, "unknown sampler 'heum'"),
        ({"n": 0}, "n must be a whole number, at least 1, not 0"),
        ({"seed": -1}, "seed must be"),
        ({"nfe": 0}, "nfe must be"),
        ({"model": "digit"}, "digit"),
        ({"model": torch.nn.Linear(1, 1)}, "a Linear, is no denoiser"),
        ({"model": 3}, "is no denoiser"),
        ({"shape": (1, 8, 8)}, "knows its shape"),
        ({"eat": 3}, "unknown setting of heun 'eat'"),
    ],
)
def test_bad_input_is_one_sentence(how, words):
    how = {"model": "digits", "sampler": "heun", "nfe": 5, "n": 2} | how
    with pytest.raises(UserError, match=words) as caught:
        dmcmc_core.sample(**how)
    assert "\n" not in str(caught.value)


def test_a_picture_of_another_format_is_told(tmp_path):
    images = dmcmc_core.sample("digits", "euler", nfe=3, n=1)
    with pytest.raises(UserError, match="ends in .png"):
        images.save(tmp_path / "x.jpg")


def test_a_network_is_no_file():
    with pytest.raises(UserError, match="takes a name or a path, not a Net"):
        load_model(Net())
