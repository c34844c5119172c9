"""Pickles of data as published: plain values and arrays of uint8, or of floats; nothing of them is run."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np

from dmcmc_core.errors import UserError


class Unpickler(pickle._Unpickler):
    """A reader of such pickles, in which an array is an :class:`Array`; UserError for any other name in one.

    It is the one in Python: that in C makes room for whatever a file claims to hold.
    """

    numbers: tuple[str, ...] = ("u1",)
    """What arrays may hold, as NumPy writes its dtypes."""
    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Give a stand-in its state; UserError for anything else, which no data changes."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Array | _Dtype):
            raise UserError(f"it changes a {type(self.stack[-1]).__name__}, which no data needs")
        self.stack[-1].__setstate__(state)

    def load_bytearray8(self) -> None:
        """Read the bytes of an array that can be written to, as many as there are."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch |= {pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the pickle."""
        if (module, name) == ("_codecs", "encode"):  # how protocols before 3 write bytes
            return lambda text, _: text.encode("latin1")
        core, _, part = module.partition(".")[2].partition(".")
        if module == "numpy" and name in ("ndarray", "dtype"):
            return {"ndarray": self._array, "dtype": _Dtype}[name]
        if module.startswith("numpy.") and core in ("core", "_core"):
            if (part, name) == ("multiarray", "_reconstruct"):
                return self._array
            if (part, name) == ("numeric", "_frombuffer"):  # of protocol 5
                return lambda data, dtype, shape, order: self._array().filled(shape, dtype, order == "F", data)
        raise UserError(f"it names {module}.{name}, which no data needs: it was not executed"[:300])

    def _array(self, *_: Any) -> Array:
        return Array(self.numbers)


class Array:
    """A stand-in for a numpy array in a pickle.

    ``values``: the array that its bytes make, of one of the dtypes ``numbers``; or the list of Arrays that it holds.
    """

    values: np.ndarray | list[Array]

    def __init__(self, numbers: tuple[str, ...]) -> None:
        self.numbers = numbers

    def __setstate__(self, state: tuple) -> None:
        """Take version, shape, dtype, order and bytes, as NumPy writes them."""
        self.filled(*state[1:])

    def filled(self, shape: tuple[int, ...], dtype: Any, column_major: bool, data: Any) -> Array:
        """Return the array with its numbers."""
        kind = dtype.name if isinstance(dtype, _Dtype) else ""
        if kind == "O8" and isinstance(data, list) and all(isinstance(item, Array) for item in data):
            self.values = data
        elif kind in self.numbers and isinstance(data, bytes):
            numbers = np.frombuffer(data, np.dtype(dtype.order + kind))
            self.values = numbers.reshape(shape, order="F" if column_major else "C")
        else:
            wanted = " or ".join(np.dtype(name).name for name in self.numbers)
            raise UserError(f"it holds an array that is not of {wanted}")
        return self


class _Dtype:
    """A stand-in for a numpy dtype in a pickle: its name, such as ``f8``, and its byte order."""

    def __init__(self, name: bytes | str, *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name
        self.order = "|"

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order, and pass over alignment."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "="):
            raise UserError("it holds an array of an unknown byte order")
        self.order = order
