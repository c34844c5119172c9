"""The kinds of plan: a sampler with every choice made; :mod:`dmcmc_core.runs.plan` makes the choices.

A sampler is an integrator's name, ``fitted`` among them, or ``dlg+NAME``: Denoising Langevin Gibbs, then that
integrator; or, of a linear diffusion, ``gddim`` or ``sde+NAME``, one of those that gDDIM is compared with.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import files, gddim, integrators, schedules
from dmcmc_core.aliases import known_as, near
from dmcmc_core.chains import ChainSettings
from dmcmc_core.denoiser import BLOCK, Denoiser
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.integrators.fitted import Fitted, FromLevels, load_fitted, load_from_levels
from dmcmc_core.runs.settings import LINEAR_NAMES, LINEAR_SAMPLERS, SEARCHES
from dmcmc_core.samplers import FITTED
from dmcmc_core.streams import Streams


@dataclass(frozen=True)
class Plan:
    """A sampler with every choice made: all that decides its images, beside model, seed and index.

    ``condition`` is that of a :class:`dmcmc_core.guidance.Conditioned` model (None: no class), which takes
    ``rows_per_image`` of the network in a call; ``preconditioned_by`` that of a
    :class:`dmcmc_core.preconditioning.WithPreconditioner`.
    """

    sampler: str
    levels: int | None
    options: dict[str, Any] = field(default_factory=dict)
    condition: dict[str, Any] | None = None
    rows_per_image: int = 1
    block: int = BLOCK
    cast: str = "round"
    preconditioned_by: dict[str, Any] | None = None
    chain = posterior = None
    """Only a :class:`ChainedPlan` has them."""

    def record(self) -> dict[str, Any]:
        """Return the plan as plain values, as manifests have it: every kind of plan has the same names there."""
        held = {"schedule": "power", "start": "zero", "tweedie": None, "chain": None, "posterior": None}
        unless = ("sigma_min", "sigma_max", "rho", "classifier")  # nothing where they are their defaults, or none
        held |= {name: value for name, value in asdict(self).items() if name not in unless or value is not None}
        return {("held_to" if name == "condition" else name): value for name, value in held.items()}


@dataclass(frozen=True)
class LinearPlan(Plan):
    """A sampler of a linear diffusion; its levels are times, and all begins with the diffusion's prior."""

    @property
    def name(self) -> str:
        """The sampler's name in :data:`dmcmc_core.gddim.SAMPLERS`."""
        return LINEAR_NAMES[self.sampler]

    def grid(self, model: gddim.Epsilon) -> dict[str, list[float]]:
        """Return the times of the sampler, from the diffusion's first to its last, for the manifest."""
        return {"times": gddim.times(model.sde, self.levels - 1, self.options["kappa"]).tolist()}


@dataclass(frozen=True)
class IntegratorPlan(Plan):
    """An integrator of a denoiser, whose noise is centred on ``start``.

    ``levels`` is None where ``options["tol"]`` sets the cost; ``tweedie`` is the level of one more denoising after the
    integrator (None: none). ``sigma_min`` and ``sigma_max`` are None where they are the network's own, ``rho`` where it
    is the schedule's own.
    """

    schedule: str = "karras"
    start: str = "mean"
    tweedie: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None

    @property
    def integrator(self) -> integrators.Integrator:
        """The entry of :data:`dmcmc_core.integrators.INTEGRATORS`."""
        return split(self.sampler)[1]

    @property
    def adapts(self) -> bool:
        """Whether a tolerance, not a number of levels, sets its cost."""
        return self.integrator.calls is None

    def grid(self, model: Denoiser) -> dict[str, list[float]]:
        """Return the levels of the integrator, from sigma_max to 0, for the manifest."""
        start = model.sigma_max if self.sigma_max is None else self.sigma_max
        return {"sigmas": self.levels_from(model, start).tolist()}

    def levels_from(self, model: Denoiser, sigma: Any) -> Any:
        """Return the grid of the integrator from the level (), or the levels (B,), that it starts at."""
        end = model.sigma_min if self.sigma_min is None else self.sigma_min
        bend = {} if self.rho is None else {"rho": self.rho}
        return schedules.SCHEDULES[self.schedule](self.levels or 2, sigma, end, **bend)

    def integrate(self, model: Denoiser, x: Tensor, sigmas: Tensor, noise: Streams, **more: Any) -> Tensor:
        """Return images from x, down a grid by the integrator, then by the last denoising where there is one."""
        x = self.integrator(model, x, sigmas, noise=noise, **self.options, **more)
        return x if self.tweedie is None else integrators.tweedie(model, x, self.tweedie)

    def windows(self, num: int) -> int:
        """Return the windows that each chain runs for ``num`` images; 0 without chains."""
        return 0


