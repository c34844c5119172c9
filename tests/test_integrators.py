"""Every integrator against published outputs, closed forms, its declared order, its declared cost, and itself."""

import itertools
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import F64, digits_net, dop853_flow, gaussian, gaussian_flow, images_mixture, mixture
from scipy.integrate import quad, solve_ivp

from dmcmc_core import analytic, gddim, integrators, linear_sde, schedules
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.denoiser import BLOCK, Adapter, InBlocks, count_nfe
from dmcmc_core.errors import UserError
from dmcmc_core.integrators import INTEGRATORS
from dmcmc_core.streams import Streams

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity" / "integrators.npz"
START, END = 10.0, 0.1  # where orders are measured: the step to 0 has a fixed error that would hide them
ORDERED = [name for name, entry in INTEGRATORS.items() if entry.calls and not entry.stochastic]
WARMING_UP = ("deis", "dpmpp_3m", "unipc")  # whose first steps are of a lower order than the others
STOCHASTIC = [name for name, entry in INTEGRATORS.items() if entry.stochastic]


def recorded(draws):
    """Noise that hands out recorded draws in their order."""
    left = iter(draws)
    return lambda x: torch.as_tensor(next(left)).to(x)


def grid(name, n, start, sigma_min=0.01):
    return schedules.SCHEDULES[INTEGRATORS[name].schedule](n, start, sigma_min)


def levels(n, start=START):
    """n steps down to where orders are measured."""
    return schedules.karras(n + 1, start, END)[:-1]


def refined(n):
    """The same, the first step made of ones that double, from a size of order n^-3."""
    sigmas = levels(n)
    shares = 2.0 ** -torch.arange(round(2 * math.log2(n / 5)), 0, -1, dtype=F64)
    return torch.cat([sigmas[:1], sigmas[0] + (sigmas[1] - sigmas[0]) * shares, sigmas[1:]])


@cache
def problem(name):
    """Model, starts at sigma 10 and where the exact flow takes them at sigma 0.1."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(analytic, "BLOCK", 6)  # the rows that there are
        model = {"gaussian": gaussian, "mixture": mixture}[name]()
    x = model.sample(6, START, seed=1)
    flow = gaussian_flow if name == "gaussian" else dop853_flow
    return model, x, flow(model, x, START, END)


# Published outputs


@pytest.mark.parametrize("run", ["kar1_N10", "kar2_N20", "pf_N50"])
def test_agrees_with_the_published_code(run):
    if not PARITY.is_file():
        pytest.skip(f"recorded outputs of the published code are not at {PARITY}")
    data = np.load(PARITY)
    model = GaussianMixture(torch.from_numpy(data["means"]), torch.from_numpy(data["std"]), data["weights"])
    model = count_nfe(model)
    x, sigma_max = torch.from_numpy(data["x_init"]), torch.from_numpy(data["sigma_max"])
    if run == "kar1_N10":
        y = integrators.heun(model, x, schedules.karras(9, sigma_max, 0.01))
    elif run == "kar2_N20":
        noise = recorded(data["kar2_N20.noise"])
        y = integrators.heun_churn(model, x, schedules.karras(19, sigma_max, 0.01), noise=noise, published=True)
    else:
        y = integrators.probability_flow(model, x, schedules.log_uniform(50, sigma_max, 0.01))
    assert (y - torch.from_numpy(data[f"{run}.x"])).abs().max() < 1e-4
    assert model.nfe == model.calls == data[f"{run}.nfe"]
    assert y.dtype == torch.float32


# Orders against the exact flow


def test_references_agree():
    """The eighth-order reference of the mixture against the closed form on a Gaussian, and rk45 against it."""
    model, x, exact = problem("gaussian")
    assert (dop853_flow(model, x, START, END) - exact).abs().max() < 1e-11
    model, x, exact = problem("mixture")
    ends = torch.tensor([START, END], dtype=F64)
    assert (integrators.rk45(model, x, ends, tol=1e-11) - exact).abs().max() < 1e-9


@pytest.mark.parametrize("model", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", ORDERED)
def test_order_is_the_declared_one(name, model):
    declared = INTEGRATORS[name].order
    counts = [160, 640] if declared > 2 else [80, 1280]
    order, errors = measured(name, model, counts, refined if name in WARMING_UP else levels)
    assert abs(order - declared) < 0.2, errors
    assert errors[-1] < 0.02


def measured(name, model, counts, grid, **options):
    """Slope of log error over log step count, and the errors: of two counts, as one midway has no weight in it."""
    model, x, exact = problem(model)
    errors = [(INTEGRATORS[name](model, x, grid(n), **options) - exact).abs().max().item() for n in counts]
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("deis", {"degree": 1, "basis": "log"}, 2),
        ("deis", {"degree": 3, "basis": "sigma"}, 4),
        ("unipc", {"order": 2}, 3),
        ("unipc", {"order": 2, "variant": "bh1"}, 3),
        ("dpmpp_3m", {"published": True}, 2),
        ("rho_rk", {"method": "2heun"}, 2),
        ("rho_rk", {"method": "3kutta"}, 3),
    ],
)
def test_order_with_options(name, options, order):
    found, errors = measured(name, "mixture", [80, 320], refined, **options)
    assert abs(found - order) < 0.2, errors


@pytest.mark.parametrize(("name", "left"), [("deis", 2), ("dpmpp_3m", 2), ("unipc", 3)])
def test_order_that_warming_up_leaves(name, left):
    """Without that refinement, from a level where epsilon changes: an error of the first step's order remains."""
    model, start = problem("gaussian")[0], 0.5
    x = model.sample(6, start, seed=1)
    exact = gaussian_flow(model, x, start, END)
    counts = [80, 320]
    errors = [(INTEGRATORS[name](model, x, levels(n, start)) - exact).abs().max().item() for n in counts]
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - left) < 0.3, errors


