"""Kernels on (x, sigma) against exact draws from the joint distribution; and that a wrong kernel would be seen."""

import functools
import math
from typing import NamedTuple

import pytest
import torch
from exact import F64, OneStream, covariance, images_mixture

from dmcmc_core import adaptation, analytic, mcmc, noise_level
from dmcmc_core.analytic import EmpiricalData, GaussianMixture
from dmcmc_core.denoiser import count_nfe, like, score
from dmcmc_core.errors import UserError
from dmcmc_core.mcmc import ChainState, gibbs, hamiltonian, langevin, langevin_gibbs, mala, then
from dmcmc_core.noise_level import ClassifierPosterior, ExactPosterior, argmax, entropy, log_levels
from dmcmc_core.streams import Streams

CHAINS, BURN_IN, STEPS = 400, 60, 120
LEVELS = torch.logspace(math.log10(2.0), math.log10(0.1), 9, dtype=F64)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(analytic, "BLOCK", CHAINS)  # small rows: one call for all chains
    return in_the_plane()


def in_the_plane():
    """Two unequal components, one of them slanted, near enough for chains to go between."""
    covariances = torch.stack([covariance([0.04, 0.4]), 0.15 * torch.eye(2, dtype=F64)])
    means = torch.tensor([[-0.6, 0.0], [1.0, 0.4]], dtype=F64)
    return GaussianMixture(means, covariances, torch.tensor([0.7, 0.3]), sigma_min=0.1, sigma_max=2.0)


# The joint distribution


def statistics(model, x, sigma):
    """What is compared, (..., S): moments of x and log sigma, their products, and the share of the first component."""
    a, b, s = x[..., 0], x[..., 1], sigma.log()
    first = model._log_joint(*model._offsets(x.reshape(-1, 2)), sigma.reshape(-1)).softmax(-1)[:, 0].reshape(a.shape)
    near = (sigma < 0.5).to(x)
    return torch.stack(
        [a, b, s, a * a, a * b, b * b, s * s, a * s, a * a * s, b * b * near, first, first * near, near], -1
    )


class Result(NamedTuple):
    """Largest deviation in standard errors, smallest effective sample size of a statistic, mean acceptance."""

    worst: float
    effective: float
    acceptance: float


def run(model, kernel):
    """Independent chains from one bad start; the spread of their means is the standard error, whatever their mixing."""
    rng = OneStream(4)
    state = ChainState(model.means[1].expand(CHAINS, 2).clone(), torch.full((CHAINS,), 2.0, dtype=F64))
    seen, acceptance = [], []
    for i in range(BURN_IN + STEPS):
        state, info = kernel(state, rng)
        if i >= BURN_IN:
            seen.append(statistics(model, state.x, state.sigma))
            acceptance.append(info.acceptance.mean().item())
    seen = torch.stack(seen, 1)  # (chains, steps, statistics)
    n, mean, variance = of_exact_draws()
    of_chains = seen.mean(1).var(0) / CHAINS
    z = (seen.mean((0, 1)) - mean).abs() / (of_chains + variance / n).sqrt()
    return Result(z.max().item(), (variance / of_chains).min().item(), sum(acceptance) / len(acceptance))


@functools.cache
def of_exact_draws():
    """How many there are of the joint distribution, and the mean and variance of their statistics."""
    model, n = in_the_plane(), 20_000
    sigma = LEVELS[torch.randint(len(LEVELS), (n,), generator=torch.Generator().manual_seed(0))]
    exact = statistics(model, model.sample(n, sigma, seed=8), sigma)
    return n, exact.mean(0), exact.var(0)


HAMILTONIAN = {"leapfrogs": 3}
UNDERDAMPED = {"persistence": 0.7}


