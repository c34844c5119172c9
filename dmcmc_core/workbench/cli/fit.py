"""``fit``: a solver fitted to a network, for one or more budgets."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from dmcmc_core.errors import UserError
from dmcmc_core.workbench.cli.sample import settings
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fit``."""
    p.add_argument("--model", required=True, metavar="M", help="a name or a checkpoint; see models")
    p.add_argument("--nfe", type=int, nargs="+", required=True, metavar="N", help="network calls of an image")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    p.add_argument("--trajectories", type=int, default=64, metavar="T", help="accurate ones to fit to (default: 64)")
    p.add_argument("--seed", type=int, default=0, metavar="s", help="of their noise (default: 0)")
    p.add_argument(
        "--chains", action="store_true", help="solvers for the states of chains, from several levels: for dlg+fitted"
    )
    p.add_argument("--past", type=int, default=4, metavar="K", help="denoised images of a step, 1 to 4 (default: 4)")
    p.add_argument("--start", metavar="S", help="zero or mean (default: mean, where the model knows it)")
    p.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the model: label, guidance, guide, unconditional, sigma_min, sigma_max, mean, dtype, compile, layout",
    )
    p.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")


def fit(a: argparse.Namespace) -> int:
    """Fit the solvers and write them."""
    if a.out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, not {str(a.out)!r}")
    if a.out.is_dir():
        raise UserError(f"--out {a.out} is a folder: name a file")
    chosen = settings(a.settings)
    from dmcmc_core.checkpoints import load_model
    from dmcmc_core.integrators.fitted import save_all
    from dmcmc_core.runs.fitting import cost_of, solvers

    say = functools.partial(print, file=sys.stderr, flush=True)
    options = {"trajectories": a.trajectories, "seed": a.seed, "past": a.past, "start": a.start}
    model = load_model(a.model, a.device)
    found = solvers(model, sorted(set(a.nfe)), chosen, chains=a.chains, say=say, **options)
    save_all(a.out, [one for some in found.values() for one in some])
    print(f"{a.out}: solvers of {', '.join(map(str, found))} calls; {cost_of(found)}")
    return 0


FIT = Verb(
    fit,
    arguments,
    "Fit a solver to a network: the grid and coefficients that come nearest to its accurate solution from the same\n"
    "noise. No gradients, no data; an interrupted fit goes on where it was.",
    f"examples:\n  {PROGRAM} fit --model digits --nfe 4 5 6 8 10 --out digits-fitted.safetensors\n"
    f"  {PROGRAM} sample --model digits --sampler fitted --set file=digits-fitted.safetensors --nfe 5 --num 64 "
    "--out images",
)
