"""The folder of a run: ``manifest.json`` and ``shard-*.npz``, who holds it, what of it is whole, what is missing.

A file gets its name when it is whole, and is believed when its checksums hold and it says itself that it belongs here:
no crash, no damage and no file of another run ever becomes part of a result. Nothing here computes an image.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from dmcmc_core.data import from_uint8
from dmcmc_core.data.samples import AGAIN, MANIFEST, SHARDS, about_shard, belongs, checksum
from dmcmc_core.errors import LOG, UserError
from dmcmc_core.files import PART, read_npz, write_json, write_npz
from dmcmc_core.runs.layout import Shard, layout_of
from dmcmc_core.runs.settings import TUNING

_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class Damaged(UserError):
    """A manifest that is not as it was written."""


# Who holds the folder


@contextmanager
def held(out: Path, rank: int = 0, world: int = 1, wait: bool = False) -> Iterator[None]:
    """Hold a folder alone or, as one of ``world`` shares, beside the others; the system frees it when a process dies.

    Raises:
        UserError: who holds it already, unless ``wait``.
    """
    with ExitStack() as stack:
        if world > 1:
            stack.enter_context(_locked(out / _LOCK, fcntl.LOCK_SH, wait))
        mine = stack.enter_context(_locked(out / (f"{_LOCK}-{rank}-of-{world}" if world > 1 else _LOCK), wait=wait))
        with suppress(OSError):  # a full disk: the lock holds without a name
            mine.truncate(0)
            mine.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
            mine.flush()
        yield


def _locked(path: Path, how: int = fcntl.LOCK_EX, wait: bool = False) -> IO[str]:
    """Return the open file of a lock that this process holds until it is closed."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.flock(file, how | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{path.parent} is in use by {_holder(path.parent)}: wait for it or end it, or choose another folder"
            ) from None
        except OSError:
            LOG.warning(f"{path.parent} is on a file system without locks: start nothing else on it")
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # whoever held it has taken the folder back


