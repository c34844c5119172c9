"""A network for any linear diffusion: epsilon(u, t) in the coordinates R of :mod:`dmcmc_core.linear_sde`.

A U-Net may answer with epsilon itself, or with the clean image: as u = Psi x_0 + R epsilon and x_0 alone is not known,
the mean of one gives that of the other,

    epsilon = R^-1 (u - Psi D),   D = E[x_0 | u].

D stands on what is known of Gaussian data without training, D = m + K (u - Psi m) + c answer, with u whitened for the
network and answers of unit variance at all times: the scalings of Karras et al. 2022 (arXiv 2206.00364, Table 1), which
are its scalar case, for blocks and frequencies. The answer then has C channels, where epsilon of CLD has 2C.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmcmc_core.denoiser import BLOCK, apply_in_blocks, per_row
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.linear_sde import LinearSDE, make_sde
from dmcmc_core.nets import song
from dmcmc_core.nets.unet import UNet

PREDICTS = ("epsilon", "mixed", "data")


class Around(NamedTuple):
    """The coefficients that stand around the network at some times, each (1 or B, *block) float64."""

    gain: Tensor
    inverse: Tensor
    """R^-1."""
    white: Tensor
    """S^-1/2 with S the covariance of u."""
    known: Tensor
    """K, of Gaussian data."""
    scale: Tensor
    """c, of the position alone."""


class EpsilonNet(nn.Module):
    """The epsilon(u, t) of a diffusion on images (C, H, W); u and epsilon are (B, parts C, H, W).

    The U-Net's input and output are pixels; for BDM the DCT stands around it.

    Args:
        shape: (C, H, W) of one image; H and W divisible by 2^(levels - 1).
        sde: ``name``, one of :data:`dmcmc_core.linear_sde.DIFFUSIONS`, and its constants.
        sigma_data: root mean square of (data - mean), in units of the data.
        predicts: what the U-Net answers with: ``data``, see above; ``epsilon``, as gDDIM's headline networks do; or
            ``mixed``, epsilon less R^-1 (0, v), the mixed score of Dockhorn, Vahdat & Kreis 2022 (arXiv 2112.07068,
            Section 3.2) in gDDIM's terms.
        channels, blocks, attention, embedding, dropout, augment: of :class:`dmcmc_core.nets.unet.UNet`.
    """

    def __init__(  # noqa: PLR0913  the arguments of the U-Net, and those of its diffusion
        self,
        shape: Sequence[int],
        sde: dict,
        sigma_data: float,
        predicts: str = "data",
        channels: Sequence[int] = (24, 64),
        blocks: Sequence[int] = (1, 2),
        attention: Sequence[bool] = (False, True),
        embedding: int = 96,
        dropout: float = 0.0,
        augment: int = 0,
    ) -> None:
        super().__init__()
        if predicts not in PREDICTS:
            raise unknown("predicts", predicts, PREDICTS)
        self.config = {
            "shape": list(shape),
            "sde": dict(sde),
            "sigma_data": sigma_data,
            "predicts": predicts,
            "channels": list(channels),
            "blocks": list(blocks),
            "attention": list(attention),
            "embedding": embedding,
            "dropout": dropout,
            "augment": augment,
        }
        self.sde, self.sigma_data, self.predicts = make_sde(**sde), sigma_data, predicts
        _check_mixed(predicts, self.sde)
        self.shape = tuple(shape)
        self.register_buffer("mean", torch.zeros(*shape))
        seen, answered = self.state_shape[0], shape[0] if predicts == "data" else self.state_shape[0]
        self.net = UNet(seen, channels, blocks, attention, embedding, dropout, augment, answered)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape (parts C, H, W) of one state."""
        return (self.sde.parts * self.shape[0], *self.shape[1:])

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        """Return epsilon like ``u`` (B, parts C, H, W), at times () or (B,).

        Raises:
            UserError: for a state of another shape.
        """
        _check_state(u, self)
        around = self.around(t)
        return self.epsilon(around, u, self.answer(around, u, t))

    def around(self, t: Tensor) -> Around:
        """Return what stands around the network at times () or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64).cpu()
        if t.ndim == 0:  # a sampler's: asked for again for the next images
            return _around_at(self.sde, t.item(), self.sigma_data)
        return _around(self.sde, t, self.sigma_data)

    def answer(self, around: Around, u: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what the U-Net answers, in pixels; ``labels`` (B, augment) in training only."""
        sde, time = self.sde, per_row(torch.as_tensor(t).to(u.device).log() / 4, u)
        seen = sde.pixels(sde.rows(around.white, self._centred(around, u)))
        if self.training:
            return self.net(seen, time, labels)
        return apply_in_blocks(lambda x, c: self.net(x, c, None), BLOCK, seen, time)

    def epsilon(self, around: Around, u: Tensor, answer: Tensor) -> Tensor:
        """Return the epsilon that an answer means."""
        sde = self.sde
        if self.predicts == "epsilon":
            return sde.coefficients(answer)
        if self.predicts == "mixed":
            return answer + sde.rows(around.inverse, sde.velocity(u))
        clean = self._guess(around, u) + sde.rows(around.scale, sde.coefficients(answer))
        return sde.rows(around.inverse, u - sde.rows(around.gain, sde.at_rest(clean)))

    def target(self, around: Around, u: Tensor, clean: Tensor, epsilon: Tensor) -> Tensor:
        """Return the answer that images (B, C, H, W) and the noise of their states ask for, in pixels."""
        sde = self.sde
        if self.predicts == "epsilon":
            return sde.pixels(epsilon)
        if self.predicts == "mixed":
            return epsilon - sde.rows(around.inverse, sde.velocity(u))
        return sde.pixels((sde.coefficients(clean) - self._guess(around, u)) / sde.rows(around.scale, 1 + 0 * clean))

    def _centred(self, around: Around, u: Tensor) -> Tensor:
        return u - self.sde.rows(around.gain, self.sde.lift(self.mean[None].to(u)))

    def _guess(self, around: Around, u: Tensor) -> Tensor:
        """Return E[x_0 | u] of Gaussian data, as coefficients of positions."""
        known = self.sde.position(self.sde.rows(around.known, self._centred(around, u)))
        return self.sde.coefficients(self.mean[None].to(u)) + known


