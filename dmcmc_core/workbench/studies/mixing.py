"""Chains on (x, sigma), kernel by kernel at equal network calls: where they go, and what their states become.

Chains begin with exact draws of the joint distribution, so that what is seen is mixing alone and not warm-up. Control:
restarts, independent images from pure noise, each with noise of a fresh level added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import adaptation, checkpoints, data, dmcmc, integrators, schedules
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.denoiser import CountNFE, count_nfe, like
from dmcmc_core.dmcmc import ChainSettings
from dmcmc_core.mcmc import ChainState, Info
from dmcmc_core.nets import classifiers
from dmcmc_core.noise_level import ClassifierPosterior, ExactPosterior, draw
from dmcmc_core.runs.classifiers import load as load_classifier
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.studies.exact_models import fine_levels

CONSTANT, SIGMA2, ADAPTED = "langevin, constant", "langevin, sigma2", "mala, adapted"
RESTARTS = "independent restarts"
NEED_DENSITY = ("mala", "mala, adapted", "hamiltonian")
"""Kernels with a test of acceptance, which a network has no density for."""
KERNELS = (CONSTANT, SIGMA2, "mala", ADAPTED, "hamiltonian", "underdamped", RESTARTS)
SIZES = {CONSTANT: "constant", SIGMA2: "sigma2", ADAPTED: "adapted"}
"""Kernel -> what its step size is called; others are called as the kernel is."""
Step = Callable[[ChainState, Streams], tuple[ChainState, Info | None]]


@dataclass(frozen=True)
class Plan:
    """How all chains are walked.

    Attributes:
        seed: of all noise.
        groups, group: independent chains, by group; a group stands for a seed.
        leapfrogs: of a Hamiltonian step.
        persistence: of an underdamped step.
        adapt_calls: network calls per chain before, for the adapted step sizes.
        restart_calls: network calls of an independent image from noise.
        image_levels: levels of the integrator that makes images of a network's states.
        every: network calls between two of those images.
        records: states of a chain on an exact model that are kept at most.
    """

    seed: int
    groups: int
    group: int
    leapfrogs: int
    persistence: float
    adapt_calls: int
    restart_calls: int
    image_levels: int
    every: int
    records: int

    @property
    def chains(self) -> int:
        """All of them."""
        return self.groups * self.group

    def settings(self, kernel: str) -> ChainSettings:
        """Return the settings of a kernel's chains."""
        return ChainSettings(chains=self.chains, **self.given(kernel))

    def given(self, kernel: str) -> dict[str, Any]:
        """Return those of its settings that are given, and not of every chain."""
        own: dict[str, dict[str, Any]] = {
            CONSTANT: {"step": "constant"},
            "hamiltonian": {"leapfrogs": self.leapfrogs},
            "underdamped": {"persistence": self.persistence},
        }
        return {"kernel": kernel.split(", ")[0]} | own.get(kernel, {})


@dataclass(frozen=True)
class Bed:
    """A model, the images that it stands for, and how the class of a state is found.

    Attributes:
        name, model: the test-bed.
        posterior: of the noise level: exact, or the classifier's behind a network.
        images, labels: (n, C, H, W) and (n,), with the class of each.
        by_net: classes of made images come from the classifier of digits, not from the nearest known image.
        calls: network calls per chain.
        eta: step sizes, constant in squared data units, others in units of sigma².
    """

    name: str
    model: Any
    posterior: Any
    images: Tensor
    labels: Tensor
    by_net: bool
    calls: int
    eta: Mapping[str, float]

    @property
    def exact(self) -> bool:
        """Whether the density is known."""
        return hasattr(self.model, "log_prob")

    @property
    def span(self) -> Tensor:
        """The logarithms of the noise levels, (levels,)."""
        return self.posterior.levels.log().double()

    @property
    def weights(self) -> Tensor:
        """The share of each class among the images, (classes,)."""
        return torch.bincount(self.labels).double() / len(self.labels)

    @property
    def kernels(self) -> list[str]:
        """The kernels that can be walked here, restarts the last."""
        return [kernel for kernel in KERNELS if self.exact or kernel not in NEED_DENSITY]

    @property
    def class_names(self) -> list[str]:
        """What the classes are called: characters of glyphs, else their numbers."""
        return list(data.CHARACTERS) if "glyphs" in self.name else [str(k) for k in range(len(self.weights))]

    def draw(self, rng: Streams, rows: int) -> ChainState:
        """Draw from the joint distribution: an image of the data, a level uniform in log sigma, noise."""
        u = rng.uniform(torch.empty(rows, 2))
        x = self.images[(u[:, 0] * len(self.images)).long()]
        sigma = self.posterior.levels[(u[:, 1] * len(self.span)).long()].to(x)
        return ChainState(x + like(sigma, x) * rng(x), sigma)

    def classify(self, images: Tensor) -> Tensor:
        """Return the classes of images, (B,)."""
        if self.by_net:
            return classifiers.classify(images)
        return self.labels[EmpiricalData(self.images).squared_distances(images).argmin(1)]

    def become(self, state: ChainState, rng: Streams, levels: int) -> tuple[Tensor, Tensor]:
        """Return class and brightness, (B,) each, of the image that each state becomes.

        On an exact model the image is drawn from p(x0 | x, sigma); behind a network DPM-Solver++(2M) makes it.
        """
        if self.exact:
            squared = self.model.squared_distances(state.x)
            index = draw((squared / (-2 * state.sigma[:, None] ** 2)).log_softmax(1), rng)
            return self.labels[index], self.images.flatten(1).mean(1)[index]
        images = dmcmc.denoise(self.model, state, integrators.INTEGRATORS["dpmpp_2m"], levels, rng).clamp(0, 1)
        return self.classify(images), images.flatten(1).mean(1)


