"""Errors for the person at the keyboard: one sentence with the argument, its value and what would be right."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used as given. The command line prints its message alone and exits with status 2."""


class TooFew(UserError):
    """A budget that a sampler cannot keep to."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among ``choices``, naming the nearest one that is."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = repr(name) if isinstance(name, str) else reprlib.repr(name)
    return UserError(f"unknown {kind} {shown}: {hint}known are {', '.join(choices)}")
