"""Linear diffusions: the numbers of the literature, and what their definitions ask for."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dmcmc_core import linear_sde
from dmcmc_core.errors import UserError
from dmcmc_core.linear_sde import BDM, CLD, VE, VP, SubVP, dct, make_sde

ALL = [VP(), SubVP(), VE(), BDM(image_size=4, sigma_blur_max=2.0), CLD(), CLD(beta=3.0, gamma=0.1), VP(1.0, 5.0)]
TIMES = (1e-3, 0.05, 0.3, 0.9)


def t64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_cld_has_the_published_constants():
    sde = CLD()
    assert sde.R(0.1).flatten().tolist() == pytest.approx([0.11275192, -0.45727261, 0.42894760, -0.17821993], abs=5e-9)
    low = sde.L(1e-3)
    assert [low[0, 0], low[1, 0], low[1, 1]] == pytest.approx([0.00204795, 0.10703238, 0.07811957], abs=5e-9)
    angles = [1.143469, 4.954141, 8.482748, 12.484221]
    assert sde._angle(t64(1e-3, 0.1, 0.5, 1.0)).tolist() == pytest.approx(angles, abs=5e-7)
    assert sde._angle_rate(t64(1e-3)).item() == pytest.approx(610.3, abs=0.05)
    psi = sde.Psi(0.8157021, 1.0)
    assert psi.flatten().tolist() == pytest.approx([-2.07226738, -12.88121587, 3.22030397, 10.80894849], abs=2e-7)
    assert sde.R(0.0).diag().tolist() == pytest.approx([1e-3, math.sqrt(0.01 + 1e-6)], abs=1e-15)
    assert torch.allclose(sde.Sigma(1.0), torch.diag(t64(1.0, 0.25)), atol=2e-2) and sde.prior[1, 1] == 0.5


def test_bdm_has_the_published_constants():
    sde = BDM()
    assert sde.t_max == pytest.approx(0.99597979, abs=5e-9)
    alpha = 1 - sde.Sigma(t64(0.0, 1.0))[:, 0, 0]
    assert alpha.tolist() == pytest.approx([0.9999611, 3.885e-5], rel=2e-5, abs=5e-8)
    blur = sde.gain(1.0) / alpha[1].sqrt()
    assert [blur[0, 0], blur[1, 0], blur[4, 4]] == pytest.approx([1.0, 0.618, 0.001], abs=5e-4)
    assert sde.GG(0.3)[4, 4].item() == pytest.approx(4.95, abs=5e-3)
    assert (sde.GG(torch.linspace(0, 1, 50).double()) >= 0).all()
    assert sde.R(0.3).shape == sde.Psi(0.2, 0.3).shape == (32, 32) and torch.equal(sde.R(0.3), sde.L(0.3))


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_coefficients_solve_their_equations(sde):
    """dPsi = F Psi, dSigma = F Sigma + Sigma F^T + G G^T, dR = (F + G G^T Sigma^-1 / 2) R; all by one other solver."""
    s, t = 0.05, 0.4
    names = ("Psi", "Sigma", "R")
    first = {"Psi": sde.one.expand_as(sde.R(s)), "Sigma": sde.Sigma(s), "R": sde.R(s)}
    shape = first["R"].shape

    def rate(tau, flat):
        psi, sigma, root = torch.from_numpy(flat).reshape(3, *shape)
        f, gg = sde.F(tau), sde.GG(tau)
        drift = sde.product(f, sigma)
        half = sde.product(sde.product(gg, sde.inverse(sigma)), root) / 2
        return torch.stack(
            [sde.product(f, psi), drift + sde.transpose(drift) + gg, sde.product(f, root) + half]
        ).flatten()

    start = torch.stack([first[name] for name in names]).flatten().numpy()
    made = solve_ivp(rate, (s, t), start, method="DOP853", rtol=1e-12, atol=1e-14)
    for name, found in zip(names, torch.from_numpy(made.y[:, -1]).reshape(3, *shape), strict=True):
        wanted = sde.Psi(t, s) if name == "Psi" else getattr(sde, name)(t)
        assert (found - wanted).abs().max() < 1e-10 * wanted.abs().max(), name


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_roots_and_transitions(sde):
    times = t64(*TIMES)
    for root in (sde.R(times), sde.L(times)):
        assert torch.allclose(sde.product(root, sde.transpose(root)), sde.Sigma(times), rtol=1e-10, atol=1e-15)
    assert torch.allclose(sde.product(sde.Psi(0.3, 0.1), sde.Psi(0.1, 0.7)), sde.Psi(0.3, 0.7), rtol=1e-12)
    assert torch.allclose(sde.product(sde.G(times), sde.transpose(sde.G(times))), sde.GG(times), rtol=1e-12)
    for i, t in enumerate(TIMES):  # a list of times is the times one by one
        for name in ("R", "Sigma", "L", "F", "GG", "gain"):
            assert torch.allclose(getattr(sde, name)(times)[i], getattr(sde, name)(t), rtol=1e-13), name


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_the_stretch_solves_its_equation(sde):
    for lam in (0.3, 1.0):
        s, t = 0.5, 0.02

        def rate(tau, flat, lam=lam):
            inverse = sde.inverse(sde.R(tau))
            turned = sde.product(sde.product(inverse, sde.GG(tau)), sde.transpose(inverse))
            return (lam**2 / 2 * sde.product(turned, torch.from_numpy(flat).reshape(turned.shape))).flatten()

        one = sde.one.expand_as(sde.R(s)).flatten().numpy()
        made = solve_ivp(rate, (s, t), one, method="DOP853", rtol=1e-11, atol=1e-13)
        found = sde.stretch(t, s, lam)
        assert torch.allclose(torch.from_numpy(made.y[:, -1]).reshape(found.shape), found, atol=1e-9)
    assert torch.equal(sde.stretch(0.1, 0.5, 0.0), sde.one.expand_as(sde.R(0.1)))


def test_states_and_their_noise():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 3, 8, 8, generator=generator)
    t = torch.linspace(0.01, 0.9, 7).double()
    for sde in (VP(), VE(), CLD(), BDM(image_size=8)):
        state = sde.lift(images)
        assert state.shape == (7, 3 * sde.parts, 8, 8) and torch.allclose(sde.drop(state), images, atol=1e-6)
        noise = torch.randn(state.shape, generator=generator)
        u = sde.forward(images, t, noise)
        for i in range(7):  # row by row with the coefficients of its own time
            one = sde.apply(sde.gain(t[i]), state[i : i + 1]) + sde.apply(sde.R(t[i]), noise[i : i + 1])
            assert torch.allclose(u[i : i + 1], one, atol=1e-5)
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=generator)
    assert torch.allclose(dct(dct(x), inverse=True), x) and torch.allclose(dct(x).norm(), x.norm())
    assert dct(torch.ones(4, 4, dtype=torch.float64))[0, 0].item() == pytest.approx(4)


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), CLD()], ids=str)
def test_the_observation_tells_all_that_the_state_tells(sde):
    """For every x_0, log p(u | x_0) is that of the observation up to what does not depend on x_0."""
    generator = torch.Generator().manual_seed(0)
    for t in (0.01, 0.2, 0.9):
        clean = torch.randn(1, 1, 5, 1, dtype=torch.float64, generator=generator)
        u = sde.forward(clean, t64(t), torch.randn(1, sde.parts, 5, 1, dtype=torch.float64, generator=generator))
        x, sigma = sde.observation(u, t)
        others = torch.randn(6, 1, 5, 1, dtype=torch.float64, generator=generator)
        rest = sde.apply(sde.inverse(sde.R(t)), u - sde.apply(sde.gain(t), sde.lift(others)))
        of_state = -rest.square().flatten(1).sum(1) / 2
        of_image = -((x - others) / sigma).square().flatten(1).sum(1) / 2
        assert (of_state - of_image).std() < 1e-9 * of_state.abs().max()
    with pytest.raises(UserError, match="noise of their own"):
        BDM(image_size=4).observation(torch.zeros(1, 1, 4, 4), 0.5)


def test_what_is_refused():
    for sde in (VP(), CLD(), BDM(image_size=4), VE()):
        for t in (-0.1, 1.1, math.nan):
            with pytest.raises(UserError, match="t must lie between 0 and 1"):
                sde.R(t)
    with pytest.raises(UserError, match="unknown diffusion 'CDL': did you mean 'CLD'"):
        make_sde("CDL")
    with pytest.raises(UserError, match="unknown constant of CLD 'bet': did you mean 'beta'"):
        make_sde("CLD", bet=1.0)
    for made, constants in (
        (BDM, {"image_size": 3.5}),
        (BDM, {"floor": 2.0}),
        (CLD, {"beta": 0.0}),
        (VP, {"beta_max": 0.01}),
    ):
        with pytest.raises(UserError, match=f"{next(iter(constants))} of {made.__name__} must be"):
            made(**constants)
    with pytest.raises(UserError, match="t must be a time or a tensor of times, not 'a'"):
        CLD().Psi("a", 0.5)
    assert make_sde("BDM", image_size=8) == BDM(image_size=8) and linear_sde.DIFFUSIONS["CLD"] is CLD


def test_constants_are_pythons_numbers():
    """As a card or a manifest can hold them."""
    with pytest.raises(UserError, match="beta_min of VP must be a number above 0"):
        linear_sde.VP(beta_min=np.float32(1.0))
