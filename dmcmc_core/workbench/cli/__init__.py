"""The command line: ``python -m dmcmc_core VERB``, one verb for one job.

Each verb imports what it needs when it runs: sampling, training and evaluation do without the notebook packages.
Bad input ends with one sentence on stderr and status 2, a notebook that failed with status 1, an interruption with 130.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.cli import publish

if TYPE_CHECKING:
    from dmcmc_core.runs.ranks import Ranks

PROGRAM = "python -m dmcmc_core"
CONTINUE = {
    "evaluate": "finished features are kept: the same command goes on from here",
    "reproduce": "finished items are kept: the same command goes on from here",
    "sample": "finished shards are kept: the same command goes on from here",
    "train": "the last saved state is kept: the same command goes on from there",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        verbs = parser()
        if words and not words[0].startswith("-") and words[0] not in VERBS:
            raise unknown("verb", words[0], (name for name, verb in VERBS.items() if verb.help))
        arguments = verbs.parse_args(words)
        return VERBS[arguments.verb].function(arguments) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has stopped: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a path that cannot be
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        rest = CONTINUE.get(words[0] if words else "", "nothing is left half-written")
        print(f"\ninterrupted: {rest}", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """argparse with its errors as one sentence, like all others, and help that is only made when asked for."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (f"{self.more()}\n" if self.more else "")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    top = Parser(
        prog=PROGRAM,
        description="Good images from few network evaluations of score-based diffusion models, without retraining.",
        epilog=f"Help on a verb: {PROGRAM} VERB --help",
    )
    shown = "{" + ",".join(name for name, verb in VERBS.items() if verb.help) + "}"
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs", help=shown)
    for name, verb in VERBS.items():
        options = {"help": verb.help} if verb.help else {}
        sub = verbs.add_parser(
            name,
            description=verb.description or verb.help,
            epilog=verb.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        verb.arguments(sub)
        sub.more = verb.more
    return top


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs with values as YAML: 1e-4 is a number, true a bool, [1, 2] a list."""
    import yaml

    from dmcmc_core.workbench.experiments import read_yaml

    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set takes key=value, such as eta=0.01, not {pair!r}")
        if key in result:
            raise UserError(f"--set {key} is given twice")
        try:
            result[key] = read_yaml(value)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: {value!r} is not a YAML value") from None
    return result


# reproduce


def reproduce_arguments(p: argparse.ArgumentParser) -> None:
    from dmcmc_core.workbench.experiments import PROFILES

    p.add_argument(
        "--profile",
        default="local",
        metavar="P",
        help=f"{', '.join(PROFILES)} (default: local). smoke: under a minute per item; local: minutes on "
        "two cores, fills figures/; full: the same at full size, hours; paper: published checkpoints, CUDA",
    )
    p.add_argument("--only", nargs="+", default=[], metavar="ID", help="these items alone (default: all)")
    p.add_argument("--list", action="store_true", help="show every item with its verdict and time, and run nothing")
    p.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: 2 if there are two cores)")
    p.add_argument(
        "--gpus", metavar="LIST", help="deal these out to the jobs, such as 0,1; none (default: all visible)"
    )
    p.add_argument(
        "--executor",
        default="processes",
        metavar="E",
        help=f"{' or '.join(EXECUTORS)} (default: processes, of this machine); for Snakemake see the verb export",
    )
    p.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster, such as tcp://host:8786")
    track_argument(p, ["jsonl"], "how many claims of each run hold; jsonl adds a line to exp/runs/PROFILE.jsonl")
    place_arguments(p)


EXECUTORS = ("processes", "dask")


def track_argument(p: argparse.ArgumentParser, default: list[str], what: str) -> None:
    from dmcmc_core.training.trackers import TRACKERS

    text = f"any of {', '.join(TRACKERS)} (default: {' '.join(default) or 'none'}): {what}"
    p.add_argument("--track", nargs="+", default=default, metavar="T", help=text)


def place_arguments(p: argparse.ArgumentParser) -> None:
    """Another project than this one: the tests' and the engines'."""
    p.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--package", default="dmcmc_core", help=argparse.SUPPRESS)


def reproduce(a: argparse.Namespace) -> int:
    from dmcmc_core.workbench import experiments

    project = _project(a)
    if a.list:
        print(experiments.overview(a.profile, a.only, project))
        return 0
    project.select(a.only, a.profile)  # names are looked at before a cluster is
    outcomes = experiments.reproduce(a.profile, a.only, project=project, executor=_executor(a), track=a.track)
    return int(any(outcome.failed for outcome in outcomes))


def _executor(a: argparse.Namespace):
    from dmcmc_core.workbench.experiments import executors

    if a.executor not in EXECUTORS:
        raise unknown("executor", a.executor, EXECUTORS)
    if a.executor == "processes":
        if a.scheduler:
            raise UserError(f"--scheduler {a.scheduler} is of a Dask cluster: it needs --executor dask")
        return executors.Processes(a.jobs, None if a.gpus is None else executors.parse_gpus(a.gpus))
    if not a.scheduler:
        raise UserError("--executor dask needs --scheduler ADDRESS, such as tcp://host:8786, where dask scheduler runs")
    if a.gpus is not None:
        raise UserError("--gpus is of this machine's processes; a Dask worker has its own CUDA_VISIBLE_DEVICES")
    return executors.Dask(a.scheduler, a.jobs)


def _project(a: argparse.Namespace):
    from dmcmc_core.workbench.experiments import Project, here

    return Project(a.root.resolve(), a.package) if a.root else here()


def export_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", metavar="WHAT", help="snakemake: a Snakefile; keys: each item's run key and outputs as JSON")
    p.add_argument("--out", type=Path, metavar="FILE", help="where to (default: printed)")
    p.add_argument("--profile", default="local", metavar="P", help="as for reproduce (default: local)")
    p.add_argument("--only", nargs="+", default=[], metavar="ID", help="these items alone (default: all)")
    place_arguments(p)


def export(a: argparse.Namespace) -> int:
    from dmcmc_core.workbench.experiments import workflow

    if a.what not in ("snakemake", "keys"):
        raise unknown("export", a.what, ("snakemake", "keys"))
    if a.what == "snakemake" and a.out:
        print(f"wrote {workflow.write_snakefile(_project(a), a.out, a.profile, a.only)}")
    elif a.what == "snakemake":
        print(workflow.snakefile(_project(a), a.profile, a.only), end="")
    elif a.out:
        raise UserError(f"--out {a.out} is for a Snakefile; export keys prints")
    else:
        print(json.dumps(workflow.run_table(_project(a), a.profile, a.only), indent=1))
    return 0


def run_one_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("id")
    p.add_argument("--profile", default="local")
    place_arguments(p)
    p.add_argument("--with-parent", action="store_true", help="end when the process that started this one has gone")


def run_one(a: argparse.Namespace) -> int:
    from dmcmc_core.workbench import experiments

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel and its sockets are put away
    if a.with_parent:
        experiments.end_with_parent()
    try:
        print(experiments.run_one(_project(a), a.id, a.profile))
        return 0
    except experiments.Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1


def readme_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--profile", default="local", metavar="P", help="whose verdicts to show (default: local)")
    place_arguments(p)


def readme(a: argparse.Namespace) -> int:
    from dmcmc_core.workbench import experiments

    print(f"wrote {experiments.write_readme(_project(a), a.profile)}")
    return 0


# sample


SAMPLERS = (
    "euler, heun, heun_churn, probability_flow, rk45, reverse_diffusion, euler_maruyama, ancestral, dpmpp_2m, "
    "predictor_corrector, deis, ipndm, rho_rk, dpmpp_3m, unipc"
)


SET = "a setting of the run, the chains or the integrator, as listed below; may be repeated"


def all_settings() -> str:
    """Every setting of ``sample``, taken from where it is defined; in brackets what it is unless set."""
    import inspect

    from dmcmc_core import gddim, integrators
    from dmcmc_core.dmcmc import ChainSettings
    from dmcmc_core.runs import sampling_run

    doc = inspect.getdoc(ChainSettings).partition("Attributes:\n")[2].partition("Raises:")[0]
    doc = re.sub(r":\w+:`([^`]*)`", r"\1", doc).replace("``", "").replace("None", "null")
    default = vars(ChainSettings()) | {"n_skip": "a third of what warm-up leaves of the budget", "start": "as above"}
    chains = {
        name: f"{' '.join(text.split()).rstrip('.')} ({_yaml(default[name])})"
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", doc, re.MULTILINE)
    }
    options = {}
    for name, entry in integrators.INTEGRATORS.items():
        found = {p.name: p.default for p in inspect.signature(entry.function).parameters.values()} | entry.defaults
        own = [o for o in found if o in integrators.OPTIONS or (o == "last" and entry.last)]
        found |= {"tol": "the smallest that the budget pays for"}
        if own:
            choice = {"last": ": " + " or ".join(_yaml(v) for v in entry.last)}
            options[name] = ", ".join(f"{o}{choice.get(o, '')} ({_yaml(found[o])})" for o in own)
    linear = {
        sampler: ", ".join(f"{o} ({_yaml(found[o].default)})" for o in found if o in gddim.options_of(name) - {"last"})
        for sampler, name in sampling_run.LINEAR_SAMPLERS.items()
        if (found := inspect.signature(gddim.SAMPLERS[name]).parameters)
    }
    lines = []
    for title, named in (
        ("settings of every sampler, with their defaults", sampling_run.SETTINGS),
        ("settings of the chains (dlg+NAME)", chains),
        ("options of the integrators", options),
        ("settings of linear diffusions (gddim, sde+NAME)", sampling_run.OF_LINEAR),
        ("options of their samplers", linear),
    ):
        lines.append(f"\n{title}:")
        for name, text in named.items():
            lines += textwrap.wrap(f"{name:<20}  {text}", 118, initial_indent="  ", subsequent_indent=" " * 24)
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """A value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def plan_made(manifest: dict[str, Any]) -> str:
    """What a finished run was: its levels, its windows, its cost on both counts."""
    the = manifest["plan"]
    text = (
        f"{manifest['nfe_full']:.2f} NFE each in full (warm-up included), {manifest['nfe_paper']:.2f} on the paper's "
    )
    text += "count"
    if the["chain"]:
        text += f"; n_skip {the['chain']['n_skip']}"
    if the["levels"] is None:
        return text + f"; tol {the['options']['tol']:g}"
    count = f"{the['levels']} {'time' if 'times' in manifest else 'level'}{'s' * (the['levels'] > 1)}"
    if the["levels"] > 2:
        return text + f"; {count} for the integrator"
    remedy = "more images, fewer chains or a larger --nfe" if the["chain"] else "a larger --nfe"
    return text + f"; only {count} left to the integrator, too few for good images: {remedy} gives it more"


def sample_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="digits, glyphs32, glyphs32-exact, digits-cld, digits-bdm, digits-vp, or the path of a checkpoint",
    )
    p.add_argument(
        "--sampler",
        required=True,
        metavar="S",
        help="NAME or dlg+NAME (chains first), NAME one of "
        + SAMPLERS
        + "; dlg+auto, which finds its settings itself; auto, which does without chains where they are not better; "
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
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets manifest.json and shard-*.npz")
    p.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=SET)
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


