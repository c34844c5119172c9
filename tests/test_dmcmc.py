"""The DMCMC loop: lazy windows, the published picking rules, exact continuation, honest cost, the right images."""

import itertools
import math

import pytest
import torch
from exact import F64, images_mixture

from dmcmc_core import analytic, dmcmc
from dmcmc_core.analytic import GaussianMixture
from dmcmc_core.chains import PUBLISHED, ChainSettings
from dmcmc_core.denoiser import count_nfe
from dmcmc_core.dmcmc import Chain, denoising_mcmc, pick, warm_up, windows
from dmcmc_core.errors import UserError
from dmcmc_core.integrators import INTEGRATORS
from dmcmc_core.mcmc import ChainState, Info
from dmcmc_core.noise_level import ExactPosterior, log_levels
from dmcmc_core.streams import Drawn, Streams

SMALL = ChainSettings(chains=6, n_skip=3, warmup_levels=3, warmup_steps=2)
HEUN = INTEGRATORS["heun"]


def parts(settings=SMALL, indices=None, seed=0):
    """Model, exact posterior, step, streams and warmed-up chains."""
    model = images_mixture()
    posterior = ExactPosterior(model, log_levels(4.0, 0.01, 100))
    rng = Streams(seed, "chain", range(settings.chains) if indices is None else indices)
    chain = warm_up(model, posterior, settings, rng)
    return model, posterior, dmcmc.kernel(model, posterior, settings, settings.eta), rng, chain


def scripted(levels):
    """A kernel that walks through given noise levels, (steps, B); x counts the steps. And how often it was called."""
    calls = []

    def kernel(state, rng):
        calls.append(1)
        sigma = torch.tensor(levels[len(calls) - 1])
        return ChainState(state.x + 1, sigma), Info(torch.ones_like(sigma), sigma, state.sigma)

    return kernel, calls


def walk(levels, settings, first):
    """Windows of a scripted chain that begins at noise levels ``first``."""
    kernel, calls = scripted(levels)
    b = len(first)
    chain = Chain(ChainState(torch.zeros(b, 1), torch.tensor(first)), torch.zeros(b, dtype=torch.bool), Drawn())
    return windows(kernel, chain, settings, Streams(0, "chain", range(b))), calls


# Windows


def test_nothing_runs_before_it_is_asked_for():
    produced, calls = walk([[1.0]] * 9, ChainSettings(n_skip=3), [2.0])
    assert not calls
    for k in (1, 2, 3):
        next(produced)
        assert len(calls) == 3 * k


def test_images_are_made_only_when_asked_for():
    model, posterior, *_ = parts()
    model = count_nfe(model)
    images = denoising_mcmc(model, posterior, INTEGRATORS["heun"], 3, SMALL)
    assert model.calls == 0
    next(images)
    assert model.calls == SMALL.warmup_calls() + SMALL.window_calls() + 5


@pytest.mark.parametrize("published", [False, True])
def test_smallest_of_all_n_skip_plus_one_candidates(published):
    """Also the state before the window, and each chain its own."""
    levels = [[3.0, 1.0, 3.0], [2.0, 2.0, 4.0], [4.0, 3.0, 5.0]]
    produced, _ = walk(levels, ChainSettings(n_skip=3, published=published), [5.0, 5.0, 1.5])
    window, chain = next(produced)
    assert window.chosen.tolist() == [2, 1, 0]
    assert window.start.sigma.tolist() == [2.0, 1.0, 1.5] and window.start.x[:, 0].tolist() == [2.0, 1.0, 0.0]
    assert window.sigmas.tolist() == [[5.0, 5.0, 1.5], *levels]
    assert chain.state.sigma.tolist() == levels[-1] and chain.state.x[:, 0].tolist() == [3.0] * 3


def test_ties_go_to_the_earliest_as_published_and_to_the_latest_otherwise():
    levels = [[1.0, 2.0], [1.0, 1.0], [3.0, 1.0]]
    for published, chosen in ((True, [0, 2]), (False, [2, 3])):
        produced, _ = walk(levels, ChainSettings(n_skip=3, published=published), [1.0, 4.0])
        window, _ = next(produced)
        assert window.chosen.tolist() == chosen
        assert window.start.x[:, 0].tolist() == [float(c) for c in chosen]


def test_last_takes_the_last_state():
    for published in (True, False):
        settings = ChainSettings(n_skip=2, pick="last", published=published)
        produced, _ = walk([[1.0], [3.0], [2.0], [4.0]], settings, [0.5])
        assert [next(produced)[0].start.sigma.item() for _ in range(2)] == [3.0, 4.0]


