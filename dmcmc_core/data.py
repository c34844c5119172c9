"""Data that comes with the workbench: real digits from scikit-learn, and glyphs rendered from matplotlib's fonts.

Nothing is downloaded and nothing is stored: both sets are the same on every machine with the same library versions.
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError, unknown

HELD_OUT = 600
"""Digits kept out of training; the other 1,197 are the training images."""

CHARACTERS = "ABDEGHKRSX"
FACES = {  # family: files of (weight, slant) = (400, 0), (700, 0), (400, 1), (700, 1)
    "DejaVu Sans": "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique",
    "DejaVu Serif": "DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic",
    "DejaVu Sans Mono": "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique DejaVuSansMono-BoldOblique",
    "STIX General": "STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta",
}
STYLES = ((400, 0), (700, 0), (400, 1), (700, 1))
_LUMA = np.array([0.299, 0.587, 0.114])
_CONTRAST = 0.3  # least difference in luma between glyph and background
_SIDE, _OVER = 32, 4  # pixels of an image, rendered this many times larger before the mean over squares


class Images(NamedTuple):
    """Images and what is known about them."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64 class of each image."""
    attributes: dict[str, np.ndarray]
    """Further facts by name, (N,) or (N, k); empty for digits."""


@functools.cache
def _digits_source() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digits come with scikit-learn, which is not installed: pip install scikit-learn") from error
    source = load_digits()
    return source.images, source.target


