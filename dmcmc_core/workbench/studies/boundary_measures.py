"""The study of semantic control: edits and their controls on the same latents, measured where the attributes are known.

Zhu et al. 2023 (arXiv 2302.08357) show strengths in z, in h and in both as pictures; here they are numbers, beside a
random direction, the difference of the means, and no edit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import boundary
from dmcmc_core.boundary import Boundary
from dmcmc_core.checkpoints import load_model
from dmcmc_core.denoiser import BLOCK, Denoiser, InBlocks
from dmcmc_core.errors import UserError, one_of, unknown
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.metrics.features import Extractor, extract, load_features
from dmcmc_core.metrics.frechet import frechet_distance, statistics
from dmcmc_core.nets.classifiers import classify
from dmcmc_core.nets.glyph_reader import CLASSES, load_glyph_reader
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies import boundary as jobs
from dmcmc_core.workbench.studies.boundary import LEVELS, LUMA, Latents, Way, images_of


class Reading(NamedTuple):
    """What is seen in N images: whether they are of the positive kind (N,), and what else an edit should keep.

    ``others``: classes of the other attributes (N, A); ``numbers``: attributes that are numbers, in units of half their
    range (N, B).
    """

    positive: Tensor
    others: Tensor
    numbers: Tensor


class Bed(NamedTuple):
    """A model, images (N, C, H, W) in [0, 1] of two kinds to fit with, and unseen ones to edit and to compare with."""

    name: str
    model: Denoiser
    negative: Tensor
    positive: Tensor
    source: Tensor
    target: Tensor
    read: Callable[[Tensor], Reading]
    extractor: Extractor


def make_bed(name: str, given: Mapping[str, Any], n_fit: int, n_edit: int, device: str = "cpu") -> Bed:
    """Return a bed of its description.

    Args:
        name: of the bed.
        given: ``model``, ``features`` and the images ``negative``, ``positive``, ``source`` and ``target``, the latter
            two of the same kinds; images are named as :func:`dmcmc_core.workbench.studies.boundary.images_of` has it.
        n_fit: images of either kind at most; ``n_edit``: of the source, at most.
        device: of the model.
    """
    if missing := [key for key in ("model", "features", *KINDS) if key not in given]:
        raise UserError(f"the bed {name!r} lacks {', '.join(missing)}")
    negative, positive, source, target = (images_of(given[key]) for key in KINDS)
    extractor = load_features(given["features"])
    read = reader(given["negative"], given["positive"], extractor)
    model = load_model(given["model"], device)
    if isinstance(model, InBlocks):
        model = InBlocks(model.denoiser, min(n_edit, BLOCK))  # no row is computed for nothing
    chosen = [images.to(device) for images in (negative[:n_fit], positive[:n_fit], source[:n_edit])]
    return Bed(name, model, *chosen, target, lambda images: read(images.cpu()), extractor)


KINDS = ("negative", "positive", "source", "target")


def reader(negative: str, positive: str, extractor: Extractor) -> Callable[[Tensor], Reading]:
    """Return what reads images: the classifier of digits, the reader of glyphs, or for other images their features.

    Of digits, what an edit should keep is that they are one of the two; of glyphs all other attributes.
    """
    base, _, kind = positive.partition(":")
    if base.startswith("digits"):
        pair = torch.tensor([int(name.partition(":")[2]) for name in (negative, positive)])
        return lambda images: _read_digits(classify(images), pair)
    if base.startswith("glyphs32") and kind:
        attribute, _, value = kind.partition("=")
        if attribute not in (*CLASSES, *SHADES):
            raise unknown("attribute that can be read off glyphs", attribute, (*CLASSES, *SHADES))
        return lambda images: _read_glyphs(images, attribute, value)
    return _by_features(images_of(negative), images_of(positive), extractor)


def _read_digits(classes: Tensor, pair: Tensor) -> Reading:
    return Reading(classes == pair[1], torch.isin(classes, pair)[:, None].long(), torch.zeros(len(classes), 0))


def _read_glyphs(images: Tensor, attribute: str, value: str) -> Reading:
    seen, names = load_glyph_reader().read(images), list(CLASSES)
    others = [k for k, name in enumerate(names) if name != attribute]
    pose = seen[:, len(names) : len(names) + POSE]
    if attribute in SHADES:
        return Reading(_shades(images)[attribute] == (value == SHADES[attribute]), seen[:, others], pose)
    wanted = [str(known) for known in CLASSES[attribute]].index(value)
    return Reading(seen[:, names.index(attribute)] == wanted, seen[:, others], pose)


SHADES = {"ink": "light", "ground": "bright"}
"""Attributes of glyphs that are read off the lumas of their pixels, and the value that stands for more."""
POSE = 4
"""Numbers of a glyph that are not its colours, which an edit of shades changes by itself: size, place, rotation."""


def _shades(images: Tensor) -> dict[str, Tensor]:
    """Return whether glyphs are of a light ink, and of a bright ground, (N,): the ground is the middle of the frame."""
    luma = (images * torch.tensor(LUMA)[:, None, None]).sum(1)
    frame = torch.cat([luma[:, 0], luma[:, -1], luma[:, :, 0], luma[:, :, -1]], 1).median(1).values
    return {"ink": luma.flatten(1).mean(1) > frame, "ground": frame > 0.5}


def _by_features(negative: Tensor, positive: Tensor, extractor: Extractor) -> Callable[[Tensor], Reading]:
    found = [extract(images, extractor) for images in (negative, positive)]
    made = boundary.fit(torch.cat(found), [0] * len(negative) + [1] * len(positive))

    def read(images: Tensor) -> Reading:
        nothing = torch.zeros(len(images), 0)
        return Reading(made.distances(extract(images, extractor)) > 0, nothing, nothing)

    return read


class Arm(NamedTuple):
    """A method or a control.

    ``direction``: ``boundary``, ``mean difference``, ``random``; ``other image``, which puts the bottlenecks of other
    images in the place of their own, or ``none``; ``levels``: of z and h; ``scaled``: whether the strength in h is in
    units of the spread there, not of that in z.
    """

    direction: str = "boundary"
    levels: str = "zh"
    how: str = "set"
    injection: str = "lagged"
    scaled: bool = False
    eta: float = 1.0


ARMS = {
    "z and h, as released": Arm(),
    "z": Arm(levels="z"),
    "h": Arm(levels="h"),
    "h, scaled": Arm(levels="h", scaled=True),
    "h, scaled, first step": Arm(levels="h", injection="first", scaled=True),
    "z, add": Arm(levels="z", how="add"),
    "z, mean difference": Arm("mean difference", "z"),
    "z, random": Arm("random", "z"),
    "z and h, random": Arm("random"),
    "h of another image": Arm("other image", "h", "add"),
    "no edit": Arm("none"),
    "no edit, no noise": Arm("none", eta=0.0),
}
"""The arms of the study by name. All are given the same latents, and the same noise on the way back."""


UNMOVED = ("other image", "none")
"""Directions of the controls that have no strength."""


class Fitted(NamedTuple):
    """Boundaries of a direction at each level, and the spread of the latents' projections on either."""

    of: dict[str, Boundary]
    spread: dict[str, float]


