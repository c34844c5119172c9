"""What a fit may be told."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from dmcmc_core.errors import UserError, number, one_of
from dmcmc_core.integrators.fitted.modes import Modes
from dmcmc_core.integrators.gaussian_split import Spectrum

HELD_OUT = 8
"""Images of the noise held out, at least: all solvers are tried on so many first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What a fit may be told.

    Attributes:
        past: denoised images that a step may use, 1 to 4.
        ridge: of the least squares, above 0, in units of its scaled normal equations.
        start: ``zero`` or ``mean``; None: mean where the model knows it.
        jump: whether the first step makes no call; None: both ways are searched.
        accurate: network calls of an accurate trajectory, at least 16; None: 32, or twice the largest budget.
        held_out: images of noise of its own on which the fit is tried, at least 8.
        grid: ``searched``, or the name of a grid that is left as it is: ``karras`` or ``log_uniform``.
        response: whether grids are also searched with the response of the network that a solver met; False: with the
            one that is assumed alone.
        covariance: of the data; coefficients are then of its modes.
        bands: groups of modes of falling variance with coefficients of their own, 1 to 16; needs ``covariance``.
        split: whether the Gaussian part of the flow is exact, and the rest is fitted; needs ``covariance``. None: with
            ``covariance``, both ways are tried on the noise held out.
    """

    past: int = 4
    ridge: float = 1e-9
    start: str | None = None
    jump: bool | None = None
    accurate: int | None = None
    held_out: int = 24
    grid: str = "searched"
    response: bool = True
    covariance: Spectrum | None = None
    bands: int = 1
    split: bool | None = None

    def __post_init__(self) -> None:
        number("past", self.past, least=1, most=4, whole=True)
        number("ridge", self.ridge, above=0)
        number("held_out", self.held_out, least=HELD_OUT, whole=True)
        number("bands", self.bands, least=1, most=16, whole=True)
        one_of("start", self.start, None, "zero", "mean")
        one_of("jump", self.jump, None, True, False)
        one_of("grid", self.grid, "searched", "karras", "log_uniform")
        one_of("response", self.response, True, False)
        one_of("split", self.split, None, True, False)
        if self.accurate is not None:
            number("accurate", self.accurate, least=16, whole=True)
        if self.covariance is None:
            for name, asked in (("bands", self.bands > 1), ("split", bool(self.split))):
                if asked:
                    raise UserError(f"{name} needs covariance=Spectrum.of_images(images), or of_covariance or of_model")
        elif not isinstance(self.covariance, Spectrum):
            raise UserError(f"covariance must be a Spectrum, not {type(self.covariance).__name__}")

    def forms(self) -> list[Modes | None]:
        """Return what coefficients may multiply: images from their mean, None, or modes; all are tried."""
        if self.covariance is None:
            return [None]
        ways = [True, False] if self.split is None else [self.split]
        return [Modes.grouped(self.covariance, self.bands, split) for split in ways]

    def about(self) -> dict[str, Any]:
        """Return the options as plain values, a covariance by its SHA-256."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.covariance is not None:
            digest = hashlib.sha256()
            for tensor in (self.covariance.mean, self.covariance.variances, self.covariance.axes):
                digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
            values["covariance"] = digest.hexdigest()
        return values
