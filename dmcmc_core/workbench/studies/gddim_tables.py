"""gDDIM and what it is compared with on VP, BDM and CLD, by networks: cells of the paper's three tables, on digits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import data, gddim, metrics
from dmcmc_core.checkpoints import load_epsilon, load_model
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.errors import UserError
from dmcmc_core.files import key, write_npz
from dmcmc_core.linear_sde import CLD, VP
from dmcmc_core.report.tables import Spread, grouped, in_words, mean_and_spread
from dmcmc_core.runs.cache import code_key
from dmcmc_core.runs.folder import read_whole

Rows = list[dict[str, Any]]
EM, RK45, GDDIM = "Euler-Maruyama", "PF RK45", "gDDIM"
SAMPLERS = {
    "VP": {EM: "euler_maruyama", RK45: "rk45", "Heun": "heun", GDDIM: "gddim"},
    "BDM": {"ancestral": "ancestral", RK45: "rk45", GDDIM: "gddim"},
    "CLD": {EM: "euler_maruyama", "SSCS": "sscs", RK45: "rk45", GDDIM: "gddim"},
}
"""Diffusion -> its samplers, by the names of the tables."""
UNTRAINED = {"VP from the VE net": VP(), "CLD from the VE net": CLD()}
"""Diffusions whose epsilon is that of the variance-exploding network."""
AT = (10, 20, 50, 100, 1000)
PUBLISHED = {
    ("VP", EM): (">100", ">100", "31.2", "12.2", "2.64"),
    ("VP", RK45): (">100", "52.5", "6.62", "2.63", "2.56"),
    ("VP", "Heun"): ("66.25", "6.62", "2.65", "2.57", "2.56"),
    ("VP", GDDIM): ("4.17", "3.03", "2.59", "2.56", "2.56"),
    ("BDM", "ancestral"): (">100", ">100", "29.8", "9.73", "2.51"),
    ("BDM", RK45): (">100", "68.2", "7.12", "2.58", "2.46"),
    ("BDM", GDDIM): ("4.52", "2.97", "2.49", "2.47", "2.46"),
    ("CLD", EM): (">100", ">100", "57.72", "13.21", "2.39"),
    ("CLD", RK45): (">100", ">100", "31.7", "4.56", "2.25"),
    ("CLD", GDDIM): ("13.41", "3.39", "2.26", "2.26", "2.25"),
}
"""FID on CIFAR-10 at :data:`AT` NFE; arXiv 2206.05564, Table 3."""
ROOTS = {
    "R": dict(zip((20, 30, 40, 50), ("3.90", "2.64", "2.37", "2.26"), strict=True)),
    "L": dict(zip((20, 30, 40, 50), ("368", "167", "4.12", "3.31"), strict=True)),
}
"""The same of CLD by the coordinates of epsilon; Table 1."""
NOISE = {
    0.0: ("5.17", "346"),
    0.1: ("5.51", "168"),
    0.3: ("12.13", "137"),
    0.5: ("33", "89"),
    0.7: ("41", "45"),
    1.0: ("49", "57"),
}
"""The same by lambda at 50 NFE, of gDDIM and Euler-Maruyama; Table 2."""


def published(diffusion: str, label: str, budget: float) -> str | None:
    """Return the published number of a cell of Table 3, None where there is none."""
    return dict(zip(AT, PUBLISHED.get((diffusion, label), ()), strict=False)).get(budget)  # pyright: ignore


class Cell(NamedTuple):
    """A sampler of a diffusion at a budget; ``together``: all seeds in one evaluation, as they are few images."""

    diffusion: str
    label: str
    sampler: str
    budget: float
    sizes: tuple[int, ...]
    options: dict[str, Any]
    together: bool = False


@dataclass(frozen=True)
class Nets:
    """The networks of the study, and what their images are compared with.

    Attributes:
        trained: diffusion -> checkpoint that was trained for it.
        denoiser: the variance-exploding network, that of :data:`UNTRAINED`.
        reference: what images are compared with.
        features: of the comparison.
        device: where networks compute.
        cache_dir: where images and features are kept.
    """

    trained: Mapping[str, str]
    denoiser: str
    reference: str
    features: str
    device: str
    cache_dir: Path
    _digests: dict[str, str] = field(default_factory=dict)

    @cached_property
    def ve(self) -> Denoiser:
        """The variance-exploding network."""
        return load_model(self.denoiser, self.device)

    @cached_property
    def models(self) -> dict[str, gddim.Epsilon]:
        """Epsilon of each diffusion, of the untrained ones too."""
        trained = {name: load_epsilon(net, self.device) for name, net in self.trained.items()}
        return trained | {name: gddim.from_denoiser(sde, self.ve) for name, sde in UNTRAINED.items()}

    @cached_property
    def measure(self) -> metrics.Reference:
        """The reference with its features.

        Raises:
            UserError: for images of another shape than a network's.
        """
        images = data.load_images(self.reference)
        for one in (self.ve, *self.models.values()):
            metrics.check_shape(one.shape, self.reference, images.shape[1:])
        how = {"device": self.device, "cache_dir": self.cache_dir}
        return metrics.make_reference(images, self.features, self.reference, **how)

    def digest(self, name: str) -> str:
        """Return a hash of the weights behind a diffusion's epsilon."""
        if name not in self._digests:
            weights = (self.models[name] if name in self.trained else self.ve.net).state_dict().values()  # pyright: ignore
            text = b"".join(w.cpu().numpy().tobytes() for w in weights)
            self._digests[name] = hashlib.sha256(text).hexdigest()
        return self._digests[name]

    def drawn(self, cell: Cell, seeds: Sequence[int]) -> tuple[Tensor, float]:
        """Return images of some seeds, (seeds, count, C, H, W), and their NFE: made at most once.

        Raises:
            UserError: for a budget that is too small for the sampler.
        """
        count, options, model = max(cell.sizes), cell.options, self.models[cell.diffusion]
        about = [self.digest(cell.diffusion), repr(model.sde), cell.sampler, cell.budget, count, list(seeds)]
        path = self.cache_dir / code_key() / "gddim" / f"{key([*about, sorted(options.items())])}.npz"
        if (kept := read_whole(path)) is None:
            images, nfe = gddim.draw(model, cell.sampler, cell.budget, count, list(seeds), **options)  # pyright: ignore
            kept = {"images": images.unflatten(0, (len(seeds), count)).cpu().numpy(), "nfe": nfe}
            write_npz(path, **kept)
        return torch.from_numpy(kept["images"]), float(kept["nfe"])

    def rows(self, cells: Iterable[Cell], seeds: Sequence[int], n: int) -> Rows:
        """Return a row for each cell, size and seed; none where a sampler needs more than the budget.

        Args:
            cells: what to draw.
            seeds: of each.
            n: the size whose method has no size in its name.
        """
        rows = []
        for cell in cells:
            made = []
            for some in [list(seeds)] if cell.together else [[seed] for seed in seeds]:
                try:
                    images, nfe = self.drawn(cell, some)
                except UserError as reason:
                    if "too few" not in str(reason):
                        raise
                    break
                images = images.float().nan_to_num(0.5).clamp(0, 1)
                about = {"bed": "digits", "diffusion": cell.diffusion, "sampler": cell.sampler}
                about |= {"settings": cell.options, "budget": cell.budget}
                for seed, of_seed in zip(some, images, strict=True):
                    for size in cell.sizes:
                        what = {"method": of_size(cell.label, size, n), "nfe": nfe, "seed": seed}
                        made.append(about | what | metrics.measure(of_seed[:size], self.measure))
            for group in mean_and_spread(made, "frechet", ["method"]):
                where = f"{cell.diffusion}, {group['method']}, {cell.budget:g} NFE"
                print(f"{where}: {in_words(group['frechet'])}", flush=True)
            rows += made
        return rows


