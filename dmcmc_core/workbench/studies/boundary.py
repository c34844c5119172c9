"""Semantic control as a job: images of two kinds to a boundary, images across it, and when to edit.

What :mod:`dmcmc_core.boundary` does with tensors is done here with a model and sets of images, some rows at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import boundary
from dmcmc_core.boundary import Boundary
from dmcmc_core.data import Images, digits, glyphs32, load_images
from dmcmc_core.denoiser import BLOCK, Denoiser, InBlocks, Wrapper
from dmcmc_core.errors import UserError, number, one_of, unknown
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs.model import device_of
from dmcmc_core.streams import Streams

LEVELS = ("z", "h")
"""Where a boundary lies: in the pixels of a latent, or in the bottleneck of the network."""
LABELLED = {
    "digits-train": lambda: digits("train"),
    "digits-heldout": lambda: digits("heldout"),
    "glyphs32": lambda: _glyphs(0, 4000),
    "glyphs32-heldout": lambda: _glyphs(4000, 5000),
}
"""Sets whose images are known: their classes, and glyphs by every attribute.

Glyphs have two more by the luma of their colours: ``ink``, light or dark on its ground, and ``ground``, bright or dark.
"""
LUMA = (0.299, 0.587, 0.114)


def _glyphs(first: int, last: int) -> Images:
    found = glyphs32(last)
    known = {name: values[first:] for name, values in found.attributes.items()}
    ink, ground = (known[name] @ np.array(LUMA) for name in ("foreground", "background"))
    known |= {"ink": np.where(ink > ground, "light", "dark"), "ground": np.where(ground > 0.5, "bright", "dark")}
    return Images(found.images[first:], found.labels[first:], known)


def images_of(name: str) -> Tensor:
    """Return images by a name or path, of a labelled set also those of a kind, (N, C, H, W) float32 in [0, 1].

    ``digits-train:3`` are those of class 3, ``glyphs32:weight=700,slant=0`` those with some attributes.

    Raises:
        UserError: for an unknown set, class or attribute, and where no image is of the kind.
    """
    base, colon, kind = name.partition(":")
    if base not in LABELLED or not colon:
        return load_images(name)
    found = LABELLED[base]()
    attributes = [known for known, values in found.attributes.items() if values.ndim == 1]
    chosen = torch.ones(len(found.images), dtype=torch.bool)
    for part in kind.split(","):
        attribute, equals, value = part.partition("=")
        if equals and not attributes:
            raise UserError(f"{base} has no attributes, only classes: not {attribute!r}")
        if equals and attribute not in attributes:
            raise unknown(f"attribute of {base}", attribute, attributes)
        values = (found.attributes[attribute] if equals else found.labels.numpy()).astype(str)
        chosen &= torch.from_numpy(values == (value if equals else part))
        if not chosen.any():
            known = ", ".join(sorted(set(values.tolist()))[:12])
            raise UserError(f"no image of {base} is of the kind {kind!r}: known are {known}")
    return found.images[chosen]


class Latents(NamedTuple):
    """The latents of some images at a time: ``z`` (N, C, H, W), and ``h``, the bottleneck (N, c, h, w)."""

    z: Tensor
    h: Tensor


def network_of(model: Denoiser) -> boundary.WithBottleneck:
    """Return epsilon of a model in [-1, 1], whose bottleneck can be seen; it is asked for all rows at once."""
    inner = _whole(model)
    if not isinstance(getattr(inner, "net", None), torch.nn.Module):
        raise UserError(f"{getattr(model, 'name', 'this model')} has no network, and so no bottleneck: use level z")
    return boundary.WithBottleneck(boundary.epsilon_of(inner), inner.net)


def _whole(model: Any) -> Any:
    """Return a model without the blocks that its rows are asked in."""
    if isinstance(model, InBlocks):
        return model.denoiser
    if isinstance(model, Wrapper):
        model = copy.copy(model)
        model.denoiser = _whole(model.denoiser)
    return model


def latents(model: Denoiser, images: Tensor, times: Sequence[int], level: str = "z") -> Tensor:
    """Return the latents of images in [0, 1] at the last of some times, (N, *shape of the level).

    Those of level ``h`` are of the last call of the inversion, at the time before, as released.
    """
    one_of("level", level, *LEVELS)
    z, h = last_of_both(model, images, times, deep=level == "h")
    return z if h is None else h


def last_of_both(
    model: Denoiser, images: Tensor, times: Sequence[int], deep: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the latents of images in [0, 1] at the last of some times, in pixels and, if ``deep``, the bottleneck.

    The bottleneck is that of the last call of the inversion, at the time before, as released.
    """
    if tuple(images.shape[1:]) != tuple(model.shape):
        raise UserError(f"the model is of images {tuple(model.shape)}, these are {tuple(images.shape[1:])}")
    network = network_of(model) if deep else boundary.epsilon_of(model)
    z, h = [], []
    for block in images.split(BLOCK):
        z.append(boundary.invert(network, 2 * block - 1, times))
        if deep:
            h.append(network.seen)
    return torch.cat(z), torch.cat(h) if deep else None


