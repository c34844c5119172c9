"""The command line: ``python -m dmcmc_core VERB``, one verb for one job and one file for one verb.

:data:`VERBS` lists them. Only the file of the verb that is asked for is imported, and a verb imports what it needs when
it runs: sampling, training and evaluation do without the notebook packages. Bad input ends with one sentence on stderr
and status 2, a notebook that failed with status 1, an interruption with 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.cli.verb import PROGRAM, Parser, Verb

VERBS = {
    "reproduce": "run the notebooks that have not run yet and fill figures/",
    "export": "write the list of items as a Snakefile, for other machines and their queues",
    "sample": "draw images from a model with a sampler",
    "fit": "fit a solver to a network: better images from few calls",
    "evaluate": "compare images with a reference",
    "compare": "samplers of one model side by side: which is better, by how much, and how sure that is",
    "boundary": "fit a boundary between images of two kinds, and edit images across it",
    "convert": "make a safetensors file of a checkpoint of another project",
    "models": "what models are known, which are here, and where each missing file goes and comes from",
    "train": "train a score net, epsilon of a linear diffusion, a classifier, or nets of a few pictures to compare",
    "doctor": "what is here, what is missing, and what each missing thing costs",
    "publish": "copy the figures and tables of finished runs into figures/published, which is committed",
    "docs": "rewrite the tables of docs/ from the newest runs and from figures/published",
    "run-one": "",
}
"""Every verb with its line in the help, in that order; one without is for engines and not shown."""


def load(name: str) -> Verb:
    """Return what a verb takes and does, from a file that is only imported here."""
    match name:
        case "reproduce" | "export" | "docs" | "run-one":
            from dmcmc_core.workbench.cli.reproduce import VERBS_OF_NOTEBOOKS

            return VERBS_OF_NOTEBOOKS[name]
        case "publish":
            from dmcmc_core.workbench.cli.publish import PUBLISH as found
        case "sample":
            from dmcmc_core.workbench.cli.sample import SAMPLE as found
        case "fit":
            from dmcmc_core.workbench.cli.fit import FIT as found
        case "evaluate":
            from dmcmc_core.workbench.cli.evaluate import EVALUATE as found
        case "compare":
            from dmcmc_core.workbench.cli.compare import COMPARE as found
        case "boundary":
            from dmcmc_core.workbench.cli.boundary import BOUNDARY as found
        case "convert":
            from dmcmc_core.workbench.cli.convert import CONVERT as found
        case "models":
            from dmcmc_core.workbench.cli.models import MODELS as found
        case "train":
            from dmcmc_core.workbench.cli.train import TRAIN as found
        case "doctor":
            from dmcmc_core.workbench.cli.doctor import DOCTOR as found
        case _:
            raise unknown("verb", name, (shown for shown, line in VERBS.items() if line))
    return found


CONTINUE = {
    "compare": "finished runs are kept: the same command goes on from here",
    "evaluate": "finished features are kept: the same command goes on from here",
    "fit": "finished parts are kept: the same command goes on from here",
    "reproduce": "finished items are kept: the same command goes on from here",
    "sample": "finished shards are kept: the same command goes on from here",
    "train": "the last saved state is kept: the same command goes on from there",
}
"""What an interrupted verb has kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and not words[0].startswith("-"):
            load(words[0]).check(words[1:])  # an unknown one is answered before its arguments are read
        arguments = parser(words).parse_args(words)
        return load(arguments.verb).function(arguments)
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


class Version(argparse.Action):
    """Print the package's version, asked for only then, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import dmcmc_core

        print(f"dmcmc-core {dmcmc_core.__version__}")
        parser.exit()


def parser(words: Sequence[str]) -> Parser:
    """Return the parser of a command; only verbs among its words know their arguments."""
    top = Parser(
        prog=PROGRAM,
        description="Good images from few network evaluations of score-based diffusion models, without retraining.",
        epilog=f"Help on a verb: {PROGRAM} VERB --help",
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version and end")
    shown = "{" + ",".join(name for name, line in VERBS.items() if line) + "}"
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs", help=shown)
    for name, line in VERBS.items():
        sub = verbs.add_parser(
            name, formatter_class=argparse.RawDescriptionHelpFormatter, **({"help": line} if line else {})
        )
        if name in words:
            asked = load(name)
            sub.description, sub.epilog, sub.more = asked.description or line, asked.example, asked.more
            asked.arguments(sub)
    return top
