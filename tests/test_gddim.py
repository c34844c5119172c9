"""gDDIM: the numbers of the literature, exactness where the paper proves it, orders, and what it equals."""

import functools
import math

import pytest
import torch
from scipy.integrate import quad_vec, solve_ivp

from dmcmc_core import gddim, schedules
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.errors import UserError
from dmcmc_core.gddim.baselines import slope
from dmcmc_core.linear_sde import BDM, CLD, VE, VP, SubVP

GRID = schedules.power(10, 1.0, 1e-3)
EVERY = [VP(), SubVP(), VE(), BDM(image_size=4, sigma_blur_max=2.0), CLD()]


def close(x, *values, abs=6e-9):
    assert x.flatten().tolist() == pytest.approx(list(values), abs=abs)


def t64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_a_point(sde, clean):
    """epsilon where all data are one point: R^-1 (u - Psi u_0)."""
    return lambda u, t: sde.apply(sde.inverse(sde.R(t)), u - sde.apply(sde.gain(t), sde.lift(clean)))


def state_of(sde, clean, t, z):
    return sde.apply(sde.gain(t), sde.lift(clean)) + sde.apply(sde.R(t), z)


# ---- coefficients ----------------------------------------------------------------------------------------------------


def test_coefficients_are_the_published_ones():
    one, two = gddim.predictor_coefficients(CLD(), GRID, 1)[:2]
    close(gddim.predictor_coefficients(CLD(), GRID, 0)[0], 2.60809816, 5.24900217, -3.15305796, -5.11492584)
    assert one.shape == (1, 2, 2) and two.shape == (2, 2, 2)
    close(two[0], 4.89399919, -1.94835426, -5.37216246, 2.85354398)
    close(two[1], -0.8636593, 0.54185896, 1.09597031, -0.9089619)
    close(gddim.stochastic_covariance(CLD(), 0.9, 1.0, 1.0), 0.21662879, -0.12919923, -0.12919923, 0.21566097)


@pytest.mark.parametrize("sde", EVERY, ids=str)
def test_the_weights_of_a_step_add_up(sde):
    """To R_s - Psi R_t, for any degree and with the corrector too: a constant epsilon is integrated exactly."""
    grid = schedules.power(6, sde.t_max, sde.t_min)
    for degree in range(4):
        for make in (gddim.predictor_coefficients, gddim.corrector_coefficients):
            for i, weights in enumerate(make(sde, grid, degree)):
                t, s = grid[i], grid[i + 1]
                wanted = sde.R(s) - sde.product(sde.Psi(s, t), sde.R(t))
                assert (weights.sum(0) - wanted).abs().max() < 1e-11 * (1 + wanted.abs().max())
                assert len(weights) == min(degree, i + (make is gddim.corrector_coefficients)) + 1


@pytest.mark.parametrize("root", ["R", "L"])
def test_coefficients_are_the_integrals_of_the_paper(root):
    """Eq. 19 by another rule, for CLD and a scalar diffusion; polynomials up to the degree are integrated exactly."""
    for sde in (CLD(), VP()):
        weights = gddim.predictor_coefficients(sde, GRID, 2, root)[4]
        t, s, nodes = GRID[4].item(), GRID[5].item(), GRID[[4, 3, 2]].tolist()
        for j, node in enumerate(nodes):
            others = [other for other in nodes if other != node]

            def integrand(tau, sde=sde, s=s, node=node, others=others):
                inverse = sde.transpose(sde.inverse(getattr(sde, root)(tau)))
                lagrange = math.prod((tau - other) / (node - other) for other in others)
                return (lagrange / 2 * sde.product(sde.product(sde.Psi(s, tau), sde.GG(tau)), inverse)).numpy()

            found = quad_vec(integrand, t, s, epsabs=1e-13, epsrel=1e-12)[0]
            assert torch.allclose(weights[j], torch.as_tensor(found, dtype=torch.float64), atol=1e-10), (sde, j)


@pytest.mark.parametrize("sde", EVERY, ids=str)
def test_the_covariance_of_a_stochastic_step(sde):
    for lam in (0.0, 0.4, 1.0, 2.0):
        t, s = 0.3, 0.6
        p = gddim.stochastic_covariance(sde, t, s, lam)
        stretch = sde.product(sde.product(sde.R(t), sde.stretch(t, s, lam)), sde.inverse(sde.R(s)))
        kept = sde.product(sde.product(stretch, sde.Sigma(s)), sde.transpose(stretch))
        assert torch.allclose(p, sde.Sigma(t) - kept, atol=1e-11)
        assert lam or p.abs().max() < 1e-12


