"""What becomes of broken files: a thousand seeded mutations of each format that can be read.

    python benchmarks/mutations.py [--n N] [--seed S] [--formats NAME ...] [--out FILE]

Networks of every family, images as files, arrays and runs, statistics, features. A mutation flips bits, cuts, zeroes,
doubles or removes a span, claims a giant size, exchanges the members of an archive, the chunks of a picture or the
opcodes of a pickle (some call a shell), takes a file of several away, or writes a sound file of other keys, shapes,
dtypes and values. It must load with finite numbers, a network must answer, or it is refused in one sentence: no other
exception, no code run, no more than 1 GB of memory and 20 seconds of a processor. Each format is read in a process of
its own that may take 4 GB of addresses more than for a sound file. Prints a table, and every mutation that went wrong;
the exit status is 1 if one did.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sound_files
import sound_images
import torch
from broken_files import Changes, Files, header, in_bytes, in_content, in_json, members, opcodes, torch_bytes, weights
from broken_images import jpeg_markers, legacy_opcodes, npy_headers, places, png_chunks, png_giants

from dmcmc_core.checkpoints import load_model, load_noise_level
from dmcmc_core.errors import UserError

LIMIT = 4 * 2**30
GROWTH = 2**30
SECONDS = 20


class Format(NamedTuple):
    """A format: how a sound file is written, how it is broken, and what loads it."""

    write: Callable[[Path], Path]
    mutations: tuple[Callable[[Files, random.Random, Path], Changes], ...]
    load: Callable[[Path], Any] = load_model
    """A model, or tensors by name."""


def classifier(path: Path) -> Any:
    return load_noise_level(path, like=sound_files.ForClassifier)[0]


def _arrays(name: str, make: Callable[[], Any], write: Callable[[Any], bytes], *mutations: Any) -> Format:
    """Return the format of a file of NumPy."""
    broken = (in_bytes, npy_headers, in_content(make, write, name, stored=True), *mutations)
    return Format(functools.partial(_written, name, make, write), broken, sound_images.reference)


def _pickled(name: str, make: Callable[[], Any], write: Callable[[Any], bytes], *mutations: Any) -> Format:
    """Return the format of a pickle of statistics, in an archive or not."""
    broken = (in_bytes, in_content(make, write, name, stored=name.endswith(".pkl")), *mutations)
    return Format(functools.partial(_written, name, make, write), broken, sound_images.reference)


def _written(name: str, make: Callable[[], Any], write: Callable[[Any], bytes], folder: Path) -> Path:
    (folder / name).write_bytes(write(make()))
    return folder / name


FORMATS = {
    "score_sde": Format(
        sound_files.write_score_sde,
        (
            in_bytes,
            members,
            opcodes,
            in_json,
            in_content(lambda: sound_files.score_sde_content(sound_files.small_config()), torch_bytes, "a.pth"),
        ),
    ),
    "openai": Format(
        sound_files.write_openai,
        (in_bytes, members, opcodes, in_json, in_content(sound_files.openai_content, torch_bytes, "a.pt")),
    ),
    "ddpm": Format(
        sound_files.write_ddpm,
        (in_bytes, members, opcodes, in_json, in_content(sound_files.ddpm_content, torch_bytes, "a.ckpt")),
    ),
    "edm": Format(
        sound_files.write_edm, (in_bytes, opcodes, in_content(sound_files.edm_content, sound_files.edm_bytes, "a.pkl"))
    ),
    "edm2": Format(
        sound_files.write_edm2,
        (in_bytes, opcodes, in_content(sound_files.edm2_content, sound_files.edm_bytes, "a.pkl")),
    ),
    "diffusers": Format(sound_files.write_diffusers, (in_bytes, header, weights, in_json)),
    "diffusers-shards": Format(sound_files.write_shards, (in_bytes, header, weights, in_json, in_json, places)),
    "classifier": Format(
        sound_files.write_classifier,
        (in_bytes, members, opcodes, in_content(sound_files.classifier_content, torch_bytes, "a.pth")),
        classifier,
    ),
    "own": Format(sound_files.write_own, (in_bytes, header, weights)),
    "converted": Format(sound_files.write_converted, (in_bytes, header, weights)),
    "png": Format(sound_images.write_png, (in_bytes, png_chunks, places, png_giants), sound_images.images),
    "jpeg": Format(sound_images.write_jpeg, (in_bytes, jpeg_markers, places), sound_images.images),
    "run": Format(sound_images.write_run, (in_bytes, in_json, members, npy_headers, places), sound_images.images),
    "images-npz": _arrays("a.npz", sound_images.npz_content, sound_images.npz_bytes, members),
    "images-npy": _arrays("a.npy", sound_images.npz_content, sound_images.npy_bytes),
    "statistics-npz": _arrays("a.npz", sound_images.statistics_content, sound_images.npz_bytes, members),
    "features-npz": _arrays("a.npz", sound_images.features_content, sound_images.npz_bytes, members),
    "statistics-pt": _pickled("a.pt", sound_images.arrays_content, torch_bytes, members, opcodes),
    "statistics-pt-tensors": _pickled("a.pt", sound_images.statistics_content, torch_bytes, members, opcodes),
    "statistics-pt-legacy": _pickled("a.pt", sound_images.arrays_content, sound_images.legacy_bytes, legacy_opcodes),
    "statistics-pkl": _pickled("a.pkl", sound_images.pickle_content, sound_images.pickle_bytes, opcodes),
}


# ---- what becomes of them


class Slow(BaseException):
    pass


def _alarm(*_: Any) -> None:
    raise Slow


def outcome(kind: Format, path: Path, shape: tuple[int, ...] | None) -> tuple[str, str]:
    """``loaded``, ``refused``, or what went wrong; and the message."""
    try:
        model = kind.load(path)
    except UserError as error:
        text, cause = str(error), error
        while cause is not None:
            if isinstance(cause, MemoryError) or "allocate" in str(cause):
                return "out of memory", text
            cause = cause.__cause__ or cause.__context__
        return ("refused", text) if "\n" not in text and len(text) < 1200 else ("no sentence", text)
    tensors = model if isinstance(model, dict) else getattr(model, "net", model).state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return "not finite", name
    if getattr(model, "shape", None) == shape and shape is not None:
        try:
            model.denoiser(torch.zeros(1, *shape), torch.ones(1))
        except UserError as error:
            return "loaded", str(error)
    return "loaded", ""


def run(
    name: str, n: int, seed: int, begin: int = 0, say: Callable[[dict[str, Any]], None] | None = None
) -> list[dict]:
    """Rows of ``index``, ``kind``, ``outcome``, ``message`` and ``grown`` (bytes) for mutations ``begin`` to ``n``.

    The limits on memory and time hold only in the processes that the command line makes.
    """
    kind, rows = FORMATS[name], []
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder, canary = Path(temporary) / "a", Path(temporary) / "written"
        folder.mkdir()
        path = kind.write(folder)
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        shape = getattr(kind.load(path), "shape", None)
        assert outcome(kind, path, shape) == ("loaded", ""), "the sound file must load"
        limit = resource.getrlimit(resource.RLIMIT_AS)
        if say is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, limit[1]))
            signal.signal(signal.SIGPROF, _alarm)
        for index in range(begin, n):
            rng = random.Random(f"{name}/{seed}/{index}")
            mutate = kind.mutations[index % len(kind.mutations)]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            put(folder, mutate(files, rng, canary))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # what making the mutation took is not counted
            if say is not None:
                say({"started": index})
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                what, message = outcome(kind, path, shape)
            except Slow:
                what, message = "slow", ""
            except Exception as error:
                what, message = type(error).__name__, str(error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - max(before, after))
            if canary.exists():
                what = "code was run"
                canary.unlink()
            elif grown > GROWTH:
                what = "memory"
            mutation = getattr(mutate, "__qualname__", "").split(".")[0]
            rows.append({"index": index, "kind": mutation, "outcome": what, "message": message, "grown": grown})
            if say is not None:
                say(rows[-1])
            there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            put(folder, dict.fromkeys(there - files.keys()))
            put(folder, {n: d for n, d in files.items() if n not in there or (folder / n).read_bytes() != d})
    return rows


def put(folder: Path, changes: Changes) -> None:
    """Write or remove files of a folder."""
    for name, data in changes.items():
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def child(name: str, n: int, seed: int, begin: int) -> list[dict[str, Any]]:
    """:func:`run` in a process of its own; where that dies, the mutation that it was at went wrong."""
    words = [sys.executable, __file__, "--child", name, "--n", n, "--seed", seed, "--begin", begin]
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = [line for line in lines if "outcome" in line]
    started = max((line["started"] for line in lines if "started" in line), default=begin)
    if done.returncode == 0:
        return rows
    if started in [row["index"] for row in rows] or not lines:
        raise SystemExit(f"the process that reads {name} ended with {done.returncode} while it made a mutation")
    died = {"index": started, "kind": "", "outcome": f"ended with {done.returncode}", "message": "", "grown": 0}
    return [*rows, died, *child(name, n, seed, started + 1)]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--n", type=int, default=1000, help="mutations of each format (default: 1000)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    p.add_argument("--out", type=Path, help="also write every row there, as JSON")
    p.add_argument("--child", choices=list(FORMATS), help=argparse.SUPPRESS)
    p.add_argument("--begin", type=int, default=0, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        torch.set_num_threads(1)
        run(a.child, a.n, a.seed, a.begin, say=lambda row: print(json.dumps(row), flush=True))
        return 0
    rows, wrong = {}, 0
    print("| format | mutations | loaded | refused | wrong | most memory, MB |\n|---|---|---|---|---|---|")
    for name in a.formats:
        rows[name] = child(name, a.n, a.seed, 0)
        counts = collections.Counter(row["outcome"] for row in rows[name])
        bad = [row for row in rows[name] if row["outcome"] not in ("loaded", "refused")]
        most = max(row["grown"] for row in rows[name]) // 2**20
        print(f"| {name} | {a.n} | {counts['loaded']} | {counts['refused']} | {len(bad)} | {most} |", flush=True)
        for row in bad:
            print(f"  {name} {row['index']} {row['kind']}: {row['outcome']}: {row['message'][:300]}", file=sys.stderr)
        wrong += len(bad)
    if a.out:
        a.out.write_text(json.dumps(rows, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