def both(model: Denoiser, images: Tensor, times: Sequence[int]) -> list[Latents]:
    """Return the latents of images in [0, 1] at each of some times but the first, of both levels.

    Those of level h are of the call before, as released.
    """
    network, blocks = network_of(model), []
    for block in images.split(BLOCK):
        states: list[Latents] = []

        def keep(z: Tensor, states: list[Latents] = states) -> None:
            if network.seen is not None:
                states.append(Latents(z, network.seen))

        network.seen = None
        boundary.invert(network, 2 * block - 1, times, callback=keep)
        blocks.append(states)
    return [Latents(*(torch.cat(parts) for parts in zip(*states, strict=True))) for states in zip(*blocks, strict=True)]


@torch.no_grad()
def bottleneck(model: Denoiser, z: Tensor, times: Sequence[int]) -> Tensor:
    """Return the bottleneck of latents at the last of some times that were never images, seen at the time before.

    That of images is of their inversion, see :func:`last_of_both`.
    """
    network, parts = network_of(model), []
    for block in z.split(BLOCK):
        network(block, block.new_full((len(block),), float(times[-2])))
        parts.append(network.seen)
    return torch.cat(parts)


def fit(
    model: Denoiser,
    negative: Tensor,
    positive: Tensor,
    *,
    time: int = 500,
    count: int = 40,
    level: str = "z",
    held_out: float = 0.3,
) -> Boundary:
    """Return the boundary between images of two kinds, both in [0, 1]; its normal points to the second.

    Args:
        time: of the edit; ``count``: times of the inversion up to it.
        held_out: share of either kind that the accuracy is of, the last ones; of few images none are held out.

    Raises:
        UserError: for a time whose noise is beyond the model, and as :func:`latents` and
            :func:`dmcmc_core.boundary.fit`.
    """
    number("held_out", held_out, least=0, below=1)
    check_time(model, time)
    times = boundary.grid(time, count)
    sides = [latents(model, images, times, level) for images in (negative, positive)]
    share = held_out if held_out * min(map(len, sides)) >= 1 else 0  # else of one kind alone
    cuts = [len(side) - int(share * len(side)) for side in sides]
    own, other = (
        torch.cat([side[part(cut)] for side, cut in zip(sides, cuts, strict=True)])
        for part in (lambda cut: slice(cut), lambda cut: slice(cut, None))
    )
    labels = [
        torch.tensor([0] * a + [1] * b) for a, b in (cuts, [len(s) - c for s, c in zip(sides, cuts, strict=True)])
    ]
    card = {"time": time, "count": count, "level": level, "network": fingerprint(model)[:16], "held_out": len(other)}
    return boundary.fit(own, labels[0], (other, labels[1]) if len(other) else None, card=card)


def last_time(model: Denoiser) -> int:
    """Return the last time of the published betas whose noise a model reaches."""
    low, high = model.data_range
    sigma = (high - low) / 2 * (1 / boundary.kept_shares() - 1).sqrt()
    return int((sigma <= model.sigma_max).nonzero().flatten()[-1])


def check_time(model: Denoiser, time: int) -> None:
    """Raise UserError for a time with more noise than a model reaches."""
    if time > (last := last_time(model)):
        raise UserError(f"the noise of time {time} is beyond the model's sigma_max: its last time is {last}")


def level_of(one: Boundary) -> Any:
    """Return where a boundary lies, by its card; z where it does not tell."""
    return one.card.get("level", "z")


def times_of(model: Denoiser, boundaries: Sequence[Boundary]) -> list[int]:
    """Return the times of an inversion to where some boundaries lie.

    Raises:
        UserError: for boundaries of another network or several times, and whose cards do not tell, so that no edit can
            be across all of them.
    """
    for one in boundaries:
        if missing := [name for name in ("time", "count") if name not in one.card]:
            raise UserError(f"a boundary does not tell its {missing[0]}: boundary fit writes it")
        one_of("the level of a boundary", level_of(one), *LEVELS)
        one.check(network=fingerprint(model)[:16], **{name: boundaries[0].card[name] for name in ("time", "count")})
    for level in LEVELS:
        boundary.orthogonal([one.normal for one in boundaries if level_of(one) == level])
    times = boundary.grid(boundaries[0].card["time"], boundaries[0].card["count"])
    check_time(model, times[-1])
    return times