def test_a_state_is_emitted_twice_only_as_published():
    """The last state of a window, emitted, is the smallest candidate of the next one too."""
    levels = [[3.0], [1.0], [2.0], [5.0], [1.5], [4.0]]
    emitted = {}
    for published in (True, False):
        produced, _ = walk(levels, ChainSettings(n_skip=2, published=published), [4.0])
        emitted[published] = [window.start.x.item() for window, _ in itertools.islice(produced, 3)]
    assert emitted[True] == [2.0, 2.0, 5.0]
    assert emitted[False] == [2.0, 3.0, 5.0]


@pytest.mark.parametrize("published", [True, False])
def test_how_often_a_real_chain_repeats_itself(published):
    """Many windows: repeats under the published rule, and never without it."""
    settings = ChainSettings(chains=20, n_skip=2, warmup_levels=3, warmup_steps=2, published=published)
    *_, step, rng, chain = parts(settings)
    starts = torch.stack([w.start.x.flatten(1) for w, _ in itertools.islice(windows(step, chain, settings, rng), 30)])
    repeats = (starts[1:] == starts[:-1]).all(-1).float().mean().item()
    assert 0.05 < repeats < 0.4 if published else repeats == 0
    if not published:
        assert len(starts.flatten(0, 1).unique(dim=0)) == 600


def test_pick_reports_mean_acceptance():
    states = [ChainState(torch.zeros(2, 1), torch.tensor([float(3 - i)] * 2)) for i in range(3)]
    infos = [Info(torch.tensor([a, 1.0]), torch.ones(2), torch.ones(2)) for a in (0.5, 0.7)]
    window = pick(states, infos, ChainSettings(n_skip=2), torch.zeros(2, dtype=torch.bool))
    assert window.acceptance.tolist() == pytest.approx([0.6, 1.0])


# Continuation and independence


def starts(settings=SMALL, indices=None, n=4, **options):
    *_, step, rng, chain = parts(settings, indices, **options)
    return [w.start for w, _ in itertools.islice(windows(step, chain, settings, rng), n)]


def same(a, b):
    return all(torch.equal(p, q) for s, t in zip(a, b, strict=True) for p, q in zip(s[:2], t[:2], strict=True))


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hamiltonian", "underdamped"])
@pytest.mark.parametrize("published", [True, False])
def test_chains_go_on_exactly_from_a_saved_state(published, kernel):
    settings = ChainSettings(chains=6, n_skip=3, warmup_levels=3, warmup_steps=2, published=published, kernel=kernel)
    *_, step, rng, chain = parts(settings)
    produced = list(itertools.islice(windows(step, chain, settings, rng), 5))
    for k in range(4):
        fresh = Streams(0, "chain", range(6))
        rest = itertools.islice(windows(step, produced[k][1], settings, fresh), 4 - k)
        assert same([w.start for w, _ in rest], [w.start for w, _ in produced[k + 1 :]])


def test_images_go_on_exactly_from_a_saved_state():
    model, posterior, *_ = parts()
    images = denoising_mcmc(model, posterior, INTEGRATORS["heun_churn"], 3, SMALL, seed=3)
    whole = list(itertools.islice(images, 4))
    again = denoising_mcmc(
        model, posterior, INTEGRATORS["heun_churn"], 3, SMALL, seed=3, chain=whole[1][2], first_window=2
    )
    for a, b in zip(itertools.islice(again, 2), whole[2:], strict=True):
        assert torch.equal(a[0], b[0])
    assert not torch.equal(whole[2][0], whole[3][0])


def test_a_chain_does_not_know_its_companions():
    """Chain 4 alone, among six, and among others, whatever the number of chains of the run."""
    whole = starts()
    for indices in ([4], [4, 0], [5, 4, 3]):
        place = indices.index(4)
        for got, expected in zip(starts(indices=indices), whole, strict=True):
            assert torch.equal(got.x[place], expected.x[4]) and torch.equal(got.sigma[place], expected.sigma[4])
    assert not same(starts(seed=1), whole)


def test_integration_does_not_feed_back():
    """The same starting points whatever is done with them."""
    expected = starts()
    for name, levels in (("heun", 2), ("heun_churn", 5), ("rk45", 3)):
        model, posterior, *_ = parts()
        images = denoising_mcmc(model, posterior, INTEGRATORS[name], levels, SMALL)
        got = [window.start for _, window, _ in itertools.islice(images, 4)]
        assert same(got, expected), name


