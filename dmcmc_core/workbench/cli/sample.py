"""``sample``: images from a model with a sampler."""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmcmc_core.aliases import known_as
from dmcmc_core.errors import UserError
from dmcmc_core.runs.settings import ELSEWHERE as NAMES_ELSEWHERE
from dmcmc_core.runs.settings import SEARCHES, SETTINGS, TUNING
from dmcmc_core.samplers import FITTED
from dmcmc_core.workbench.cli import settings_help
from dmcmc_core.workbench.cli.verb import PROGRAM, Verb

if TYPE_CHECKING:
    from dmcmc_core.runs.ranks import Ranks

SET = "a setting of the run, the chains or the integrator, as listed below; may be repeated"
HERE = {
    "nfe": "--nfe, the budget in network evaluations",
    "block": "--set block=N, rows of one network evaluation",
    "guidance": "--set guidance=W",
    "label": "--set label=CLASS",
}
"""What the command line calls some of what a run is told; the rest has an argument of its name."""
KNOWN = ("label", "guidance", "dtype", "compile")
"""Settings of a run that have a line of their own below, or are arguments of the command line too."""
ELSEWHERE = {
    **{f"--{name.replace('_', '-')}": HERE.get(own, f"--{own}") for name, own in NAMES_ELSEWHERE.items()},
    **dict.fromkeys(["--output", "--outdir", "--folder", "--dir"], "--out"),
    **{"--integrator": "--sampler", "--guidance": HERE["guidance"], "--label": HERE["label"]},
    **dict.fromkeys(["--gpu", "--cuda"], "--device cuda"),
    **{f"--{name.replace('_', '-')}": f"--set {name}=VALUE" for name in SETTINGS if name not in KNOWN},
}
"""Arguments of other programs -> what they are called here."""


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sample``."""
    p.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="digits, glyphs32, glyphs32-exact, digits-mixture, glyphs32-mixture, digits-cld, digits-bdm, digits-vp, "
        "or the path of a checkpoint",
    )
    p.add_argument(
        "--sampler",
        required=True,
        metavar="S",
        help="NAME or dlg+NAME (chains first), NAME one of "
        + settings_help.SAMPLERS
        + " or fitted, whose solver is fitted to the model once; "
        "dlg+auto, which finds its settings itself; auto, which finds the plain sampler nearest to the accurate "
        "solution (fitted too, where its fit costs no more than the images) and takes chains where these are surely "
        "better; "
        "or, of a linear diffusion (digits-cld, or a denoiser with --set sde=VP), gddim, sde+euler_maruyama, sde+heun, "
        "sde+sscs or sde+ancestral",
    )
    p.add_argument("--nfe", type=int, required=True, metavar="N", help="network evaluations per image, at most")
    p.add_argument(
        "-n",
        "--num",
        type=int,
        required=True,
        metavar="n",
        help="number of images; under torchrun -n, as it refuses --num",
    )
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="s",
        help="image i of a recipe and a seed is always the same (default: 0)",
    )
    p.add_argument(
        "--seeds", metavar="a-b", help="instead of --seed: a run for each from a to b, in DIR/seed-a and so on"
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets manifest.json and shard-*.npz")
    p.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=SET)
    p.add_argument("--dtype", metavar="D", help="as --set dtype=D: the number format of the network")
    p.add_argument("--compile", action="store_true", help="as --set compile=true: the network compiled by torch")
    p.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")
    p.add_argument(
        "--shard-size",
        type=int,
        metavar="k",
        help="images in a file; with chains as many whole windows as that holds (default: 64, or a larger block)",
    )
    p.add_argument(
        "--shard",
        metavar="i/n",
        help="make only share i of n, from 0, as one job of an array; whichever job ends last completes the run",
    )
    p.add_argument("--png", action="store_true", help="then write every image as DIR/png/00000000.png and so on")
    p.add_argument("--grid", action="store_true", help="then write the first 64 images side by side as DIR/grid.png")


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` pairs with values read as YAML: 1e-4 is a number, true a bool, [1, 2] a list."""
    import yaml

    from dmcmc_core.checkpoints.configurations import read_yaml

    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set takes key=value, such as eta=0.01, not {pair!r}")
        if key in result:
            raise UserError(f"--set {key} is given twice")
        try:
            result[key] = read_yaml(value)
        except (ValueError, RecursionError, yaml.YAMLError):
            raise UserError(f"--set {key}: {value!r} is not a YAML value") from None
    return result


