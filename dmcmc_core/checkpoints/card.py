"""The model card, JSON in the metadata of a safetensors file: read without the tensors or torch, and checked."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError, sentence, unknown
from dmcmc_core.files import from_json

UNET_2D = "UNet2DModel"
"""Architecture of what was a folder of diffusers, made by that library."""
SCORE_NETWORKS = ("unet", "preconditioned", "edm2", UNET_2D)
"""Architectures of denoisers, as cards name them."""
EPSILON = ("epsilon", "epsilon-published")
"""Architectures of the networks of linear diffusions."""
FOREIGN = {
    ".pth": "a PyTorch file",
    ".pt": "a PyTorch file",
    ".pkl": "a pickle",
    ".ckpt": "a PyTorch file",
    ".bin": "a PyTorch file",
}
"""Endings of files by others, and what they are."""
ENDS = (("sigma_min", "sigma_max"), ("t_min", "t_max"))
"""What a network goes between: noise levels, or times of a linear diffusion."""
KEYS = ("architecture", "config", "sigma_min", "sigma_max", "data_range", "name")
"""What can be given for a file without a card."""


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the model card of a safetensors file, without reading the tensors.

    Raises:
        UserError: for a file that is missing, truncated, of another kind, or whose card is no JSON object.
    """
    from safetensors import safe_open

    path = Path(path)
    check_ending(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
    except Exception as error:  # whatever a broken file brings about
        raise unreadable(path, error) from error
    return card_in(metadata, path)


def check_ending(path: Path) -> None:
    """Raise UserError for a file whose ending says that it is no safetensors file."""
    if path.suffix in FOREIGN:
        raise UserError(f"{path} is {FOREIGN[path.suffix]}, and a safetensors file is needed here")


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file in which safetensors finds a fault."""
    return UserError(f"{path} cannot be read as safetensors, it is truncated or of another format: {sentence(error)}")


def card_in(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    """Return the card in a file's metadata, empty if there is none; UserError unless it is a JSON object."""
    try:
        card = from_json((metadata or {}).get("card", "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the model card inside {path} is not JSON: {sentence(error)}") from error
    if not isinstance(card, dict):
        raise UserError(f"the model card inside {path} must be a JSON object, not a {type(card).__name__}")
    return card


def given_card(config: str | Path | dict) -> dict[str, Any]:
    """Return the card that a user gives for a file without one, a dict or a JSON or YAML file; UserError for others."""
    if not isinstance(config, dict):
        from dmcmc_core.checkpoints.configurations import (
            read_mapping,
        )  # and with it yaml, which no file with a card needs

        config = read_mapping(config, f"config {config}")
    for key in config:
        if key not in KEYS:
            raise unknown("key of config", key, KEYS)
    return dict(config)


def check_card(card: dict[str, Any], path: Path) -> None:
    """Raise UserError unless noise levels (or times) and data range are finite and rise, and the name is text."""
    ends = ENDS[str(card.get("architecture")).startswith("epsilon")]
    for low, high, name, least in (
        (*(card[end] for end in ends), " and ".join(ends), 0.0),
        (*_two(card["data_range"]), "the two ends of data_range", -math.inf),
    ):
        if not (_is_finite(low) and _is_finite(high) and least < low < high):
            more = " above 0" if least == 0 else ""
            raise UserError(
                f"{name} of {path} must be two finite numbers{more} that rise, not {reprlib.repr(low)} and "
                f"{reprlib.repr(high)}"
            )
    if not isinstance(card.get("name", ""), str):
        raise UserError(f"the name in the card of {path} must be text, not {reprlib.repr(card['name'])}")


def _two(values: Any) -> tuple[Any, Any]:
    return tuple(values) if isinstance(values, list | tuple) and len(values) == 2 else (values, None)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
