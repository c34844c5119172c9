"""The explorer without a browser: the same runs to their end, rows of their figures, and what is claimed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dmcmc_core.errors import UserError
from dmcmc_core.report.tables import claim
from dmcmc_core.runs.sampling import sample
from dmcmc_core.workbench.explorer.choice import Choice
from dmcmc_core.workbench.explorer.compare import Comparison
from dmcmc_core.workbench.explorer.control import Steering
from dmcmc_core.workbench.explorer.session import DONE, Models, Session, Worker


def watched(choice: Choice, models: Models | None = None) -> Session:
    """Return the session of a run that has ended; UserError where it failed."""
    session = Session(models)
    session.start(choice)
    _ended(session)
    return session


def compared(a: Choice, b: Choice, budgets: Sequence[int], models: Models | None = None) -> Comparison:
    """Return the curve of paired errors between two samplers; UserError where it failed."""
    comparison = Comparison(models)
    comparison.start_curve(a, b, budgets)
    _ended(comparison)
    return comparison


def steered(bed: str, strengths: Sequence[float], models: Models | None = None) -> Steering:
    """Return images moved across the boundaries of a bed; UserError where it failed."""
    steering = Steering(models)
    steering.ask(bed, strengths)
    _ended(steering)
    return steering


def _ended(worker: Worker) -> None:
    if worker.wait() != DONE:
        raise UserError(worker.problem.message if worker.problem else "the run was cancelled")


def way_rows(session: Session) -> list[dict[str, Any]]:
    """Return the calls of a run: their phase, noise level and how far the answer is from the finished images."""
    images = torch.as_tensor(session.images)
    low, high = session.images.data_range
    unit = 255 * ((images - low) / (high - low))
    return [
        {
            "call": frame.call,
            "phase": frame.phase,
            "sigma": float(frame.sigma.mean()),
            "to_the_end": (torch.from_numpy(frame.denoised).float() - unit[: len(frame.x)])
            .square()
            .mean()
            .sqrt()
            .item()
            / 255,
        }
        for frame in session.log.frames
        if frame.phase == "images"
    ]


def trace_rows(session: Session, chains: int = 8) -> list[dict[str, Any]]:
    """Return the noise levels of the first chains, window by window."""
    return [
        {"window": k, "step": step, "chain": c, "sigma": float(levels[c]), "starts": bool(window["chosen"][c] == step)}
        for k, window in enumerate(session.windows())
        for step, levels in enumerate(window["sigmas"])
        for c in range(min(chains, len(levels)))
    ]


def result_rows(*sessions: Session) -> list[dict[str, Any]]:
    """Return a row of results.csv for each run."""
    rows = []
    for session in sessions:
        choice, manifest = session.choice, session.images.manifest
        about = {"bed": choice.model, "method": choice.sampler, "sampler": choice.sampler, "settings": choice.settings}
        cost = {"budget": choice.nfe, "nfe": manifest["nfe_full"], "nfe_paper": manifest["nfe_paper"]}
        rows.append(about | cost | {"seed": choice.seed, "n": choice.n, "levels": manifest["plan"]["levels"]})
    return rows


def claims(plain: Session, chained: Session, comparison: Comparison, steering: Steering) -> list[dict[str, Any]]:
    """Return what is claimed of the explorer: that looking changes nothing, and what was seen."""
    return [*_of_runs(plain, chained), _of_ways(plain), _of_two(comparison), _of_control(steering)]


def _of_runs(*sessions: Session) -> list[dict[str, Any]]:
    made = []
    for session in sessions:
        c = session.choice
        bare = sample(c.model, c.sampler, c.nfe, c.n, c.seed, **c.settings)
        equal = torch.equal(torch.as_tensor(bare), torch.as_tensor(session.images))
        rows = sum(bare.manifest["rows"].values())
        where = f"{c.model}, {c.sampler}, {c.nfe} NFE, n = {c.n}, seed {c.seed}"
        text = f"a run of {c.sampler} that is watched gives the images of one that is not, for the same evaluations"
        said = f"{'the same' if equal else 'other'} bits, {session.log.rows} against {rows} evaluations ({where})"
        made.append(claim(text, equal and session.log.rows == rows, said))
    return made


def _of_ways(session: Session) -> dict[str, Any]:
    rows = way_rows(session)
    first, last = rows[0]["to_the_end"], rows[-1]["to_the_end"]
    return claim(
        "the first answer of the network is no image yet, and the last is the finished one to 5 % of the range",
        last < 0.05 < first,
        f"{first:.3g} and {last:.3g} of the range from the finished images ({session.choice.sampler})",
    )


def _of_two(comparison: Comparison) -> dict[str, Any]:
    rows, (a, b) = comparison.rows, comparison.names
    falls = rows[-1]["between"] < rows[0]["between"]
    told = ", ".join(f"{row['between']:.2g} at {row['nfe']}" for row in rows)
    return claim(f"{a} and {b} come nearer to each other with more evaluations", falls, told, note=comparison.verdict())


def _of_control(steering: Steering) -> dict[str, Any]:
    moved = (steering.edited - steering.source).square().mean().sqrt().item()
    least = min(steering.accuracies.values())
    said = f"at least {least:.0%} of images held out; images move by {moved:.2g} at strengths {steering.strengths}"
    return claim("boundaries tell nine of ten images that they have not seen", least >= 0.9, said)
