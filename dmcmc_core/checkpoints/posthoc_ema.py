"""Post-hoc EMA: a network of a new averaging length from snapshots of one training; Karras et al. 2024, Section 3.

EDM2 averages weights by power functions of the training time: at time t the weights of time s count as s^gamma, with
gamma from a relative standard deviation ``std``, the length of the average in units of t. Snapshots of two lengths
suffice to make any other, by least squares between profiles. Arrays here are float64, as small differences decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dmcmc_core.checkpoints import families
from dmcmc_core.checkpoints.card import check_card
from dmcmc_core.errors import LOG, UserError, number

LONGEST = 12**-0.5
"""``std`` of the average of all weights alike, gamma = 0."""
SNAPSHOT = re.compile(r".*-(\d{1,12})-(\d{1,3}\.\d{1,9})\.pkl")
"""How files of snapshots are named: ...-thousands of images-std.pkl."""
MISMATCH = 0.1
"""From which part of a profile that snapshots cannot make a message says so."""
Array = NDArray[np.float64]


class Snapshot(NamedTuple):
    """A pickle of EDM2, the images that its training had seen, and the ``std`` of its average."""

    path: Path
    nimg: float
    std: float


def std_of(exponent: ArrayLike) -> Array:
    """Return the relative standard deviation of t^gamma on [0, 1], gamma > -1; equation 123."""
    g = np.asarray(exponent, dtype=np.float64)
    return np.sqrt(g + 1) / ((g + 2) * np.sqrt(g + 3))


def exponent_of(std: ArrayLike) -> Array:
    """Return gamma >= 0 of a relative standard deviation, the root of (g + 2)^2 (g + 3) = (g + 1) / std^2.

    Raises:
        UserError: for a ``std`` that is not above 0 and at most 12^-0.5 = 0.288..., that of an average of all alike.
    """
    values = np.asarray(std, dtype=np.float64)
    for value in values.ravel().tolist():
        number("the std of an EMA", value, above=0, most=LONGEST * (1 + 1e-12))
    t = values.ravel() ** -2
    roots = [np.roots([1, 7, 16 - each, 12 - each]).real.max() for each in t]
    return np.maximum(np.array(roots), 0).reshape(values.shape)


def beta(std: ArrayLike, nimg: ArrayLike, step: ArrayLike) -> Array:
    """Return the decay (1 - step / nimg)^(gamma + 1) of the step that arrives at ``nimg``; equation 127."""
    share = np.asarray(step, dtype=np.float64) / np.asarray(nimg, dtype=np.float64)
    return (1 - share) ** (exponent_of(std) + 1)


def correlation(nimg: ArrayLike, std: ArrayLike, other_nimg: ArrayLike, other_std: ArrayLike) -> Array:
    """Return the inner products (n, m) of profiles (n,) with others (m,), each profile integrating to 1; Appendix C.

    That of gamma at t with gamma' at t' >= t is (gamma + 1) (gamma' + 1) (t / t')^gamma' / ((gamma + gamma' + 1) t').
    """
    t, u = np.asarray(nimg, dtype=np.float64)[:, None], np.asarray(other_nimg, dtype=np.float64)[None]
    g, h = exponent_of(std)[:, None], exponent_of(other_std)[None]
    shrunk = np.where(t < u, (t / u) ** h, (u / t) ** g)
    return (g + 1) * (h + 1) * shrunk / ((g + h + 1) * np.maximum(t, u))


def coefficients(nimg: ArrayLike, std: ArrayLike, out_nimg: ArrayLike, out_std: ArrayLike) -> Array:
    """Return the weights (n, m) of n snapshots in the m averages that come nearest to the profiles asked for.

    They are scaled to add up to 1, as published. ``out_nimg`` (m,) or one for all.

    Raises:
        UserError: for two snapshots of the same time and length.
    """
    outs = np.broadcast_arrays(np.asarray(out_nimg, dtype=np.float64), np.atleast_1d(np.asarray(out_std)))
    try:
        nearest = np.linalg.solve(correlation(nimg, std, nimg, std), correlation(nimg, std, *outs))
        return nearest / nearest.sum(0)
    except np.linalg.LinAlgError:
        raise UserError("two snapshots are of the same time and length: leave one out") from None


def mismatch(weights: Array, nimg: ArrayLike, std: ArrayLike, out_nimg: float, out_std: float) -> float:
    """Return the part of a profile's norm, 0 to 1, that snapshots by these weights (n,) do not make."""
    own, asked = correlation(nimg, std, nimg, std), ([out_nimg], [out_std])
    whole = correlation(*asked, *asked).item()
    left = whole - 2 * weights @ correlation(nimg, std, *asked)[:, 0] + weights @ own @ weights
    return float(np.sqrt(max(left, 0) / whole))