@pytest.mark.parametrize("options", [HAMILTONIAN, UNDERDAMPED, HAMILTONIAN | UNDERDAMPED])
def test_hamiltonian_kernels_reach_the_joint_distribution(model, options):
    """The same comparison as for the Langevin kernel, by the same bounds."""
    result = run(model, then(hamiltonian(model, 0.6, "sigma2", **options), gibbs(ExactPosterior(model, LEVELS))))
    assert result.effective > 1000, result
    assert 0.5 < result.acceptance < 0.99, result
    assert result.worst < 4, result


@pytest.mark.parametrize("options", [HAMILTONIAN, UNDERDAMPED])
def test_hamiltonian_kernels_without_the_test_are_biased(model, options):
    kernel = hamiltonian(model, 1.5, "sigma2", adjusted=False, **options)
    assert run(model, then(kernel, gibbs(ExactPosterior(model, LEVELS)))).worst > 8


def test_a_momentum_that_goes_on_after_a_rejection_is_seen(model):
    """The test is only right with the momentum turned round."""
    inner = hamiltonian(model, 5.0, "sigma2", persistence=0.9)

    def wrong(state, rng):
        after, info = inner(state, rng)
        stayed = like((after.x == state.x).all(1), after.x) > 0
        return after._replace(momentum=torch.where(stayed, -after.momentum, after.momentum)), info

    level = gibbs(ExactPosterior(model, LEVELS))
    assert run(model, then(inner, level)).worst < 4 and run(model, then(wrong, level)).worst > 8


@pytest.mark.parametrize(("eta", "step"), [(0.8, "sigma2"), (0.25, "constant")])
def test_adjusted_kernel_and_exact_posterior_reach_the_joint_distribution(model, eta, step):
    """Within 4 standard errors (the largest of 13), from at least 1,000 effective draws, most proposals accepted."""
    result = run(model, then(mala(model, eta, step), gibbs(ExactPosterior(model, LEVELS))))
    assert result.effective > 1000, result
    assert 0.5 < result.acceptance < 0.99, result
    assert result.worst < 4, result


def unadjusted(model, eta):
    return langevin(model, eta, "sigma2")


def other_drift(model, eta):
    """Twice the drift, tested as if it were the right one."""

    def kernel(state, rng):
        x, sigma = state[:2]
        e = like(eta * sigma**2, x)
        s = score(model, x, sigma)
        y = x + e * s + e.sqrt() * rng(x)
        back = (x - y - e / 2 * score(model, y, sigma)).pow(2).sum(1) - (y - x - e / 2 * s).pow(2).sum(1)
        ratio = model.log_prob(y, sigma) - model.log_prob(x, sigma) - back / (2 * e[:, 0])
        accepted = rng.uniform(sigma) < ratio.exp()
        return ChainState(torch.where(accepted[:, None], y, x), sigma), mcmc.Info(
            ratio.exp().clamp(max=1), sigma, sigma
        )

    return kernel


def no_way_back(model, eta):
    """The test without the proposal's own density, as for a symmetric one."""

    def kernel(state, rng):
        x, sigma = state[:2]
        e = like(eta * sigma**2, x)
        y = x + e / 2 * score(model, x, sigma) + e.sqrt() * rng(x)
        ratio = model.log_prob(y, sigma) - model.log_prob(x, sigma)
        accepted = rng.uniform(sigma) < ratio.exp()
        return ChainState(torch.where(accepted[:, None], y, x), sigma), mcmc.Info(
            ratio.exp().clamp(max=1), sigma, sigma
        )

    return kernel


@pytest.mark.parametrize("wrong", [unadjusted, other_drift, no_way_back])
def test_a_wrong_step_is_seen(model, wrong):
    """The same comparison, the same number of draws: 8 standard errors and more."""
    result = run(model, then(wrong(model, 1.0), gibbs(ExactPosterior(model, LEVELS))))
    assert result.effective > 1000 and result.worst > 8, result


class Wrong(ExactPosterior):
    """A posterior whose log probabilities or whose levels are not those of the model."""

    def __init__(self, model, temper=1.0, shift=0):
        super().__init__(model, LEVELS)
        self.temper, self.shift = temper, shift

    def log_probs(self, x):
        return (super().log_probs(x) * self.temper).log_softmax(-1).roll(self.shift, -1)


