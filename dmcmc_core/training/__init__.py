"""Training: one resumable loop, and three things to train with it: score networks, noise-level classifiers, features.

A run is a YAML file. It leaves NAME.safetensors (the averaged weights and their card) and NAME.log (JSON lines), and
while it goes on NAME.state, from which it continues bit for bit after any interruption.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.data import digits, glyphs32, open_images
from dmcmc_core.denoiser import like
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.linear_sde import make_sde
from dmcmc_core.nets.classifiers import DigitsCNN, GlyphsCNN
from dmcmc_core.nets.linear import EpsilonNet
from dmcmc_core.nets.noise_level_classifier import LightClassifier, PublishedClassifier, cross_entropy
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.song import begin
from dmcmc_core.nets.unet import DenoisingUNet
from dmcmc_core.noise_level import log_levels
from dmcmc_core.training.trackers import tracking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What every training run needs to know; the keys of its YAML file."""

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
    """Denoising score matching; noise levels lognormal, a part log-uniform over the whole range."""

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
    """Score matching for a linear diffusion; times uniform, a part of them uniform in log t."""

    sde: dict = dataclasses.field(default_factory=dict)
    """Not to be left out: ``name`` of :data:`dmcmc_core.linear_sde.DIFFUSIONS`, and its constants."""
    predicts: str = "data"
    """What the network answers with, see :class:`dmcmc_core.nets.linear.EpsilonNet`; ``mixed`` is CLD's mixed score."""
    t_min: float = 1e-5
    p_log: float = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevelConfig(Config):
    """Cross-entropy over noise levels, uniform over their classes."""

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    architecture: str = "light"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """Cross-entropy over the classes of the data."""


CONFIGS: dict[str, type[Config]] = {
    "score": ScoreConfig,
    "epsilon": EpsilonConfig,
    "noise-level": NoiseLevelConfig,
    "features": FeaturesConfig,
}


class Task(NamedTuple):
    """What the loop trains."""

    module: nn.Module
    loss: Callable[[nn.Module], Tensor]
    """Draws a batch and returns its loss; all randomness from torch's global generator."""
    measure: Callable[[nn.Module], dict[str, float]]
    """Numbers for the log; uses no global randomness."""
    card: dict


