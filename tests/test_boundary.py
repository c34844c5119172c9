"""Boundary diffusion: inversion and its way back, hyperplanes, edits, the bottleneck."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import boundary, load_model
from dmcmc_core.checkpoints import load_network
from dmcmc_core.denoiser import Adapter
from dmcmc_core.errors import UserError

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
here = pytest.mark.skipif(not PARITY.is_dir(), reason=f"reference outputs are not at {PARITY}")


def arrays(name: str) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(PARITY / f"{name}.npz").items()}


def mixture(a: dict[str, torch.Tensor], seen: list[float] | None = None):
    """Epsilon of the Gaussian mixture of the reference under the published betas."""
    bars = boundary.kept_shares(a["betas"])

    def epsilon(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if seen is not None:
            seen.append(t[0].item())
        bar = bars[t.long()][:, None]
        gaps = x.double()[:, None] - bar[:, None].sqrt() * a["means"]
        variances = bar * a["stds"].square() + 1 - bar
        logs = a["weights"].log() - gaps.square().sum(-1) / (2 * variances) - x.shape[1] / 2 * variances.log()
        share = logs.softmax(1) / variances
        return ((1 - bar).sqrt() * (share[..., None] * gaps).sum(1)).float()

    return epsilon


@here
def test_inversion_and_the_way_back_are_those_of_the_released_code():
    a, seen, states = arrays("boundary_inversion"), [], []
    times = boundary.grid(500, 40)
    assert times == a["times_inversion"].tolist() == a["times_reverse"].tolist()
    latent = boundary.invert(mixture(a, seen), a["x0"], times, callback=states.append)
    assert seen == a["network_times_inversion"].tolist()
    assert (torch.stack(states, 1) - a["inversion_trajectory"]).abs().max() < 2e-5
    assert (latent - a["latent"]).abs().max() < 2e-5
    seen.clear()
    states.clear()
    back = boundary.reverse(mixture(a, seen), a["latent"], times, callback=states.append)
    assert seen == a["network_times_reverse"].tolist()
    assert (torch.stack(states, 1) - a["reverse_trajectory_eta0"]).abs().max() < 2e-5
    assert (back - a["reconstruction_eta0"]).abs().max() < 2e-5
    for eta, name in ((1.0, "reverse_eta1"), (0.3, "reverse_eta03")):
        found = boundary.reverse(mixture(a), a["latent"], times, eta, a["noise"])
        assert (found - a[name]).abs().max() < 2e-5


@here
def test_edits_are_those_of_the_released_code():
    a, times = arrays("boundary_inversion"), boundary.grid(500, 40)
    for k, zeta in enumerate(a["zeta"].tolist()):
        edited = boundary.edit(a["latent"], a["normal"], zeta)
        assert (edited - a["latent_set"][:, k]).abs().max() < 2e-5
        assert ((edited @ a["normal"].flatten()) - zeta).abs().max() < 1e-5
        found = boundary.reverse(mixture(a), edited, times, 1.0, a["noise"])
        assert (found - a["edited_eta1"][:, k]).abs().max() < 2e-5
    moved = boundary.edit(a["latent"], a["normal"], 2.0, how="add")
    assert torch.allclose((moved - a["latent"]) @ a["normal"].flatten(), torch.full((6,), 2.0), atol=1e-5)


@here
@pytest.mark.parametrize("kind", ["separable", "overlapping"])
def test_boundaries_are_those_of_a_support_vector_machine(kind):
    a = {k.removeprefix(f"{kind}."): v for k, v in arrays("boundary_svc").items() if k.startswith(kind)}
    found = boundary.fit(a["latents"], a["labels"], (a["test_latents"], a["test_labels"]))
    assert (found.normal - a["normal"][0]).abs().max() < 1e-6
    assert found.accuracy == a["test_accuracy"].item()
    assert boundary.fit(a["latents"], a["labels"]).accuracy == a["train_accuracy"].item()
    length = torch.linalg.vector_norm(a["coef"]).item()
    assert torch.allclose(found.distances(a["test_latents"]).double() * length, a["test_decision"], atol=1e-4)


@here
def test_the_whole_way_of_an_edit_is_that_of_the_released_code():
    """On a network of the DDPM port: the bottleneck is of the last call of the inversion, and lags a step behind."""
    a = arrays("boundary_edit_ddim_celeba_hq_small")
    network = boundary.WithBottleneck(load_network(PARITY / "ddim_celeba_hq_small.ckpt"))
    times = a["times_inversion"].tolist()

    def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
        return ((found - wanted).abs().max() / wanted.abs().max()).item()

    latent = boundary.invert(network, a["x0"], times)
    bottleneck = network.seen
    assert relative(latent, a["latent"]) < 5e-5 and relative(bottleneck, a["bottleneck"]) < 5e-5
    assert relative(boundary.reverse(network, latent, times), a["reconstruction"]) < 5e-5
    for k, zeta in enumerate(a["zeta"].tolist()):
        z, h = boundary.edit(latent, a["normal_z"], zeta), boundary.edit(bottleneck, a["normal_h"], zeta)
        assert relative(z.flatten(), a["latent_set"][k]) < 5e-5 and relative(h.flatten(), a["bottleneck_set"][k]) < 5e-5
        noise = a["noise"].transpose(0, 1)
        for epsilon, name in (
            (boundary.Injected(network, h, "lagged"), "edited_as_released"),
            (boundary.Injected(network, h, "first"), "edited_bottleneck_first_step_only"),
            (network, "edited_latent_only"),
        ):
            found = boundary.reverse(epsilon, z, times, 1.0, noise)
            assert relative(found[0], a[name][k]) < 5e-5, name


def test_the_bottleneck_of_every_network_is_found_and_replaced():
    nets = [load_model(name).net for name in ("digits", "glyphs32")]
    for net in nets:
        shape = tuple(net.mean.shape) if getattr(net, "mean", None) is not None else net.shape
        x, sigma = torch.randn(2, *shape), torch.ones(2)
        network = boundary.WithBottleneck(net)
        answer = network(x, sigma)
        own = network.seen
        assert own.shape[-1] < shape[-1]
        assert torch.equal(network(x, sigma, bottleneck=own), answer)
        assert not torch.equal(network(x, sigma, bottleneck=own + 1), answer)
        assert torch.equal(network.seen, own) and torch.equal(net(x, sigma), answer)
        with pytest.raises(UserError, match="a bottleneck must have shape"):
            network(x, sigma, bottleneck=own[:1])


def test_the_boundary_of_two_gaussians_is_that_of_bayes():
    generator = torch.Generator().manual_seed(0)
    shift = torch.zeros(1, 4, 4)
    shift[0, 1, 2], shift[0, 3, 0] = 1.2, -0.9
    labels = torch.arange(4000) % 2
    latents = torch.randn(4000, 1, 4, 4, generator=generator) + labels[:, None, None, None] * shift
    found = boundary.fit(latents, labels)
    angle = torch.rad2deg(torch.arccos((found.normal * shift).sum() / shift.norm()))
    assert angle < 9
    assert found.distances(latents[:3]).shape == (3,)


def test_a_fit_of_long_latents_is_that_of_short_ones():
    """A rotation into more dimensions changes no inner product, and so no machine."""
    generator = torch.Generator().manual_seed(1)
    latents, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 2
    latents[labels == 1, 0] += 1.0
    basis = torch.linalg.qr(torch.randn(300, 5, generator=generator))[0]
    short, long = boundary.fit(latents, labels), boundary.fit(latents @ basis.T, labels)
    assert (basis @ short.normal - long.normal).abs().max() < 1e-4


def test_orthogonal_normals_leave_the_first_and_no_other_projection():
    one, two = torch.randn(3, 4), torch.randn(3, 4)
    one, two = one / one.norm(), two / two.norm()
    first, second = boundary.orthogonal([one, two])
    assert torch.allclose(first, one, atol=1e-6) and abs((first * second).sum()) < 1e-6
    z = boundary.edit(boundary.edit(torch.randn(2, 3, 4), first, 3.0), second, -1.0)
    assert torch.allclose((z * first).sum((1, 2)), torch.full((2,), 3.0), atol=1e-5)
    with pytest.raises(UserError, match="normal 1 lies in the span"):
        boundary.orthogonal([one, -one])


def test_a_saved_boundary_comes_back(tmp_path):
    latents, labels = torch.randn(20, 2, 3), torch.arange(20) % 2
    made = boundary.fit(latents, labels, card={"time": 500, "level": "z"})
    made.save(tmp_path / "a.safetensors")
    back = boundary.load(tmp_path / "a.safetensors")
    assert torch.equal(back.normal, made.normal) and back.card == made.card and back.accuracy == made.accuracy
    back.check(time=500, network="x")
    with pytest.raises(UserError, match="this boundary is of another time, 500, not 400"):
        back.check(time=400)
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="is no boundary: .* pickled scikit-learn SVC is its coef_ over its length"):
        boundary.load(tmp_path / "b.pkl")
    with pytest.raises(UserError, match="no such file"):
        boundary.load(tmp_path / "c.safetensors")


def test_what_makes_no_boundary_is_refused():
    latents = torch.randn(6, 2)
    for labels, match in (
        ([1] * 6, "labels must be of two values, not of 1"),
        ([0, 1, 2, 0, 1, 2], "labels must be of two values, not of 3"),
        ([0, 1, 1, 1, 1, 1], "each kind needs 2 latents, one has 1"),
        ([0, 1], "every latent needs a label: 6 of them"),
    ):
        with pytest.raises(UserError, match=match):
            boundary.fit(latents, labels)
    with pytest.raises(UserError, match="must be finite"):
        boundary.fit(latents / 0, [0, 1] * 3)
    with pytest.raises(UserError, match="labels must be 0 or 1, not 5"):
        boundary.fit(latents, [0, 1] * 3, (latents, [5] * 6))
    made = boundary.fit(latents, [0, 1] * 3)
    with pytest.raises(UserError, match="latents must have shape"):
        made.distances(torch.randn(2, 3))
    with pytest.raises(UserError, match="a normal of 2 numbers does not fit latents of 3"):
        boundary.edit(torch.randn(2, 3), made.normal, 1.0)
    epsilon = lambda x, t: x  # noqa: E731
    for times, match in (([0, 1000], "a time must be"), ([3, 1], "that rise"), ([5], "two or more")):
        with pytest.raises(UserError, match=match):
            boundary.invert(epsilon, latents, times)
    with pytest.raises(UserError, match="eta must be"):
        boundary.reverse(epsilon, latents, [0, 5], eta=1.5)


def test_epsilon_of_a_denoiser_is_that_of_its_data():
    """Of a Gaussian in [0, 1]: in closed form, at every time that the model reaches."""
    shape, ends = (1, 2, 2), {"data_range": (0.0, 1.0), "sigma_min": 1e-3}

    def gaussian(x, sigma):
        kept = (0.1**2 / (0.1**2 + sigma**2)).reshape(-1, 1, 1, 1)
        return 0.7 + kept * (x - 0.7)

    model = Adapter(gaussian, shape, sigma_max=200.0, **ends)
    epsilon, bars = boundary.epsilon_of(model), boundary.kept_shares()
    x, t = torch.randn(3, 1, 2, 2), torch.tensor([5, 300, 900])
    bar = bars[t].float().reshape(-1, 1, 1, 1)
    wanted = (1 - bar).sqrt() * (x - bar.sqrt() * 0.4) / (bar * 0.2**2 + 1 - bar)
    assert torch.allclose(epsilon(x, t), wanted, atol=1e-4)
    narrow = Adapter(gaussian, shape, sigma_max=1.0, **ends)
    with pytest.raises(UserError, match="beyond the model's sigma_max = 1: choose earlier times"):
        boundary.epsilon_of(narrow)(x, t)


def test_inversion_returns_the_image_at_first_order():
    """A grid that returns: as many calls on both ways, the error falls with the steps; the published pair ends off."""
    model = load_model("digits").denoiser
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    epsilon, errors = boundary.epsilon_of(model), []
    for count in (20, 40, 80):
        times = boundary.grid(400, count)
        back = boundary.reverse(epsilon, boundary.invert(epsilon, images, times), times)
        errors.append((back - images).square().mean().sqrt().item())
    assert errors[0] > errors[1] > errors[2]
    assert 1.5 < errors[0] / errors[2] < 8


def test_the_mixing_time_is_where_both_radii_still_agree():
    found = boundary.Radii([0, 100, 200], torch.tensor([5.0, 9.0, 9.0]), torch.tensor([7.0, 9.5, 10.5]), 100)
    assert torch.allclose(found.apart(), torch.tensor([2.8571, 0.5263, 1.4286]), atol=1e-4)
    assert boundary.mixing_time(found) == 100 and boundary.mixing_time(found, 2.0) == 200
    with pytest.raises(UserError, match="at no time within 0.1 widths of the shell: the nearest are 0.53 apart"):
        boundary.mixing_time(found, 0.1)


def test_radii_of_standard_normal_data_stay_on_their_shell():
    """Epsilon of N(0, 1) is sqrt(1 - bar) x, under which every state keeps its norm but for the size of the steps."""
    bars = boundary.kept_shares()
    epsilon = lambda x, t: (1 - bars[t.long()]).sqrt().float()[:, None] * x  # noqa: E731
    images = torch.randn(64, 400, generator=torch.Generator().manual_seed(0))
    draws = torch.randn(64, 400, generator=torch.Generator().manual_seed(1))
    found = boundary.radii(epsilon, images, boundary.grid(900, 60), noise=lambda _: draws)
    assert found.inverted.shape == found.sampled.shape == (60,)
    assert ((found.inverted / 20 - 1).abs() < 0.05).all() and ((found.sampled / 20 - 1).abs() < 0.05).all()
    assert found.sampled[-1] == torch.linalg.vector_norm(draws, dim=1).mean()


def test_a_boundary_tells_less_the_later_it_is():
    model = load_model("digits").denoiser
    from dmcmc_core.data import digits

    sets = [digits(name) for name in ("train", "heldout")]
    chosen = []
    for images, labels, _ in sets:
        kept = ((labels == 3) | (labels == 7)).nonzero().flatten()[:60]
        chosen.append((images[kept] * 2 - 1, labels[kept]))
    found = boundary.accuracies(boundary.epsilon_of(model), *chosen[0], chosen[1], boundary.grid(600, 13))
    assert [b.card["time"] for b in found] == boundary.grid(600, 13)
    assert found[0].accuracy > 0.9 and found[0].accuracy >= found[-1].accuracy > 0.5
