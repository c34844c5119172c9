"""Fitted solvers: tables of integrators, the search on exact models, what a fit promises, bad input."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from exact import F64, Classes, images_mixture, mixture, noise, rms
from safetensors import safe_open
from safetensors.torch import save_file

from dmcmc_core import UserError, integrators, schedules
from dmcmc_core.denoiser import Adapter, Narrowed, count_nfe
from dmcmc_core.dmcmc import prior
from dmcmc_core.guidance import Conditioned
from dmcmc_core.integrators import fitted
from dmcmc_core.integrators.fitted import save_all, search
from dmcmc_core.integrators.fitted.modes import pixels
from dmcmc_core.integrators.fitted.trajectories import Levels, accurate, inner_products, kept_numbers
from dmcmc_core.runs.fitting import solver_file, solvers
from dmcmc_core.runs.make import run
from dmcmc_core.runs.plan import plan
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.cli import main

SMALL = {"trajectories": 24, "held_out": 8, "accurate": 24}


@pytest.fixture(scope="module")
def model():
    return images_mixture(10.0)


@pytest.fixture(scope="module")
def found(model):
    return integrators.fit_all(model, [3, 6])


@pytest.fixture(scope="module")
def paths(model):
    """Accurate trajectories of the mixture, and the images they end in."""
    x = noise(model, 32)
    return accurate(model, x, 32, pixels(model.mean), kept_numbers(model, 0))[:2], x


# a table is the integrator


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_3m", "deis", "ipndm", "unipc", "rho_rk"])
@pytest.mark.parametrize("levels", [1, 2, 7])
def test_a_table_gives_what_the_integrator_gives(name, levels):
    exact, entry = mixture(), integrators.INTEGRATORS[name]
    x, grid = noise(exact, 5).double(), schedules.SCHEDULES[entry.schedule](levels, 10.0, 0.01)
    table = fitted.tabulate(entry, grid)
    assert table.nfe == entry.calls(levels)
    counted = count_nfe(exact)
    torch.testing.assert_close(table(counted, x), entry(exact, x, grid), rtol=1e-9, atol=1e-9)
    assert counted.calls == table.nfe


def test_what_adapts_or_draws_noise_has_no_table():
    for name in ("rk45", "ancestral", "heun_churn"):
        with pytest.raises(UserError, match=f"{name} has no table"):
            fitted.tabulate(integrators.INTEGRATORS[name], schedules.karras(4, 10.0, 0.01))


# trajectories stand for all pixels


def test_levels_between_are_those_of_the_flow(model):
    """Every sixth level of a fine trajectory tells those between."""
    fine, *_ = accurate(model, noise(model, 32), 192, pixels(model.mean), kept_numbers(model, 0))
    sixth = fine._replace(
        sigmas=torch.cat([fine.sigmas[:-1:6], fine.sigmas[-1:]]),
        x=torch.cat([fine.x[:-1:6], fine.x[-1:]]),
        d=fine.d[::6],
    )
    levels = Levels(sixth.sigmas)
    for at in (3, 51, 99, 147, 183):
        sigma = float(fine.sigmas[at])
        assert rms(sixth.combined(levels.x(sigma)), fine.x[at]) < 2e-4
        assert rms(sixth.combined(levels.d(sigma)), fine.d[at]) < 2e-3


def test_inner_products_are_those_of_the_sums(paths):
    (trajectories, _), _ = paths
    levels, products = Levels(trajectories.sigmas), inner_products(trajectories, slice(0, None, 2))
    one, other = levels.x(0.5) - levels.d(1.3), levels.d(np.array([0.2]))[0]
    a, b = (trajectories.combined(v)[::2] for v in (one, other))
    assert one @ products @ other == pytest.approx(float((a * b).mean()), rel=1e-9)


def test_expected_errors_are_those_of_a_network_that_responds_so(paths):
    """A denoiser that answers as assumed, D* + gamma (x - x*), makes exactly the expected error."""
    (trajectories, _), _ = paths
    levels, n = Levels(trajectories.sigmas), 16
    halves = np.stack([inner_products(trajectories, half) for half in (slice(0, None, 2), slice(1, None, 2))])
    response = search.Response(np.log([0.01, 10.0]), np.array([0.9, 0.1]), np.zeros(2))
    form, ridge = search.Form(4, 3, True), 1e-9
    sigmas = np.array([10.0, 2.0, 0.7, 0.3, 0.1, 0.0])
    expected = search.expected_errors(sigmas[None], form, search.Products(levels, halves, ridge), response)[0]
    squares = []
    for own, judge in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        states = {
            rows: trajectories.combined(levels.x(sigmas[0]))[half] for rows, half in (("own", own), ("judge", judge))
        }
        past: dict[str, list] = {"own": [], "judge": []}
        for i in range(5):
            for rows, half in (("own", own), ("judge", judge)):
                if i:
                    error = states[rows] - trajectories.combined(levels.x(sigmas[i]))[half]
                    d = trajectories.combined(levels.d(sigmas[i]))[half] + float(response.at(sigmas[i])[0]) * error
                    past[rows] = [d, *past[rows]][:3]
            terms = torch.stack([states["own"], *past["own"]]).flatten(1).numpy()
            target = trajectories.combined(levels.x(sigmas[i + 1]))[own].flatten().numpy()
            c = search.least_squares(terms @ terms.T, terms @ target, ridge)
            for rows in states:
                terms = torch.stack([states[rows], *past[rows]])
                states[rows] = torch.tensordot(torch.from_numpy(c), terms, 1)
        error = states["judge"] - trajectories.combined(levels.x(0.0))[judge]
        squares.append(float(error.square().mean()))
    assert n == len(states["own"])
    assert expected == pytest.approx(sum(squares) / 2, rel=1e-5)


def test_least_squares_finds_the_coefficients_that_made_a_target():
    terms = np.random.default_rng(0).normal(size=(4, 200)) * np.array([[1e3], [1.0], [1e-3], [5.0]])
    wanted = np.array([0.3, -1.5, 2.0, 0.01])
    got = search.least_squares(terms @ terms.T, terms @ (wanted @ terms), 0.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-8)


# what a fit promises


def test_a_fit_halves_the_error_of_the_best_classical_solver(found, model):
    x = noise(model, 256, "other")
    truth = integrators.unipc(model, x, schedules.karras(80, 10.0, 0.01))
    for nfe, solver in found.items():
        counted = count_nfe(model)
        error = rms(solver(counted, x), truth)
        assert counted.nfe == solver.nfe == nfe
        peers = [
            rms(integrators.INTEGRATORS[name](model, x, build(nfe, 10.0, 0.01)), truth)
            for name in ("dpmpp_2m", "dpmpp_3m", "deis", "ipndm", "unipc")
            for build in (schedules.karras, schedules.log_uniform)
        ]
        assert error < 0.5 * min(peers)
        assert solver.card["solver"] == "fitted"


def test_never_worse_than_the_best_classical_solver_on_the_noise_held_out(model, monkeypatch):
    """Where the fit is bad, the best classical one is taken, and said."""
    bad = lambda form, *_: (np.array([10.0, *np.linspace(9.9, 9.0, form.nfe - 1 + form.jump), 0.0]), 0.0)  # noqa: E731
    monkeypatch.setattr(search, "grid", bad)
    solver = integrators.fit(model, 5, **SMALL)
    peers = solver.card["peers"]
    assert solver.card["solver"] == min(peers, key=peers.get)
    assert solver.card["held_out"] == min(peers.values())
    x = noise(model, 4)
    entry = integrators.INTEGRATORS[solver.card["solver"]]
    wanted = entry(model, x, schedules.SCHEDULES[entry.schedule](5, 10.0, 0.01))
    torch.testing.assert_close(solver(model, x), wanted, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_bits(found, model):
    again = integrators.fit_all(model, [3, 6])
    other = integrators.fit(model, 3, seed=1)
    for nfe, solver in found.items():
        assert torch.equal(solver.coefficients, again[nfe].coefficients)
        assert torch.equal(solver.sigmas, again[nfe].sigmas)
    assert not torch.equal(other.coefficients, found[3].coefficients)


def test_an_interrupted_fit_goes_on(model, tmp_path, found):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        integrators.fit_all(model, [3, 6], keep=tmp_path, say=stop)
    counted = count_nfe(model)
    again = integrators.fit_all(counted, [3, 6], keep=tmp_path)
    assert torch.equal(again[6].coefficients, found[6].coefficients)
    assert again[6].cost == found[6].cost
    before, said = counted.rows, []
    integrators.fit_all(counted, [3, 6], keep=tmp_path, say=said.append)
    assert counted.rows == before
    assert said[-1] == f"{again[6].cost} of the fit's {again[6].cost} evaluations were kept from before"


def test_the_cost_is_what_the_network_was_asked(model):
    rows = []

    def answer(x, sigma):
        rows.append(len(x))
        return model(x, sigma)

    own = Adapter(answer, model.shape, sigma_min=0.01, sigma_max=10.0, mean=model.mean)
    assert integrators.fit(own, 3, **SMALL).cost == sum(rows)


def test_five_budgets_cost_at_most_ten_thousand_evaluations(model):
    solvers_of_all = integrators.fit_all(model, [4, 5, 6, 8, 10])
    assert solvers_of_all[4].cost <= 10_000


def test_a_perturbation_does_not_grow(model):
    solver = integrators.fit(model, 10, past=4)
    x = noise(model, 64)
    moved = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    fine = schedules.karras(100, 10.0, 0.01)
    grown = rms(solver(model, moved), solver(model, x))
    assert grown < 3 * rms(integrators.heun(model, moved, fine), integrators.heun(model, x, fine)) + 1e-5


@pytest.mark.parametrize("option", [{"past": 1}, {"jump": False}, {"jump": True}, {"start": "zero"}, {"ridge": 1e-6}])
def test_options_are_kept_to(model, option):
    solver = integrators.fit(model, 4, **SMALL, **option)
    assert solver.nfe == 4
    assert solver.start == option.get("start", "mean")
    if solver.card["solver"] == "fitted":
        assert solver.coefficients.shape[1] == 1 + option.get("past", 4)
        assert solver.jump in ({option["jump"]} if "jump" in option else {True, False})


def test_a_model_with_classes_is_fitted_with_them():
    whole = images_mixture()
    function = Classes()
    one = Adapter(function, (1, 2, 2), sigma_min=0.01, sigma_max=4.0, classes=3, unconditional=-1)
    one.net = torch.nn.Linear(1, 1)  # what runs name it by
    for label, guidance in ((1, 1.0), ("random", 2.0)):
        held = Conditioned(one, label, guidance)
        solver = integrators.fit(held, 4, **SMALL)
        assert solver.card["held_out"] <= min(solver.card["peers"].values())
    assert whole.shape == one.shape


# files


def test_a_file_brings_back_the_solver(found, tmp_path):
    found[3].save(tmp_path / "one.safetensors")
    again = integrators.load_fitted(tmp_path / "one.safetensors")
    assert torch.equal(again.coefficients, found[3].coefficients)
    assert (again.jump, again.start, again.card) == (found[3].jump, found[3].start, found[3].card)
    fitted.save_all(tmp_path / "both.safetensors", list(found.values()))
    assert integrators.load_fitted(tmp_path / "both.safetensors", 6).nfe == 6
    with pytest.raises(UserError, match="solvers of 3, 6 calls: choose one"):
        integrators.load_fitted(tmp_path / "both.safetensors")
    with pytest.raises(UserError, match="3, 6 calls, not of 5"):
        integrators.load_fitted(tmp_path / "both.safetensors", 5)


def test_no_file_a_damaged_one_and_one_of_another_kind_are_told(found, tmp_path):
    path = tmp_path / "one.safetensors"
    with pytest.raises(UserError, match="no such file"):
        integrators.load_fitted(path)
    found[3].save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no file of fitted solvers, or it is damaged"):
            integrators.load_fitted(path)
    broken = dataclasses.replace(found[3], coefficients=found[3].coefficients * torch.nan)
    broken.save(path)
    with pytest.raises(UserError, match="damaged"):
        integrators.load_fitted(path)


# runs and the command line


def test_a_run_with_a_file_gives_the_images_of_the_solver(found, model, tmp_path):
    path = tmp_path / "f.safetensors"
    fitted.save_all(path, list(found.values()))
    manifest = run(model, "fitted", 5, 70, 3, tmp_path / "out", {"file": str(path)}, progress=False)
    assert manifest["nfe_full"] == 3  # the largest that the budget pays for
    assert manifest["plan"]["levels"] == 3
    np.testing.assert_allclose(manifest["sigmas"], found[3].sigmas.numpy())
    images = np.concatenate([np.load(p)["arr_0"] for p in sorted((tmp_path / "out").glob("shard-*.npz"))])
    x = prior(model, Streams(3, "image", range(70)), 70, "mean")
    wanted = (found[3](model, x).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(images.astype(float).reshape(wanted.shape) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs the file"),
        ({"file": 3}, "needs the file"),
        ({"file": "no.safetensors"}, "no such file"),
        ({"schedule": "karras"}, "schedule is in the file"),
        ({"eta": 1.0}, "eta is a setting of the chains"),
    ],
)
def test_bad_settings_of_a_run_are_told(model, settings, words):
    with pytest.raises(UserError, match=words):
        plan(model, "fitted", 5, 10, settings)


def changed(path, tensors=None, **about):
    """Write a file of one solver again, with other tensors and other facts."""
    with safe_open(path, framework="pt") as file:
        ((name, held),) = json.loads(file.metadata()["fitted"]).items()
        kept = {full: file.get_tensor(full) for full in file.keys()}  # noqa: SIM118  it is no dict
    kept |= {f"{name}.{what}": tensor for what, tensor in (tensors or {}).items()}
    save_file(kept, path, metadata={"fitted": json.dumps({name: held | about})})


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"coefficients": torch.ones(3, 3, dtype=torch.int64)}, {}),
        ({"coefficients": torch.ones(3, 3, dtype=torch.complex64)}, {}),
        ({"coefficients": torch.ones(3, 1, dtype=F64)}, {}),
        ({"coefficients": torch.ones(2, 3, dtype=F64)}, {}),
        ({"sigmas": torch.tensor([4, 2, 1, 0])}, {}),
        ({"other": torch.ones(1)}, {}),
        ({}, {"jump": "yes"}),
        ({}, {"start": "middle"}),
        ({}, {"card": "none"}),
        ({}, {"card": {"budget": "3"}}),
        ({}, {"card": {"budget": 1}}),
    ],
)
def test_files_that_were_edited_are_refused(found, tmp_path, tensors, about):
    path = tmp_path / "f.safetensors"
    found[3].save(path)
    changed(path)
    assert integrators.load_fitted(path).nfe == 3
    changed(path, tensors, **about)
    with pytest.raises(UserError, match="no file of fitted solvers, or it is damaged"):
        integrators.load_fitted(path)


def test_a_solver_of_a_function_is_held_to_its_shape_and_levels(model):
    def function(x, sigma):
        return model(x, sigma)

    own = Adapter(function, model.shape, sigma_min=model.sigma_min, sigma_max=model.sigma_max)
    solver = integrators.fit(own, 3, trajectories=8, held_out=8, accurate=16)
    assert solver(own, noise(own, 2, start="zero")).isfinite().all()
    for shape, high, words in (
        ((1, 4, 1), own.sigma_max, r"shape \[1, 2, 2\], not \[1, 4, 1\]"),
        (own.shape, 9.0, r"levels \[.*\], not \[.*, 9.0\]"),
    ):
        other = Adapter(function, shape, sigma_min=own.sigma_min, sigma_max=high)
        with pytest.raises(UserError, match=f"was fitted to a model of {words}: fit it anew"):
            solver(other, torch.zeros(2, *shape))


def test_what_cannot_be_saved_is_told(found, tmp_path):
    for path, some, words in (
        (tmp_path, [found[3]], "solvers are saved to a file"),
        (None, [found[3]], "solvers are saved to a file"),
        (tmp_path / "f.safetensors", [], "there is no solver to save"),
        (tmp_path / "f.safetensors", [3], "must be a Fitted, not a int"),
        (tmp_path / "f.safetensors", [found[3], found[3]], "two of the solvers are of 3 calls"),
    ):
        with pytest.raises(UserError, match=words):
            save_all(path, some)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_network_is_refused(found, tmp_path):
    found[3].save(tmp_path / "f.safetensors")
    other = images_mixture(8.0)
    with pytest.raises(UserError, match="fitted to another network"):
        plan(other, "fitted", 5, 10, {"file": str(tmp_path / "f.safetensors")})
    with pytest.raises(UserError, match="fitted to another network"):
        found[3](other, noise(other, 2))


def test_a_budget_below_the_file_is_told(found, model, tmp_path):
    found[6].save(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="5 NFE are too few for the solvers in .*, of 6 calls"):
        plan(model, "fitted", 5, 10, {"file": str(tmp_path / "f.safetensors")})


@pytest.mark.parametrize(("nfe", "told"), [(6, False), (6.9, False), (7, True)])
def test_calls_that_no_solver_of_the_file_takes_are_said(found, model, tmp_path, caplog, nfe, told):
    save_all(tmp_path / "f.safetensors", found.values())
    run(model, "fitted", nfe, 2, 0, tmp_path / "run", {"file": str(tmp_path / "f.safetensors")}, progress=False)
    assert ("7 network calls are paid for, and the largest solver in" in caplog.text) == told


def test_a_solver_is_fitted_once_and_kept_by_the_network(model, tmp_path):
    said = []
    path = solver_file(model, 3, cache_dir=tmp_path, say=said.append)
    assert any("evaluations" in line for line in said)
    counted = count_nfe(model)
    assert solver_file(counted, 3, cache_dir=tmp_path) == path
    assert counted.rows == 0
    assert solver_file(images_mixture(8.0), 3, cache_dir=tmp_path) != path
    with pytest.raises(UserError, match="eta does not belong to the model"):
        solvers(model, [3], {"eta": 1.0}, cache_dir=tmp_path)


def test_the_command_fits_samples_and_says_what_it_cost(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "f.safetensors"
    assert main(["fit", "--model", "digits", "--nfe", "3", "4", "--trajectories", "8", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "solvers of 3, 4 calls; the fit took" in told.out
    assert told.err.count("paired error") == 2
    sample = ["sample", "--model", "digits", "--sampler", "fitted", "--set", f"file={out}", "--nfe", "4"]
    assert main([*sample, "--num", "8", "--out", "images"]) == 0
    assert "8 images in images, 4.00 NFE each" in capsys.readouterr().out
    for wrong, words in ((["--nfe", "1"], "nfe must be"), (["--trajectories", "3"], "fewer than the 5 unknowns")):
        assert main(["fit", "--model", "digits", "--nfe", "3", "--out", str(out), *wrong]) == 2
        assert words in capsys.readouterr().err


# bad input


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"nfe": 1}, "nfe must be"),
        ({"nfe": 2.5}, "nfe must be"),
        ({"trajectories": 4}, "fewer than the 5 unknowns"),
        ({"past": 5}, "past must be"),
        ({"past": 0}, "past must be"),
        ({"ridge": -1.0}, "ridge must be"),
        ({"held_out": 2}, "held_out must be"),
        ({"start": "middle"}, "start must be"),
        ({"steps": 3}, "unknown option of fit 'steps'"),
    ],
)
def test_bad_arguments_are_told(model, how, words):
    with pytest.raises(UserError, match=words):
        integrators.fit(model, **{"nfe": 4, "trajectories": 8} | how)


def test_a_mean_that_is_not_known_and_answers_that_are_not_finite_are_told(model):
    blind = Adapter(lambda x, sigma: model(x, sigma), model.shape, sigma_min=0.01, sigma_max=10.0)
    with pytest.raises(UserError, match="start='mean' needs a model that knows"):
        integrators.fit(blind, 4, start="mean", **SMALL)

    class Raw:
        shape, data_range, sigma_min, sigma_max = model.shape, (0.0, 1.0), 0.01, 10.0

        def __call__(self, x, sigma):
            return x * torch.nan

    with pytest.raises(UserError, match="NaN or infinity"):
        integrators.fit(Raw(), 4, **SMALL)


def test_a_network_of_one_answer_leaves_nothing_to_fit():
    with pytest.raises(UserError, match="nothing to fit"):
        integrators.fit(Adapter(lambda x, sigma: torch.zeros_like(x), (1, 2, 2)), 4, **SMALL)


@pytest.mark.parametrize("ends", [(1.0, 1.5), (0.01, 0.03)])
def test_levels_may_lie_near_each_other(model, ends):
    solver = integrators.fit(Narrowed(model, *ends), 3, **SMALL)
    assert ends[1] == solver.sigmas[0] and (solver.sigmas.diff() < 0).all()
    assert solver.card["solver"] == "fitted" or solver.card["solver"] in integrators.INTEGRATORS


def test_x_must_fit_the_model(found, model):
    with pytest.raises(UserError, match="x must have shape"):
        found[3](model, torch.zeros(2, 3))
    with pytest.raises(UserError, match="x must be finite"):
        found[3](model, torch.full((2, 1, 2, 2), torch.nan))
