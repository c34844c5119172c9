"""Guidance: a denoiser with classes held to one or one for each image, and a denoiser guided by another network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Adapter, Denoiser, InBlocks, Wrapper, check_shape, per_row
from dmcmc_core.errors import UserError, is_number, number
from dmcmc_core.streams import Streams

RANDOM, EACH = "random", "each"
"""Labels that choose a class for every image: drawn from the seed and its index, or all classes in turn."""

OF_A_DENSITY = ("images", "sample", "log_prob", "log_prob_levels")
"""What an exact model knows of its own density, which guidance leaves."""


class _WithoutDensity(Wrapper):
    """A denoiser that hides what the inner one knows of its own density, which guidance leaves."""

    def __getattr__(self, name: str):
        if name in OF_A_DENSITY:
            raise AttributeError(name)
        return super().__getattr__(name)


class Guided(_WithoutDensity):
    """A denoiser guided by another network: D(x, sigma) = D_g + w (D - D_g), with the same labels for both.

    Autoguidance (Karras et al. 2024, arXiv 2406.02507, eq. 3), where g is a smaller or less trained network; guidance
    by a network without classes, where it has none. w = 1 is the denoiser alone, w = 0 the guide alone; any other w
    takes both, and is the posterior mean of no known density. It may be asked at the levels that both know.

    Args:
        denoiser: takes labels where it has classes; :class:`Conditioned` around this one holds both to a class.
        guide: of the same shape and data range, with the same number of classes or none, or held to one.
        guidance: w, at least 0.

    Raises:
        UserError: for two that do not fit each other, and a number outside its range.
    """

    def __init__(self, denoiser: Denoiser, guide: Denoiser, guidance: float) -> None:
        number("guidance", guidance, least=0)
        _check_once(condition_of(denoiser))
        for name, one, other in (
            ("shape", tuple(denoiser.shape), tuple(guide.shape)),
            ("data_range", tuple(denoiser.data_range), tuple(guide.data_range)),
        ):
            if one != other:
                raise UserError(f"a guide must have the {name} of the network it guides, {one}, not {other}")
        classes, others = (0 if "label" in condition_of(m) else getattr(m, "classes", 0) for m in (denoiser, guide))
        if others not in (0, classes):
            raise UserError(f"a guide must have {classes} classes, as the network it guides, or none, not {others}")
        super().__init__(denoiser)
        self.guide: Any = guide
        self.guidance, self.takes_labels = float(guidance), bool(others)
        self.sigma_min = max(denoiser.sigma_min, guide.sigma_min)
        self.sigma_max = min(denoiser.sigma_max, guide.sigma_max)
        if not self.sigma_min < self.sigma_max:
            raise UserError(
                f"a guide must know noise levels of the network it guides, {denoiser.sigma_min:g} to "
                f"{denoiser.sigma_max:g}, and not only {guide.sigma_min:g} to {guide.sigma_max:g}"
            )

    @property
    def condition(self) -> dict[str, Any]:
        """What beside the two networks decides an answer, the denoiser's own condition included."""
        name = str(getattr(self.guide, "name", type(self.guide).__name__))
        return condition_of(self.denoiser) | {"guidance": self.guidance, "guide": name}

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return both models, and w."""
        return (self.denoiser, self.guide), (self.guidance,)

    @property
    def rows_per_image(self) -> int:
        """Rows of a network, either of the two, for a row of x."""
        pairs = ((self.denoiser, self.guidance != 0), (self.guide, self.guidance != 1))
        return sum(getattr(one, "rows_per_image", 1) for one, asked in pairs if asked)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return D with guidance, of the shape of ``x``."""
        more = () if labels is None else (labels,)
        w, of_guide = self.guidance, more if self.takes_labels else ()
        if w == 1:
            return self.denoiser(x, sigma, *more)
        if w == 0:
            return self.guide(x, sigma, *of_guide)
        guide = self.guide(x, sigma, *of_guide)
        return guide + w * (self.denoiser(x, sigma, *more) - guide)