def of_size(label: str, size: int, n: int) -> str:
    """Return the name of a method whose images are of another number than n."""
    return label if size == n else f"{label}, {size} images"


def samplers(diffusion: str) -> dict[str, str]:
    """Return the samplers of a diffusion; of the untrained ones gDDIM alone."""
    return {GDDIM: "gddim"} if diffusion in UNTRAINED else SAMPLERS[diffusion]


def cells_of_table3(trained: Iterable[str], budgets: Sequence[int], sizes: Sequence[int]) -> list[Cell]:
    """Return every sampler at every budget, of trained networks at all sizes, of the untrained ones at the first."""
    return [
        Cell(name, label, sampler, budget, tuple(sizes[:1] if name in UNTRAINED else sizes), {})
        for name in (*trained, *UNTRAINED)
        for label, sampler in samplers(name).items()
        for budget in budgets
    ]


def cells_of_more(trained: Iterable[str], budgets: Sequence[int], size: int) -> list[Cell]:
    """Return the same of trained networks at budgets that cost too much for more images, all seeds together."""
    return [
        Cell(name, label, sampler, budget, (size,), {}, together=True)
        for budget in budgets
        for name in trained
        for label, sampler in samplers(name).items()
    ]


def cells_of_table1(degrees: Sequence[int], budgets: Sequence[int], n: int) -> list[Cell]:
    """Return gDDIM on CLD by coordinates and degree, and with a corrector."""
    made = [
        Cell("CLD", f"{root}, degree {degree}", "gddim", budget, (n,), {"degree": degree, "root": root})
        for root in ("R", "L")
        for degree in degrees
        for budget in budgets
    ]
    corrected = {"degree": 2, "corrector": True}
    return made + [Cell("CLD", "R, degree 2, corrector", "gddim", budget, (n,), corrected) for budget in budgets]


