"""What decides a network's answers beside its weights: its layers, their settings, and the code that joins them."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmcmc_core.functions import reads

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device)
OURS = __name__.partition(".")[0]
WHOLE = ("nets", "checkpoints", "training")
"""Where this package's own networks are, which hold no others."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""Where a layer keeps functions that change what it is given and what it answers."""


def structure(*parts: Any) -> str:
    """Return a hash of what networks and functions of one's own are made of; nothing where all are this package's.

    The networks of this package are known by their tensors and the facts of their files. Of others count the classes of
    all layers, their public settings, and the bytecode of what is of no installed library, with the globals and the
    closures that it reads. Settings are numbers, words, switches, tuples and functions; lists and dictionaries, which
    code fills as it runs, do not count, nor do weights. Another version of Python compiles to another hash.
    """
    told = [told for part in parts if part is not None and (told := _told(part, set()))]
    return hashlib.sha256(repr(told).encode()).hexdigest() if told else ""


def _told(value: Any, seen: set[int]) -> Any:
    """Return nested tuples of plain values that are the same in every process; nothing for what this package made."""
    if isinstance(value, PLAIN):
        return (repr(value),)
    if id(value) in seen:
        return ("again",)
    seen = seen | {id(value)}
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().cpu().float() if isinstance(value, torch.Tensor) else value)
        return ("array", array.shape, hashlib.sha256(array.tobytes()).hexdigest())
    if isinstance(value, frozenset):
        return tuple(sorted(repr(_told(one, seen)) for one in value))
    if isinstance(value, tuple):
        return tuple(_told(one, seen) for one in value)
    if isinstance(value, list | dict | set):
        return ()
    if isinstance(value, types.CodeType):
        return value.co_code.hex(), value.co_names, _told(value.co_consts, seen)
    if isinstance(value, functools.partial):
        return _told((value.func, value.args, value.keywords), seen)
    if isinstance(value, types.MethodType):
        return _told((value.__self__, value.__func__), seen)
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return _class(value, seen) if isinstance(value, type) else (value.__name__,)
    return _object(value, seen)


def _function(value: types.FunctionType, seen: set[int]) -> Any:
    """Return what a function is: its code, defaults, closure, and the globals that it names."""
    name = (value.__module__, value.__qualname__)
    if not _is_own(value.__module__):
        return () if _is_ours(value.__module__) else name
    return _told((value.__code__, *reads(value)), seen)


def _class(value: type, seen: set[int]) -> Any:
    """Return a class by its name, and by its functions where it is one's own."""
    own = [one for one in value.__mro__ if _is_own(one.__module__)]
    members = [_told(member, seen) for one in own for _, member in sorted(vars(one).items()) if callable(member)]
    return (value.__module__ if not own else "", value.__qualname__, *members)


def _object(value: Any, seen: set[int]) -> Any:
    """Return an object by its class and settings, a network by its layers, what is of this package by its network."""
    if _is_ours(type(value).__module__):
        inner = getattr(value, "net", None)
        told = () if inner is None or type(value).__module__.split(".")[1] in WHOLE else _told(inner, seen)
        return told and (told, _told(getattr(value, "recipe", None), seen))
    known = {n: one for n, one in getattr(value, "__dict__", {}).items() if not n.startswith("_") and n != "training"}
    kept = tuple((n, one) for n, one in known.items() if isinstance(one, (*PLAIN, tuple)) or callable(one))
    layers = tuple(value._modules.items()) if isinstance(value, torch.nn.Module) else ()
    hooks = tuple(hook for name in HOOKS for hook in getattr(value, name, {}).values())
    told = (_class(type(value), seen), _told(kept, seen), _told(layers, seen))
    return (*told, _told(hooks, seen)) if hooks else told


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == OURS


@functools.cache
def _is_own(module: str | None) -> bool:
    """Return whether a module is of the person at the keyboard: no library, and not this package."""
    root = (module or "__main__").partition(".")[0]
    if root == "__main__":
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or getattr(sys.modules.get(module or ""), "__file__", None)
    libraries = {"site-packages", "dist-packages"} & set(Path(file).parts) if file else ()
    return root != OURS and root not in sys.stdlib_module_names and file is not None and not libraries
