"""Preconditioned diffusion sampling on test-beds: the published predictor-corrector, its gains, and their controls."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from dmcmc_core import data, preconditioning, schedules
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.preconditioning import NoiseOnly, Preconditioner, WithPreconditioner
from dmcmc_core.report import plots
from dmcmc_core.report.beds import Beds
from dmcmc_core.report.tables import Spread, in_words, mean_and_spread, spread_of
from dmcmc_core.report.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
Gains = Preconditioner | NoiseOnly | None
Cell = tuple[str, str, float]
"""Test-bed, arm and speed-up."""
PC, VANILLA, FAST = "predictor_corrector", "vanilla", "DPM-Solver++(2M)"
PAPERS = (VANILLA, "TDAS", "frequency", "space", "both")
"""Arms of the papers; all others are controls."""
FILTERS = {"frequency": (True, False), "space": (False, True), "both": (True, True), "TDAS": (True, False)}
"""Arm -> whether its gains are of frequencies, and of pixels."""
LOOKS = {arm: k for k, arm in enumerate((VANILLA, "TDAS", "both", "frequency", "space", "inverse", "no corrections"))}
LOOKS |= {"covariance": 7, "ancestral": 9, "as both": 10, "as frequency": 11, "karras": 12, "as inverse": 13}
"""The look of each arm, see :func:`dmcmc_core.report.plots.style.look`; ``as NAME`` has the colour of NAME."""


class Control(NamedTuple):
    """A sampler without gains at as many network calls: its settings, and levels for each iteration."""

    sampler: str
    settings: dict[str, Any]
    per_iteration: int


CONTROLS = {
    "no corrections": Control(PC, {"corrections": 0}, 2),
    "ancestral": Control("ancestral", {"schedule": "log_uniform"}, 2),
    "karras": Control(PC, {"schedule": "karras"}, 1),
}
CORRECTORS: dict[str, tuple[int, dict[str, Any]]] = {
    "snr 0.16": (1, {}),
    "snr 0.05": (1, {"snr": 0.05}),
    "none": (1, {"corrections": 0}),
    "none, twice the levels": (2, {"corrections": 0}),
}
"""Corrections -> levels for each iteration, and settings."""


def constant(m: Preconditioner) -> Preconditioner:
    """Return the same gain everywhere, as strong as m: the square root of the mean of its M M^T."""
    unit = torch.eye(math.prod(m.shape), dtype=torch.float64).reshape(-1, *m.shape)
    return Preconditioner(pixel=(m.apply(unit).square().sum() / len(unit)).sqrt().expand(m.shape))


def walked(bed: Testbed, m: Gains) -> Testbed:
    """Return the test-bed with its model preconditioned."""
    return bed if m is None else bed._replace(model=WithPreconditioner(bed.model, m))


@dataclass(frozen=True)
class Sampling:
    """Test-beds, and what iterations and statistics mean on them.

    Attributes:
        beds: the test-beds.
        base: iterations of the sampler that speed-ups refer to.
        alpha: of the published gains.
        images: that statistics are made of.
    """

    beds: Beds
    base: int
    alpha: float
    images: int

    def iterations(self, speed_up: float) -> int:
        """Return the iterations at a speed-up."""
        return schedules.sped_up(speed_up, self.base)

    def statistics(self, bed: Testbed, count: int | None = None) -> Tensor:
        """Return images in [0, 1] of which gains are made: some of what the model has seen."""
        own = bed.train if bed.train is not None else bed.unit(bed.model.images)  # pyright: ignore
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))
        return own[order[: count or self.images]]

    def preconditioner(self, bed: Testbed, arm: str) -> Gains:
        """Return the gains of an arm; ``as NAME`` has those of :func:`constant`."""
        if arm == VANILLA or arm in CONTROLS:
            return None
        if arm.startswith("as "):
            of = self.preconditioner(bed, arm.removeprefix("as "))
            assert isinstance(of, Preconditioner), f"{arm}: no gains"
            return constant(of)
        if arm == "inverse":
            return Preconditioner.from_images(self.statistics(bed), self.alpha, True, True, recipe="inverse")
        if arm == "covariance":
            return Preconditioner.from_covariance(preconditioning.moments(self.statistics(bed)), sigma=0.5)
        m = Preconditioner.from_images(self.statistics(bed), self.alpha, *FILTERS[arm])
        return NoiseOnly(m) if arm == "TDAS" else m

    def block(self, bed: Testbed, name: str) -> dict[str, Any]:
        """Return the setting of one block for a network; exact models have blocks of their own."""
        return {} if hasattr(bed.model, "log_prob") else {"block": self.beds.n[name]}

    def measured(
        self, bed: Testbed, name: str, iterations: int, settings: Mapping[str, Any], control: str = "", **about: Any
    ) -> Rows:
        """Return a row for each seed of the predictor-corrector, or a control, at the calls that iterations cost.

        Args:
            bed: whose model is walked with its gains already.
            name: of the test-bed.
            iterations: of which each is a prediction and a correction.
            settings: beyond those of the arm.
            control: one of :data:`CONTROLS`; any other name is none.
            about: what the rows are of.
        """
        sampler, more, per = CONTROLS.get(control, Control(PC, {}, 1))
        settings = {"start": "zero"} | self.block(bed, name) | more | dict(settings)
        calls = per * iterations * (1 + settings.get("corrections", 1) if sampler == PC else 1)
        if sampler == PC:
            settings["levels"] = per * iterations
        n, seeds = self.beds.n[name], self.beds.seeds
        made = [bed.row(sampler, calls, n, seed, settings, bed=name, **about) for seed in seeds]
        print(f"{name:8} {about} {calls} calls: {in_words(distance(made))}", flush=True)
        return made

    def distances(self, arms: Mapping[str, Mapping[str, Sequence[float]]]) -> Rows:
        """Return rows of every arm at its speed-ups, and of :data:`FAST` at 20 NFE under the speed-up 0."""
        rows = []
        for name, bed in self.beds.loaded.items():
            for arm, speed_ups in arms[name].items():
                of = walked(bed, self.preconditioner(bed, arm))
                for k in speed_ups:
                    rows += self.measured(of, name, self.iterations(k), {}, arm, arm=arm, speed_up=k)
            how = {"bed": name, "arm": FAST, "speed_up": 0}
            rows += [bed.row("dpmpp_2m", 20, self.beds.n[name], s, {"start": "mean"}, **how) for s in self.beds.seeds]
        return rows

    def corrections(self, speed_ups_of: Mapping[str, Sequence[float]]) -> Rows:
        """Return how the plain sampler does by its corrections, with the network and with the exact score.

        Beside the distance stands how the images of all seeds are shared out among the classes, that of the nearest
        training image: chi² against equal draws, and its p.
        """
        digits, rows = data.digits("train"), []
        for name, speed_ups in speed_ups_of.items():
            bed = self.beds.loaded[name]
            assert bed.train is not None and torch.equal(bed.train, digits.images), f"{name}: labels are of the digits"
            exact = exact_model(bed)
            for k in speed_ups:
                for score, of in (("network", bed), ("exact", bed._replace(model=exact))):
                    for corrector, (per, settings) in CORRECTORS.items():
                        levels = per * self.iterations(k)
                        about = {"score": score, "corrector": corrector, "speed_up": k, "levels": levels}
                        made = self.measured(of, name, levels, settings, **about)
                        options = {"start": "zero", "levels": levels} | self.block(of, name) | settings
                        test = self._classes(of, name, made[0]["budget"], options, exact, digits.labels)
                        about |= {"bed": name, "calls": made[0]["nfe"], "distance": distance(made)}
                        rows.append(about | {"chi2": test.statistic, "p": test.pvalue})
        return rows

    def _classes(
        self, bed: Testbed, name: str, calls: float, options: dict[str, Any], exact: EmpiricalData, labels: Tensor
    ) -> Any:
        """Return the chi² test of the classes of all seeds' images."""
        expected = torch.bincount(labels).double() / len(labels)
        counts = torch.zeros(len(expected))
        for seed in self.beds.seeds:
            images, _ = bed.samples(PC, calls, self.beds.n[name], seed, options)
            nearest = exact.squared_distances(images).argmin(1)
            counts += torch.bincount(labels[nearest], minlength=len(expected))
        return stats.chisquare(counts, expected * counts.sum())

    def ablation(self, values_of: Mapping[str, Sequence[Any]], speed_up_of: Mapping[str, float]) -> Rows:
        """Return how both gains do when one choice changes: alpha, omega, images, recipe, norms of the corrector.

        ``strength`` is the mean of M M^T; ``base`` tells the choice that all others are varied from.
        """
        base = {"alpha": self.alpha, "omega": 0.0, "images": self.images, "recipe": "published", "norms": "image"}
        varied = []
        for name, k in speed_up_of.items():
            bed = self.beds.loaded[name]
            for factor, values in values_of.items():
                tried = [base[factor], *values]
                ordered = sorted(tried) if all(isinstance(value, int | float) for value in tried) else tried
                for value in ordered:
                    m, strength = self._chosen(bed, base | {factor: value})
                    settings = {"joint": True} if (factor, value) == ("norms", "batch") else {}
                    made = self.measured(walked(bed, m), name, self.iterations(k), settings, **{factor: value})
                    about = {"bed": name, "factor": factor, "value": value, "distance": distance(made)}
                    varied.append(about | {"strength": strength, "base": value == base[factor]})
        return varied

    def _chosen(self, bed: Testbed, choices: Mapping[str, Any]) -> tuple[Preconditioner, float]:
        """Return both gains of some choices, and the mean of their M M^T without S."""
        images, recipe = self.statistics(bed, choices["images"]), choices["recipe"]
        pixel = recipe != "before-2023"  # it divides by pixels, of which some are always 0
        m = Preconditioner.from_images(images, choices["alpha"], pixel=pixel, recipe=recipe)
        strength = constant(m).pixel.mean().item() ** 2 if m.shape else 1.0  # pyright: ignore
        return m.with_skew(choices["omega"]) if choices["omega"] else m, strength

    def samples(self, speed_ups_of: Mapping[str, Sequence[float]], seed: int) -> dict[str, dict[str, Tensor]]:
        """Return images of the same 8 streams, in [0, 1]: test-bed and iterations -> arm -> (8, C, H, W)."""
        panels = {}
        for name, speed_ups in speed_ups_of.items():
            bed = self.beds.loaded[name]
            for k in speed_ups:
                levels = self.iterations(k)
                settings = {"start": "zero", "levels": levels} | self.block(bed, name)
                panels[f"{name}, {levels} iterations"] = {
                    arm: bed.unit(
                        walked(bed, self.preconditioner(bed, arm)).samples(PC, 2 * levels, 8, seed, settings).images
                    )
                    for arm in (VANILLA, "TDAS", "both", "as both")
                }
        return panels


