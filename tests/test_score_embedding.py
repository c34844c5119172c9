"""Score embedding: parity with the published code, the equation's exact solution, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import score_embedding as se
from dmcmc_core.errors import UserError
from dmcmc_core.score_embedding import ddpm
from dmcmc_core.score_embedding.stencil import Consistent, Published, flat_difference, gradient, solve_step
from dmcmc_core.workbench.studies.fokker_planck import direct_solve

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs of published code are not here")
NAMES = ["cifar1_smooth16", "cifar1_smooth32", "celeb1_smooth16", "celeb1_digit3", "two_images_fourier16"]


def reference(name):
    """The arrays and the settings of a parity file."""
    about = PARITY / f"score_embedding_{name}.json"
    return np.load(PARITY / f"score_embedding_{name}.npz"), json.loads(about.read_text()) if about.is_file() else {}


def relative(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def picture(size=16, channels=3, seed=0):
    """A smooth image in [0, 1] with edges: what the published method is made for."""
    rng = np.random.default_rng(seed)
    waves = np.fft.rfft2(rng.normal(size=(channels, size, size)))
    waves *= np.exp(-0.5 * (np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * 9) ** 2)
    image = np.fft.irfft2(waves, s=(size, size))
    return torch.from_numpy((image - image.min()) / np.ptp(image)).float()


def rms(x):
    return x.square().mean(tuple(range(1, x.ndim))).sqrt()


# ---- parity


@parity
@pytest.mark.parametrize("name", NAMES)
def test_initial_field_and_embedding_as_published(name):
    z, about = reference(name)
    for n, image in enumerate(torch.from_numpy(z["image"])):
        assert np.abs(se.initial_field(image).numpy() - z["m0"][n]).max() < 1e-12
        tau = se.training_times(torch.from_numpy(z["U"][n]))
        assert np.abs(tau.numpy() - z["tau"][n]).max() < 1e-6
        shifted = se.embed(image, torch.from_numpy(z["score"][n]), sigma=float(about["sigma"]), tau=tau)
        assert shifted.dtype == torch.float32
        assert np.abs(shifted.numpy() - z["x_embedded"][n]).max() < 1e-6


@parity
@pytest.mark.parametrize("name", NAMES)
def test_field_and_score_as_published(name):
    z, about = reference(name)
    tol = about["solve_tolerance"]
    fields = se.solve_many(
        torch.from_numpy(z["m0"]), sigma=float(about["sigma"]), steps=about["num_timesteps"], tol=tol, dh=1.0
    )
    assert np.abs(fields[0].t.numpy() - z["t"]).max() < 1e-6
    for n, field in enumerate(fields):
        assert relative(field.m, z["m"][n]) < 5e-7
        assert relative(field.score, z["score"][n]) < 5e-7
        passes = int(z["passes_per_image"][n])
        assert abs(field.passes - passes) <= (1 if tol < 1e-6 else 0)  # at 2e-8 it is the noise of float32
        wanted = z["residual"][z["residual_pass_image"][:, 1] == n][: field.passes]
        large = wanted > 1e-6
        np.testing.assert_allclose(field.residuals.numpy()[: len(wanted)][large], wanted[large], rtol=1e-2)


@parity
@pytest.mark.parametrize("name", [n for n in NAMES if n != "cifar1_smooth32"])
def test_batch_and_loss_as_published(name):
    z, about = reference(name)
    sigma = float(about["sigma"])
    for n in range(len(z["image"])):
        rows = z["batch_rows"][n]
        tau, noise = torch.from_numpy(z["tau"][n]).flatten()[rows], torch.from_numpy(z["batch_z"][n])
        np.testing.assert_allclose(se.std(tau, sigma), z["std"][n], rtol=1e-6)
        shifted = torch.from_numpy(z["x_embedded"][n]).flatten(0, 1)[rows]
        batch = se.Batch(shifted + se.std(tau, sigma)[:, None, None, None] * noise, noise, tau)
        assert np.abs(batch.x.numpy() - z["batch_x"][n]).max() < 2e-6
        how = {"embedding": about["embedding_method"], "multiplier": about["timestep_multiplier"]}
        t = se.network_time(tau, n, about["num_images"], **how, sampling=False)
        np.testing.assert_allclose(t, z["network_time"][n], rtol=1e-6, atol=1e-6)
        answer = -0.4 * batch.x + 0.1 * t[:, None, None, None]
        assert se.loss(answer, batch, sigma=sigma).item() == pytest.approx(z["loss"][n], rel=1e-5)


@parity
@pytest.mark.parametrize("name", ["sampler_uncond_sigma5", "sampler_cond_sigma2"])
def test_sampler_as_published(name):
    z, about = reference(name)
    sigma, x0 = float(about["sigma"]), torch.from_numpy(z["x0"])

    def score(x, t):
        return (x0.to(x) - x) / (se.std(t, sigma) ** 2 + 0.04)[:, None, None, None]

    if about["conditional_weight"] is None:
        x = se.unconditional_start(torch.from_numpy(z["x_init"]), sigma)
    else:
        x = se.conditional_start(x0, torch.from_numpy(z["z"]), sigma, about["conditional_weight"])
    found = se.sample(score, x, sigma=sigma)
    assert found.nfev == z["nfev"]
    assert found.frames.shape[0] == 50
    assert np.abs(found.samples.numpy() - z["final"]).max() < 2e-4
    assert np.abs(found.frames[z["frame_index"]].numpy() - z["frames"]).max() < 5e-3  # steps pass on their float32


@parity
def test_schedules_as_published():
    z = np.load(PARITY / "score_embedding_baseline_schedules.npz")
    for name, config in json.loads((PARITY / "score_embedding_baseline_configs.json").read_text()).items():
        about = config["diffusion"]
        betas = ddpm.linear_betas(about["beta_min"], about["beta_max"], about["num_timesteps"])
        np.testing.assert_allclose(betas, z[f"{name}.betas"], rtol=2e-6)
        bars = ddpm.alpha_bars(betas.float())  # as published: 1 less a product in float32 is 8e-5 off at first
        for found, part in (
            (bars, "alphas_cumprod"),
            (bars.sqrt(), "sqrt_alphas_cumprod"),
            ((1 - bars).sqrt(), "sqrt_one_minus_alphas_cumprod"),
        ):
            np.testing.assert_allclose(found, z[f"{name}.{part}"], rtol=2e-6)


@parity
@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_baseline_samplers_as_published(kind):
    z = np.load(PARITY / "score_embedding_baseline_samplers.npz")
    means, weights, stds = (torch.from_numpy(z[name]) for name in ("means", "weights", "stds"))
    labels = []

    def epsilon(x, t):
        labels.append(t.double().numpy().copy())
        a = torch.exp(-(0.02 * t.double() + 0.004 * t.double() ** 2))[:, None, None, None]
        v = a * stds[:, None, None, None, None] ** 2 + 1 - a
        gap = a.sqrt() * means[:, None] - x.double()
        log_p = weights.log()[:, None] - (gap**2 / (2 * v) + 0.5 * v.log()).sum((2, 3, 4))
        score = (log_p.softmax(0)[:, :, None, None, None] * gap / v).sum(0)
        return (-(1 - a).sqrt() * score).to(x)

    path = []
    betas = ddpm.linear_betas(*z[f"{kind}20.beta_range"].tolist(), 20)
    x = torch.from_numpy(z[f"{kind}20.x_init"])
    if kind == "ddim":
        path.append(x)
        image = ddpm.ddim(epsilon, x, betas, path.append)
    else:
        draws = iter(torch.from_numpy(z["ddpm20.noise"]))
        image = ddpm.ddpm(epsilon, x, betas, lambda _: next(draws), path.append)
    np.testing.assert_allclose(labels, z[f"{kind}20.labels"], rtol=1e-6)
    assert np.abs(torch.stack(path).numpy() - z[f"{kind}20.trajectory"]).max() < 2e-6
    assert np.abs((image.numpy() + 1) / 2 - z[f"{kind}20.image"]).max() < 2e-6


# ---- the equation


def test_the_initial_field_is_symmetric():
    for density in ("gaussian", "histogram"):
        m0 = se.initial_field(picture(), density)
        assert (m0 - m0.mT).abs().max() < 1e-12
    assert (se.initial_field(picture(), "histogram") - se.initial_field(picture())).abs().max() > 0.1


def test_a_constant_field_is_kept_by_the_equation_and_divided_as_published():
    m0 = torch.full((1, 12, 12), 2.0, dtype=torch.float64)
    how = {"sigma": 5.0, "steps": 20, "tol": 1e-8}
    assert (se.solve(m0, **how, mode="consistent").m - 2).abs().max() < 1e-7
    field = se.solve(m0, **how)
    divided = 1 + 2 * 5.0 ** (2 * field.t[1].item()) / 20
    assert field.m[1, 0, 5, 5].item() == pytest.approx(2 / divided, rel=0.02)
    assert field.m[-1].abs().max() < 0.02


@pytest.mark.parametrize("sigma", [2.0, 5.0, 25.0])
def test_consistent_is_near_the_closed_form(sigma):
    m0 = se.initial_field(picture(32))
    exact = se.closed_form(m0, sigma=sigma, steps=20)
    field = se.solve(m0, sigma=sigma, steps=20, tol=1e-6, mode="consistent")
    assert field.converged
    assert (rms(field.m - exact) / rms(exact)).max() < 0.1
    noise = se.initial_field(
        torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    )  # no pixel like the next
    how = {"sigma": sigma, "steps": 20}
    truth = se.closed_form(noise, **how)
    assert (rms(se.solve(noise, **how, tol=1e-6, mode="consistent").m - truth) / rms(truth)).max() < 0.1
    published = se.solve(m0, sigma=sigma, steps=20, tol=1e-6).m
    assert (rms(published - exact) / rms(exact))[-1] > 0.5


def test_the_closed_form_obeys_the_equation():
    """d/dt exp(m) = sigma^(2 t) laplace exp(m) / 2, by differences over the lattice."""
    n = 4001
    u = se.closed_form(se.initial_field(picture(8, 1)), sigma=3.0, steps=n).exp()
    i = n // 2
    rate = (u[i + 1] - u[i - 1]) / (2 * (1 - 1e-3) / (n - 1))
    padded = torch.nn.functional.pad(u[i][None], (1, 1, 1, 1), mode="replicate")[0]
    laplace = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] - 4 * u[i]
    t = se.times(n)[i].item()
    assert (rate - 3.0 ** (2 * t) / 2 * laplace).abs().max() < 1e-5 * rate.abs().max()


@pytest.mark.parametrize(("step", "shape"), [(Published, (2, 6, 6)), (Consistent, (2, 2, 6, 6))])
def test_steps_have_their_transposes(step, shape):
    rng = np.random.default_rng(0)
    s = rng.normal(size=shape)
    if step is Consistent:
        s[:, 0, :, -1] = s[:, 1, -1, :] = 0  # there is no next pixel
    one = step(s, 3.0, 0.1, 0.7)
    a, b = rng.normal(size=(2, 2, 6, 6))
    np.testing.assert_allclose(one.matrix(1) @ a[1].ravel(), one(a)[1].ravel(), atol=1e-12)
    assert (one(a) * b).sum() == pytest.approx((a * one.transposed(b)).sum(), rel=1e-12)
    np.testing.assert_allclose(one.undo(one.precondition(a)), a, atol=1e-12)


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 10), (5.0, 20), (25.0, 5)])
def test_a_direct_solve_gives_the_same_field(sigma, steps):
    m0 = se.initial_field(picture(16))
    how = {"sigma": sigma, "steps": steps, "tol": 1e-7}
    wanted, found = direct_solve(m0, **how), se.solve(m0, **how)
    assert found.passes == wanted.passes
    assert relative(found.m, wanted.m.numpy()) < 1e-8
    assert relative(found.score, wanted.score.numpy()) < 1e-8


@pytest.mark.parametrize("mode", ["as_published", "consistent"])
def test_rough_fields_are_solved_directly_where_iterations_do_not_end(mode):
    """With a large score the iterations take hundreds of steps; what is found solves the step all the same."""
    m = np.random.default_rng(0).normal(size=(2, 16, 16)) * 20
    s = flat_difference(m, 1.0) if mode == "as_published" else gradient(m, 1.0)
    step = (Published if mode == "as_published" else Consistent)(s, 25.0, 0.05, 1.0)
    found = solve_step(step, m, np.zeros_like(m), np.full(2, 1e-10))
    assert np.abs(step(found) - m).max() < 1e-7 * np.abs(m).max()
    begun = solve_step(step, m, np.zeros_like(m), np.full(2, 1e-10), most=1)
    np.testing.assert_allclose(begun, found, rtol=1e-5, atol=1e-6 * np.abs(found).max())


def test_a_field_of_zeros_stays_so():
    field = se.solve(torch.zeros(1, 6, 6), sigma=2.0, steps=5, tol=1e-6)
    assert field.converged and (field.m == 0).all() and field.residuals[-1] == 0


def test_images_do_not_depend_on_each_other():
    m0 = torch.stack([se.initial_field(picture(12, seed=seed)) for seed in (1, 2)])
    how = {"sigma": 2.0, "steps": 8, "tol": 1e-9}
    for mode in ("as_published", "consistent", "random"):
        for field, m in zip(se.solve_many(m0, **how, mode=mode), m0, strict=True):
            alone = se.solve(m, **how, mode=mode)
            assert torch.equal(field.m, alone.m)
            assert torch.equal(field.score, alone.score)
            assert field.passes == alone.passes


def test_the_shift_hardly_depends_on_sigma():
    """Its size is near a quarter of the first score's, as the field decays instead of diffusing."""
    image = picture(32)
    m0 = se.initial_field(image)
    expected = torch.from_numpy(flat_difference(m0.numpy(), 1.0)).square().mean().sqrt().item() / 4
    for sigma, steps in ((3.0, 20), (10.0, 20), (5.0, 50)):
        score = se.solve(m0, sigma=sigma, steps=steps, tol=1e-6).score
        tau = se.training_times(torch.full((steps,), 0.5, dtype=torch.float64))
        shift = se.embed(image.double(), score, sigma=sigma, tau=tau)[-1] - image
        assert shift.square().mean().sqrt().item() == pytest.approx(expected, rel=0.25)


