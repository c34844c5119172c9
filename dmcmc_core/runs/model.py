"""The model as the settings of a run want it: of one class, preconditioned, asked through a linear diffusion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import checkpoints, gddim, preconditioning
from dmcmc_core.compiled import compiled
from dmcmc_core.data import open_images
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.errors import UserError, switch, unknown
from dmcmc_core.guidance import Conditioned, Guided, condition_of
from dmcmc_core.linear_sde import DIFFUSIONS, make_sde
from dmcmc_core.memory_format import laid_out
from dmcmc_core.number_format import InFormat
from dmcmc_core.preconditioning import Preconditioner, WithPreconditioner
from dmcmc_core.runs.levels import narrowed
from dmcmc_core.runs.means import centred
from dmcmc_core.runs.settings import BLOCK, CLASS, GAINS, LEVELS, LINEAR_SAMPLERS, STATISTICS

PARTS = {"frequency": (True, False), "pixel": (False, True), "both": (True, True)}
Model = Denoiser | gddim.Epsilon


def prepared(model: Model, sampler: str, settings: dict[str, Any] | None) -> tuple[Model, dict[str, Any]]:
    """Return the model as a sampler takes it, of one class or asked through a linear diffusion; and other settings.

    Raises:
        UserError: see :func:`conditioned`; for a network of a linear diffusion under a sampler of denoisers, and a
            denoiser under one of those diffusions that ``sde`` does not name.
    """
    model, rest = conditioned(model, settings, starts=sampler not in LINEAR_SAMPLERS)
    own, asked = getattr(model, "sde", None), rest.get("sde")
    if sampler not in LINEAR_SAMPLERS:
        if own is not None:
            raise UserError(
                f"this model is of the linear diffusion {type(own).__name__}, on which {sampler} does not work: "
                f"choose one of {', '.join(LINEAR_SAMPLERS)}"
            )
        return model, rest
    if preconditioning.is_preconditioned(model):
        raise UserError(f"{sampler} knows no preconditioner: leave preconditioner out")
    rest.pop("sde", None)
    if own is None and asked is None:
        raise UserError(f"{sampler} asks a denoiser through a linear diffusion: choose one by sde, such as sde=VP")
    if own is None:
        names = {name.lower(): name for name in DIFFUSIONS}
        return gddim.from_denoiser(make_sde(names.get(str(asked).lower(), asked)), model), rest
    if asked is not None:
        raise UserError(f"this model is of the linear diffusion {type(own).__name__} already: leave sde out")
    return model, rest


def conditioned(model: Model, settings: dict[str, Any] | None, starts: bool = True) -> tuple[Model, dict[str, Any]]:
    """Return the model of the class, guided, with gains, mean and between levels of the settings; and the others.

    Args:
        starts: whether sampling starts at the model's last level, which may then be lowered by
            :func:`dmcmc_core.runs.levels.default_start`.

    Raises:
        UserError: see :mod:`dmcmc_core.guidance` and :mod:`dmcmc_core.preconditioning`; for a guidance without a label
            or a guide, a guide without guidance, and gains without images.
    """
    rest = dict(settings or {})
    model = _computing(model, rest)
    ends = {name: rest.pop(name) for name in LEVELS if name in rest}
    if hasattr(model, "sde"):
        if ends:
            raise UserError(f"this model goes between times, not noise levels: leave {next(iter(ends))} out")
    elif ends or starts:
        model = narrowed(model, **ends)
    if "dtype" in rest:
        model = InFormat(model, rest.pop("dtype"), device_of(model))
    chosen = {name: rest.pop(name) for name in CLASS if name in rest}
    model = guided(model, chosen.pop("guide"), chosen) if "guide" in chosen else model
    classes = getattr(model, "classes", 0)
    if chosen and not classes:
        raise UserError(f"this model has no classes: leave {next(iter(chosen))} out")
    held = "label" in condition_of(model)
    if classes and not chosen and not held and getattr(model, "unconditional", None) is None:
        raise UserError(
            f"this model has classes and was never trained without: choose one by label, 0 to {classes - 1}"
        )
    if chosen and "label" not in chosen:
        raise UserError(f"{next(iter(chosen))} is a setting of a class: choose one by label")
    model = Conditioned(model, **chosen) if chosen else model
    if "mean" in rest:
        if not starts or hasattr(model, "sde"):
            raise UserError("a linear diffusion starts at its prior: leave mean out")
        if rest.get("start") == "zero":
            raise UserError("mean is what noise is centred on, and start=zero leaves it out: leave one of them out")
        model = centred(model, rest.pop("mean"), device_of(model))
    gains = {name: rest.pop(name) for name in GAINS if name in rest}
    return (preconditioned(model, **gains) if gains else model), rest


def _computing(model: Model, rest: dict[str, Any]) -> Model:
    """Return the model laid out and compiled as the settings say, which are taken out of them."""
    if "layout" in rest:
        model = laid_out(model, rest.pop("layout"), rest.get("block", BLOCK))
    return compiled(model) if switch("compile", rest.pop("compile", False)) else model


def guided(model: Model, guide: str | Path, chosen: dict[str, Any]) -> Guided:
    """Return the model guided by the network of a name or file, by the ``guidance`` taken out of what is chosen.

    Raises:
        UserError: see :class:`dmcmc_core.guidance.Guided`; for a guide without guidance, one that is no name or file,
            and the network of a linear diffusion.
    """
    if not isinstance(guide, str | Path):
        raise UserError(f"guide must be a name or a file, not {guide!r}")
    if "guidance" not in chosen:
        raise UserError("guide is the network that guidance begins from: set guidance too, such as guidance=2")
    if "unconditional" in chosen:
        raise UserError("unconditional is for guidance without a guide: leave one of them out")
    if hasattr(model, "sde"):
        raise UserError("a network of a linear diffusion takes no guide: leave guide out")
    device = device_of(model)
    other = checkpoints.load_model(guide, device=str(device))
    other = InFormat(other, model.number_format, device) if isinstance(model, InFormat) else other
    return Guided(model, other, chosen.pop("guidance"))


def preconditioned(
    model: Denoiser,
    preconditioner: str | None = None,
    statistics: str | None = None,
    alpha: float | None = None,
    omega: float = 0.0,
) -> Denoiser:
    """Return the model with M, and S of strength omega: gains of its own images or of others, or those of a file.

    Raises:
        UserError: for a setting out of its range, images of another shape, and where none are known.
    """
    if preconditioner is None:
        raise UserError("statistics, alpha and omega are settings of a preconditioner: choose one by preconditioner")
    if preconditioning.is_preconditioned(model):
        raise UserError("this model is preconditioned already: leave preconditioner out")
    for name, value in (("preconditioner", preconditioner), ("statistics", statistics)):
        if not isinstance(value, str | Path | None):
            raise UserError(f"{name} must be a name or a file, not {value!r}")
    about = {"gains": str(preconditioner), "omega": omega}
    if preconditioner in PARTS:
        images, origin = _statistics(model, statistics)
        alpha = 5.0 if alpha is None else math.inf if alpha == "inf" else alpha
        about |= {"alpha": "inf" if alpha == math.inf else alpha, "statistics": origin, "images": len(images)}
        m = Preconditioner.from_images(images, alpha, *PARTS[preconditioner])
    elif Path(str(preconditioner)).suffix == ".safetensors":
        if statistics is not None or alpha is not None:
            raise UserError("a file has gains as they are: leave statistics and alpha out")
        m = Preconditioner.load(preconditioner)
        if m.skewed:
            if omega != 0:
                raise UserError(f"{preconditioner} has a skew term of its own: leave omega out")
            about["omega"] = "of the file"
    else:
        raise unknown("preconditioner (no .safetensors file either)", preconditioner, PARTS)
    return WithPreconditioner(model, m if omega == 0 else m.with_skew(omega, shape=model.shape), **about)


def _statistics(model: Denoiser, name: str | None) -> tuple[Tensor, str]:
    """Return images in [0, 1], at most STATISTICS of them, always the same ones; and where they come from."""
    if name is not None:
        images = open_images(name)
    elif getattr(model, "images", None) is not None:
        low, high = model.data_range
        images = (model.images - low) / (high - low)
    else:
        raise UserError(
            "gains need images, and this model has none: name some by statistics, a reference, a folder of images, an "
            "NPZ or NPY file, or the folder of a run, of the model itself if need be"
        )
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:STATISTICS]
    return images[some], name or "the model's own images"


def check_model(model: Any) -> None:
    """Raise UserError for what is no denoiser, as a bare network or function."""
    needed = ("shape", "data_range", *(() if hasattr(model, "sde") else ("sigma_min", "sigma_max")))
    missing = [n for n in needed if not hasattr(model, n)]
    if not callable(model) or missing:
        raise UserError(
            f"the model, a {type(model).__name__}, is no denoiser: it has no {', '.join(missing) or 'call'}; "
            "dmcmc_core.denoiser.Adapter makes one of a network or a function, as sample does with shape="
        )


def check_range(model: Model) -> None:
    """Raise UserError unless images can be written as uint8 over the data range, an exact model's own among them."""
    low, high = model.data_range
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"images cannot be written over the data range {low} to {high}: give the model a data_range")
    images = getattr(model, "images", None)
    if images is not None and not (low - 1e-3 <= images.min() and images.max() <= high + 1e-3):
        raise UserError(
            f"the model's images go from {images.min():g} to {images.max():g}, outside its data range {low} to {high}: "
            "give it the right data_range"
        )


def encoder_of(model: Model) -> str | None:
    """Return the encoder of the latents that a model makes, by its card; None for one of images."""
    return (getattr(model, "card", None) or {}).get("encoder")


def device_of(model: Model) -> torch.device:
    """Return where a model computes: as it says, else as its weights or its mean tell."""
    weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    known = next(
        (t for t in (model, weights, getattr(model, "mean", None)) if getattr(t, "device", None) is not None), None
    )
    return torch.device("cpu" if known is None else known.device)
