"""Linear multistep solvers whose grid and coefficients are numbers in a file.

    x_(i+1) - m = a_i (x_i - m) + sum_j b_ij (D_(i-j) - m),    D_i = D(x_i, sigma_i)

with m the mean that the noise is centred on, or 0. Every explicit solver of the probability flow that does not
adapt its steps can be written so, Heun's method and UniPC among them: :func:`tabulate` does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import schedules
from dmcmc_core.denoiser import Denoiser, check_shape
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.integrators.registry import Callback
from dmcmc_core.samplers import Integrator
from dmcmc_core.starts import centre


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A solver from noise to images; calling it integrates.

    Attributes:
        sigmas: (S + 1,) float64, the levels of its states, descending, the last one 0.
        coefficients: (S, 1 + K) float64, of each step a, then b of the newest denoised image and of those before it.
        jump: whether its first step makes no network call.
        start: what the noise at ``sigmas[0]`` is centred on: ``zero``, or ``mean``, the model's, which is m as well.
        card: how it came about; JSON.
    """

    sigmas: Tensor
    coefficients: Tensor
    jump: bool = False
    start: str = "zero"
    card: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Network calls of an image."""
        return len(self.coefficients) - self.jump

    @property
    def cost(self) -> int:
        """Network evaluations that the fit took, of all budgets that were fitted together."""
        return int(self.card.get("cost", 0))

    @torch.no_grad()
    def __call__(self, model: Denoiser, x: Tensor, callback: Callback = None) -> Tensor:
        """Return images (B, *shape) from noise.

        Args:
            model: the one that the solver was fitted to.
            x: (B, *shape), distributed as data + ``sigmas[0]`` * normal.
            callback: (step, steps, sigma, x), called after every step.

        Raises:
            UserError: for another network, an x of another shape, and a model without a mean where one is needed.
        """
        self.check(model)
        check_shape(x, model.shape)
        if not torch.isfinite(x).all():
            raise UserError("x must be finite: it holds NaN or infinity")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        m = centre(model, self.start, x.device).to(x)
        past: list[Tensor] = []
        steps, levels = len(self.coefficients), self.sigmas.to(x.device)
        for i, row in enumerate(self.coefficients.tolist()):
            if i or not self.jump:
                past = [model(x, levels[i].to(x)) - m, *past][: len(row) - 1]
            x = m + combined(row, [x - m, *past])
            if callback:
                callback(i + 1, steps, levels[i + 1], x)
        return x

    def check(self, model: Denoiser) -> None:
        """Raise UserError for a model that is not the one of the card."""
        known = self.card.get("network")
        if known is not None and (found := network_of(model)) != known:
            raise UserError(
                f"this solver was fitted to another network or other settings of it, {known}, not {found}: fit it anew"
            )

    def save(self, path: str | Path) -> None:
        """Write the solver as safetensors; a file of that name is only replaced once the new one is whole."""
        save_all(path, [self])


def combined(row: list[float], terms: list[Tensor]) -> Tensor:
    """Return the sum of terms by their coefficients, those that are 0 left out."""
    x = terms[0] * row[0]
    for c, term in zip(row[1:], terms[1:], strict=False):
        x = torch.add(x, term, alpha=c) if c else x
    return x


def network_of(model: Denoiser) -> str | None:
    """Return the first 16 digits of the model's fingerprint; None for a function without weights."""
    try:
        return fingerprint(model)[:16]
    except UserError:
        return None


def save_all(path: str | Path, solvers: list[Fitted]) -> None:
    """Write solvers of several budgets to one file, see :meth:`Fitted.save`."""
    from safetensors.torch import save_file

    from dmcmc_core.files import replacing

    tensors, about = {}, {}
    for one in solvers:
        name = str(one.card.get("budget", one.nfe))
        tensors |= {f"{name}.sigmas": one.sigmas, f"{name}.coefficients": one.coefficients.contiguous()}
        about[name] = {"jump": one.jump, "start": one.start, "card": one.card}
    with replacing(path) as part:
        save_file(tensors, part, metadata={"fitted": json.dumps(about)})


