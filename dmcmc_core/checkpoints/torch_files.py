"""PyTorch files: what one holds, without its numbers, and then the numbers, one tensor at a time.

An archive of torch is a pickle, ``data.pkl``, and the bytes of each storage. The pickle is read with a list of what may
be made of it, none of which is executed code; tensors in it are *stored* ones, their shapes and places. A network is
then filled in the memory that it needs itself.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core.checkpoints.unpickler import Unpickler
from dmcmc_core.errors import UserError, sentence

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
"""Class of a storage in ``torch`` -> the dtype of its numbers."""
ENDINGS = (".pth", ".pt", ".ckpt", ".bin")


class Storage(NamedTuple):
    """A storage of the archive: its member ``data/KEY`` and how many numbers that says it has."""

    key: str
    dtype: torch.dtype
    size: int


class Stored(NamedTuple):
    """A tensor of the archive, its numbers unread."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """The shape, as a tensor has it."""
        return torch.Size(self.size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in the file."""
        return self.storage.dtype


class Unread:
    """What stands for an object of NumPy in a file: it takes whatever the file says of it, and keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _stored(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
    """Return a tensor as the pickle describes it; it never reaches beyond the numbers of its storage."""
    whole = (offset, *size, *stride)
    if not isinstance(storage, Storage) or len(size) != len(stride) or not all(isinstance(n, int) for n in whole):
        raise UserError("it holds a tensor without a storage or shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(whole) < 0 or (0 not in size and last >= storage.size):
        shape = f"{tuple(size)!r:.60}"
        raise UserError(f"it holds a tensor of shape {shape} that reaches beyond its {storage.size} numbers")
    return Stored(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _stored,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("_codecs", "encode"): Unread,
    ("numpy", "ndarray"): Unread,
    ("numpy", "dtype"): Unread,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{
        (f"{package}.multiarray", name): Unread
        for package in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    },
}
"""What the pickle of an archive may name, and what that is here."""
UNREAD = [(value, ".".join(names)) for names, value in ALLOWED.items() if value is Unread and names[0] != "_codecs"]
"""The stand-ins in the form that ``torch.load`` takes, for files from before there were archives."""


class _Archived(Unpickler):
    """What reads the pickle of an archive."""

    allowed = ALLOWED

    def build(self, made: Any, state: Any) -> None:
        """Pass over ``_metadata`` of a state, and what NumPy would know of an array."""
        if not isinstance(made, OrderedDict | Unread):
            super().build(made, state)

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a tensor refers to."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise UserError("it refers to something that is no storage")
        if not isinstance(pid[2], str) or not isinstance(pid[4], int) or isinstance(pid[4], bool):
            raise UserError("it refers to a storage without a name or size")
        return Storage(pid[2], pid[1], pid[4])


LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file from before there were archives begins: a number that torch has chosen."""


def is_one(path: Path) -> bool:
    """Tell whether a file is one of PyTorch by its content, whatever its ending."""
    with path.open("rb") as file:
        begin = file.read(len(LEGACY))
    if begin == LEGACY:
        return True
    if begin[:2] != b"PK" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.namelist())


class _Bounded(io.BufferedReader):
    """A file that never makes room for more than the bytes that it has, whatever a pickle in it claims."""

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, max(left, 0)))


