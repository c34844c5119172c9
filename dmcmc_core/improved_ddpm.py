"""Sampling on kept discrete times, as improved- and guided-diffusion do: ancestral with learned variances, and DDIM.

Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 10 to 15 and Section 4; Song, Meng & Ermon 2021 (arXiv 2010.02502), eq.
12. Images are in [-1, 1]; networks are the bare ones of :func:`dmcmc_core.checkpoints.load_network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmcmc_core.denoiser import like
from dmcmc_core.errors import UserError, number, one_of

Network = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, H, W), t (B,)) -> epsilon, and after it on the channel axis what the network says of the variance."""
VARIANCES = ("learned_range", "fixed_large", "fixed_small")


def kept_times(steps: int, spacing: str) -> list[int]:
    """Return which of the times 0 to steps - 1 are kept, rising.

    Args:
        spacing: ``ddimN`` for N times at the one whole stride that gives so many from 0; else numbers of times of equal
            sections, such as ``250`` or ``10,15,20``, each spread over both ends of its section.

    Raises:
        UserError: for a spacing that is neither, or more times than there are.
    """
    number("steps", steps, least=1, whole=True)
    if spacing.startswith("ddim") and spacing[4:].isdecimal():
        wanted = int(spacing[4:])
        for stride in range(1, steps + 1):
            if len(range(0, steps, stride)) == wanted:
                return list(range(0, steps, stride))
        raise UserError(f"no whole stride through {steps} times keeps {wanted} of them")
    parts = spacing.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"a spacing must be ddimN or numbers such as 250 or 10,15,20, not {spacing!r:.60}")
    counts, kept, begin = [int(part) for part in parts], [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if not 1 <= count <= size:
            raise UserError(f"a section of {size} times keeps 1 to {size} of them, not {count}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0  # added up, as published, and rounded half to even
        for _ in range(count):
            kept.append(begin + round(place))
            place += stride
        begin += size
    return kept


class _Steps:
    """The coefficients of each kept time, from the last one down."""

    def __init__(self, betas: Tensor, times: Sequence[int]) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
            raise UserError("betas must be a list of numbers above 0 and below 1")
        if list(times) != sorted(set(times)) or not times or not 0 <= times[0] <= times[-1] < len(betas):
            raise UserError(f"times must rise within 0 to {len(betas) - 1}")
        self.times = list(times)
        self.bar = (1 - betas).cumprod(0)[self.times]
        self.before = torch.cat([self.bar.new_ones(1), self.bar[:-1]])
        self.beta = 1 - self.bar / self.before
        self.posterior = self.beta * (1 - self.before) / (1 - self.bar)
        if len(times) > 1:  # that of the first is 0: its logarithm is that of the second
            self.posterior[0] = self.posterior[1]

    def large(self) -> Tensor:
        """Return the variances beta, the first one that of the posterior."""
        return torch.cat([self.posterior[:1], self.beta[1:]])


def _answer(network: Network, x: Tensor, time: float) -> tuple[Tensor, Tensor]:
    out = network(x, x.new_full((len(x),), time))
    return out[:, : x.shape[1]], out[:, x.shape[1] :]


@torch.no_grad()
def ancestral(  # noqa: PLR0913  what the published loops take
    network: Network,
    x: Tensor,
    betas: Tensor,
    times: Sequence[int],
    *,
    variance: str = "learned_range",
    unit: float = 1.0,
    clip: bool = True,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    callback: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return samples by ancestral steps from one kept time to the one before; one call each.

    Args:
        network: gets ``unit`` times each kept time, from the last one down.
        x: (B, C, H, W), standard normal.
        betas: (T,) of all times.
        times: those that are kept, rising; see :func:`kept_times`.
        variance: ``learned_range`` between that of the posterior and beta by what the network says, the first of these
            (``fixed_small``) or the second (``fixed_large``).
        unit: of the network's time, 1000 / T where it is rescaled.
        clip: whether predicted images are held to [-1, 1].
        noise: maps a tensor to standard normals like it; drawn at the last step as well, for nothing.
        callback: gets the state after each step.

    Raises:
        UserError: for betas, times or a variance that are none, and a network that says nothing of its variance.
    """
    one_of("variance", variance, *VARIANCES)
    s = _Steps(betas, times)
    low, high = (variances.log() for variances in (s.posterior, s.beta if variance == "learned_range" else s.large()))
    for i in reversed(range(len(s.times))):
        e, said = _answer(network, x, unit * s.times[i])
        x0 = _image(x, e, s.bar[i], clip)
        mean = s.beta[i] * s.before[i].sqrt() * x0 + (1 - s.before[i]) * (1 - s.beta[i]).sqrt() * x
        if variance == "learned_range":
            if said.shape != x.shape:
                raise UserError("the network says nothing of its variance: choose fixed_large or fixed_small")
            share = (said + 1) / 2
            log = share * high[i] + (1 - share) * low[i]
        else:
            log = (high if variance == "fixed_large" else low)[i]
        x = (mean / (1 - s.bar[i])).to(x) + (log / 2).exp().to(x) * noise(x) * (i > 0)
        if callback:
            callback(x)
    return x


@torch.no_grad()
def ddim(  # noqa: PLR0913  what the published loops take
    network: Network,
    x: Tensor,
    betas: Tensor,
    times: Sequence[int],
    *,
    eta: float = 0.0,
    unit: float = 1.0,
    clip: bool = True,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    callback: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return samples by the steps of DDIM, with ``eta`` of the ancestral noise; the noise follows the clipped image.

    Arguments as for :func:`ancestral`.
    """
    number("eta", eta, least=0)
    s = _Steps(betas, times)
    for i in reversed(range(len(s.times))):
        bar, before = s.bar[i], s.before[i]
        e, _ = _answer(network, x, unit * s.times[i])
        x0 = _image(x, e, bar, clip)
        e = ((x - bar.sqrt() * x0) / (1 - bar).sqrt()).to(x)
        deviation = eta * ((1 - before) / (1 - bar) * (1 - bar / before)).sqrt()
        x = (before.sqrt() * x0 + (1 - before - deviation**2).sqrt() * e + deviation * noise(x) * (i > 0)).to(x)
        if callback:
            callback(x)
    return x


def _image(x: Tensor, e: Tensor, bar: Tensor, clip: bool) -> Tensor:
    """Return x0 = (x - sqrt(1 - bar) e) / sqrt(bar), clipped or not."""
    x0 = (x - like((1 - bar).sqrt(), x) * e) / like(bar.sqrt(), x)
    return x0.clamp(-1, 1) if clip else x0
