"""``train``: a score net, epsilon of a linear diffusion, a noise-level classifier or features."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.cli.track import track_argument
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb

KINDS = ("score", "epsilon", "noise-level", "features")


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``."""
    p.add_argument("kind", metavar="KIND", help=" or ".join(KINDS))
    p.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of the run; see exp/nets/")
    track_argument(p, [], "the numbers that NAME.log has anyway, beside it as well")


def train(a: argparse.Namespace) -> int:
    """Train, or go on with a training, as the file says."""
    if a.kind not in KINDS:
        raise unknown("kind of training", a.kind, KINDS)
    if not a.config.is_file():
        raise UserError(f"--config {a.config} is not a file")
    from dmcmc_core import training

    training.train(a.kind, a.config, track=a.track)
    return 0


TRAIN = Verb(
    train,
    arguments,
    "Train what ships in exp/nets, or your own. An interrupted training goes on from its last saved state.",
    f"example:\n  {PROGRAM} train score --config exp/nets/digits.yaml",
)
