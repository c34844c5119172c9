"""``evaluate``: images compared with a reference."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    p.add_argument(
        "directory",
        type=Path,
        metavar="IMAGES",
        help="what sample wrote; or images of other programs: a folder of PNG and JPEG files, or an NPZ (arr_0) or NPY "
        "file, uint8 (N, H, W, C)",
    )
    p.add_argument(
        "--reference",
        metavar="R",
        help="digits-heldout, digits-train, glyphs32; cifar10-train, cifar10-test, celebahq-256 or ffhq-1024, looked "
        "for in DMCMC_DATA and exp/paper (NAME:FILTER resizes the last two); or the path of images as above, or of a "
        "file of statistics (mu, sigma; mean, cov) or features (pool_3): NPZ, and statistics also .pt or .pkl",
    )
    p.add_argument(
        "--features",
        metavar="F",
        help="digits-cnn, glyphs-cnn, random-conv or inception; only distances in the last are called FID",
    )
    p.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    p.add_argument("--weights", type=Path, metavar="FILE", help="weights of the Inception network")
    p.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="resamples of the images for the interval of the Fréchet distance (default: 100 for at most 128 features, "
        "else 0, as each costs an eigendecomposition)",
    )
    p.add_argument(
        "--protocol",
        default="lossless",
        metavar="P",
        help="lossless (default), or dmcmc: the images through JPEG first, as the code published with DMCMC "
        "does after a truncating cast: sample with --set cast=truncate for the whole of it",
    )
    p.add_argument(
        "--allow-mixed-encodings",
        action="store_true",
        help="compare lossless images with a reference in JPEG files, or the other way round, which is refused else",
    )
    p.add_argument(
        "--first", type=int, metavar="n", help="only the first n images, of a run that made more than another"
    )
    p.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the JSON of an earlier evaluation: print the differences from it too, and whether that of the Fréchet "
        "distances is beyond two standard errors of both bootstraps; refused unless number of images, features, "
        "reference, protocol and encoding are the same",
    )
    p.add_argument(
        "--paired-with",
        type=Path,
        metavar="SAMPLES",
        help="samples of the same model, seed and start by an accurate solver: print how far each image is from its "
        "own there, as paired; --reference and --features may then be left out",
    )


def evaluate(a: argparse.Namespace) -> int:
    """Print the comparison."""
    from dmcmc_core.metrics import evaluation

    missing = [f"--{name}" for name in ("reference", "features") if getattr(a, name) is None]
    if missing and not (a.paired_with and len(missing) == 2):
        raise UserError(f"the following arguments are required: {', '.join(missing)} (see {PROGRAM} evaluate --help)")

    result = evaluation.evaluate(
        a.directory,
        a.reference,
        a.features,
        weights=a.weights,
        bootstrap=a.bootstrap,
        protocol=a.protocol,
        allow_mixed_encodings=a.allow_mixed_encodings,
        first=a.first,
        against=a.against,
        paired_with=a.paired_with,
    )
    print(json.dumps(result, default=_number) if a.json else f"{headline(result)}\n{readable(result)}")
    return 0


def headline(result: dict[str, Any]) -> str:
    """Return a result in one line: the distance, what as many images of the reference have, n; and the difference."""
    if "frechet" not in result:
        paired = result["paired"]
        return f"paired error {paired['error']:.4g} with {paired['with']}, n {paired['n']}"
    floor = result.get("same_n_floor")
    said = f"{result['name']} {result['frechet']:.4g}" + (f", same-n floor {floor:.4g}" if floor is not None else "")
    said += f", n {result['n']}"
    if against := result.get("against"):
        sure = {True: "significant", False: "not significant", None: "no telling without both bootstraps"}
        said += f"; {against['frechet']:+.4g} against {against['file']}, {sure[against['significant']]}"
    return said


def readable(result: dict[str, Any]) -> str:
    """Return results as lines, names left and values right; those of a dictionary inside are called NAME.ITS-NAME."""
    lines = dict(_flat(result))
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _flat(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in result.items():
        value = _number(value) if hasattr(value, "item") or hasattr(value, "tolist") else value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None:
            yield prefix + name, "-"
        elif isinstance(value, list | tuple):
            yield prefix + name, json.dumps(value, default=_number)
        else:
            yield prefix + name, f"{value:.6g}" if isinstance(value, float) else value


def _number(value: Any) -> Any:
    """Return what JSON can hold for what it cannot: numbers and arrays of NumPy and torch, paths."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


EVALUATE = Verb(
    evaluate,
    arguments,
    "Fréchet distance, KID, precision, recall, density and coverage of images against a reference.\n"
    "KID is the unbiased squared MMD of the kernel (x . y / d + 1)^3 over all pairs, d the number of features:\n"
    "the value itself, not times 1000, no mean over subsets; it is 0 on average for equal distributions and may\n"
    "be negative.\n\n"
    "blocks: the distances of three equal parts of the images, in their order; they are of fewer images and do\n"
    "not compare with the whole. bootstrap: a 95 % interval; it covers the chance in which images were\n"
    "drawn, of DLG in which chains, but not the dependence within a chain. kid_error: the standard error of kid, of\n"
    "the same chance. classes: by the classifier behind digits-cnn and glyphs-cnn.\n"
    "memorisation: for references that name training and held-out images (digits, cifar10).\n"
    "paired, with --paired-with: error is the root mean square over all images and pixels that both folders have,\n"
    "in units of the data; mean, median and largest are of the error of an image. Both folders are rounded to 256\n"
    "levels and clipped to the data range: errors below rounding tell nothing.\n\n"
    "Folders are searched to the bottom, links followed, names that begin with a dot left out; images of several\n"
    "sizes are refused. An NPZ with images and statistics is one of images. images_source and reference_source say\n"
    "what each side is, and what was not used.\n\n"
    "Features and statistics are kept in exp/cache by the content of the images: 4 bytes a feature and image.\n"
    "The memory needed does not grow with the number of images; an interrupted evaluation goes on where it was.",
    f"examples:\n  {PROGRAM} evaluate images --reference digits-heldout --features digits-cnn --json > a.json\n"
    f"  {PROGRAM} evaluate others --reference digits-heldout --features digits-cnn --against a.json\n"
    f"  {PROGRAM} evaluate five-steps --paired-with two-hundred-steps\n"
    f"  {PROGRAM} evaluate samples_50000x64x64x3.npz --reference folder-of-png --features random-conv",
)
