"""A verb: its arguments, its help and the function that does it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from dmcmc_core.errors import UserError

PROGRAM = "python -m dmcmc_core"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, like all others, and whose help is only made when asked for."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        """Return the help with what ``more`` adds to it."""
        return super().format_help() + (f"{self.more()}\n" if self.more else "")

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of ending the process."""
        raise UserError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        function: takes the parsed arguments and returns the exit status.
        arguments: adds the verb's arguments to a parser.
        description: the text above the arguments; the verb's line in the list of verbs where empty.
        example: the text below the arguments.
        more: returns text that ends the help; it is only called when help is asked for.
        elsewhere: arguments of other programs, such as ``--steps`` -> what they are called here.
    """

    function: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None]
    description: str = ""
    example: str = ""
    more: Callable[[], str] | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def check(self, words: Sequence[str]) -> None:
        """Raise UserError for an argument that has another name here."""
        for word in words:
            name = word.partition("=")[0].replace("_", "-")
            if name in self.elsewhere:
                raise UserError(f"{word.partition('=')[0]} is no argument here: use {self.elsewhere[name]}")
