"""Conversion: files of other projects become ours, safetensors with a card."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmcmc_core.checkpoints import diffusers, families, posthoc_ema, safetensors
from dmcmc_core.checkpoints.card import check_card, read_card
from dmcmc_core.checkpoints.catalogue import EXACT, SHIPPED
from dmcmc_core.errors import UserError
from dmcmc_core.files import sha256


def convert(
    source: str | Path, path: str | Path, config: str | Path | dict | None = None, ema_std: float | None = None
) -> dict[str, Any]:
    """Write a checkpoint of score_sde, EDM, EDM2 or diffusers as safetensors, its card and the source's SHA-256 inside.

    The SHA-256 of a folder is that of one line ``digest  name`` for each of the files that make its denoiser.

    Args:
        source, config: as for :func:`dmcmc_core.checkpoints.load_model`.
        path: ends in .safetensors; a file of that name is only replaced once the new one is whole.
        ema_std: of the network that is made of the snapshots in the folder ``source``, see
            :func:`dmcmc_core.checkpoints.posthoc_ema.reconstruct`.

    Returns:
        The card.

    Raises:
        UserError: for what :func:`dmcmc_core.checkpoints.load_model` refuses, or another ending; nothing is written
            then.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"the converted file must end in .safetensors, not {str(path)!r}")
    if ema_std is not None:
        source = Path(source)
        if not source.is_dir() or config is not None:
            raise UserError("a new EMA is made of a folder of snapshots, which describe themselves: leave config out")
        snapshots = posthoc_ema.snapshots_in(source)
        net, card = posthoc_ema.reconstruct(snapshots, ema_std)
        digest = _digest(source, [snapshot.path for snapshot in snapshots])
    elif Path(source).is_dir():
        source = Path(source)
        net, card = diffusers.read(source, config)
        check_card(card, source)
        digest = _digest(source, diffusers.files(source))
    else:
        source = families.file_of(str(source), (*SHIPPED, *EXACT), "model")
        if not families.is_foreign(source):
            raise UserError(
                f"{source} is no checkpoint to convert: a file of PyTorch (.pth, .pt, .ckpt), a .pkl, a file of Flax "
                f"or a folder of diffusers is"
            )
        net, card = families.read(source, config)
        digest = sha256(source)
    safetensors.save(net, path, card | {"name": Path(path).stem, "source": source.name, "source_sha256": digest})
    return read_card(path)


def _digest(folder: Path, parts: Iterable[Path]) -> str:
    """Return the SHA-256 of one line for each file in a folder that counts."""
    lines = [f"{sha256(file)}  {os.path.relpath(file, folder)}\n" for file in parts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
