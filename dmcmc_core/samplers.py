"""The table of integrators: order, grid, cost and options of each. It needs no torch, so that help is there at once.

The functions lie in :mod:`dmcmc_core.integrators`, which joins them to their entries.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dmcmc_core.aliases import known_as, near
from dmcmc_core.errors import UserError, number, one_of, unknown

STAGES = {"2heun": 2, "3kutta": 3, "4rk": 4}
"""Runge-Kutta methods of ``rho_rk`` and their network calls a step."""

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
    "method": lambda name, value: one_of(name, value, *STAGES),
    "variant": lambda name, value: one_of(name, value, "bh1", "bh2"),
    "published": lambda name, value: one_of(name, value, True, False),
    "joint": lambda name, value: one_of(name, value, True, False),
    "diffusion": lambda name, value: one_of(name, value, "ve", "vp"),
}
"""The range of each option of an integrator; that of ``last`` is in its entry, a ``tol`` of None is searched for."""


@dataclass(frozen=True)
class Integrator:
    """An entry of the table; calling it calls ``function`` with ``defaults`` filled in.

    Attributes:
        order: global order of convergence in the step size, at its default options; the weak order where
            ``stochastic``, and of a multistep method that whose first steps are small enough to leave no larger error.
        schedule: name of the grid its paper uses, in :data:`dmcmc_core.schedules.SCHEDULES`.
        calls: (n, **options) -> network calls for n levels followed by 0; None where the integrator adapts its steps.
        options: its options and their defaults, as its signature has them.
        defaults: options that let it walk n levels followed by 0, where those of the signature do not.
        last: what its option of that name may be.
        preconditioned: whether it walks a :class:`dmcmc_core.preconditioning.WithPreconditioner` with its M.
        function: (denoiser, x, sigmas, **options) -> x; None in this table.
    """

    name: str
    order: int
    schedule: str
    calls: Callable[..., int] | None
    stochastic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    last: tuple[str | None, ...] = ()
    preconditioned: bool = False
    function: Callable[..., Any] | None = None

    def check(self, **options: Any) -> None:
        """Raise UserError for an option outside its range."""
        for name, value in options.items():
            if name == "last":
                one_of(name, value, *self.last)
            elif name in OPTIONS:
                OPTIONS[name](name, value)

    def __call__(self, denoiser: Any, x: Any, sigmas: Any, **options: Any) -> Any:
        """Integrate ``x`` down a grid; TypeError for an entry of this table, which has no function."""
        if self.function is None:
            raise TypeError(f"dmcmc_core.integrators.INTEGRATORS[{self.name!r}] can be called, this entry cannot")
        return self.function(denoiser, x, sigmas, **{**self.defaults, **options})

    def levels(self, nfe: float, **options: Any) -> int:
        """Return the most levels that ``nfe`` network calls per image pay for, at these options."""
        if self.calls is None:
            raise UserError(f"{self.name} adapts its steps: its tolerance, not a number of levels, sets its NFE")
        calls = self.calls
        if nfe < calls(1, **options):
            raise UserError(f"{self.name} needs at least {calls(1, **options)} NFE, not {nfe:g}")
        return bisect.bisect_right(range(1, math.floor(nfe) + 1), nfe, key=lambda n: calls(n, **options))


class Registry(dict[str, Integrator]):
    """Integrators by name or by :data:`dmcmc_core.aliases.ALIASES`; another is answered with the nearest one here."""

    def __missing__(self, name: str) -> Integrator:
        if (here := known_as(name)) in self:
            return self[here]
        raise unknown("integrator", name, self, nearest=near(name))


def one_a_step(n: int, **_: Any) -> int:
    """Return the calls of n levels followed by 0."""
    return n


def two_a_step(n: int, **_: Any) -> int:
    """Return the calls of n levels followed by 0, where the step to 0 takes one."""
    return 2 * n - 1


def stages(n: int, method: str = "4rk", **_: Any) -> int:
    """Return the calls of a Runge-Kutta method, whose step to 0 takes one."""
    return 1 + (n - 1) * STAGES[one_of("method", method, *STAGES)]


def with_corrections(n: int, corrections: int = 1, **_: Any) -> int:
    """Return the calls of a predictor and so many corrections a step."""
    return n * (1 + number("corrections", corrections, least=0, whole=True))


CHURN = {"s_churn": 80.0, "s_tmin": 0.05, "s_tmax": 1.0, "s_noise": 1.007, "published": False}
RK45 = {"tol": 1e-3, "joint": False, "last": None, "max_steps": 10_000}
PC = {"snr": 0.16, "corrections": 1, "joint": False, "last": None, "diffusion": "ve"}
TWEEDIE: Any = {"defaults": {"last": "tweedie"}, "last": (None, "tweedie")}
MEAN: Any = {"last": (None, "mean", "sample"), "preconditioned": True, "stochastic": True}
DIFFUSED = {"last": None, "diffusion": "ve"}
EULER_MARUYAMA = {"last": None, "published": False}
INTEGRATORS = Registry(
    (entry.name, entry)
    for entry in (
        Integrator("euler", 1, "karras", one_a_step),
        Integrator("heun", 2, "karras", two_a_step),
        Integrator("heun_churn", 1, "karras", two_a_step, True, CHURN),
        Integrator("probability_flow", 1, "log_uniform", one_a_step),
        Integrator("reverse_diffusion", 1, "log_uniform", one_a_step, options=DIFFUSED, **MEAN),
        Integrator("euler_maruyama", 1, "log_uniform", one_a_step, True, EULER_MARUYAMA, **TWEEDIE),
        Integrator("ancestral", 1, "karras", one_a_step, True),
        Integrator("dpmpp_2m", 2, "karras", one_a_step),
        Integrator("predictor_corrector", 1, "log_uniform", with_corrections, options=PC, **MEAN),
        Integrator("rk45", 5, "log_uniform", None, options=RK45, **TWEEDIE),
        Integrator("deis", 3, "karras", one_a_step, options={"degree": 2, "basis": "t"}),
        Integrator("ipndm", 2, "karras", one_a_step, options={"degree": 3}),
        Integrator("rho_rk", 4, "karras", stages, options={"method": "4rk"}),
        Integrator("dpmpp_3m", 3, "log_uniform", one_a_step, options={"published": False}),
        Integrator("unipc", 4, "log_uniform", one_a_step, options={"order": 3, "variant": "bh2"}),
    )
)
"""Integrators by name, in the order in which help lists them."""
FITTED = Integrator("fitted", 2, "fitted", one_a_step, options={"file": None})
"""A solver fitted to its network, :class:`dmcmc_core.integrators.Fitted`, whose file has its grid."""