@pytest.mark.parametrize("wrong", [{"temper": 0.6}, {"temper": 1.4}, {"shift": 1}, {"shift": -1}])
def test_a_wrong_posterior_is_seen(model, wrong):
    result = run(model, then(mala(model, 0.8, "sigma2"), gibbs(Wrong(model, **wrong))))
    assert result.worst > 8, result


def test_the_most_likely_level_is_no_draw(model):
    """What the published code does is not a Gibbs step, and the comparison says so."""
    assert run(model, then(mala(model, 0.8, "sigma2"), gibbs(ExactPosterior(model, LEVELS), "argmax"))).worst > 8


def test_one_step_from_exact_draws_leaves_them_exact(model):
    """Invariance alone, of each half of the step, whatever the mixing: 20,000 draws, one step."""
    n = 20_000
    sigma = LEVELS[torch.randint(len(LEVELS), (n,), generator=torch.Generator().manual_seed(1))]
    state, rng = ChainState(model.sample(n, sigma, seed=1), sigma), OneStream(0)
    before = statistics(model, state.x, state.sigma)
    for kernel in (mala(model, 0.8, "sigma2"), gibbs(ExactPosterior(model, LEVELS))):
        after = statistics(model, *kernel(state, rng)[0][:2])
        moved = after - before
        z = moved.mean(0).abs() / (moved.std(0) / n**0.5).clamp(min=1e-12)
        assert z.max() < 4 and moved.abs().max() > 0.1
    moved = statistics(model, *langevin(model, 1.2, "sigma2")(state, rng)[0][:2]) - before
    assert (moved.mean(0).abs() / (moved.std(0) / n**0.5).clamp(min=1e-12)).max() > 8


# Pieces


def test_langevin_formula(model):
    """x + (e / 2) score + sqrt(e) z with e = eta, or eta sigma^2; one call."""
    sigma = torch.tensor([0.2, 1.0], dtype=F64)
    counted, x = count_nfe(model), model.sample(2, sigma)
    z = Streams(0, "chain", range(2))(x)
    for step, e in (("constant", torch.full_like(sigma, 0.3)), ("sigma2", 0.3 * sigma**2)):
        state, info = langevin(counted, 0.3, step)(ChainState(x, sigma), Streams(0, "chain", range(2)))
        expected = x + e[:, None] / 2 * score(model, x, sigma) + e.sqrt()[:, None] * z
        assert torch.allclose(state.x, expected, rtol=0, atol=1e-14)
        assert torch.equal(state.sigma, sigma) and torch.equal(info.step_size, e) and torch.equal(info.sigma, sigma)
        assert (info.acceptance == 1).all()
    assert counted.calls == 2


def test_adjusted_kernel_costs_two_calls_and_keeps_what_it_rejects(model):
    counted, sigma = count_nfe(model), torch.full((CHAINS,), 0.1, dtype=F64)
    x = model.sample(CHAINS, sigma)
    state, info = mala(counted, 5.0)(ChainState(x, sigma), Streams(0, "chain", range(CHAINS)))
    assert counted.calls == 2
    stayed = (state.x == x).all(1)
    assert 0 < stayed.sum() and (stayed.float().mean() - (1 - info.acceptance).mean()).abs() < 0.1
    state, info = mala(model, 1e-6)(ChainState(x, sigma), Streams(0, "chain", range(CHAINS)))
    assert info.acceptance.min() > 0.999 and (state.x != x).all()


