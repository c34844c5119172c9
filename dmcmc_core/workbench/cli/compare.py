"""``compare``: samplers of one model side by side, of runs that are there or that it makes."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmcmc_core.errors import UserError
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    p.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders that sample wrote, of one model and n")
    p.add_argument("--model", metavar="M", help="in place of runs: make them, of this model, as sample takes it")
    p.add_argument("--samplers", nargs="+", metavar="S", help="as sample takes them, several")
    p.add_argument("--nfe", nargs="+", type=int, metavar="N", help="budgets of network evaluations per image")
    p.add_argument(
        "--seeds", default=None, metavar="k", help="how many seeds from 0 on, or a-b for a to b (default: 3)"
    )
    p.add_argument("-n", "--num", type=int, metavar="n", help="images of a sampler, budget and seed (default: 256)")
    p.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of all samplers")
    p.add_argument("--reference", metavar="R", help="as evaluate takes it; the folder of another run may be one")
    p.add_argument(
        "--features",
        metavar="F",
        help="as evaluate takes them (default: digits-cnn for digits-*, glyphs-cnn for glyphs32, else random-conv)",
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="gets comparison and pairs (csv, md, tex), plot and grid (png)"
    )
    p.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")


def seeds(text: str) -> int | list[int]:
    """Return ``3`` as how many, and ``2-4`` as the seeds 2, 3 and 4."""
    first, dash, last = text.partition("-")
    if first.isdecimal() and not dash and int(first) > 0:
        return int(first)
    if first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        return list(range(int(first), int(last) + 1))
    raise UserError(f"--seeds takes how many, such as 3, or a-b, such as 0-4, not {text!r}")


def compare(a: argparse.Namespace) -> int:
    """Print the comparison, and write it where asked for."""
    making = {"--samplers": a.samplers, "--nfe": a.nfe, "--seeds": a.seeds, "--num": a.num, "--set": a.settings or None}
    given = [name for name, value in making.items() if value is not None]
    if a.runs and given:
        raise UserError(f"runs are there already: leave {given[0]} out, or the runs")
    needed = {"--model": a.model, "--samplers": a.samplers, "--nfe": a.nfe}
    missing = [name for name, value in needed.items() if value is None]
    if not a.runs and missing:
        raise UserError(f"name two runs, or give {', '.join(missing)} too (see {PROGRAM} compare --help)")
    chosen = {} if a.runs else _made(a)
    from dmcmc_core.checkpoints import check_device
    from dmcmc_core.report import side_by_side

    check_device(a.device)
    about = {"reference": a.reference, "features": a.features, "out": a.out, "device": a.device, "model": a.model}
    print(side_by_side.compare(*a.runs, **about, **chosen, progress=True))
    if a.out is not None:
        print(f"tables and figures are in {a.out}")
    return 0


def _made(a: argparse.Namespace) -> dict:
    """Return what says which runs are made."""
    from dmcmc_core.workbench.cli.sample import settings

    chosen = {"samplers": a.samplers, "nfe": a.nfe, "settings": settings(a.settings)}
    chosen |= {} if a.seeds is None else {"seeds": seeds(a.seeds)}
    return chosen | ({} if a.num is None else {"n": a.num})


COMPARE = Verb(
    compare,
    arguments,
    "Samplers of one model side by side: mean and spread over seeds, and of each two which is better.\n"
    "Without a reference the paired error decides: the root mean square of what is between an image and the\n"
    "accurate solution (unipc, 60 calls) from the same noise, in units of the data. Its test is paired over images.\n"
    "With a reference the Fréchet distance has verdicts of its own: by Welch's test over seeds, or of one seed by the\n"
    "spreads of a bootstrap. Samplers that add noise on their way, and dlg+NAME, need a reference.\n"
    "Runs that differ in their seed alone are one row. What is made is kept in exp/cache: asked again, it is there.",
    f"examples:\n  {PROGRAM} compare samples-a samples-b --out comparison\n"
    f"  {PROGRAM} compare --model digits --samplers heun dpmpp_2m unipc --nfe 5 10 20 --num 256 --out comparison\n"
    f"  {PROGRAM} compare samples samples-dlg --reference digits-heldout",
)
