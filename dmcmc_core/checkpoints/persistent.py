"""Pickles of EDM and EDM2: objects that carry their own source code; only names and numbers are read.

The file is unpickled with a list of what may be made of it: tensors, plain containers, numbers, and *inert* stand-ins
for everything else that these networks are made of. The source text inside is never looked at.
"""

from __future__ import annotations

import io
import mmap
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.checkpoints.unpickler import Unpickler
from dmcmc_core.checkpoints.weights import check_numbers
from dmcmc_core.errors import UserError, sentence


class Inert:
    """An object of the file: the name of its class, and its state, a dictionary."""

    def __init__(self, name: str = "", state: Any = None) -> None:
        self.name = name if isinstance(name, str) else type(name).__name__
        self.state = state if isinstance(state, dict) else {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def tensors(self, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors of a module and those in it, as in ``state_dict``; UserError for one met twice."""
        seen = set() if seen is None else seen
        if id(self) in seen:
            raise UserError(f"module {prefix!r} stands in two places")
        seen.add(id(self))
        for kind in ("_parameters", "_buffers"):
            for name, value in (self.state.get(kind) or {}).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value.detach()
        for name, module in (self.state.get("_modules") or {}).items():
            if isinstance(module, Inert):
                yield from module.tensors(f"{prefix}{name}.", seen)

    def arguments(self, names: str) -> dict[str, Any]:
        """Return the object's arguments by name; ``names`` are those of its positional arguments, in order."""
        given = self.state.get("_init_args") or ()
        return dict(zip(names.split(), given, strict=False)) | dict(self.state.get("_init_kwargs") or {})


def _persistent(meta: Any, *_: Any) -> Inert:
    if not isinstance(meta, dict):
        raise UserError("it holds a persistent object without a description")
    return Inert(meta.get("class_name"), meta.get("state"))


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """Return a tensor as torch rebuilds it, but never larger than its numbers, for which torch would make room."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise UserError(
            f"it holds a tensor of shape {tuple(size)!r:.60} that reaches beyond its {len(storage)} numbers"
        )
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, *rest)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _scalar(dtype: np.dtype, data: bytes) -> float:
    if dtype.kind not in "biuf" or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise UserError("it holds a numpy scalar that is no number")
    return np.frombuffer(data, dtype)[0].item()


def _dtype(name: str, *_: Any) -> np.dtype:
    return np.dtype(str(name))


def _array(*_: Any) -> Inert:
    return Inert("ndarray")  # of a latent encoder, which no network needs: its numbers are left out


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("dnnlib.util", "EasyDict"): dict,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): Inert,
    ("numpy", "dtype"): _dtype,
    ("torch.nn.modules.container", "ModuleDict"): Inert,
    ("torch.nn.modules.container", "ModuleList"): Inert,
    ("torch.nn.modules.container", "Sequential"): Inert,
}
"""What a pickle may name, and what that is here."""


class _Persistent(Unpickler):
    """What reads such a pickle."""

    allowed = ALLOWED

    def build(self, made: Any, state: Any) -> None:
        """Give a stand-in its state."""
        if not isinstance(made, Inert | np.dtype):
            super().build(made, state)
        made.__setstate__(state)


def load(path: Path) -> Any:
    """Return what a pickle of EDM holds.

    Raises:
        UserError: for a file that is truncated, no pickle, or names anything that is not in :data:`ALLOWED`.
    """
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # which is what these files hold
            return _Persistent(data).load()
    except Exception as error:  # whatever a broken file brings about
        why = "it is no sound pickle" if isinstance(error, KeyError) else sentence(error)  # of an unknown opcode
        raise UserError(
            f"{path} cannot be read as a pickle of EDM, it is truncated, of another format, or unsafe: {why}"
        ) from error


def is_one(path: Path) -> bool:
    """Tell whether a file begins as a pickle of EDM or EDM2 does, whatever its name."""
    with path.open("rb") as file:
        begin = file.read(4096)
    return begin[:1] == b"\x80" and (b"torch_utils.persistence" in begin or b"dnnlib.util" in begin)


def averaged(content: Any) -> Inert | None:
    """Return the averaged network that a pickle holds, under ``ema`` or alone; None where it holds none."""
    outer = content.get("ema") if isinstance(content, dict) else content
    return outer if isinstance(outer, Inert) else None


@contextmanager
def using(path: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with the content of a file, whatever it brings about."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path} cannot be used: {error}") from error
    except Exception as error:  # whatever arguments and tensors of another kind bring about
        raise UserError(f"the arguments in {path} do not make a network of EDM: {sentence(error)}") from error


def check(own: dict[str, Tensor], pairs: Iterable[tuple[str, str]], tensors: dict[str, Tensor], path: Path) -> None:
    """Raise UserError for the first tensor of a file that does not fit.

    Args:
        own: the network's tensors, by place.
        pairs: the name of each in the file, and its place.
        tensors: of the file, by name.
    """
    left = dict(tensors)
    for name, place in pairs:
        found = left.pop(name, None)
        if found is None or found.shape != own[place].shape:
            has = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise UserError(
                f"{path} does not fit its own arguments: tensor {name!r} {has}, the network needs "
                f"{tuple(own[place].shape)}"
            )
        check_numbers(found, name, path)
    if left:
        raise UserError(f"{path} does not fit its own arguments: it holds the unknown tensor {sorted(left)[0]!r}")