def _holder(out: Path) -> str:
    """Say who holds a folder."""
    for path in sorted(out.glob(f"{_LOCK}*")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another process"
    return "another process"


@contextmanager
def disk_errors(out: Path, num: int) -> Iterator[None]:
    """Say of a full disk, or a folder that cannot be written to, in one sentence how much is safe and what to do."""
    try:
        yield
    except OSError as error:
        found = map(read_about, out.glob(SHARDS))
        whole = [about["images"] for about in found if about and about["images"]]
        safe = f"{sum(last - first for first, last in whole)} of {num} images are safe in it"
        if error.errno in _FULL:
            raise UserError(
                f"the disk of {out} is full, or its quota is: {safe}; free some space and the same command goes on"
            ) from None
        if error.errno in _CLOSED:
            raise UserError(
                f"{out} cannot be written to ({error.strerror}): {safe}; make it writable, or choose another folder"
            ) from None
        raise


def in_use(out: Path) -> bool:
    """Tell whether a folder holds anything that no run of ours begins with."""
    found = out.iterdir() if out.is_dir() else ()
    return any(p.suffix != PART and not p.name.startswith(_LOCK) and p.name != TUNING for p in found)


def sweep(out: Path) -> None:
    """Remove what killed processes left half-written; only for the one that holds the folder alone."""
    for part in out.glob(f"**/*{PART}"):
        part.unlink(missing_ok=True)


def take_back(out: Path) -> None:
    """Remove what a run wrote that failed before its first images; the folder too, if nothing else is in it."""
    if any(out.glob(SHARDS)):
        return
    (out / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(out / "chains", ignore_errors=True)
    for lock in out.glob(f"{_LOCK}*"):
        lock.unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()


# What is whole


def save(out: Path, shard: Shard, arrays: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Write a shard and what it tells of itself, which is returned: recipe, images, rows, block."""
    about |= {"images": ends(shard)}
    arrays = {name: a.cpu().numpy() if isinstance(a, Tensor) else a for name, a in arrays.items()}
    write_npz(out / shard.name, **arrays, about=np.array(json.dumps(about)))
    return about


def whole_shards(out: Path, shards: Iterable[Shard], recipe: str) -> dict[Shard, dict[str, Any]]:
    """Return those shards that are whole and of this recipe, with what they tell of themselves."""
    found = {shard: read_about(out / shard.name) for shard in shards}
    return {shard: about for shard, about in found.items() if about and belongs(about, recipe, ends(shard))}


def ends(shard: Shard) -> list[int]:
    """Return the first image of a shard and the one after its last, as files have them."""
    return [shard.images.start, shard.images.stop]


def read_about(path: Path) -> dict[str, Any] | None:
    """Read what a shard tells of itself: None where it is not there or damaged, no recipe where it is none of ours."""
    data = read_whole(path)
    return None if data is None else about_shard(data) or {"recipe": None, "images": None}


def read_whole(path: Path) -> dict[str, np.ndarray] | None:
    """Read a file of ours, or return None where it is missing or not as it was written: it is then made again."""
    try:
        return read_npz(path, listed=True)
    except UserError:
        return None


def check_strays(out: Path, recipe: str, num: int) -> None:
    """Raise UserError where a folder without a manifest holds whole shards of another run, or of more images."""
    for path in sorted(out.glob(SHARDS)):
        about = read_about(path)
        if about and about["recipe"] != recipe:
            raise UserError(
                f"{out} has lost its manifest, and {path.name} is of another run: give the command that made it, with "
                "the same shard size, or choose a new folder"
            )
        if about and about["images"][1] > num:
            raise UserError(f"{out} already holds images up to {about['images'][1]}: num={num} would take some away")


def finished(folder: str | Path, num: int) -> bool:
    """Tell whether a folder holds all ``num`` images of a run."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return False
    if not manifest.get("complete") or manifest["num"] != num:
        return False
    shards = list(itertools.chain(*layout_of(manifest)))
    return len(whole_shards(Path(folder), shards, manifest["recipe"])) == len(shards)


def arrays_of(folder: str | Path, manifest: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield the images of a finished run, shard by shard in the order of their indices: (k, H, W, C) uint8.

    Raises:
        UserError: for a run that is not complete, or a shard that is missing, damaged or of another run.
    """
    if not manifest.get("complete"):
        raise UserError(f"{folder} is not complete: {AGAIN} to go on")
    for shard in sorted(itertools.chain(*layout_of(manifest)), key=lambda shard: shard.images.start):
        path = Path(folder) / shard.name
        data = read_whole(path)
        about = None if data is None else about_shard(data)
        if about is None or not belongs(about, manifest["recipe"], ends(shard)):
            raise UserError(f"{path} is missing, damaged or of another run: {AGAIN} to make it")
        yield data["arr_0"]


def seconds(folder: str | Path, manifest: dict[str, Any]) -> dict[str, float]:
    """Return the seconds that a finished run took, chains (with their posterior) and integrator, on that day."""
    found = [read_about(Path(folder) / shard.name) for shard in itertools.chain(*layout_of(manifest))]
    return {part: sum(about["seconds"][part] for about in found if about) for part in ("chains", "integrator")}


def load_images(folder: str | Path) -> Tensor:
    """Return the images of a finished run in order, (n, C, H, W) float32 in its data range."""
    manifest = read_manifest(folder)
    return from_uint8(np.concatenate(list(arrays_of(folder, manifest))), manifest["data_range"])


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a run; UserError if there is none, :class:`Damaged` if it is not as it was written."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("checksum") == checksum(manifest):
            return manifest
    except FileNotFoundError:
        raise UserError(f"{folder} holds no manifest.json: it is not a folder of samples") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise Damaged(f"{path} is damaged: {AGAIN} to mend it")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a checksum of its own, which :func:`read_manifest` takes out again."""
    write_json(folder / MANIFEST, manifest | {"checksum": checksum(manifest)}, default=str)


# What an earlier run left


def earlier(out: Path, recipe: dict[str, Any], num: int, say: bool = True) -> dict[str, Any] | None:
    """Return the manifest of an earlier run of this recipe; None in a new folder, and where it has to be made again.

    Raises:
        UserError: for a folder with other content, another run, or more images than ``num``.
    """
    there = next((place for place in (out, *out.parents) if place.exists()), out)
    if there.exists() and not there.is_dir():
        raise UserError(f"{there} is a file: name a folder for the images")
    try:
        manifest = read_manifest(out)
    except Damaged:
        if say:
            LOG.warning(f"{out / 'manifest.json'} is damaged: it is made again")
        return None
    except UserError:
        if (out / MANIFEST).is_file():  # another rank has just begun the run
            return earlier(out, recipe, num, say)
        if in_use(out) and not any(out.glob(SHARDS)):
            raise UserError(f"{out} is not empty and holds no run of this program: choose a new folder") from None
        return None
    was, now = _flat(manifest, recipe), _flat(json.loads(json.dumps(recipe)), recipe)
    if was.get("model_sha256") == now.get("model_sha256"):  # whatever its weights are called
        was.pop("model", None), now.pop("model", None)
    for name in sorted(now | was, key=lambda name: (name.endswith("_sha256"), name)):  # last, as others change them
        if name not in was or name not in now or was[name] != now[name]:
            before, after = (repr(r[name]) if name in r else "the default" for r in (was, now))
            raise UserError(f"{out} holds another run: its {name} is {before}, not {after}; choose a new folder")
    if manifest["num"] > num:
        raise UserError(f"{out} already holds a run of {manifest['num']} images: num={num} would take some away")
    return manifest


def changed(out: Path, before: dict[str, Any] | None) -> bool:
    """Tell whether the manifest is another one than when it was read."""
    try:
        return read_manifest(out) != before
    except UserError:
        return before is not None


def _flat(manifest: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what of a manifest belongs to its recipe, the sampler and each setting under a name of its own."""
    known = {name: manifest.get(name) for name in recipe if name != "asked"}
    asked = manifest.get("asked") or {}
    return known | {"sampler": asked.get("sampler")} | asked.get("settings", {})


def close(out: Path, manifest: dict[str, Any], every: list[Shard], done: dict[Shard, dict[str, Any]]) -> dict[str, Any]:
    """Write what is there into the manifest, and what it cost; complete once every image is."""
    done |= whole_shards(out, [shard for shard in every if shard not in done], manifest["recipe"])
    n, num = sum(len(shard.images) for shard in done), manifest["num"]
    manifest = manifest | {"complete": n == num, "images": n}
    halved = min((about["block"] for about in done.values()), default=manifest["block"])
    if halved < manifest["block"]:
        manifest["block_halved"] = halved
    if n == num:
        kinds = ("integrator", "tweedie", "chains", "warmup")
        rows = {kind: sum(about["rows"][kind] for about in done.values()) for kind in kinds}
        paper = rows["integrator"] + rows["chains"]
        manifest |= {"nfe_full": sum(rows.values()) / num, "nfe_paper": paper / num, "rows": rows}
        manifest["rows_of_padding"] = sum(about.get("padding", 0) for about in done.values())
    write_manifest(out, manifest)
    missing = [shard for shard in every if shard not in done]
    if whole_shards(out, missing, manifest["recipe"]):  # another share ended meanwhile, and may have said so before
        return close(out, manifest, every, done)
    return manifest