def read_config(kind: str, path: str | Path) -> Config:
    """The YAML file of a run.

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
    """The config of a run from a dict; checked as :func:`read_config` says."""
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


def train(
    kind: str,
    config_path: str | Path,
    out_dir: str | Path | None = None,
    progress: bool = True,
    track: Sequence[str] = (),
) -> Path:
    """Run or continue the training that a YAML file describes.

    Args:
        kind: ``score``, ``epsilon``, ``noise-level`` or ``features``.
        config_path: the YAML file.
        out_dir: where the files go; by default beside the config.
        progress: whether to show a bar with rate and remaining time on stderr.
        track: of :data:`dmcmc_core.training.trackers.TRACKERS`, which get the numbers of the log as well, in
            ``out_dir``.

    Returns:
        The path of the finished NAME.safetensors.

    Raises:
        UserError: for a bad config, or a state that belongs to another config.
        KeyboardInterrupt: after Ctrl-C, once the state is saved; the same command continues.
    """
    runs = {
        "score": train_score,
        "epsilon": train_epsilon,
        "noise-level": train_noise_level,
        "features": train_features,
    }
    config = read_config(kind, config_path)
    with _threads(config.threads):  # the statistics of the data too: sums of other threads differ in the last digit
        return runs[kind](config, Path(out_dir) if out_dir is not None else Path(config_path).parent, progress, track)


def train_score(config: ScoreConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """A denoiser by score matching: min E |D(x0 + sigma z, sigma) - x0|^2 / c_out^2 (Karras et al. 2022, eq. 8)."""
    train_set, test_set = _data(config)
    mean = train_set.images.mean(0)
    sigma_data = float((train_set.images - mean).square().mean().sqrt())
    augment = Augmentation(**_checked(config.augment, Augmentation))

    def make() -> nn.Module:
        labels = len(augment.labels) if augment.probability else 0
        net = score_net(train_set.images.shape[1:], sigma_data, augment=labels, **config.net)
        if config.init:
            checkpoints.load_weights(net, out_dir / config.init)
        net.mean.copy_(mean)
        return net.to(memory_format=torch.channels_last)

    exact = EmpiricalData(train_set.images)

    def weighted(answer: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        return (weight * (answer - target).square().flatten(1).mean(1)).mean()

    def loss(net: nn.Module) -> Tensor:
        plain = _batch(train_set.images, config.batch)
        sigma = draw_sigma(config, config.batch)
        high = sigma > config.exact_above
        x0, labels = augment(plain)
        x0, labels = torch.where(like(high, x0) > 0, plain, x0), torch.where(high[:, None], 0.0, labels)
        x = x0 + like(sigma, x0) * torch.randn_like(x0)
        target = x0.clone()
        if high.any():
            target[high] = exact(x[high], sigma[high])
        return weighted(net(x, sigma, labels if augment.probability else None), target, sigma)

    fixed = [_fixed(config, images) for images in (test_set.images, train_set.images[: len(test_set.images)])]

    def measure(net: nn.Module) -> dict[str, float]:
        unseen, seen = (float(weighted(net(x0 + like(s, x0) * z, s), x0, s)) for x0, s, z in fixed)
        return {"held_out_loss": unseen, "train_loss": seen}

    card = {
        "data_range": [0.0, 1.0],
        "sigma_data": sigma_data,
        "sigma_min": config.sigma_min,
        "sigma_max": config.sigma_max,
    }
    return _fit("score", config, _task(config, make, loss, measure, card), out_dir, progress, track)


def score_net(shape: Sequence[int], sigma_data: float, augment: int = 0, kind: str = "unet", **net) -> nn.Module:
    """A denoiser to be trained, its buffer ``mean`` still to be filled.

    Args:
        shape: (C, H, W) of the images, whose root mean square about their mean is ``sigma_data``.
        augment: number of augmentation labels.
        kind: ``unet`` for :class:`dmcmc_core.nets.unet.DenoisingUNet`, or ``ncsnpp`` for NCSN++ as in the paper but
            for what ``net`` says, scaled as in Karras et al. 2022 (arXiv 2206.00364).
        net: further arguments of that class or of :class:`dmcmc_core.nets.song.UNet`.

    Raises:
        UserError: for an unknown kind, or for ``ncsnpp`` images that are not square or augmentation labels.
    """
    if kind == "unet":
        return DenoisingUNet(shape, sigma_data, augment=augment, **net)
    if kind != "ncsnpp":
        raise unknown("kind of net", kind, ("unet", "ncsnpp"))
    channels, height, width = shape
    if augment or height != width:
        raise UserError(f"net of kind 'ncsnpp' takes square images and no augment, not {height}x{width} with {augment}")
    published = {"waves": "fourier", "encoder": "residual", "taps": (1, 3, 3, 1)}
    sizes = {"size": height, "in_channels": channels, "out_channels": channels}
    made = ScaledUNet("edm", {"sigma_data": sigma_data}, {**sizes, **published, **net}, about_mean=True)
    begin(made.net)
    return made


def draw_sigma(config: ScoreConfig, n: int) -> Tensor:
    """(n,) noise levels: ln sigma ~ N(p_mean, p_std^2), with probability p_uniform uniform in [ln min, ln max]."""
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    uniform = low + (high - low) * torch.rand(n)
    normal = (config.p_mean + config.p_std * torch.randn(n)).clamp(low, high)
    return torch.where(torch.rand(n) < config.p_uniform, uniform, normal).exp()


def _fixed(config: ScoreConfig, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images twice, with noise levels and noise that are the same at every measurement."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x0 = images.repeat(2, 1, 1, 1)
        return x0, draw_sigma(config, len(x0)), torch.randn_like(x0)


def train_epsilon(config: EpsilonConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """epsilon of a linear diffusion: min E |answer - target|^2, images in [-1, 1].

    gDDIM (arXiv 2206.05564), eq. 5 where the network ``predicts: epsilon``; for ``data`` the target has unit variance
    at all times. Noise in the coordinates R; as the diffusion's covariance counts what is not known of the velocities
    at t = 0, this is the hybrid score matching of CLD.
    """
    if "name" not in config.sde:
        raise UserError("the epsilon config lacks sde: {name: CLD}, or BDM or VP, with its constants")
    sde = make_sde(**config.sde)  # a wrong one should not wait for the data
    train_set, test_set = _data(config)
    seen, unseen = (2 * part.images - 1 for part in (train_set, test_set))
    mean = seen.mean(0)
    sigma_data = float((seen - mean).square().mean().sqrt())
    augment = Augmentation(**_checked(config.augment, Augmentation))

    def make() -> nn.Module:
        labels = len(augment.labels) if augment.probability else 0
        net = EpsilonNet(seen.shape[1:], config.sde, sigma_data, config.predicts, augment=labels, **config.net)
        net.mean.copy_(mean)
        return net.to(memory_format=torch.channels_last)

    def draw_times(n: int) -> Tensor:
        uniform = config.t_min + (1 - config.t_min) * torch.rand(n, dtype=torch.float64)
        log = (math.log(config.t_min) * (1 - torch.rand(n, dtype=torch.float64))).exp()
        return torch.where(torch.rand(n) < config.p_log, log, uniform)

    def squared(net: nn.Module, x0: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        epsilon = torch.randn(len(x0), *net.state_shape)
        u, around = net.sde.forward(x0, t, epsilon), net.around(t)
        return (net.answer(around, u, t, labels) - net.target(around, u, x0, epsilon)).square().mean()

    def loss(net: nn.Module) -> Tensor:
        x0, labels = augment((_batch(seen, config.batch) + 1) / 2)
        t = draw_times(config.batch)
        return squared(net, 2 * x0 - 1, t, labels if augment.probability else None)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fixed = [images.repeat(2, 1, 1, 1) for images in (unseen, seen[: len(unseen)])]
        times = draw_times(len(fixed[0]))

    def measure(net: nn.Module) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            unseen_loss, seen_loss = (float(squared(net, x0, times)) for x0 in fixed)
        return {"held_out_loss": unseen_loss, "train_loss": seen_loss}

    card = {"data_range": [-1.0, 1.0], "sigma_data": sigma_data, "t_min": sde.t_min, "t_max": sde.t_max}
    return _fit("epsilon", config, _task(config, make, loss, measure, card), out_dir, progress, track)


def train_noise_level(
    config: NoiseLevelConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()
) -> Path:
    """A classifier of the noise level: min E -log q(level | x0 + sigma_level z), level uniform (Kim & Ye 2023)."""
    made = {"light": LightClassifier, "published": PublishedClassifier}
    if config.architecture not in made:
        raise unknown("noise-level architecture", config.architecture, made)
    train_set, test_set = _data(config)
    augment = Augmentation(**_checked(config.augment, Augmentation))
    shape, ends = list(train_set.images.shape[1:]), {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
    arguments = {"shape": shape, **(ends if config.architecture == "light" else {}), **config.net}
    sigmas = log_levels(config.sigma_max, config.sigma_min, config.net.get("n_levels", 1000)).float()

    def noisy(x0: Tensor) -> tuple[Tensor, Tensor]:
        level = torch.randint(len(sigmas), (len(x0),))
        return x0 + like(sigmas[level], x0) * torch.randn_like(x0), level

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unseen, seen = (noisy(_batch(images, 10_000)) for images in (test_set.images, train_set.images))

    def loss(net: nn.Module) -> Tensor:
        return cross_entropy(net, *noisy(augment(_batch(train_set.images, config.batch))[0]))

    def measure(net: nn.Module) -> dict[str, float]:
        return {"held_out_loss": float(cross_entropy(net, *unseen)), "train_loss": float(cross_entropy(net, *seen))}

    exact = _exact_cross_entropy(train_set.images, sigmas, *seen)
    card = {"data_range": [0.0, 1.0], **ends, "exact_posterior_train_loss": exact}
    task = _task(config, lambda: made[config.architecture](**arguments), loss, measure, card)
    return _fit("noise-level", config, task, out_dir, progress, track)


def _exact_cross_entropy(images: Tensor, sigmas: Tensor, x: Tensor, level: Tensor) -> float:
    """What the exact posterior of the training images themselves reaches on noisy ones of them, which is its entropy.

    No classifier does better on ``train_loss``; on images that were held out the bound is not known.
    """
    log_p = EmpiricalData(images).log_prob_levels(x, sigmas).log_softmax(1)
    return float(-log_p.gather(1, level[:, None]).mean())


def train_features(config: FeaturesConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = ()) -> Path:
    """A classifier of digits, or of 32x32 RGB images, whose features distances are measured in."""
    train_set, test_set = _data(config)
    augment = Augmentation(**_checked(config.augment, Augmentation))

    def loss(net: nn.Module) -> Tensor:
        index = torch.randint(len(train_set.images), (config.batch,))
        return F.cross_entropy(net.logits(augment(train_set.images[index])[0]), train_set.labels[index])

    def measure(net: nn.Module) -> dict[str, float]:
        logits = net.logits(test_set.images)
        accuracy = float((logits.argmax(1) == test_set.labels).float().mean())
        return {"held_out_loss": float(F.cross_entropy(logits, test_set.labels)), "held_out_accuracy": accuracy}

    made = DigitsCNN if config.data == "digits" else GlyphsCNN
    card = {"data_range": [0.0, 1.0], "sigma_min": 0.0, "sigma_max": 0.0}
    return _fit(
        "features", config, _task(config, lambda: made(**config.net), loss, measure, card), out_dir, progress, track
    )


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Small affine changes, each made with ``probability`` and reported as labels, which a network may take as input.

    A network that is told of them learns from the changed images without ever drawing changed ones: at sampling the
    labels are zero (Karras et al. 2022, Appendix F.2).
    """

    probability: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    labels = ("shift x", "shift y", "rotation", "scale x", "scale y", "shear")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] on black -> changed images, labels (B, 6) in [-1, 1]."""
        labels = torch.zeros(len(images), len(self.labels))
        if not self.probability:
            return images, labels
        labels = (2 * torch.rand_like(labels) - 1) * (torch.rand_like(labels) < self.probability)
        height, width = images.shape[2:]
        size = [2 * self.shift / width, 2 * self.shift / height, math.radians(self.rotate)]
        dx, dy, angle, sx, sy, shear = (labels * torch.tensor([*size, self.scale, self.scale, self.shear])).unbind(1)
        cos, sin, sx, sy = angle.cos(), angle.sin(), sx.exp(), sy.exp()
        rows = [sx * cos, sx * (shear - sin), dx, sy * sin, sy * (cos + shear * sin), dy]
        grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp(0, 1)
        untouched = (labels == 0).all(1)
        return torch.where(untouched[:, None, None, None], images, moved), labels


def _checked(given: dict, made: type) -> dict:
    names = [field.name for field in dataclasses.fields(made)]
    for key in given:
        if key not in names:
            raise unknown("key of augment", key, names)
    return given


def _batch(images: Tensor, n: int) -> Tensor:
    return images[torch.randint(len(images), (n,))]


class _Set(NamedTuple):
    images: Tensor
    labels: Tensor


def _data(config: Config) -> tuple[_Set, _Set]:
    """What is trained on, and what the log's held-out numbers are measured on."""
    if config.data == "digits":
        seen, unseen = (_Set(d.images, d.labels) for d in (digits("train"), digits("heldout")))
    elif config.data == "glyphs32":
        both = glyphs32(5000)
        seen, unseen = (_Set(both.images[part], both.labels[part]) for part in (slice(4000), slice(4000, None)))
    elif config.data == "glyphs32-others":  # for features: neither is compared with anything by them
        seen, unseen = (_Set(g.images, g.labels) for g in (glyphs32(12_000, seed=1), glyphs32(2000, seed=2)))
    elif config.data == "cifar10-train":
        sets = [open_images(name) for name in ("cifar10-train", "cifar10-test")]
        seen, unseen = (_Set(images[:], images.labels) for images in sets)
    else:
        raise unknown("data set", config.data, ("digits", "glyphs32", "glyphs32-others", "cifar10-train"))
    if config.validation:
        if not 0 < config.validation < len(seen.images):
            raise UserError(f"validation must be below the {len(seen.images)} training images, not {config.validation}")
        part = len(seen.images) - config.validation
        return _Set(seen.images[:part], seen.labels[:part]), _Set(seen.images[part:], seen.labels[part:])
    return seen, unseen


