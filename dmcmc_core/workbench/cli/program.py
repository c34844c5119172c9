"""The program: finds the verb in the command, runs it, and turns whatever ends it into an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.cli.convert import CONVERT
from dmcmc_core.workbench.cli.doctor import DOCTOR
from dmcmc_core.workbench.cli.evaluate import EVALUATE
from dmcmc_core.workbench.cli.models import MODELS
from dmcmc_core.workbench.cli.reproduce import EXPORT, README, REPRODUCE, RUN_ONE
from dmcmc_core.workbench.cli.sample import SAMPLE
from dmcmc_core.workbench.cli.train import TRAIN
from dmcmc_core.workbench.cli.verb import PROGRAM, Parser

VERBS = {
    "reproduce": REPRODUCE,
    "export": EXPORT,
    "sample": SAMPLE,
    "evaluate": EVALUATE,
    "convert": CONVERT,
    "models": MODELS,
    "train": TRAIN,
    "doctor": DOCTOR,
    "readme": README,
    "run-one": RUN_ONE,
}
"""Every verb by its name, in the order of the help."""

CONTINUE = {
    "evaluate": "finished features are kept: the same command goes on from here",
    "reproduce": "finished items are kept: the same command goes on from here",
    "sample": "finished shards are kept: the same command goes on from here",
    "train": "the last saved state is kept: the same command goes on from there",
}
"""What an interrupted verb has kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        verbs = parser(words)
        if words and not words[0].startswith("-") and words[0] not in VERBS:
            raise unknown("verb", words[0], (name for name, verb in VERBS.items() if verb.help))
        arguments = verbs.parse_args(words)
        return VERBS[arguments.verb].function(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has stopped: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a path that cannot be
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        rest = CONTINUE.get(words[0] if words else "", "nothing is left half-written")
        print(f"\ninterrupted: {rest}", file=sys.stderr)
        return 130


def parser(words: Sequence[str]) -> Parser:
    """Return the parser of a command; only verbs among its words get arguments, as some import a room for them."""
    top = Parser(
        prog=PROGRAM,
        description="Good images from few network evaluations of score-based diffusion models, without retraining.",
        epilog=f"Help on a verb: {PROGRAM} VERB --help",
    )
    shown = "{" + ",".join(name for name, verb in VERBS.items() if verb.help) + "}"
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs", help=shown)
    for name, verb in VERBS.items():
        options = {"help": verb.help} if verb.help else {}
        sub = verbs.add_parser(
            name,
            description=verb.description or verb.help,
            epilog=verb.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        sub.more = verb.more
        if name in words:
            verb.arguments(sub)
    return top
