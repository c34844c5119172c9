"""What becomes of broken files: a thousand seeded mutations of each format that can be read.

    python benchmarks/mutations.py [--n N] [--seed S] [--formats NAME ...] [--out FILE]

A mutation flips bits, cuts, zeroes, doubles or removes a span, claims a giant size, exchanges the members of an archive
or the opcodes of a pickle (some call a shell), or writes a sound file of other keys, shapes, dtypes and values. It must
load with finite weights and answer, or be refused in one sentence: no other exception, no code run, no more than 1 GB
of memory and 20 seconds of a processor. Each format is read in a process of its own that may take 4 GB of addresses
more than for a sound file. Prints a table, and every mutation that went wrong; the exit status is 1 if one did.
"""

from __future__ import annotations

import argparse
import collections
import copy
import io
import json
import pickle
import pickletools
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dmcmc_core.checkpoints import edm as edm_reader
from dmcmc_core.checkpoints import load_model, load_noise_level, published, save, score_sde
from dmcmc_core.errors import UserError
from dmcmc_core.nets.noise_level_classifier import PublishedClassifier
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.unet import DenoisingUNet

LIMIT = 4 * 2**30
GROWTH = 2**30
SECONDS = 20
SMALL = {"nf": 8, "num_res_blocks": 1, "ch_mult": [1, 2], "attn_resolutions": [8]}

# ---- sound files in the real formats, of small random networks


def small_config(**model: Any) -> dict[str, Any]:
    """A network of score_sde for 16 x 16 images."""
    made = copy.deepcopy(published.CONFIGS["ve_cifar10_ncsnpp_continuous"])
    made["model"] |= SMALL | model
    made["data"]["image_size"] = 16
    return made


def score_sde_content(config: dict[str, Any], prefix: str = "module.") -> dict[str, Any]:
    """What score_sde saves."""
    torch.manual_seed(0)
    net = score_sde.build(config)[0].net
    own, state, averaged = net.state_dict(), {f"{prefix}sigmas": torch.ones(7)}, []
    for e in score_sde.entries(net):
        value = own[e.own] if e.part is None else own[e.own].chunk(3)[e.part]
        value = value[:, :, 0, 0].T.contiguous() if e.matrix else value.clone()
        state[prefix + e.name] = value
        averaged += [value.clone()] if e.trained else []
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": averaged}
    return {"model": state, "ema": ema, "optimizer": {"state": {}, "param_groups": []}, "step": 3}


def write_score_sde(folder: Path) -> Path:
    torch.save(score_sde_content(small_config()), folder / "a.pth")
    (folder / "a.json").write_text(json.dumps(small_config()))
    return folder / "a.pth"


class Kept:
    """An object pickled by reference to ``torch_utils.persistence``, as EDM's are."""

    def __init__(self, name: str, **state: Any) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "# source\n", "class_name": name, "state": state}

    def __deepcopy__(self, memo: dict) -> Kept:
        made = Kept("")
        made.meta = copy.deepcopy(self.meta, memo)
        return made

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def edm_content() -> dict[str, Any]:
    """What EDM saves, for a SongUNet."""
    torch.manual_seed(0)
    arguments = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 16, "num_blocks": 1}
    arguments |= {"channel_mult": [1, 2], "attn_resolutions": [8]}
    inner = Kept("SongUNet", _init_args=(), _init_kwargs=arguments, _parameters={}, _buffers={}, _modules={})
    net = ScaledUNet("edm", {}, edm_reader._network(edm_reader.Inert("SongUNet", inner.meta["state"]), Path())).net
    own = net.state_dict()
    for theirs, mine in edm_reader.names(net):
        into, *parts = inner.meta["state"]["_modules"], *theirs.split(".", 1)
        if len(parts) == 2:
            into = into.setdefault(parts[0], nn.ModuleDict())._modules
        found = {p: own[f"{mine}.{p}"] for p in ("weight", "bias") if f"{mine}.{p}" in own}
        at = into
        *middle, last = parts[-1].split(".")
        for name in middle:
            at = at.setdefault(name, Kept("UNetBlock", _parameters={}, _buffers={}, _modules={})).meta["state"][
                "_modules"
            ]
        at[last] = Kept("Conv2d", _parameters=found, _buffers={}, _modules={})
    outer = Kept("EDMPrecond", sigma_min=0, sigma_max=float("inf"), sigma_data=0.5, _init_args=(), _init_kwargs={})
    outer.meta["state"] |= {"_parameters": {}, "_buffers": {}, "_modules": {"model": inner}}
    return {"ema": outer}


