"""Solvers of other libraries, as functions of a denoiser and a grid: of diffusers and of k-diffusion, where installed.

    python benchmarks/fitted_peers.py

says how far those that are one of ours lie from it, on an exact mixture of images and the same grid.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmcmc_core import integrators, load_model, schedules
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.dmcmc import prior
from dmcmc_core.streams import Streams

Solver = Callable[[Denoiser, Tensor, Tensor], Tensor]
"""(model, x at sigmas[0], sigmas (N + 1,) with 0 at the end) -> images."""
NEARLY_ZERO = 1e-5
"""The last level of a scheduler that cannot step to 0."""


def preserving(scheduler: Any, model: Denoiser, x: Tensor, sigmas: Tensor, last: float = 0.0) -> Tensor:
    """Sample by a variance-preserving scheduler whose network answers with D, on levels of our own."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.cat([sigmas[:-1], sigmas.new_tensor([last])]).float()
    scheduler.timesteps = torch.arange(len(sigmas) - 1)  # names of the steps, no times
    scheduler.set_begin_index(0)
    u = x / (1 + sigmas[0] ** 2).sqrt().to(x)
    for t, sigma in zip(scheduler.timesteps, sigmas.to(x), strict=False):
        u = scheduler.step(model(u * (1 + sigma**2).sqrt(), sigma), t, u).prev_sample
    return u


def edm(order: int, model: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """EDMDPMSolverMultistepScheduler, whose network answers with F of c_skip x + c_out F."""
    from diffusers import EDMDPMSolverMultistepScheduler

    scheduler = EDMDPMSolverMultistepScheduler(solver_order=order, final_sigmas_type="zero")
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.float()
    scheduler.set_begin_index(0)
    data = scheduler.config.sigma_data
    for t, sigma in zip(scheduler.timesteps, sigmas.to(x), strict=False):
        square = sigma**2 + data**2
        answer = (model(x, sigma) - data**2 / square * x) / (sigma * data / square.sqrt())
        x = scheduler.step(answer, t, x).prev_sample
    return x


def heun(model: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """HeunDiscreteScheduler, with N levels and a 0: 2 N - 1 calls."""
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(len(sigmas) - 1)
    levels = sigmas.float()
    scheduler.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    scheduler.timesteps = torch.arange(len(scheduler.sigmas) - 1)
    scheduler.set_begin_index(0)
    for t, at in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step((x - model(x, at)) / at, t, x).prev_sample
    return x


def of_diffusers() -> dict[str, Solver]:
    """Solvers of diffusers by name; none where it is not installed."""
    try:
        import diffusers as d
    except ImportError:
        return {}

    def made(name: str, last: float = 0.0, **options: Any) -> Solver:
        kind = getattr(d, name)
        return lambda model, x, sigmas: preserving(kind(prediction_type="sample", **options), model, x, sigmas, last)

    solvers: dict[str, Solver] = {"HeunDiscrete": heun}
    for order in (2, 3):
        solvers[f"EDMDPMSolverMultistep({order})"] = partial(edm, order)
        solvers[f"DPMSolverMultistep({order})"] = made("DPMSolverMultistepScheduler", solver_order=order)
        solvers[f"UniPCMultistep({order})"] = made("UniPCMultistepScheduler", solver_order=order)
        solvers[f"DEISMultistep({order})"] = made("DEISMultistepScheduler", NEARLY_ZERO, solver_order=order)
    return {f"diffusers {d.__version__} {name}": solver for name, solver in solvers.items()}


def of_k_diffusion() -> dict[str, Solver]:
    """Solvers of k-diffusion by name; none where it is not installed."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return {}
    if "k_diffusion" not in sys.modules:  # its own __init__ imports all that trains and evaluates networks
        package = ModuleType("k_diffusion")
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    sampling = importlib.import_module("k_diffusion.sampling")

    def made(function: Callable[..., Tensor]) -> Solver:
        return lambda model, x, sigmas: function(model, x, sigmas.to(x), disable=True)

    return {f"k-diffusion {name}": made(getattr(sampling, name)) for name in ("sample_dpmpp_2m", "sample_lms")}


SAME = {"EDMDPMSolverMultistep(2)": "dpmpp_2m", "DPMSolverMultistep(2)": "dpmpp_2m", "sample_dpmpp_2m": "dpmpp_2m"}
SAME |= {"HeunDiscrete": "heun"}
"""What is one of ours; the others differ in their first or last steps, and only have the same limit."""
SAME_TO, FINE, NEAR = 1e-4, 80, 5e-3
"""Largest difference of a pixel; levels of those that share a limit, and their root mean square difference."""


def others() -> dict[str, Solver]:
    """Solvers of the libraries that are none of ours; of two that are the same one."""
    both = of_diffusers() | of_k_diffusion()
    return {
        full: solver for full, solver in both.items() if full.split()[-1] not in (*SAME, "EDMDPMSolverMultistep(3)")
    }


def agreement(name: str = "digits-mixture") -> dict[str, float]:
    """Return how far each library's solver lies from ours on an exact mixture, by what was compared.

    Raises:
        SystemExit: for one that lies further than it may.
    """
    model, found = load_model(name), {}
    x = prior(model, Streams(0, "peers", range(16)), 16, "mean")
    for full, solver in (of_diffusers() | of_k_diffusion()).items():
        twin = SAME.get(full.split()[-1])
        for grid in ("karras", "log_uniform"):
            sigmas = schedules.SCHEDULES[grid](8 if twin else FINE, model.sigma_max, model.sigma_min)
            apart = solver(model, x, sigmas) - integrators.INTEGRATORS[twin or "dpmpp_2m"](model, x, sigmas)
            far = (apart.abs().max() if twin else apart.square().mean().sqrt()).item()
            found[f"{full} and {twin or 'the limit'}, {grid}"] = far
            if not far <= (SAME_TO if twin else NEAR):
                raise SystemExit(f"{full} lies {far:.1e} from {twin or 'the limit'} on {grid}: it is asked wrongly")
    return found


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    for pair, difference in agreement().items():
        print(f"{difference:.1e}  {pair}")
