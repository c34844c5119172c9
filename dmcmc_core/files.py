"""Files that are whole or not there: write and then rename, hashes of content, arrays in NPZ files."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import socket
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dmcmc_core.errors import UserError, sentence

PART = ".part"
"""How the names of files end that are being written; whatever ends so was left by a process that was killed."""
_number = itertools.count()


def root() -> Path:
    """Return the folder that exp/ is looked for in: a checkout, or the working directory where there is none.

    The checkout is the one that the working directory is or lies in, or else the one that this package lies in.
    """
    places = (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1])
    return next((place for place in places if (place / "exp" / "manifest.yaml").is_file()), places[0])


def part_name(path: Path) -> Path:
    """Return a name beside ``path`` that no other process, thread or machine writes to."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{next(_number)}{PART}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name to write to; ``path`` is replaced when all is written, and nothing is left where that fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_name(path)
    try:
        yield part
        _as_others(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _as_others(part: Path) -> None:
    """Give a file the mode of any new one: safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    if part.is_file():
        part.chmod(0o666 & ~mask)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file by one of this content."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Replace a file by one of this text, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any, **how: Any) -> None:
    """Replace a file by this content as indented JSON; ``how`` goes to :func:`json.dumps`."""
    write_text(path, json.dumps(content, indent=1, **how) + "\n")


def from_json(text: str | bytes) -> Any:
    """Return what JSON text says.

    Raises:
        ValueError: for text that is not JSON, and for a key that is given twice.
    """
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name!r} is given twice")
        found[name] = value
    return found


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(about: Any) -> str:
    """Return a short name for anything that JSON can hold: 20 digits of the SHA-256 of its canonical form."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:20]


def write_npz(path: str | Path, **arrays: Any) -> None:
    """Write arrays as ``np.savez`` does, but the same bytes whatever the time, and with a list of their names.

    The list stands in the archive's comment: a damaged directory that leaves arrays out is then seen.
    """
    with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
        archive.comment = _listed(arrays)


def read_npz(path: str | Path, names: Iterable[str] | None = None, listed: bool = False) -> dict[str, np.ndarray]:
    """Read the arrays of an NPZ file, those of ``names`` that it holds, or all; no pickle is ever loaded.

    Args:
        listed: whether only a file with the list of :func:`write_npz` counts as whole.

    Raises:
        UserError: for a file that is not there, is truncated or damaged, or is no NPZ file.
    """
    with _npz(path) as (archive, members):  # reading a whole member compares its checksum
        if listed and archive.comment != _listed(members):
            raise ValueError("its list of arrays is damaged")
        wanted = members if names is None else [name for name in names if name in members]
        return {name: _array(archive, members[name]) for name in wanted}


def npz_shapes(path: str | Path) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each array that an NPZ file holds; their numbers are not read.

    Raises:
        UserError: as :func:`read_npz`.
    """
    found = {}
    with _npz(path) as (archive, members):
        for name, member in members.items():
            found[name] = _header(archive, member)[:2]
    return found


def _header(archive: zipfile.ZipFile, member: str) -> tuple[np.dtype, tuple[int, ...], int]:
    """Return dtype and shape of an array, and where in its member the numbers begin."""
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return dtype, shape, file.tell()


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """Read an array; ValueError for a member that holds more or less than the numbers of its shape, before it is."""
    dtype, shape, begin = _header(archive, member)
    if not dtype.hasobject and archive.getinfo(member).file_size != begin + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{member} does not hold the numbers of an array of shape {str(shape):.60}")
    return np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)


@contextmanager
def _npz(path: str | Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, str]]]:
    """Open an NPZ file and the names of its members by array; UserError for whatever is wrong with it meanwhile."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, {name.removesuffix(".npy"): name for name in archive.namelist()}
    except Exception as error:  # damage has a dozen names in zipfile and NumPy, and any of them means the same here
        raise UserError(f"{path} cannot be read as an NPZ file, it may be truncated: {sentence(error)}") from error


def _listed(names: Iterable[str]) -> bytes:
    return " ".join(names).encode()
