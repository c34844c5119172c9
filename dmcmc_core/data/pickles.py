"""Pickles of pixels as published: numbers, text, lists, dictionaries and arrays of uint8; nothing of them is run."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from dmcmc_core.errors import UserError


class Unpickler(pickle._Unpickler):
    """A reader of such pickles, in which an array is an :class:`Array`; UserError for any other name in one.

    It is the one in Python: that in C makes room for whatever a file claims to hold.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the pickle."""
        if (module, name) == ("_codecs", "encode"):  # how protocols before 3 write bytes
            return lambda text, _: text.encode("latin1")
        core, _, part = module.partition(".")[2].partition(".")
        if module == "numpy" and name in ("ndarray", "dtype"):
            return {"ndarray": Array, "dtype": _Dtype}[name]
        if module.startswith("numpy.") and core in ("core", "_core"):
            if (part, name) == ("multiarray", "_reconstruct"):
                return lambda *_: Array()
            if (part, name) == ("numeric", "_frombuffer"):  # of protocol 5
                return lambda data, dtype, shape, order: Array().filled(shape, dtype, order == "F", bytes(data))
        raise UserError(f"it names {module}.{name}, which no data needs: it was not executed")


class Array:
    """A stand-in for a numpy array in a pickle.

    ``values``: the array that its bytes make, uint8 alone; or the list of Arrays that it holds.
    """

    values: np.ndarray | list[Array]

    def __setstate__(self, state: tuple) -> None:
        """Take version, shape, dtype, order and bytes, as NumPy writes them."""
        self.filled(*state[1:])

    def filled(self, shape: tuple[int, ...], dtype: Any, column_major: bool, data: Any) -> Array:
        """Return the array with its numbers."""
        kind = dtype.name if isinstance(dtype, _Dtype) else None
        if kind in (b"O8", "O8") and isinstance(data, list) and all(isinstance(item, Array) for item in data):
            self.values = data
        elif kind in (b"u1", "u1") and isinstance(data, bytes):
            self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")
        else:
            raise UserError("it holds an array that is not of uint8")
        return self


class _Dtype:
    """A stand-in for a numpy dtype in a pickle: its name alone."""

    def __init__(self, name: bytes | str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        """Pass over byte order and alignment, of which single bytes have none."""
