"""A run that is looked at: every network call is counted, kept as a small picture, and may be the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.denoiser import Wrapper

SHOWN = 64
"""Images of a call that are kept."""
BYTES = 64 * 2**20
"""Memory that the pictures of a run take at most; beyond it every other call goes."""
MOST = 512
"""Calls that are kept at most."""


class Cancelled(Exception):  # noqa: N818  no error: somebody asked for it
    """Raised within a run that was asked to stop."""


class Frame(NamedTuple):
    """What a network call was about.

    ``call``: its number, from 1; ``phase``: ``chains`` or ``images``; ``sigma`` (rows,): noise levels, or times of a
    linear diffusion; ``x`` and ``denoised`` (rows, C, H, W) uint8: what it was asked and what it answered, where x is
    drawn with mean and spread of images at every level.
    """

    call: int
    phase: str
    sigma: np.ndarray
    x: np.ndarray
    denoised: np.ndarray


class Log:
    """What a watched run has done so far; its frames may be read by any thread while it goes on.

    A :class:`dmcmc_core.runs.measured.Watch`. ``rows`` are network evaluations, of all images together.
    """

    def __init__(self, stop: threading.Event | None = None, frames: bool = True) -> None:
        self.stop, self.keeps = stop or threading.Event(), frames
        self._lock, self._images, self._stride = threading.Lock(), (), 1
        self._frames: list[Frame] = []
        self._newest: Frame | None = None
        self.rows = self.calls = 0
        self.began = self.first = None

    # A watch of runs

    def around(self, model: Any) -> Any:
        """Return the model that tells this log of every call."""
        return Watched(model, self)

    def integrates(self, images: Sequence[int]) -> None:
        """Learn whose rows the next calls are of."""
        self._images = tuple(images[:SHOWN])

    def check(self) -> None:
        """Raise Cancelled where the run is to stop."""
        if self.stop.is_set():
            raise Cancelled
        if self.began is None:
            self.began = time.perf_counter()

    def called(self, model: Any, x: Tensor, sigma: Tensor, answer: Tensor) -> None:
        """Take up a call that is done."""
        self.calls, self.rows = self.calls + 1, self.rows + len(x) * getattr(model, "rows_per_image", 1)
        first = self._images[0] if self._images else 0
        if not self.keeps or first >= SHOWN and self.calls % self._stride:
            return
        if self._images and len(x) < len(self._images):  # some images are done: no picture of all
            return
        frame = _frame(model, self.calls, "images" if self._images else "chains", x, sigma, answer)
        with self._lock:
            self._newest = frame
            if first < SHOWN and not self.calls % self._stride:
                self._frames.append(frame)
                self._thin()
        self.first = self.first or time.perf_counter()

    def _thin(self) -> None:
        size = sum(part.nbytes for part in self._frames[-1][2:])
        if len(self._frames) > min(MOST, max(32, BYTES // max(1, size))):
            self._frames, self._stride = self._frames[1::2], 2 * self._stride

    # For those who look

    @property
    def frames(self) -> list[Frame]:
        """The calls that are kept, the newest last."""
        with self._lock:
            return list(self._frames)

    @property
    def newest(self) -> Frame | None:
        """The newest call, be it kept or not."""
        with self._lock:
            return self._newest


class Watched(Wrapper):
    """A denoiser, or the network of a linear diffusion, that tells a :class:`Log` of its calls and changes no bit."""

    def __init__(self, model: Any, log: Log) -> None:
        super().__init__(model)
        self.log = log

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return D(x, sigma) of the model inside.

        Raises:
            Cancelled: where the log is to stop.
        """
        self.log.check()
        answer = self.denoiser(x, sigma, *labels)
        self.log.called(self.denoiser, x, sigma, answer)
        return answer


class Stoppable(Wrapper):
    """A denoiser that does nothing but to raise Cancelled when its log is to stop: for fits and searches."""

    def __init__(self, model: Any, log: Log) -> None:
        super().__init__(model)
        self.log = log

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return D(x, sigma) of the model inside."""
        if self.log.stop.is_set():
            raise Cancelled
        return self.denoiser(x, sigma, *labels)


def _frame(model: Any, call: int, phase: str, x: Tensor, sigma: Tensor, answer: Tensor) -> Frame:
    x, answer = x[:SHOWN].detach(), answer[:SHOWN].detach()
    level = torch.as_tensor(sigma).detach().float().cpu().reshape(-1)[:SHOWN].expand(len(x))
    if hasattr(model, "sde"):
        x, answer = _observed(model.sde, x, answer, sigma)
        return Frame(call, phase, level.numpy(), _levels(x, (-1, 1)), _levels(answer, (-1, 1)))
    low, high = model.data_range if np.isfinite(model.data_range).all() else (-1.0, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2
    spread = (1 + (level.to(x) / half) ** 2).sqrt().reshape(-1, *[1] * (x.ndim - 1))
    return Frame(
        call, phase, level.numpy(), _levels(middle + (x - middle) / spread, (low, high)), _levels(answer, (low, high))
    )


def _observed(sde: Any, u: Tensor, epsilon: Tensor, t: Any) -> tuple[Tensor, Tensor]:
    """Return the position that a state of a linear diffusion has, and the datum that its epsilon means."""
    time_ = float(torch.as_tensor(t).reshape(-1)[0])
    clean = sde.apply(sde.inverse(sde.gain(time_)), u - sde.apply(sde.R(time_), epsilon))
    return sde.drop(u), sde.drop(clean)


def _levels(x: Tensor, ends: tuple[float, float]) -> np.ndarray:
    low, high = ends
    return ((x - low) * (255 / (high - low))).clamp(0, 255).to(torch.uint8).cpu().numpy()