def share_of_array(text: str | None) -> tuple[int, int] | None:
    """Return ``i/n`` as two numbers, 0 <= i < n."""
    if text is None:
        return None
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"--shard takes i/n, share i of n from 0, such as 0/4 to 3/4, not {text!r}")
    return int(i), int(n)


def of_seeds(a: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the arguments of each run: one, or one for every seed of ``--seeds``, in a folder of its own."""
    if a.seeds is None:
        return [a]
    first, _, last = a.seeds.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UserError(f"--seeds takes a-b, the first seed and the last, such as 0-2, not {a.seeds!r}")
    if a.seed:
        raise UserError("--seed and --seeds say the same in two ways: leave one out")
    runs = range(int(first), int(last) + 1)
    return [argparse.Namespace(**vars(a) | {"seed": seed, "out": a.out / f"seed-{seed}"}) for seed in runs]


def sample(a: argparse.Namespace) -> int:
    """Make the images, alone or as one of several ranks."""
    from dmcmc_core.runs.ranks import current

    with _ended_like_ctrl_c():
        ranks = current()
        with ranks.together():
            return max([_sample(one, ranks) for one in of_seeds(a)])


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which job systems and torchrun send, end what is inside as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sample(a: argparse.Namespace, ranks: Ranks) -> int:
    flags = [*([f"dtype={a.dtype}"] if a.dtype else []), *(["compile=true"] if a.compile else [])]
    chosen, share, a.sampler = settings([*a.settings, *flags]), share_of_array(a.shard), known_as(a.sampler)
    _check_numbers(a)
    from dmcmc_core.checkpoints import check_device
    from dmcmc_core.runs.folder import finished
    from dmcmc_core.runs.make import run
    from dmcmc_core.runs.pictures import check_pictures, write_grid, write_pngs
    from dmcmc_core.runs.ranks import device as device_of_rank

    if a.png or a.grid:
        check_pictures()
    device = device_of_rank(a.device)
    check_device(device)
    sampler = a.sampler
    if sampler in SEARCHES:
        sampler, chosen = _search_together(a, chosen, device, ranks)
    elif sampler in (FITTED.name, f"dlg+{FITTED.name}") and "file" not in chosen:
        chosen |= {"file": _fitted_together(a, chosen, device, ranks)}
    was_complete = finished(a.out, a.num)
    given = (("shard", a.shard_size), ("share", share), ("pictures", a.png or a.grid or None))
    more = {name: value for name, value in given if value is not None}
    manifest = run(
        model=a.model,
        sampler=sampler,
        nfe=a.nfe,
        num=a.num,
        seed=a.seed,
        out=a.out,
        settings=chosen,
        device=device,
        **more,
    )
    if not ranks.leads:
        return 0
    if not manifest["complete"]:
        print(f"{manifest['images']} of {a.num} images in {a.out}; the rest is left to the other processes")
        return 0
    before = "already complete, nothing was computed: " if was_complete else ""
    print(f"{before}{manifest['images']} images in {a.out}, {describe_plan(manifest)}")
    for asked, write in ((a.png, write_pngs), (a.grid, write_grid)):
        if asked:
            print(f"wrote {write(a.out)}")
    return 0


def _check_numbers(a: argparse.Namespace) -> None:
    given = (("nfe", a.nfe, 1), ("num", a.num, 1), ("seed", a.seed, 0), ("shard-size", a.shard_size, 1))
    for name, value, least in given:
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if a.out.exists() and not a.out.is_dir():
        raise UserError(f"--out {a.out} is a file: name a folder")


def _search_together(a: argparse.Namespace, chosen: dict[str, Any], device: str, ranks: Ranks):
    """Search on the rank that leads first: the others then take what it has kept in the folder."""
    if not ranks.leads:
        ranks.barrier()
    found = _search(a, chosen, device, ranks.leads)
    if ranks.leads:
        ranks.barrier()
    return found


def _fitted_together(a: argparse.Namespace, chosen: dict[str, Any], device: str, ranks: Ranks) -> str:
    """Return the file of a solver, fitted on the rank that leads if it is not there."""
    from dmcmc_core.checkpoints import load_model
    from dmcmc_core.runs.fitting import solver_file

    if not ranks.leads:
        ranks.barrier()
    say = functools.partial(print, file=sys.stderr, flush=True) if ranks.leads else lambda line: None
    path = solver_file(load_model(a.model, device), a.nfe, chosen, sampler=a.sampler, num=a.num, say=say)
    if ranks.leads:
        ranks.barrier()
    return str(path)


def _search(a: argparse.Namespace, chosen: dict[str, Any], device: str, leads: bool) -> tuple[str, dict[str, Any]]:
    """Return the sampler and settings that trials find best; they are kept in the folder for the same command."""
    from dmcmc_core.checkpoints import load_model
    from dmcmc_core.report import tables
    from dmcmc_core.runs import tuning
    from dmcmc_core.runs.pictures import announce

    path = a.out / TUNING
    if not path.is_file() and a.out.is_dir() and any(p.suffix != ".part" for p in a.out.iterdir()):
        raise UserError(f"{a.out} is not empty: {a.sampler} begins in a new folder")
    model, plain = load_model(a.model, device), a.sampler == tuning.AUTO_OR_PLAIN
    announce(model, wanted=a.png or a.grid, say=False)
    say = functools.partial(print, file=sys.stderr, flush=True) if leads else lambda line: None
    say(f"{a.sampler}: settings are tried, or taken from an earlier trial; what is found is kept in {path}")
    tuned = tuning.auto(model, a.nfe, a.num, chosen, plain=plain, path=path, say=say)
    if leads:
        print(tables.as_text(tuned.table(), {name: name for name in tuned.table()[0]}))
        print(tuned)
    return tuned.sampler, tuned.settings


def describe_plan(manifest: dict[str, Any]) -> str:
    """Return what a finished run was: its levels, its windows, its cost on both counts."""
    plan = manifest["plan"]
    text = (
        f"{manifest['nfe_full']:.2f} NFE each in full (warm-up included), {manifest['nfe_paper']:.2f} on the paper's "
        "count"
    )
    if plan["chain"]:
        text += f"; n_skip {plan['chain']['n_skip']}"
    levels = plan["levels"]
    if levels is None:
        return text + f"; tol {plan['options']['tol']:g}"
    count = f"{levels} {'time' if 'times' in manifest else 'level'}{'s' * (levels > 1)}"
    if levels > 2:
        return text + f"; {count} for the integrator"
    remedy = "more images, fewer chains or a larger --nfe" if plan["chain"] else "a larger --nfe"
    return text + f"; only {count} left to the integrator, too few for good images: {remedy} gives it more"


SAMPLE = Verb(
    sample,
    arguments,
    "Draw images from a model and write them as shards. An interrupted run goes on where it was.",
    f"examples:\n  {PROGRAM} sample --model digits --sampler dlg+heun --nfe 15 --num 600 --out images "
    "--set n_skip=5 --set eta=0.3\n"
    "  torchrun --nproc-per-node=2 -m dmcmc_core sample -n 600 ... (its own parser stumbles over --num)\n"
    f"  {PROGRAM} sample ... --shard 0/4, and so on to 3/4, as the jobs of an array",
    settings_help.all_settings,
    elsewhere=ELSEWHERE,
)