LINES = {"sigma": float, "log": math.log, "t": lambda s: schedules.vp_time(torch.tensor(s, dtype=F64)).item()}


@pytest.mark.parametrize(
    ("name", "options", "basis", "degree"),
    [
        *(("deis", {"degree": d, "basis": basis}, basis, d) for basis in LINES for d in (1, 2, 3)),
        ("ipndm", {}, "sigma", 3),
        ("dpmpp_3m", {}, "log", 2),
        ("unipc", {}, "log", 2),
    ],
)
def test_polynomials_are_integrated_exactly(name, options, basis, degree):
    """Once there are enough values: epsilon of that degree in its variable; D, of those that predict it."""
    of_data = name in ("dpmpp_3m", "unipc")

    def polynomial(sigma):
        return (LINES[basis](sigma) + 0.3) ** degree + 1

    def function(x, sigma):
        values = torch.tensor([polynomial(s.item()) for s in sigma], dtype=F64)[:, None]
        return values.expand(x.shape) if of_data else x - sigma[:, None] * values

    sigmas = torch.linspace(5, 0.5, 10, dtype=F64) if name == "ipndm" else schedules.karras(10, 5.0, 0.05)[:-1]
    model, x = Adapter(function, (2,)), torch.tensor([[0.3, -4.0]], dtype=F64)
    seen = [(sigmas[0].item(), x)]
    INTEGRATORS[name](model, x, sigmas, callback=lambda *step: seen.append((step[2].item(), step[3])), **options)
    errors = []
    for (now, before), (after, y) in itertools.pairwise(seen):
        if of_data:
            added = after * quad(lambda s: polynomial(s) / s**2, after, now, epsabs=1e-13)[0]
            errors.append((y - before * after / now - added).abs().max().item())
        else:
            errors.append((y - before + quad(polynomial, after, now, epsabs=1e-13)[0]).abs().max().item())
    warm = degree + (name == "unipc")  # what is seen is predicted, and goes on from where it is corrected to
    assert max(errors[warm:]) < 1e-11 < 1e-4 < min(errors[:warm]), errors


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("model", ["gaussian", "mixture"])
def test_rk45_error_falls_with_its_tolerance(model, joint):
    model, x, exact = problem(model)
    ends = torch.tensor([START, END], dtype=F64)
    tolerances = [10.0**-k for k in range(3, 10)]
    errors = [(integrators.rk45(model, x, ends, tol=t, joint=joint) - exact).abs().max().item() for t in tolerances]
    assert all(error < 100 * tol for error, tol in zip(errors, tolerances, strict=True)), errors
    assert all(later < earlier for earlier, later in itertools.pairwise(errors)), errors


