"""What a sampler costs beside its network: its wall time over that of the same number of bare network calls.

    python benchmarks/overhead.py [--pairs N] [--threads N] [--model M] [--out FILE]

On the shipped digits net, 64 images in one block. A pair is one run of the sampler and one loop of as many calls of the
same denoiser, one after the other in one process, the order alternating; the ratio of its two times does not care what
else the machine does, as long as that changes slowly. The calls of the loop are counted on the sampler and see images
at the noise levels that its runs go through. For dlg+heun one run is two windows of 64 warmed-up chains with the
shipped classifier, whose time is overhead here; gddim is 20 steps on CLD with its own network. Reported: the median of
the ratios, with quartiles.

At the end what the wrappers of a call take, checks, blocks and counters: the time of the processor of a counted call in
blocks of a network that only copies its x, without that of this network, over that of a call of the real one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dmcmc_core import dmcmc, gddim, integrators, load_model, schedules
from dmcmc_core.checkpoints import load_epsilon, load_noise_level
from dmcmc_core.denoiser import BLOCK, Adapter, Denoiser, InBlocks, count_nfe
from dmcmc_core.dmcmc import ChainSettings
from dmcmc_core.noise_level import ClassifierPosterior
from dmcmc_core.streams import Streams

TARGET = 1.05
OF_WRAPPERS = 0.01


def plain(model: Denoiser, name: str) -> Callable[[Denoiser], None]:
    """A run of an integrator at 20 levels, 39 calls, from noise to images."""
    grid = schedules.karras(20, model.sigma_max, model.sigma_min)

    def sample(denoiser: Denoiser) -> None:
        rng = Streams(0, "image", range(BLOCK))
        x = dmcmc.prior(denoiser, rng, BLOCK, "mean")
        integrators.INTEGRATORS[name](denoiser, x, grid, noise=rng)

    return sample


def chained(model: Denoiser) -> Callable[[Denoiser], None]:
    """Two windows of 5 steps and Heun at 8 levels after each, 40 calls."""
    net, levels, _ = load_noise_level("digits")
    posterior, settings = ClassifierPosterior(net, levels), ChainSettings(chains=BLOCK, n_skip=5)
    chain = dmcmc.warm_up(model, posterior, settings, Streams(0, "chain", range(BLOCK)))

    def sample(denoiser: Denoiser) -> None:
        images = dmcmc.denoising_mcmc(
            denoiser, posterior, integrators.INTEGRATORS["heun"], 8, settings, chain=chain, first_window=0
        )
        for _ in itertools.islice(images, 2):
            pass

    return sample


def diffused(denoiser: Denoiser) -> None:
    """gDDIM of degree 2 at 20 steps from noise to images; the coefficients of its steps are those of the run before."""
    gddim.draw(denoiser, "gddim", 20, BLOCK, 0, last=None)


class Recorder:
    """A denoiser that keeps what it was asked."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.asked = denoiser, []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.asked.append((x, sigma))
        return self.denoiser(x, sigma)

    def __getattr__(self, name: str):
        return getattr(self.denoiser, name)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(model: Denoiser, sample: Callable[[Denoiser], None], pairs: int) -> dict:
    """Ratios of ``pairs`` alternating pairs, after one of each to warm up."""
    recorder = Recorder(model)
    sample(recorder)
    calls = len(recorder.asked)

    def bare() -> None:
        for x, sigma in recorder.asked:
            model(x, sigma)

    bare()
    ratios, of_calls = [], []
    for i in range(pairs):
        first, second = (lambda: sample(model), bare) if i % 2 == 0 else (bare, lambda: sample(model))
        times = seconds(first), seconds(second)
        of_sampler, of_bare = times if i % 2 == 0 else times[::-1]
        ratios.append(of_sampler / of_bare)
        of_calls.append(of_bare / calls)
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "calls": calls,
        "pairs": pairs,
        "ratio": median,
        "quartiles": [low, high],
        "bare_call_seconds": statistics.median(of_calls),
        "ratios": ratios,
    }


class Copy(torch.nn.Module):
    """A network that answers with its x."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x.clone()


def processor_seconds(function: Callable[[], object], calls: int, rounds: int = 7) -> float:
    """Least time of the processor of a call, of some rounds of so many; what runs beside it can only add to it."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            function()
        taken.append((time.process_time() - start) / calls)
    return min(taken)


def of_wrappers(model: Denoiser) -> dict[str, float]:
    """Seconds of the wrappers of a call, and of the network."""
    x, sigma, own = torch.randn(BLOCK, *model.shape), torch.full((BLOCK,), 2.0), Copy().eval()
    wrapped = count_nfe(InBlocks(Adapter(own, model.shape), BLOCK))
    around = processor_seconds(lambda: wrapped(x, sigma), 300) - processor_seconds(lambda: own(x, sigma), 300)
    return {"wrappers": around, "network": processor_seconds(lambda: model.net(x, sigma), 20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="pairs of runs per sampler (default 30, at least 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--model", default="digits", help="name or file of the score net (default digits)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and the machine they are from")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error(f"--pairs must be at least 2, not {arguments.pairs}")
    torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        model = load_model(arguments.model)
        samplers = {
            "heun": (model, plain(model, "heun")),
            "heun_churn": (model, plain(model, "heun_churn")),
            "dlg+heun": (model, chained(model)),
            "gddim": (load_epsilon("digits-cld"), diffused),
        }
        print(f"{'sampler':12} {'calls':>5} {'ms/call':>8} {'ratio':>6}  quartiles    at most {TARGET}")
        results = {}
        for name, (network, sample) in samplers.items():
            r = results[name] = measure(network, sample, arguments.pairs)
            low, high = r["quartiles"]
            verdict = "yes" if r["ratio"] <= TARGET else "no"
            print(
                f"{name:12} {r['calls']:5} {1000 * r['bare_call_seconds']:8.2f} {r['ratio']:6.3f}  "
                f"{low:.3f}-{high:.3f}  {verdict}",
                flush=True,
            )
        wrapping = of_wrappers(model)
        share = wrapping["wrappers"] / wrapping["network"]
        verdict = "yes" if share <= OF_WRAPPERS else "no"
        print(
            f"wrappers: {1e6 * wrapping['wrappers']:.0f} of {1e6 * wrapping['network']:.0f} microseconds, "
            f"{100 * share:.2f} %  at most {100 * OF_WRAPPERS:.0f} %: {verdict}"
        )
    if arguments.out:
        about = {
            "model": arguments.model,
            "target": TARGET,
            "block": BLOCK,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        }
        part = arguments.out.with_name(arguments.out.name + ".part")
        part.write_text(json.dumps(about | {"samplers": results, "call": wrapping}, indent=1) + "\n")
        os.replace(part, arguments.out)


if __name__ == "__main__":
    main()