def test_the_published_code_adds_too_much_noise():
    right, released = (f(CLD(), 0.01, 0.02, 1.0) for f in (gddim.stochastic_covariance, gddim.released_covariance))
    assert right[0, 0].item() == pytest.approx(9.8e-5, rel=5e-3)
    assert released[0, 0].item() == pytest.approx(6.3e-3, rel=1e-2)


# ---- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", EVERY, ids=str)
def test_one_step_recovers_a_point(sde):
    clean, z = normals(3, 1, 4, 4), normals(3, sde.parts, 4, 4, seed=1)
    start = state_of(sde, clean, sde.t_max, z)
    model = of_a_point(sde, clean)
    for n, options in ((1, {}), (6, {"degree": 2}), (6, {"degree": 3, "corrector": True})):
        end = gddim.sample(sde, model, start, schedules.power(n, sde.t_max, sde.t_min), **options)
        assert (end - state_of(sde, clean, sde.t_min, z)).abs().max() < 1e-8
    image = gddim.sample(sde, model, start, schedules.power(1, sde.t_max, sde.t_min), last="clean")
    assert (sde.drop(image) - clean).abs().max() < 1e-8


@pytest.mark.parametrize("sde", EVERY, ids=str)
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 1.7])
def test_marginals_are_kept_by_any_noise_and_any_step(sde, lam):
    """Of one step of any length, as a map of state and noise: mean to mean, and M Sigma_s M^T + N N^T = Sigma_t."""
    clean, dimension = normals(1, 1, 4, 4), sde.parts * 16
    shape, size = (1, sde.parts, 4, 4), (dimension, sde.parts, 4, 4)
    basis = torch.eye(dimension, dtype=torch.float64).reshape(size)
    model, none = of_a_point(sde, clean), torch.zeros_like
    for s, t in ((sde.t_max, sde.t_min + 1e-3), (0.5, 0.45), (0.9, 0.1)):
        step = functools.partial(gddim.sample, sde, model, grid=t64(s, t), degree=0, lam=lam)
        mean = state_of(sde, clean, s, torch.zeros(shape, dtype=torch.float64))
        moved = step(u=mean, noise=none)
        assert (moved - state_of(sde, clean, t, torch.zeros(shape, dtype=torch.float64))).abs().max() < 1e-9
        root = sde.rows(sde.R(t64(s)), basis)
        linear = (step(u=mean + root, noise=none) - moved).reshape(dimension, dimension)
        noisy = (step(u=mean.expand(size), noise=lambda u: basis) - moved).reshape(dimension, dimension)
        wanted = sde.rows(sde.R(t64(t)), basis).reshape(dimension, dimension)
        assert (linear.T @ linear + noisy.T @ noisy - wanted.T @ wanted).abs().max() < 1e-9
        assert lam or noisy.abs().max() < 1e-6


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_on_vp_it_is_ddim(eta):
    """DDIM as Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16, writes it."""
    sde, grid, generator = VP(), schedules.power(7, 1.0, 1e-3), torch.Generator().manual_seed(3)
    model = gddim.from_denoiser(sde, mixture())
    drawn = [normals(5, 1, 2, 2, seed=10 + i) for i in range(7)]
    u = x = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=generator)
    left = iter(drawn)
    found = gddim.sample(sde, model, u, grid, degree=0, lam=eta, noise=lambda _: next(left))
    for (t, s), z in zip(zip(grid[:-1], grid[1:], strict=True), drawn, strict=True):
        a, b = 1 - sde.Sigma(t), 1 - sde.Sigma(s)
        epsilon = model(x, t)
        variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        clean = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
        x = b.sqrt() * clean + (1 - b - variance).clamp(min=0).sqrt() * epsilon + variance.sqrt() * z
    assert (found - x).abs().max() < 1e-10


def test_on_bdm_it_is_ddim_of_every_frequency():
    sde, grid, z = BDM(image_size=4, sigma_blur_max=2.0), schedules.power(5, 0.99, 1e-5), normals(3, 1, 4, 4)
    model = lambda u, t: torch.tanh(u + t)  # noqa: E731
    y = z
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        epsilon = model(y, t)
        y = sde.gain(s) * (y - sde.R(t) * epsilon) / sde.gain(t) + sde.R(s) * epsilon
    assert (gddim.sample(sde, model, z, grid, degree=0) - y).abs().max() < 1e-9


# ---- orders ----------------------------------------------------------------------------------------------------------


