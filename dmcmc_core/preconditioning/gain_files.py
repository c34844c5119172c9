"""Gains on disk: our own safetensors files, and the masks of the authors' tool."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from dmcmc_core.errors import UserError, sentence
from dmcmc_core.files import replacing
from dmcmc_core.preconditioning.moments import real


def read_mask(path: str | Path) -> Tensor:
    """Read a mask of the authors' tool, (C, H, W) float64; UserError for what is none."""
    try:
        mask = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{reprlib.repr(path)} cannot be read as a .npy mask: {sentence(error)}") from error
    except (ValueError, EOFError, TypeError) as error:
        raise UserError(
            f"{reprlib.repr(path)} cannot be read as a .npy mask: it is no whole array of numbers"
        ) from error
    if not isinstance(mask, np.ndarray):
        raise UserError(f"{path} is no .npy file of one array")
    mask = real(f"the mask {path}", mask)
    if not mask.any():
        raise UserError(f"the mask {path} is 0 everywhere: there is nothing to normalise it by")
    if (mask < 0).any():
        raise UserError(f"the mask {path} must be at least 0 everywhere, not {mask.min().item():g}")
    return mask


def read_gains(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read gains by name, and the hash that they were saved with; UserError for another file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            gains = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a preconditioner, it may be truncated: {sentence(error)}") from error
    if not gains or not gains.keys() <= {"frequency", "pixel", "skew"}:
        raise UserError(f"{path} holds {', '.join(gains) or 'nothing'}, not the gains of a preconditioner")
    return gains, metadata.get("sha256")


def write_gains(path: Path, gains: dict[str, Tensor], about: dict[str, Any], sha256: str) -> None:
    """Write gains with their hash, and what is to be known about them; UserError where that cannot be."""
    try:
        metadata = {"preconditioner": json.dumps(about), "sha256": sha256}
    except TypeError as error:
        raise UserError(f"about must be plain values, as JSON has them: {error}") from error
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    try:
        with replacing(path) as part:
            safetensors.torch.save_file(gains, part, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