class PublishedEpsilonNet(nn.Module):
    """The epsilon(u, t) of gDDIM's published networks: NCSN++ of the state in pixels, nothing around it.

    The network takes log(999 t) where its waves are ``fourier``, 999 t where they are ``positional``; it is never
    trained here, and always evaluated in blocks.

    Args:
        sde: ``name``, one of :data:`dmcmc_core.linear_sde.DIFFUSIONS`, and its constants.
        net: arguments of :class:`dmcmc_core.nets.song.UNet`, with as many channels in and out as a state has.
        predicts: ``epsilon``, or ``mixed`` as in :class:`EpsilonNet`.

    Raises:
        UserError: for channels that the diffusion's states have not.
    """

    def __init__(self, sde: dict, net: dict, predicts: str = "epsilon") -> None:
        super().__init__()
        if predicts not in ("epsilon", "mixed"):
            raise unknown("predicts", predicts, ("epsilon", "mixed"))
        self.config = {"sde": dict(sde), "net": dict(net), "predicts": predicts}
        self.sde, self.predicts, self.net = make_sde(**sde), predicts, song.UNet(**net)
        _check_mixed(predicts, self.sde)
        size, channels, parts = self.net.config["size"], self.net.config["in_channels"], self.sde.parts
        if channels % parts or channels != self.net.config["out_channels"]:
            raise UserError(
                f"a network for {type(self.sde).__name__} has {parts} channels in and out for each of the images, not "
                f"{channels} in and {self.net.config['out_channels']} out"
            )
        self.shape, self.state_shape = (channels // parts, size, size), (channels, size, size)
        self.logarithm = self.net.config["waves"] == "fourier"

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        """Return epsilon like ``u`` (B, parts C, H, W), at times () or (B,).

        Raises:
            UserError: for a state of another shape.
        """
        _check_state(u, self)
        t = torch.as_tensor(t, dtype=torch.float64).cpu()
        c_noise = per_row((999 * t).log() if self.logarithm else 999 * t, u)
        answer = self.sde.coefficients(apply_in_blocks(self.net, BLOCK, self.sde.pixels(u), c_noise))
        if self.predicts == "epsilon":
            return answer
        return answer + self.sde.rows(self.sde.inverse(self.sde.R(t.reshape(-1))), self.sde.velocity(u))


def _check_mixed(predicts: str, sde: LinearSDE) -> None:
    if predicts == "mixed" and sde.parts == 1:
        raise UserError(f"predicts='mixed' is for the velocities of CLD, which {type(sde).__name__} has not")


def _check_state(u: Tensor, net: EpsilonNet | PublishedEpsilonNet) -> None:
    if u.shape[1:] != net.state_shape:
        raise UserError(
            f"u must be (B, {', '.join(map(str, net.state_shape))}), {net.sde.parts} channels for each of the images, "
            f"not {tuple(u.shape)}"
        )


def _around(sde: LinearSDE, t: Tensor, sigma_data: float) -> Around:
    gain, data = sde.gain(t), sigma_data**2 * sde.of_data
    forth = sde.product(data, sde.transpose(gain))  # covariance of x_0 and u
    total = sde.product(gain, forth) + sde.Sigma(t)
    known = sde.product(forth, sde.inverse(total))
    left = sde.entry(data - sde.product(known, sde.transpose(forth)))
    return Around(gain, sde.inverse(sde.R(t)), sde.inverse(sde.cholesky(total)), known, left.clamp(min=0).sqrt())


@functools.lru_cache(maxsize=4096)
def _around_at(sde: LinearSDE, t: float, sigma_data: float) -> Around:
    return _around(sde, torch.tensor([t], dtype=torch.float64), sigma_data)