def mixture():
    means = torch.tensor([[-0.6, 0.2, 0.1, -0.3], [0.5, -0.4, 0.3, 0.6], [0.1, 0.7, -0.5, 0.2]]).double()
    means = means.reshape(3, 1, 2, 2)
    covs = torch.diag_embed(
        torch.tensor([[0.05, 0.1, 0.2, 0.05], [0.1, 0.1, 0.05, 0.2], [0.3, 0.1, 0.1, 0.1]]).double()
    )
    return GaussianMixture(means, covs, t64(0.5, 0.3, 0.2))


@pytest.fixture(scope="module")
def trajectory():
    """A probability-flow trajectory of CLD on the mixture, by SciPy's eighth-order method: times -> states."""
    sde, model = CLD(), gddim.from_denoiser(CLD(), mixture())
    start = sde.apply(sde.prior, normals(4, 2, 2, 2))

    def rate(t, y):
        return slope(sde, model, torch.from_numpy(y).reshape(start.shape), t).numpy().ravel()

    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-12, "dense_output": True}
    solution = solve_ivp(rate, (0.75, 0.3), start.numpy().ravel(), **options)
    return sde, model, lambda t: torch.from_numpy(solution.sol(t)).reshape(start.shape)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_order_of_the_predictor_is_its_degree_and_one_more(trajectory, degree):
    sde, model, at = trajectory
    errors = []
    for n in (12, 24):
        grid = torch.linspace(0.5, 0.3, n + 1, dtype=torch.float64)
        h = 0.2 / n
        earlier = [0.5 + h * (k + 1) for k in range(degree)]
        history = [model(at(t), t64(t)[0]) for t in earlier]
        end = gddim.sample(sde, model, at(0.5), grid, degree=degree, history=history, earlier=earlier)
        errors.append((end - at(0.3)).abs().max().item())
    order = math.log2(errors[0] / errors[1])
    assert degree + 0.7 < order < degree + 1.6, (order, errors)


def test_warming_up_by_lower_degrees_caps_the_order_at_two(trajectory):
    sde, model, at = trajectory
    errors = [
        (gddim.sample(sde, model, at(0.5), torch.linspace(0.5, 0.3, n + 1, dtype=torch.float64), degree=3) - at(0.3))
        .abs()
        .max()
        for n in (32, 64, 128)
    ]
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(1.6 < order < 2.4 for order in orders), orders


def test_the_corrector_gains_on_its_predictor(trajectory):
    sde, model, at = trajectory
    grid = torch.linspace(0.5, 0.3, 33, dtype=torch.float64)
    plain, corrected = (
        (gddim.sample(sde, model, at(0.5), grid, degree=1, corrector=c) - at(0.3)).abs().max() for c in (False, True)
    )
    assert corrected < plain / 2


def test_the_cholesky_coordinates_fail_at_few_steps_and_a_high_degree():
    """The pattern of the paper's Table 1, without a network: from pure noise, and against the exact flow."""
    sde, model = CLD(), gddim.from_denoiser(CLD(), mixture())
    u = sde.apply(sde.prior, normals(32, 2, 2, 2, seed=5))
    exact = gddim.rk45(sde, model, u, t64(1.0, 1e-3), tol=1e-5)
    error = {
        root: [
            (sde.drop(gddim.sample(sde, model, u, schedules.power(20, 1.0, 1e-3), degree=d, root=root) - exact))
            .square()
            .mean()
            .sqrt()
            .item()
            for d in (0, 2, 3)
        ]
        for root in ("R", "L")
    }
    assert error["R"][2] < error["R"][1] < error["R"][0] < 0.2
    assert all(low > 5 * r for low, r in zip(error["L"], error["R"], strict=True)) and error["L"][2] > 100


# ---- what it is compared with ----------------------------------------------------------------------------------------