def test_composition_is_one_after_the_other(model):
    posterior, sigma = ExactPosterior(model, LEVELS), torch.full((3,), 0.5, dtype=F64)
    start, rng = ChainState(model.sample(3, sigma), sigma), Streams(0, "chain", range(3))
    middle, info = langevin(model, 0.1)(start, rng)
    end, _ = gibbs(posterior)(middle, rng)
    whole, of_whole = langevin_gibbs(model, posterior, 0.1)(start, Streams(0, "chain", range(3)))
    assert torch.equal(whole.x, middle.x) and torch.equal(whole.sigma, end.sigma)
    assert all(torch.equal(a, b) for a, b in zip(info, of_whole, strict=True))


def test_state_handed_in_is_left_alone(model):
    sigma = torch.full((3,), 0.5, dtype=F64)
    start = ChainState(model.sample(3, sigma), sigma)
    x = start.x.clone()
    for kernel in (langevin(model, 0.1), mala(model, 0.1), gibbs(ExactPosterior(model, LEVELS))):
        kernel(start, Streams(0, "chain", range(3)))
        assert torch.equal(start.x, x) and (start.sigma == 0.5).all()


# The noise level


def draw(posterior, x, rng):
    return posterior.levels.float()[noise_level.draw(posterior.log_probs(x), rng)]


def classifier(probabilities):
    """A posterior that answers the same to every image."""
    logits = torch.tensor(probabilities).log() + 3.0
    levels = log_levels(50.0, 0.01, len(probabilities))
    return ClassifierPosterior(lambda x: logits.expand(len(x), -1), levels), levels


def test_draws_have_the_classifiers_probabilities():
    probabilities = [0.5, 0.0, 0.3, 0.15, 0.05]
    posterior, levels = classifier(probabilities)
    n = 20_000
    sigma = draw(posterior, torch.zeros(n, 1, 2, 2), Streams(0, "chain", range(n)))
    counts = (sigma[:, None] == levels.float()).sum(0)
    assert counts.sum() == n and counts[1] == 0
    p = torch.tensor(probabilities)
    z = (counts / n - p).abs() / (p * (1 - p) / n).sqrt().clamp(min=1e-12)
    assert z.max() < 4


def test_draw_at_the_ends_of_the_uniform():
    """The largest uniform takes the first level that has any probability, the smallest the last one."""
    posterior, levels = classifier([0.0, 0.4, 0.6, 0.0])

    class Fixed:
        def __init__(self, u):
            self.u = u

        def uniform(self, like):
            return torch.full_like(like, self.u)

    x = torch.zeros(1, 1, 2, 2)
    assert draw(posterior, x, Fixed(1 - 2.0**-24)) == levels[1].float()
    assert draw(posterior, x, Fixed(0.0)) == levels[2].float()


def test_argmax_is_the_most_likely_level_and_draws_nothing():
    posterior, _ = classifier([0.1, 0.2, 0.6, 0.1])
    rng = Streams(0, "chain", range(3))
    assert (argmax(posterior.log_probs(torch.zeros(3, 1, 2, 2)), rng) == 2).all()
    assert rng.state == (0, 0)


def test_classifier_runs_in_blocks_of_float32():
    seen = []
    posterior = ClassifierPosterior(lambda x: seen.append((len(x), x.dtype)) or x, torch.ones(3), block=4)
    x = torch.randn(6, 3, dtype=F64)
    assert torch.allclose(posterior.log_probs(x), x.float().log_softmax(-1))
    assert seen == [(4, torch.float32)] * 2


def test_exact_posterior_is_bayes(model):
    x = model.sample(4, 0.5)
    log_p = torch.stack([model.log_prob(x, s) for s in LEVELS], 1)
    assert torch.allclose(ExactPosterior(model, LEVELS).log_probs(x).exp(), log_p.softmax(1), atol=1e-12)
    default = ExactPosterior(model)
    assert len(default.levels) == 1000 and default.levels[0] == pytest.approx(2.0)


