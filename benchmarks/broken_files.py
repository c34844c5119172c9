"""Broken files: each mutation takes sound files by name, a generator and a canary, and returns those that it changed.

The canary is a path that the code in some of the files would write, were it ever run.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sound_files import Kept
from torch import nn

Files = dict[str, bytes]
Changes = dict[str, bytes | None]
"""New contents by name; None for a file that is gone."""


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
    name = one(files, rng, ".pth", ".pt", ".ckpt", ".npz")
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
    name = one(files, rng, ".pth", ".pt", ".ckpt", ".pkl")
    if name.endswith(".pkl"):
        return {name: opcodes_of(files[name], rng, canary)}
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        content = [[m.filename, archive.read(m)] for m in archive.infolist()]
    for member in content:
        if member[0].endswith("data.pkl"):
            member[1] = opcodes_of(member[1], rng, canary)
    return {name: zipped(content)}


def opcodes_of(data: bytes, rng: random.Random, canary: Path) -> bytes:
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
        parts[rng.choice(numbers or [at])] = b"J" + struct.pack("<i", value)
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


def in_content(make: Callable[[], Any], write: Callable[[Any], bytes], name: str, stored: bool = False):
    """Sound files of other content; ``make`` makes what is in the sound one, ``stored`` as of :func:`changed`."""

    def mutate(files: Files, rng: random.Random, canary: Path) -> Files:
        content = make()
        for _ in range(20):  # until it can be written
            try:
                return {name: write(changed(content, rng, stored))}
            except (RecursionError, NotImplementedError, RuntimeError, TypeError, ValueError, KeyError):
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
            other = changed(content, rng, stored=True)
            return {name: save({k: v.contiguous() for k, v in other.items() if hasattr(v, "contiguous")}, metadata)}
        except (RuntimeError, TypeError, ValueError):
            continue
    return {name: b""}