def _share(text: str | None) -> tuple[int, int] | None:
    """``i/n`` as two numbers, 0 <= i < n."""
    if text is None:
        return None
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"--shard takes i/n, share i of n from 0, such as 0/4 to 3/4, not {text!r}")
    return int(i), int(n)


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, which job systems and torchrun send, ends what is inside as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tuned(a: argparse.Namespace, chosen: dict[str, Any], device: str, leads: bool) -> tuple[str, dict[str, Any]]:
    """The sampler and the settings that trials find best; kept in the folder, so that the same command finds them."""
    from dmcmc_core.checkpoints import load_model
    from dmcmc_core.runs import sampling_run, tuning

    path = a.out / sampling_run.TUNING
    if not path.is_file() and a.out.is_dir() and any(p.suffix != ".part" for p in a.out.iterdir()):
        raise UserError(f"{a.out} is not empty: {a.sampler} begins in a new folder")
    model, plain = load_model(a.model, device), a.sampler == tuning.AUTO_OR_PLAIN
    say = functools.partial(print, file=sys.stderr, flush=True) if leads else lambda line: None
    say(f"{a.sampler}: settings are tried, or taken from an earlier trial; what is found is kept in {path}")
    tuned = tuning.auto(model, a.nfe, a.num, chosen, plain=plain, path=path, say=say)
    if leads:
        print(tuned)
    return tuned.sampler, tuned.settings


