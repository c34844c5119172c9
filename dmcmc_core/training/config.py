"""The YAML file of a training run: its keys for each kind of training, and how it is read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from dmcmc_core.checkpoints.configurations import read_mapping
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
    """Of Adam; rises over ``warmup`` steps, then falls as a cosine to 0 (kinds on pictures: stays)."""
    warmup: int = 200
    weight_decay: float = 0.0
    ema: float = 0.999
    """Decay of the averaged weights per step; smaller at first, (1 + step) / (10 + step); 0 averages nothing."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it as it is."""
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
class DiscreteConfig(Config):
    """A run of DDPM on a data set; times are uniform."""

    beta_min: float = 1e-4
    beta_max: float = 0.02
    times: int = 1000
    predicts: str = "epsilon"
    """What the network answers with, of :data:`dmcmc_core.training.discrete.TARGETS`."""
    init: str = ""
    """A network to begin from, a file in the folder of the result, as far as names and shapes are the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevelConfig(Config):
    """A run that minimises the cross-entropy over noise levels, uniform over their classes."""

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    architecture: str = "light"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """A run that minimises the cross-entropy over classes, or the errors of all attributes of glyphs."""

    init: str = ""
    """As of :class:`DiscreteConfig`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PicturesConfig(Config):
    """A run on one picture or a few, which are looked for again in its samples while it goes on."""

    data: str = ""
    """Not of these runs: ``pictures`` says what they train on."""
    pictures: str
    """Name of a set of :mod:`dmcmc_core.data.pictures`."""
    images: int = 1
    """How many of the set."""
    size: int = 32
    """Pixels of a side."""
    picture_seed: int = 0
    """Which of the set, where it draws; apart from ``seed``, so that seeds are compared on the same pictures."""
    batch: int = 20
    warmup: int = 0
    """Steps over which the rate rises from 0, see :func:`dmcmc_core.training.loop.rise`; 0 for none."""
    ema: float = 0.0
    clip: float = 0.0
    log_every: int = 7
    """No factor of ``images``, as pictures take turns and each has to be logged."""
    device: str = "cpu"
    start: str = "unconditional"
    """What samples begin from: noise, or with ``conditional`` the picture itself and noise."""
    weight: float = 0.6
    """Of the picture in a conditional start."""
    profile_every: float = 5.0
    """Seconds of training between the samples of a profile."""
    profile_steps: int = 0
    """Optimiser steps between them instead, for runs that are compared step by step or on other machines; 0 for none.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedConfig(PicturesConfig):
    """A run of score embedding (Na, Gao & Wan, arXiv 2404.06661); each step is on one picture, in turn."""

    lr: float = 1e-4
    sigma: float = 5.0
    """Of the diffusion dx = sigma^t dW."""
    times: int = 20
    """N, of the solve and the embedding."""
    tol: float = 2e-8
    """Relative change of the field at which the solve ends."""
    dh: float = 1.0
    """Distance of two pixels in the solve."""
    mode: str = "as_published"
    """Of :func:`dmcmc_core.score_embedding.solve`; ``none`` is plain denoising score matching."""
    density: str = "gaussian"
    """Of :func:`dmcmc_core.score_embedding.initial_field`."""
    time_embedding: str = "linear"
    """``linear`` or ``fourier``: the network takes the time as it is in every feature, or in waves."""
    multiplier: float = 1.0
    """Of the network's time, see :func:`dmcmc_core.score_embedding.network_time`."""
    released: bool = True
    """Whether training gives the network the times of the released code, which are not those of sampling."""
    matched_start: bool = False
    """Whether an unconditional start has the noise of t = 1 instead of unit noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig(PicturesConfig):
    """A run that score embedding is compared with: DDPM or DDIM with linear betas, see ``score_embedding.ddpm``."""

    lr: float = 2e-4
    warmup: int = 5000
    ema: float = 0.9999
    clip: float = 1.0
    beta_min: float = 1e-4
    beta_max: float = 0.02
    times: int = 1000
    """Of the diffusion and its samplers."""
    weight: float = 0.3


CONFIGS: dict[str, type[Config]] = {
    "score": ScoreConfig,
    "epsilon": EpsilonConfig,
    "discrete": DiscreteConfig,
    "noise-level": NoiseLevelConfig,
    "features": FeaturesConfig,
    "embedded": EmbeddedConfig,
    "ddpm": DiffusionConfig,
    "ddim": DiffusionConfig,
}
ON_PICTURES = tuple(kind for kind, made in CONFIGS.items() if issubclass(made, PicturesConfig))
"""Kinds of training on one picture or a few, which can be profiled and reported."""


def read_config(kind: str, path: str | Path) -> Config:
    """Return the config in the YAML file of a run.

    Raises:
        UserError: for an unknown kind or key (naming the nearest), a missing one, or a value of the wrong type.
    """
    if kind not in CONFIGS:
        raise unknown("kind of training", kind, CONFIGS)
    return make_config(kind, read_mapping(path, f"the training config {path}"))


def make_config(kind: str, given: dict) -> Config:
    """Return the config of a run from a dict, checked as :func:`read_config` does."""
    fields = {field.name: field for field in dataclasses.fields(CONFIGS[kind])}
    for key, value in given.items():
        if key not in fields:
            raise unknown(f"key in the {kind} config", key, fields)
        wanted = {"str": str, "int": int, "float": (int, float), "dict": dict, "bool": bool}[fields[key].type]
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise UserError(f"{key} in the {kind} config must be {fields[key].type}, not {value!r}")
    missing = [name for name, field in fields.items() if _required(field) and name not in given]
    if missing:
        raise UserError(f"the {kind} config lacks {' and '.join(missing)}")
    for key in ("steps", "batch", "log_every", "threads"):
        if given.get(key, 1) < 1:
            raise UserError(f"{key} in the {kind} config must be at least 1, not {given[key]}")
    return CONFIGS[kind](**given)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