def test_rk45_joint_is_scipys():
    """The same calls and the same numbers as solve_ivp on the whole batch, in the published time variable."""
    model, x, _ = problem("mixture")
    model, calls = count_nfe(model), []
    y = integrators.rk45(model, x, torch.tensor([START, END], dtype=F64), tol=1e-5, joint=True)

    def derivative(t, z):
        calls.append(t)
        z, sigma = torch.from_numpy(z).reshape(x.shape), END * (START / END) ** t
        return math.log(START / END) * (z - model.denoiser(z, torch.tensor(sigma, dtype=F64))).numpy().ravel()

    solution = solve_ivp(derivative, (1.0, 0.0), x.numpy().ravel(), rtol=1e-5, atol=1e-5)
    assert torch.allclose(y, torch.from_numpy(solution.y[:, -1]).reshape(x.shape), rtol=0, atol=1e-12)
    assert model.calls == len(calls) == solution.nfev


def test_rk45_controls_every_row_by_itself():
    """Of rows as different as a start at 0.02 and one at 50, the easy one stops early and neither sees the other."""
    model = images_mixture(50.0)
    starts = torch.tensor([0.02, 50.0])
    x = model.sample(2, starts)
    costs, alone = [], []
    for i in range(2):
        one = count_nfe(model)
        alone.append(INTEGRATORS["rk45"](one, x[i : i + 1], grid("rk45", 2, starts[i : i + 1])))
        costs.append(one.rows)
    both = count_nfe(model)
    y = INTEGRATORS["rk45"](both, x, grid("rk45", 2, starts))
    assert torch.equal(y, torch.cat(alone))
    assert costs[0] < costs[1] and both.rows == sum(costs) and both.calls == costs[1]
    assert all((cost - 3) % 6 == 0 for cost in costs)  # 2 + 6 a step + the last one


def test_rk45_reports_failure():
    """What did not arrive is never returned."""
    broken = Adapter(lambda x, sigma: x / (sigma[:, None] > 1), (2,), sigma_max=10.0)
    ends = torch.tensor([10.0, 0.1])
    for joint in (False, True):
        with pytest.raises(UserError, match="not finite"):
            integrators.rk45(broken, torch.ones(3, 2), ends, joint=joint)
        with pytest.raises(UserError, match="5 steps at tol=1e-09: raise tol or max_steps"):
            integrators.rk45(*problem("mixture")[:2], ends, tol=1e-9, joint=joint, max_steps=5)
    with pytest.raises(UserError, match="tol must be a finite number, above 0, not 0.0"):
        integrators.rk45(*problem("mixture")[:2], ends, tol=0.0)


# Bits


MODELS = {"mixture": lambda: images_mixture(50.0), "digits": digits_net}
ROWS = {"mixture": (100, 64), "digits": (25, 16)}
"""Starts, more than a block of the model holds, and that block: rows of a network are what these tests pay for."""


@cache
def made(model):
    """A model, starts of different noise levels, and those levels."""
    n, block = ROWS[model]
    model = MODELS[model]()
    if model is None:
        pytest.skip("the digits net is not there")
    if block < BLOCK:
        model = InBlocks(model.denoiser, block)
    sigma = 0.02 * (model.sigma_max / 0.02) ** torch.linspace(0, 1, n)
    rng = Streams(3, "starts", range(n))
    like = torch.zeros(n, *model.shape)
    return model, 0.5 + sigma.reshape(-1, 1, 1, 1) * rng(like), sigma


def sampled(name, model, x, sigmas, rows):
    with torch.no_grad():
        return INTEGRATORS[name](model, x, sigmas, noise=Streams(7, "image", rows))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", INTEGRATORS)
def test_scalar_and_per_sample_levels_give_the_same_bits(name, model):
    model, x, sigma = made(model)
    n = 6 * len(x) // 10
    x, start = x[n : n + 6], sigma[n]
    y = sampled(name, model, x, grid(name, 4, start), range(6))
    assert torch.equal(y, sampled(name, model, x, grid(name, 4, start.expand(6)), range(6)))
    assert torch.isfinite(y).all()