def test_draws_of_a_row_do_not_depend_on_the_others():
    """Probabilities and levels to the last bit, from the exact posteriors and from a classifier."""
    mixture, data = (
        images_mixture(),
        EmpiricalData(torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))),
    )
    weight = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    net = ClassifierPosterior(lambda x: x.flatten(1) @ weight, log_levels(50.0, 0.01))
    x = mixture.sample(100, torch.logspace(-2, 0.6, 100))
    for posterior in (ExactPosterior(mixture), ExactPosterior(data), net):
        log_probs, sigma = posterior.log_probs(x.clone()), draw(posterior, x.clone(), Streams(0, "chain", range(100)))
        for rows in (range(1), range(7), range(64), [93, 4, 50]):
            assert torch.equal(posterior.log_probs(x[list(rows)]), log_probs[list(rows)])
            assert torch.equal(draw(posterior, x[list(rows)], Streams(0, "chain", rows)), sigma[list(rows)])


def test_levels_are_the_published_ones():
    """Class 999 is 0.010086 for sigma_max 50 and 0.010105 for 348; the ratios are 1.00855 and 1.01051."""
    for top, last, ratio in ((50.0, 0.010086, 1.00855), (348.0, 0.010105, 1.01051)):
        levels = log_levels(top, 0.01)
        assert levels[0] == top and levels[-1].item() == pytest.approx(last, rel=1e-4)
        assert torch.allclose(levels[:-1] / levels[1:], torch.full((999,), ratio, dtype=F64), rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 40.0])
def test_the_residual_tells_the_level_where_images_are_far_apart_or_together(sigma):
    """Against the exact posterior of 16 images 100 pixels wide; the call was made 10 % off the true level."""
    images = torch.rand(16, 100, dtype=F64, generator=torch.Generator().manual_seed(0))
    data, levels = EmpiricalData(images), log_levels(50.0, 0.01)
    expected = noise_level.expected_residual(data, images, levels, Streams(0, "calibration", range(16)))
    x = images + sigma * torch.randn(16, 100, dtype=F64, generator=torch.Generator().manual_seed(1))
    counted = count_nfe(data)
    posterior = noise_level.ResidualPosterior(levels, expected)
    got = posterior.log_probs(x - counted(x, torch.tensor(1.1 * sigma))).exp()
    exact = ExactPosterior(data, levels).log_probs(x).exp()
    assert counted.calls == 1 and ((got - exact).abs().sum(1) / 2).max() < 0.03


def test_the_expected_residual_is_what_stein_says(monkeypatch):
    """A Gaussian of variance v in d dimensions: D shrinks by v / (v + s^2), so m = d - d v / (v + s^2)."""
    monkeypatch.setattr(analytic, "BLOCK", 400)  # small rows: few calls
    model = GaussianMixture(torch.zeros(1, 50, dtype=F64), torch.tensor([0.5]), torch.ones(1))
    levels, n = log_levels(50.0, 0.01, 200), 2000
    images = model.sample(n)
    expected = noise_level.expected_residual(model, images, levels, Streams(0, "calibration", range(n)), nodes=200)
    assert torch.allclose(
        expected, 50 * levels**2 / (0.25 + levels**2), rtol=0, atol=1.2
    )  # of 50; its spread is at most 0.23


def test_a_step_with_the_residual_costs_one_call(model):
    counted, sigma = count_nfe(model), torch.full((3,), 0.5, dtype=F64)
    posterior = noise_level.ResidualPosterior(LEVELS, torch.full_like(LEVELS, 2.0))
    step = then(langevin(counted, 0.1), mcmc.residual_gibbs(counted, posterior))
    state, rng = ChainState(model.sample(3, sigma), sigma), Streams(0, "chain", range(3))
    for calls in (2, 3, 4):  # the first Langevin step finds nothing to share
        state, _ = step(state, rng)
        assert counted.calls == calls
    with pytest.raises(UserError, match="9 levels need as many expected residuals"):
        noise_level.ResidualPosterior(LEVELS, torch.ones(3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (1.0, "posterior gives NaN for a finite x: mend its network"),
        (1e20, r"chains diverged, x reached 1e\+20: .* eta"),
    ],
)
@pytest.mark.parametrize("rule", ["draw", "argmax"])
def test_a_posterior_that_is_nan_names_its_cause(x, message, rule):
    """Instead of a level beyond the last one."""
    posterior = ClassifierPosterior(lambda x: torch.full((len(x), 5), torch.nan), log_levels(10.0, 0.1, 5))
    state = ChainState(torch.full((2, 3), x), torch.ones(2))
    with pytest.raises(UserError, match=message):
        gibbs(posterior, rule)(state, Streams(0, "c", range(2)))


