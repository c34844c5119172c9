"""Data: real digits from scikit-learn, glyphs rendered from matplotlib's fonts, and published sets that lie on disk.

Digits and glyphs are the same on every machine with the same library versions; nothing of them is downloaded or stored.
Published sets (:data:`DATASETS`) are read from DMCMC_DATA or exp/paper, when and as far as they are asked for. A folder
of samples is such a set too, and so are folders and files of other programs: :func:`open_generated` reads them as they
are asked for. Single pictures to train on are those of :func:`load_pictures`.
"""

from dmcmc_core.data.cifar10 import download_cifar10
from dmcmc_core.data.digits import HELD_OUT, digits
from dmcmc_core.data.glyphs import CHARACTERS, FACES, STYLES, glyphs32
from dmcmc_core.data.images import CASTS, Images, ImageSet, from_uint8, to_uint8
from dmcmc_core.data.names import REFERENCES, load_images, open_images
from dmcmc_core.data.pictures import PICTURES, load_pictures
from dmcmc_core.data.published import (
    CIFAR10_MD5,
    CIFAR10_URL,
    DATASETS,
    FILTERS,
    VARIABLE,
    Published,
    places,
    root,
)
from dmcmc_core.data.samples import SampleFolder, load_samples, open_generated, open_samples

__all__ = [
    "CASTS",
    "CHARACTERS",
    "CIFAR10_MD5",
    "CIFAR10_URL",
    "DATASETS",
    "FACES",
    "FILTERS",
    "HELD_OUT",
    "PICTURES",
    "REFERENCES",
    "STYLES",
    "VARIABLE",
    "ImageSet",
    "Images",
    "Published",
    "SampleFolder",
    "digits",
    "download_cifar10",
    "from_uint8",
    "glyphs32",
    "load_images",
    "load_pictures",
    "load_samples",
    "open_generated",
    "open_images",
    "open_samples",
    "places",
    "root",
    "to_uint8",
]
