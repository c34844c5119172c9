"""The number format of a network: what is offered, what it changes, and where it is told."""

import pytest
import torch

from dmcmc_core import UserError, integrators, number_format, schedules
from dmcmc_core.checkpoints import load_model
from dmcmc_core.denoiser import Adapter
from dmcmc_core.dmcmc import prior
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.number_format import InFormat
from dmcmc_core.runs.make import run
from dmcmc_core.runs.sampling import sample
from dmcmc_core.streams import Streams


@pytest.fixture
def any_processor(monkeypatch):
    """Autocast computes anywhere; which formats are offered depends on the processor."""
    monkeypatch.setattr(number_format, "usable", lambda device: number_format.FORMATS)


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


class Told(torch.nn.Module):
    """A network that notes the format of its products."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Conv2d(1, 1, 3, padding=1), []

    def forward(self, x, sigma, *labels):
        out = self.layer(x)
        self.seen.append(out.dtype)
        return out


@pytest.mark.parametrize(("device", "units", "expected"), [
    ("cpu", {}, ("float32",)),
    ("cpu", {"amx_bf16": True, "amx_fp16": False, "avx512_bf16": True}, ("float32", "bfloat16")),
    ("cuda", (7, 5), ("float32", "float16")),
    ("cuda", (9, 0), ("float32", "tf32", "bfloat16", "float16")),
])  # fmt: skip
def test_formats_are_those_of_the_processor(monkeypatch, device, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: units)
    assert number_format.usable(device) == expected


def test_float32_changes_nothing(model):
    same = InFormat(model, "float32")
    x = prior(model, Streams(0, "image", range(4)), 4, "mean")
    assert torch.equal(same(x, torch.tensor(5.0)), model(x, torch.tensor(5.0))) and fingerprint(same) == fingerprint(
        model
    )


def test_bfloat16_changes_images_by_about_its_rounding(any_processor, model):
    """8 bits of a factor: 2^-8 of a number at most, which a network averages over many of them."""
    short = InFormat(model, "bfloat16")
    x = prior(model, Streams(0, "image", range(8)), 8, "mean")
    sigmas = schedules.karras(10, model.sigma_max, model.sigma_min)
    images, exact = (integrators.heun(one, x, sigmas) for one in (short, model))
    off = (images - exact).square().mean().sqrt().item()
    assert images.dtype == torch.float32 and 1e-5 < off < 2**-6
    assert fingerprint(short) != fingerprint(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_are_made_in_the_format_and_answers_come_back_in_that_of_x(any_processor, dtype):
    net = Told()
    own = Adapter(net, (1, 8, 8))
    assert InFormat(own, dtype)(torch.zeros(2, 1, 8, 8), torch.tensor(1.0)).dtype == torch.float32
    assert net.seen == [getattr(torch, dtype)]


def test_tf32_is_on_inside_and_as_it_was_after(any_processor):
    seen = []

    def answer(x, sigma):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return x

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    InFormat(Adapter(answer, (1, 8, 8)), "tf32")(torch.zeros(2, 1, 8, 8), torch.tensor(1.0))
    assert seen == [("high", True)]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_a_run_tells_its_format_and_is_another_than_one_without(any_processor, model, tmp_path):
    manifest = run(model, "euler", 3, 4, 0, tmp_path, {"dtype": "bfloat16"}, progress=False)
    assert manifest["dtype"] == "bfloat16" and manifest["asked"]["settings"] == {"dtype": "bfloat16"}
    with pytest.raises(UserError, match="holds"):
        run(model, "euler", 3, 4, 0, tmp_path, progress=False)
    again = sample("digits", "euler", 3, 4, dtype="bfloat16")
    assert again.recipe["dtype"] == "bfloat16" and torch.equal(again, sample(**again.recipe))


def test_both_networks_of_a_guide_and_a_linear_diffusion_compute_in_it(any_processor, model):
    for settings in ({"sampler": "euler", "guide": "digits", "guidance": 2}, {"sampler": "gddim", "sde": "VP"}):
        short, plain = (sample(model, nfe=8, n=2, **settings, **more) for more in ({"dtype": "bfloat16"}, {}))
        assert short.manifest["dtype"] == "bfloat16" and not torch.equal(short, plain)
        assert (short - plain).abs().max() < 0.5


@pytest.mark.parametrize(("dtype", "words"), [
    ("bfloat16", "dtype=bfloat16 would be no faster here, as cpu has no units for it: dtype may be float32"),
    ("double", "dtype must be one of 'float32', 'tf32', 'bfloat16', 'float16', not 'double'"),
    (16, "dtype must be one of"),
])  # fmt: skip
def test_what_helps_nobody_is_told(monkeypatch, model, tmp_path, dtype, words):
    monkeypatch.setattr(number_format, "usable", lambda device: ("float32",))
    with pytest.raises(UserError, match=words):
        run(model, "euler", 3, 4, 0, tmp_path / "run", {"dtype": dtype}, progress=False)
    assert not (tmp_path / "run").exists()
