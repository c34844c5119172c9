"""The folder of a run: ``manifest.json`` and ``shard-*.npz``, who holds it, what of it is whole, what is missing.

A file gets its name when it is whole, and is believed when its checksums hold and it says itself that it belongs here:
no crash, no damage and no file of another run ever becomes part of a result. Nothing here computes an image.
"""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import json
import math
import os
import shutil
import socket
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from torch import Tensor

from dmcmc_core.data import from_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.files import key

AGAIN = "run the same sample command again"
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class Damaged(UserError):
    """A manifest that is not as it was written."""


class Shard(NamedTuple):
    """A file of ``images``, a range of indices; with chains they begin in the ``windows`` of a ``group`` of chains."""

    images: range
    group: range = range(0)
    windows: range = range(0)

    @property
    def name(self) -> str:
        return f"shard-{self.images.start:08d}.npz"


# Who makes what


def layout(num: int, size: int, block: int, chains: int | None = None) -> list[list[Shard]]:
    """All shards of ``num`` images, in lists that do not need each other.

    Without chains every list is one shard of ``size`` images. With chains a list is a group of at most ``block`` of
    them, and a shard as many of its windows as ``size`` holds, at least one; one, where there are several groups.
    """
    if chains is None:
        return [[Shard(range(first, min(first + size, num)))] for first in range(0, num, size)]
    return [
        _windows(num, size, chains, range(low, min(low + block, chains, num)))
        for low in range(0, min(chains, num), block)
    ]


