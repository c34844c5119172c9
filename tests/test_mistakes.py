"""Mistakes of a first hour, in Python and at the command line: each is one sentence, and nothing is left behind."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact import images_mixture

import dmcmc_core
from dmcmc_core import UserError, integrators, metrics, schedules
from dmcmc_core.denoiser import Adapter
from dmcmc_core.integrators import fit, fit_all, load_fitted
from dmcmc_core.workbench import cli

X = torch.zeros(2, 1, 2, 2)
GRID = torch.tensor([4.0, 1.0, 0.0])


def shrink(x, sigma):
    return x / (1 + sigma[:, None, None, None])


def sample(model=None, sampler="heun", nfe=5, n=2, **more):
    return dmcmc_core.sample(images_mixture() if model is None else model, sampler, nfe, n, **more)


def own(**more):
    return sample(shrink, **{"shape": (1, 2, 2)} | more)


MISTAKES = {
    "n, a float": (lambda: sample(n=2.0), "n must be a whole number, at least 1, not 2.0"),
    "n, none": (lambda: sample(n=0), "n must be a whole number, at least 1, not 0"),
    "nfe, a text": (lambda: sample(nfe="5"), "nfe must be a finite number, above 0, not '5'"),
    "nfe, too few": (lambda: sample(nfe=0.5), "0.5 NFE are too few for heun"),
    "seed, a text": (lambda: sample(seed="a"), "seed must be a whole number, at least 0, not 'a'"),
    "seed, negative": (lambda: sample(seed=-1), "seed must be a whole number, at least 0, not -1"),
    "sampler, none": (lambda: sample(sampler=None), "a sampler is a name"),
    "sampler, a list": (lambda: sample(sampler=["heun"]), "a sampler is a name"),
    "sampler, misspelt": (lambda: sample(sampler="huen"), "did you mean 'heun'"),
    "sampler, another program's": (lambda: sample(sampler="pndm"), "the nearest here is 'ipndm'"),
    "setting, misspelt": (lambda: sample(tweede=0.1), "did you mean 'tweedie'"),
    "setting, of chains": (lambda: sample(chains=4), "is a setting of the chains, which heun has not: use dlg.heun"),
    "setting, of another type": (lambda: sample(levels="3"), "levels must be a whole number"),
    "model, a number": (lambda: sample(3), "the model, a int, is no denoiser"),
    "model, misspelt": (lambda: sample("digts"), "did you mean 'digits'"),
    "model, a bare network": (lambda: sample(torch.nn.Linear(1, 1)), "the model, a Linear, is no denoiser"),
    "device": (lambda: sample("digits", device="gpu"), "device 'gpu' cannot be used here"),
    "device, of a network": (lambda: own(device="gpu"), "device 'gpu' cannot be used here"),
    "device, where it is not": (lambda: own(device="meta"), "this model computes on cpu, .* not on meta: move those"),
    "device, of a denoiser": (lambda: sample(device="meta"), "this model computes on cpu, .* not on meta"),
    "steps": (lambda: sample(steps=5), "steps is no argument here: use nfe, the budget in network evaluations"),
    "num": (lambda: sample(num=5), "num is no argument here: use n$"),
    "batch": (lambda: sample(batch_size=5), "batch_size is no argument here: use block"),
    "range, of no shape": (lambda: sample(torch.nn.Linear(1, 1), data_range=(-1, 1)), "no denoiser: .* shape="),
    "shape, a number": (lambda: own(shape=3), "shape must be that of one image"),
    "shape, of a vector": (lambda: own(shape=(3,)), "channels, height and width"),
    "shape, negative": (lambda: own(shape=(1, -2, 2)), "shape must be that of one image"),
    "shape, of another model": (lambda: sample(shape=(1, 3, 3)), "this model knows its shape"),
    "range, a number": (lambda: own(data_range=3), "data_range must be the smallest and the largest value"),
    "range, texts": (lambda: own(data_range=("a", "b")), "data_range must be the smallest and the largest value"),
    "range, turned round": (lambda: own(data_range=(1.0, 0.0)), "data_range must be the smallest and the largest"),
    "levels, a text": (lambda: own(sigma_max="80"), "0 < sigma_min < sigma_max, all finite, is needed"),
    "mean, a number": (lambda: Adapter(shrink, (1, 2, 2), mean=0.5), "mean must have the shape of one image"),
    "prediction": (lambda: Adapter(shrink, (1, 2, 2), predicts="eps"), "predicts must be 'x0'"),
    "function": (lambda: Adapter(3, (1, 2, 2)), "function must be callable"),
    "answer of another shape": (
        lambda: sample(Adapter(lambda x, s: x[:, :, :1], (1, 2, 2))), "the network must answer in the shape of x"),
    "answer not finite": (lambda: sample(Adapter(lambda x, s: x * np.nan, (1, 2, 2))), "is not finite at sigma"),
    "abar": (lambda: Adapter.from_ddpm(shrink, [2.0, 1.0], shape=(1, 2, 2)), "alphas_cumprod"),
    "grid, a number": (lambda: integrators.heun(images_mixture(), X, 5), "sigmas must be a tensor, not a int"),
    "grid, a list": (lambda: integrators.heun(images_mixture(), X, [4.0, 0.0]), "sigmas must be a tensor, not a list"),
    "grid, rising": (lambda: integrators.heun(images_mixture(), X, GRID.flip(0)), "sigmas must"),
    "x, an array": (lambda: integrators.heun(images_mixture(), X.numpy(), GRID), "x must be a tensor of real numbers"),
    "x, none": (lambda: integrators.dpmpp_2m(images_mixture(), None, GRID), "x must be a tensor of real numbers"),
    "x, of another shape": (lambda: integrators.unipc(images_mixture(), X[..., :1], GRID), r"x must have shape \(B, 1"),
    "denoiser, none": (lambda: integrators.euler(None, X, GRID), "a denoiser is a function"),
    "levels of a grid": (lambda: schedules.karras("5", 80, 0.01), "n must be a whole number of levels"),
    "budgets, a number": (lambda: fit_all(images_mixture(), 3), "budgets must be a list of network calls"),
    "budgets, none": (lambda: fit_all(images_mixture(), []), "budgets must be a list of network calls"),
    "calls of a fit": (lambda: fit(images_mixture(), "3"), "nfe must be a whole number, at least 2, not '3'"),
    "kept nowhere": (lambda: fit(images_mixture(), 3, keep=5), "keep must be a folder or None, not 5"),
    "option of a fit": (lambda: fit(images_mixture(), 3, pasts=2), "unknown option of fit 'pasts'"),
    "file of solvers": (lambda: load_fitted(None), "a file of fitted solvers is a path, not a NoneType"),
    "no file of solvers": (lambda: load_fitted("missing.safetensors"), "no such file: missing.safetensors"),
    "one sampler compared": (lambda: dmcmc_core.compare("digits", ["heun"], 5), "at least two samplers or budgets"),
    "nothing compared": (lambda: dmcmc_core.compare(), "a comparison needs at least two runs, not 0"),
    "a number compared": (lambda: dmcmc_core.compare(3, ["heun", "euler"], [5]), "the model, a int, is no denoiser"),
    "seeds compared": (
        lambda: dmcmc_core.compare("digits", ["heun", "euler"], 5, seeds="a"), "a seed must be a whole number"),
    "loaded, none": (lambda: dmcmc_core.load_model(None), "load_model takes a name or a path, not a NoneType"),
    "images, none": (lambda: metrics.evaluate(None, "digits-heldout", "digits-cnn"), "evaluate takes a folder or a"),
    "images, missing": (lambda: metrics.evaluate("no", "digits-heldout", "digits-cnn"), "no such directory: no"),
    "picture, none": (lambda: sample().save(None), "images are saved to a path"),
    "picture, of another kind": (lambda: sample().save("x.jpg"), "images are saved as PNG"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_in_python(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake, words = MISTAKES[name]
    with pytest.raises(UserError, match=words) as caught:
        mistake()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path):
    plain = sample(sampler="dlg+heun", nfe=25, n=4, seed=3, chains=4)
    of_numpy = sample(sampler="dlg+heun", nfe=np.float32(25), n=np.int64(4), seed=np.int32(3), chains=np.int64(4))
    assert torch.equal(torch.as_tensor(plain), torch.as_tensor(of_numpy))
    assert plain.manifest["recipe"] == of_numpy.manifest["recipe"] and plain.recipe == of_numpy.recipe
    trials = {"trajectories": np.int64(8), "seed": np.int64(1), "held_out": np.int64(8), "accurate": np.int64(16)}
    solver = fit(images_mixture(), np.int64(2), keep=tmp_path, **trials)
    solver.save(tmp_path / "a.safetensors")
    assert load_fitted(tmp_path / "a.safetensors", np.int64(2)).nfe == 2
    design = {"n": np.int64(4), "seeds": np.int64(2), "cache_dir": tmp_path}
    found = dmcmc_core.compare(images_mixture(), ["heun", "euler"], np.array([5]), **design)
    assert len(found.rows) == 2


def test_images_can_be_cut_copied_and_kept():
    images = sample("digits", nfe=3, n=4, block=4)
    two, copied = images[1:3], copy.deepcopy(images)
    assert type(two) is type(copied) is type(images) and type(images[0]) is torch.Tensor
    assert two.data_range == images.data_range and copied.recipe == images.recipe
    assert torch.equal(torch.as_tensor(copied), torch.as_tensor(images)) and copied.data_ptr() != images.data_ptr()
    assert two.grid().shape == images[:2].grid().shape
    file = io.BytesIO()
    torch.save(images, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), torch.as_tensor(images))
    assert torch.equal(torch.as_tensor(dmcmc_core.sample(**images.recipe)), torch.as_tensor(images))


SAMPLE = "sample --model digits --sampler heun --nfe 5 --num 2 --out out"
FIT = "fit --model digits --nfe 3 --out a.safetensors"
COMPARE = "compare --model digits --samplers heun euler --nfe 5"
WORDS = [
    ("", "required"),
    ("sampel --model digits", "did you mean 'sample'"),
    ("sample", "required"),
    ("sample --model digits --sampler heun --nfe 5 --num 2", "required"),
    (f"{SAMPLE} --steps 20", "use --nfe"),
    (f"{SAMPLE} --batch 8", "use --set block=N"),
    (f"{SAMPLE} --cfg 2", "use --set guidance"),
    (f"{SAMPLE} --nosuch 2", "--nosuch"),
    (f"{SAMPLE} --nfe many", "nfe"),
    (f"{SAMPLE} --nfe 0", "--nfe must be at least 1, not 0"),
    (f"{SAMPLE} --nfe nan", "invalid int value: 'nan'"),
    (f"{SAMPLE} --nfe 0.5", "invalid int value: '0.5'"),
    (f"{SAMPLE} --num 0", "num must be"),
    (f"{SAMPLE} --num 2.5", "num"),
    (f"{SAMPLE} --num -3", "num"),
    (f"{SAMPLE} --seed -1", "seed must be"),
    (f"{SAMPLE} --seed x", "seed"),
    (f"{SAMPLE} --seeds 3", "--seeds takes a-b"),
    (f"{SAMPLE} --device gpu", "device 'gpu' cannot be used here"),
    (f"{SAMPLE} --model digts", "did you mean 'digits'"),
    (f"{SAMPLE} --model no/such/file.pt", "no such file"),
    (f"{SAMPLE} --model {__file__}", "test_mistakes.py"),
    (f"{SAMPLE} --sampler huen", "did you mean 'heun'"),
    (f"{SAMPLE} --sampler edm2", "unknown sampler"),
    (f"{SAMPLE} --sampler dlg+", "unknown sampler"),
    (f"{SAMPLE} --sampler gddim", "linear diffusion"),
    (f"{SAMPLE} --set", "expected"),
    (f"{SAMPLE} --set eta", "eta"),
    (f"{SAMPLE} --set =3", "--set"),
    (f"{SAMPLE} --set tweede=3", "did you mean 'tweedie'"),
    (f"{SAMPLE} --set eta=3", "is a setting of the chains"),
    (f"{SAMPLE} --set start=middle", "start must be one of 'zero', 'mean'"),
    (f"{SAMPLE} --set schedule=karas", "did you mean 'karras'"),
    (f"{SAMPLE} --set levels=0", "levels must be a whole number, at least 1"),
    (f"{SAMPLE} --set levels=30", "levels=30 is not a whole number that heun can pay for"),
    (f"{SAMPLE} --set sigma_max=99", "sigma_max must be"),
    (f"{SAMPLE} --set sigma_min=0", "sigma_min must be"),
    (f"{SAMPLE} --set rho=0", "rho must be a finite number, above 0"),
    (f"{SAMPLE} --set block=0", "block must be a whole number, at least 1"),
    (f"{SAMPLE} --set label=3", "class"),
    (f"{SAMPLE} --set guidance=2", "class"),
    (f"{SAMPLE} --set cast=floor", "cast must be one of"),
    (f"{SAMPLE} --set mean=2", "mean must be"),
    (f"{SAMPLE} --set mean=no-such-set", "no-such-set"),
    (f"{SAMPLE} --set preconditioner=both", "gains need images, and this model has none"),
    (f"{SAMPLE} --sampler fitted --nfe 1", "1 NFE leave a fitted solver 1 calls"),
    (f"{SAMPLE} --sampler fitted --set file=none.safetensors", "no such file: none.safetensors"),
    (f"{SAMPLE} --sampler dlg+heun --set chains=0", "chains must be"),
    (f"{SAMPLE} --sampler dlg+heun --set kernel=mela --nfe 30", "kernel"),
    (f"{SAMPLE} --sampler dlg+heun", "more images"),
    ("evaluate no-such-folder --reference digits-heldout --features digits-cnn", "no such directory"),
    ("evaluate . --reference digits-heldout --features digits-cnn", "."),
    ("evaluate . --reference digits-held --features digits-cnn", "."),
    (f"{FIT} --trajectories 1", "trajectories"),
    (f"{FIT} --nfe 1", "nfe must be a whole number, at least 2"),
    ("fit --model digits --nfe 3 --out a.txt", ".safetensors"),
    (f"{COMPARE} --seeds 0", "seeds"),
    (f"{COMPARE} --samplers heun", "at least two samplers or budgets"),
    (f"{COMPARE} --samplers heun huen", "did you mean 'heun'"),
    (f"{COMPARE} --features digits-cnn", "are those of a reference: give one"),
    ("compare one two", "no such directory: one"),
    ("reproduce --profile huge", "huge"),
    ("reproduce --only figure33", "figure33"),
    ("train score --config no-such.yaml", "no-such.yaml"),
]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0] or "nothing")
def test_at_the_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = SimpleNamespace(code=None)
    try:
        said.code = cli.main(words[0].split())
    except SystemExit as end:  # of argparse
        said.code = end.code
    error = capsys.readouterr().err
    assert said.code == 2 and words[1] in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if "error: " in line]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ends", [np.array([-1.0, 1.0]), torch.tensor([-1.0, 1.0]), [-1.0, 1.0]])
def test_a_range_may_be_an_array(ends):
    assert own(data_range=ends).data_range == (-1.0, 1.0)
