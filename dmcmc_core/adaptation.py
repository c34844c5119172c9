"""Step sizes of kernels, one for every noise level, adapted while chains run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, number
from dmcmc_core.mcmc import ChainState, Kernel
from dmcmc_core.streams import Randomness


class LevelSteps:
    """A step size for every noise level, e = eta_k sigma^2 in the k-th bin of log sigma; :func:`adapt` finds the eta_k.

    Args:
        sigma_max, sigma_min: the bins lie between them, evenly in log sigma.
        eta: of every bin at first.
        bins: how many.
    """

    def __init__(self, sigma_max: float, sigma_min: float, eta: float = 0.3, bins: int = 10) -> None:
        if not 0 < sigma_min < sigma_max < float("inf"):
            raise UserError(f"0 < sigma_min < sigma_max is needed, not sigma_min={sigma_min}, sigma_max={sigma_max}")
        if not 0 < eta < float("inf"):
            raise UserError(f"eta must be positive and finite, not {eta}")
        number("bins", bins, least=1, whole=True)
        self.edges = torch.linspace(math.log(sigma_min), math.log(sigma_max), bins + 1)[1:-1]
        self.log_eta, self.visits = torch.full((bins,), math.log(eta)), torch.zeros(bins)

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return the step sizes at levels (B,), in squared data units (B,)."""
        return self.log_eta[self.bin(sigma)].exp().to(sigma) * sigma**2

    def bin(self, sigma: Tensor) -> Tensor:
        """Return the bin of each level, (B,) int64."""
        return torch.bucketize(sigma.log().to(self.edges), self.edges)


def adapt(
    kernel: Kernel,
    sizes: LevelSteps,
    state: ChainState,
    rng: Randomness,
    steps: int,
    by: str = "acceptance",
    target: float | None = None,
) -> ChainState:
    """Run a chain whose step sizes are ``sizes`` and move them until each level sees its target; then they are fixed.

    Robbins & Monro 1951: after each step log eta_k changes by visits_k^-0.6 times what is missing in bin k on average.
    While they change the chain is not a Markov chain: throw its states away, and go on from the one returned, with the
    same ``kernel``, which is then as exact as for any fixed step.

    Args:
        kernel: made with ``sizes`` as its eta; may change the noise level too.
        by: ``acceptance`` (of kernels that test; target 0.6 when None), or ``displacement``, the root mean square that
            a pixel moves in units of sigma (target 0.5 when None).

    Returns:
        The last state.

    Raises:
        UserError: for a target out of reach, and where no acceptance probability is below 1: such a kernel has no test.
    """
    if by not in ("acceptance", "displacement"):
        raise UserError(f"by must be 'acceptance' or 'displacement', not {by!r}")
    target = {"acceptance": 0.6, "displacement": 0.5}[by] if target is None else target
    most = 1 if by == "acceptance" else float("inf")
    if not 0 < target < most:
        raise UserError(f"a target of {by} lies between 0 and {most}, not at {target}")
    number("steps", steps, least=1, whole=True)
    tests = False
    for _ in range(steps):
        x = state.x
        state, info = kernel(state, rng)
        tests = tests or bool((info.acceptance < 1).any())
        if by == "acceptance":
            missing = info.acceptance - target
        else:
            moved = (state.x - x).flatten(1).square().mean(1).sqrt() / info.sigma
            missing = (moved / target).clamp(min=1e-2).log().neg()
        k, missing = sizes.bin(info.sigma), missing.to(sizes.log_eta)
        seen = k.bincount(minlength=len(sizes.visits))
        mean = torch.zeros_like(sizes.log_eta).index_add(0, k, missing) / seen.clamp(min=1)
        sizes.visits += seen > 0
        sizes.log_eta += mean * sizes.visits.clamp(min=1) ** -0.6
    if by == "acceptance" and not tests:
        raise UserError("this kernel accepts whatever it proposes: adapt its steps by displacement")
    return state
