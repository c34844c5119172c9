"""Data: real digits from scikit-learn, glyphs rendered from matplotlib's fonts, and published sets that lie on disk.

Digits and glyphs are the same on every machine with the same library versions; nothing of them is downloaded or stored.
Published sets (:data:`DATASETS`) are read from DMCMC_DATA or exp/paper, when and as far as they are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.files import read_npz, root, sha256

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


# ---- published sets on disk ------------------------------------------------------------------------------------------

VARIABLE = "DMCMC_DATA"
FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's filters that take every pixel into account."""


class Published(NamedTuple):
    """A set that people download: what it is, where it goes, where it comes from."""

    folder: str
    """Its name in DMCMC_DATA or exp/paper."""
    shape: tuple[int, int, int, int]
    """(N, C, H, W)."""
    source: str
    fetch: str
    """What to do to have it."""
    batches: tuple[str, ...] = ()
    """Files of CIFAR-10; a folder of images has none."""


CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""As torchvision lists them. They tell the published files from others; that reading is safe does not rest on them."""

_CIFAR10 = {
    "folder": "cifar-10-batches-py",
    "source": CIFAR10_URL,
    "fetch": 'python -c "from dmcmc_core import data; data.download_cifar10()"',
}
DATASETS = {
    "cifar10-train": Published(shape=(50_000, 3, 32, 32), batches=tuple(CIFAR10_MD5)[:5], **_CIFAR10),
    "cifar10-test": Published(shape=(10_000, 3, 32, 32), batches=tuple(CIFAR10_MD5)[5:], **_CIFAR10),
    "celebahq-256": Published(
        "celebahq-256",
        (30_000, 3, 256, 256),
        "https://github.com/tkarras/progressive_growing_of_gans",
        "make the images as described there and save them as PNG or JPEG",
    ),
    "ffhq-1024": Published(
        "ffhq-1024",
        (70_000, 3, 1024, 1024),
        "https://github.com/NVlabs/ffhq-dataset",
        "run its download_ffhq.py --images and rename images1024x1024",
    ),
}
"""Published sets by name. NAME:FILTER is a set of image files resized to its shape by one of :data:`FILTERS`."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images that are read when they are asked for. Where floats are wanted it can be used like a tensor.

    ``len(s)``, ``s.shape``, ``s[index]`` and ``s.split(size)`` are those of a float32 tensor (N, C, H, W) in
    ``data_range``; only what is asked for is ever in memory as floats.

    Attributes:
        name: as in results.
        shape: (N, C, H, W).
        read: indices (n,) -> (n, C, H, W) uint8.
        files: root, and the names below it of the files that it is made of; empty for a set that is only in memory.
        resize: the filter of :data:`FILTERS` that made images fit the shape, empty if none did.
        reader: what has decoded the files, and its version, where that may make a difference.
        read_labels: () -> (N,) int64, for sets with classes.
        data_range: of the floats, such as (-1, 1) for a network that was trained so.
    """

    name: str
    shape: tuple[int, int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    files: tuple[Path, Sequence[str]] = (Path(), ())
    resize: str = ""
    reader: str = ""
    read_labels: Callable[[], np.ndarray] | None = None
    data_range: tuple[float, float] = (0.0, 1.0)

    def __len__(self) -> int:
        return self.shape[0]

    def in_range(self, low: float, high: float) -> ImageSet:
        """The same images as floats in [low, high]."""
        return replace(self, data_range=(low, high))

    def uint8(self, index: slice | Tensor) -> Tensor:
        """(n, C, H, W) uint8 of a slice, or of integers in [-N, N)."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        return torch.from_numpy(np.ascontiguousarray(self.read(rows)))

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All images in order, (at most ``size``, C, H, W) uint8 at a time."""
        return (self.uint8(slice(i, i + size)) for i in range(0, len(self), size))

    def split(self, size: int) -> Iterator[Tensor]:
        """:meth:`blocks` as float32 in ``data_range``."""
        return (_floats(block, self.data_range) for block in self.blocks(size))

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """(n, C, H, W) float32 in ``data_range``, of a slice or of integers in [-N, N)."""
        return _floats(self.uint8(index), self.data_range)

    @property
    def labels(self) -> Tensor:
        """(N,) int64; UserError where the set has no classes."""
        if self.read_labels is None:
            raise UserError(f"{self.name} has no labels")
        return torch.from_numpy(self.read_labels())

    def recipe(self) -> dict[str, Any]:
        """What the images are made of, ready for JSON; reads every file. UserError if one cannot be read."""
        root, names = self.files
        digest = hashlib.sha256()
        for name in names:
            try:
                content = sha256(root / name)
            except OSError as error:
                raise UserError(f"{root / name} of {self.name} cannot be read: {error.strerror}") from error
            digest.update(f"{content}  {name}\n".encode())
        about = {"name": self.name, "shape": list(self.shape), "files": len(names), "sha256": digest.hexdigest()}
        return about | {"resize": self.resize, "reader": self.reader}


def places() -> list[Path]:
    """Folders in which published sets are looked for: DMCMC_DATA if it is set, then exp/paper."""
    given = os.environ.get(VARIABLE)
    return [*([Path(given).expanduser()] if given else []), root() / "exp" / "paper"]


def _find(name: str) -> Path:
    about = DATASETS[name]
    for place in places():
        if (place / about.folder).is_dir():
            return place / about.folder
    n, _, height, width = about.shape
    raise UserError(
        f"{name} ({n:,} images of {height}x{width}) is not here: the folder {about.folder} is needed in "
        f"{' or '.join(str(p) for p in places())} (or set {VARIABLE} to the folder that holds it); it comes from "
        f"{about.source}: {about.fetch}"
    )


def download_cifar10(place: str | Path | None = None) -> Path:
    """Fetch CIFAR-10 (170 MB) into a folder, by default the first of :func:`places`; only ever called by a person.

    Returns:
        The folder ``cifar-10-batches-py``; nothing is fetched if it is there.

    Raises:
        UserError: without torchvision, without a connection, or when what came is not the published archive. Nothing is
            left behind then.
    """
    place = places()[0] if place is None else Path(place)
    folder = place / _CIFAR10["folder"]
    if folder.is_dir():
        return folder
    try:
        from torchvision.datasets import CIFAR10, utils
    except ImportError as error:
        raise UserError(f"torchvision fetches {CIFAR10_URL} and is not installed: pip install torchvision") from error
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".part", dir=place) as part:
        try:
            utils.download_and_extract_archive(CIFAR10_URL, part, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
            os.replace(Path(part) / folder.name, folder)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{CIFAR10_URL} could not be fetched into {place}: {error}") from error
    return folder


class _Array:
    """Stands for a numpy array in a pickle, and makes one of its bytes: uint8 alone."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _Dtype) or dtype.name != b"u1" or column_major or not isinstance(data, bytes):
            raise UserError("it holds an array that is not of uint8, row by row")
        self.values = np.frombuffer(data, np.uint8).reshape(shape)