def test_entropy():
    assert entropy(torch.full((1, 8), 1 / 8).log()).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([[1.0, 0.0]]).log()).item() == 0


def test_errors(model):
    posterior = ExactPosterior(model, LEVELS)
    for eta in (0.0, -1.0, math.nan, math.inf):
        for kernel in (langevin, mala):
            with pytest.raises(UserError, match="eta must be positive and finite"):
                kernel(model, eta)
    with pytest.raises(UserError, match="step must be 'constant' or 'sigma2', not 'sigma'"):
        langevin(model, 1.0, "sigma")
    with pytest.raises(UserError, match="did you mean 'argmax'"):
        gibbs(posterior, "agmax")
    with pytest.raises(UserError, match=r"needs a model with log_prob\("):
        mala(lambda x, sigma: x, 1.0)
    with pytest.raises(UserError, match="needs a model with log_prob_levels"):
        ExactPosterior(lambda x, sigma: x)
    with pytest.raises(UserError, match="0 < sigma_min < sigma_max is needed, not sigma_min=2, sigma_max=1"):
        noise_level.log_levels(1, 2)


# Step sizes that adapt


def adapted(model, make, by, eta, steps=300):
    """Step sizes from a bad start, the kernel made with them, and the chains' last state."""
    sizes, rng = adaptation.LevelSteps(2.0, 0.1, eta, bins=4), OneStream(5)
    kernel = then(make(sizes), gibbs(ExactPosterior(model, LEVELS)))
    state = ChainState(model.sample(CHAINS, 2.0), torch.full((CHAINS,), 2.0, dtype=F64))
    return sizes, kernel, adaptation.adapt(kernel, sizes, state, rng, steps, by)


def seen_by_bin(sizes, kernel, state, steps=100):
    """With the sizes fixed: mean acceptance, and mean log displacement per pixel in units of sigma, of every bin."""
    sums, rng = torch.zeros(3, len(sizes.visits)), OneStream(6)
    for _ in range(steps):
        before = state.x
        state, info = kernel(state, rng)
        moved = (state.x - before).square().mean(1).sqrt() / info.sigma
        rows = torch.stack([torch.ones_like(moved), info.acceptance, moved.clamp(min=1e-2).log()]).to(sums)
        sums.index_add_(1, sizes.bin(info.sigma), rows)
    assert (sums[0] > 1000).all()
    return sums[1] / sums[0], (sums[2] / sums[0]).exp()


@pytest.mark.parametrize("eta", [0.2, 20.0])  # about a tenth of what is found, and ten times as much
@pytest.mark.parametrize("make", [lambda m, e: mala(m, e), lambda m, e: hamiltonian(m, e, **HAMILTONIAN)])
def test_step_sizes_adapt_to_an_acceptance_at_every_level(model, make, eta):
    sizes, kernel, state = adapted(model, lambda sizes: make(model, sizes), "acceptance", eta)
    acceptance, _ = seen_by_bin(sizes, kernel, state)
    assert (acceptance - 0.6).abs().max() < 0.05, acceptance
    assert (sizes.visits >= 290).all()


@pytest.mark.parametrize("eta", [0.03, 3.0])
def test_step_sizes_adapt_to_a_displacement_at_every_level(model, eta):
    """For kernels without a test; the mean is that of the logarithm, as a pixel's moves are all sizes."""
    sizes, kernel, state = adapted(model, lambda sizes: langevin(model, sizes), "displacement", eta)
    _, displacement = seen_by_bin(sizes, kernel, state)
    assert (displacement / 0.5 - 1).abs().max() < 0.05, displacement