def edm_bytes(content: Any) -> bytes:
    module = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise NotImplementedError", module.__dict__)
    module._reconstruct_persistent_obj.__module__ = module.__name__
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}
    try:
        return pickle.dumps(content)
    finally:
        del sys.modules["torch_utils"], sys.modules[module.__name__]


def write_edm(folder: Path) -> Path:
    (folder / "a.pkl").write_bytes(edm_bytes(edm_content()))
    return folder / "a.pkl"


def write_diffusers(folder: Path) -> Path:
    import diffusers

    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    net.save_pretrained(folder)
    diffusers.DDPMScheduler().save_pretrained(folder)
    return folder


class ForClassifier:
    """The model that a classifier of the authors serves."""

    shape, sigma_min, sigma_max = (3, 32, 32), 0.01, 50.0


def classifier_content() -> dict[str, Any]:
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in PublishedClassifier().state_dict().items()}
    return {"epoch": 3, "opt": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "net": state}


def write_classifier(folder: Path) -> Path:
    torch.save(classifier_content(), folder / "a.pth")
    return folder / "a.pth"


def write_own(folder: Path) -> Path:
    torch.manual_seed(0)
    net = DenoisingUNet((1, 8, 8), 0.3, channels=(8, 16), blocks=(1, 1), embedding=16)
    card = {"name": "tiny", "data_range": [0.0, 1.0], "sigma_min": 0.01, "sigma_max": 10.0}
    save(net, folder / "a.safetensors", card)
    return folder / "a.safetensors"


def write_converted(folder: Path) -> Path:
    torch.manual_seed(0)
    net, card = score_sde.build(small_config())
    save(net, folder / "a.safetensors", card | {"name": "a"})
    return folder / "a.safetensors"


# ---- mutations: (sound files by name, rng, canary) -> changed files by name

Files = dict[str, bytes]


def one(files: Files, rng: random.Random, *endings: str) -> str:
    return rng.choice([n for n in sorted(files) if not endings or n.endswith(endings)])