class _Dtype:
    def __init__(self, name: bytes, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        """Byte order and alignment, of which single bytes have none."""


class _Unpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dictionaries and arrays of uint8; nothing that a file names is imported or run."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if module == "numpy" and name in ("ndarray", "dtype"):
            return {"ndarray": _Array, "dtype": _Dtype}[name]
        raise UserError(f"it names {module}.{name}, which no data needs: it was not executed")


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3, 32, 32) uint8 and labels (n,) int64 of one file of CIFAR-10."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != CIFAR10_MD5[path.name]:
                right = f"its MD5 is {found}, not {CIFAR10_MD5[path.name]}"
                raise UserError(f"{path} is not the published file of CIFAR-10, it may be truncated: {right}")
            file.seek(0)
            batch = _Unpickler(file, encoding="bytes").load()
        pixels, labels = batch[b"data"].values.reshape(-1, 3, 32, 32), np.array(batch[b"labels"], dtype=np.int64)
        if labels.shape != pixels.shape[:1] or not ((labels >= 0) & (labels < 10)).all():
            raise ValueError("its labels are not one of ten classes for each image")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a broken pickle brings about
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(f"{path} cannot be read as a batch of CIFAR-10: {error}") from error
    return pixels, labels


def _open_batches(name: str, folder: Path) -> ImageSet:
    about = DATASETS[name]
    missing = [batch for batch in about.batches if not (folder / batch).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)} of {name}; it comes from {about.source}: {about.fetch}")

    @functools.cache
    def read() -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = zip(*(_read_batch(folder / batch) for batch in about.batches), strict=True)
        if sum(map(len, pixels)) != len_:
            raise UserError(f"{folder} holds {sum(map(len, pixels)):,} images, {name} has {len_:,}")
        return np.concatenate(pixels), np.concatenate(labels)

    len_ = about.shape[0]
    return ImageSet(
        name, about.shape, lambda rows: read()[0][rows], (folder, about.batches), read_labels=lambda: read()[1]
    )


