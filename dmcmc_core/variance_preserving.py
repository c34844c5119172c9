"""Networks of variance-preserving diffusions as denoisers: x_t = alpha (x0 + sigma n), alpha = 1 / sqrt(1 + sigma^2).

What such a network was trained on is alpha x here, and its time that at which the noise is sigma: exact, for discrete
times at the levels trained on. :meth:`dmcmc_core.denoiser.Adapter.from_ddpm` and ``from_vp`` make models of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core.errors import LOG, UserError, number, one_of, switch
from dmcmc_core.evaluation_mode import modules_of
from dmcmc_core.schedules import vp_time
from dmcmc_core.shapes import checked_shape, like, per_row

FIRST = 1e-3
"""The first time at which a network of times in [0, 1] is asked."""
SMALL = 1.0
"""A largest noise level below which the product of alphas hardly was one."""


class Scalings(NamedTuple):
    """Factors of a network's input and output, and what it takes as noise level; each has the shape of sigma, (B,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def epsilon(sigma: Tensor, c_in: Tensor, time: Tensor) -> Scalings:
    """Return the scalings of Ho et al. 2020 (arXiv 2006.11239): x0 = x - sigma epsilon."""
    return Scalings(torch.ones_like(sigma), -sigma, c_in, time)


def velocity(sigma: Tensor, c_in: Tensor, time: Tensor) -> Scalings:
    """Return the scalings of Salimans & Ho 2022 (arXiv 2202.00512): v = alpha (epsilon - sigma x0), alpha = c_in."""
    return Scalings(c_in**2, -sigma * c_in, c_in, time)


def sample(sigma: Tensor, c_in: Tensor, time: Tensor) -> Scalings:
    """Return the scalings of a network that answers with x0."""
    return Scalings(torch.zeros_like(sigma), torch.ones_like(sigma), c_in, time)


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Scalings]] = {
    "epsilon": epsilon,
    "v": velocity,
    "x0": sample,
}
"""What a network predicts -> (sigma, alpha, time), each (B,), -> its scalings."""


def denoised(answer: Tensor, x: Tensor, c: Scalings) -> Tensor:
    """Return c_skip x + c_out F, of the shape of x; F is the first half of channels where an answer has twice those."""
    return like(c.c_skip, x) * x + like(c.c_out, x) * answer[:, : x.shape[1]]


def index_of(sigma: Tensor, log_levels: Tensor) -> Tensor:
    """Return the real-valued index (B,) float64 of noise levels (B,) among rising ones (T,) float64.

    It is exact at each of them. Between two of them log sigma is linear in the index; beyond the first and the last it
    is theirs.
    """
    at = sigma.double().log()
    after = torch.searchsorted(log_levels, at).clamp(1, len(log_levels) - 1)
    share = (at - log_levels[after - 1]) / (log_levels[after] - log_levels[after - 1])
    return (after - 1 + share).clamp(0, len(log_levels) - 1)


