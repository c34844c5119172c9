"""The number format that a network computes in: its own, or a shorter one for which the processor has units.

Autocast (bfloat16, float16) multiplies matrices in the shorter format and keeps weights, sums and normalisations in
float32; TF32 shortens the factors alone. The sampler's state and its noise stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.denoiser import Denoiser, Wrapper
from dmcmc_core.errors import UserError, one_of

FORMATS = ("float32", "tf32", "bfloat16", "float16")
AMPERE = (8, 0)
"""The first compute capability with TF32 and bfloat16."""


class InFormat(Wrapper):
    """A denoiser whose network computes in ``number_format``; its answers come back in the format of x.

    Args:
        number_format: one of :data:`FORMATS`, that :func:`usable` has for ``device``.

    Raises:
        UserError: for another one, and one that the processor would be no faster in.
    """

    def __init__(self, denoiser: Denoiser, number_format: str, device: str | torch.device = "cpu") -> None:
        super().__init__(denoiser)
        one_of("dtype", number_format, *FORMATS)
        self.number_format, able = number_format, usable(device)
        if number_format not in able:
            raise UserError(
                f"dtype={number_format} would be no faster here, as {device} has no units for it: dtype may be "
                f"{' or '.join(able)}"
            )

    def identity(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the model inside, and the format where it is not that of its weights."""
        return (self.denoiser,), () if self.number_format == "float32" else (self.number_format,)

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return D(x, sigma), of the shape and dtype of ``x``."""
        with computing_in(self.number_format, x.device.type):
            return self.denoiser(x, sigma, *labels).to(x.dtype)


def usable(device: str | torch.device) -> tuple[str, ...]:
    """Return which of :data:`FORMATS` a processor has units for, float32 first."""
    kind = torch.device(device).type
    if kind == "cuda":
        modern = torch.cuda.get_device_capability(device) >= AMPERE
        return FORMATS if modern else ("float32", "float16")
    known = getattr(torch.cpu, "get_capabilities", dict)() if kind == "cpu" else {}
    units = {"bfloat16": known.get("amx_bf16"), "float16": known.get("amx_fp16")}
    return ("float32", *(name for name, there in units.items() if there))


@contextmanager
def computing_in(number_format: str, device_type: str) -> Iterator[None]:
    """Let the operations inside compute in a format."""
    if number_format == "tf32":
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
    elif number_format == "float32":
        yield
    else:
        with torch.autocast(device_type, getattr(torch, number_format), cache_enabled=False):  # as CUDA graphs need
            yield
