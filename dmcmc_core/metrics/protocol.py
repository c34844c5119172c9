"""Protocols: in which encoding images are compared, without loss or through JPEG as the DMCMC paper's code has them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from dmcmc_core.data import ImageSet, SampleFolder
from dmcmc_core.errors import UserError, unknown

PROTOCOLS = ("lossless", "dmcmc")


def by_protocol(samples: SampleFolder, protocol: str) -> SampleFolder:
    """Return samples as a protocol has them; ``dmcmc`` sends the levels of the shards through JPEG.

    The cast to 256 levels is past when shards are written: it truncated where the run had ``cast=truncate``.

    Raises:
        UserError: for an unknown protocol, images in JPEG files or that JPEG cannot hold, and as :func:`jpeg`.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if protocol == "lossless":
        return samples
    if samples.images.encoding not in ("", "lossless"):
        raise UserError(f"{samples.images.name} holds JPEG files: protocol 'dmcmc' would send them through JPEG twice")
    if (channels := samples.images.shape[1]) not in (1, 3):
        raise UserError(f"protocol 'dmcmc' saves JPEG, which holds 1 or 3 channels, not the {channels} of these images")
    plan = samples.manifest.get("plan")
    cast = "truncated" if isinstance(plan, dict) and plan.get("cast") == "truncate" else "rounded"
    cast = cast if samples.manifest else "given"
    read, reader = samples.images.read, f"jpeg by pillow {_pillow().__version__}"
    saved = lambda rows: jpeg(read(rows).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # noqa: E731
    about = {"encoding": f"jpeg (quality 75, 4:2:0) of {cast} levels"}
    return SampleFolder(
        replace(samples.images, read=saved, files=(Path(), ()), reader=reader), samples.manifest | about
    )


def jpeg(images: np.ndarray) -> np.ndarray:
    """Send images (N, H, W, C) uint8, C = 1 or 3, through a .jpg as Pillow saves and reads it: quality 75, 4:2:0.

    Raises:
        UserError: without pillow.
    """
    image = _pillow()

    def through(pixels: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "JPEG")
        return np.asarray(image.open(file)).reshape(pixels.shape)

    return np.stack([through(pixels) for pixels in images])


def _pillow():
    try:
        import PIL.Image
    except ImportError as error:
        raise UserError("protocol 'dmcmc' saves JPEG by pillow, which is not installed: pip install pillow") from error
    return PIL.Image


def encoding_of(images: Tensor | ImageSet) -> str:
    """Return ``jpeg``, ``lossless``, or ``jpeg and lossless`` for a set of files of both kinds."""
    if isinstance(images, ImageSet) and images.encoding:
        return images.encoding
    names = images.files[1] if isinstance(images, ImageSet) else ()
    lossy = {str(name).lower().endswith((".jpg", ".jpeg")) for name in names}
    return {frozenset({True}): "jpeg", frozenset({True, False}): "jpeg and lossless"}.get(frozenset(lossy), "lossless")


def encodings(
    samples: SampleFolder, reference: Tensor | ImageSet | None, name: str, protocol: str, allow_mixed: bool
) -> dict[str, str | bool | None]:
    """Return ``protocol``, ``encoding``, ``reference_encoding`` (None without images), ``mixed_encodings``.

    Args:
        reference: its images, None where there are statistics alone; ``name`` is what messages call it.
        allow_mixed: whether lossless images may be compared with JPEG. The protocol ``dmcmc`` asks for no such leave.

    Raises:
        UserError: where encodings are mixed and nobody has asked for that.
    """
    ours, theirs = samples.encoding, None if reference is None else encoding_of(reference)
    mixed = theirs is not None and theirs != ("jpeg" if "jpeg" in ours else "lossless")
    if mixed and protocol == "lossless" and not allow_mixed:
        raise UserError(
            f"the images in {samples.images.name} are {ours} and those of {name!r} are {theirs}: distances would show "
            f"the encoding; allow_mixed_encodings (--allow-mixed-encodings) compares them nevertheless"
        )
    return {"protocol": protocol, "encoding": ours, "reference_encoding": theirs, "mixed_encodings": mixed}