# One step size for the whole batch is what the joint modes of rk45 and predictor_corrector are: they cannot pass this.
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", INTEGRATORS)
def test_any_number_of_rows_gives_the_same_bits(name, model):
    many, block = ROWS[model]
    model, x, sigma = made(model)
    order = torch.randperm(many, generator=torch.Generator().manual_seed(0))  # so that the first rows are of all levels
    x, sigmas = x[order], grid(name, 3, sigma[order])
    y = sampled(name, model, x, sigmas, range(many))
    for n in (1, 7, block):
        assert torch.equal(sampled(name, model, x[:n], sigmas[:n], range(n)), y[:n]), n
    rows = [many - 7, 5, 4 * many // 10]
    assert torch.equal(sampled(name, model, x[rows], sigmas[rows], rows), y[rows])


@pytest.mark.parametrize("name", ["rk45", "predictor_corrector"])
def test_joint_modes_do_depend_on_the_batch(name):
    """Why they are exempt from the test above."""
    model, x, sigma = made("mixture")
    x, sigma = x[50:], sigma[50:]
    together = INTEGRATORS[name](model, x, grid(name, 4, sigma), noise=Streams(7, "image", range(50)), joint=True)
    alone = INTEGRATORS[name](model, x[:1], grid(name, 4, sigma[:1]), noise=Streams(7, "image", [0]), joint=True)
    assert not torch.equal(together[:1], alone)


# Cost


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name, entry in INTEGRATORS.items() if entry.calls])
def test_calls_are_the_declared_ones(name, n):
    model = count_nfe(images_mixture())
    x = model.sample(3, 4.0)
    INTEGRATORS[name](model, x, grid(name, n, 4.0))
    assert model.nfe == model.calls == INTEGRATORS[name].calls(n)


@pytest.mark.parametrize("name", [name for name, entry in INTEGRATORS.items() if entry.calls])
def test_levels_for_a_budget(name):
    entry = INTEGRATORS[name]
    for nfe in (entry.calls(1), 9, 10, 10.7, 25, 10**9):  # the last, of trials, by no count up to it
        n = entry.levels(nfe)
        assert entry.calls(n) <= nfe < entry.calls(n + 1)
    with pytest.raises(UserError, match=f"{name} needs at least {entry.calls(1)} NFE"):
        entry.levels(entry.calls(1) - 0.5)


def test_more_corrections_cost_more():
    model = count_nfe(images_mixture())
    integrators.predictor_corrector(model, model.sample(3, 4.0), grid("euler", 5, 4.0), corrections=3)
    assert model.calls == 5 * (1 + 3)


# Equivalences


def test_heun_without_churn_is_heun():
    model, x, sigma = made("mixture")
    sigmas = grid("heun", 6, sigma)
    assert torch.equal(integrators.heun_churn(model, x, sigmas, s_churn=0.0), integrators.heun(model, x, sigmas))


def test_dpmpp_begins_with_euler():
    model, x, _ = problem("mixture")
    sigmas = torch.tensor([3.0, 1.7], dtype=F64)
    y = integrators.dpmpp_2m(model, x, sigmas)
    assert torch.allclose(y, integrators.euler(model, x, sigmas), rtol=0, atol=1e-14)
    assert (y - x).abs().max() > 0.1


FAST = ["deis", "ipndm", "rho_rk", "dpmpp_3m", "unipc"]