def _windows(num: int, size: int, chains: int, group: range) -> list[Shard]:
    several = len(group) < min(chains, num)
    together, windows = 1 if several else max(1, size // chains), math.ceil((num - group.start) / chains)
    shards = []
    for number in range(0, windows, together):
        some = range(number, min(number + together, windows))
        first, last = (w * chains + group.start for w in (some[0], some[-1]))
        shards.append(Shard(range(first, min(last + len(group), num)), group, some))
    return shards


def layout_of(manifest: dict[str, Any]) -> list[list[Shard]]:
    """The shards of a run, as its manifest tells."""
    chain = manifest["plan"]["chain"]
    return layout(manifest["num"], manifest["shard"], manifest["block"], chain and chain["chains"])


def dealt(lists: Sequence[list[Shard]], rank: int, world: int) -> Iterator[Shard]:
    """What one of ``world`` processes makes: whole lists as far as they go round; those left are shared, in turns."""
    round_ = len(lists) - len(lists) % world
    for number, shards in enumerate(lists):
        sharing = [number % world] if number < round_ else range(number - round_, world, len(lists) - round_)
        yield from (shard for turn, shard in enumerate(shards) if sharing[turn % len(sharing)] == rank)


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
            print(f"{path.parent} is on a file system without locks: start nothing else on it", file=sys.stderr)
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # whoever held it has taken the folder back


def _holder(out: Path) -> str:
    for path in sorted(out.glob(f"{_LOCK}*")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another process"
    return "another process"


@contextmanager
def telling(out: Path, num: int) -> Iterator[None]:
    """A full disk, or a folder that cannot be written to, as one sentence: how much is safe, and what to do."""
    try:
        yield
    except OSError as error:
        whole = [told["images"] for told in map(about, out.glob("shard-*.npz")) if told and told["images"]]
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


def strange(out: Path, own: Iterable[str] = ()) -> bool:
    """Whether a folder holds anything that no run of ours begins with."""
    there = out.iterdir() if out.is_dir() else ()
    return any(p.suffix != ".part" and not p.name.startswith(_LOCK) and p.name not in own for p in there)


def sweep(out: Path) -> None:
    """Remove what killed processes left half-written; only for the one that holds the folder alone."""
    for part in out.glob("**/*.part"):
        part.unlink(missing_ok=True)


def take_back(out: Path) -> None:
    """Remove what a run wrote that failed before its first images; the folder too, if nothing else is in it."""
    if any(out.glob("shard-*.npz")):
        return
    (out / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(out / "chains", ignore_errors=True)
    for lock in out.glob(f"{_LOCK}*"):
        lock.unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()


# What is whole


def save(out: Path, shard: Shard, arrays: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Write a shard and what it tells of itself, which is returned: recipe, images, rows, block."""
    about |= {"images": [shard.images.start, shard.images.stop]}
    save_npz(out / shard.name, **arrays, about=np.array(json.dumps(about)))
    return about


def there(out: Path, shards: Iterable[Shard], recipe: str) -> dict[Shard, dict[str, Any]]:
    """Those shards that are whole and of this recipe, with what they tell of themselves."""
    found = {shard: about(out / shard.name) for shard in shards}
    return {shard: told for shard, told in found.items() if told and _is(shard, told, recipe)}


def _is(shard: Shard, told: dict[str, Any], recipe: str) -> bool:
    return told["recipe"] == recipe and told["images"] == [shard.images.start, shard.images.stop]


def about(path: Path) -> dict[str, Any] | None:
    """What a shard tells of itself: None where it is not there or damaged, no recipe where it is none of ours."""
    data = read_npz(path)
    return None if data is None else _told(data)


def _told(data: dict[str, np.ndarray]) -> dict[str, Any]:
    return json.loads(str(data["about"])) if "about" in data else {"recipe": None, "images": None}


def check_strays(out: Path, recipe: str, num: int) -> None:
    """UserError where a folder without a manifest holds whole shards of another run, or of more images."""
    for path in sorted(out.glob("shard-*.npz")):
        told = about(path)
        if told and told["recipe"] != recipe:
            raise UserError(
                f"{out} has lost its manifest, and {path.name} is of another run: give the command that made it, with "
                "the same shard size, or choose a new folder"
            )
        if told and told["images"][1] > num:
            raise UserError(f"{out} already holds images up to {told['images'][1]}: num={num} would take some away")


def finished(folder: str | Path, num: int) -> bool:
    """Whether a folder holds all ``num`` images of a run."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return False
    if not manifest.get("complete") or manifest["num"] != num:
        return False
    shards = list(itertools.chain(*layout_of(manifest)))
    return len(there(Path(folder), shards, manifest["recipe"])) == len(shards)


def arrays_of(folder: str | Path, manifest: dict[str, Any]) -> Iterator[np.ndarray]:
    """The images of a finished run, shard by shard in the order of their indices: (k, H, W, C) uint8.

    Raises:
        UserError: for a run that is not complete, or a shard that is missing, damaged or of another run.
    """
    if not manifest.get("complete"):
        raise UserError(f"{folder} is not complete: {AGAIN} to go on")
    for shard in sorted(itertools.chain(*layout_of(manifest)), key=lambda shard: shard.images.start):
        path = Path(folder) / shard.name
        data = read_npz(path)
        if data is None or not _is(shard, _told(data), manifest["recipe"]):
            raise UserError(f"{path} is missing, damaged or of another run: {AGAIN} to make it")
        yield data["arr_0"]


def seconds(folder: str | Path, manifest: dict[str, Any]) -> dict[str, float]:
    """What making a finished run took, chains (posterior and classifier included) and integrator, on that day."""
    told = [about(Path(folder) / shard.name) for shard in itertools.chain(*layout_of(manifest))]
    return {part: sum(one["seconds"][part] for one in told if one) for part in ("chains", "integrator")}


def load_images(folder: str | Path, data_range: tuple[float, float] | None = None) -> Tensor:
    """The images of a finished run, (n, C, H, W) float32 in its data range or another, ordered by their indices."""
    manifest = read_manifest(folder)
    return from_uint8(np.concatenate(list(arrays_of(folder, manifest))), data_range or manifest["data_range"])


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run; UserError if there is none, :class:`Damaged` if it is not as it was written."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.pop("checksum") == key(manifest):
            return manifest
    except FileNotFoundError:
        raise UserError(f"{folder} holds no manifest.json: it is not a folder of samples") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise Damaged(f"{path} is damaged: {AGAIN} to mend it")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """With a checksum of its own, which :func:`read_manifest` takes out again."""
    write_json(folder / "manifest.json", manifest | {"checksum": key(manifest)})


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file, or None where it is missing or not as it was written: what is damaged is made again."""
    try:
        with zipfile.ZipFile(path) as archive:  # reading a whole member compares its checksum
            content = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
            if archive.comment != _names(content):  # a damaged directory may leave members out
                return None
        return {n: np.lib.format.read_array(io.BytesIO(c), allow_pickle=False) for n, c in content.items()}
    except Exception:  # damage has a dozen names in zipfile and NumPy, and any of them means the same here
        return None


def save_npz(path: Path, **arrays: Any) -> None:
    """As ``np.savez``, but the same bytes whatever the time, and with the arrays' names beside the directory."""
    with _replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            array = array.cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
        archive.comment = _names(arrays)


def _names(arrays: Iterable[str]) -> bytes:
    return " ".join(arrays).encode()


def write_json(path: Path, content: dict[str, Any]) -> None:
    with _replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, default=str) + "\n")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to; ``path`` is replaced when all is written, and nothing is left where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


# Pictures


def write_pngs(folder: str | Path) -> Path:
    """Every image of a finished run as ``png/00000000.png`` and so on, the index in its name; returns their folder."""
    folder = Path(folder)
    number = 0
    for array in arrays_of(folder, read_manifest(folder)):
        for image in array:
            _save_png(folder / "png" / f"{number:08d}.png", image)
            number += 1
    return folder / "png"


def write_grid(folder: str | Path, columns: int = 8) -> Path:
    """The first ``columns``^2 images of a finished run, a pixel apart, as ``grid.png``; returns its path."""
    folder, images = Path(folder), []
    for array in arrays_of(folder, read_manifest(folder)):
        images += list(array)
        if len(images) >= columns**2:
            break
    images = images[: columns**2]
    height, width, channels = images[0].shape
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    _save_png(folder / "grid.png", grid)
    return folder / "grid.png"


def check_pictures(channels: int | None = None) -> None:
    """UserError where PNG files cannot be written: without Pillow, or for images of other than 1, 3 or 4 channels."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError("PNG files need Pillow: pip install pillow") from None
    if channels not in (None, 1, 3, 4):
        raise UserError(f"PNG files hold images of 1, 3 or 4 channels, not {channels}")


def _save_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    check_pictures(image.shape[-1])
    with _replacing(path) as part:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part, format="PNG")
