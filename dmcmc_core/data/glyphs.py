"""Coloured letters, 32x32, drawn from matplotlib's fonts; all that makes an image is recorded beside it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from dmcmc_core.data.images import Images
from dmcmc_core.data.philox import stream, uniforms
from dmcmc_core.errors import UserError

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


def glyphs32(n: int = 4000, seed: int = 0) -> Images:
    """Draw coloured capital letters, 32x32 RGB, with everything recorded that makes each image.

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


@functools.lru_cache(maxsize=2)
def _render(n: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    drawn = [_draw_attributes(seed, i) for i in range(n)]
    masks = np.stack([_mask(a) for a in drawn])[:, None]
    attributes = {name: np.array([a[name] for a in drawn]) for name in drawn[0]}
    glyph, ground = (attributes[k][:, :, None, None] for k in ("foreground", "background"))
    return np.round((ground + masks * (glyph - ground)) * 255).astype(np.uint8), attributes


def _draw_attributes(seed: int, index: int) -> dict:
    """Draw what image ``index`` of a seed shows, each attribute uniform; colours again until they differ enough."""
    words = stream(seed, index)
    character, family, style, size, x, y, rotation = uniforms(words, 7)
    while True:
        foreground, background = uniforms(words, 6).reshape(2, 3)
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


def _mask(a: dict) -> np.ndarray:
    """Return the share of each pixel that the glyph covers, (32, 32) in [0, 1]."""
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


@functools.cache
def _template(character: str, font: str, weight: int, slant: int):
    """Draw a large white glyph on black, the middle of its ink in the middle; with it its em size in pixels."""
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