def cells_of_table2(lams: Sequence[float], budget: float, n: int) -> list[Cell]:
    """Return gDDIM on CLD by the noise of a step, right and as released, and Euler-Maruyama."""
    made = []
    for lam in lams:
        plain = {"degree": 0, "lam": lam}
        made.append(Cell("CLD", f"gDDIM, lambda {lam:g}", "gddim", budget, (n,), plain))
        made.append(Cell("CLD", f"as released, lambda {lam:g}", "gddim", budget, (n,), plain | {"released": True}))
        made.append(Cell("CLD", f"EM, lambda {lam:g}", "euler_maruyama", budget, (n,), {"lam": lam}))
    return made


class Found(NamedTuple):
    """Distances by diffusion, method and budget, and the number of images that has no name in a method."""

    means: dict[tuple[str, str, float], Spread]
    n: int

    def mean(self, diffusion: str, label: str, budget: float, size: int | None = None) -> Spread | None:
        """Return the distance of a cell, None where it is empty."""
        return self.means.get((diffusion, of_size(label, size or self.n, self.n), budget))


def found(rows: Rows, n: int) -> Found:
    """Return the distances of rows over seeds."""
    by = ("diffusion", "method", "budget")
    return Found({k: v["frechet"] for k, v in grouped(rows, ["frechet"], by).items()}, n)  # pyright: ignore


def table3(here: Found, trained: Sequence[str], budgets: Sequence[int], sizes: Sequence[int]) -> Rows:
    """Return a row for each diffusion, sampler and size: its distances and the published FIDs."""
    return [
        {"diffusion": name, "sampler": label, "n": size}
        | {f"here {b}": here.mean(name, label, b, size) for b in budgets}
        | {f"paper {b}": published(name, label, b) for b in budgets}
        for name in (*trained, *UNTRAINED)
        for label in samplers(name)
        for size in (sizes[:1] if name in UNTRAINED else sizes)
    ]


def lines(here: Found, trained: Sequence[str], budgets: Sequence[int]) -> Rows:
    """Return the points of the figure, a panel for each diffusion; distances of samplers that diverge are left out."""
    return [
        {"integrator": name.split()[0], "arm": f"{label}, VE net" if name in UNTRAINED else label, "nfe": b}
        | {"distance": value}
        for name in (*trained, *UNTRAINED)
        for label in samplers(name)
        for b in budgets
        if (value := here.mean(name, label, b)) is not None and value.mean < 1e4
    ]


def table1(here: Found, degrees: Sequence[int], budgets: Sequence[int]) -> Rows:
    """Return a row for coordinates and degree, and the published ones, whose degree is not said."""
    tried = [(root, str(degree), f"{root}, degree {degree}") for root in ("R", "L") for degree in degrees]
    tried.append(("R", "2, corrector", "R, degree 2, corrector"))
    rows = [{"root": r, "degree": d} | {f"{b}": here.mean("CLD", label, b) for b in budgets} for r, d, label in tried]
    return rows + [{"root": r, "degree": "paper"} | {f"{b}": ROOTS[r].get(b) for b in budgets} for r in ROOTS]


def table2(here: Found, lams: Sequence[float], budget: float) -> Rows:
    """Return a row for each lambda, beside the published ones."""
    kinds = {"gddim": "gDDIM", "released": "as released", "em": "EM"}
    return [
        {"lam": f"{lam:g}"}
        | {k: here.mean("CLD", f"{name}, lambda {lam:g}", budget) for k, name in kinds.items()}
        | dict(zip(("paper_gddim", "paper_em"), NOISE.get(lam, (None, None)), strict=True))
        for lam in lams
    ]