def test_controls():
    image = picture(16)
    m0, how = se.initial_field(image), {"sigma": 5.0, "steps": 10, "tol": 1e-6}
    tau = se.training_times(torch.full((10,), 0.5, dtype=torch.float64))
    none = se.solve(m0, **how, mode="none")
    assert none.passes == 0
    assert torch.equal(se.embed(image, none.score, sigma=5.0, tau=tau), image.expand(10, -1, -1, -1))
    shift, random = (
        se.embed(torch.zeros_like(m0), se.solve(m0, **how, mode=mode).score, sigma=5.0, tau=tau)
        for mode in ("as_published", "random")
    )
    sizes = [x.square().mean((-2, -1)).sqrt() for x in (shift, random)]
    torch.testing.assert_close(*sizes, rtol=1e-9, atol=1e-12)
    assert abs(torch.corrcoef(torch.stack([shift[-1].flatten(), random[-1].flatten()]))[0, 1]) < 0.2
    other = se.solve(m0, **how, mode="random", seed=1).score
    assert not torch.allclose(other, se.solve(m0, **how, mode="random").score)


def test_times():
    for n, latest in ((5, 0.820), (10, 0.905), (20, 0.951), (50, 0.980)):
        assert se.training_times(torch.ones(n))[-1].item() == pytest.approx(latest, abs=6e-3)
        assert se.training_times(torch.ones(n)).max() < 1
    t = torch.linspace(0.01, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(se.time_of_std(se.std(t, 5.0), 5.0), t)
    assert se.std(torch.tensor(1.0), 2.0).item() == pytest.approx(1.471, abs=1e-3)
    assert se.std(torch.tensor(1.0), 5.0).item() == pytest.approx(2.731, abs=1e-3)


def test_share_of_the_image_that_is_left():
    for low, high, left in ((1e-4, 0.02, 4e-5), (1e-4, 0.008, 0.017), (1e-4, 0.002, 0.35), (5e-4, 0.001, 0.47)):
        assert ddpm.alpha_bars(ddpm.linear_betas(low, high))[-1].item() == pytest.approx(left, rel=0.05)


def test_time_of_the_network_as_released_and_mended():
    t = torch.tensor([0.25])
    how = {"embedding": "fourier", "multiplier": 1}
    assert se.network_time(t, 0, 3, **how, sampling=False).item() == 0  # trained without any time
    assert se.network_time(t, 0, 3, **how, sampling=True).item() == 0.25
    assert se.network_time(t, 0, 3, **how, sampling=False, released=False).item() == 0.25
    how = {"embedding": "linear", "multiplier": 2}
    assert se.network_time(t, 2, 3, **how, sampling=False).item() == 1.5
    assert se.network_time(t, 2, 3, **how, sampling=True).item() == 1.25


def test_the_exact_score_of_one_image_samples_it():
    image = picture(16)
    z = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    start = se.unconditional_start(z, 5.0, matched=True)
    found = se.sample(se.exact_score(image, 5.0), start, sigma=5.0, tol=1e-6)
    left = se.std(torch.tensor(1e-3), 5.0) / se.std(torch.tensor(1.0), 5.0)
    assert (found.samples - (image + left * (start - image))).abs().max() < 2e-5


def test_batches_keep_rows_of_all_times():
    torch.manual_seed(0)
    image, score = picture(8), torch.zeros(10, 3, 8, 8)
    batch = se.draw_batch(image, score, 15, sigma=2.0)
    assert batch.x.shape == (15, 3, 8, 8)
    level = se.std(batch.tau, 2.0)[:, None, None, None]
    torch.testing.assert_close(batch.x, image + level * batch.z)
    tau = se.draw_batch(image, score, 20, sigma=2.0).tau.sort().values.reshape(10, 2)
    earliest, latest = (se.training_times(torch.full((10,), u)) for u in (0.0, 1.0))
    assert ((tau >= earliest[:, None] - 1e-6) & (tau <= latest[:, None] + 1e-6)).all()  # two of each time


# ---- what is refused


SYMMETRIC = torch.rand(13, 13, generator=torch.Generator().manual_seed(5))
SYMMETRIC = (SYMMETRIC + SYMMETRIC.T) / 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 8, 6), r"an image must be \(C, H, H\)"),
        (torch.rand(8, 8), r"an image must be \(C, H, H\)"),
        (torch.rand(3, 8, 8) + 0.5, r"an image must lie in \[0, 1\]"),
        (torch.full((1, 8, 8), float("nan")), r"an image must lie in \[0, 1\]"),
        (torch.full((2, 8, 8), 0.5), "channel 0 of the image has one value, 0.5"),
        (torch.eye(8)[None], "pixels lie on a line"),
        (SYMMETRIC[None], "pixels lie on a line"),
        (
            torch.tril(SYMMETRIC, -1)[None] + (1 - torch.tril(SYMMETRIC, -1).T.triu(1)).triu(1) + torch.eye(13) / 2,
            "on a line",
        ),
        (torch.zeros(0, 8, 8), r"an image must be \(C, H, H\)"),
        (None, "an image must be a tensor or an array of numbers, not NoneType"),
        ("picture", "an image must be a tensor or an array of numbers, not str"),
        (torch.zeros(1, 8, 8, dtype=torch.complex64), "of real numbers"),
    ],
)
def test_images_that_have_no_field(image, message):
    with pytest.raises(UserError, match=message):
        se.initial_field(image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": -2.0}, "sigma must be a finite number, above 0 and at most 1e\\+06, not -2.0"),
        ({"sigma": 1.0}, "sigma must not be 1"),
        ({"steps": 1}, "steps must be a whole number, at least 2"),
        ({"tol": 0.0}, "tol must be a finite number, above 0"),
        ({"dh": 0.0}, "dh must be a finite number, above 0"),
        ({"mode": "right"}, "mode must be one of"),
        ({"most": 0}, "most must be a whole number, at least 1"),
        ({"seed": -1}, "seed must be a whole number, at least 0"),
        ({"sigma": 1e200}, "sigma must be a finite number, above 0 and at most 1e\\+06"),
    ],
)
def test_settings_that_make_no_field(change, message):
    how = {"sigma": 2.0, "steps": 5, "tol": 1e-3} | change
    with pytest.raises(UserError, match=message):
        se.solve(torch.arange(16.0).reshape(1, 4, 4), **how)