def exact_model(bed: Testbed) -> EmpiricalData:
    """Return the exact score of a test-bed's training images, on the levels of its network."""
    low, high = bed.model.data_range
    images = low + (high - low) * bed.train  # pyright: ignore
    return EmpiricalData(images, sigma_max=bed.model.sigma_max, sigma_min=bed.model.sigma_min)


def distance(rows: Iterable[Mapping[str, Any]]) -> Spread:
    """Return the Frechet distance over rows of seeds."""
    return spread_of(row["frechet"] for row in rows)


def cells_of(rows: Rows) -> dict[Cell, Spread]:
    """Return the distance of each test-bed, arm and speed-up."""
    found = mean_and_spread(rows, "frechet", ("bed", "arm", "speed_up"))
    return {(g["bed"], g["arm"], g["speed_up"]): g["frechet"] for g in found}


def caption(sampling: Sampling, cells: Mapping[Cell, Spread]) -> str:
    """Return what the distances of a test-bed are, and that of :data:`FAST`."""
    beds = sampling.beds
    each = [
        f"{beds._replace(loaded={name: bed}).caption}, {FAST} at 20 NFE {cells[name, FAST, 0].mean:.3g}"
        for name, bed in beds.loaded.items()
    ]
    each.append(f"{len(beds.seeds)} seeds")
    return "; ".join(each) + f"; alpha {sampling.alpha:g}, {sampling.images} images for the statistics."


