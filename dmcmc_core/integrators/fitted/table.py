"""Classical integrators as tables of coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.errors import UserError
from dmcmc_core.integrators.fitted.solver import Fitted
from dmcmc_core.samplers import Integrator


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
