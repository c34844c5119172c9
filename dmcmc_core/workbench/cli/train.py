"""``train``: a score net, epsilon of a linear diffusion, a noise-level classifier, features, or a few pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.training.config import ON_PICTURES
from dmcmc_core.workbench.cli.track import track_argument
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb

KINDS = ("score", "epsilon", "discrete", "noise-level", "features", *ON_PICTURES)


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``."""
    p.add_argument("kind", metavar="KIND", help=" or ".join(KINDS))
    p.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML file of the run; see exp/nets/ and exp/score_embedding/",
    )
    pictures = " or ".join(ON_PICTURES)
    p.add_argument(
        "--profile", action="store_true", help=f"compare samples with the pictures while it goes on ({pictures})"
    )
    p.add_argument(
        "--no-train", action="store_true", help=f"make the report again from what a training left ({pictures})"
    )
    track_argument(p, [], "the numbers that NAME.log has anyway, beside it as well")


def train(a: argparse.Namespace) -> int:
    """Train, or go on with a training, as the file says."""
    if a.kind not in KINDS:
        raise unknown("kind of training", a.kind, KINDS)
    if not a.config.is_file():
        raise UserError(f"--config {a.config} is not a file")
    from dmcmc_core import training

    if a.kind in ON_PICTURES:
        return _on_pictures(a)
    for option, given in (("--profile", a.profile), ("--no-train", a.no_train)):
        if given:
            raise UserError(f"{option} is for {', '.join(ON_PICTURES)}, which train on pictures, and not for {a.kind}")
    training.train(a.kind, a.config, track=a.track)
    return 0


def _on_pictures(a: argparse.Namespace) -> int:
    """Train, unless told not to, and write the report beside the config."""
    from dmcmc_core import training
    from dmcmc_core.report import training_report

    if not a.no_train:
        training.train(a.kind, a.config, track=a.track, profile=a.profile)
    config = training.read_config(a.kind, a.config)
    print(training_report.write(a.kind, config, a.config.parent, profile=a.profile))
    return 0


TRAIN = Verb(
    train,
    arguments,
    "Train what ships in exp/nets, or your own. An interrupted training goes on from its last saved state. Kinds on "
    "pictures leave a report, NAME.report.pdf.",
    f"examples:\n  {PROGRAM} train score --config exp/nets/digits.yaml\n"
    f"  {PROGRAM} train embedded --config exp/score_embedding/picture16.yaml --profile",
)
