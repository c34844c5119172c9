"""Denoisers with classes, held to one of them: classifier-free guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Wrapper, check_shape, per_row
from dmcmc_core.errors import UserError, is_number, number


class Conditioned(Wrapper):
    """A denoiser with classes, held to one of them: D(x, sigma) = D_uncond + w (D_cond - D_uncond).

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, for denoisers and with w for their 1 + w):
    w = 1 is the class alone, w = 0 no class. Any other w takes both, in one batch of twice the rows, and is then the
    posterior mean of no known density. What an exact model knows of all classes together is not passed on.

    Args:
        denoiser: takes labels, and tells ``classes`` and ``unconditional`` as a
            :class:`dmcmc_core.denoiser.Adapter` does.
        label: the class, a whole number from 0 to classes - 1.
        guidance: w, at least 0.
        unconditional: the label that stands for no class, one from 0 to classes - 1, where the denoiser tells none.

    Raises:
        UserError: for a denoiser without classes or already held to one, a number outside its range, and a guidance
            other than 1 of a denoiser whose label for no class nobody tells.
    """

    def __init__(self, denoiser: Denoiser, label: int, guidance: float = 1.0, unconditional: int | None = None) -> None:
        classes, own = getattr(denoiser, "classes", 0), getattr(denoiser, "unconditional", None)
        condition = getattr(denoiser, "condition", None)
        if condition:
            raise UserError(f"this model is held to class {condition['label']} already: leave label out")
        if not classes:
            raise UserError("this model has no classes: leave label out")
        number("guidance", guidance, least=0)
        super().__init__(denoiser)
        self.label, self.guidance = _class("label", label, classes), float(guidance)
        self.unconditional: Any = own
        if unconditional not in (None, own):
            self.unconditional = _class("unconditional", unconditional, classes)
        if self.guidance != 1 and self.unconditional is None:
            raise UserError(
                "guidance needs a network that was trained without labels too, and nothing tells so of this one: leave "
                "guidance out, or name the class that stands for none by unconditional"
            )

    def __getattr__(self, name: str):
        if name in ("images", "sample", "log_prob", "log_prob_levels"):
            raise AttributeError(name)
        return super().__getattr__(name)

    @property
    def condition(self) -> dict[str, Any]:
        """What beside the denoiser inside decides an answer: the class, and the guidance where there is any."""
        guided = {"guidance": self.guidance, "unconditional": self.unconditional}
        return {"label": self.label} | (guided if self.guidance != 1 else {})

    @property
    def rows_per_image(self) -> int:
        """Rows of the network for a row of x."""
        return 1 if self.guidance in (0, 1) else 2

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D of the class, with guidance, of the shape of ``x``."""
        check_shape(x, self.shape)  # before x is doubled, so that the error tells what was given
        w, sigma = self.guidance, per_row(sigma, x)
        one = torch.ones(len(x), dtype=torch.int64, device=x.device)
        if self.rows_per_image == 1:
            return self.denoiser(x, sigma, one * (self.label if w else self.unconditional))
        labels = torch.cat([one * self.label, one * self.unconditional])
        with_class, without = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), labels).tensor_split(2)
        return without + w * (with_class - without)


def _class(name: str, value: Any, classes: int) -> int:
    if not is_number(value, whole=True) or not 0 <= value < classes:
        raise UserError(f"{name} must be a whole number from 0 to {classes - 1}, not {value!r}")
    return int(value)