class TorchFile:
    """A PyTorch file that is being read.

    ``content``: what it holds, tensors as :class:`Stored`, or in a file from before there were archives as tensors.

    Raises:
        UserError: for a file that is truncated, of another format, or holds anything but tensors and plain values.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._last: tuple[str, Tensor] = "", torch.empty(0)
        with self.path.open("rb") as file:
            if not file.read(2).startswith((b"PK", b"\x80")):
                raise UserError(f"{path} is no file of PyTorch: it begins like no archive and no pickle")
        try:
            self.archive = zipfile.ZipFile(self.path) if zipfile.is_zipfile(self.path) else None
            self.content = self._legacy() if self.archive is None else self._read()
        except Exception as error:  # whatever a broken file brings about
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        why = "it is no sound pickle" if isinstance(error, KeyError) else sentence(error)  # of an unknown opcode
        return UserError(
            f"{self.path} cannot be read as a PyTorch file of tensors and plain values, it is truncated, of another "
            f"format or holds objects, which are never executed: {why}"
        )

    def _legacy(self) -> Any:
        with torch.serialization.safe_globals(UNREAD), _Bounded(self.path.open("rb", buffering=0)) as file:
            return torch.load(file, map_location="cpu", weights_only=True)

    def _read(self) -> Any:
        members = {info.filename: info for info in self.archive.infolist()}
        if any(max(m.file_size, m.compress_size) > self.path.stat().st_size for m in members.values()):
            raise UserError("a part of it claims to be larger than the whole")
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("it holds no data.pkl" if not pickles else "it holds more than one data.pkl")
        self.folder = pickles[0].removesuffix("data.pkl")
        if (order := f"{self.folder}byteorder") in members and self._member(order) != b"little":
            raise UserError("its numbers are of a big-endian machine")
        with self.archive.open(pickles[0]) as file:
            return _Archived(file).load()

    def _member(self, name: str) -> bytearray:
        """Return the bytes of a member, which torch never compresses, compared with the sum that was written."""
        try:
            info = self.archive.getinfo(name)
        except KeyError:
            raise UserError(f"its part {name} is missing") from None
        if info.compress_type != zipfile.ZIP_STORED:
            return bytearray(self.archive.read(name))
        data = bytearray(info.file_size)
        with self.path.open("rb") as file:
            file.seek(info.header_offset + 26)  # where the header has the lengths of its own name and extra field
            name_length, extra = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra, os.SEEK_CUR)
            whole = file.readinto(data) == len(data)
        if not whole or zlib.crc32(data) != info.CRC:
            raise UserError(f"its part {name} is damaged")
        return data

    def pickled(self) -> bytes:
        """Return the pickle of :attr:`content`, for a reader of arrays of NumPy, which are unread in that."""
        if self.archive is not None:
            return self.archive.read(f"{self.folder}data.pkl")
        try:
            with _Bounded(self.path.open("rb", buffering=0)) as file:
                for _ in range(3):  # magic number, version and machine
                    Unpickler(file).load()
                return file.read()
        except Exception as error:
            raise self._unreadable(error) from error

    def numbers(self, tensor: Any) -> Tensor:
        """Return a tensor of :attr:`content` with its numbers; UserError where they are damaged or missing."""
        if not isinstance(tensor, Stored):
            return tensor
        try:
            return self._numbers(tensor)
        except Exception as error:
            raise self._unreadable(error) from error

    def _numbers(self, tensor: Stored) -> Tensor:
        key, dtype, size = tensor.storage
        if self._last[0] != key:
            self._last = "", torch.empty(0)
            data = self._member(f"{self.folder}data/{key}")
            if len(data) != size * dtype.itemsize:
                raise UserError(f"its part data/{key} has {len(data)} bytes, not {size * dtype.itemsize}")
            self._last = key, torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
        flat = self._last[1]
        if tensor.shape.numel() == size:  # the only tensor of its storage, whose memory is then its own
            self._last = "", torch.empty(0)
        return (flat.view(dtype) if len(flat) else flat.to(dtype)).as_strided(tensor.size, tensor.stride, tensor.offset)


def is_tensor(value: Any) -> bool:
    """Tell whether a value of a file's content is a tensor, read or not."""
    return isinstance(value, Tensor | Stored)


def is_state(value: Any) -> bool:
    """Tell whether a value is a state of a network: some tensors by name, and no more."""
    return isinstance(value, dict) and bool(value) and all(map(is_tensor, value.values()))


def whole(tensors: Sequence[Any]) -> bool:
    """Tell whether all of some values are tensors."""
    return all(map(is_tensor, tensors))
