"""The one form of a model: its conversions, its blocks, its counter."""

import copy
import pickle

import pytest
import torch
from exact import F64, classes, digits_net, images_mixture, mixture

from dmcmc_core import dmcmc
from dmcmc_core.analytic import EmpiricalData, GaussianMixture
from dmcmc_core.denoiser import (
    Adapter,
    InBlocks,
    apply_in_blocks,
    count_nfe,
    epsilon,
    like,
    per_row,
    score,
)
from dmcmc_core.errors import UserError
from dmcmc_core.guidance import Conditioned
from dmcmc_core.runs.model import device_of
from dmcmc_core.streams import Streams

# Conversions


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "score"])
@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.linspace(0.1, 5, 6)])
def test_adapter_undoes_every_prediction(predicts, sigma):
    """A model rewritten to predict the noise or the score is the same denoiser again."""
    model, x = mixture(), mixture().sample(6, 2.0)
    rewritten = {"x0": model, "epsilon": lambda x, s: epsilon(model, x, s), "score": lambda x, s: score(model, x, s)}
    again = Adapter(rewritten[predicts], (3,), predicts=predicts)
    assert torch.allclose(again(x, sigma), model(x, sigma), rtol=1e-12, atol=1e-12)


def test_score_and_epsilon_are_tweedies():
    model, x, sigma = mixture(), mixture().sample(6, 2.0), torch.linspace(0.5, 3, 6, dtype=F64)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
    x = x.detach()
    assert torch.allclose(score(model, x, sigma), gradient, rtol=1e-10, atol=1e-10)
    assert torch.allclose(epsilon(model, x, sigma), -sigma[:, None] * gradient, rtol=1e-10, atol=1e-10)


def test_adapter_hands_over_one_level_per_row():
    seen = []
    model = Adapter(lambda x, sigma: seen.append(sigma) or x, (1, 2, 2))
    model(torch.zeros(3, 1, 2, 2), torch.tensor(2.0))
    assert seen[0].tolist() == [2.0, 2.0, 2.0]


def test_shapes_of_levels():
    x = torch.zeros(3, 1, 2, 2)
    assert like(torch.tensor(2.0), x).shape == (1, 1, 1, 1) and like(torch.ones(3), x).shape == (3, 1, 1, 1)
    assert per_row(2.0, x).tolist() == [2.0] * 3 and per_row(torch.ones(3, dtype=F64), x).dtype == x.dtype


def test_bad_adapters():
    with pytest.raises(UserError, match="predicts must be 'x0', 'epsilon', 'score' or 'v', not 'noise'"):
        Adapter(lambda x, sigma: x, (2,), predicts="noise")
    with pytest.raises(
        UserError, match="0 < sigma_min < sigma_max, all finite, is needed, not sigma_min=2, sigma_max=1"
    ):
        Adapter(lambda x, sigma: x, (2,), sigma_min=2, sigma_max=1)
    with pytest.raises(UserError, match=r"mean must have the shape of one image, \(1, 8, 8\), not \(8, 8\)"):
        Adapter(lambda x, sigma: x, (1, 8, 8), mean=torch.zeros(8, 8))
    with pytest.raises(UserError, match="block must be at least 1 row, not 0"):
        InBlocks(mixture(), 0)


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "score"])
@pytest.mark.parametrize("wrap", [lambda model: model, InBlocks, count_nfe])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, s: torch.cat([x, x], 1), r"in the shape of x, \(B, 1, 2, 2\), not \(B, 2, 2, 2\)"),
        (lambda x, s: x.mean(0), r"in the shape of x, \(B, 1, 2, 2\), not \(1, 2, 2\) for \d+ rows"),
        (lambda x, s: {"sample": x}, "a tensor of the shape of x, not a dict"),
        (lambda x, s: x.int(), "with real numbers, not with torch.int32"),
        (lambda x, s: x + 1j, "with real numbers, not with torch.complex64"),
        (lambda x, s: x / (s != 2).float()[:, None, None, None], "answer is not finite at sigma = 2, for a finite x"),
    ],
)
def test_a_wrong_answer_of_the_network_is_named(predicts, wrap, function, message):
    model = wrap(Adapter(function, (1, 2, 2), predicts=predicts))
    with pytest.raises(UserError, match=message):
        model(torch.ones(3, 1, 2, 2), torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("wrap", [lambda model: model, InBlocks])
@pytest.mark.parametrize("rows", [3, 64])
def test_a_network_that_changes_its_x_is_told_so(wrap, rows):
    """Samplers go on from that x: they would end in other images, without a word."""
    model, x = wrap(Adapter(lambda x, sigma: x.mul_(0.5), (1, 2, 2))), torch.ones(rows, 1, 2, 2)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises(UserError, match="changes its x in place"):
            model(x.clone(), torch.tensor(1.0))
    other = wrap(Adapter(lambda x, sigma: x.clone().mul_(0.5), (1, 2, 2)))
    assert torch.equal(other(x, torch.tensor(1.0)), 0.5 * x) and torch.equal(x, torch.ones_like(x))
    with torch.inference_mode():
        assert torch.equal(other(torch.ones(rows, 1, 2, 2), torch.tensor(1.0)), 0.5 * x)


@pytest.mark.parametrize("wrap", [lambda model: model, InBlocks])
def test_an_x_of_another_shape_is_reported_as_given(wrap):
    model = wrap(Adapter(lambda x, sigma: x, (1, 8, 8)))
    with pytest.raises(UserError, match=r"x must have shape \(B, 1, 8, 8\), not \(3, 8, 8\)"):
        model(torch.zeros(3, 8, 8), torch.tensor(1.0))


def test_what_a_network_makes_of_an_x_that_ran_away_is_not_its_fault():
    model = Adapter(lambda x, sigma: x**2, (2,), sigma_max=10.0)
    for x in (torch.full((1, 2), 1e30), torch.full((1, 2), torch.nan)):
        assert not torch.isfinite(model(x, torch.tensor(1.0))).any()


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "score"])
@pytest.mark.parametrize("given", [F64, torch.float32, torch.float16])
def test_a_network_runs_in_its_own_dtype_and_answers_in_that_of_x(predicts, given):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x, sigma):
            assert x.dtype == sigma.dtype == torch.float32
            return self.linear(x)

    y = Adapter(Net(), (2,), predicts=predicts)(torch.ones(3, 2, dtype=given), torch.tensor(0.5, dtype=F64))
    assert y.dtype == given and y.shape == (3, 2)


