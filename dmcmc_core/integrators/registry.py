"""What all integrators share: their registry, the walk down a grid of noise levels, and the ranges of their options."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.denoiser import Denoiser, check_shape
from dmcmc_core.errors import UserError, number, one_of, unknown

Noise = Callable[[Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Integrator:
    """An entry of :data:`INTEGRATORS`; calling it calls ``function`` with ``defaults`` filled in.

    Attributes:
        order: global order of convergence in the step size, at its default options; the weak order where
            ``stochastic``, and of a multistep method that whose first steps are small enough to leave no larger error.
        schedule: name of the grid its paper uses, in :data:`dmcmc_core.schedules.SCHEDULES`.
        calls: (n, **options) -> network calls for n levels followed by 0; None where the integrator adapts its steps.
        defaults: options that let it walk n levels followed by 0.
        last: what its option of that name may be.
        preconditioned: whether it walks a :class:`dmcmc_core.preconditioning.WithPreconditioner` with its M.
    """

    name: str
    function: Callable[..., Tensor]
    order: int
    stochastic: bool
    schedule: str
    calls: Callable[..., int] | None
    defaults: dict[str, Any] = field(default_factory=dict)
    last: tuple[str | None, ...] = ()
    preconditioned: bool = False

    def check(self, **options: Any) -> None:
        """UserError for an option outside its range."""
        for name, value in options.items():
            if name == "last":
                one_of(name, value, *self.last)
            elif name in OPTIONS:
                OPTIONS[name](name, value)

    def __call__(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        return self.function(denoiser, x, sigmas, **self.defaults | options)

    def levels(self, nfe: float, **options: Any) -> int:
        """The most levels that ``nfe`` network calls per image pay for, at these options of the integrator."""
        if self.calls is None:
            raise UserError(f"{self.name} adapts its steps: its tolerance, not a number of levels, sets its NFE")
        if nfe < self.calls(1, **options):
            raise UserError(f"{self.name} needs at least {self.calls(1, **options)} NFE, not {nfe:g}")
        return bisect.bisect_right(range(1, math.floor(nfe) + 1), nfe, key=lambda n: self.calls(n, **options))


class Registry(dict[str, Integrator]):
    """Integrators by name; a name that is not there is answered with the nearest one that is."""

    def __missing__(self, name: str) -> Integrator:
        raise unknown("integrator", name, self)


INTEGRATORS = Registry()


def integrator(
    *,
    order: int,
    stochastic: bool,
    schedule: str,
    calls: Callable[..., int] | None,
    lasts: tuple[str | None, ...] = (),
    preconditioned: bool = False,
    **defaults: Any,
) -> Callable:
    """Enter a function in the registry; the function itself stays as it is."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = function.__name__
        INTEGRATORS[name] = Integrator(
            name, function, order, stochastic, schedule, calls, defaults, lasts, preconditioned
        )
        return function

    return register


def steps(x: Tensor, sigmas: Tensor, callback: Callback | None) -> Iterator[tuple[Tensor, Tensor, Callable]]:
    """Consecutive noise levels, each of shape () or (B,), and what to call when the step between them is done."""
    levels = sigmas.to(x.device).unbind(-1)
    for i, (now, after) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        yield now, after, lambda y, i=i, s=after: callback(i + 1, len(levels) - 1, s, y) if callback else None


def state(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """``x`` in float32 at least, once it, the grid and the model are found to fit each other.

    Only what starts at or below the model's sigma_min, as chains may, goes on below it on its way to 0.
    """
    if getattr(denoiser, "shape", None) is not None:
        check_shape(x, denoiser.shape)
    schedules.check(sigmas, rows=x.shape[0])
    highest, start = getattr(denoiser, "sigma_max", float("inf")), sigmas[..., 0].max().item()
    if start > highest * 1.001:  # a level that went through float32 or a logarithm is still the same
        raise UserError(f"sigmas must start at or below the model's sigma_max = {highest:g}, not at {start:g}")
    lowest = getattr(denoiser, "sigma_min", 0.0)
    below = (sigmas > 0) & (sigmas < 0.999 * lowest) & (sigmas[..., :1] > 1.001 * lowest)
    if below.any():
        raise UserError(
            f"sigmas must not go below the model's sigma_min = {lowest:g} but to 0, not to {sigmas[below][0].item():g}"
        )
    if not torch.isfinite(x).all():
        raise UserError("x must be finite: it holds NaN or infinity")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at_zero(sigma: Tensor) -> bool:
    """Whether the grid has arrived at 0; all rows do in the same column."""
    return bool((sigma == 0).all())


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "s_churn": partial(number, least=0),
    "s_tmin": partial(number, least=0),
    "s_tmax": partial(number, least=0, finite=False),
    "s_noise": partial(number, least=0),
    "snr": partial(number, least=0),
    "corrections": partial(number, least=0, whole=True),
    "tol": lambda name, value: value if value is None else number(name, value, above=0),
    "max_steps": partial(number, least=1, whole=True),
    "degree": partial(number, least=0, most=3, whole=True),
    "order": partial(number, least=2, most=3, whole=True),
    "basis": lambda name, value: one_of(name, value, "sigma", "rho", "log", "t"),
    "method": lambda name, value: one_of(name, value, "2heun", "3kutta", "4rk"),
    "variant": lambda name, value: one_of(name, value, "bh1", "bh2"),
    "published": lambda name, value: one_of(name, value, True, False),
    "joint": lambda name, value: one_of(name, value, True, False),
    "diffusion": lambda name, value: one_of(name, value, "ve", "vp"),
}
"""The range of each option of an integrator; that of ``last`` is in the registry, a ``tol`` of None is searched for."""