def test_images_are_the_integrators_from_each_samples_own_level():
    model, posterior, *_ = parts()
    images, window, _ = next(denoising_mcmc(model, posterior, INTEGRATORS["heun"], 4, SMALL))
    assert len(window.start.sigma.unique()) > 1
    for i in range(6):
        alone = ChainState(*(t[i : i + 1] for t in window.start[:2]))
        got = dmcmc.denoise(model, alone, INTEGRATORS["heun"], 4, Streams(0, "image", [i]))
        assert torch.equal(got[0], images[i])


# Cost


@pytest.mark.parametrize("name", ["euler", "heun", "heun_churn", "reverse_diffusion", "dpmpp_2m"])
@pytest.mark.parametrize("kernel", ["langevin", "mala"])
def test_cost_is_n_skip_and_the_integrators_calls(name, kernel):
    settings = ChainSettings(chains=6, n_skip=3, warmup_levels=3, warmup_steps=2, kernel=kernel)
    model, posterior, *_ = parts(settings)
    model = count_nfe(model)
    images = denoising_mcmc(model, posterior, INTEGRATORS[name], 4, settings)
    next(images)
    per_step = {"langevin": 1, "mala": 2}[kernel]
    window = 3 * per_step + INTEGRATORS[name].calls(4)
    assert settings.window_calls() == 3 * per_step
    assert model.nfe == model.calls == settings.warmup_calls() + window
    next(images)
    assert model.nfe == settings.warmup_calls() + 2 * window


def test_published_settings_cost_what_the_paper_says():
    """KAR2 with N = 20 is 37 calls, then 20 steps: 57 a chain."""
    assert ChainSettings(**PUBLISHED).warmup_calls() == 57


# Warm-up


def test_warm_up_early_steps_have_their_own_size(monkeypatch):
    sizes = []
    inner = dmcmc.kernel
    monkeypatch.setattr(dmcmc, "kernel", lambda m, p, s, eta: sizes.append(eta) or inner(m, p, s, eta))
    settings = ChainSettings(chains=2, warmup_levels=2, warmup_steps=4, eta=0.1, warmup_eta=0.7)
    model = images_mixture()
    warm_up(model, ExactPosterior(model), settings, Streams(0, "chain", range(2)))
    assert sizes == [0.7, 0.7, 0.1, 0.1]


def test_prior_is_centred_as_asked():
    model = images_mixture(sigma_max=0.5)
    rng = lambda: Streams(0, "chain", range(4000))  # noqa: E731
    zero, mean = (dmcmc.prior(model, rng(), 4000, start) for start in ("zero", "mean"))
    assert zero.mean(0).abs().max() < 4 * 0.5 / 4000**0.5 and zero.std().item() == pytest.approx(0.5, rel=0.03)
    assert torch.allclose(mean - zero, model.mean.expand_as(zero), atol=1e-6)
    with pytest.raises(UserError, match="start='mean' needs a model that knows its data's mean"):
        model.mean = None
        dmcmc.prior(model, rng(), 4000, "mean")


# The images


WIDTHS = [0.02, 0.3, 0.1]


def shares(pick, rule="draw", chains=300, n=16):
    """Images of exact chains on three components; deviation of the shares in standard errors; these; the widths.

    Chains are independent, so the spread of their own shares is the standard error.
    """
    means = torch.tensor([[0.0, 0.0], [2.0, 0.5], [0.5, 2.0]], dtype=F64)
    scales, weights = torch.tensor(WIDTHS), torch.tensor([0.5, 0.2, 0.3])
    model = GaussianMixture(means, scales, weights, sigma_min=0.002, sigma_max=10**0.7)
    posterior = ExactPosterior(model, torch.logspace(0.7, -1.7, 25, dtype=F64))
    settings = ChainSettings(
        chains=chains, n_skip=6, eta=0.8, kernel="mala", pick=pick, rule=rule, warmup_levels=6, warmup_steps=60
    )
    images = denoising_mcmc(model, posterior, INTEGRATORS["heun"], 16, settings)
    x = torch.stack([batch for batch, _, _ in itertools.islice(images, n)]).double()
    component = (torch.cdist(x.flatten(0, 1), means) / scales).argmin(1).reshape(n, chains)
    share = torch.stack([(component == k).double().mean(0) for k in range(3)])
    error = share.std(1) / chains**0.5
    widths = [((x[component == k] - m).pow(2).mean() ** 0.5).item() for k, m in enumerate(means)]
    return ((share.mean(1) - weights).abs() / error).max().item(), error.max().item(), widths


