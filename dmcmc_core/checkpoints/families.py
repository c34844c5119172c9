"""Files of other projects: which reader a file needs, by its ending or its first bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dmcmc_core.checkpoints import (
    contents,
    ddpm,
    edm,
    edm2,
    flax,
    openai,
    persistent,
    published,
    score_embedding,
    score_sde,
    torch_files,
)
from dmcmc_core.checkpoints.card import FOREIGN, check_card
from dmcmc_core.checkpoints.torch_files import TorchFile
from dmcmc_core.checkpoints.weights import without_memory, without_prefix
from dmcmc_core.errors import Absent, UserError, unknown


def file_of(name: str, names: Iterable[str], kind: str) -> Path:
    """Return the path that ``name`` is.

    Raises:
        UserError: for a path that is not there or an empty file, and for what looks like a name but is none of
            ``names``, the known ones of this ``kind``.
    """
    path = Path(name)
    if path.is_file():
        if not path.stat().st_size:
            raise UserError(f"{name} is an empty file")
        return path
    if path.suffix in {".safetensors", *FOREIGN} or os.sep in name:
        raise Absent(f"no such file: {name}")
    raise Absent(str(unknown(kind, name, names)))


def is_foreign(path: Path) -> bool:
    """Tell whether a file is one of another project."""
    return path.suffix in FOREIGN or persistent.is_one(path) or torch_files.is_one(path) or is_flax(path)


def is_flax(path: Path) -> bool:
    """Tell whether a file is one of Flax, which have no ending (``checkpoint_15``)."""
    return path.suffix not in (".safetensors", *FOREIGN) and flax.is_one(path)


def read(path: Path, config: str | Path | dict | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a file of score_sde, score embedding, Flax, EDM or EDM2, and its card.

    Args:
        path: for which :func:`is_foreign` holds.
        config: see :func:`dmcmc_core.checkpoints.load_model`.

    Raises:
        UserError: for a file that its reader refuses or that none can read.
    """
    if (path.suffix == ".pkl" or persistent.is_one(path)) and not torch_files.is_one(path):
        if config is not None:
            raise UserError(f"{path} describes itself; config is for files that do not")
        content = persistent.load(path)
        with persistent.using(path):
            net, card = (edm2 if edm2.is_one(content) else edm).read(content, path)
        card.setdefault("name", published.at_place(path) or path.stem)
    elif path.suffix in FOREIGN or torch_files.is_one(path):
        net, card = _read_torch(TorchFile(path), config)
        card.setdefault("name", published.at_place(path) or path.stem)
    else:
        net, card = flax.read(path, published.config_of(path, config))
    card.setdefault("name", path.stem)
    check_card(card, path)
    return net, card


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a published name without its file, shapes and no numbers, and its card.

    Raises:
        UserError: for one that nothing but its file describes.
    """
    for configs, make in (
        (published.CONFIGS, score_sde.build),
        (openai.CONFIGS, openai.build),
        (ddpm.CONFIGS, ddpm.build),
    ):
        if name in configs:
            with without_memory():
                return make(configs[name])
    raise UserError(f"what {name} is stands in its file alone, without which it cannot be made")


def _states(file: TorchFile) -> list[contents.State]:
    """Return the states of a file of OpenAI's or DDPM's networks; none of any other."""
    if not contents.is_known(file.content, (openai.is_one, ddpm.is_one)):
        return []
    try:
        return list(contents.states(file.content))
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None


def _fitting(family: Any, tensors: dict[str, Any], path: Path) -> list[str]:
    try:
        return family.fitting(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_torch(file: TorchFile, config: str | Path | dict | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a PyTorch file and its card, by what the file holds."""
    path, content = file.path, file.content
    if score_embedding.is_one(content):
        if config is not None:
            raise UserError(f"{path} describes itself; config is for files that do not")
        return score_embedding.read(file)
    if score_sde.is_one(content):
        return score_sde.read(file, published.config_of(path, config))
    averaged = False
    for state in _states(file):
        tensors = without_prefix(state.tensors)
        known = any(family.is_one(tensors) for family in (openai, ddpm))
        if known and averaged and not state.averaged:
            raise UserError(f"{path} holds averaged weights of another network than its raw ones: which are meant?")
        averaged = averaged or bool(state.averaged)
        for family in (openai, ddpm):
            if family.is_one(tensors):
                given = published.config_of(path, config, family.CONFIGS, partial(_fitting, family, tensors, path))
                net, card = family.read(file, tensors, given)
                return net, card | ({} if state.averaged is None else {"averaged": state.averaged})
    raise UserError(
        f"{path} holds {contents.describe(content)}, which is not read here: checkpoints of score_sde, of score "
        f"embedding, of improved- and guided-diffusion and of the PyTorch port of DDPM are"
    )
