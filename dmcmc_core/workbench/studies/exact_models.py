"""What is exact beside a network: the ideal denoiser of the images that it has seen, and fine noise levels for it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.noise_level import log_levels
from dmcmc_core.report.testbed import Testbed


def seen_images(bed: Testbed) -> Tensor:
    """Return the images that a model has seen, (n, *shape): its training images, or those of an exact model."""
    return bed.train if bed.train is not None else bed.model.images  # pyright: ignore[reportAttributeAccessIssue]


def exact_model(bed: Testbed) -> Any:
    """Return a model of known density: an exact one itself, else the ideal denoiser of what the network has seen.

    Where no training images were named, those of the reference stand for them.
    """
    net = bed.model
    if hasattr(net, "images"):
        return net
    seen: Any = bed.heldout if bed.train is None else bed.train
    return EmpiricalData(seen, sigma_min=net.sigma_min, sigma_max=net.sigma_max, data_range=net.data_range)


def fine_levels(model: Denoiser) -> Tensor:
    """Return descending noise levels (levels,), a few times finer than the posterior is wide.

    In log sigma that is about 1 / sqrt(2 d) of d numbers.
    """
    return log_levels(model.sigma_max, model.sigma_min, min(1000, 200 + math.prod(model.shape) // 3))
