"""The kinds of training by name, and the run of one that a YAML file describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmcmc_core.errors import UserError
from dmcmc_core.training.classifiers import train_features
from dmcmc_core.training.config import ON_PICTURES, read_config
from dmcmc_core.training.diffusion import train_ddim, train_ddpm
from dmcmc_core.training.discrete import train_discrete
from dmcmc_core.training.embedded import train_embedded
from dmcmc_core.training.epsilon import train_epsilon
from dmcmc_core.training.loop import threads
from dmcmc_core.training.noise_level_classifier import train_noise_level
from dmcmc_core.training.score import train_score

KINDS = {
    "score": train_score,
    "epsilon": train_epsilon,
    "discrete": train_discrete,
    "noise-level": train_noise_level,
    "features": train_features,
    "embedded": train_embedded,
    "ddpm": train_ddpm,
    "ddim": train_ddim,
}
"""Kind of training -> what does it."""


def train(
    kind: str,
    config_path: str | Path,
    out_dir: str | Path | None = None,
    progress: bool = True,
    track: Sequence[str] = (),
    profile: bool = False,
) -> Path:
    """Run or continue the training that a YAML file describes.

    Args:
        kind: of :data:`KINDS`.
        config_path: the YAML file.
        out_dir: where the files go; by default beside the config.
        progress: whether to show a bar with rate and remaining time on stderr.
        track: of :data:`dmcmc_core.training.trackers.TRACKERS`, which get the numbers of the log as well, in
            ``out_dir``.
        profile: whether to draw samples while it goes on and compare them with the pictures; of
            :data:`dmcmc_core.training.config.ON_PICTURES`.

    Returns:
        The path of the finished NAME.safetensors.

    Raises:
        UserError: for a bad config, a state that belongs to another config, or a profile of another kind.
        KeyboardInterrupt: after Ctrl-C, once the state is saved; the same command continues.
    """
    config = read_config(kind, config_path)
    if profile and kind not in ON_PICTURES:
        raise UserError(f"a profile is of {', '.join(ON_PICTURES)}, which train on pictures, and not of {kind}")
    more = {"profile": True} if profile else {}
    folder = Path(out_dir) if out_dir is not None else Path(config_path).parent
    with threads(config.threads):  # the statistics of the data too: sums of other threads differ in the last digit
        return KINDS[kind](config, folder, progress, track, **more)