def _open_files(name: str, folder: Path, resize: str) -> ImageSet:
    try:
        import PIL.Image
    except ImportError as error:
        raise UserError(
            f"the images of {name} are read by pillow, which is not installed: pip install pillow"
        ) from error
    base = name.partition(":")[0]
    n, _, height, width = shape = DATASETS[base].shape
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and path.is_file()
    )
    if len(names) != n:
        raise UserError(f"{folder} holds {len(names):,} PNG and JPEG images, {base} has {n:,}")

    def load(path: Path) -> np.ndarray:
        try:
            with PIL.Image.open(path) as image:
                if image.mode not in ("RGB", "L"):
                    raise UserError(f"{path} is of Pillow's mode {image.mode}: RGB or L (grey) of 8 bits is needed")
                if image.size != (width, height):
                    wrong = f"{path} is {image.width}x{image.height}, {base} is {width}x{height}"
                    if not resize:
                        raise UserError(f"{wrong}: {base}:FILTER resizes, FILTER one of {', '.join(FILTERS)}")
                    if image.width * height != image.height * width:
                        raise UserError(f"{wrong}: resizing would distort it")
                    image = image.convert("RGB").resize((width, height), PIL.Image.Resampling[resize.upper()])
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise UserError(f"{path} cannot be read as an image, it may be truncated: {error}") from error

    load(folder / names[0])  # a set of another size is told before anything is computed
    read = lambda rows: np.stack([load(folder / names[i]) for i in rows])  # noqa: E731
    return ImageSet(name, shape, read, (folder, names), resize, f"pillow {PIL.__version__}")


# ---- by name ---------------------------------------------------------------------------------------------------------

REFERENCES = {
    "digits-train": lambda: digits("train").images,
    "digits-heldout": lambda: digits("heldout").images,
    "glyphs32": lambda: glyphs32().images,
}


def open_images(name_or_path: str | Path) -> Tensor | ImageSet:
    """Images to compare with or to learn from, as few of them in memory as can be.

    Args:
        name_or_path: a name of :data:`REFERENCES` or of :data:`DATASETS`, for image files also NAME:FILTER; or an NPZ
            file with ``arr_0`` uint8 of shape (N, H, W, C).

    Returns:
        The tensor of :func:`load_images` for ``REFERENCES``, an :class:`ImageSet` for all else: an NPZ is in memory as
        uint8, as is CIFAR-10 once it was asked for an image; image files are read each time.

    Raises:
        UserError: for an unknown name or filter, what is not there (with its source), or what holds something else.
            Reading from the set raises it too, for a file that is broken or of another size.
    """
    name, path = str(name_or_path), Path(name_or_path)
    base, colon, resize = name.partition(":")
    if name in REFERENCES:
        return REFERENCES[name]()
    if base in DATASETS:
        if colon and (DATASETS[base].batches or resize not in FILTERS):
            if DATASETS[base].batches:
                raise UserError(f"{base} is never resized: leave out :{resize}")
            raise unknown(f"filter to resize {base} with", resize, FILTERS)
        folder = _find(base)
        return _open_batches(base, folder) if DATASETS[base].batches else _open_files(name, folder, resize)
    if path.suffix != ".npz":
        raise unknown("image set (no .npz file either)", name, [*REFERENCES, *DATASETS])
    array = read_npz(path, ["arr_0"]).get("arr_0")
    if array is None:
        raise UserError(f"{path} holds no array arr_0: uint8 images of shape (N, H, W, C) are needed")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise UserError(
            f"arr_0 of {path} is {array.dtype} of shape {array.shape}: uint8 (N, H, W, C) with C = 1 or 3 is needed"
        )
    images = array.transpose(0, 3, 1, 2)
    return ImageSet(name, images.shape, lambda rows: images[rows])


def load_images(name_or_path: str | Path) -> Tensor:
    """All images of :func:`open_images` at once, in memory.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: as :func:`open_images`.
    """
    images = open_images(name_or_path)
    return images if isinstance(images, Tensor) else images[:]


CASTS = ("round", "truncate")


def to_uint8(images: Tensor, data_range: tuple[float, float] = (0.0, 1.0), cast: str = "round") -> np.ndarray:
    """Images (N, C, H, W) in ``data_range`` as (N, H, W, C) uint8: clamped and cast to 256 levels.

    Args:
        cast: to the nearest level (``round``), or ``truncate`` as in the code published with DMCMC, which darkens every
            image by half a level on average.
    """
    low, high = data_range
    if cast == "round":
        levels = ((images.detach().cpu().double() - low) * (255 / (high - low))).round().clamp(0, 255)
    else:  # in float32, as published
        levels = ((images.detach().cpu() - low) / (high - low)).clamp(0, 1) * 255
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(array: np.ndarray, data_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Images (N, H, W, C) uint8 as (N, C, H, W) float32 in ``data_range``; the inverse of :func:`to_uint8`."""
    return _floats(torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(), data_range)


def _floats(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """uint8 of any shape as float32 in a range, in memory once."""
    low, high = data_range
    return images.float().div_(255).mul_(high - low).add_(low)
