"""The noise levels of a run: between which of those of its network it asks it, and where it starts.

A network may know levels far above those that its data needs: cosine betas end at 20,291, zero terminal SNR beyond any
bound. A grid of few levels that begins there spends them on noise in which nothing of the data is left.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from dmcmc_core.denoiser import Denoiser, Narrowed
from dmcmc_core.errors import LOG, number

HIGH = 164.0
"""A start that is high enough for any images of moderate size, in units of the data; no model is started below it."""


def narrowed(model: Denoiser, sigma_min: float | None = None, sigma_max: float | None = None) -> Denoiser:
    """Return the model between the levels asked for; where no ``sigma_max`` is, see :func:`default_start`.

    A model that is narrowed already keeps its levels but for those asked for.

    Raises:
        UserError: for levels outside the model's own, and a start in its card that is none of them.
    """
    if sigma_max is None and not hasattr(model, "network_levels"):
        sigma_max = default_start(model)
    return model if sigma_min is None and sigma_max is None else Narrowed(model, sigma_min, sigma_max)


def default_start(model: Denoiser) -> float | None:
    """Return where runs of a model start if not at its sigma_max, and say so once; None: at its sigma_max.

    That is ``start`` of its card, or else the largest distance that two images can have, as of two colours all over,
    where sigma_max is above it and above :data:`HIGH`: from there a noisy image may have come from any of the data
    (Song & Ermon 2020, arXiv 2006.09011, technique 1, in the worst case).

    Raises:
        UserError: for a start in the card that is no level of the model.
    """
    low, high = model.sigma_min, model.sigma_max
    own = (getattr(model, "card", None) or {}).get("start")
    if own is not None:
        start, why = float(number("start in the model's card", own, above=low, most=high)), "as its card says"
    else:
        black, white = model.data_range
        start = max(HIGH, (white - black) * math.sqrt(math.prod(model.shape)))
        why = "as its data needs no more"
    if not start < high:
        return None
    _say(
        f"sampling starts at sigma_max={start:g} and not at the model's last level, {high:g}, {why}: a setting "
        f"sigma_max={high:.6g} would"
    )
    return start


@functools.cache
def _say(sentence: str) -> None:
    """Say a sentence once in a process."""
    LOG.warning(sentence)


def levels_of(model: Any) -> dict[str, float]:
    """Return the noise levels between which a model is asked, by name; none of a network that goes between times."""
    return {name: getattr(model, name) for name in ("sigma_min", "sigma_max") if hasattr(model, name)}