@pytest.mark.parametrize("make", [lambda m, e: mala(m, e), lambda m, e: hamiltonian(m, e, **HAMILTONIAN)])
def test_with_its_steps_fixed_an_adapted_kernel_reaches_the_joint_distribution(model, make):
    """By the same bounds as a kernel whose step was chosen by hand."""
    sizes, kernel, _ = adapted(model, lambda sizes: make(model, sizes), "acceptance", 0.02)
    found = sizes.log_eta.clone()
    result = run(model, kernel)
    assert result.effective > 1000 and 0.5 < result.acceptance < 0.7 and result.worst < 4, result
    assert torch.equal(sizes.log_eta, found)


def test_a_kernel_that_goes_on_adapting_would_be_seen(model):
    """Steps that follow the last acceptance: no Markov chain, and not the joint distribution."""
    eta = torch.ones(CHAINS, dtype=F64)
    inner = then(mala(model, lambda sigma: eta * sigma**2), gibbs(ExactPosterior(model, LEVELS)))

    def restless(state, rng):
        state, info = inner(state, rng)
        eta.mul_(torch.where(info.acceptance > 0.6, 4.0, 0.25)).clamp_(1e-2, 10.0)
        return state, info

    assert run(model, restless).worst > 8


def test_adaptation_leaves_levels_alone_that_no_chain_visits(model):
    sizes, sigma = adaptation.LevelSteps(2.0, 0.1, 1.0, bins=3), torch.full((CHAINS,), 0.1, dtype=F64)
    assert sizes.bin(torch.tensor([0.1, 0.2, 0.5, 1.9, 50.0])).tolist() == [0, 0, 1, 2, 2]
    adaptation.adapt(
        mala(model, sizes), sizes, ChainState(model.sample(CHAINS, sigma), sigma), Streams(0, "a", range(CHAINS)), 5
    )
    assert sizes.visits.tolist() == [5, 0, 0] and (sizes.log_eta[1:] == 0).all() and sizes.log_eta[0] != 0


def test_bad_input_of_adaptation(model):
    sizes, state = adaptation.LevelSteps(2.0, 0.1), ChainState(model.sample(2), torch.ones(2, dtype=F64))

    def adapt(steps=3, *more, kernel=langevin(model, sizes)):  # noqa: B008
        return adaptation.adapt(kernel, sizes, state, Streams(0, "chain", range(2)), steps, *more)

    for call, message in (
        (lambda: adaptation.LevelSteps(0.1, 2.0), "0 < sigma_min < sigma_max is needed"),
        (lambda: adaptation.LevelSteps(2.0, 0.1, eta=0.0), "eta must be positive and finite, not 0"),
        (lambda: adaptation.LevelSteps(2.0, 0.1, bins=0), "bins must be a whole number, at least 1, not 0"),
        (lambda: adapt(3, "rejection"), "by must be 'acceptance' or 'displacement', not 'rejection'"),
        (lambda: adapt(3, "acceptance", 1.0), "a target of acceptance lies between 0 and 1, not at 1"),
        (lambda: adapt(3, "displacement", 0.0), "a target of displacement lies between 0 and inf, not at 0"),
        (lambda: adapt(0), "steps must be a whole number, at least 1, not 0"),
        (lambda: adapt(3), "accepts whatever it proposes: adapt its steps by displacement"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    adapt(3, kernel=mala(model, sizes))


def test_a_proposal_that_diverges_is_surely_refused():
    model, sigma = images_mixture(), torch.ones(8)
    state = ChainState(torch.randn(8, *model.shape, generator=torch.Generator().manual_seed(0)), sigma)
    after, info = mcmc.hamiltonian(model, 1e38)(state, Streams(0, "chain", range(8)))
    assert (info.acceptance == 0).all() and torch.equal(after.x, state.x)