def span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Anywhere, or near one of the ends, where a file says what it is."""
    near = rng.choice((64, 2000, len(data)))
    a, b = sorted(rng.randrange(min(near, len(data)) + 1) for _ in range(2))
    return (a, b) if rng.random() < 0.7 else (len(data) - b, len(data) - a)


def in_bytes(files: Files, rng: random.Random, canary: Path) -> Files:
    name = one(files, rng)
    data = bytearray(files[name])
    a, b = span(data, rng)
    kind = rng.choice(("bits", "bits", "cut", "zero", "double", "remove", "giant"))
    if kind == "bits":
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(a, b + 1) % len(data)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[a:]
    elif kind == "zero":
        data[a:b] = bytes(b - a)
    elif kind == "double":
        data[a:a] = data[a:b]
    elif kind == "remove":
        del data[a:b]
    else:
        value = rng.choice((2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1))
        wide = rng.choice((4, 8))
        data[a : a + wide] = (value % 2 ** (8 * wide)).to_bytes(wide, "little")
    return {name: bytes(data)}


def members(files: Files, rng: random.Random, canary: Path) -> Files:
    """An archive whose members change places, names, contents, or are compressed (a gigabyte of zeros)."""
    name = one(files, rng, ".pth")
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        content = [[m.filename, archive.read(m)] for m in archive.infolist()]
    i, j = rng.randrange(len(content)), rng.randrange(len(content))
    kind, method = rng.choice(("swap", "drop", "rename", "double", "bomb", "deflate", "bytes")), zipfile.ZIP_STORED
    if kind == "swap":
        content[i][1], content[j][1] = content[j][1], content[i][1]
    elif kind == "drop":
        del content[i]
    elif kind == "rename":
        content[i][0] = rng.choice((content[j][0], "../" + content[i][0], content[i][0] + "x", "data.pkl"))
    elif kind == "double":
        content.append([content[i][0], content[j][1]])
    elif kind in ("bomb", "deflate"):
        method = zipfile.ZIP_DEFLATED
        if kind == "bomb":
            content[i][1] = bytes(2**28)
    else:
        content[i][1] = next(iter(in_bytes({"x": content[i][1] or b"\0"}, rng, canary).values()))
    return {name: zipped(content, method)}


def zipped(content: list, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", method, compresslevel=1) as archive:
        for name, data in content:
            archive.writestr(name, data)
    return out.getvalue()


def opcodes(files: Files, rng: random.Random, canary: Path) -> Files:
    """A pickle, alone or in an archive, with its opcodes changed; some call a shell that would write the canary."""
    name = one(files, rng, ".pth", ".pkl")
    if name.endswith(".pkl"):
        return {name: _opcodes(files[name], rng, canary)}
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        content = [[m.filename, archive.read(m)] for m in archive.infolist()]
    for member in content:
        if member[0].endswith("data.pkl"):
            member[1] = _opcodes(member[1], rng, canary)
    return {name: zipped(content)}


def _opcodes(data: bytes, rng: random.Random, canary: Path) -> bytes:
    ops = list(pickletools.genops(data))
    ends = [position for _, _, position in ops[1:]] + [len(data)]
    parts = [data[o[2] : end] for o, end in zip(ops, ends, strict=True) if o[0].name != "FRAME"]
    at, other = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
    command = f"touch {canary}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    kind = rng.choice(
        ("swap", "delete", "double", "shell", "shell", "eval", "global", "memo", "number", "build", "deep")
    )
    if kind == "swap":
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == "delete":
        del parts[at : at + rng.choice((1, 1, 5))]
    elif kind == "double":
        parts.insert(at, parts[other])
    elif kind == "shell":
        make = rng.choice(
            (b"cposix\nsystem\n(" + text + b"tR", b"(" + text + b"iposix\nsystem\n", b"(cos\nsystem\n" + text + b"o")
        )
        parts.insert(at, make + rng.choice((b"", b"0")))
    elif kind == "eval":
        code = f"open({str(canary)!r}, 'w')".encode()
        parts.insert(at, b"cbuiltins\neval\n(X" + struct.pack("<I", len(code)) + code + b"tR0")
    elif kind == "global":  # another function in the place of each that rebuilds a tensor
        new = rng.choice(
            (b"posix\nsystem\n", b"builtins\nexec\n", b"torch\nload\n", b"pickle\nloads\n", b"builtins\ngetattr\n")
        )
        named = [i for i, part in enumerate(parts) if part[:1] == b"c"]
        if named:
            parts[rng.choice(named)] = b"c" + new
        else:
            parts.insert(at, b"c" + new)
    elif kind == "memo":
        parts.insert(at, b"r" + struct.pack("<I", rng.choice((2**28, 2**31, 2**32 - 1))))
    elif kind == "number":
        numbers = [i for i, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J")]
        value = rng.choice((-1, 0, 2**31 - 1, 2**20))
        parts[rng.choice(numbers)] = b"J" + struct.pack("<i", value)
    elif kind == "build":
        parts.insert(at, b"}(X\x08\x00\x00\x00__name__K\x01ub")
    else:
        parts.insert(at, b"]" * rng.choice((10, 10**5)) + b"a" * rng.choice((1, 9)))
    return b"".join(parts)


GIANT, DEEP = 10**12, json.loads("[" * 200 + "]" * 200)
VALUES = (
    None,
    -1,
    0,
    1,
    2,
    7,
    GIANT,
    10**5,
    0.5,
    -2.5,
    1e308,
    float("nan"),
    float("inf"),
    True,
    "",
    "x",
    "1",
    [],
    {},
    [1, 2],
    [GIANT] * 3,
)
VALUES += (["x"], {"a": 1}, DEEP, [1] * 10**4)


def changed_tensor(tensor: torch.Tensor, rng: random.Random, stored: bool = False) -> Any:
    """Another value, shape or dtype; ``stored``: only what safetensors can hold."""
    flat = tensor.clone().flatten()
    at = rng.randrange(len(flat)) if len(flat) else 0
    kind = rng.choice(
        ("value", "value", "dtype", "rows", "reshape", "axis", "same", *(() if stored else ("odd", "giant")))
    )
    if kind == "value" and flat.is_floating_point() and len(flat):
        flat[at] = rng.choice((float("nan"), float("inf"), -float("inf"), 1e30, 0.0))
        return flat.reshape(tensor.shape)
    if kind == "dtype":
        dtypes = ["float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool", "float8_e4m3fn"]
        dtypes += [] if stored else ["complex64"]
        return tensor.to(getattr(torch, rng.choice(dtypes)))
    if kind == "rows":
        return tensor[: len(tensor) // 2].clone() if tensor.ndim else tensor[None].clone()
    if kind == "reshape":
        return flat
    if kind == "axis":
        return tensor[None].clone()
    if kind == "odd":
        return rng.choice(
            (tensor.to_sparse(), tensor.to("meta"), torch.empty(0), torch.tensor(1.0), tensor.double() * 1e300)
        )
    if kind == "giant":
        return torch.zeros(1).expand(*rng.choice(((10**6, 10**6), (2**31,), tuple(tensor.shape))))
    return tensor.double()


def changed(content: Any, rng: random.Random, stored: bool = False) -> Any:
    """A copy of nested content with one place changed, lost, renamed or put elsewhere."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        node = node.meta if isinstance(node, Kept) else node._modules if isinstance(node, nn.Module) else node
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(content)
    if not places:
        return rng.choice(VALUES)
    scalars = [p for p in places if not isinstance(p[0][p[1]], torch.Tensor | dict | list | Kept | nn.Module)]
    node, key = rng.choice(scalars if scalars and rng.random() < 0.5 else places)
    kind = rng.choice(("value", "value", "value", "lose", "rename", "exchange"))
    if kind == "value" and isinstance(node[key], torch.Tensor):
        node[key] = changed_tensor(node[key], rng, stored)
    elif kind == "value":
        node[key] = rng.choice(VALUES)
    elif kind == "lose":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node[rng.choice((str(key) + "x", "", "more"))] = node.pop(key)
    else:
        into, other = rng.choice(places)
        node[key], into[other] = into[other], node[key]
    return content


