"""Reading a pickle as data: what it may name is listed, and nothing else is made of it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

from dmcmc_core.errors import UserError


class Unpickler(pickle._Unpickler):
    """An unpickler in Python: that in C makes room for all that a file claims to have, and sets attributes of anything.

    What is read is in few and large pieces, so that it takes no longer. Subclasses say what may be named and built.
    """

    allowed: Mapping[tuple[str, str], Any] = {}
    """(module, name) in the pickle -> what that is here."""
    dispatch = dict(pickle._Unpickler.dispatch)

    def build(self, made: Any, state: Any) -> None:
        """Give an object its state; UserError for one of a type that no sound file changes."""
        raise UserError(f"it changes a {type(made).__name__}, which no checkpoint does")

    def load_build(self) -> None:
        """Do what the pickle says of the state of an object."""
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def load_bytearray8(self) -> None:
        """Refuse bytes that can be changed."""
        raise UserError("it holds bytes that can be changed, which no checkpoint does")

    dispatch |= {pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the pickle."""
        try:
            return self.allowed[module, name]
        except KeyError:
            raise UserError(f"it names {module}.{name}, which no checkpoint needs: it was not executed"[:300]) from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what is not in the pickle itself."""
        raise UserError("it refers to objects outside itself")
