"""How far one set of images is from another: distances between features, between distributions, between neighbours.

Files from the bottom up: ``rows`` (tables of numbers), the equations on them (``frechet``, ``kid``, ``neighbours``,
``classes``, ``memorisation``), ``features`` (networks that turn images into rows: ``random_features``,
``inception_v3``), ``feature_sets`` and ``references`` (what is computed once; ``statistics_files``: by others),
``comparison``, ``protocol`` (encodings) and ``evaluation`` (images on disk, a reference by name or path).
``similarity`` is of a sample and the one picture that it should be, ``paired`` of samples and the accurate solutions
from their noise.
"""

from pathlib import Path

from dmcmc_core.metrics.classes import class_coverage, class_histogram, total_variation
from dmcmc_core.metrics.comparison import (
    PARTS,
    check_shape,
    compare,
    compare_classes,
    describe_for,
    interval,
    measure,
    require_equal_n,
    same_n_floor,
    spread_over_parts,
)
from dmcmc_core.metrics.evaluation import BOOTSTRAP, FEW_FEATURES, SPLITS, EvaluationSettings, evaluate
from dmcmc_core.metrics.feature_sets import FeatureSet, content, describe
from dmcmc_core.metrics.features import (
    FEATURES,
    Extractor,
    digits_cnn,
    distance_name,
    extract,
    extract_parts,
    glyphs_cnn,
    load_features,
    weights_sha256,
)
from dmcmc_core.metrics.frechet import bootstrap_frechet, covariance, frechet_distance, statistics, vector
from dmcmc_core.metrics.inception_v3 import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    WEIGHTS_VARIABLE,
    inception,
    inception_file,
)
from dmcmc_core.metrics.kid import kid, kid_error, kid_subsets, within
from dmcmc_core.metrics.memorisation import (
    Memorisation,
    Nearest,
    coverage_of_set,
    distance_to_set,
    expected_coverage,
    memorisation,
)
from dmcmc_core.metrics.neighbours import NEIGHBOURS, Prdc, prdc, radii
from dmcmc_core.metrics.paired import adds_noise, check_begun, paired_error, paired_errors, paired_folders, rounding
from dmcmc_core.metrics.protocol import PROTOCOLS, by_protocol, encoding_of, jpeg
from dmcmc_core.metrics.random_features import RandomConv, random_conv
from dmcmc_core.metrics.references import Reference, make_reference, published_statistics
from dmcmc_core.metrics.rows import ROWS, Rows, Table, table
from dmcmc_core.metrics.similarity import Crossing, crossings, mse, ssim

SOURCES = tuple(sorted(Path(__file__).parent.rglob("*.py")))
"""All files of this room: what is kept of a measurement is believed as long as none of them changes."""

__all__ = [
    "BOOTSTRAP",
    "FEATURES",
    "FEW_FEATURES",
    "INCEPTION_FILE",
    "INCEPTION_SHA256",
    "NEIGHBOURS",
    "PARTS",
    "PROTOCOLS",
    "ROWS",
    "SOURCES",
    "SPLITS",
    "WEIGHTS_VARIABLE",
    "Crossing",
    "EvaluationSettings",
    "Extractor",
    "FeatureSet",
    "Memorisation",
    "Nearest",
    "Prdc",
    "RandomConv",
    "Reference",
    "Rows",
    "Table",
    "adds_noise",
    "bootstrap_frechet",
    "by_protocol",
    "class_coverage",
    "class_histogram",
    "check_begun",
    "check_shape",
    "compare",
    "compare_classes",
    "content",
    "covariance",
    "coverage_of_set",
    "crossings",
    "describe",
    "describe_for",
    "digits_cnn",
    "distance_name",
    "distance_to_set",
    "encoding_of",
    "evaluate",
    "expected_coverage",
    "extract",
    "extract_parts",
    "frechet_distance",
    "glyphs_cnn",
    "inception",
    "inception_file",
    "interval",
    "jpeg",
    "kid",
    "kid_error",
    "kid_subsets",
    "load_features",
    "make_reference",
    "measure",
    "memorisation",
    "mse",
    "paired_error",
    "paired_errors",
    "paired_folders",
    "prdc",
    "published_statistics",
    "radii",
    "random_conv",
    "require_equal_n",
    "rounding",
    "same_n_floor",
    "spread_over_parts",
    "ssim",
    "statistics",
    "table",
    "total_variation",
    "vector",
    "weights_sha256",
    "within",
]