def test_exact_chains_give_images_of_the_right_weights(monkeypatch):
    """Exact kernel, exact posterior, the last state of every window: each component as often as it weighs."""
    monkeypatch.setattr(analytic, "BLOCK", 300)
    deviation, error, widths = shares("last")
    assert deviation < 4 and error < 0.02
    assert widths == pytest.approx(WIDTHS, rel=0.1)


@pytest.mark.parametrize(("pick", "rule", "sign"), [("smallest", "draw", 1), ("last", "argmax", -1)])
def test_the_published_rules_change_the_images(monkeypatch, pick, rule, sign):
    """The smallest noise level of a window goes with images that are too far out, the most likely one too far in."""
    monkeypatch.setattr(analytic, "BLOCK", 300)
    widths = shares(pick, rule)[2]
    assert all(sign * (got / width - 1) > 0.12 for got, width in zip(widths, WIDTHS, strict=True)), widths


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": 0}, "chains must be a whole number, at least 1, not 0"),
        ({"n_skip": 2.5}, "n_skip must be a whole number, at least 1, not 2.5"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number, at least 0, not -1"),
        ({"kernel": "langvin"}, "did you mean 'langevin'"),
        ({"pick": "first"}, "pick must be one of 'smallest', 'last', not 'first'"),
        ({"start": "median"}, "start must be one of 'zero', 'mean', not 'median'"),
        ({"renoise": 0.0}, "renoise must be a finite number, above 0, not 0.0"),
        ({"warmup": "hune"}, "did you mean 'heun'"),
        ({"warmup": ["heun"]}, "unknown integrator"),
        ({"rule": ["draw"]}, "unknown rule for the noise level"),
        ({"chains": True}, "chains must be a whole number, at least 1, not True"),
        ({"eta": "abc"}, "eta must be a finite number, above 0, not 'abc'"),
        ({"eta": math.inf}, "eta must be a finite number, above 0, not inf"),
        ({"warmup_eta": 0}, "warmup_eta must be a finite number, above 0, not 0"),
        ({"persistence": 1.0}, "persistence must be a finite number, at least 0 and below 1, not 1.0"),
        ({"published": "yes"}, "published must be one of True, False, not 'yes'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        ChainSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -1.0}, "eta must be a finite number, above 0, not -1.0"),
        ({"step": "sqrt"}, "step must be"),
        ({"rule": "drw"}, "mean 'draw'"),
    ],
)
def test_bad_kernel_settings(settings, message):
    with pytest.raises(UserError, match=message):
        parts(ChainSettings(chains=2, **settings))


def test_an_adaptive_warm_up_has_no_fixed_cost():
    with pytest.raises(UserError, match="warmup='rk45' adapts its steps"):
        _ = ChainSettings(warmup="rk45").warmup_calls()


def test_a_share_of_a_run_is_a_part_of_the_whole(tmp_path):
    """Some chains, windows together, windows kept by another, and no image beyond the number asked for."""
    model, posterior, *_ = parts()
    whole = [images for images, *_ in itertools.islice(denoising_mcmc(model, posterior, HEUN, 3, SMALL), 4)]
    kept = {}
    share = dmcmc.Share(range(2, 5), [[0], [1, 2]], 16, kept)
    (first, *_), (rest, window, _) = denoising_mcmc(model, posterior, HEUN, 3, SMALL, share=share)
    assert torch.equal(first, whole[0][2:5]) and len(window.start.sigma) == len(rest) == 5
    assert torch.equal(rest, torch.cat([whole[1][2:5], whole[2][2:4]]))  # images 14 and 15 of 0 to 15
    assert list(kept) == [-1, 0, 1, 2]
    model = count_nfe(model)
    share = dmcmc.Share(range(2, 5), [[3]], float("inf"), kept)
    ((later, *_),) = denoising_mcmc(model, posterior, HEUN, 3, SMALL, share=share)
    assert torch.equal(later, whole[3][2:5]) and model.calls == SMALL.window_calls() + 5


def test_a_run_iterates_this_loop(tmp_path, monkeypatch):
    from dmcmc_core.sampling_run import run

    asked, loop = [], dmcmc.denoising_mcmc
    monkeypatch.setattr(dmcmc, "denoising_mcmc", lambda *a, **more: asked.append(more["share"]) or loop(*a, **more))
    settings = {"chains": 4, "n_skip": 1, "warmup_levels": 2, "posterior": "residual"}
    manifest = run(images_mixture(), "dlg+heun", 60, 10, 0, tmp_path, settings, progress=False)
    assert manifest["complete"] and [share.chains for share in asked] == [range(4)]