def covariance_after(step, sde, covariance, grid):
    """Of a state whose steps are linear: M C M^T, and N N^T for every draw of noise, added up over the steps.

    All in one batch: the first rows find M without noise, those of each draw what becomes of it alone.
    """
    size, most = sde.parts, 3
    basis = torch.eye(size, dtype=torch.float64).reshape(size, size, 1, 1)
    start = torch.cat([basis, torch.zeros(most * size, size, 1, 1)])
    for pair in zip(grid[:-1], grid[1:], strict=True):
        rows = iter(range(size, len(start), size))  # of the next draw

        def noise(u, rows=rows):
            first = next(rows)
            return torch.cat([torch.zeros_like(u[:first]), basis, torch.zeros_like(u[first + size :])])

        moved, *added = step(u=start, grid=torch.stack(pair), noise=noise).reshape(-1, size, size)
        covariance = moved.T @ covariance @ moved + sum(n.T @ n for n in added)
    return covariance


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(sigma_max=3.0), CLD()], ids=str)
def test_stochastic_baselines_keep_the_law_of_a_gaussian(sde):
    """Of Gaussian data the covariance is that of the diffusion, up to a bias that falls as declared with the steps."""
    spread, s, t = 0.4, 0.8, 0.2
    shapes = {(1, 1, 1, 1): 0.0, (1,): spread}
    data = GaussianMixture(*(torch.full(shape, v).double() for shape, v in shapes.items()), torch.ones(1).double())
    model = gddim.from_denoiser(sde, data)

    def wanted(at):
        gain = sde.gain(at).reshape(sde.parts, sde.parts)
        return spread**2 * gain @ sde.of_data.reshape(gain.shape) @ gain.T + sde.Sigma(at).reshape(gain.shape)

    samplers = {"euler_maruyama": (gddim.euler_maruyama, {}, 1)}
    samplers["half the noise"] = (gddim.euler_maruyama, {"lam": 0.5}, 1)
    if isinstance(sde, CLD):
        samplers["sscs"] = (gddim.sscs, {}, 1)
    for name, (function, options, order) in samplers.items():
        errors = []
        for n in (100, 200):
            step, grid = functools.partial(function, sde, model, **options), torch.linspace(s, t, n + 1).double()
            found = covariance_after(step, sde, wanted(s), grid)
            errors.append(((found - wanted(t)).abs().max() / wanted(t).abs().max()).item())
        assert errors[1] < 0.15 and abs(math.log2(errors[0] / errors[1]) - order) < 0.25, (name, errors)


def test_ancestral_sampling_is_the_posterior_of_ddpm_and_its_last_step_the_mean():
    """On VP a step is that of gDDIM at lambda = 1 (Theorem 1); the last of a grid has no noise."""
    sde, model, z = VP(), gddim.from_denoiser(VP(), mixture()), normals(5, 1, 2, 2, seed=9)
    u, grid = normals(5, 1, 2, 2), t64(0.9, 0.6, 0.3)
    one = gddim.sample(sde, model, u, grid[:2], lam=1.0, noise=lambda _: z)
    mean = gddim.sample(sde, model, one, grid[1:], lam=1.0, noise=torch.zeros_like)
    assert (gddim.ancestral(sde, model, u, grid, noise=lambda _: z) - mean).abs().max() < 1e-10


def test_heun_and_rk45_follow_the_flow(trajectory):
    sde, model, at = trajectory
    errors = [
        (gddim.heun(sde, model, at(0.5), torch.linspace(0.5, 0.3, n + 1, dtype=torch.float64)) - at(0.3)).abs().max()
        for n in (32, 64)
    ]
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.2
    loose = gddim.rk45(sde, model, at(0.5), t64(0.5, 0.3), tol=1e-4)
    assert 1e-9 < (loose - at(0.3)).abs().max() < 1e-3


def test_calls_are_what_is_declared():
    sde, made = CLD(), []
    model = lambda u, t: made.append(float(t)) or torch.zeros_like(u)  # noqa: E731
    u, grid = normals(2, 2, 2, 2), schedules.power(5, 1.0, 1e-3)
    for run, calls in (
        (functools.partial(gddim.sample), 5),
        (functools.partial(gddim.sample, corrector=True), 9),
        (functools.partial(gddim.sample, lam=0.5), 5),
        (functools.partial(gddim.sample, last="euler"), 6),
        (gddim.euler_maruyama, 5),
        (gddim.heun, 10),
        (gddim.sscs, 5),
    ):
        made.clear()
        run(sde, model, u, grid)
        assert len(made) == calls
    made.clear()
    gddim.ancestral(VP(), model, u, grid)
    assert len(made) == 5


def test_a_state_that_ran_away_is_no_fault_of_the_network():
    """It ends in values that are not finite, which whoever asked for the images is told of."""
    made = gddim.euler_maruyama(CLD(), lambda u, t: 1e30 * u, normals(2, 2, 2, 2).float(), GRID)
    assert not made.isfinite().all()


def test_several_seeds_are_drawn_as_each_by_itself():
    model = gddim.from_denoiser(VP(), mixture())
    one = [gddim.draw(model, "gddim", 4, 3, seed, lam=1.0, degree=0) for seed in (0, 7)]
    both = gddim.draw(model, "gddim", 4, 3, [0, 7], lam=1.0, degree=0)
    assert torch.equal(both.images, torch.cat([made.images for made in one])) and both.nfe == one[0].nfe == 4


