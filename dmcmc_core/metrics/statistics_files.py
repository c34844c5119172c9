"""Statistics and features that projects publish as references: NPZ, PyTorch's files and pickles, read as data."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dmcmc_core.checkpoints.torch_files import ENDINGS, TorchFile, Unread, is_tensor
from dmcmc_core.data.pickles import Array, Unpickler
from dmcmc_core.errors import UserError, sentence
from dmcmc_core.files import npz_shapes, read_npz

PAIRS = (("mu", "sigma"), ("mean", "cov"))
"""Names of mean and covariance: of pytorch-fid, torch-fidelity and EDM; of chainer's."""
FEATURES = "pool_3"
"""Name of the features themselves, in the files of score_sde."""
INCEPTION = "fid"
"""What EDM2 calls the statistics of the Inception network, beside those of others."""
PICKLES = (".pkl", ".pickle")
TAKEN = "mu (d,) and sigma (d, d), or mean and cov, alone or under 'fid', are taken from such files"


class Recorded(NamedTuple):
    """Statistics or features of a file, NumPy's arrays, and what the file is in words."""

    mu: Any
    """(d,); None of features."""
    sigma: Any
    """(d, d); None of features."""
    features: np.ndarray | None
    """(n, d) float32; None of statistics."""
    source: str


def read_published(path: Path) -> Recorded | None:
    """Read a file of statistics or features; None for any other path, an NPZ file of images among them.

    An NPZ file holds a mean and a covariance (see ``PAIRS``), or features ``pool_3`` (n, ...), which go before
    statistics beside them; where it holds ``arr_0``, it is a file of images. A file of PyTorch or a pickle holds a
    mapping with mean and covariance, or mappings with these by the name of their network, of which ``fid`` is taken. A
    mean may have the shape (1, d).

    Raises:
        UserError: for a file that is not there or cannot be read, a pickle that names anything but arrays, statistics
            under two pairs of names, and mappings without statistics.
    """
    if path.suffix == ".npz" and path.is_file():
        return _of_npz(path)
    if path.suffix not in (*ENDINGS, *PICKLES) or path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.suffix in PICKLES:
        return _of_mapping(_of_pickle(path.read_bytes(), path), path)
    file = TorchFile(path)
    if not _any_tensor(file.content):  # torch-fidelity saves NumPy's arrays
        return _of_mapping(_of_pickle(file.pickled(), path), path)
    return _of_mapping(file.content, path, lambda tensor: _of_tensor(file.numbers(tensor), path))


def _of_tensor(tensor: Tensor, path: Path) -> np.ndarray:
    """Return the numbers of a tensor as float64; UserError where they are not real, or not all in the file."""
    odd = tensor.is_nested or tensor.is_meta or str(tensor.layout) != "torch.strided" or tensor.is_complex()
    if odd or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():  # one number may stand for many
        raise UserError(
            f"a tensor of {path}, {tensor.dtype} of shape {tuple(tensor.shape)!s:.60}, is no dense array: {TAKEN}"
        )
    return tensor.detach().double().numpy()


def _of_npz(path: Path) -> Recorded | None:
    shapes = npz_shapes(path)
    if "arr_0" in shapes:
        return None
    if FEATURES in shapes:
        features = read_npz(path, (FEATURES,))[FEATURES]
        if features.dtype.kind != "f" or features.ndim < 2 or features.size == 0:
            about = f"{features.dtype} of shape {features.shape}"
            raise UserError(f"{FEATURES} of {path} is {about}: floats (n, d) are needed")
        features = features.reshape(len(features), -1).astype(np.float32)
        return Recorded(None, None, features, _words(f"{len(features)} features {FEATURES}", shapes, (FEATURES,)))
    pair = _pair(shapes, path)
    if pair is None:
        return None
    mean, cov = (read_npz(path, (name,))[name] for name in pair)
    return _statistics(mean, cov, path, _words(" and ".join(pair), shapes, pair))


def _words(taken: str, names: Iterable[str], used: Iterable[str]) -> str:
    unused = [name for name in map(str, names) if name not in set(used)]
    return taken + (f"; not used: {', '.join(unused)[:200]}" if unused else "")


def _pair(names: Iterable[str], path: Path) -> tuple[str, str] | None:
    """Return the names of mean and covariance; None where there are none, UserError where there are two pairs."""
    there = [pair for pair in PAIRS if set(pair) <= set(names)]
    if len(there) > 1:
        raise UserError(f"{path} holds both mu and sigma and mean and cov: one mean and covariance are needed")
    return there[0] if there else None


def _statistics(mean: np.ndarray, cov: np.ndarray, path: Path, source: str) -> Recorded:
    for name, values in (("mean", mean), ("covariance", cov)):
        if values.dtype.kind not in "fiu":
            raise UserError(f"the {name} in {path} is of {values.dtype}: real numbers are needed")
    return Recorded(mean[0] if mean.ndim == 2 and len(mean) == 1 else mean, cov, None, source)


def _of_mapping(content: Any, path: Path, read: Callable[[Any], np.ndarray] | None = None) -> Recorded:
    """Return the statistics in a mapping, or in one of the mappings that it holds; ``read`` reads a tensor."""
    if not isinstance(content, Mapping):
        what = "tensor" if is_tensor(content) else type(content).__name__
        raise UserError(f"{path} holds a {what} and no statistics: {TAKEN}")
    if pair := _pair(content, path):
        values = (read(content[name]) if read and is_tensor(content[name]) else content[name] for name in pair)
        mean, cov = (_array(value, name, path) for value, name in zip(values, pair, strict=True))
        return _statistics(mean, cov, path, _words(" and ".join(pair), content, pair))
    inner = {name: found for name, found in content.items() if isinstance(found, Mapping) and _pair(found, path)}
    name = INCEPTION if INCEPTION in inner else next(iter(inner), None)
    if name is None or (len(inner) > 1 and name != INCEPTION):
        what = "several statistics and none under 'fid'" if inner else "no statistics"
        raise UserError(f"{path} holds {what}, but {', '.join(map(str, content))[:200] or 'nothing'}: {TAKEN}")
    found = _of_mapping(inner[name], path, read)
    return found._replace(source=_words(f"{found.source} of {name}", content, (name,)))


def _array(values: Any, name: str, path: Path) -> np.ndarray:
    if isinstance(values, Array):
        values = values.values
    if not isinstance(values, np.ndarray):
        what = "NumPy array beside tensors" if isinstance(values, Unread) else type(values).__name__
        raise UserError(f"{name} of {path} is a {what}: an array or a tensor of floats is needed, both of one kind")
    return np.array(values)  # that of a pickle cannot be written to, of which torch would warn


class _Numbers(Unpickler):
    """The reader of pickles whose arrays hold floats."""

    numbers = ("f8", "f4")


def _of_pickle(content: bytes, path: Path) -> Any:
    try:
        return _Numbers(io.BytesIO(content)).load()
    except Exception as error:  # whatever a broken pickle brings about
        raise UserError(
            f"{path} cannot be read as a pickle of plain values and arrays, and nothing in it is executed: "
            f"{sentence(error)}; {TAKEN}"
        ) from error


def _any_tensor(content: Any) -> bool:
    """Tell whether a value is a tensor, or a mapping with one, or with a mapping with one."""
    outer = [*content.values()] if isinstance(content, Mapping) else [content]
    inner = [value for found in outer if isinstance(found, Mapping) for value in found.values()]
    return any(map(is_tensor, outer + inner))
