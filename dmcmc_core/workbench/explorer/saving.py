"""What the explorer writes: the picture, the samples, and the settings that make them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dmcmc_core.data import to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.files import write_npz, write_text
from dmcmc_core.runs.sampling import Images
from dmcmc_core.workbench.explorer.choice import Choice


def picture(images: Images | None, choice: Choice, folder: str | Path) -> Path:
    """Write the first 64 images side by side as PNG; return its path."""
    return _there(images).save(_place(folder) / f"{choice.stem}.png")


def samples(images: Images | None, choice: Choice, folder: str | Path) -> Path:
    """Write all images as NPZ, ``arr_0`` (n, H, W, C) uint8, with the choice as JSON in ``choice``; return its path."""
    images, path = _there(images), _place(folder) / f"{choice.stem}.npz"
    levels = to_uint8(images, images.data_range, images.manifest["plan"]["cast"])
    write_npz(path, arr_0=levels, choice=np.array(json.dumps(choice.parameters())))
    return path


def settings(choice: Choice, folder: str | Path) -> list[Path]:
    """Write the parameters for papermill -f as YAML, and the command as a script of the shell; return their paths."""
    place = _place(folder)
    yaml, shell = place / f"{choice.stem}.yaml", place / f"{choice.stem}.sh"
    write_text(yaml, choice.yaml())
    write_text(shell, choice.command(str(place / choice.stem)) + "\n")
    return [yaml, shell]


def _there(images: Images | None) -> Images:
    if images is None:
        raise UserError("there are no images yet: press Run first")
    return images


def _place(folder: str | Path) -> Path:
    if not str(folder).strip():
        raise UserError("name a folder to save to")
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place} cannot be made: {error.strerror}") from error
    return place
