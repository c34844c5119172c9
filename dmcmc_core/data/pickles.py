"""Pickles of pixels as published: numbers, text, lists, dictionaries and arrays of uint8; nothing of them is run."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from dmcmc_core.errors import UserError


class Unpickler(pickle.Unpickler):
    """A reader of such pickles, in which an array is an :class:`Array`; UserError for any other name in one."""

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
    """A stand-in for a numpy array in a pickle, which makes one of its bytes, ``values``: uint8 alone."""

    def __setstate__(self, state: tuple) -> None:
        """Take version, shape, dtype, order and bytes, as NumPy writes them."""
        self.filled(*state[1:])

    def filled(self, shape: tuple[int, ...], dtype: Any, column_major: bool, data: Any) -> Array:
        """Return the array with its numbers."""
        if not isinstance(dtype, _Dtype) or dtype.name not in (b"u1", "u1") or column_major:
            raise UserError("it holds an array that is not of uint8, row by row")
        if not isinstance(data, bytes):
            raise UserError("it holds an array without its bytes")
        self.values = np.frombuffer(data, np.uint8).reshape(shape)
        return self


class _Dtype:
    """A stand-in for a numpy dtype in a pickle: its name alone."""

    def __init__(self, name: bytes | str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        """Pass over byte order and alignment, of which single bytes have none."""
