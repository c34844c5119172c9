"""What somebody chose in the explorer: checked before anything runs, and as what makes the same images elsewhere."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core.errors import TooFew, UserError, is_number, number
from dmcmc_core.runs import fitting
from dmcmc_core.runs.kinds import split
from dmcmc_core.runs.model import Model
from dmcmc_core.runs.plan import Request
from dmcmc_core.runs.settings import LINEAR_SAMPLERS
from dmcmc_core.samplers import FITTED, INTEGRATORS
from dmcmc_core.workbench.cli.verb import PROGRAM

CONTROLS = ("nfe", "seed", "n_skip", "eta", "statistics", "preconditioner", "start", "chains", "n", "sampler", "model")
"""What a person chooses, in the order in which an error is searched for their names."""
RANGES = {"nfe": (1, 100_000), "n": (1, 1_000_000), "seed": (0, None)}
"""Whole numbers, with the smallest and the largest that each may be."""
MEMORY = 2**31
"""Bytes that the images of a run, or its chains, may take: all of them are kept in memory."""


class Problem(NamedTuple):
    """What is wrong, in a sentence, and the control that it belongs to; "" for none of them."""

    control: str
    message: str


class BadChoice(UserError):
    """A choice that cannot be run."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True)
class Choice:
    """A recipe: with its model it decides every image.

    ``model``: a name or a path; what a model in memory is called, where one was given. ``nfe``, ``n``, ``seed``: whole
    numbers. ``settings``: as of :func:`dmcmc_core.runs.sampling.sample`.
    """

    model: str = "digits"
    sampler: str = "dpmpp_2m"
    nfe: int = 10
    n: int = 64
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Text that is equal for equal choices."""
        return json.dumps(self.parameters(), sort_keys=True, default=str)

    @property
    def stem(self) -> str:
        """What files of this choice are called, without an ending."""
        return re.sub(r"[^\w+-]+", "-", f"{Path(self.model).stem}-{self.sampler}-{self.nfe}-seed{self.seed}")

    def parameters(self) -> dict[str, Any]:
        """Return the choice as parameters of notebooks/Explorer.ipynb, for papermill -f."""
        about = {"model": self.model, "sampler": self.sampler, "nfe": self.nfe, "n": self.n, "seed": self.seed}
        return about | {"settings": dict(self.settings)}

    def yaml(self) -> str:
        """Return :meth:`parameters` as a file that papermill -f reads."""
        import yaml

        return yaml.safe_dump(self.parameters(), sort_keys=False)

    def command(self, out: str = "images") -> str:
        """Return a line for a shell that makes the same images, bit for bit, in the folder ``out``."""
        words = ["sample", "--model", self.model, "--sampler", self.sampler, "--nfe", str(self.nfe)]
        words += ["--num", str(self.n), "--seed", str(self.seed), "--out", out]
        for name, value in self.settings.items():
            words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
        return f"{PROGRAM} {shlex.join(words)}"

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def check_numbers(self) -> None:
        """Raise BadChoice for numbers out of their range, and a sampler that is not known: nothing is loaded."""
        for name, (least, most) in RANGES.items():
            for bound in ({"least": least}, {"most": most}):
                _told(name, lambda name=name, bound=bound: number(name, self[name], whole=True, **bound))
        if self.sampler not in LINEAR_SAMPLERS:
            _told("sampler", lambda: split(self.sampler))

    def check(self, model: Model) -> None:
        """Raise BadChoice, which tells the control, for what :func:`dmcmc_core.runs.sampling.sample` would refuse."""
        self.check_numbers()
        self._check_memory(getattr(model, "shape", ()))
        request = _told("sampler", lambda: Request(model, self.sampler, self.settings))
        fitted = self.sampler not in LINEAR_SAMPLERS and split(self.sampler)[1] is FITTED
        if fitted and "file" not in self.settings:  # its solver may not be fitted yet
            _told("sampler", lambda: fitting.place(model, self.nfe, self.settings, sampler=self.sampler, num=self.n))
        else:
            _told("sampler", lambda: request.plan(self.nfe, self.n))

    def _check_memory(self, shape: Sequence[int]) -> None:
        most = MEMORY // (4 * max(1, math.prod(shape)))
        for name, count in (("n", self.n), ("chains", self.settings.get("chains", 0))):
            if is_number(count) and count > most:
                why = f"{name} must be at most {most} images of shape {tuple(shape)}, which stay in memory: not {count}"
                more = "" if name == "chains" else "; the command sample writes any number to the disk"
                raise BadChoice(Problem(name, why + more))


def samplers_of(model: Model) -> list[str]:
    """Return the samplers that a model has: of denoisers without ``dlg+``, or those of its linear diffusion."""
    return list(LINEAR_SAMPLERS) if hasattr(model, "sde") else [*INTEGRATORS, FITTED.name]


def _told(control: str, what: Any) -> Any:
    """Return what a function does; a UserError becomes one that knows its control."""
    try:
        return what()
    except UserError as error:
        raise BadChoice(problem_of(error, control)) from error


def problem_of(error: UserError, otherwise: str = "", controls: Iterable[str] = CONTROLS) -> Problem:
    """Return an error with the control that it is about: the first that it names, else ``otherwise``."""
    if isinstance(error, BadChoice):
        return error.problem
    text = str(error)
    if text.startswith("unknown image set"):
        return Problem("statistics", text)
    named = (name for name in controls if re.search(rf"\b{name}\b", text, re.IGNORECASE))
    return Problem("nfe" if isinstance(error, TooFew) else next(named, otherwise), text)