@dataclass(frozen=True)
class FittedPlan(IntegratorPlan):
    """A fitted solver, which has its levels and its start in a file; ``solver`` is the SHA-256 of that."""

    file: str = ""
    solver: str = ""

    def record(self) -> dict[str, Any]:
        """Return the plan as plain values; where the file lies decides nothing."""
        return {name: value for name, value in super().record().items() if name != "file"}

    def levels_from(self, model: Denoiser, sigma: Any) -> Any:
        """Return the levels of the solver's states."""
        return _solver(self.file, self.solver, self.levels or 0).sigmas

    def integrate(self, model: Denoiser, x: Tensor, sigmas: Tensor, noise: Streams, **more: Any) -> Tensor:
        """Return images from x."""
        return _solver(self.file, self.solver, self.levels or 0)(model, x, **more)


@functools.lru_cache(maxsize=8)
def _solver(file: str, sha256: str, nfe: int) -> Fitted:
    """Return a solver of a file, as long as the file is the one of that hash."""
    _check_same_file(file, sha256)
    return load_fitted(file, nfe)


@functools.lru_cache(maxsize=8)
def _solvers(file: str, sha256: str, nfe: int) -> FromLevels:
    """Return the solvers of a budget from several levels, as long as the file is the one of that hash."""
    _check_same_file(file, sha256)
    return load_from_levels(file)[nfe]


def _check_same_file(file: str, sha256: str) -> None:
    if files.sha256(file) != sha256:
        raise UserError(f"{file} is another file than when this run was planned: plan it anew")


@dataclass(frozen=True)
class ChainedPlan(IntegratorPlan):
    """Chains, then an integrator from the starting points that they leave.

    ``posterior`` may be the path of a classifier's file; ``classifier`` is the SHA-256 of the one that is used, if any.
    """

    chain: ChainSettings = field(default_factory=ChainSettings)
    posterior: str = "residual"
    classifier: str | None = None

    def windows(self, num: int) -> int:
        """Return the windows that each chain runs for ``num`` images."""
        return self.chain.windows(num)

    def chain_cost(self, num: int) -> float:
        """Return the network calls of the chains per image, warm-up and calibration shared out over ``num``."""
        return self.chain.calls_per_image(num, self.posterior == "residual")

    def chains_about(self) -> dict[str, Any]:
        """Return what of the plan decides the chains, which integrators share: where a classifier lies has no part."""
        posterior = self.posterior if self.classifier is None else f"classifier {self.classifier}"
        return {"chain": self.record()["chain"], "posterior": posterior, "block": self.block}


@dataclass(frozen=True)
class ChainedFittedPlan(ChainedPlan):
    """Chains, then fitted solvers from levels above those of the states that they leave.

    ``solver`` is the SHA-256 of the solvers' file.
    """

    file: str = ""
    solver: str = ""

    def record(self) -> dict[str, Any]:
        """Return the plan as plain values; where the file lies decides nothing."""
        return {name: value for name, value in super().record().items() if name != "file"}

    def levels_from(self, model: Denoiser, sigma: Any) -> Any:
        """Return the levels of the states of images that begin at sigma, () or (B,): sigma, then the solvers'."""
        levels = _solvers(self.file, self.solver, self.levels or 0).levels(torch.as_tensor(sigma).reshape(-1))
        return levels if isinstance(sigma, Tensor) and sigma.ndim else levels[0]

    def integrate(self, model: Denoiser, x: Tensor, sigmas: Tensor, noise: Streams, **more: Any) -> Tensor:
        """Return images from x at the level that ``sigmas`` begins with."""
        return _solvers(self.file, self.solver, self.levels or 0)(model, x, sigmas[..., 0], noise, **more)


def split(sampler: str) -> tuple[bool, integrators.Integrator]:
    """Tell whether chains run first, and return the integrator: of ``NAME`` or ``dlg+NAME``, or of another name."""
    sampler = known_as(sampler)
    if not isinstance(sampler, str):
        raise UserError(f"a sampler is a name, such as 'heun' or 'dlg+heun', not {sampler!r:.60}")
    method, _, name = sampler.rpartition("+")
    if sampler == "sde+rk45":
        raise UserError(
            "sde+rk45 has one step size for all images of a batch, and an image of a run depends on no other: "
            "dmcmc_core.gddim.draw has it"
        )
    if sampler in SEARCHES:
        raise UserError(
            f"{sampler} has to find its integrator first: dmcmc_core.runs.tuning.auto does, or the command sample"
        )
    if name == FITTED.name and method in ("", "dlg"):
        return method == "dlg", FITTED
    if method not in ("", "dlg") or name not in integrators.INTEGRATORS:
        names = list(integrators.INTEGRATORS)
        raise unknown(
            "sampler",
            sampler,
            [*names, FITTED.name, *(f"dlg+{n}" for n in (*names, FITTED.name)), *SEARCHES, *LINEAR_SAMPLERS],
            nearest=near(sampler),
        )
    return method == "dlg", integrators.INTEGRATORS[name]