def directions(sides: Sequence[Latents], rest: Sequence[Latents], card: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the fitted boundary, the difference of the means and a random direction, each at both levels.

    Args:
        sides: latents of the negative and of the positive kind to fit with; ``rest``: those that accuracies are of.
        card: of the boundaries, without their level.
        seed: of the random direction.
    """
    made: dict[str, Fitted] = {name: Fitted({}, {}) for name in ("boundary", "mean difference", "random")}
    for level in LEVELS:
        own, other = ([getattr(side, level).cpu() for side in pair] for pair in (sides, rest))
        about = {**card, "level": level}
        fitted = boundary.fit(torch.cat(own), _labels(own), (torch.cat(other), _labels(other)), card=about)
        gap = own[1].mean(0) - own[0].mean(0)
        chance = Streams(seed, f"direction {level}", [0])(gap[None])[0]
        for name, normal in (("boundary", fitted.normal), ("mean difference", gap), ("random", chance)):
            unit = normal / torch.linalg.vector_norm(normal)
            one = Boundary(unit, 0.0, fitted.accuracy if name == "boundary" else math.nan, about)
            made[name].of[level] = one
            made[name].spread[level] = one.distances(torch.cat(own)).std().item()
    return made


def _labels(pair: Sequence[Tensor]) -> Tensor:
    return torch.tensor([0] * len(pair[0]) + [1] * len(pair[1]))


@contextlib.contextmanager
def calls_of(model: Denoiser) -> Iterator[list[int]]:
    """Collect the rows of each call of a model's network."""
    rows: list[int] = []
    handle = model.net.register_forward_hook(lambda module, given, out: rows.append(len(out)))  # pyright: ignore
    try:
        yield rows
    finally:
        handle.remove()


class Edits(NamedTuple):
    """What a run leaves: rows of what was measured and of what was fitted, and of its first seed more.

    ``made``: the directions of that seed; ``pictures``: arm -> image, and strength -> the first images after it.
    """

    rows: list[dict[str, Any]]
    fits: list[dict[str, Any]]
    made: dict[str, Fitted]
    pictures: dict[str, dict[str, Tensor]]


SHOWN = 8
"""Images of each kind that pictures are of."""


def run(
    bed: Bed,
    arms: Mapping[str, Arm],
    strengths: Sequence[float],
    seeds: Sequence[int],
    *,
    time: int,
    count: int,
    share: float = 0.7,
) -> Edits:
    """Edit the sources of a bed by each arm, strength and seed.

    A seed draws which images are fitted (a ``share`` of them; the others give the accuracy), the random direction and
    the noise of the way back.

    Args:
        bed: of images of two kinds.
        arms: by name, see :data:`ARMS`.
        strengths: zeta.
        seeds: at least one.
        time: of the edit; ``count``: times of the inversion.
        share: as above.
    """
    times = boundary.grid(time, count)
    sides = [jobs.both(bed.model, images, times)[-1] for images in (bed.negative, bed.positive)]
    with calls_of(bed.model) as inverting:
        source = jobs.both(bed.model, bed.source, times)[-1]
    before, found = _seen(bed, bed.source), Edits([], [], {}, {})
    card = {"time": time, "count": count, "network": fingerprint(bed.model)[:16]}
    for seed in seeds:
        made = directions(*_parts(sides, share, seed), card, seed)
        found.fits.extend({"bed": bed.name, "seed": seed, **_fit_row(made, level)} for level in LEVELS)
        for name, arm in arms.items():
            for strength in (0.0,) if arm.direction in UNMOVED else strengths:
                with calls_of(bed.model) as calls:
                    images = edit_by(bed.model, source, made, arm, strength, seed)
                about = {"bed": bed.name, "arm": name, "strength": strength, "seed": seed, "n": len(images)}
                asked = (len(inverting) + len(calls)) / math.ceil(len(images) / BLOCK)
                found.rows.append({**about, **compare(before, _seen(bed, images), bed), "calls": asked})
                if seed == seeds[0]:
                    lines = found.pictures.setdefault(name, {"image": bed.source[:SHOWN]})
                    lines[f"{strength:g}" if strength else "unedited"] = images[:SHOWN]
        found.made.update({} if found.made else made)
    return found


def _parts(sides: Sequence[Latents], share: float, seed: int) -> tuple[list[Latents], list[Latents]]:
    """Return latents to fit with and those left over, of either kind, drawn by a seed."""
    own, rest = [], []
    for k, side in enumerate(sides):
        order = torch.randperm(len(side.z), generator=torch.Generator().manual_seed(2 * seed + k))
        cut = max(boundary.hyperplane.LEAST, int(share * len(order)))
        own.append(Latents(*(part[order[:cut]] for part in side)))
        rest.append(Latents(*(part[order[cut:]] for part in side)))
    return own, rest


def _fit_row(made: Mapping[str, Fitted], level: str) -> dict[str, Any]:
    fitted, other = made["boundary"], made["mean difference"]
    cosine = (fitted.of[level].normal * other.of[level].normal).sum().item()
    return {
        "level": level,
        "dimension": fitted.of[level].normal.numel(),
        "accuracy": fitted.of[level].accuracy,
        "spread": fitted.spread[level],
        "angle": math.degrees(math.acos(min(1.0, cosine))),
    }


def edit_by(
    model: Denoiser, source: Latents, made: Mapping[str, Fitted], arm: Arm, strength: float, seed: int
) -> Tensor:
    """Return the images of an arm; the strength of h, where it is scaled, grows as the spread of its projections."""
    one_of("direction", arm.direction, *UNMOVED, *made)
    way, fitted = Way(arm.how, arm.eta, arm.injection, seed), made.get(arm.direction, made["boundary"])
    if arm.direction == "none":
        return jobs.edited(model, source.z, [fitted.of["z"]], None, way=way)
    if arm.direction == "other image":
        return jobs.edited(model, source.z, [fitted.of["h"]], 0.0, source.h.roll(1, 0), way)
    ratio = fitted.spread["h"] / fitted.spread["z"] if arm.scaled else 1.0
    each = [strength * (ratio if level == "h" else 1.0) for level in arm.levels]
    return jobs.edited(model, source.z, [fitted.of[level] for level in arm.levels], each, source.h, way)


class Seen(NamedTuple):
    """What is read off images, and their features (N, d)."""

    reading: Reading
    features: Tensor


def _seen(bed: Bed, images: Tensor) -> Seen:
    return Seen(bed.read(images.cpu()), extract(images.cpu(), bed.extractor))


def compare(before: Seen, after: Seen, bed: Bed) -> dict[str, float]:
    """Return what an edit of images did.

    ``flipped``: share of those not of the positive kind before that are after; ``kept``: share of other attributes
    that are read as before; ``moved``: root mean square change of those that are numbers, in halves of their range;
    ``identity``: distance of the features to those before, in units of that between different images; ``frechet``:
    Fréchet distance of the features to those of real images of the positive kind, as many.
    """
    negative = ~before.reading.positive
    flipped = after.reading.positive[negative].double().mean().item()
    kept = (after.reading.others == before.reading.others).double().mean().item()
    moved = (after.reading.numbers - before.reading.numbers).square().mean().sqrt().item()
    apart = torch.cdist(before.features, before.features)
    others = apart.sum() / (len(apart) * (len(apart) - 1))
    identity = (torch.linalg.vector_norm(after.features - before.features, dim=1).mean() / others).item()
    real = extract(bed.target[: len(after.features)], bed.extractor)
    frechet = frechet_distance(*statistics(after.features), *statistics(real))
    return {"flipped": flipped, "kept": kept, "moved": moved, "identity": identity, "frechet": frechet}