def in_content(made: Callable[[], Any], write: Callable[[Any], bytes], name: str):
    """Sound files of other content; ``made`` makes what is in the sound one."""

    def mutate(files: Files, rng: random.Random, canary: Path) -> Files:
        content = made()
        for _ in range(20):  # until it can be written
            try:
                return {name: write(changed(content, rng))}
            except (RecursionError, NotImplementedError, RuntimeError, TypeError):
                continue
        return {name: b""}

    return mutate


def torch_bytes(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def in_json(files: Files, rng: random.Random, canary: Path) -> Files:
    name = one(files, rng, ".json")
    return {name: json.dumps(changed(json.loads(files[name]), rng)).encode()}


def header(files: Files, rng: random.Random, canary: Path) -> Files:
    """A safetensors file with another header: sizes, dtypes, places, names, and the card in it."""
    name = one(files, rng, ".safetensors")
    data = files[name]
    length = int.from_bytes(data[:8], "little")
    about, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    if "card" in about.get("__metadata__", {}) and rng.random() < 0.5:
        card = changed(json.loads(about["__metadata__"]["card"]), rng)
        about["__metadata__"]["card"] = rng.choice((json.dumps(card),) * 20 + ("[" * 10**5, "{", "null"))
    else:
        about = changed(about, rng)
    text = json.dumps(about).encode()
    return {name: len(text).to_bytes(8, "little") + text + tensors}


def weights(files: Files, rng: random.Random, canary: Path) -> Files:
    """A sound safetensors file of other tensors."""
    from safetensors import safe_open
    from safetensors.torch import load, save

    name = one(files, rng, ".safetensors")
    with tempfile.NamedTemporaryFile() as file:
        file.write(files[name])
        file.flush()
        with safe_open(file.name, framework="pt") as opened:
            metadata = opened.metadata()
    content = load(files[name])
    for _ in range(20):
        try:
            made = changed(content, rng, stored=True)
            return {name: save({k: v.contiguous() for k, v in made.items() if hasattr(v, "contiguous")}, metadata)}
        except (RuntimeError, TypeError, ValueError):
            continue
    return {name: b""}


class Format(NamedTuple):
    write: Callable[[Path], Path]
    mutations: tuple[Callable[[Files, random.Random, Path], Files], ...]
    load: Callable[[Path], Any] = load_model


def classifier(path: Path) -> Any:
    return load_noise_level(path, like=ForClassifier)[0]


FORMATS = {
    "score_sde": Format(
        write_score_sde,
        (
            in_bytes,
            members,
            opcodes,
            in_json,
            in_content(lambda: score_sde_content(small_config()), torch_bytes, "a.pth"),
        ),
    ),
    "edm": Format(write_edm, (in_bytes, opcodes, in_content(edm_content, edm_bytes, "a.pkl"))),
    "diffusers": Format(write_diffusers, (in_bytes, header, weights, in_json)),
    "classifier": Format(
        write_classifier, (in_bytes, members, opcodes, in_content(classifier_content, torch_bytes, "a.pth")), classifier
    ),
    "own": Format(write_own, (in_bytes, header, weights)),
    "converted": Format(write_converted, (in_bytes, header, weights)),
}


# ---- what becomes of them


class Slow(BaseException):
    pass


def _alarm(*_: Any) -> None:
    raise Slow


def outcome(the: Format, path: Path, shape: tuple[int, ...] | None) -> tuple[str, str]:
    """``loaded``, ``refused``, or what went wrong; and the message."""
    try:
        model = the.load(path)
    except UserError as error:
        text, cause = str(error), error
        while cause is not None:
            if isinstance(cause, MemoryError) or "allocate" in str(cause):
                return "out of memory", text
            cause = cause.__cause__ or cause.__context__
        return ("refused", text) if "\n" not in text and len(text) < 1200 else ("no sentence", text)
    net = getattr(model, "net", model)
    for name, tensor in net.state_dict().items():
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
    the, rows = FORMATS[name], []
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder, canary = Path(temporary) / "a", Path(temporary) / "written"
        folder.mkdir()
        path = the.write(folder)
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        shape = getattr(the.load(path), "shape", None)
        assert outcome(the, path, shape) == ("loaded", ""), "the sound file must load"
        limit = resource.getrlimit(resource.RLIMIT_AS)
        if say is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, limit[1]))
            signal.signal(signal.SIGPROF, _alarm)
        for index in range(begin, n):
            rng = random.Random(f"{name}/{seed}/{index}")
            mutate = the.mutations[index % len(the.mutations)]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for changed_name, data in mutate(files, rng, canary).items():
                (folder / changed_name).write_bytes(data)
            made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # what making the mutation took is not counted
            if say is not None:
                say({"begun": index})
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                what, message = outcome(the, path, shape)
            except Slow:
                what, message = "slow", ""
            except Exception as error:
                what, message = type(error).__name__, str(error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - max(before, made))
            if canary.exists():
                what = "code was run"
                canary.unlink()
            elif grown > GROWTH:
                what = "memory"
            kind = getattr(mutate, "__qualname__", "").split(".")[0]
            rows.append({"index": index, "kind": kind, "outcome": what, "message": message, "grown": grown})
            if say is not None:
                say(rows[-1])
            for changed_name, data in files.items():
                if (folder / changed_name).read_bytes() != data:
                    (folder / changed_name).write_bytes(data)
    return rows


def child(name: str, n: int, seed: int, begin: int) -> list[dict[str, Any]]:
    """:func:`run` in a process of its own; where that dies, the mutation that it was at went wrong."""
    words = [sys.executable, __file__, "--child", name, "--n", n, "--seed", seed, "--begin", begin]
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = [line for line in lines if "outcome" in line]
    begun = max((line["begun"] for line in lines if "begun" in line), default=begin)
    if done.returncode == 0:
        return rows
    if begun in [row["index"] for row in rows] or not lines:
        raise SystemExit(f"the process that reads {name} ended with {done.returncode} while it made a mutation")
    died = {"index": begun, "kind": "", "outcome": f"ended with {done.returncode}", "message": "", "grown": 0}
    return [*rows, died, *child(name, n, seed, begun + 1)]


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