@pytest.mark.parametrize(
    "name", ["euler", "heun", "dpmpp_2m", "ancestral", "reverse_diffusion", "euler_maruyama", *FAST]
)
def test_one_step_to_zero_is_the_denoiser(name):
    """And so Tweedie's formula, x + sigma^2 score; for reverse_diffusion it is the noise-free mean that is returned."""
    model, x, _ = problem("mixture")
    y = INTEGRATORS[name](model, x, torch.tensor([2.0, 0.0], dtype=F64))
    assert torch.allclose(y, model(x, torch.tensor(2.0)), rtol=0, atol=1e-14)
    assert torch.allclose(y, integrators.tweedie(model, x, 2.0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FAST)
def test_a_last_step_to_zero_is_the_denoiser_whatever_came_before(name):
    model, x, _ = problem("mixture")
    seen = []
    y = INTEGRATORS[name](model, x, schedules.karras(6, 10.0, 0.1), callback=lambda *step: seen.append(step[2:]))
    sigma, before = seen[-2]
    assert torch.allclose(y, model(before, sigma), rtol=0, atol=1e-14)


def test_what_fast_integrators_are_at_their_simplest():
    model, x, sigma = made("mixture")
    x, sigmas = x.double(), grid("euler", 6, sigma)

    def same(y, z):
        return torch.allclose(y, z, rtol=0, atol=1e-12)

    ddim = integrators.euler(model, x, sigmas)
    assert same(integrators.deis(model, x, sigmas, degree=0), ddim)
    assert same(integrators.ipndm(model, x, sigmas, degree=0), ddim)
    assert same(integrators.rho_rk(model, x, sigmas, method="2heun"), integrators.heun(model, x, sigmas))
    assert same(integrators.dpmpp_3m(model, x, sigmas[:, :3]), integrators.dpmpp_2m(model, x, sigmas[:, :3]))
    assert not same(integrators.dpmpp_3m(model, x, sigmas), integrators.dpmpp_2m(model, x, sigmas))
    equal = torch.linspace(1, 0.1, 6, dtype=F64)
    twice = integrators.deis(model, x, equal, degree=3, basis="sigma")
    assert same(integrators.ipndm(model, x, equal), twice)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_deis_in_time_is_gddim_of_the_preserving_diffusion(degree):
    model, x, _ = problem("mixture")
    sde, times = linear_sde.VP(), torch.linspace(0.6, 0.01, 9, dtype=F64)
    sigmas = sde.R(times) / sde.Psi(times, 0.0)

    def epsilon(u, t):
        sigma = sde.R(t) / sde.Psi(t, 0.0)
        return (u / sde.Psi(t, 0.0) - model(u / sde.Psi(t, 0.0), sigma)) / sigma

    y = integrators.deis(model, x, sigmas, degree=degree, basis="t")
    u = gddim.sample(sde, epsilon, x * sde.Psi(0.6, 0.0), times, degree=degree)
    assert torch.allclose(y, u / sde.Psi(0.01, 0.0), rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", ["2heun", "3kutta", "4rk"])
def test_stages_are_paid_for(method):
    model = count_nfe(images_mixture())
    integrators.rho_rk(model, model.sample(3, 4.0), grid("rho_rk", 4, 4.0), method=method)
    stages = int(method[0])
    assert model.calls == 3 * stages + 1 == INTEGRATORS["rho_rk"].calls(4, method=method)
    assert INTEGRATORS["rho_rk"].levels(20, method=method) == 1 + 19 // stages


def test_probability_flow_goes_half_of_the_last_step():
    model, x, _ = problem("mixture")
    y = integrators.probability_flow(model, x, torch.tensor([2.0, 0.0], dtype=F64))
    assert torch.allclose(y, (x + model(x, torch.tensor(2.0))) / 2, rtol=0, atol=1e-14)


def test_reverse_diffusion_last():
    model, x, _ = problem("mixture")
    to_zero, above = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 0.5])

    def last(sigmas, **options):
        return integrators.reverse_diffusion(model, x, sigmas, noise=Streams(0, "n", range(6)), **options)

    assert torch.equal(last(to_zero), last(to_zero, last="mean"))
    assert torch.equal(last(above), last(above, last="sample"))
    z = Streams(0, "n", range(6))
    z(x)
    assert torch.allclose(last(above, last="sample") - last(above, last="mean"), 0.75**0.5 * z(x), atol=1e-12)
    with pytest.raises(UserError, match="last must be one of 'mean', 'sample', not 'men'"):
        last(to_zero, last="men")


