"""Files of other projects: which reader a file needs, by its ending or its first bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from dmcmc_core.checkpoints import edm, edm2, flax, persistent, published, score_embedding, score_sde
from dmcmc_core.checkpoints.card import FOREIGN, check_card
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
    return path.suffix in FOREIGN or persistent.is_one(path) or is_flax(path)


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
    if path.suffix == ".pkl" or persistent.is_one(path):
        if config is not None:
            raise UserError(f"{path} describes itself; config is for files that do not")
        content = persistent.load(path)
        with persistent.using(path):
            net, card = (edm2 if edm2.is_one(content) else edm).read(content, path)
        card.setdefault("name", published.at_place(path) or path.stem)
    elif path.suffix in (".pth", ".pt"):
        with path.open("rb") as file:
            if not file.read(2).startswith((b"PK", b"\x80")):  # before a configuration is asked for
                raise UserError(f"{path} is no file of PyTorch: it begins like no archive and no pickle")
        if score_embedding.is_one(path):
            if config is not None:
                raise UserError(f"{path} describes itself; config is for files that do not")
            net, card = score_embedding.read(path)
        else:
            net, card = score_sde.read(path, published.config_of(path, config))
        card.setdefault("name", published.at_place(path) or path.stem)
    elif path.suffix not in FOREIGN:
        net, card = flax.read(path, published.config_of(path, config))
    else:
        raise UserError(
            f"{path} is {FOREIGN[path.suffix]}; .pth files of score_sde and score embedding and .pkl files of EDM can "
            "be read"
        )
    card.setdefault("name", path.stem)
    check_card(card, path)
    return net, card
