"""The scalings that make a denoiser of a network F(x, c_noise): D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

Karras et al. 2022 (arXiv 2206.00364), Table 1. What a variance-preserving network was trained on, alpha (x0 + sigma n),
is alpha x here, and its time that at which the noise is sigma: exact, for discrete times at the levels trained on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core.denoiser import like, per_row
from dmcmc_core.errors import UserError, number, switch, unknown
from dmcmc_core.nets.song import UNet
from dmcmc_core.variance_preserving import Scalings, denoised, epsilon, index_of, sample, velocity


def edm(sigma: Tensor, sigma_data: float = 0.5) -> Scalings:
    """Return the scalings of Karras et al. 2022: input and target have unit variance at every level."""
    total = (sigma**2 + sigma_data**2).sqrt()
    return Scalings((sigma_data / total) ** 2, sigma * sigma_data / total, 1 / total, sigma.log() / 4)


def ve(sigma: Tensor, unit: float = 1.0, by_sigma: bool = True) -> Scalings:
    """Return the scalings of Song et al. 2021, variance exploding: sigma F is sigma^2 times the score.

    ``by_sigma``: whether the score is the network's answer divided by sigma; else it is the answer itself.
    ``unit``: of the network's noise level, 1/2 where its data were in [0, 1] and are now in [-1, 1].
    """
    one = torch.ones_like(sigma)
    return Scalings(one, sigma if by_sigma else sigma**2, one, (unit * sigma).log())


def ve_index(sigma: Tensor, levels: list[float], by_sigma: bool = True) -> Scalings:
    """Return the scalings of :func:`ve` for a network that takes the index of its noise level.

    The index is that of the nearest of ``levels`` in log sigma; they descend.
    """
    known = torch.tensor(levels, dtype=torch.float64, device=sigma.device).log()
    index = (sigma.double().log()[:, None] - known).abs().argmin(1)
    one = torch.ones_like(sigma)
    return Scalings(one, sigma if by_sigma else sigma**2, one, index.to(sigma))


def vp(
    sigma: Tensor, beta_min: float = 0.1, beta_max: float = 20.0, steps: float = 999.0, log: bool = False
) -> Scalings:
    """Return the scalings of Song et al. 2021, variance preserving: F is epsilon.

    The network takes ``steps`` times the time in [0, 1], or its ``log``.
    """
    c_in = 1 / (sigma**2 + 1).sqrt()
    c_noise = steps * time_of_alpha(-c_in.log(), beta_min, beta_max)
    return Scalings(torch.ones_like(sigma), -sigma, c_in, c_noise.log() if log else c_noise)


def sub_vp(
    sigma: Tensor, beta_min: float = 0.1, beta_max: float = 20.0, steps: float = 999.0, log: bool = False
) -> Scalings:
    """Return the scalings of :func:`vp` for the sub-variance-preserving SDE.

    Its noise has standard deviation 1 - alpha^2, so alpha^2 + sigma alpha = 1.
    """
    c_in = 2 / ((sigma**2 + 4).sqrt() + sigma)
    c_noise = steps * time_of_alpha(-c_in.log(), beta_min, beta_max)
    return Scalings(torch.ones_like(sigma), -sigma, c_in, c_noise.log() if log else c_noise)


def ddpm(sigma: Tensor, beta_min: float = 0.1, beta_max: float = 20.0, scales: int = 1000) -> Scalings:
    """Return the scalings of Ho et al. 2020: F is epsilon, trained at ``scales`` times.

    The network takes their index, see :func:`index_of`.
    """
    index = index_of(sigma, ddpm_levels(beta_min, beta_max, scales).log().to(sigma.device))
    return Scalings(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), index.to(sigma))


@functools.cache
def ddpm_levels(beta_min: float, beta_max: float, scales: int) -> Tensor:
    """Return sigma at each index, (scales,) float64, rising: 1 + sigma^2 is the product of 1 / (1 - beta_i).

    The beta_i are ``scales`` numbers from beta_min / scales to beta_max / scales, evenly.
    """
    betas = torch.linspace(beta_min / scales, beta_max / scales, scales, dtype=torch.float64, device="cpu")
    return (-torch.log1p(-betas)).cumsum(0).expm1().sqrt()


def time_of_alpha(minus_log_alpha: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """Return t with (beta_max - beta_min) t^2 / 4 + beta_min t / 2 = -log alpha(t)."""
    rise, c = beta_max - beta_min, 4 * minus_log_alpha
    return c / (beta_min + (beta_min**2 + rise * c).sqrt())


def vp_sigma(time: float, beta_min: float = 0.1, beta_max: float = 20.0, sub: bool = False) -> float:
    """Return the noise level of :func:`vp`, or of :func:`sub_vp` with ``sub``, at a time in [0, 1]."""
    log_alpha = -(beta_max - beta_min) * time**2 / 4 - beta_min * time / 2
    if sub:
        return -math.expm1(2 * log_alpha) / math.exp(log_alpha)
    return math.sqrt(math.expm1(-2 * log_alpha))


def improved_ddpm(sigma: Tensor, levels: list[float]) -> Scalings:
    """Return the scalings of Nichol & Dhariwal 2021: F is epsilon.

    The network takes the index of the nearest of its discrete ``levels``, which descend to 0.
    """
    known = torch.tensor(levels, dtype=sigma.dtype, device=sigma.device)
    index = (sigma[:, None] - known).abs().argmin(1)
    return Scalings(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), len(levels) - 2 - index.to(sigma))


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Scalings]] = {
    "epsilon": epsilon,
    "v_prediction": velocity,
    "sample": sample,
}
"""What a variance-preserving network predicts, as diffusers names it -> (sigma, alpha, time), (B,), -> its scalings."""


def discrete(sigma: Tensor, betas: dict[str, Any], unit: float = 1.0, predicts: str = "epsilon") -> Scalings:
    """Return the scalings of a variance-preserving network of discrete times, whatever its betas and prediction.

    Args:
        sigma: noise levels (B,).
        betas: arguments of :func:`discrete_betas`.
        unit: of the network's time: it takes ``unit`` times the index of :func:`index_of`.
        predicts: one of :data:`PREDICTIONS`.
    """
    if predicts not in PREDICTIONS:
        raise unknown("prediction", predicts, PREDICTIONS)
    time = number("unit", unit, above=0) * index_of(sigma, discrete_levels(**betas).log().to(sigma.device))
    return PREDICTIONS[predicts](sigma, 1 / (sigma**2 + 1).sqrt(), time.to(sigma))


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, first, last: _even(first, last, steps),
    "quad": lambda steps, first, last: _even(math.sqrt(first), math.sqrt(last), steps) ** 2,
    "const": lambda steps, first, last: _even(last, last, steps),
    "jsd": lambda steps, first, last: 1 / _even(steps, 1, steps),
    "sigmoid": lambda steps, first, last: first + (last - first) * _even(-6, 6, steps).sigmoid(),
    "cosine": lambda steps, first, last: _cosine(steps),
}
"""Schedule -> (steps, first, last) -> its betas (steps,); Ho et al. 2020, and Nichol & Dhariwal 2021, eq. 17."""


def _even(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


def _cosine(steps: int) -> Tensor:
    kept = ((_even(0, 1, steps + 1) + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def discrete_betas(schedule: str, steps: int, first: float | None = None, last: float | None = None) -> Tensor:
    """Return the betas (steps,) float64 of a diffusion with discrete times.

    Args:
        schedule: one of :data:`BETAS`.
        steps: how many times there are.
        first, last: ends of the schedule where it has some; by default 0.1 / steps and 20 / steps.

    Raises:
        UserError: for another schedule, or numbers that are no betas.
    """
    if schedule not in BETAS:
        raise unknown("schedule of betas", schedule, BETAS)
    number("the number of times", steps, least=2, most=10**6, whole=True)
    first = number("the first beta", 0.1 / steps if first is None else first, above=0, below=1)
    last = number("the last beta", min(20 / steps, 0.999) if last is None else last, above=0, below=1)
    return BETAS[schedule](steps, first, last)


@functools.lru_cache(64)
def discrete_levels(schedule: str, steps: int, first: float | None = None, last: float | None = None) -> Tensor:
    """Return sigma at each time of :func:`discrete_betas`, (steps,) float64, rising, all finite.

    A last time that is all noise (zero terminal SNR) is left out.
    """
    levels = (-torch.log1p(-discrete_betas(schedule, steps, first, last))).cumsum(0).expm1().sqrt()
    return levels[levels.isfinite()]


def score_embedding(
    sigma: Tensor, base: float, embedding: str, multiplier: float = 1.0, images: int = 1, image: int = 0
) -> Scalings:
    """Return the scalings of Na, Gao & Wan 2024 (arXiv 2404.06661): F is the score, of the diffusion dx = base^t dW.

    The network takes its time as in sampling, see :func:`dmcmc_core.score_embedding.network_time`; ``image``: which of
    its ``images`` is meant, where they are told apart by it.
    """
    from dmcmc_core.score_embedding import network_time, time_of_std  # and with it SciPy, which no other network needs

    number("images", images, least=1, whole=True)
    number("image", image, least=0, below=images, whole=True)
    one, t = torch.ones_like(sigma), time_of_std(sigma.double(), base)
    how = {"embedding": embedding, "multiplier": multiplier, "sampling": True}
    return Scalings(one, sigma**2, one, network_time(t, image, images, **how).to(sigma))


KINDS: dict[str, Callable[..., Scalings]] = {
    "edm": edm,
    "ve": ve,
    "ve_index": ve_index,
    "vp": vp,
    "sub_vp": sub_vp,
    "ddpm": ddpm,
    "improved_ddpm": improved_ddpm,
    "discrete": discrete,
    "score_embedding": score_embedding,
}


SWITCHES = {"by_sigma", "log"}
"""Options of these that are true or false."""
NO_CLASS = -1
"""The label that is a vector of zeros to a network."""


class ScaledUNet(nn.Module):
    """A denoiser that is a U-Net and its scalings: x (B, C, H, W), sigma () or (B,), and labels -> E[x0 | x, sigma].

    Args:
        kind: of its scalings, one of :data:`KINDS`.
        options: of that function.
        net: arguments of :class:`dmcmc_core.nets.song.UNet`.
        centre: whether the network sees 2 x - 1, for data in [0, 1].
        about_mean: whether all of this is about the mean of the data, the buffer ``mean`` (C, H, W), which begins at 0.
    """

    def __init__(
        self,
        kind: str,
        options: dict[str, Any],
        net: dict[str, Any],
        centre: bool = False,
        about_mean: bool = False,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("preconditioning", kind, KINDS)
        for name, value in (("centre", centre), ("about_mean", about_mean)):
            switch(name, value)
        for name in SWITCHES & options.keys():
            switch(name, options[name])
        KINDS[kind](torch.ones(1, device="cpu"), **options)  # wrong options should not wait for the first image
        self.net = UNet(**net)
        self.kind, self.options, self.centre = kind, dict(options), centre
        self.config = {"kind": kind, "options": self.options, "net": self.net.config, "centre": centre}
        self.config |= {"about_mean": True} if about_mean else {}
        self.register_buffer("mean", torch.zeros(self.shape) if about_mean else None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.net.config["in_channels"], self.net.config["size"], self.net.config["size"]

    @property
    def classes(self) -> int:
        """How many classes labels choose from, 0 for none."""
        return int(self.net.config["labels"] or 0)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return E[x0 | x, sigma] for x (B, C, H, W), sigma () or (B,).

        ``labels``: (B,) whole numbers, -1 for no class, or (B, classes), where a row may be all 0 for no class.

        Raises:
            UserError: for labels of a network without classes.
        """
        if self.mean is not None:
            return self.mean + self._plain(x - self.mean, sigma, labels)
        return self._plain(x, sigma, labels)

    def _plain(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        sigma = per_row(sigma, x)
        c = KINDS[self.kind](sigma, **self.options)
        seen = like(c.c_in, x) * x
        out = self.net(2 * seen - 1 if self.centre else seen, c.c_noise, label_rows(labels, self.classes, x))
        return denoised(out, x, c)


def label_rows(labels: Tensor | None, classes: int, x: Tensor) -> Tensor | None:
    """Return labels as rows (B, classes) like ``x``, one-hot for whole numbers, all 0 for -1; None for None.

    Args:
        labels: (B,) whole numbers from -1 to classes - 1, or (B, classes).
        classes: of the network, 0 for none.
        x: (B, ...), what the network is asked about.

    Raises:
        UserError: for labels of a network without classes, or of another shape or range.
    """
    if labels is None:
        return None
    if not classes:
        raise UserError("this network has no classes: leave labels out")
    if labels.ndim == 1:
        wrong = (labels < NO_CLASS) | (labels >= classes) | labels.is_floating_point()
        if wrong.any():
            raise UserError(f"labels must be whole numbers from 0 to {classes - 1}, not {labels[wrong][0].item()}")
        none = labels == NO_CLASS
        labels = nn.functional.one_hot(labels.long().clamp(min=0), classes) * ~none[:, None]
    if labels.shape != (len(x), classes):
        raise UserError(f"labels must be ({len(x)},) or ({len(x)}, {classes}), not {tuple(labels.shape)}")
    return labels.to(x)