def _task(config: Config, make: Callable[[], nn.Module], loss, measure, card: dict) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return Task(make(), loss, measure, card)
        except TypeError as error:
            raise UserError(f"net in the config {config.name!r} does not make a network: {error}") from error


class _Run:
    """All that changes while a network is trained, and its way to disk and back."""

    def __init__(self, module: nn.Module, config: Config, described: dict) -> None:
        self.module, self.described = module.train(), described
        self.average = copy.deepcopy(module).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.step, self.rows, self.seconds = 0, [], 0.0

    def update(self, loss: Tensor, config: Config) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)

    def save(self, path: Path) -> None:
        nets = {name: getattr(self, name).state_dict() for name in ("module", "average", "optimizer")}
        facts = {name: getattr(self, name) for name in ("step", "rows", "seconds")}
        state = {"config": self.described, "rng": torch.get_rng_state(), **nets, **facts}
        _replace(path, lambda part: torch.save(state, part))

    def load(self, path: Path) -> None:
        state = _load_state(path, self.described)
        self.step, self.rows, self.seconds = state["step"], state["rows"], state["seconds"]
        for name in ("module", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])


def _fit(kind: str, config: Config, task: Task, out_dir: Path, progress: bool, track: Sequence[str]) -> Path:
    """The loop: Adam, warm-up and cosine, averaged weights, state on disk; returns the finished file."""
    from tqdm import tqdm

    out_dir.mkdir(parents=True, exist_ok=True)
    state_file, log_file, result = (out_dir / f"{config.name}.{end}" for end in ("state", "log", "safetensors"))
    described = {"kind": kind, **dataclasses.asdict(config)}
    run = _Run(task.module, config, described)
    with torch.random.fork_rng(devices=[]), _interrupts() as interrupted, contextlib.ExitStack() as opened:
        torch.manual_seed(config.seed)
        if state_file.is_file():
            run.load(state_file)
        tracker = opened.enter_context(tracking(track, out_dir, config.name, described, run.step + 1))
        clock = saved = time.monotonic()
        bar = tqdm(total=config.steps, initial=run.step, desc=config.name, unit="step", disable=not progress)
        while run.step < config.steps:
            loss = task.loss(run.module)
            run.update(loss, config)
            bar.update()
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            if run.step % config.log_every == 0 or run.step == config.steps:
                with torch.no_grad():
                    measured = task.measure(run.average)
                numbers = {"seconds": round(run.seconds, 1), "loss": loss.item(), **measured}
                run.rows.append({"step": run.step, **numbers})
                tracker.log(run.step, **numbers)
                _write_log(log_file, {"config": described, **task.card}, run.rows)
                bar.set_postfix(held_out=f"{measured['held_out_loss']:.4f}")
            if interrupted() or now - saved > config.save_every:
                run.save(state_file)
                saved = now
            if interrupted():
                bar.close()
                message = f"stopped at step {run.step} of {config.steps}; the same command continues from there"
                print(message, file=sys.stderr)
                raise KeyboardInterrupt
        bar.close()
    checkpoints.save(run.average, result, _card(kind, config, task, run.rows[-1]))
    state_file.unlink(missing_ok=True)
    return result


