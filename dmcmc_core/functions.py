"""What a Python function reads beside its arguments: its closure, its defaults, and the globals that it names."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any


def reads(function: Any) -> tuple[Any, ...]:
    """Return all of them, in an order that is the same in every process; nothing for what has no code."""
    defaults = getattr(function, "__defaults__", None) or ()
    keywords = getattr(function, "__kwdefaults__", None) or {}
    return (*closure(function), *named_globals(function), *defaults, *keywords.values())


def closure(function: Any) -> Iterator[Any]:
    """Yield what a closure holds; a cell may still be empty."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue


def named_globals(function: Any) -> Iterator[Any]:
    """Yield the globals that a function's code names, and that of the functions inside it."""
    code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    yield from (known[name] for name in sorted(set(_names(code))) if name in known)


def _names(code: types.CodeType | None) -> Iterator[str]:
    if code is not None:
        yield from code.co_names
        for inner in code.co_consts:
            yield from _names(inner) if isinstance(inner, types.CodeType) else ()