def _digits_order(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and held-out digits: in each class the same fraction, then both shuffled."""
    quota = np.bincount(labels) * HELD_OUT / len(labels)
    taken = np.floor(quota).astype(int)
    taken[np.argsort(taken - quota, kind="stable")[: HELD_OUT - taken.sum()]] += 1  # largest remainders
    chosen, order = (np.argsort(_stream(0, i).random_raw(len(labels))) for i in (0, 1))
    held_out = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(taken):
        held_out[chosen[labels[chosen] == label][:count]] = True
    return order[~held_out[order]], order[held_out[order]]


def digits(split: str = "train") -> Images:
    """Real 8x8 handwritten digits (the 1,797 of the UCI optical recognition set that scikit-learn carries).

    The split is fixed: shuffled once by a counter-based stream and cut within each class, so that both parts have the
    classes in the same proportion. Who wrote a digit is not recorded there, so both parts share their writers.

    Args:
        split: ``train`` (1,197 images), ``heldout`` (600) or ``all`` (train, then held-out).

    Returns:
        images (N, 1, 8, 8) = pixel / 16, labels (N,), no attributes.

    Raises:
        UserError: for an unknown split, or when scikit-learn is not installed.
    """
    if split not in ("train", "heldout", "all"):
        raise unknown("split of the digits", split, ("train", "heldout", "all"))
    pixels, labels = _digits_source()
    train, held_out = _digits_order(labels)
    index = {"train": train, "heldout": held_out, "all": np.concatenate([train, held_out])}[split]
    images = torch.from_numpy(pixels[index] / 16).float()[:, None]
    return Images(images, torch.from_numpy(labels[index]).long(), {})


def _stream(seed: int, index: int) -> np.random.Philox:
    """Counter-based stream (Salmon et al. 2011) named by two integers in [0, 2^64).

    Only its raw words are used: NumPy promises that those never change, which it does not for its distributions.
    """
    return np.random.Philox(key=np.array([seed, index], dtype=np.uint64))


def _uniforms(stream: np.random.Philox, n: int) -> np.ndarray:
    return (stream.random_raw(n) >> np.uint64(11)) * 2.0**-53


def _draw_attributes(seed: int, index: int) -> dict:
    """What image ``index`` of a seed shows; uniform in each attribute, colours redrawn until they differ enough."""
    stream = _stream(seed, index)
    character, family, style, size, x, y, rotation = _uniforms(stream, 7)
    while True:
        foreground, background = _uniforms(stream, 6).reshape(2, 3)
        if abs(_LUMA @ (foreground - background)) >= _CONTRAST:
            break
    weight, slant = STYLES[int(style * len(STYLES))]
    return {
        "character": CHARACTERS[int(character * len(CHARACTERS))],
        "font": list(FACES)[int(family * len(FACES))],
        "weight": weight,
        "slant": slant,
        "size": 18 + 10 * size,
        "x": 8 * x - 4,
        "y": 8 * y - 4,
        "rotation": 40 * rotation - 20,
        "foreground": foreground,
        "background": background,
    }


@functools.cache
def _template(character: str, font: str, weight: int, slant: int):
    """A large white glyph on black, the middle of its ink in the middle; and its em size in pixels."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    side, em = 256, 192
    name = FACES[font].split()[STYLES.index((weight, slant))]
    file = Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    face = ImageFont.truetype(str(file), em, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character)
    image = Image.new("L", (side, side))
    middle = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(middle, character, fill=255, font=face)
    return image.reduce(2), em / 2  # half size: a glyph at 28 pixels, rendered 4 times larger, is then not enlarged


def _mask(a: dict) -> np.ndarray:
    """(32, 32) share of each pixel that the glyph covers, in [0, 1]."""
    from PIL import Image

    template, em = _template(a["character"], a["font"], a["weight"], a["slant"])
    scale = em / (a["size"] * _OVER)
    angle = np.deg2rad(a["rotation"])
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    x, y = (_SIDE / 2 + a["x"]) * _OVER, (_SIDE / 2 + a["y"]) * _OVER  # where the middle of the template goes
    mid = template.width / 2
    matrix = (cos, -sin, mid - cos * x + sin * y, sin, cos, mid - sin * x - cos * y)
    side = _SIDE * _OVER
    large = template.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(large.reduce(_OVER), dtype=np.float64) / 255


@functools.lru_cache(maxsize=2)
def _render(n: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    drawn = [_draw_attributes(seed, i) for i in range(n)]
    masks = np.stack([_mask(a) for a in drawn])[:, None]
    attributes = {name: np.array([a[name] for a in drawn]) for name in drawn[0]}
    glyph, ground = (attributes[k][:, :, None, None] for k in ("foreground", "background"))
    return np.round((ground + masks * (glyph - ground)) * 255).astype(np.uint8), attributes


def glyphs32(n: int = 4000, seed: int = 0) -> Images:
    """Coloured capital letters, 32x32 RGB, with everything recorded that makes each image.

    Ten letters in sixteen faces of the fonts that matplotlib carries, antialiased, in 256 levels per colour. Image i of
    a seed does not depend on n. The same library versions give the same bytes.

    Args:
        n: number of images, at least 1.
        seed: any integer in [0, 2^64).

    Returns:
        images (n, 3, 32, 32); labels (n,), the index in ``CHARACTERS``; attributes ``character`` and ``font`` (text),
        ``weight`` (400 or 700), ``slant`` (0 upright, 1 oblique), ``size`` (pixels per em, 18 to 28), ``x`` and ``y``
        (middle of the ink from the middle of the image, pixels to the right and downwards, -4 to 4), ``rotation``
        (degrees, counter-clockwise, -20 to 20), ``foreground`` and ``background`` (n, 3) RGB in [0, 1].

    Raises:
        UserError: for n or seed out of range, or when matplotlib is not installed.
    """
    if n < 1 or not 0 <= seed < 2**64:
        raise UserError(f"glyphs32 needs n >= 1 and a seed in [0, 2^64), not n={n}, seed={seed}")
    try:
        pixels, attributes = _render(int(n), int(seed))
    except ImportError as error:
        raise UserError("the glyphs are drawn with matplotlib's fonts: pip install matplotlib") from error
    labels = torch.tensor([CHARACTERS.index(c) for c in attributes["character"]])
    return Images(torch.from_numpy(pixels).float() / 255, labels, {k: v.copy() for k, v in attributes.items()})


REFERENCES = {
    "digits-train": lambda: digits("train").images,
    "digits-heldout": lambda: digits("heldout").images,
    "glyphs32": lambda: glyphs32().images,
}


def load_images(name_or_path: str | Path) -> Tensor:
    """Images to compare with: a name of ``REFERENCES`` or an NPZ file with ``arr_0`` uint8 of shape (N, H, W, C).

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: for an unknown name, a file that is not there, or one that holds something else.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in REFERENCES:
        return REFERENCES[name]()
    if path.suffix != ".npz":
        raise unknown("image set (no .npz file either)", name, REFERENCES)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file["arr_0"]
    except KeyError as error:
        raise UserError(f"{path} holds no array arr_0: uint8 images of shape (N, H, W, C) are needed") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as an NPZ file, it may be truncated: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise UserError(
            f"arr_0 of {path} is {array.dtype} of shape {array.shape}: uint8 (N, H, W, C) with C = 1 or 3 is needed"
        )
    return from_uint8(array)


def to_uint8(images: Tensor, data_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Images (N, C, H, W) in ``data_range`` as (N, H, W, C) uint8: clamped and rounded to the nearest of 256 levels.

    Rounded, not truncated as in the code published with DMCMC, which darkens every image by half a level on average.
    """
    low, high = data_range
    levels = ((images.detach().cpu().double() - low) * (255 / (high - low))).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(array: np.ndarray, data_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Images (N, H, W, C) uint8 as (N, C, H, W) float32 in ``data_range``; the inverse of :func:`to_uint8`."""
    low, high = data_range
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().float() / 255 * (high - low) + low