def test_both_halves_of_a_guided_call_count_for_the_budget():
    seen = []
    model = gddim.from_denoiser(VP(), mixture())
    twice = lambda u, t: seen.append(2 * len(u)) or model(u, t)  # noqa: E731
    twice.sde, twice.shape, twice.rows_per_image = model.sde, model.shape, 2
    made = gddim.draw(twice, "gddim", 10, 3, 0)
    assert made.nfe == sum(seen) / 3 == 10


def test_what_is_refused():
    sde, model, u = CLD(), lambda u, t: u, normals(2, 2, 2, 2)
    for options, words in (
        ({"degree": 6}, "degree 6 needs at least 7 steps, and the grid has 5: at most 4 is possible"),
        ({"degree": -1}, "degree must be a whole number from 0"),
        ({"lam": -0.5}, "lambda must be at least 0 and finite, not -0.5"),
        ({"lam": 0.5, "degree": 2}, "lam=0.5 goes with degree 0"),
        ({"root": "Q"}, "root must be 'R' or 'L'"),
        ({"root": "L", "lam": 0.5}, "noise of lam=0.5 is defined in the coordinates R alone"),
        ({"history": [u]}, "history has 1 values for 0 times"),
        ({"last": "now"}, "last must be None, 'clean' or 'euler'"),
        ({"corrector": 3}, "corrector must be True or False, not 3"),
        ({"lam": 1.0, "released": "no"}, "released must be True or False, not 'no'"),
        ({"lam": torch.ones(2)}, "lambda must be at least 0 and finite, not tensor"),
    ):
        with pytest.raises(UserError, match=words):
            gddim.sample(sde, model, u, schedules.power(5, 1.0, 1e-3), **options)
    for grid, words in (
        ([0.1, 0.5], "grid must descend"),
        ([1.2, 0.5], "t must lie between 0 and 1"),
        ([1.0], r"with N at least 1, not of shape \(1,\)"),
        (["a", "b"], "grid must be descending times"),
    ):
        with pytest.raises(UserError, match=words):
            gddim.sample(sde, model, u, grid)
    for wrong, words in ((u[:, :1], "as many velocities"), ([0.0], "not list"), (u / 0, "NaN or infinity")):
        for sampler in (gddim.sample, gddim.heun, gddim.rk45, gddim.sscs, gddim.euler_maruyama):
            with pytest.raises(UserError, match=words):
                sampler(sde, model, wrong, GRID)
    with pytest.raises(UserError, match="is the DCT of images 32x32"):
        gddim.sample(BDM(), model, u, schedules.power(5, 0.9, 1e-3))
    with pytest.raises(UserError, match="BDM has noise of its own"):
        gddim.from_denoiser(BDM(), mixture())
    with pytest.raises(UserError, match="2 channels for each of the images"):
        gddim.sample(sde, lambda u, t: u[:, :1], u, GRID)
    for answer, words in (
        (None, "a tensor of floating-point numbers like the state, not a NoneType"),
        ((u, u), "not a tuple"),
        (u.numpy(), "not a ndarray"),
        (u.long(), "not numbers of torch.int64"),
        (u / 0, "epsilon is not finite at t = [01].*, for a finite state"),
        (u[:1], r"one epsilon of that shape, 2 channels for each of the images, not \(1, 2, 2, 2\)"),
    ):
        for sampler in (gddim.sample, gddim.heun, gddim.rk45, gddim.sscs, gddim.euler_maruyama):
            with pytest.raises(UserError, match=words):
                sampler(sde, lambda u, t, answer=answer: answer, u, GRID)
    for of in (gddim.stochastic_covariance, gddim.released_covariance):
        for (s, t), words in (
            (("a", 0.1), "s must be one time, a number between 0 and 1, not 'a'"),
            ((0.1, None), "t must be one time, a number between 0 and 1, not None"),
            ((torch.rand(2), 0.1), "s must be one time"),
            ((True, 0.1), "s must be one time"),
            ((0.1, 0.5), "grid must descend"),
            ((1.5, 0.1), "t must lie between 0 and 1, not be 1.5"),
        ):
            with pytest.raises(UserError, match=words):
                of(sde, t, s, 0.5)
        for lam in ("1", None, [0.5], torch.ones(2), float("nan"), -1):
            with pytest.raises(UserError, match="lambda must be at least 0"):
                of(sde, 0.1, 0.5, lam)
    with pytest.raises(UserError, match="released=True is the covariance"):
        gddim.sample(VP(), model, u, GRID, lam=1.0, released=True)
    with pytest.raises(UserError, match="sscs splits the velocities of CLD, which VP has not"):
        gddim.sscs(VP(), model, u, GRID)
    with pytest.raises(UserError, match="use sscs"):
        gddim.ancestral(CLD(), model, u, GRID)