def snapshots_in(folder: Path) -> list[Snapshot]:
    """Return the snapshots in a folder, by time and length, which their names tell; UserError for none."""
    found = [(path, SNAPSHOT.fullmatch(path.name)) for path in sorted(folder.iterdir()) if path.is_file()]
    named = [Snapshot(path, 1000.0 * int(m[1]), float(m[2])) for path, m in found if m]
    if not named:
        raise UserError(f"{folder} holds no snapshots of EDM2, network-snapshot-KIMG-STD.pkl, such as -0021474-0.050")
    return sorted(named, key=lambda s: (s.nimg, s.std))


def reconstruct(
    snapshots: Sequence[Snapshot], std: float, nimg: float | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network whose average has the length ``std`` at ``nimg`` images (None: the last snapshot's).

    Every snapshot is cast to float32 before its share is taken; sums are in float64.

    Raises:
        UserError: for a ``std`` outside (0, 12^-0.5], no snapshots, one later than ``nimg`` or given twice, a file that
            is no network of EDM2, and networks that are not of one training.
    """
    if not snapshots:
        raise UserError("a new EMA needs snapshots, at least one")
    exponent_of(std)
    end = max(s.nimg for s in snapshots) if nimg is None else number("nimg", nimg, above=0)
    _check_order(snapshots, end)
    times, lengths = [s.nimg for s in snapshots], [s.std for s in snapshots]
    weights = coefficients(times, lengths, end, [std])[:, 0]
    far = mismatch(weights, times, lengths, end, std)
    if far > MISMATCH:
        LOG.warning(
            f"these {len(snapshots)} snapshots make an EMA of std {std:g} with a mismatch of {far:.0%}: take more of "
            "them, or a std nearer to theirs"
        )
    net, card = _summed(snapshots, weights)
    card |= {"ema": {"std": std, "nimg": end, "snapshots": len(snapshots), "mismatch": far}}
    return net, card


def _check_order(snapshots: Sequence[Snapshot], end: float) -> None:
    """Raise UserError for a snapshot later than ``end``, or two of one time and length."""
    seen: dict[tuple[float, float], Path] = {}
    for path, nimg, std in snapshots:
        number(f"the images seen by {path}", nimg, above=0)
        if nimg > end:
            raise UserError(f"{path} is of {nimg:,.0f} images, after the {end:,.0f} of the network asked for")
        if (nimg, std) in seen:
            raise UserError(f"{seen[nimg, std]} and {path} are of the same time and length: leave one out")
        seen[nimg, std] = path


def _summed(snapshots: Sequence[Snapshot], weights: Array) -> tuple[nn.Module, dict[str, Any]]:
    """Return the weighted sum of the snapshots' parameters, in the network of the last, and its card."""
    sums: dict[str, Tensor] = {}
    first: tuple[Path, dict[str, Any], dict[str, Tensor]] | None = None
    net, card = None, {}
    for (path, _, _), weight in zip(snapshots, weights.tolist(), strict=True):
        net, card = families.read(path, None)
        if card["architecture"] != "edm2":
            raise UserError(f"{path} holds no network of EDM2, whose snapshots a new EMA is made from")
        fixed = dict(net.named_buffers())
        first = first or (path, net.config, fixed)
        same = net.config == first[1] and all(torch.equal(t, first[2][name]) for name, t in fixed.items())
        if not same:
            raise UserError(f"{path} is not of the same training as {first[0]}: its network is another")
        for name, parameter in net.named_parameters():
            term = weight * parameter.detach().double()
            sums[name] = sums[name].add_(term) if name in sums else term
    assert net is not None
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(sums[name])
    check_card(card, snapshots[-1].path)
    return net, {key: value for key, value in card.items() if key != "name"}
