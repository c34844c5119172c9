"""What the study of gDDIM claims, from its distances alone; sure is what Welch's t test over seeds puts below 5 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmcmc_core.report.tables import Spread, claim, compare, in_words
from dmcmc_core.workbench.studies.gddim_tables import AT, GDDIM, ROOTS, UNTRAINED, Found, Rows, published, samplers

Claim = dict[str, Any]
SOURCE = "arXiv 2206.05564"
VERDICTS = {1: "", 0: "the seeds cannot tell", -1: "the other way round"}


def of_table3(
    here: Found, trained: Sequence[str], budgets: Sequence[int], sizes: Mapping[int, int], seeds: int
) -> list[Claim]:
    """Return the claims that gDDIM is better than each other sampler of a diffusion, at budgets that the paper has.

    Args:
        here: distances.
        trained: diffusions.
        budgets: NFE.
        sizes: budget -> images of its cells.
        seeds: their number.
    """
    made = []
    for name in trained:
        for b in (b for b in budgets if b in AT):
            for label in (label for label in samplers(name) if label != GDDIM):
                ours, theirs = published(name, GDDIM, b), published(name, label, b)
                paper = f"{ours} against {theirs}" if ours and theirs else None
                text = f"{name}, {b} NFE: gDDIM is better than {label}"
                made += _ordered(here, (name, b), (GDDIM, label), text, (paper, "Table 3"), seeds, sizes[b])
    return made


def of_roots(here: Found, degrees: Sequence[int], budgets: Sequence[int], seeds: int) -> list[Claim]:
    """Return the claims that epsilon of R extrapolates better than that of L, at the highest degree."""
    made, top = [], max(degrees)
    for b in budgets:
        text = f"CLD, {b} NFE: epsilon of R extrapolates better than that of L at degree {top}"
        paper = f"{ROOTS['R'][b]} against {ROOTS['L'][b]}" if b in ROOTS["R"] else None
        labels = f"R, degree {top}", f"L, degree {top}"
        made += _ordered(here, ("CLD", b), labels, text, (paper, "Table 1"), seeds)
    return made


def of_noise(here: Found, lams: Sequence[float], budget: float, seeds: int) -> list[Claim]:
    """Return the claims that noise harms, and that the covariance as released does, at the largest lambda."""
    top = max(lams)
    most, text = f"gDDIM, lambda {top:g}", f"CLD, {budget} NFE: noise harms, lambda 0 is better than lambda {top:g}"
    labels, paper = ("gDDIM, lambda 0", most), ("5.17 against 49", "Table 2")
    made = _ordered(here, ("CLD", budget), labels, text, paper, seeds)
    text = f"CLD, {budget} NFE, lambda {top:g}: the covariance as released is worse than the right one"
    return made + _ordered(here, ("CLD", budget), (most, f"as released, lambda {top:g}"), text, (None, ""), seeds)


def of_untrained(here: Found, budgets: Sequence[int], seeds: int) -> list[Claim]:
    """Return the claims that the variance-exploding network serves other diffusions as it is."""
    made = []
    for name in UNTRAINED:
        sde = name.split()[0]
        for b in budgets:
            one, other = here.mean(name, GDDIM, b), here.mean(sde, GDDIM, b)
            assert one and other, f"{name}, {b} NFE: nothing was measured"
            text = f"{sde}, {b} NFE: the VE network serves without training, no worse than the one trained for {sde}"
            said = f"{_words('from the VE net', one)}, {_words('trained', other)} ({_where(here.n, seeds)})"
            note = "the VE network was trained longer, and on more levels"
            made.append(claim(text, compare(one, other) >= 0, said, note=note))
    return made


def of_trajectories(ways: Mapping[str, float], atoms: Rows, steps: int) -> list[Claim]:
    """Return the claims on exact scores: epsilon of R is flat, and a high degree ruins L alone."""
    low, high = atoms[0], atoms[3]
    r, left = ((low[f"{root} {steps}"], high[f"{root} {steps}"]) for root in ("R", "L"))
    return [
        claim(
            "CLD: along a trajectory epsilon of R moves less than that of L",
            ways["R"] < ways["L"],
            f"mean total variation {ways['R']:.2f} against {ways['L']:.2f} (exact score of the training digits)",
            "R is flat but near t = 0, L swings",
            f"{SOURCE}, Figure 1",
        ),
        claim(
            f"Four atoms, {steps} steps: degree 3 ruins L and not R",
            r[1] < 1.5 * r[0] and left[1] > 10 * left[0],
            f"degree 0 and 3: R {r[0]:.3g} and {r[1]:.3g}, L {left[0]:.3g} and {left[1]:.3g}",
            "R 3.90, L 368 at 20 NFE",
            f"{SOURCE}, Table 1",
        ),
    ]


def _ordered(  # noqa: PLR0913  a comparison as it is told
    here: Found,
    of: tuple[str, float],
    labels: tuple[str, str],
    text: str,
    paper: tuple[str | None, str],
    seeds: int,
    size: int | None = None,
) -> list[Claim]:
    """Return the claim that the first of two methods of a diffusion and budget is better; none where one is empty."""
    a, b = (here.mean(of[0], label, of[1], size) for label in labels)
    if a is None or b is None:
        return []
    sign, (value, place) = compare(a, b), paper
    said = f"{_words(labels[0], a)}, {_words(labels[1], b)} ({of[0]}, {of[1]} NFE, {_where(size or here.n, seeds)})"
    return [claim(text, sign == 1, said, value, f"{SOURCE}, {place}" if value else None, VERDICTS[sign])]


def _words(label: str, value: Spread) -> str:
    return f"{label} {in_words(value)}"


def _where(n: int, seeds: int) -> str:
    return f"digits, n = {n}, {seeds} seeds"
