"""Linear multistep solvers whose grid and coefficients are numbers in a file.

    x_(i+1) - m = a_i (x_i - m) + sum_j b_ij (D_(i-j) - m),    D_i = D(x_i, sigma_i)

with m the mean that the noise is centred on, or 0. Every explicit solver of the probability flow that does not
adapt its steps can be written so, Heun's method and UniPC among them, see :mod:`dmcmc_core.integrators.fitted.table`.
In modes of a covariance the coefficients may differ from group to group, see :class:`Modes`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, check_shape
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.integrators.fitted.modes import Modes, View, pixels
from dmcmc_core.integrators.registry import Callback, check_numbers
from dmcmc_core.starts import centre


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A solver from noise to images; calling it integrates.

    Attributes:
        sigmas: (S + 1,) float64, the levels of its states, descending, the last one 0.
        coefficients: (S, 1 + K) float64, of each step a, then b of the newest denoised image and of those before it;
            with modes (S, G, 1 + K), of each of their groups.
        jump: whether its first step makes no network call.
        start: what the noise at ``sigmas[0]`` is centred on: ``zero``, or ``mean``, the model's, which is m as well.
        card: how it came about; JSON.
        modes: what the coefficients multiply, if not images from m.
    """

    sigmas: Tensor
    coefficients: Tensor
    jump: bool = False
    start: str = "zero"
    card: dict[str, Any] = dataclasses.field(default_factory=dict)
    modes: Modes | None = None

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
        check_noise(model, x)
        self.check(model)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        view, past = self.view(model, x), []
        steps, levels, y = len(self.coefficients), self.sigmas.to(x.device), view.of(x)
        for i, row in enumerate(self.coefficients):
            if i or not self.jump:
                past = [view.of(model(x, levels[i].to(x))), *past][: self.coefficients.shape[-1] - 1]
            y = self.combined(row, y, past, i)
            x = view.images(y)
            if callback:
                callback(i + 1, steps, levels[i + 1], x)
        return x

    def view(self, model: Denoiser, x: Tensor) -> View:
        """Return what the coefficients multiply, for images like x (B, *shape)."""
        return self.modes.view(x) if self.modes else pixels(centre(model, self.start, x.device).to(x))

    def combined(self, row: Tensor, y: Tensor, past: Sequence[Tensor], i: int) -> Tensor:
        """Return the state after step i with the coefficients of ``row``."""
        if self.modes is None:
            return summed(row.tolist(), [y, *past])
        each = row.to(y)[self.modes.group.to(y.device)]
        terms = self.modes.terms(y, past, self.sigmas.to(y.device), i)
        return summed(each.T.unbind(), terms)

    def check(self, model: Denoiser) -> None:
        """Raise UserError for a model that is not the one of the card, or of another shape or other levels."""
        known = self.card.get("network")
        for name, facts in facts_of(model).items() if known is None else ():
            own = self.card.get(name, facts)
            if len(own) != len(facts) or not all(map(partial(math.isclose, rel_tol=1e-5), own, facts)):
                raise UserError(f"this solver was fitted to a model of {name} {own}, not {facts}: fit it anew")
        if known is not None and (found := network_of(model)) != known:
            raise UserError(
                f"this solver was fitted to another network or other settings of it, {known}, not {found}: fit it anew"
            )

    def save(self, path: str | Path) -> None:
        """Write the solver as safetensors; a file of that name is only replaced once the new one is whole."""
        save_all(path, [self])


def check_noise(model: Denoiser, x: Any) -> None:
    """Raise UserError unless x is a batch of real, finite states of a model."""
    if not all(hasattr(model, name) for name in ("shape", "sigma_min", "sigma_max")):
        raise UserError(f"the model, a {type(model).__name__}, is no denoiser: dmcmc_core.denoiser.Adapter makes one")
    check_numbers(x)
    check_shape(x, model.shape)


def summed(coefficients: Sequence[Any], terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of terms by their coefficients, numbers or one for each mode; numbers that are 0 are left out."""
    x = terms[0] * coefficients[0]
    for c, term in zip(coefficients[1:], terms[1:], strict=False):
        if isinstance(c, Tensor):
            x = torch.addcmul(x, c, term)
        elif c:
            x = torch.add(x, term, alpha=c)
    return x


def facts_of(model: Denoiser) -> dict[str, list[float]]:
    """Return what a solver needs of a model whose weights are not known: the shape of an image, the noise levels."""
    return {"shape": list(model.shape), "levels": [float(model.sigma_min), float(model.sigma_max)]}


def network_of(model: Denoiser) -> str | None:
    """Return the first 16 digits of the model's fingerprint; None for a function without weights."""
    try:
        return fingerprint(model)[:16]
    except UserError:
        return None


def save_all(path: str | Path, solvers: Iterable[Fitted]) -> None:
    """Write solvers of several budgets, or from several first levels, to one file, see :meth:`Fitted.save`.

    Raises:
        UserError: for a path that is none or a folder, for no solver, for what is no solver, and for two of one name.
    """
    from safetensors.torch import save_file

    from dmcmc_core.files import replacing

    if not isinstance(path, str | Path) or Path(path).is_dir():
        raise UserError(f"solvers are saved to a file, such as 'solvers.safetensors', not {str(path)!r:.60}")
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for one in solvers:
        if not isinstance(one, Fitted):
            raise UserError(f"a solver to save must be a Fitted, not a {type(one).__name__}")
        first = one.card.get("first")
        name = str(one.card.get("budget", one.nfe)) + ("" if first is None else f" from {first!r}")
        if name in about:
            raise UserError(f"two of the solvers are of {name} calls: save them in two files")
        tensors |= {f"{name}.{what}": t.contiguous() for what, t in _tensors(one).items()}
        about[name] = {"jump": one.jump, "start": one.start, "card": one.card}
        about[name] |= {"split": one.modes.split} if one.modes else {}
    if not about:
        raise UserError("there is no solver to save")
    with replacing(path) as part:
        save_file(tensors, part, metadata={"fitted": json.dumps(about)})


def _tensors(solver: Fitted) -> dict[str, Tensor]:
    tensors = {"sigmas": solver.sigmas, "coefficients": solver.coefficients}
    if solver.modes:
        spectrum = solver.modes.spectrum
        tensors |= {"mean": spectrum.mean, "variances": spectrum.variances, "group": solver.modes.group}
        tensors |= {} if spectrum.axes is None else {"axes": spectrum.axes}
    return tensors