def test_a_field_that_is_none():
    for m0 in (torch.zeros(4, 4), torch.zeros(1, 4, 5), torch.full((1, 4, 4), float("inf"))):
        with pytest.raises(UserError, match=r"a field must be \(C, H, H\)"):
            se.solve(m0, sigma=2.0, steps=3, tol=1e-3)
    with pytest.raises(UserError, match=r"a field must be \(C, H, H\)"):
        se.solve(torch.zeros(0, 4, 4), sigma=2.0, steps=3, tol=1e-3)
    with pytest.raises(UserError, match="the batches of image, score and tau must go together"):
        se.embed(torch.zeros(2, 3, 4, 4), torch.zeros(3, 5, 3, 4, 4), sigma=2.0, tau=torch.zeros(5))
    with pytest.raises(UserError, match="image, score and tau must be"):
        se.embed(torch.zeros(3, 4, 4), torch.zeros(5, 3, 4, 4), sigma=2.0, tau=torch.zeros(4))


def test_passes_that_do_not_converge_say_so(caplog):
    from dmcmc_core.errors import LOG

    LOG.propagate = True
    try:
        field = se.solve(se.initial_field(picture()), sigma=2.0, steps=10, tol=1e-12, most=3)
    finally:
        LOG.propagate = False
    assert field.passes == 3 and not field.converged
    assert "after 3 passes" in caplog.text


def test_a_score_that_is_not_finite_is_said():
    with pytest.raises(UserError, match="not finite at t = 1"):
        se.sample(lambda x, t: x * float("nan"), torch.zeros(1, 1, 4, 4), sigma=2.0)
    with pytest.raises(UserError, match="weight must be"):
        se.conditional_start(torch.zeros(1), torch.zeros(1), 2.0, 1.5)
    with pytest.raises(UserError, match="betas must be"):
        ddpm.ddim(lambda x, t: x, torch.zeros(1, 1), torch.tensor([0.0, 0.5]))
