"""The YAML file of a training run: its keys for each kind of training, and how it is read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from dmcmc_core.errors import UserError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What every training run takes; the keys of its YAML file."""

    name: str
    data: str = "digits"
    validation: int = 0
    """Training images kept aside to choose settings with; 0 trains on all, the log then shows the held-out loss."""
    net: dict = dataclasses.field(default_factory=dict)
    """Arguments of the architecture."""
    augment: dict = dataclasses.field(default_factory=dict)
    """Largest ``shift`` (pixels), ``rotate`` (degrees), ``scale`` (log), ``shear``; and ``probability`` of each."""
    steps: int
    batch: int = 128
    lr: float = 1e-3
    """Of Adam; rises over ``warmup`` steps, then falls as a cosine to 0."""
    warmup: int = 200
    weight_decay: float = 0.0
    ema: float = 0.999
    """Decay of the averaged weights per step; smaller at first, (1 + step) / (10 + step)."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    threads: int = 1
    """Part of the recipe: other numbers of threads add up in other orders."""
    log_every: int = 500
    save_every: float = 30.0
    """Seconds between states on disk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """A run of denoising score matching; noise levels are lognormal, a part log-uniform over the whole range."""

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    p_mean: float = -1.6
    p_std: float = 1.2
    p_uniform: float = 0.3
    init: str = ""
    """A network of the same architecture to begin from, a file in the folder of the result; empty: random weights."""
    exact_above: float = math.inf
    """At noise levels above it the target is not the image drawn but the exact E[x0 | x, sigma] of the training images:
    the same minimum without the variance of the draw (Xu et al. 2023, arXiv 2302.00670). Nothing is augmented there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpsilonConfig(Config):
    """A run of score matching for a linear diffusion; times are uniform, a part of them uniform in log t."""

    sde: dict = dataclasses.field(default_factory=dict)
    """Not to be left out: ``name`` of :data:`dmcmc_core.linear_sde.DIFFUSIONS`, and its constants."""
    predicts: str = "data"
    """What the network answers with, see :class:`dmcmc_core.nets.linear.EpsilonNet`; ``mixed`` is CLD's mixed score."""
    t_min: float = 1e-5
    p_log: float = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevelConfig(Config):
    """A run that minimises the cross-entropy over noise levels, uniform over their classes."""

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    architecture: str = "light"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """A run that minimises the cross-entropy over the classes of the data."""


CONFIGS: dict[str, type[Config]] = {
    "score": ScoreConfig,
    "epsilon": EpsilonConfig,
    "noise-level": NoiseLevelConfig,
    "features": FeaturesConfig,
}


def read_config(kind: str, path: str | Path) -> Config:
    """Return the config in the YAML file of a run.

    Raises:
        UserError: for an unknown kind or key (naming the nearest), a missing one, or a value of the wrong type.
    """
    import yaml

    if kind not in CONFIGS:
        raise unknown("kind of training", kind, CONFIGS)
    try:
        given = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"the training config {path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"the training config {path} must hold a mapping of names to values")
    return make_config(kind, given)


def make_config(kind: str, given: dict) -> Config:
    """Return the config of a run from a dict, checked as :func:`read_config` does."""
    fields = {field.name: field for field in dataclasses.fields(CONFIGS[kind])}
    for key, value in given.items():
        if key not in fields:
            raise unknown(f"key in the {kind} config", key, fields)
        wanted = {"str": str, "int": int, "float": (int, float), "dict": dict}[fields[key].type]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise UserError(f"{key} in the {kind} config must be {fields[key].type}, not {value!r}")
    missing = [name for name in ("name", "steps") if name not in given]
    if missing:
        raise UserError(f"the {kind} config lacks {' and '.join(missing)}")
    for key in ("steps", "batch", "log_every", "threads"):
        if given.get(key, 1) < 1:
            raise UserError(f"{key} in the {kind} config must be at least 1, not {given[key]}")
    return CONFIGS[kind](**given)