def sample(a: argparse.Namespace) -> int:
    from dmcmc_core.runs import ranks

    with _ended_like_ctrl_c():
        us = ranks.here()
        with us.together():
            return _sample(a, us)


def _sample(a: argparse.Namespace, us: Ranks) -> int:
    chosen, share = settings(a.settings), _share(a.shard)
    given = (("nfe", a.nfe, 1), ("num", a.num, 1), ("seed", a.seed, 0), ("shard-size", a.shard_size, 1))
    for name, value, least in given:
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if a.out.exists() and not a.out.is_dir():
        raise UserError(f"--out {a.out} is a file: name a folder")
    from dmcmc_core.checkpoints import check_device
    from dmcmc_core.runs import ranks, sampling_run, shards

    if a.png or a.grid:
        shards.check_pictures()
    device = ranks.device(a.device)
    check_device(device)
    sampler = a.sampler
    if sampler in sampling_run.SEARCHES:
        if not us.leads:
            us.meet()
        sampler, chosen = _tuned(a, chosen, device, us.leads)
        if us.leads:
            us.meet()
    there = sampling_run.finished(a.out, a.num)
    more = {name: value for name, value in (("shard", a.shard_size), ("share", share)) if value is not None}
    manifest = sampling_run.run(
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
    if not us.leads:
        return 0
    if not manifest["complete"]:
        print(f"{manifest['images']} of {a.num} images in {a.out}; the rest is left to the other processes")
        return 0
    done = "already complete, nothing was computed: " if there else ""
    print(f"{done}{manifest['images']} images in {a.out}, {plan_made(manifest)}")
    for asked, write in ((a.png, shards.write_pngs), (a.grid, shards.write_grid)):
        if asked:
            print(f"wrote {write(a.out)}")
    return 0


# evaluate


def evaluate_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("directory", type=Path, metavar="DIR", help="images that sample wrote")
    p.add_argument(
        "--reference",
        required=True,
        metavar="R",
        help="digits-heldout, digits-train, glyphs32; cifar10-train, cifar10-test, celebahq-256 or ffhq-1024, looked "
        "for in DMCMC_DATA and exp/paper (NAME:FILTER resizes the last two); or an NPZ, of images (arr_0) or of "
        "statistics (mu, sigma)",
    )
    p.add_argument(
        "--features",
        required=True,
        metavar="F",
        help="digits-cnn, glyphs-cnn, random-conv or inception; only distances in the last are called FID",
    )
    p.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    p.add_argument("--weights", type=Path, metavar="FILE", help="weights of the Inception network")
    p.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="resamples of the images for the interval of the Fréchet distance (default: 100 for at most 128 features, "
        "else 0, as each costs an eigendecomposition)",
    )
    p.add_argument(
        "--protocol",
        default="lossless",
        metavar="P",
        help="lossless (default), or dmcmc: the images through JPEG first, as the code published with DMCMC "
        "does after a truncating cast: sample with --set cast=truncate for the whole of it",
    )
    p.add_argument(
        "--allow-mixed-encodings",
        action="store_true",
        help="compare lossless images with a reference in JPEG files, or the other way round, which is refused else",
    )
    p.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the JSON of an earlier evaluation: print the differences from it too; refused unless number of images, "
        "features, reference, protocol and encoding are the same",
    )