def sampled(model: Denoiser, seed: int, num: int, time: int, count: int) -> Tensor:
    """Return latents at a time that were never images: noise at the last time, brought there without any more."""
    last, states = last_time(model), []
    times = [time + t for t in boundary.grid(last - time, min(count, last - time + 1))] if last > time else [time]
    start = Streams(seed, "boundary", range(num))(torch.zeros(num, *model.shape, device=device_of(model)))
    if len(times) == 1:
        return start
    boundary.reverse(boundary.epsilon_of(model), start, times, callback=states.append)
    return states[-2]  # the last step leaves the first time for the image


class Way(NamedTuple):
    """How an edit is made; the defaults are as released.

    ``how``: of :func:`dmcmc_core.boundary.edit`; ``eta``: noise of the way back, the noise of an image being that of
    (``seed``, its number), whatever the strength; ``injection``: of :class:`dmcmc_core.boundary.Injected`;
    ``orthogonal``: whether normals of a level are made orthogonal, the first one kept.
    """

    how: str = "set"
    eta: float = 1.0
    injection: str = "lagged"
    seed: int = 0
    orthogonal: bool = True


def edited(
    model: Denoiser,
    z: Tensor,
    boundaries: Sequence[Boundary],
    strength: float | Sequence[float] | None,
    bottleneck: Tensor | None = None,
    way: Way = Way(),  # noqa: B008
) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] of latents moved across boundaries and denoised; None moves nothing.

    Args:
        z: latents at the time of the boundaries, (N, C, H, W); ``bottleneck`` those of level h, where one is edited.
        boundaries: of one time, of either level.
        strength: of all, or of each.

    Raises:
        UserError: for boundaries of another network or of several times.
    """
    times = times_of(model, boundaries)
    if strength is not None:
        each = [strength] * len(boundaries) if isinstance(strength, int | float) else strength
        moves = {level: [] for level in LEVELS}
        for one, zeta in zip(boundaries, each, strict=True):
            moves[level_of(one)].append((one.normal, zeta))
        z = _moved(z, moves["z"], way)
        if moves["h"] and bottleneck is None:
            raise UserError("a boundary of level h needs the bottleneck of the latents")
        bottleneck = _moved(bottleneck, moves["h"], way) if moves["h"] else None
    else:
        bottleneck = None
    parts = []
    for start in range(0, len(z), BLOCK):
        rows = slice(start, start + BLOCK)
        epsilon = boundary.epsilon_of(model)
        if bottleneck is not None:
            epsilon = boundary.Injected(network_of(model), bottleneck[rows], way.injection)
        noise = Streams(way.seed, "edit", range(len(z))[rows])
        parts.append(boundary.reverse(epsilon, z[rows], times, way.eta, noise))
    return (torch.cat(parts) + 1).clamp(0, 2) / 2


def _moved(latent: Tensor, moves: Sequence[tuple[Tensor, float]], way: Way) -> Tensor:
    """Return latents of a level after some moves along normals."""
    normals = [normal for normal, _ in moves]
    for normal, (_, zeta) in zip(boundary.orthogonal(normals) if way.orthogonal else normals, moves, strict=True):
        latent = boundary.edit(latent, normal, zeta, way.how)
    return latent


def strip(rows: Sequence[Tensor], path: str | Path) -> Path:
    """Write pictures side by side: a row for each image, a column for each of some sets (N, C, H, W) in [0, 1]."""
    from PIL import Image

    from dmcmc_core.files import replacing
    from dmcmc_core.report import plots

    stacked = torch.stack([row.cpu() for row in rows], 1)
    picture = plots.mosaic(stacked.flatten(0, 1), ncols=stacked.shape[1])
    with replacing(path) as part:
        Image.fromarray((picture * 255).round().astype("uint8")).save(part, format="PNG")
    return Path(path)


def search(model: Denoiser, images: Tensor, count: int = 40, seed: int = 0) -> tuple[list[dict[str, Any]], int | None]:
    """Return the radii at each time, and the mixing time; None where both ways are nowhere near each other."""
    times = boundary.grid(last_time(model), count)
    noise = Streams(seed, "search", range(len(images)))
    found = boundary.radii(boundary.epsilon_of(model), 2 * images - 1, times, noise)
    rows = [
        {"time": t, "inverted": i, "sampled": s, "apart": a}
        for t, i, s, a in zip(
            times, found.inverted.tolist(), found.sampled.tolist(), found.apart().tolist(), strict=True
        )
    ]
    try:
        return rows, boundary.mixing_time(found)
    except UserError:
        return rows, None