def load_fitted(path: str | Path, nfe: int | None = None) -> Fitted:
    """Return the solver of a file that :meth:`Fitted.save` or the command ``fit`` wrote.

    Args:
        path: of the file.
        nfe: its network calls, where the file has solvers of several budgets.

    Raises:
        UserError: for a file that is missing, damaged or of another kind, and a budget that it has not.
    """
    solvers = load_all(path)
    if nfe is None and len(solvers) > 1:
        raise UserError(f"{path} has solvers of {listed(solvers)} calls: choose one by nfe")
    if nfe is not None and nfe not in solvers:
        raise UserError(f"{path} has solvers of {listed(solvers)} calls, not of {nfe:g}")
    return solvers[next(iter(solvers)) if nfe is None else nfe]


def listed(solvers: dict[int, Fitted]) -> str:
    """Return the budgets of some solvers as text."""
    return ", ".join(map(str, sorted(solvers)))


def load_all(path: str | Path) -> dict[int, Fitted]:
    """Return the solvers of a file by their network calls; errors as :func:`load_fitted`."""
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["fitted"])
            solvers = {int(name): _read(file, name, told) for name, told in about.items()}
            if not solvers:
                raise ValueError("no solver in it")
    except Exception as error:  # whatever a broken file brings about
        raise UserError(f"{path} is no file of fitted solvers, or it is damaged: Fitted.save writes one") from error
    return solvers


def _read(file: Any, name: str, told: dict[str, Any]) -> Fitted:
    sigmas, coefficients = (file.get_tensor(f"{name}.{what}").double() for what in ("sigmas", "coefficients"))
    schedules.check(sigmas[[0, -1]])  # between them a level may be asked twice, as by Heun's method
    if (sigmas.diff() > 0).any() or not sigmas.isfinite().all():
        raise ValueError("levels that rise")
    if coefficients.ndim != 2 or len(coefficients) != len(sigmas) - 1 or not coefficients.isfinite().all():
        raise ValueError("coefficients that do not fit the levels")
    if told["start"] not in ("zero", "mean") or not isinstance(told["card"], dict):
        raise ValueError("an unknown start or card")
    return Fitted(sigmas, coefficients, bool(told["jump"]), told["start"], told["card"])


class _Formal:
    """A denoiser whose answers are unit vectors: what integrators make of them are their coefficients."""

    def __init__(self, calls: int) -> None:
        self.unit = torch.eye(calls + 1, dtype=torch.float64)
        self.asked: list[tuple[float, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.asked.append((float(sigma), x[0]))
        return self.unit[len(self.asked)][None]


def tabulate(integrator: Integrator, sigmas: Tensor, start: str = "zero", **options: Any) -> Fitted:
    """Return a deterministic integrator on a grid (N + 1,) as a table of coefficients.

    It runs on formal vectors: the start is the first one, the answer of each network call the next one.

    Raises:
        UserError: for an integrator that adapts its steps or draws noise.
    """
    if integrator.calls is None or integrator.stochastic:
        raise UserError(f"{integrator.name} has no table of coefficients: it adapts its steps or draws noise")
    calls = integrator.calls(len(sigmas) - 1, **options)
    formal = _Formal(calls)
    run: Callable[..., Tensor] = integrator
    last = run(formal, formal.unit[:1], sigmas, **options)[0]
    levels = torch.tensor([*(sigma for sigma, _ in formal.asked), float(sigmas[-1])], dtype=torch.float64)
    states = [*(state for _, state in formal.asked), last]
    rows = torch.zeros(calls, calls + 1, dtype=torch.float64)
    for i in range(calls):
        a = states[i + 1][0] / states[i][0]
        rows[i, 0], b = a, states[i + 1] - a * states[i]
        rows[i, 1 : i + 2] = b[1 : i + 2].flip(0)
    return Fitted(levels, rows, start=start, card={"solver": integrator.name})