def figure(beds: Beds, arms: Mapping[str, Mapping[str, Sequence[float]]], rows: Rows) -> tuple[Figure, Rows]:
    """Return the distance against iterations, controls in panels of their own beside the plain sampler, and rows."""
    cells, spent = cells_of(rows), {(r["bed"], r["arm"], r["speed_up"]): r["nfe"] for r in rows}
    points = [
        {"panel": panel, "line": arm, "nfe": spent[name, arm, k] / 2, "distance": cells[name, arm, k]}
        for name, tried in arms.items()
        for panel, shown in panels_of(name, tried).items()
        for arm in shown
        for k in tried[arm]
    ]
    return drawn(points, beds.ylabels, beds.floors, len(beds.seeds)), points


def panels_of(name: str, tried: Collection[str]) -> dict[str, list[str]]:
    """Return panel -> arms of a test-bed: those of the papers, other gains beside them, and samplers without gains."""
    others = [arm for arm in tried if arm not in PAPERS and arm not in CONTROLS]
    panels = {
        name: [arm for arm in tried if arm in PAPERS],
        f"{name}: other gains": [arm for arm in (VANILLA, "both") if arm in tried and others] + others,
        f"{name}: without gains": [VANILLA, *(arm for arm in tried if arm in CONTROLS)],
    }
    return {panel: shown for panel, shown in panels.items() if len(shown) > 1 or panel == name}