def evaluate(a: argparse.Namespace) -> int:
    from dmcmc_core.metrics import evaluation

    result = evaluation.evaluate(
        a.directory,
        a.reference,
        a.features,
        weights=a.weights,
        bootstrap=a.bootstrap,
        protocol=a.protocol,
        allow_mixed_encodings=a.allow_mixed_encodings,
        against=a.against,
    )
    print(json.dumps(result, default=_number) if a.json else readable(result))
    return 0


def readable(result: dict[str, Any]) -> str:
    """A dictionary of results as lines, names left and values right; those of a dictionary inside as NAME.ITS-NAME."""
    lines = dict(_flat(result))
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _flat(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in result.items():
        value = _number(value) if hasattr(value, "item") or hasattr(value, "tolist") else value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None:
            yield prefix + name, "-"
        elif isinstance(value, list | tuple):
            yield prefix + name, json.dumps(value, default=_number)
        else:
            yield prefix + name, f"{value:.6g}" if isinstance(value, float) else value


def _number(value: Any) -> Any:
    """What JSON does not know: numbers and arrays of NumPy and torch, paths."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


# convert, models


def convert_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a .pth of score_sde, a .pkl of EDM, a checkpoint of Flax, or a folder of diffusers",
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    p.add_argument("--config", metavar="C", help="of a file of score_sde without a .json beside it: a name or a file")


def convert(a: argparse.Namespace) -> int:
    from dmcmc_core import checkpoints

    card = checkpoints.convert(a.source, a.out, a.config)
    kind = "t" if "t_min" in card else "sigma"  # what the network is told
    print(
        f"{a.out}: {card['parameters']:,} parameters, {kind} {card[f'{kind}_min']:g} to {card[f'{kind}_max']:g}, "
        f"data in {card['data_range']}, from {card['source']} (SHA-256 {card['source_sha256']})"
    )
    return 0


def models_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="one JSON array instead of lines")


def models(a: argparse.Namespace) -> int:
    from dmcmc_core import checkpoints
    from dmcmc_core.workbench import experiments

    found = checkpoints.known(experiments.here().root)
    if a.json:
        print(json.dumps(found, indent=1))
    else:
        width = max(len(m["name"]) for m in found)
        print("\n".join(f"{'here   ' if m['here'] else 'missing'}  {m['name']:<{width}}  {m['about']}" for m in found))
    return 0


# train

KINDS = ("score", "epsilon", "noise-level", "features")


def train_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("kind", metavar="KIND", help=" or ".join(KINDS))
    p.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of the run; see exp/nets/")
    track_argument(p, [], "the numbers that NAME.log has anyway, beside it as well")


def train(a: argparse.Namespace) -> int:
    if a.kind not in KINDS:
        raise unknown("kind of training", a.kind, KINDS)
    if not a.config.is_file():
        raise UserError(f"--config {a.config} is not a file")
    from dmcmc_core import training

    training.train(a.kind, a.config, track=a.track)
    return 0


# doctor


def doctor_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    p.add_argument("--weights", type=Path, metavar="FILE", help="where the Inception weights are")


def doctor(a: argparse.Namespace) -> int:
    from dmcmc_core.workbench import doctor as examination

    found = examination.examine(weights=a.weights)
    print(json.dumps(found, indent=1) if a.json else examination.report(found))
    return 0


class Verb:
    """A verb's name in the help, its arguments and what it does; verbs without help text are not shown.

    ``more`` () -> text ends its help, and is only called when that is asked for.
    """

    def __init__(
        self, function, arguments, help: str = "", description: str = "", example: str = "", more=None
    ) -> None:
        self.function, self.arguments, self.more = function, arguments, more
        self.help, self.description, self.example = help, description, example


VERBS = {
    "reproduce": Verb(
        reproduce,
        reproduce_arguments,
        "run the notebooks that have not run yet and fill figures/",
        "Run every notebook of exp/manifest.yaml whose run is not there yet, and fill figures/.\n"
        "A run is named by a hash of all that it depends on: an unchanged one is not repeated, an interrupted\n"
        "one is made again. Ends with a table of items, times and verdicts; status 1 if a notebook failed.",
        f"examples:\n  {PROGRAM} reproduce\n  {PROGRAM} reproduce --profile smoke --only demo\n"
        f"  {PROGRAM} reproduce --profile full --executor dask --scheduler tcp://host:8786",
    ),
    "export": Verb(
        export,
        export_arguments,
        "write the list of items as a Snakefile, for other machines and their queues",
        "Write exp/manifest.yaml as a Snakefile: a rule per item, each running what reproduce runs, so that runs made\n"
        "with either are found by both. It asks this project for the run keys whenever Snakemake reads it, so that\n"
        "changed notebooks, modules and checkpoints are seen; a changed manifest with other items needs a new export.",
        f"examples:\n  {PROGRAM} export snakemake --profile smoke --out Snakefile && snakemake --cores 2\n"
        "  snakemake --executor slurm --jobs 20 --config gpu=1 --default-resources slurm_partition=gpu runtime=240",
    ),
    "publish": Verb(
        publish.run,
        publish.arguments,
        "copy the figures and tables of finished runs into figures/published, which is committed",
        "Copy what the finished runs of a profile made into figures/published, all or nothing, pictures made small\n"
        "and the origin of each item in provenance.json, and write the gallery figures/README.md again.",
        f"examples:\n  {PROGRAM} publish\n  {PROGRAM} publish --profile full --only demo",
    ),
    "sample": Verb(
        sample,
        sample_arguments,
        "draw images from a model with a sampler",
        "Draw images from a model and write them as shards. An interrupted run goes on where it was.",
        f"examples:\n  {PROGRAM} sample --model digits --sampler dlg+heun --nfe 15 --num 600 --out images "
        "--set n_skip=5 --set eta=0.3\n"
        "  torchrun --nproc-per-node=2 -m dmcmc_core sample -n 600 ... (its own parser stumbles over --num)\n"
        f"  {PROGRAM} sample ... --shard 0/4, and so on to 3/4, as the jobs of an array",
        all_settings,
    ),
    "evaluate": Verb(
        evaluate,
        evaluate_arguments,
        "compare images with a reference",
        "Fréchet distance, KID, precision, recall, density and coverage of images against a reference.\n"
        "KID is the unbiased squared MMD of the kernel (x . y / d + 1)^3 over all pairs, d the number of features:\n"
        "the value itself, not times 1000, no mean over subsets; it is 0 on average for equal distributions and may\n"
        "be negative.\n\n"
        "blocks: the distances of three equal parts of the images, in their order; they are of fewer images and do\n"
        "not compare with the whole. bootstrap: a 95 % percentile interval; it covers the chance in which images were\n"
        "drawn, of DLG in which chains, but not the dependence within a chain, and as resamples repeat images it lies\n"
        "above the distance: read its width. classes: by the classifier behind digits-cnn and glyphs-cnn.\n"
        "memorisation: for references that name training and held-out images (digits, cifar10).\n\n"
        "Features and statistics are kept in exp/cache by the content of the images: 4 bytes a feature and image.\n"
        "The memory needed does not grow with the number of images; an interrupted evaluation goes on where it was.",
        f"examples:\n  {PROGRAM} evaluate images --reference digits-heldout --features digits-cnn --json > a.json\n"
        f"  {PROGRAM} evaluate others --reference digits-heldout --features digits-cnn --against a.json",
    ),
    "convert": Verb(
        convert,
        convert_arguments,
        "make a safetensors file of a checkpoint of score_sde, EDM or diffusers",
        "Read a published checkpoint, without running any code in it, and write it as safetensors with its card and\n"
        "the SHA-256 of the source inside. sample takes both; the converted file needs no configuration beside it.",
        f"example:\n  {PROGRAM} convert exp/ve/checkpoint_24.pth exp/ve/cifar10.safetensors "
        "--config ve_cifar10_ncsnpp_continuous",
    ),
    "models": Verb(
        models,
        models_arguments,
        "what models are known, which are here, and where each missing file goes and comes from",
    ),
    "train": Verb(
        train,
        train_arguments,
        "train a score net, epsilon of a linear diffusion, a noise-level classifier or features",
        "Train what ships in exp/nets, or your own. An interrupted training goes on from its last saved state.",
        f"example:\n  {PROGRAM} train score --config exp/nets/digits.yaml",
    ),
    "doctor": Verb(
        doctor,
        doctor_arguments,
        "what is here, what is missing, and what each missing thing costs",
    ),
    "readme": Verb(
        readme,
        readme_arguments,
        "rewrite the table of items in README.md from the newest runs",
    ),
    "run-one": Verb(run_one, run_one_arguments),
}
