"""The files of a folder of diffusers: raw or averaged weights, in one of several precisions, whole or in shards.

Where two things could be meant, a rule decides, and the log says which was taken: averaged weights before raw ones,
full precision before half.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dmcmc_core.checkpoints.card import unreadable
from dmcmc_core.checkpoints.catalogue import DIFFUSERS_STEM, DIFFUSERS_WEIGHTS
from dmcmc_core.checkpoints.weights import without_prefix
from dmcmc_core.errors import LOG, UserError, sentence
from dmcmc_core.files import from_json

AVERAGED = ("unet_ema", "unet")
"""Folders of a network inside a pipeline, the better first."""
NAMES = re.compile(rf"{DIFFUSERS_STEM}(?:\.(\w+))?\.safetensors(\.index(?:\.(\w+))?\.json)?")
"""A file of weights or the index of its shards; a variant stands before or, as the library has it, after ``index``."""
VARIANTS = ("ema", "", "fp32", "bf16", "fp16")
"""The better first; those that are not named come after these, and ``non_ema`` is last."""


class Weights(NamedTuple):
    """The files that hold the tensors of a network, and the index of shards, if they are some."""

    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def name(self) -> Path:
        """What errors call it."""
        return self.index or self.files[0]


def network_folder(path: Path) -> Path:
    """Return the folder of the network: ``unet_ema`` or ``unet`` in a pipeline, or the folder itself.

    Raises:
        UserError: where there is none.
    """
    found = [path / name for name in AVERAGED if (path / name / "config.json").is_file()]
    if len(found) == 2:
        say(
            f"{path} holds averaged weights ({AVERAGED[0]}) and raw ones ({AVERAGED[1]}): the averaged ones are taken, "
            f"{found[1]} names the raw ones"
        )
    folder = found[0] if found else path / "unet" if (path / "unet").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} is no folder of diffusers: it holds neither unet/config.json nor config.json")
    return folder


@functools.cache
def say(what: str) -> None:
    """Log a sentence, once."""
    LOG.warning(what)


def weights_of(folder: Path) -> Weights:
    """Return the files of a network's weights.

    Raises:
        UserError: where there are none, or the same twice; for an index that is damaged or names what is not there.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := NAMES.fullmatch(file.name):
            found.setdefault(match[1] or match[3] or "", []).append(file)
    if not found:
        raise _no_weights(folder)
    variants = sorted(found, key=_rank)
    taken = found[variants[0]]
    if len(taken) > 1:
        raise UserError(f"{folder} holds {' and '.join(f.name for f in taken)}: keep the one that is meant")
    if len(variants) > 1:
        others = ", ".join(file.name for variant in variants[1:] for file in found[variant])
        say(f"{folder} holds {taken[0].name} and {others}: {taken[0].name} is taken")
    if taken[0].suffix == ".json":
        return Weights(tuple(sorted(set(_placed(taken[0]).values()))), taken[0])
    return Weights((taken[0],))


def _rank(variant: str) -> tuple[int, str]:
    known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS) + (variant == "non_ema")
    return known, variant


def _no_weights(folder: Path) -> UserError:
    held = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name != "config.json")
    others = f", but {', '.join(held)}"[:300] if held else ""
    pickled = any(name.endswith((".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")) for name in held)
    advice = ": convert its weights, only safetensors are read here" if pickled else ""
    return UserError(f"{folder} holds no {DIFFUSERS_WEIGHTS}{others}{advice}")


def _placed(index: Path) -> dict[str, Path]:
    """Return the file of each tensor, by an index."""
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} must say under 'weight_map' which file holds each tensor")
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index} places tensor {tensor!r:.100} in {name!r:.100}, which is no safetensors file")
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there")
    return {tensor: index.parent / name for tensor, name in places.items()}


def shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name, without reading numbers.

    Raises:
        UserError: for a file that is truncated or damaged, or holds other tensors than its index says.
    """
    found: dict[str, Any] = {}
    for file, opened in _opened(weights):
        found |= {(file, name): tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    if weights.index is not None:
        placed = {(file, name) for name, file in _placed(weights.index).items()}
        for file, name in sorted(found.keys() ^ placed):
            fault = "does not name" if (file, name) in found else "places there, where it is missing"
            raise UserError(f"{file} does not fit its index, which {fault}: tensor {name!r}")
    return without_prefix({name: shape for (_, name), shape in found.items()})


def tensors(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors by name, as they are in the files.

    Raises:
        UserError: as :func:`shapes`.
    """
    found: dict[str, Tensor] = {}
    for _, opened in _opened(weights):
        found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return without_prefix(found)


def _opened(weights: Weights) -> Iterator[tuple[Path, Any]]:
    from safetensors import safe_open

    for path in weights.files:
        try:
            file = safe_open(path, framework="pt")
        except Exception as error:  # whatever a broken file brings about
            raise unreadable(path, error) from error
        with file:
            yield path, file


def scheduler_file(path: Path, folder: Path) -> Path:
    """Return the file of the scheduler's configuration; UserError where there is none."""
    for place in (path / "scheduler", path, folder.parent / "scheduler", path.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            return place / "scheduler_config.json"
    raise UserError(
        f"{path} holds no scheduler/scheduler_config.json, without which the noise levels of its network are unknown: "
        f"name one by config"
    )


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; UserError for anything else, and for a key that is given twice."""
    try:
        content = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {sentence(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content