class Conditioned(_WithoutDensity):
    """A denoiser with classes, held to one of them: D(x, sigma) = D_uncond + w (D_cond - D_uncond).

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, for denoisers and with w for their 1 + w):
    w = 1 is the class alone, w = 0 no class. Any other w takes both, in one batch of twice the rows, and is then the
    posterior mean of no known density. What an exact model knows of all classes together is not passed on.

    Args:
        denoiser: takes labels, and tells ``classes`` and ``unconditional`` as a
            :class:`dmcmc_core.denoiser.Adapter` does.
        label: the class, a whole number from 0 to classes - 1; or a list of such numbers, taken in turn by images,
            ``each``, which is all of them, or ``random``: :func:`of_images` then tells which rows are which images.
        guidance: w, at least 0.
        unconditional: the label that stands for no class, one from 0 to classes - 1, where the denoiser tells none.

    Raises:
        UserError: for a denoiser without classes or already held to one, a number outside its range, and a guidance
            other than 1 of a denoiser whose label for no class nobody tells.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        label: int | Sequence[int] | str,
        guidance: float = 1.0,
        unconditional: int | None = None,
    ) -> None:
        classes, own = getattr(denoiser, "classes", 0), getattr(denoiser, "unconditional", None)
        held = condition_of(denoiser)
        if "label" in held:
            raise UserError(f"this model is held to class {held['label']} already: leave label out")
        if not classes:
            raise UserError("this model has no classes: leave label out")
        number("guidance", guidance, least=0)
        _check_once(held, guidance)
        super().__init__(denoiser)
        self.label: Any = _label(label, classes)
        self.guidance = float(guidance)
        self.labels: Tensor | None = None
        self.unconditional: Any = own
        if unconditional not in (None, own):
            self.unconditional = _class("unconditional", unconditional, classes)
        if self.guidance != 1 and self.unconditional is None:
            raise UserError(
                "guidance needs a network that was trained without labels too, and nothing tells so of this one: leave "
                "guidance out, or name the class that stands for none by unconditional, or another network by guide"
            )

    @property
    def held(self) -> dict[str, Any]:
        """The class, and the guidance where there is any."""
        guided = {"guidance": self.guidance, "unconditional": self.unconditional}
        return {"label": self.label} | (guided if self.guidance != 1 else {})

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the model inside, and the class."""
        return (self.denoiser,), (self.held,)

    @property
    def condition(self) -> dict[str, Any]:
        """What beside the networks inside decides an answer, a guide's name included."""
        return self.held | condition_of(self.denoiser)

    @property
    def rows_per_image(self) -> int:
        """Rows of the network for a row of x."""
        return getattr(self.denoiser, "rows_per_image", 1) * self._halves

    @property
    def _halves(self) -> int:
        """How many labels a call takes."""
        return 1 if self.guidance in (0, 1) else 2

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D of the class, with guidance, of the shape of ``x``."""
        check_shape(x, self.shape)  # before x is doubled, so that the error tells what was given
        w, sigma = self.guidance, per_row(sigma, x)
        one = torch.ones(len(x), dtype=torch.int64, device=x.device)
        own = one * self.label if is_number(self.label) else self._own(len(x)).to(x.device)
        if self._halves == 1:
            return self.denoiser(x, sigma, own if w else one * self.unconditional)
        labels = torch.cat([own, one * self.unconditional])
        with_class, without = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), labels).tensor_split(2)
        return without + w * (with_class - without)

    def of(self, seed: int, indices: Sequence[int]) -> Conditioned:
        """Return the same denoiser for a batch whose rows are the images of these indices; itself for one class."""
        if is_number(self.label):
            return self
        held = copy.copy(self)
        if self.label == RANDOM:
            rows = torch.zeros(len(indices), dtype=torch.float64)
            held.labels = (Streams(seed, "class", indices).uniform(rows) * self.classes).long()
        else:
            chosen = list(range(self.classes)) if self.label == EACH else self.label
            held.labels = torch.tensor([chosen[i % len(chosen)] for i in indices], dtype=torch.int64)
        return held

    def _own(self, rows: int) -> Tensor:
        """Return the classes of a batch, (rows,) int64."""
        if self.labels is None or len(self.labels) != rows:
            told = 0 if self.labels is None else len(self.labels)
            raise UserError(f"every row needs a class of its own: guidance.of_images has told {told}, not {rows}")
        return self.labels


def of_images(model: Any, images: Streams) -> Any:
    """Return a model for a batch whose rows are these images, each held to its own class; itself for one class."""
    if isinstance(model, Conditioned):
        return model.of(images.seed, images.indices)
    if not isinstance(model, Wrapper) or (inner := of_images(model.denoiser, images)) is model.denoiser:
        return model
    model = copy.copy(model)
    model.denoiser = inner
    return model


def labels_of(model: Any, rows: int) -> Tensor | None:
    """Return the classes of a batch that :func:`of_images` was told of, (rows,) int64; None of a model held to none."""
    while isinstance(model, Wrapper) and not isinstance(model, Conditioned):
        model = model.denoiser
    if not isinstance(model, Conditioned):
        return None
    return torch.full((rows,), model.label) if is_number(model.label) else model.labels


def _label(label: Any, classes: int) -> int | list[int] | str:
    """Return what chooses the classes, if it does."""
    if label in (RANDOM, EACH):
        return label
    if isinstance(label, list | tuple) and label:
        return [_class("label", one, classes) for one in label]
    if isinstance(label, str | list | tuple):
        kinds = f"a whole number from 0 to {classes - 1}, a list of such numbers, {RANDOM} or {EACH}"
        raise UserError(f"label must be {kinds}, not {label!r}")
    return _class("label", label, classes)


def _class(name: str, value: Any, classes: int) -> int:
    if not is_number(value, whole=True) or not 0 <= value < classes:
        raise UserError(f"{name} must be a whole number from 0 to {classes - 1}, not {value!r}")
    return int(value)


def condition_of(denoiser: Any) -> dict[str, Any]:
    """Return what a denoiser is held to and guided by, as manifests have it; empty for none."""
    return getattr(denoiser, "condition", None) or {}


def _check_once(held: dict[str, Any], guidance: float | None = None) -> None:
    """Raise UserError for guidance of a model that is guided already."""
    if guidance != 1 and "guidance" in held:
        raise UserError(f"this model is guided already, by guidance {held['guidance']:g}: guide the network inside")


def in_blocks(model: Any, block: int | None) -> Any:
    """Return the model with its network in blocks of so many rows (None: as before); exact models keep their own."""
    if block is None:
        return model
    if isinstance(model, Adapter):
        return InBlocks(model, block)
    model = copy.copy(model)
    if isinstance(model, InBlocks):
        model.block = block
    elif isinstance(model, Wrapper):
        model.denoiser = in_blocks(model.denoiser, block)
        if isinstance(model, Guided):
            model.guide = in_blocks(model.guide, block)
    return model
