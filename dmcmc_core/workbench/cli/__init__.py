"""The command line: ``python -m dmcmc_core VERB``, one verb for one job and one file for one verb.

``program`` reads the command and runs it; ``verb`` says what a verb is; every other file is a verb or its help.
A verb imports what it needs when it runs: sampling, training and evaluation do without the notebook packages.
Bad input ends with one sentence on stderr and status 2, a notebook that failed with status 1, an interruption with 130.
"""

# ruff: noqa: F401  the names are imported for those who import this package
from dmcmc_core.workbench.cli.program import VERBS, main
from dmcmc_core.workbench.cli.sample import settings
from dmcmc_core.workbench.cli.verb import PROGRAM, Parser, Verb