# Blocks


def empirical():
    return EmpiricalData(torch.rand(300, 3, 4, 4, generator=torch.Generator().manual_seed(0)))


MODELS = {"digits": digits_net, "mixture": mixture, "empirical": empirical}


@pytest.mark.parametrize("name", MODELS)
def test_bits_do_not_depend_on_the_other_rows(name):
    """Nor on the place in the block, nor on the number of threads."""
    model = MODELS[name]()
    if model is None:
        pytest.skip("the digits net is not there")
    generator = torch.Generator().manual_seed(1)
    x = 0.5 + torch.randn(130, *model.shape, generator=generator)
    sigma = torch.logspace(-2, 1, 130)[torch.randperm(130, generator=generator)]
    with torch.no_grad():
        y = model(x, sigma)
        for n in (1, 2, 7, 17, 63, 64, 65, 100):
            assert torch.equal(model(x[:n], sigma[:n]), y[:n]), n
        order = torch.randperm(130, generator=generator)
        assert torch.equal(model(x[order], sigma[order]), y[order])
        torch.set_num_threads(2)
        try:
            assert torch.equal(model(x.clone(), sigma), y)
        finally:
            torch.set_num_threads(1)


def test_without_blocks_the_bits_do_depend_on_them():
    """What the blocks are for: a plain linear layer of the size of a small net's, 64 rows against fewer."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    bare = Adapter(lambda x, sigma: (x @ weight).tanh() @ weight.T, (256,))
    sigma, blocks = torch.tensor(1.0), InBlocks(bare, 64)
    assert any(not torch.equal(bare(x[:n], sigma), bare(x, sigma)[:n]) for n in range(1, 18))
    assert all(torch.equal(blocks(x[:n], sigma), blocks(x, sigma)[:n]) for n in range(1, 18))


def test_blocks_are_full_and_put_together_in_order():
    seen = []

    def watched(x, sigma):
        seen.append((len(x), sigma.tolist()))
        return x * like(sigma, x)

    model = InBlocks(Adapter(watched, (2,)), block=4)
    x, sigma = torch.arange(18.0).reshape(9, 2), torch.arange(1.0, 10.0)
    assert torch.equal(model(x, sigma), x * sigma[:, None])
    assert seen == [(4, [1.0, 2.0, 3.0, 4.0]), (4, [5.0, 6.0, 7.0, 8.0]), (4, [9.0] * 4)]
    assert model(x[:0], sigma[:0]).shape == (0, 2)


def test_apply_in_blocks_of_several_tensors():
    a, b = torch.rand(7, 3), torch.rand(7)
    assert torch.equal(apply_in_blocks(lambda a, b: a.sum(1) + b, 3, a, b), a.sum(1) + b)


# Counting


def test_rows_are_counted_and_padding_is_not():
    model = count_nfe(InBlocks(mixture(), 64))
    x = torch.zeros(10, 3, dtype=F64)
    for _ in range(5):
        model(x, torch.tensor(1.0))
    assert (model.calls, model.rows, model.nfe) == (5, 50, 5.0)
    model(x[:4], torch.tensor(1.0))  # as when some rows have finished
    assert (model.calls, model.rows, model.nfe) == (6, 54, 5.4)
    model.reset()
    assert (model.calls, model.rows, model.nfe) == (0, 0, 0.0)


def test_wrappers_show_what_is_inside():
    model = count_nfe(InBlocks(mixture(), 8))
    assert model.shape == (3,) and model.sigma_max == 10.0 and model.block == 8
    assert model.log_prob(torch.zeros(1, 3, dtype=F64), torch.tensor(1.0)).shape == (1,)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(
            twin(torch.zeros(1, 3), torch.tensor(1.0)), model.denoiser(torch.zeros(1, 3), torch.tensor(1.0))
        )


# Classes


@pytest.mark.parametrize("label", [0, 2])
@pytest.mark.parametrize(("w", "rows"), [(0, 5), (1, 5), (0.5, 10), (3.0, 10)])
def test_guidance_is_its_formula_and_both_halves_are_counted(label, w, rows):
    """In one call of the network, as the counter below tells; the counter around it tells the same."""
    whole, x, sigma = images_mixture(), images_mixture().sample(5, 1.0), torch.linspace(0.1, 3, 5)
    inside = count_nfe(classes())
    model = count_nfe(Conditioned(inside, label, w))
    one = inside.net.models[label](x, sigma)
    assert not torch.allclose(one, whole(x, sigma), atol=0.05)
    torch.testing.assert_close(model(x, sigma), whole(x, sigma) + w * (one - whole(x, sigma)))
    assert (inside.calls, inside.rows) == (model.calls, model.rows) == (1, rows) and model.nfe == rows / 5


@pytest.mark.parametrize("w", [1, 2.5])
def test_bits_of_a_class_do_not_depend_on_the_other_rows(w):
    weight, of_class = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)), torch.randn(4, 256)
    bare = Adapter(lambda x, s, labels: ((x + of_class[labels]) @ weight).tanh() @ weight.T, (256,), classes=3)
    model = Conditioned(InBlocks(bare), 1, w, unconditional=2)
    x, sigma = torch.randn(130, 256, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 9, 130)
    whole = model(x, sigma)
    for n in (0, 1, 7, 64, 100):
        assert torch.equal(model(x[:n], sigma[:n]), whole[:n]), n
    order = torch.randperm(130)
    assert torch.equal(model(x[order], sigma[order]), whole[order])


def test_what_is_known_of_all_classes_is_not_said_of_one():
    model = mixture()
    model.classes = 3
    assert not {"log_prob", "log_prob_levels", "sample"} & {n for n in dir(model) if hasattr(Conditioned(model, 0), n)}
    assert Conditioned(model, 0).sigma_max == model.sigma_max


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (mixture, {"label": 0}, "this model has no classes: leave label out"),
        (classes, {"label": 3}, "label must be a whole number from 0 to 2, not 3"),
        (classes, {"label": -1}, "label must be a whole number from 0 to 2, not -1"),
        (classes, {"label": True}, "label must be a whole number from 0 to 2, not True"),
        (classes, {"label": "every"}, "label must be .*'every'"),
        (classes, {"label": 1, "guidance": -1}, "guidance must be a finite number, at least 0, not -1"),
        (classes, {"label": 1, "guidance": float("nan")}, "guidance must be a finite number, at least 0, not nan"),
        (classes, {"label": 1, "guidance": "2"}, "guidance must be a finite number, at least 0, not '2'"),
        (classes, {"label": 1, "unconditional": 3}, "unconditional must be a whole number from 0 to 2, not 3"),
        (lambda: Conditioned(classes(), 2), {"label": 2}, "this model is held to class 2 already: leave label out"),
        (lambda: Adapter(mixture(), (3,), classes=2), {"label": 0, "guidance": 0}, "guidance needs a network that was"),
    ],
)
def test_classes_that_cannot_be_had(model, options, message):
    with pytest.raises(UserError, match=message):
        Conditioned(model(), **options)


def test_adapters_with_wrong_classes():
    for options, message in (({"classes": -1}, "classes must be"), ({"unconditional": 0.5}, "unconditional must be")):
        with pytest.raises(UserError, match=message):
            Adapter(mixture(), (3,), **options)
    with pytest.raises(UserError, match=r"x must have shape \(B, 1, 2, 2\), not \(3, 2, 2\)"):
        Conditioned(classes(), 0, 2.0)(torch.zeros(3, 2, 2), torch.tensor(1.0))


def test_a_model_computes_where_its_weights_are():
    """Else where its mean is, else on the CPU; samplers begin there (a device without numbers stands for a GPU)."""
    elsewhere = torch.nn.Linear(4, 4).to("meta")
    for model, expected in (
        (Adapter(elsewhere, (4,)), "meta"),
        (InBlocks(Adapter(elsewhere, (4,), mean=torch.zeros(4))), "meta"),
        (count_nfe(Adapter(lambda x, s: x, (4,), mean=torch.zeros(4, device="meta"))), "meta"),
        (Adapter(lambda x, s: x, (4,)), "cpu"),
        (GaussianMixture(torch.zeros(1, 4, device="cpu"), torch.ones(1), torch.ones(1)), "cpu"),
    ):
        assert device_of(model).type == expected
        start = dmcmc.prior(model, Streams(0, "image", range(2)), 2, "zero", device_of(model))
        assert start.device.type == expected and start.shape == (2, 4)