def make_bed(  # noqa: PLR0913  a test-bed as a parameter names it
    name: str,
    eta: Mapping[str, float],
    model: str,
    images: str,
    classes: str,
    calls: int,
    sigma_max: float | None = None,
) -> Bed:
    """Return a test-bed: ``model`` is a name, or ``exact`` of the images; ``classes`` ``digits-cnn`` or ``labels``."""
    known, by_net = data.load_images(images), classes == "digits-cnn"
    net: Any = EmpiricalData(known, sigma_max=sigma_max) if model == "exact" else checkpoints.load_model(model)  # pyright: ignore
    if hasattr(net, "log_prob"):
        posterior = ExactPosterior(net, fine_levels(net))
    else:
        classifier, levels, _ = load_classifier(net)
        posterior = ClassifierPosterior(classifier, levels)
    labels = classifiers.classify(known) if by_net else known_labels(images)
    return Bed(name, net, posterior, known, labels, by_net, calls, eta)


def known_labels(images: str) -> Tensor:
    """Return the classes of images that ship or are published, or ``labels`` of an NPZ file."""
    if images == "digits-train":
        return data.digits("train").labels
    if images == "glyphs32":
        return data.glyphs32().labels
    if images in data.DATASETS:
        return data.open_images(images).labels  # pyright: ignore[reportReturnType]
    return torch.from_numpy(np.load(images)["labels"]).long()


class Run(NamedTuple):
    """Chains as they went, record by record.

    Attributes:
        calls: of each chain at each record, (records,).
        sigmas, labels, bright: noise level, and class and brightness of the image, (records, chains).
        acceptance: mean, None where nothing is tested.
        nfe: network calls per chain.
        cost: network calls of a step.
    """

    calls: list[int]
    sigmas: Tensor
    labels: Tensor
    bright: Tensor
    acceptance: float | None
    nfe: float
    cost: int


@torch.no_grad()
def run(bed: Bed, kernel: str, plan: Plan) -> Run:
    """Walk the chains of a kernel as far as the calls of the test-bed go; all kernels begin at the same states."""
    chains, seed = range(plan.chains), plan.seed
    rng, fate = Streams(seed, f"mixing {kernel}", chains), Streams(seed, f"fate {kernel}", chains)
    counted, state = count_nfe(bed.model), bed.draw(Streams(seed, "joint", chains), plan.chains)
    step = _restart(bed, counted, plan) if kernel == RESTARTS else _step(bed, kernel, counted, plan)
    cost = plan.restart_calls if kernel == RESTARTS else plan.settings(kernel).step_calls()
    wanted = bed.calls / plan.records if bed.exact else plan.every
    stride = 1 if kernel == RESTARTS else max(1, round(wanted / cost))  # every restart is paid for, and counts
    seen, accepted = [(0, state.sigma, *bed.become(state, fate, plan.image_levels))], []
    for t in range(1, bed.calls // cost + 1):
        state, info = step(state, rng)
        accepted += [] if info is None else [info.acceptance.mean().item()]
        if t % stride == 0:
            seen.append((t * cost, state.sigma, *bed.become(state, fate, plan.image_levels)))
    calls, *records = (list(values) for values in zip(*seen, strict=True))
    tested = bool(accepted) and bed.exact and "langevin" not in kernel
    acceptance = sum(accepted) / len(accepted) if tested else None
    return Run(calls, *map(torch.stack, records), acceptance, counted.rows / plan.chains, cost)


def _step(bed: Bed, kernel: str, counted: CountNFE, plan: Plan) -> Step:
    """Return a kernel with its step size; adapted sizes are found before, at calls that are not counted."""
    size, chains = bed.eta[SIZES.get(kernel, kernel)], range(plan.chains)
    if kernel != ADAPTED:
        return dmcmc.kernel(counted, bed.posterior, plan.settings(kernel), size)
    sizes = adaptation.LevelSteps(bed.model.sigma_max, bed.model.sigma_min, size)
    step = dmcmc.kernel(counted, bed.posterior, plan.settings(kernel), sizes)
    before = bed.draw(Streams(plan.seed, "adapt", chains), plan.chains)
    adaptation.adapt(step, sizes, before, Streams(plan.seed, "adapting", chains), plan.adapt_calls // 2)
    counted.reset()
    return step


def _restart(bed: Bed, counted: CountNFE, plan: Plan) -> Step:
    """Return the control: an image from pure noise, and noise of a level that has nothing to do with the last."""
    grid = schedules.karras(plan.restart_calls, bed.model.sigma_max, bed.model.sigma_min)

    def step(state: ChainState, rng: Streams) -> tuple[ChainState, None]:
        x = integrators.dpmpp_2m(counted, dmcmc.prior(bed.model, rng, plan.chains, "mean"), grid)
        sigma = bed.draw(rng, plan.chains).sigma
        return ChainState(x + like(sigma, x) * rng(x), sigma), None

    return step
