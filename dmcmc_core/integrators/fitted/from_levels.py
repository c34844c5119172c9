"""Fitted solvers for states at any noise level, such as chains leave."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, like, per_row
from dmcmc_core.errors import UserError
from dmcmc_core.integrators.fitted.solver import Fitted, check_noise
from dmcmc_core.integrators.registry import Callback, Noise
from dmcmc_core.starts import centre


@dataclasses.dataclass(frozen=True)
class FromLevels:
    """Solvers of one budget, each from a first level s of its own.

    A state at level sigma is brought to the nearest s above it, x + sqrt(s^2 - sigma^2) z with z normal, whose
    distribution is exactly that of s. Images of different s are integrated together, as all take the same calls.

    Attributes:
        solvers: by rising first level, in pixels, with the same start.
    """

    solvers: tuple[Fitted, ...]

    def __post_init__(self) -> None:
        if not self.solvers or any(one.nfe != self.nfe or one.start != self.solvers[0].start for one in self.solvers):
            raise UserError("solvers from several levels must be of one budget and one start, and at least one")
        if any(one.modes for one in self.solvers):
            raise UserError("solvers from several levels have coefficients of pixels, not of modes")
        if (self.firsts.diff() <= 0).any():
            raise UserError(f"first levels must rise, not {self.firsts.tolist()}")

    @property
    def nfe(self) -> int:
        """Network calls of an image."""
        return self.solvers[0].nfe

    @property
    def firsts(self) -> Tensor:
        """The first levels, (L,) float64, rising."""
        return torch.stack([one.sigmas[0] for one in self.solvers])

    def chosen(self, sigma: Tensor) -> Tensor:
        """Return which solver takes a state at each level of sigma (B,).

        Raises:
            UserError: for a level above all of them.
        """
        firsts = self.firsts.to(sigma.device)
        if (sigma > firsts[-1] * (1 + 1e-6)).any():
            raise UserError(f"a state at level {sigma.max().item():g} lies above the last first level, {firsts[-1]:g}")
        return torch.searchsorted(firsts, sigma.double()).clamp(max=len(firsts) - 1)

    def levels(self, sigma: Tensor) -> Tensor:
        """Return the levels of the states of images that begin at sigma (B,): (B, 2 + nfe) float64, sigma first."""
        return torch.cat([sigma.double()[:, None], self._table()[0].to(sigma.device)[self.chosen(sigma)]], 1)

    @torch.no_grad()
    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, noise: Noise = None, callback: Callback = None
    ) -> Tensor:
        """Return images (B, *shape) from states x at levels sigma, () or (B,); ``noise`` makes normals like x.

        Raises:
            UserError: as :meth:`Fitted.__call__`, and for a level above the last first one.
        """
        check_noise(model, x)
        self.solvers[0].check(model)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        sigma = per_row(sigma, x).double()
        if not (sigma >= 0).all():
            raise UserError(f"sigma must be at least 0, not {sigma[~(sigma >= 0)][0].item():g}")
        chosen, m = self.chosen(sigma), centre(model, self.solvers[0].start, x.device).to(x)
        levels, table, jumps = (t.to(x.device)[chosen] for t in self._table())
        s, past = self.firsts.to(x.device)[chosen], []
        y = x - m + like((s**2 - sigma**2).clamp(min=0).sqrt(), x) * (noise or torch.randn_like)(x)
        y = like(jumps, y) * y
        for i in range(self.nfe):
            past = [model(m + y, levels[:, i].to(x)) - m, *past]
            y = sum(
                (like(c, y) * term for c, term in zip(table[:, i].T, [y, *past], strict=False)), torch.zeros_like(y)
            )
            if callback:
                callback(i + 1, self.nfe, levels[:, i + 1], m + y)
        return m + y

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return, by solver, the levels asked, the coefficients, and the factor of a first step without a call."""
        width = 1 + max(one.coefficients.shape[1] for one in self.solvers)
        levels, tables, jumps = [], [], []
        for one in self.solvers:
            table = one.coefficients[int(one.jump) :]
            tables.append(torch.nn.functional.pad(table, (0, width - table.shape[1])))
            levels.append(one.sigmas[int(one.jump) :])
            jumps.append(one.coefficients[0, 0] if one.jump else torch.ones((), dtype=torch.float64))
        return torch.stack(levels), torch.stack(tables), torch.stack(jumps)