def test_predictor_corrector_without_corrections_is_the_predictor():
    model, x, sigma = made("mixture")
    sigmas = grid("predictor_corrector", 5, sigma)
    noise = [Streams(0, "n", range(100)) for _ in range(2)]
    y = integrators.predictor_corrector(model, x, sigmas, noise=noise[0], corrections=0)
    assert torch.equal(y, integrators.reverse_diffusion(model, x, sigmas, noise=noise[1]))


def test_joint_correction_of_one_row_is_the_row_s_own():
    model, x, _ = problem("mixture")
    sigmas = torch.tensor([2.0, 1.0, 0.5])
    runs = [
        integrators.predictor_corrector(model, x[:1], sigmas, noise=Streams(0, "n", [0]), joint=joint)
        for joint in (False, True)
    ]
    assert torch.equal(*runs)


def test_heun_churn_shares_its_noise_as_described():
    """One step from 2.0: the level is raised by the factor 1 + s_churn / steps, or by sqrt(2) at most."""
    model, x, _ = problem("mixture")
    z = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    for s_churn, published, share in ((0.2, False, 0.2), (0.2, True, 0.1), (80.0, False, 2**0.5 - 1)):
        options = {"s_churn": s_churn, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.007, "published": published}
        y = integrators.heun_churn(model, x, torch.tensor([2.0, 0.0], dtype=F64), noise=lambda _: z, **options)
        raised = torch.tensor(2 * (1 + share), dtype=F64)
        noisy = x + 1.007 * (raised**2 - 4).sqrt() * z
        assert torch.allclose(y, model(noisy, raised), rtol=0, atol=1e-12)


def test_euler_maruyama_published_convention():
    """N calls on N levels, every step of size 1 / N of the whole way in log sigma, the last one without noise."""
    model, n = count_nfe(gaussian()), 5
    x, z = model.sample(4, 10.0), torch.randn(n, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    sigmas = schedules.log_uniform(n, 10.0, 0.01)
    y = integrators.euler_maruyama(model, x, sigmas, noise=recorded(z), published=True)
    assert model.calls == n
    h = math.log(10.0 / 0.01) / n  # sigma^2 / dt of dx = - d(sigma^2)/dt score dt is 2 sigma^2 log(ratio)
    for i in range(n):
        sigma = 0.01 * (10.0 / 0.01) ** (1 - i / (n - 1))
        score = (model.denoiser(x, torch.tensor(sigma, dtype=F64)) - x) / sigma**2
        x = x + 2 * sigma**2 * h * score + (i < n - 1) * sigma * (2 * h) ** 0.5 * z[i]
    assert torch.allclose(y, x, rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="published=True needs a grid of levels followed by 0"):
        integrators.euler_maruyama(model, x, sigmas[:-1], published=True)


# Stochastic samplers on a Gaussian


@cache
def many():
    """A 16-dimensional anisotropic Gaussian, 4,000 exact draws at sigma 10: (model, x, mean, variances), axes first.

    In float32, whose rounding is far below what 4,000 draws can tell.
    """
    variances = torch.logspace(-1, 0.5, 16)
    mean = torch.linspace(-1, 1, 16)

    def function(x, sigma):
        return torch.addcmul(mean, x - mean, variances / (variances + sigma[:, None] ** 2))

    model = Adapter(function, (16,), sigma_max=10.0)
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(5))
    return model, mean + z * (variances + 100.0).sqrt(), mean, variances


def worst(x, mean, variances):
    """Largest deviation of means, variances and correlations, in standard errors."""
    n, z = len(x), ((x - mean) / variances.sqrt()).double()
    products = torch.triu(z.T @ z / n, diagonal=1)
    deviations = [z.mean(0).abs() * n**0.5, (z.var(0) - 1).abs() * (n / 2) ** 0.5, products.abs().flatten() * n**0.5]
    return torch.cat(deviations).max().item()


