"""Score embedding: denoising score matching around pictures that are shifted along a score solved for before.

Na, Gao & Wan 2024 (arXiv 2404.06661), with :mod:`dmcmc_core.score_embedding`. It leaves NAME.fields.safetensors (the
field ``m`` and its ``score`` (n, N, C, H, H), the times ``t`` (N,), the ``passes`` (n,) of the solve, and the
``images`` (n, C, H, H) that they are of) beside what every run on pictures leaves.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core import score_embedding
from dmcmc_core.checkpoints import safetensors
from dmcmc_core.errors import number, one_of
from dmcmc_core.files import replacing
from dmcmc_core.score_embedding.density import DENSITIES
from dmcmc_core.score_embedding.diffusion import EPSILON, check_sigma, std
from dmcmc_core.score_embedding.fokker_planck import MODES
from dmcmc_core.score_embedding.objective import EMBEDDINGS
from dmcmc_core.streams import Streams
from dmcmc_core.training.config import EmbeddedConfig
from dmcmc_core.training.loop import continues, fit, make_task, rise
from dmcmc_core.training.pictures import make_net, raw, training_pictures
from dmcmc_core.training.profile import Draw, Drawn, profiler

WAVES = {"linear": "constant", "fourier": "positional"}
"""Time embedding of the published configurations -> ``waves`` of :class:`dmcmc_core.nets.song.UNet`."""
SOLVE = ("sigma", "times", "tol", "dh", "mode", "density", "seed")
"""Keys of the config that the fields depend on, beside the pictures."""


def train_embedded(
    config: EmbeddedConfig, out_dir: Path, progress: bool = True, track: Sequence[str] = (), profile: bool = False
) -> Path:
    """Train a score network of pictures: each step on one of them in turn, noised about its shifted self.

    Args:
        config: of the run.
        out_dir: of its files.
        progress: whether to show a bar.
        track: trackers, see :mod:`dmcmc_core.training.trackers`.
        profile: whether to draw samples while it goes on, see :mod:`dmcmc_core.training.profile`.

    Raises:
        UserError: for a value out of its range, before anything is written.
    """
    check_sigma(config.sigma)
    number("times", config.times, least=2, whole=True)
    one_of("time_embedding", config.time_embedding, *EMBEDDINGS)
    one_of("mode", config.mode, *MODES)
    one_of("density", config.density, *DENSITIES)
    images = training_pictures(config)
    n = len(images)
    own = {"base": config.sigma, "embedding": config.time_embedding, "multiplier": config.multiplier}

    def make() -> nn.Module:
        waves = WAVES[config.time_embedding]
        return make_net(config, images, "score_embedding", {**own, "images": n}, waves=waves)

    def loss(net: nn.Module, step: int) -> Tensor:
        turn = step % n
        batch = score_embedding.draw_batch(images[turn], score[turn], config.batch, sigma=config.sigma)
        batch = score_embedding.Batch(*(part.to(config.device) for part in batch))
        how = {"embedding": config.time_embedding, "multiplier": config.multiplier, "released": config.released}
        t = score_embedding.network_time(batch.tau, turn, n, sampling=False, **how)
        return score_embedding.loss(raw(net, batch.x, t), batch, sigma=config.sigma)

    ends = {"sigma_min": float(std(torch.tensor(EPSILON), config.sigma))}
    ends["sigma_max"] = float(std(torch.ones(()), config.sigma))
    card = {"data": config.pictures, "data_range": [0.0, 1.0], **ends}
    task = make_task(config, make, loss, lambda _: {}, card, rate=rise)  # a wrong net should not wait for the solve
    score, facts = solved(config, images, out_dir)
    seconds = facts["density_seconds"] + facts["solve_seconds"]
    draw = sampler(config, images)
    between = profiler(config, images, draw, out_dir, profile, solve_seconds=seconds, turns=n)
    task = task._replace(card={**card, "solve": facts}, between=between)
    return fit("embedded", config, task, out_dir, progress, track)


def sampler(config: EmbeddedConfig, images: Tensor) -> Draw:
    """Return the published sampler of all pictures at once, in one step size."""
    numbers = torch.arange(len(images), device=config.device)
    how = {"embedding": config.time_embedding, "multiplier": config.multiplier}

    def draw(net: nn.Module, streams: Streams, frames: int) -> Drawn:
        def score(x: Tensor, t: Tensor) -> Tensor:
            return raw(net, x, score_embedding.network_time(t, numbers, len(images), sampling=True, **how))

        z = streams(images)
        if config.start == "conditional":
            x = score_embedding.conditional_start(images, z, config.sigma, config.weight)
        else:
            x = score_embedding.unconditional_start(z, config.sigma, config.matched_start)
        done = score_embedding.sample(score, x.to(config.device), sigma=config.sigma, frames=frames)
        return Drawn(done.samples, done.frames, done.nfev)

    return draw


def solved(config: EmbeddedConfig, images: Tensor, out_dir: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the score of each picture, (n, N, C, H, H) float64, and facts about its solve; write NAME.fields.

    A run that continues reads what it began with. The facts: ``density_seconds`` and ``solve_seconds``, and a list over
    the pictures of ``passes``, ``residuals`` and whether they ``converged``. Nothing is solved for ``mode: none``.
    """
    path = out_dir / f"{config.name}.fields.safetensors"
    recipe = {key: value for key, value in dataclasses.asdict(config).items() if key in SOLVE}
    if continues("embedded", config, out_dir) and path.is_file():
        card, tensors = safetensors.read_tensors(path)
        if card.get("recipe") == recipe and torch.equal(tensors.get("images", images[:0]), images):
            return tensors["score"], card["facts"]
    began = time.monotonic()
    if config.mode == "none":
        m0 = torch.zeros(images.shape, dtype=torch.float64)
    else:
        m0 = torch.stack([score_embedding.initial_field(image, config.density) for image in images])
    between = time.monotonic()
    how = {"sigma": config.sigma, "tol": config.tol, "dh": config.dh, "mode": config.mode, "seed": config.seed}
    fields = score_embedding.solve_many(m0, steps=config.times, **how)
    facts = {
        "density_seconds": between - began,
        "solve_seconds": time.monotonic() - between,
        "passes": [field.passes for field in fields],
        "residuals": [field.residuals.tolist() for field in fields],
        "converged": [bool(field.converged) for field in fields],
    }
    tensors = {name: torch.stack([getattr(field, name) for field in fields]) for name in ("m", "score")}
    tensors |= {"t": fields[0].t, "passes": torch.tensor(facts["passes"]), "images": images}
    with replacing(path) as part:
        _save(tensors, part, {"recipe": recipe, "facts": facts})
    return tensors["score"], facts


def _save(tensors: dict[str, Tensor], path: Path, card: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"card": json.dumps(card)})
    path.chmod(0o644)
