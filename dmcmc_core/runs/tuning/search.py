"""The search of ``auto`` and ``dlg+auto``: the plain sampler first, then chains, then both on fresh seeds."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmcmc_core import checkpoints, files, metrics
from dmcmc_core.denoiser import Denoiser
from dmcmc_core.errors import TooFew, UserError, native, number
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs.cache import code_key
from dmcmc_core.runs.fitting import solver_file
from dmcmc_core.runs.model import conditioned
from dmcmc_core.runs.settings import GAINS, OF_MODEL, SEARCHES
from dmcmc_core.runs.tuning import plain as plain_samplers
from dmcmc_core.runs.tuning.chains import Chains
from dmcmc_core.runs.tuning.notes import Notes
from dmcmc_core.runs.tuning.paired import Paired
from dmcmc_core.runs.tuning.result import Tuned

AUTO, AUTO_OR_PLAIN = SEARCHES


def auto(
    model: str | Denoiser,
    nfe: float,
    num: int,
    fixed: dict[str, Any] | None = None,
    *,
    plain: bool = False,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Find the best sampler for ``num`` images at a full budget of ``nfe``.

    Args:
        fixed: settings that the user has chosen and that are left alone; ``integrator`` may be one of them.
        plain: whether a plain sampler is chosen where chains are not surely better (``auto``, not ``dlg+auto``) or not
            paid for. Fitted solvers are considered where their fit costs no more than the images.
        path: JSON file of what was measured and found: an interrupted search goes on from it, and the same question is
            answered from it. When None, the file of the question in the cache.
        cache_dir: keeps the trials' images for another search (None: nothing does), and, by default in exp/cache of the
            checkout, answers by their question and fitted solvers.
        say: takes a line for every trial.

    Raises:
        UserError: for unknown settings, a budget that nothing can keep to, a ``path`` that answers another question.
    """
    nfe, num = number("nfe", nfe, above=0), number("num", num, least=1, whole=True)
    loaded = checkpoints.load_model(model) if isinstance(model, str) else model
    fixed = {name: native(value) for name, value in (fixed or {}).items()}
    if fixed.keys() & GAINS:
        raise UserError("settings are searched for without a preconditioner: leave it out, or set the chains by hand")
    held, rest = conditioned(loaded, fixed)
    asked = {"nfe": nfe, "num": num, "fixed": fixed, "plain": plain, "model": fingerprint(held)}
    answer = _place(asked, cache_dir)
    notes = Notes(_answered(path, answer, say), asked)
    chains, unpaid = _chains(held, nfe, num, rest, say, notes)
    plans = plain_samplers.candidates(held, nfe, num, rest)
    if unpaid and not (plain and plans):
        raise unpaid
    if "tuned" in notes.content:
        return _with_file(Tuned(**notes.content["tuned"]), loaded, cache_dir, say)
    common = {name: value for name, value in rest.items() if name not in plain_samplers.OF_CHAINS}
    paired = Paired(held, nfe, common, notes, say)
    rows = plain_samplers.ranked(paired, plans) if len(plans) > 1 or unpaid else []
    if chains:
        chains.follow_by(rows)
    fit, why = 0, ""
    if plain and rows:
        row, fit, why = plain_samplers.consider_fitted(paired, loaded, asked, cache_dir)
        rows = sorted(filter(None, [*rows, row]), key=lambda one: (-one["images"], one["error"]))
    best = rows[0] if rows else {"sampler": rest.get("integrator"), "settings": common}
    if chains:
        tuned = _with_chains(chains, best, loaded, asked, cache_dir, paired.rows + fit, paired=rows, fitted=why)
    else:
        why = f"{why}; chains were not considered: {unpaid}"
        tuned = _alone(best, asked, paired.rows + fit, paired=rows, fitted=why)
    notes.keep(tuned=asdict(tuned))
    if path:
        files.write_bytes(answer, Path(path).read_bytes())
    return tuned


def _answered(path: str | Path | None, answer: Path, say: Callable[[str], None]) -> str | Path:
    """Return the file of the notes, which begins as the answer that the cache has, if any."""
    if path and answer.is_file() and not Path(path).exists():
        say(f"this was asked before: the answer is taken from {answer}")
        files.write_bytes(path, answer.read_bytes())
    return path or answer


def _place(asked: dict[str, Any], cache_dir: str | Path | None) -> Path:
    """Return the file of the answer that this code gives to a question."""
    folder = Path(cache_dir) if cache_dir else files.root() / "exp" / "cache"
    return folder / code_key() / "tuning" / f"{files.key([asked, _code()])}.json"


@functools.cache
def _code() -> str:
    """Hash the modules that decide an answer, beside those of :func:`code_key`."""
    own = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in (*own, *metrics.SOURCES))).hexdigest()


def _chains(*asked: Any) -> tuple[Chains | None, TooFew | None]:
    """Return the search of chains, or None and the reason where the budget pays for none."""
    try:
        return Chains(*asked), None
    except TooFew as reason:
        return None, reason


def _with_chains(  # noqa: PLR0913  what was asked and what is known so far
    chains: Chains,
    best: dict[str, Any],
    model: Denoiser,
    asked: dict[str, Any],
    cache_dir: str | Path | None,
    rows: int,
    **found: Any,
) -> Tuned:
    """Return what is chosen of chains and of the plain sampler ``best``; ``rows`` were evaluated before."""
    with tempfile.TemporaryDirectory() as temporary:
        rows += chains.search(Path(cache_dir or temporary))
        fit, why = chains.consider_fitted(model, asked, cache_dir)
        finals = chains.finals((best["sampler"], best["settings"]))
    rows += fit + sum(row["rows"] for row in [*chains.trials, *finals])
    of_model = {name: asked["fixed"][name] for name in OF_MODEL if name in asked["fixed"]}
    sampler, settings = chains.best
    plain = {"sampler": best["sampler"], "settings": best["settings"] | of_model}
    distance, name = finals[0]["distance"], metrics.distance_name(chains.reference.extractor.name)
    about = {"trials": chains.trials, "plain": plain, "asked": asked, "finals": finals} | found
    about["fitted"] = "; ".join(filter(None, (found["fitted"], why)))
    tuned = Tuned(sampler, settings | of_model, distance, rows / asked["num"], rows, name, **about)
    return tuned.or_plain() if asked["plain"] else tuned


def _alone(best: dict[str, Any], asked: dict[str, Any], total: int, **found: Any) -> Tuned:
    """Return the plain sampler ``best`` where the budget pays for no chains: its distance is its paired error."""
    settings = best["settings"] | {name: asked["fixed"][name] for name in OF_MODEL if name in asked["fixed"]}
    about = {"plain": {"sampler": best["sampler"], "settings": settings}, "asked": asked} | found
    return Tuned(best["sampler"], settings, best["error"], total / asked["num"], total, "paired error", **about)


def _with_file(tuned: Tuned, model: Denoiser, cache_dir: str | Path | None, say: Callable[[str], None]) -> Tuned:
    """Return what was found; a solver that was fitted and whose file has gone is fitted again, to the same numbers."""
    if "file" in tuned.settings and not Path(tuned.settings["file"]).is_file():
        settings = {name: value for name, value in tuned.settings.items() if name != "file"}
        where = {"sampler": tuned.sampler, "num": tuned.asked["num"], "cache_dir": cache_dir}
        tuned.settings["file"] = str(solver_file(model, tuned.asked["nfe"], settings, say=say, **where))
    return tuned