# The corrector's step size depends on the image it is at, which biases it in few dimensions; joint, it hardly does.
OPTIONS = {
    "heun_churn": {"s_tmin": 0.0, "s_tmax": 100.0, "s_noise": 1.0},
    "predictor_corrector": {"snr": 0.03, "joint": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_the_gaussian(name):
    """Mean, variances and correlations within 4.5 standard errors (the largest of 152), and not without the noise."""
    model, x, mean, variances = many()
    end = 0.05
    sigmas, expected = schedules.log_uniform(601, 10.0, end)[:-1], variances + end**2
    generator = torch.Generator().manual_seed(11)

    def normal(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    options = {"noise": normal} | OPTIONS.get(name, {})
    y = INTEGRATORS[name](model, x, sigmas, **options)
    assert worst(y, mean, expected) < 4.5
    silent = INTEGRATORS[name](model, x, sigmas[::4], **options | {"noise": torch.zeros_like})
    assert worst(silent, mean, expected) > 10
    # The start is forgotten but for what the noise leaves of it: other noise, other images.
    assert (INTEGRATORS[name](model, x, sigmas[::4], **options) - silent).abs().mean() > 0.05


@pytest.mark.parametrize("name", INTEGRATORS)
def test_only_stochastic_integrators_use_noise(name):
    model, x, sigma = made("mixture")
    y = [
        INTEGRATORS[name](model, x, grid(name, 5, sigma.clamp(min=0.5)), noise=Streams(seed, "n", range(100)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[0], y[2]) != INTEGRATORS[name].stochastic


# Ends, dtypes, callbacks, bad input


@pytest.mark.parametrize("name", INTEGRATORS)
def test_a_start_at_or_below_sigma_min(name):
    """Chains can arrive there: the grid still descends and the image hardly moves."""
    model = images_mixture()
    starts = torch.tensor([0.01, 0.005, 0.010001, 2.0])
    x = model.sample(4, starts)
    y = INTEGRATORS[name](model, x, grid(name, 4, starts), noise=Streams(0, "n", range(4)))
    assert torch.isfinite(y).all()
    assert (y - x)[:3].abs().max() < 0.1 < (y - x)[3].abs().max()


@pytest.mark.parametrize("name", INTEGRATORS)
def test_state_is_float32_at_least_and_float64_when_asked(name):
    model, sigmas = images_mixture(), grid(name, 3, 4.0)
    seen = []

    def watched(x, sigma):
        seen.append(x.dtype)
        return model(x, sigma)

    watch = Adapter(watched, model.shape)
    x = model.sample(2, 4.0)
    for given, kept in ((torch.float16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        seen.clear()
        y = INTEGRATORS[name](watch, x.to(given), sigmas, noise=Streams(0, "n", range(2)))
        assert y.dtype == kept and set(seen) == {kept}


@pytest.mark.parametrize("name", ["euler_maruyama", "rk45"])
def test_log_sigma_cannot_reach_zero(name):
    model, sigmas = images_mixture(), torch.tensor([4.0, 1.0, 0.0])
    x, function = model.sample(2, 4.0), getattr(integrators, name)
    with pytest.raises(UserError, match="cannot reach 0"):
        function(model, x, sigmas)
    noise = [Streams(0, "n", range(2)) for _ in range(2)]
    y = function(model, x, sigmas, last="tweedie", noise=noise[0])
    at_one = function(model, x, sigmas[:-1], noise=noise[1])
    assert torch.equal(y, integrators.tweedie(model, at_one, 1.0))
    with pytest.raises(UserError, match="last must be one of None, 'tweedie', not 'mean'"):
        function(model, x, sigmas, last="mean")


@pytest.mark.parametrize("name", INTEGRATORS)
def test_callback_sees_every_step(name):
    model, sigmas, seen = images_mixture(), grid(name, 3, torch.tensor([4.0, 2.0])), []
    x = model.sample(2, 4.0)
    y = INTEGRATORS[name](model, x, sigmas, callback=lambda *step: seen.append(step))
    steps = 1 if name == "rk45" else 3
    assert [s[:2] for s in seen] == [(i + 1, steps) for i in range(steps)]
    assert torch.equal(seen[-1][2], sigmas[:, -1]) and torch.equal(seen[-1][3], y)


@pytest.mark.parametrize("name", INTEGRATORS)
@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 2.0, 0.0], "strictly descend"),
        ([2.0, 1.0, -0.5], "at least 0"),
        ([2.0, math.nan, 0.0], "finite"),
        ([2.0], r"shape \(N \+ 1,\)"),
        ([[2.0, 1.0, 0.0]] * 3, "3 rows for 2 samples"),
    ],
)
def test_bad_grids_are_refused(name, sigmas, message):
    model = images_mixture()
    with pytest.raises(UserError, match=message):
        INTEGRATORS[name](model, model.sample(2, 4.0), torch.tensor(sigmas))


@pytest.mark.parametrize("name", INTEGRATORS)
def test_what_the_model_cannot_answer_is_refused(name):
    model = images_mixture()
    x = model.sample(2, 4.0)
    with pytest.raises(UserError, match="at or below the model's sigma_max = 4, not at 80"):
        INTEGRATORS[name](model, x, torch.tensor([80.0, 1.0, 0.0]))
    with pytest.raises(UserError, match="not go below the model's sigma_min = 0.01 but to 0, not to 0.002"):
        INTEGRATORS[name](model, x, torch.tensor([4.0, 1.0, 0.002, 0.0]))
    with pytest.raises(UserError, match="not to 0.002"):
        INTEGRATORS[name](model, x, torch.tensor([[4.0, 1.0, 0.01, 0.0], [4.0, 0.01, 0.002, 0.0]]))
    x[1] = math.nan
    with pytest.raises(UserError, match="x must be finite"):
        INTEGRATORS[name](model, x, torch.tensor([4.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("heun_churn", {"s_churn": -5}, "s_churn must be a finite number, at least 0, not -5"),
        ("heun_churn", {"s_noise": math.nan}, "s_noise must be a finite number, at least 0, not nan"),
        ("heun_churn", {"s_tmax": "one"}, "s_tmax must be a number, at least 0, not 'one'"),
        ("predictor_corrector", {"snr": math.inf}, "snr must be a finite number, at least 0, not inf"),
        ("predictor_corrector", {"corrections": 1.5}, "corrections must be a whole number, at least 0, not 1.5"),
        ("predictor_corrector", {"last": "tweedie"}, "last must be one of None, 'mean', 'sample', not 'tweedie'"),
        ("rk45", {"tol": "small"}, "tol must be a finite number, above 0, not 'small'"),
        ("deis", {"degree": 4}, "degree must be a whole number, at least 0 and at most 3, not 4"),
        ("deis", {"basis": "rh"}, "basis must be one of 'sigma', 'rho', 'log', 't', not 'rh'"),
        ("ipndm", {"degree": 1.0}, "degree must be a whole number, at least 0 and at most 3, not 1.0"),
        ("rho_rk", {"method": "3heun"}, "method must be one of '2heun', '3kutta', '4rk', not '3heun'"),
        ("unipc", {"order": 1}, "order must be a whole number, at least 2 and at most 3, not 1"),
        ("unipc", {"variant": "bh3"}, "variant must be one of 'bh1', 'bh2', not 'bh3'"),
        ("dpmpp_3m", {"published": "yes"}, "published must be one of True, False, not 'yes'"),
        ("rk45", {"max_steps": True}, "max_steps must be a whole number, at least 1, not True"),
    ],
)
def test_options_outside_their_range_are_refused(name, options, message):
    """Called directly too; no sampler is blamed for them afterwards."""
    model = images_mixture()
    with pytest.raises(UserError, match=message):
        INTEGRATORS[name](model, model.sample(2, 4.0), torch.tensor([4.0, 1.0, 0.0]), **options)


def test_churn_has_no_upper_end_where_edm_has_none():
    model, x = images_mixture(), images_mixture().sample(2, 4.0)
    y = [
        integrators.heun_churn(model, x, grid("heun", 3, 4.0), noise=Streams(0, "n", range(2)), s_tmax=s_tmax)
        for s_tmax in (math.inf, 100.0)
    ]
    assert torch.equal(*y)


def test_the_callers_tensors_are_left_alone():
    model, x, sigma = made("mixture")
    for name in INTEGRATORS:
        before, sigmas = x.clone(), grid(name, 3, sigma)
        kept = sigmas.clone()
        INTEGRATORS[name](model, x, sigmas)
        assert torch.equal(x, before) and torch.equal(sigmas, kept), name


def test_unknown_integrator_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'heun_churn'"):
        integrators.INTEGRATORS["heun_chrn"]