def learning_rate(config: Config, step: int) -> float:
    """Linear rise over ``warmup`` steps, then a half cosine down to 0 at ``steps``."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    return config.lr * rise * (1 + math.cos(math.pi * step / config.steps)) / 2


def _load_state(path: Path, described: dict) -> dict:
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as the state of a training run; delete it to start again") from error
    for key in described:
        if state["config"].get(key) != described[key]:
            raise UserError(
                f"{path} belongs to a run with {key} = {state['config'].get(key)!r}, not {described[key]!r}: "
                "restore the config to continue that run, or delete the state to start again"
            )
    return state


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Whole or not at all: write under another name, then rename."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


def _write_log(path: Path, facts: dict, rows: list[dict]) -> None:
    lines = [json.dumps(facts), *(json.dumps(row) for row in rows)]
    _replace(path, lambda part: part.write_text("\n".join(lines) + "\n"))


def _card(kind: str, config: Config, task: Task, last: dict) -> dict:
    return {
        "name": config.name,
        **task.card,
        "data": config.data,
        "seed": config.seed,
        "training": f"python -m dmcmc_core train {kind} --config {config.name}.yaml",
        "training_config": dataclasses.asdict(config),
        "last_log": last,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()},
    }


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag instead of breaking a step in the middle; a second one breaks at once."""
    seen = []

    def note(number, frame) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
