"""Two samplers of one model at equal NFE from the same seeds, and at how many evaluations they become the same."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import metrics
from dmcmc_core.errors import TooFew, UserError
from dmcmc_core.files import root
from dmcmc_core.report.measuring import BEGINS, pairs_with_accurate, prepare_reference
from dmcmc_core.report.testbed import ACCURATE
from dmcmc_core.runs.sampling import Images
from dmcmc_core.workbench.explorer.choice import BadChoice, Choice, Problem, problem_of
from dmcmc_core.workbench.explorer.session import Models, Progress, Worker, images_of
from dmcmc_core.workbench.explorer.watching import Cancelled, Log

BUDGETS = (4, 5, 6, 8, 10, 13, 16, 20, 28, 40, 60, 80, 100)
"""Evaluations at which a curve is taken, until the two samplers are the same."""
REFERENCES = {"digits": "digits-heldout"}
"""What models whose names begin so are compared with."""
CURVE = 64
"""Images of a curve at most: paired errors need few."""
KEPT = 48
"""Sets of images that are kept in memory."""


class Side(NamedTuple):
    """One of the two: its images in the data range, what they cost, how far they are.

    ``error``: paired error to the accurate solution, None for chains and what adds noise; ``distance``: to the
    reference, None where ``why`` tells the reason.
    """

    choice: Choice
    images: Images
    nfe: float
    seconds: float
    error: float | None
    distance: float | None
    why: str


class Pair(NamedTuple):
    """Both; ``between``: paired error of one to the other, in units of the data; ``rounding``: what 256 levels make."""

    a: Side
    b: Side
    between: float
    rounding: float
    accurate: Tensor | None
    distance_name: str

    @property
    def difference(self) -> Tensor:
        """B - A of each image, (n, C, H, W)."""
        return torch.as_tensor(self.b.images) - torch.as_tensor(self.a.images)


class Comparison(Worker):
    """Compares two samplers on a thread.

    Attributes:
        pair: what the last comparison found; None before its end.
        rows: of the curve so far: ``nfe``, ``between``, ``a`` and ``b``, the paired errors to the accurate solution.
        names: of the two samplers of that curve.
    """

    def __init__(self, models: Models | None = None) -> None:
        super().__init__()
        self.models, self.log = models or Models(), Log(frames=False)
        self.pair: Pair | None = None
        self.rows: list[dict[str, Any]] = []
        self.names, self.rounding, self.total, self.spared, self.doing = ("", ""), 0.0, 1, 0, ""
        self._kept: OrderedDict[str, tuple[Images, float]] = OrderedDict()

    def start(self, a: Choice, b: Choice) -> None:
        """Begin to compare two choices; BadChoice for numbers that cannot be."""
        self._check(a, b)
        self.begin(lambda: self._compare(a, b), lambda: self._ready(a, b, [a.nfe]))

    def start_curve(self, a: Choice, b: Choice, budgets: Sequence[int] = BUDGETS) -> None:
        """Begin the curve of paired errors by NFE; it ends where the two are the same to 256 levels.

        It is of the first CURVE images.
        """
        self._check(a, b)
        a, b = (replace(side, n=min(side.n, CURVE)) for side in (a, b))
        self.begin(lambda: self._curve(a, b, budgets), lambda: self._ready(a, b, budgets, curve=True))

    def verdict(self) -> str:
        """Say from how many evaluations on the two are the same, or how near they came."""
        if not self.rows:
            return ""
        same, last = self.same_from(), self.rows[-1]
        a, b = self.names
        if same is not None:
            before = max((row["nfe"] for row in self.rows if row["nfe"] < same), default=None)
            return (
                f"{a} and {b} are indistinguishable from {same} evaluations on"
                f"{'' if before is None else f', and not yet at {before}'}: their images differ by less than "
                f"rounding to 256 levels, {self.rounding:.2g}."
            )
        return (
            f"{a} and {b} still differ by {last['between']:.2g} at {last['nfe']} evaluations, "
            f"{last['between'] / self.rounding:.1f} times what rounding to 256 levels makes."
        )

    def same_from(self) -> int | None:
        """Return the evaluations from which on all errors between the two are below rounding; None for none."""
        same = None
        for row in reversed(self.rows):
            if row["between"] >= self.rounding:
                break
            same = row["nfe"]
        return same

    def progress(self) -> Progress:
        """Return how far it is; sets of images that were kept count as done."""
        seconds, done = self.seconds, self.log.rows + self.spared
        rate = self.log.rows / seconds if seconds > 0 and self.log.rows else None
        left = max(0, self.total - done) / rate if rate and self.running else None
        return Progress(self.status, done, self.total, float("nan"), rate, left, seconds, self.problem)

    def _check(self, *sides: Choice) -> None:
        for control, side in zip("ab", sides, strict=True):
            try:
                side.check_numbers()
            except UserError as error:
                raise _beside(error, control) from error

    def _ready(self, a: Choice, b: Choice, budgets: Sequence[int], curve: bool = False) -> None:
        self.log = Log(self.stop, frames=False)
        self.total, self.spared = a.n * (ACCURATE[1] + 2 * sum(budgets)), 0
        if curve:
            self.rows, self.names = [], (a.sampler, b.sampler)
        else:
            self.pair = None

    def _made(self, choice: Choice) -> tuple[Images, float]:
        """Return images and the seconds that they took, of those kept if they are."""
        if self.stop.is_set():
            raise Cancelled
        if choice.key not in self._kept:
            self.doing = f"{choice.sampler} at {choice.nfe} evaluations"
            model, started = self.models.get(choice.model), time.perf_counter()
            before = len(self.notes)
            images = images_of(model, choice, self.log)
            self.notes[before:] = [f"{self.doing}: {note}" for note in self.notes[before:]]
            self._kept[choice.key] = images, time.perf_counter() - started
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        else:
            self.spared += choice.nfe * choice.n
        return self._kept[choice.key]

    def _accurate(self, choice: Choice, manifest: dict[str, Any]) -> Tensor | None:
        if not pairs_with_accurate(manifest["plan"]):
            return None
        sampler, nfe = ACCURATE
        begins = {name: choice.settings[name] for name in BEGINS if name in choice.settings}
        images, _ = self._made(replace(choice, sampler=sampler, nfe=nfe, settings=begins))
        return torch.as_tensor(images)

    def _side(self, choice: Choice, control: str) -> tuple[Side, Tensor | None, str]:
        try:
            choice.check(self.models.get(choice.model))
        except UserError as error:
            raise _beside(error, control) from error
        images, seconds = self._made(choice)
        accurate = self._accurate(choice, images.manifest)
        error = None if accurate is None else metrics.paired_error(torch.as_tensor(images), accurate)
        distance, why, name = _distance(choice, images)
        return Side(choice, images, images.nfe, seconds, error, distance, why), accurate, name

    def _compare(self, a: Choice, b: Choice) -> None:
        sides = [self._side(side, control) for side, control in ((a, "a"), (b, "b"))]
        (one, accurate, name), (other, theirs, _) = sides
        between = metrics.paired_error(torch.as_tensor(other.images), torch.as_tensor(one.images))
        rounding = metrics.rounding(one.images.data_range)
        self.pair = Pair(one, other, between, rounding, theirs if accurate is None else accurate, name)

    def _curve(self, a: Choice, b: Choice, budgets: Sequence[int]) -> None:
        model = self.models.get(a.model)
        for nfe in budgets:
            found = []
            for choice, control in ((replace(a, nfe=nfe), "a"), (replace(b, nfe=nfe), "b")):
                try:
                    choice.check(model)
                except TooFew:
                    break
                except UserError as error:
                    if problem_of(error).control == "nfe":
                        break
                    raise _beside(error, control) from error
                images, _ = self._made(choice)
                if not pairs_with_accurate(images.manifest["plan"]):
                    why = f"{choice.sampler} adds noise on its way or begins with chains: nothing pairs with it"
                    raise BadChoice(Problem(control, why))
                accurate = self._accurate(choice, images.manifest)
                found.append((torch.as_tensor(images), accurate))
            if len(found) < 2:
                continue
            (one, accurate), (other, _) = found
            self.rounding = metrics.rounding(images.data_range)
            between = metrics.paired_error(other, one)
            errors = {side: metrics.paired_error(x, accurate) for side, x in (("a", one), ("b", other))}
            self.rows = [*self.rows, {"nfe": nfe, "between": between} | errors]
            if len(self.rows) > 1 and all(row["between"] < self.rounding for row in self.rows[-2:]):
                break


def _beside(error: UserError, control: str) -> BadChoice:
    """Return an error beside the sampler that it is of, unless it is about a control that both share."""
    problem = problem_of(error, control)
    return BadChoice(problem if problem.control != "sampler" else Problem(control, problem.message))


def _distance(choice: Choice, images: Images) -> tuple[float | None, str, str]:
    """Return the distance to what a model is compared with, or why there is none, and what the distance is called."""
    found = (reference for begin, reference in REFERENCES.items() if choice.model.startswith(begin))
    if (reference := next(found, None)) is None:
        return None, "no reference is known for this model", ""
    try:
        ref = prepare_reference(reference, None, "cpu", root() / "exp" / "cache", tuple(images.shape[1:]))
    except UserError as error:
        return None, str(error), ""
    name = metrics.distance_name(ref.extractor.name)
    if len(images) <= len(ref.mu):
        return None, f"needs more than {len(ref.mu)} images", name
    low, high = images.data_range
    described = metrics.describe_for(ref, (torch.as_tensor(images) - low) / (high - low))
    return metrics.frechet_distance(*described.statistics, ref.mu, ref.cov), "", name
