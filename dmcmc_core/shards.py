"""The folder of a run: ``manifest.json`` and ``shard-*.npz``, what of them is whole and what is missing."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError


def finished(folder: str | Path, num: int) -> bool:
    """Whether a folder holds all ``num`` images of a run."""
    path = Path(folder) / "manifest.json"
    manifest = json.loads(path.read_text()) if path.is_file() else {}
    return bool(manifest.get("complete")) and manifest["num"] == num == count(Path(folder))[0]


def load_images(folder: str | Path) -> Tensor:
    """The images of a finished run, (n, C, H, W) float32 in its data range, in the order of their indices."""
    manifest = read_manifest(folder)
    if not manifest.get("complete"):
        raise UserError(f"{folder} is not complete: run the same sample command again to go on")
    low, high = manifest["data_range"]
    arrays = [np.load(p)["arr_0"] for p in sorted(Path(folder).glob("shard-*.npz"))]
    images = torch.from_numpy(np.concatenate(arrays)[: manifest["num"]]).permute(0, 3, 1, 2)
    return images.float() / 255 * (high - low) + low


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run; UserError if there is none."""
    try:
        return json.loads((Path(folder) / "manifest.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no manifest.json: it is not a folder of samples") from None


def count(out: Path) -> tuple[int, int]:
    """Images in a folder, and the rows that were evaluated for them."""
    shards = [np.load(p) for p in sorted(out.glob("shard-*.npz")) if whole(p)]
    return sum(len(s["arr_0"]) for s in shards), sum(int(s["rows"]) for s in shards)


def has(out: Path, first: int, n: int) -> bool:
    path = out / f"shard-{first:08d}.npz"
    return whole(path) and len(np.load(path)["arr_0"]) == n


def whole(path: Path) -> bool:
    """Whether a file is there and as it was written: what is damaged is made again."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def save_npz(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **{n: a.cpu().numpy() if isinstance(a, Tensor) else a for n, a in arrays.items()})
    os.replace(part, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(part, path)
