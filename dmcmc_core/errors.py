"""Errors for the person at the keyboard: one sentence with the argument, its value and what would be right."""

from __future__ import annotations

import difflib
import logging
import math
import numbers
import os
import re
import reprlib
from collections.abc import Iterable
from typing import Any

LOG = logging.getLogger("dmcmc_core")
"""What a person should know that is no error: whole sentences on stderr, unless a program sends them elsewhere."""
LOG.propagate = False
if logging.lastResort:
    LOG.addHandler(logging.lastResort)


class UserError(ValueError):
    """Input that cannot be used as given. The command line prints its message alone and exits with status 2."""


class Absent(UserError):
    """A name or a file that is not there, as opposed to one that cannot be used."""


class TooFew(UserError):
    """A budget that a sampler cannot keep to."""


MANY = 40
"""Names of a kind that are all told to who misses one."""


def unknown(
    kind: str, name: object, choices: Iterable[str], guess: bool = True, nearest: str | None = None
) -> UserError:
    """Return the error for a name that is not among ``choices``, with the one that it is a slip of the pen for.

    That is the most alike of those with the same first letter, an ending that all share left out: ``flow_prediction``
    is no ``v_prediction`` misspelt.

    Args:
        guess: False for a name that is known to be no slip of the pen.
        nearest: the choice that is nearest in meaning, where that is known: the one that is named then.
    """
    choices = sorted(choices)
    ending = os.path.commonprefix([choice[::-1] for choice in choices])[::-1] if len(choices) > 1 else ""
    ending = ending if str(name).endswith(ending) else ""
    own, *others = (text.removesuffix(ending).casefold() for text in (str(name), *choices))
    alike = {other: choice for other, choice in zip(others, choices, strict=True) if other[:1] == own[:1]}
    near = difflib.get_close_matches(own, alike, n=1, cutoff=0.65) if guess else []
    hint = f"the nearest here is {nearest!r}; " if nearest else f"did you mean {alike[near[0]]!r}? " if near else ""
    shown = repr(name) if isinstance(name, str) else reprlib.repr(name)
    known = choices if len(choices) <= MANY else [*choices[: MANY // 2], f"{len(choices) - MANY // 2} more"]
    return UserError(f"unknown {kind} {shown}: {hint}known are {', '.join(known)}")


def sentence(error: BaseException, most: int = 200) -> str:
    """Return what a library says, in its first line; the kind of error where it says nothing.

    Of torch's advice on pickles, which ends in how to execute them, only the forbidden name is passed on.
    """
    if "weights_only" in str(error):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it names {named[1]}" if named else "it is no sound pickle"
    if isinstance(error, EOFError):
        return "it ends too early"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.split(r"(?<=[a-z])\. ", line)[0][:most]  # what follows is advice


def native(value: Any) -> Any:
    """Return a number of NumPy as Python's, which JSON has as well; all else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def is_number(value: Any, whole: bool = False) -> bool:
    """Tell whether a value is a real number (or a ``whole`` one), NaN and infinity included; a truth value is none."""
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def number(
    argument: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    finite: bool = True,
) -> Any:
    """Return the value, NumPy's as Python's, if it is a number within these bounds; text, truth values, NaN are none.

    Raises:
        UserError: names the argument, its bounds and the value.
    """
    value = native(value)
    if (
        is_number(value, whole)
        and (math.isfinite(value) or (not finite and value == math.inf))
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return value
    words = (("at least", least), ("above", above), ("at most", most), ("below", below))
    bounds = " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
    kind = "whole number" if whole else "finite number" if finite else "number"
    raise UserError(f"{argument} must be a {kind}, {bounds + ', ' if bounds else ''}not {value!r:.200}")


def one_of(argument: str, value: Any, *choices: Any) -> Any:
    """Return the value if it is one of ``choices``; UserError if not."""
    if value not in choices:
        raise UserError(f"{argument} must be one of {', '.join(map(repr, choices))}, not {value!r:.200}")
    return value


def switch(argument: str, value: Any) -> bool:
    """Return the value if it is true or false; text such as ``"False"``, which Python takes for true, is neither."""
    if not isinstance(value, bool):
        raise UserError(f"{argument} must be true or false, not {value!r:.40}")
    return value


def all_finite(tensor: Any) -> bool:
    """Tell whether a tensor has neither NaN nor infinity; a sum is quick, and huge numbers may exceed it."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def check_whole(argument: str, value: Any, least: int, most: int) -> None:
    """Raise UserError unless a value is a whole number from ``least`` to ``most``; it may come from a file."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{argument} must be a whole number from {least} to {most}, not {value!r:.40}")
