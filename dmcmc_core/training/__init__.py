"""Training: one resumable loop, and what is trained with it: denoisers, networks of linear diffusions, classifiers.

A run is a YAML file, see :mod:`dmcmc_core.training.config`; :mod:`dmcmc_core.training.loop` says what it leaves. A name
is imported when it is asked for: configs and trackers are then had without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmcmc_core.training.augmentation import Augmentation
    from dmcmc_core.training.classifiers import train_features
    from dmcmc_core.training.config import (
        CONFIGS,
        ON_PICTURES,
        Config,
        DiffusionConfig,
        DiscreteConfig,
        EmbeddedConfig,
        EpsilonConfig,
        FeaturesConfig,
        NoiseLevelConfig,
        PicturesConfig,
        ScoreConfig,
        make_config,
        read_config,
    )
    from dmcmc_core.training.diffusion import train_ddim, train_ddpm
    from dmcmc_core.training.discrete import train_discrete
    from dmcmc_core.training.embedded import train_embedded
    from dmcmc_core.training.epsilon import train_epsilon
    from dmcmc_core.training.kinds import train
    from dmcmc_core.training.loop import Task, learning_rate, rise
    from dmcmc_core.training.noise_level_classifier import train_noise_level
    from dmcmc_core.training.score import draw_sigma, score_net, train_score
    from dmcmc_core.training.trackers import tracking

__all__ = [
    "CONFIGS",
    "ON_PICTURES",
    "Augmentation",
    "Config",
    "DiffusionConfig",
    "DiscreteConfig",
    "EmbeddedConfig",
    "EpsilonConfig",
    "FeaturesConfig",
    "NoiseLevelConfig",
    "PicturesConfig",
    "ScoreConfig",
    "Task",
    "draw_sigma",
    "learning_rate",
    "make_config",
    "read_config",
    "rise",
    "score_net",
    "tracking",
    "train",
    "train_ddim",
    "train_ddpm",
    "train_discrete",
    "train_embedded",
    "train_epsilon",
    "train_features",
    "train_noise_level",
    "train_score",
]
_CONFIG = (
    *("CONFIGS", "ON_PICTURES", "Config", "DiffusionConfig", "EmbeddedConfig", "EpsilonConfig", "FeaturesConfig"),
    *("DiscreteConfig", "NoiseLevelConfig", "PicturesConfig", "ScoreConfig"),
    *("make_config", "read_config"),
)


def __getattr__(name: str) -> Any:
    """Import the module that a name of this package is of."""
    if name in _CONFIG:
        from dmcmc_core.training import config as module
    elif name == "Augmentation":
        from dmcmc_core.training import augmentation as module
    elif name in ("train", "train_ddim", "train_ddpm", "train_discrete", "train_embedded"):
        from dmcmc_core.training import kinds as module
    elif name in ("Task", "learning_rate", "rise"):
        from dmcmc_core.training import loop as module
    elif name in ("draw_sigma", "score_net", "train_score"):
        from dmcmc_core.training import score as module
    elif name == "train_epsilon":
        from dmcmc_core.training import epsilon as module
    elif name == "train_noise_level":
        from dmcmc_core.training import noise_level_classifier as module
    elif name == "train_features":
        from dmcmc_core.training import classifiers as module
    elif name == "tracking":
        from dmcmc_core.training import trackers as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