def drawn(points: Rows, ylabels: Mapping[str, str], floors: Mapping[str, float], n_seeds: int) -> Figure:
    """Draw the rows of :func:`figure`; ``ylabels`` and ``floors`` are of test-beds."""
    beds = {point["panel"]: point["panel"].split(":")[0] for point in points}
    labels = {panel: ylabels[name] for panel, name in beds.items()}
    known = {panel: floors[name] for panel, name in beds.items() if name in floors}
    title = f"{n_seeds} seeds, bars: standard deviation; two network calls an iteration"
    return plots.distance_lines(points, labels, known, title, xlabel="iterations", ncols=2, looks=LOOKS)


def table(arms: Mapping[str, Mapping[str, Sequence[float]]], cells: Mapping[Cell, Spread]) -> Rows:
    """Return a row for each test-bed and arm, its distances under ``k10`` for a speed-up of 10 and so on."""
    every = sorted({k for _, _, k in cells if k})
    return [
        {"bed": name, "arm": arm} | {f"k{k:g}": cells.get((name, arm, k)) for k in every}
        for name, tried in arms.items()
        for arm in tried
    ]


def limits(sampling: Sampling, arms: Mapping[str, Mapping[str, Sequence[float]]], cells: Mapping[Cell, Spread]) -> Rows:
    """Return the largest speed-up of each arm up to which the distance stays within 1.5 times a slow one.

    ``own``: that of the arm's slowest run, of ``against`` iterations; ``plain``: that of the plain sampler's.
    """
    rows = []
    for name, tried in arms.items():
        slow = {arm: min(speed_ups) for arm, speed_ups in tried.items()}
        for arm, speed_ups in tried.items():
            own = cells[name, arm, slow[arm]]
            row = {"bed": name, "arm": arm, "against": sampling.iterations(slow[arm]), "slow": own}
            for what, value in (("own", own), ("plain", cells[name, VANILLA, slow[VANILLA]])):
                far = [k for k in speed_ups if cells[name, arm, k].mean > 1.5 * value.mean]
                itself = slow[arm] if value is own or arm == VANILLA else None
                near = [k for k in speed_ups if k < min(far, default=math.inf) and k != itself]
                row[what] = max(near, default=None)
            rows.append(row)
    return rows


def ablation_figure(sampling: Sampling, varied: Rows, cells: Mapping[Cell, Spread], at: Mapping[str, float]) -> Figure:
    """Return the figure of :meth:`Sampling.ablation`, the plain sampler's distance across it where that was made."""
    lines = {name: {VANILLA: cells[name, VANILLA, k].mean} for name, k in at.items() if (name, VANILLA, k) in cells}
    titles = {name: f"{name}, {sampling.iterations(k)} iterations" for name, k in at.items()}
    return plots.ablation(varied, sampling.beds.ylabels[next(iter(at))], lines, titles)
