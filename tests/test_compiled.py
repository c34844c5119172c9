"""Compiled networks: the same function under another name. The compiler itself is torch's; here it only traces."""

import functools

import pytest
import torch

from dmcmc_core import UserError, compiled, inner_network
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.checkpoints import load_model
from dmcmc_core.denoiser import Adapter
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs.make import run
from dmcmc_core.runs.sampling import sample


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without code generation, which takes a minute; the graphs that it made."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    return graphs


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


def test_images_are_the_same_of_one_graph_and_the_network_stays(traced, model, tmp_path, caplog):
    before = fingerprint(model)
    made = run(model, "heun", 9, 4, 0, tmp_path, {"compile": True, "block": 4}, progress=False)
    assert len(traced) == 1, "grids and levels of every shape are one graph"
    assert "s once; a call of 4 rows takes" in caplog.text
    assert made["model_sha256"] != before == fingerprint(model) and made["asked"]["settings"]["compile"] is True
    plain, again = (sample(model, "heun", 9, 4, block=4, **more) for more in ({}, {"compile": True}))
    assert (plain - again).abs().max() <= 2 / 255
    with pytest.raises(UserError, match="holds"):
        run(model, "heun", 9, 4, 0, tmp_path, {"block": 4}, progress=False)


def test_false_is_as_without(model):
    assert fingerprint(model) == sample(model, "euler", 2, 1, block=1, compile=False).manifest["model_sha256"]


@pytest.mark.parametrize(("make", "setting", "words"), [
    (lambda: EmpiricalData(torch.rand(3, 1, 8, 8)), True, "has no network that could be compiled"),
    (lambda: Adapter(lambda x, sigma: x, (1, 8, 8)), True, "has no network that could be compiled"),
    (lambda: load_model("digits"), "yes", "compile must be true or false, not 'yes'"),
    (lambda: load_model("digits"), 1, "compile must be true or false, not 1"),
])  # fmt: skip
def test_what_cannot_be_compiled_is_told(make, setting, words):
    with pytest.raises(UserError, match=words):
        sample(make(), "euler", 2, 1, compile=setting)


def test_a_machine_without_a_compiler_is_told(monkeypatch, model, tmp_path):
    def missing(x, sigma, labels=None):
        raise RuntimeError("No working C++ compiler found\nand a page of advice")

    monkeypatch.setattr(torch, "compile", lambda net, **_: missing)
    with pytest.raises(UserError, match="cannot be compiled here, as No working C.. compiler found: leave compile out"):
        run(model, "euler", 2, 1, 0, tmp_path / "run", {"compile": True}, progress=False)
    assert not (tmp_path / "run").exists()


def test_the_gain_is_told_with_its_price(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(inner_network.time, "perf_counter", lambda: next(clock))

    class Slow(torch.nn.Module):
        def __init__(self, ticks):
            super().__init__()
            self.ticks = ticks

        def forward(self, x, sigma):
            for _ in range(self.ticks):
                next(clock)
            return x

    for plain, other, words in (
        (9, 4, "0.50 of its time without, paid after 1 calls"),
        (4, 9, "2.00 of its time without"),
    ):
        monkeypatch.setattr(torch, "compile", lambda net, other=other, **_: Slow(other))
        assert compiled.gain(compiled.compiled(Adapter(Slow(plain), (1, 2, 2))), 2).endswith(words)
    assert compiled.gain(Adapter(Slow(1), (1, 2, 2)), 2) is None


def test_a_finished_run_is_not_compiled(traced, model, tmp_path):
    run(model, "euler", 2, 4, 0, tmp_path, {"compile": True, "block": 4}, progress=False)
    graphs = len(traced)
    torch._dynamo.reset()
    run(model, "euler", 2, 4, 0, tmp_path, {"compile": True, "block": 4}, progress=False)
    assert len(traced) == graphs == 1
