"""The integrator of a run, counted and timed, with an error that names the image where values are not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from dmcmc_core import gddim
from dmcmc_core.denoiser import CountNFE, per_row
from dmcmc_core.errors import UserError
from dmcmc_core.guidance import labels_of, of_images
from dmcmc_core.runs.kinds import LinearPlan, Plan
from dmcmc_core.streams import Streams


class Watch(Protocol):
    """Looks on while a run makes images, and changes none of them; an exception that it raises ends the run."""

    def around(self, model: Any) -> Any:
        """Return what the run asks in place of its model: a wrapper with the same answers."""
        ...

    def integrates(self, images: Sequence[int]) -> None:
        """Learn which images the rows of the calls from here on are of; none of any, but of chains, where empty."""
        ...


class Measured:
    """The integrator of a plan, as :func:`dmcmc_core.dmcmc.denoising_mcmc` calls it: counted, timed, its images finite.

    ``rows``, ``seconds`` and ``labels``, the classes of its images if the model is held to any, are those of the last
    call. A ``watch`` learns which images are integrated.
    """

    def __init__(self, plan: Plan, watch: Watch | None = None) -> None:
        self.plan, self.schedule, self.watch = plan, getattr(plan, "schedule", None), watch
        self.rows, self.seconds, self.labels = 0, 0.0, None

    def __call__(self, counted: CountNFE, x: Tensor, sigmas: Tensor, *, noise: Streams) -> Tensor:
        """Return images from x, down the grid."""
        counted = of_images(counted, noise)
        return self._measured(counted, noise, lambda **how: self.plan.integrate(counted, x, sigmas, noise, **how))

    def linear(self, counted: CountNFE, u: Tensor, noise: Streams) -> Tensor:
        """Return images from states of a linear diffusion's prior."""
        plan, counted = self.plan, of_images(counted, noise)
        low, high = counted.data_range

        def sample(**_: Any) -> Tensor:
            unit = gddim.images(counted, plan.name, u, plan.levels - 1, noise, **plan.options)
            return low + (high - low) * unit

        return self._measured(counted, noise, sample)

    def _measured(self, counted: CountNFE, noise: Streams, sample: Callable[..., Tensor]) -> Tensor:
        counted.reset()
        started = time.perf_counter()
        if self.watch:
            self.watch.integrates(noise.indices)
        images = self._finite(noise, sample)
        if self.watch:
            self.watch.integrates(())
        self.rows, self.seconds = counted.rows, time.perf_counter() - started
        self.labels = labels_of(counted, len(images))
        return images

    def _finite(self, noise: Streams, sample: Callable[..., Tensor]) -> Tensor:
        """Return the images; UserError with the sampler, the step and the level where one is not finite any more."""
        plan, steps, drawn = self.plan, [], noise.state
        try:
            x = sample(callback=lambda step, *_: steps.append(step))
        except UserError as error:
            images = f"images {noise.indices[0]} to {noise.indices[-1]}"
            step = "" if isinstance(plan, LinearPlan) else f", step {len(steps) + 1}"
            raise UserError(f"{error} ({plan.sampler}, {images}{step})") from None
        if torch.isfinite(x).all():
            return x
        raise UserError(
            f"the sampler gave values that are not finite from image {noise.indices[0]} on: {plan.sampler}, "
            f"{self._where(noise, drawn, sample)}; use more levels, or options nearer to their defaults"
        )

    def _where(self, noise: Streams, drawn: Any, sample: Callable[..., Tensor]) -> str:
        """Say where values stop being finite, by sampling once more."""
        bad: list[str] = []

        def look(step: int, steps: int, sigma: Tensor, x: Tensor) -> None:
            rows = (~torch.isfinite(x)).flatten(1).any(1).nonzero()[:, 0]
            if len(rows) and not bad:
                row = int(rows[0])
                level = per_row(sigma, x)[row].item()
                bad.append(f"image {noise.indices[row]} in step {step} of {steps}, to sigma = {level:g}")

        noise.state = drawn
        with suppress(UserError):
            sample(callback=look)
        tweedie = getattr(self.plan, "tweedie", None)
        at_end = "at its end" if tweedie is None else f"in the denoising at sigma = {tweedie:g} after that"
        return bad[0] if bad else at_end
