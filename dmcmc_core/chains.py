"""Settings of the chains of Denoising MCMC and what they cost. It needs no torch, so that help is there at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from dmcmc_core.errors import UserError, number, one_of, unknown
from dmcmc_core.samplers import INTEGRATORS

KERNELS = ("langevin", "mala", "hamiltonian", "underdamped")
RULES = ("draw", "argmax")
CALIBRATION = 8
"""Images that a :class:`dmcmc_core.noise_level.ResidualPosterior` is calibrated on, each at NODES levels."""
NODES = 8


def setting(default: Any, meaning: str) -> Any:
    """Return a field of :class:`ChainSettings` with what it means, which the help of the command line shows."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class ChainSettings:
    """Everything that a chain depends on, beside its model, posterior, seed and number.

    Raises:
        UserError: for a setting of another type or outside its range, which its field tells.
    """

    chains: int = setting(64, "C, chains side by side; at least 1")
    n_skip: int = setting(5, "steps in a window, at least 1; one image leaves every chain per window")
    eta: float = setting(0.3, "step size, above 0; in squared data units or in units of sigma^2, see step")
    step: str = setting(
        "sigma2", "unit of eta, constant (squared data units, the paper's) or sigma2 (the present sigma^2)"
    )
    kernel: str = setting(
        "langevin",
        "langevin (the paper's), mala (exact; models with log_prob), hamiltonian or underdamped (exact where the model "
        "has log_prob, unadjusted elsewhere); see dmcmc_core.mcmc",
    )
    leapfrogs: int = setting(3, "of a hamiltonian step, at least 1")
    persistence: float = setting(0.9, "share of the momentum that an underdamped step keeps, at least 0 and below 1")
    rule: str = setting(
        "draw", "draw the noise level from its posterior (the paper) or take its argmax (the paper's code)"
    )
    pick: str = setting(
        "smallest",
        "where integration starts: the smallest noise level among the state at the beginning of the window and the "
        "n_skip after it, or the last state",
    )
    published: bool = setting(
        False,
        "if true, as the published code: the earliest of equal levels, and the state at the beginning of the window "
        "even if the window before ended on it and emitted it already. Otherwise the latest, and no state twice",
    )
    start: str = setting("mean", "mean of the noise that warm-up begins with: zero or the data's mean")
    warmup: str = setting(
        "dpmpp_2m", "integrator that makes the first images, from sigma_max; one with a fixed number of calls"
    )
    warmup_levels: int = setting(6, "noise levels of that integration, at least 1")
    renoise: float = setting(
        2.0, "noise added to those images, where the chains begin, in data units; above 0, at most sigma_max"
    )
    warmup_steps: int = setting(0, "chain steps before the first window, at least 0")
    warmup_eta: float | None = setting(None, "eta of the first half of them, above 0; null is eta itself")

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("n_skip", 1), ("leapfrogs", 1), ("warmup_levels", 1), ("warmup_steps", 0)):
            number(name, getattr(self, name), least=least, whole=True)
        for name in ("eta", "renoise", *(["warmup_eta"] if self.warmup_eta is not None else [])):
            number(name, getattr(self, name), above=0)
        number("persistence", self.persistence, least=0, below=1)
        if self.kernel not in KERNELS:
            raise unknown("kernel", self.kernel, KERNELS)
        if self.rule not in RULES:
            raise unknown("rule for the noise level", self.rule, RULES)
        one_of("step", self.step, "constant", "sigma2")
        one_of("pick", self.pick, "smallest", "last")
        one_of("start", self.start, "zero", "mean")
        one_of("published", self.published, True, False)
        INTEGRATORS[str(self.warmup)]

    @property
    def first_calls(self) -> int:
        """Network calls of the images that warm-up begins with."""
        entry = INTEGRATORS[self.warmup]
        if entry.calls is None:
            raise UserError(
                f"warmup={self.warmup!r} adapts its steps; choose an integrator with a fixed number of calls"
            )
        return entry.calls(self.warmup_levels)

    def step_calls(self, residual: bool = False) -> int:
        """Return the network calls of a step; with the ``residual`` posterior a Langevin step shares its one call."""
        calls = {"langevin": 1, "mala": 2, "hamiltonian": self.leapfrogs + 1, "underdamped": 2}[self.kernel]
        return calls + (residual and self.kernel != "langevin")

    def warmup_calls(self, residual: bool = False) -> int:
        """Return the network calls of a chain before its first window."""
        return self.first_calls + residual + self.warmup_steps * self.step_calls(residual)

    def window_calls(self, residual: bool = False) -> int:
        """Return the network calls of a chain in one window."""
        return self.n_skip * self.step_calls(residual)

    def windows(self, num: int) -> int:
        """Return the windows that each chain runs for ``num`` images."""
        return math.ceil(num / self.chains)

    def calls_per_image(self, num: int, residual: bool = False) -> float:
        """Return the network calls of the chains per image, warm-up and calibration shared out over ``num`` images."""
        rows = min(self.chains, num)
        calls = rows * (self.warmup_calls(residual) + self.windows(num) * self.window_calls(residual))
        return (calls + residual * CALIBRATION * (self.first_calls + NODES)) / num


PUBLISHED: dict[str, Any] = {
    "chains": 200,
    "step": "constant",
    "rule": "argmax",
    "published": True,
    "start": "zero",
    "warmup": "heun_churn",
    "warmup_levels": 19,
    "renoise": 0.5,
    "warmup_steps": 20,
    "warmup_eta": 0.5,
}
"""The settings of the published CIFAR-10 code; its eta and n_skip were never published."""