def levels_of(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    """Return sigma = sqrt((1 - abar) / abar) at each time, (T,) float64, rising, all finite.

    Args:
        alphas_cumprod: abar, (T,), the product of 1 - beta up to each time: falling within (0, 1). A last one of 0
            (zero terminal SNR) is noise alone, and left out.

    Raises:
        UserError: for another shape, fewer than two levels, numbers outside (0, 1), and numbers that do not fall.
    """
    try:
        kept = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach()
    except (TypeError, ValueError) as error:
        kind = type(alphas_cumprod).__name__
        raise UserError(f"alphas_cumprod must be a list of numbers or a tensor (T,), not a {kind}") from error
    if kept.ndim != 1:
        raise UserError(f"alphas_cumprod must have shape (T,), one number for each time, not {tuple(kept.shape)}")
    kept = kept[:-1] if len(kept) and kept[-1] == 0 else kept
    if len(kept) < 2:
        raise UserError(f"alphas_cumprod must have two numbers above 0 at least, not {len(kept)}")
    if not (inside := (kept > 0) & (kept < 1)).all():
        first = int((~inside).nonzero()[0])
        raise UserError(f"alphas_cumprod must lie within (0, 1), not be {kept[first]:g} at time {first}")
    if not (kept.diff() < 0).all():
        first = int((kept.diff() >= 0).nonzero()[0])
        raise UserError(
            f"alphas_cumprod must fall with time, as (1 - betas).cumprod(0) does, but {kept[first]:g} is followed by "
            f"{kept[first + 1]:g} at time {first + 1}"
        )
    levels = ((1 - kept) / kept).sqrt()
    if levels[-1] < SMALL:
        LOG.warning(
            f"alphas_cumprod ends at {kept[-1]:g}, where images are hardly noisy (sigma_max={levels[-1]:g}): it should "
            "be the product of all alphas, (1 - betas).cumprod(0)"
        )
    return levels


class VariancePreserving(torch.nn.Module):
    """A denoiser of a network of one's own: x (B, *shape), sigma () or (B,) and labels, if any -> E[x0 | x, sigma].

    Args:
        net: (alpha x, time (B,)[, labels]) -> its prediction, of the shape of x, with twice the channels where it
            learned variances too (the second half is left out), or an object with that as ``sample``.
        predicts: one of :data:`PREDICTIONS`.
        time: noise levels (B,) -> what the network takes for them, (B,); whole numbers reach it as such.
        about: what else decides ``time``, as JSON takes it: runs are named by it.
    """

    def __init__(
        self, net: Callable[..., Any], predicts: str, time: Callable[[Tensor], Tensor], about: Sequence[Any]
    ) -> None:
        super().__init__()
        if not callable(net):
            raise UserError(f"net must be callable as net(x, t), not a {type(net).__name__}")
        one_of("predicts", predicts, *PREDICTIONS)
        self.net, self.predicts, self.time = net, predicts, time
        self.train(getattr(net, "training", False))
        # A run is named by the hash of a model's tensors; what else makes this function is therefore one of them.
        recipe = list(json.dumps([predicts, *about]).encode())
        self.register_buffer("recipe", torch.tensor(recipe, dtype=torch.uint8, device="cpu"))

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """Return the posterior mean, of the shape of ``x``.

        Raises:
            UserError: for an answer of another shape.
        """
        sigma = per_row(sigma, x)
        time = self.time(sigma)
        c = PREDICTIONS[self.predicts](
            sigma, 1 / (1 + sigma**2).sqrt(), time.to(x) if time.is_floating_point() else time
        )
        answer = self._answer(like(c.c_in, x) * x, c.c_noise, *labels)
        answer = answer if isinstance(answer, Tensor) else getattr(answer, "sample", answer)
        if isinstance(answer, Tensor) and answer.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            answer = answer[:, : x.shape[1]]
        return denoised(checked_shape(answer, x), x, c)

    def _answer(self, given: Tensor, time: Tensor, *labels: Tensor) -> Any:
        """Return the network's answer; say so where it takes whole times only, as one that looks them up does."""
        try:
            return self.net(given, time, *labels)
        except (IndexError, RuntimeError, TypeError) as error:
            if not time.is_floating_point():
                raise
            try:
                self.net(given, time.round().long(), *labels)
            except Exception:
                raise error from None  # of another cause
            raise UserError(
                "the network takes whole times only, as one that looks them up in a table does: give quantize=True"
            ) from None


def discrete(  # noqa: PLR0913  what makes such a network
    adapter: Callable[..., Any], net: Any, facts: dict[str, Any], alphas_cumprod: Any, predicts: str, quantize: bool
) -> Any:
    """Return the model of a network of discrete times: see :meth:`dmcmc_core.denoiser.Adapter.from_ddpm`."""
    levels = levels_of(alphas_cumprod).cpu()
    switch("quantize", quantize)

    def time(sigma: Tensor) -> Tensor:
        index = index_of(sigma, levels.log().to(sigma.device))
        return index.round().long() if quantize else index

    made = VariancePreserving(net, predicts, time, [quantize, *levels.tolist()])
    return _adapted(adapter, made, facts, levels[0].item(), levels[-1].item())


def continuous(  # noqa: PLR0913  what makes such a diffusion
    adapter: Callable[..., Any],
    net: Any,
    facts: dict[str, Any],
    beta_min: float,
    beta_max: float,
    predicts: str,
    unit: float,
) -> Any:
    """Return the model of a network of times in [0, 1]: see :meth:`dmcmc_core.denoiser.Adapter.from_vp`."""
    number("beta_min", beta_min, above=0)
    number("beta_max", beta_max, above=beta_min)
    number("unit", unit, above=0)

    def sigma(t: float) -> float:
        return math.sqrt(math.expm1(beta_min * t + (beta_max - beta_min) * t**2 / 2))

    def time(sigma: Tensor) -> Tensor:
        return unit * vp_time(sigma.double(), beta_min, beta_max)

    made = VariancePreserving(net, predicts, time, [beta_min, beta_max, unit])
    return _adapted(adapter, made, facts, sigma(FIRST), sigma(1.0))


def _adapted(
    adapter: Callable[..., Any], made: VariancePreserving, facts: dict[str, Any], low: float, high: float
) -> Any:
    """Return the model with its facts; what is no module has no weights, which a run would be named by."""
    if "shape" not in facts:
        raise UserError("shape is missing, that of one image, such as shape=(3, 32, 32)")
    net, facts = made.net, {"data_range": (-1.0, 1.0), "sigma_min": low, "sigma_max": high} | facts
    model = adapter(made if isinstance(net, torch.nn.Module) else made.forward, **facts)
    model.modules = modules_of(net)
    return model
