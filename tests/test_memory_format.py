"""How weights lie in memory: the same function under a name of its own, chosen by a trial where that is asked for."""

import copy

import pytest
import torch

from dmcmc_core import UserError, inner_network, memory_format
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.checkpoints import load_model
from dmcmc_core.compiled import Compiled
from dmcmc_core.denoiser import Adapter
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.memory_format import LaidOut, laid_out, lies
from dmcmc_core.runs.make import run
from dmcmc_core.runs.sampling import sample
from dmcmc_core.runs.settings import LAYOUTS
from dmcmc_core.workbench import cli


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


@pytest.fixture
def own():
    """A network of one's own, contiguous as torch makes it."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
    )

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x, sigma):
            return self.layers(x)

    return Adapter(Net().eval(), (3, 8, 8))


def test_the_names_are_those_of_the_settings():
    assert tuple(memory_format.LAYOUTS) == LAYOUTS


def test_without_it_nothing_changes_and_as_it_lies_is_the_same_model(model, own):
    assert laid_out(own, "contiguous") is own
    same = laid_out(model, "channels_last")
    assert fingerprint(same) == fingerprint(model) and lies(same.denoiser.function, "channels_last")
    plain, asked = (sample(model, "euler", 3, 2, block=2, **more) for more in ({}, {"layout": "channels_last"}))
    assert torch.equal(plain, asked) and plain.manifest["model_sha256"] == asked.manifest["model_sha256"]


def test_another_layout_is_a_copy_with_a_name_and_the_same_function(model):
    before, weights = fingerprint(model), next(model.function.parameters())
    kept = weights.clone(), weights.stride()
    other = laid_out(model, "contiguous")
    assert fingerprint(other) != before == fingerprint(model) and other.name == model.name
    assert (
        lies(other.function, "contiguous") and lies(other.net, "contiguous") and lies(model.function, "channels_last")
    )
    assert torch.equal(weights, kept[0]) and weights.stride() == kept[1]
    x, sigma = torch.randn(4, *model.shape), torch.tensor(2.0)
    with torch.no_grad():
        assert (other(x, sigma) - model(x, sigma)).abs().max() < 1e-5
    assert fingerprint(laid_out(other, "channels_last")) != fingerprint(other)


def test_a_run_tells_its_layout_and_is_another_than_one_without(model, tmp_path, capsys):
    words = "sample --model digits --sampler euler --nfe 2 --num 2 --set block=2 --layout contiguous --out".split()
    assert cli.main([*words, str(tmp_path / "a")]) == 0
    made = run(model, "euler", 2, 2, 0, tmp_path / "a", {"block": 2, "layout": "contiguous"}, progress=False)
    assert made["asked"]["settings"]["layout"] == "contiguous"
    with pytest.raises(UserError, match="holds"):
        run(model, "euler", 2, 2, 0, tmp_path / "a", {"block": 2}, progress=False)
    again = sample("digits", "euler", 2, 2, layout="contiguous", block=2)
    assert torch.equal(again, sample(**again.recipe)) and again.manifest["model_sha256"] == made["model_sha256"]
    again = load_model("digits", layout="contiguous")
    assert fingerprint(again) == made["model_sha256"]


@pytest.mark.parametrize(("slow", "expected"), [("contiguous", "channels_last"), ("channels_last", "contiguous")])
def test_auto_takes_the_faster_and_says_so_once(own, monkeypatch, caplog, slow, expected):
    clock = [0.0]

    def forward(self, x, sigma):
        clock[0] += 2.0 if lies(self, slow) else 1.0
        return self.layers(x)

    monkeypatch.setattr(type(own.function), "forward", forward)
    monkeypatch.setattr(inner_network.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(memory_format, "_CHOSEN", {})
    chosen = [laid_out(copy.copy(own), "auto", 4) for _ in range(2)]
    assert all(lies(one.function, expected) for one in chosen)
    assert [record.message.split(";")[0] for record in caplog.records] == [f"layout: {expected}"]
    assert "a call of 4 rows takes" in caplog.text


def test_a_difference_that_may_be_noise_changes_nothing(own, monkeypatch):
    clock = [0.0]

    def forward(self, x, sigma):
        clock[0] += 0.99 if lies(self, "channels_last") else 1.0
        return self.layers(x)

    monkeypatch.setattr(type(own.function), "forward", forward)
    monkeypatch.setattr(inner_network.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(memory_format, "_CHOSEN", {})
    assert laid_out(own, "auto", 4) is own


def test_a_compiled_model_is_laid_out_and_compiled_again(model):
    made = load_model("digits", compile=True, layout="contiguous")  # in blocks
    assert isinstance(made.denoiser.denoiser, Compiled) and isinstance(made.denoiser, LaidOut)
    after = laid_out(load_model("digits", compile=True), "contiguous")
    assert fingerprint(after) == fingerprint(made) != fingerprint(load_model("digits", compile=True))


@pytest.mark.parametrize(("make", "layout", "words"), [
    (lambda: EmpiricalData(torch.rand(3, 1, 8, 8)), "auto", "has no network that could be laid out otherwise"),
    (lambda: Adapter(lambda x, sigma: x, (1, 8, 8)), "contiguous", "has no network that could be laid out otherwise"),
    (lambda: load_model("digits"), "rows", "layout must be one of 'channels_last', 'contiguous', 'auto', not 'rows'"),
])  # fmt: skip
def test_what_cannot_be_laid_out_is_told(make, layout, words):
    with pytest.raises(UserError, match=words):
        sample(make(), "euler", 2, 1, layout=layout)


def test_how_a_network_computes_has_arguments_of_its_own(monkeypatch, tmp_path, capsys):
    """Not refused as names of other programs are, as --dtype and --compile once were."""
    seen = []

    def noted(*given, settings, **named):
        seen.append(settings)
        raise UserError("seen")

    monkeypatch.setattr("dmcmc_core.runs.make.run", noted)
    words = (
        "sample --model digits --sampler euler --nfe 2 --num 2 --layout auto --dtype float32 --compile --out".split()
    )
    assert cli.main([*words, str(tmp_path / "a")]) == 2 and capsys.readouterr().err == "error: seen\n"
    assert seen == [{"dtype": "float32", "layout": "auto", "compile": True}]
