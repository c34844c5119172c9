"""Broken images and arrays, as broken_files.py has networks: headers, chunks with right sums, files that move."""

from __future__ import annotations

import ast
import functools
import io
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from broken_files import GIANT, Changes, Files, changed, one, opcodes_of, zipped

GIANTS = (0, 1, 7, 2**14, 30_000, 65_535, 2**31 - 1)
"""Sizes of a picture's side."""


def places(files: Files, rng: random.Random, canary: Path) -> Changes:
    """Files that vanish, are empty, exchanged, or lie under another name too."""
    name, other = one(files, rng), one(files, rng)
    folder, _, ending = name.rpartition(".")
    kind = rng.choice(("lose", "lose all", "empty", "swap", "double"))
    if kind == "lose":
        return {name: None}
    if kind == "lose all":
        return dict.fromkeys(files)
    if kind == "empty":
        return {name: b""}
    if kind == "swap":
        return {name: files[other], other: files[name]}
    names = (f".{name}", f"{folder}.gif", f"{folder}-2.{ending}", f"c/._{ending}", f"c/d/e.{ending}", f"{name}.part")
    return {rng.choice(names): files[name]}


# ---- NPY and NPZ


def npy_headers(files: Files, rng: random.Random, canary: Path) -> Changes:
    """An array whose header says another shape, type or order; or that is a pickle, which would write the canary."""
    name = one(files, rng, ".npy", ".npz")
    if name.endswith(".npy"):
        return {name: _npy(files[name], rng, canary)}
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        content = [[m.filename, archive.read(m)] for m in archive.infolist()]
    member = rng.choice(content)
    member[1] = _npy(member[1], rng, canary)
    return {name: zipped(content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))}


SHAPES = (
    (),
    (0,),
    (-1,),
    (GIANT,),
    (2**31, 2**31),
    (2**62, 2**62, 0),
    (5, 8, 8),
    (5, 8, 8, 3),
    (10**5, 8, 8, 3),
    (1,) * 70,
)
TYPES = ("|O", "|V8", "<U1000000000", "<f8", ">f4", "|b1", "|i1", "<M8[s]", "<c16", "|u1", "x" * 10**5, [("a", "<f4")])


def _npy(data: bytes, rng: random.Random, canary: Path) -> bytes:
    length = int.from_bytes(data[8:10], "little")
    about, numbers = ast.literal_eval(data[10 : 10 + length].decode()), data[10 + length :]
    kind = rng.choice(("shape", "shape", "type", "pickle", "any", "length", "version", "text"))
    if kind == "shape":
        about["shape"] = rng.choice(SHAPES)
    elif kind == "type":
        about["descr"] = rng.choice(TYPES)
    elif kind == "pickle":
        about |= {"descr": "|O", "shape": rng.choice(((), about["shape"]))}
        numbers = b"cposix\nsystem\n(S'touch %s'\ntR." % str(canary).encode()
    elif kind == "any":
        about = changed(about, rng)
    text = (
        repr(about) if kind != "text" else rng.choice(("", "{", "[" * 10**4, "(" * 10**6, "__import__('os')"))
    ).encode()
    if kind == "length":
        return data[:8] + rng.choice((0, 1, length + 1, 2**16 - 1)).to_bytes(2, "little") + data[10:]
    version = bytes((rng.choice((0, 1, 2, 3, 9)), 0)) if kind == "version" or len(text) >= 2**16 else b"\1\0"
    size = (
        len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
        if len(text) < 2**16 or version != b"\1\0"
        else b"\0\0"
    )
    return b"\x93NUMPY" + version + size + text + numbers


# ---- PNG and JPEG


def png_chunks(files: Files, rng: random.Random, canary: Path) -> Changes:
    """A PNG file with other chunks, their sums right: another size or colours, text and pixels that are bombs."""
    name = one(files, rng)
    data, chunks = files[name], []
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind = rng.choice(("size", "size", "field", "swap", "drop", "double", "bomb", "pixels", "name", "more"))
    width, height, *fields = struct.unpack(">IIBBBBB", chunks[0][1])
    if kind == "size":
        width, height = (rng.choice((width, *GIANTS)), rng.choice((height, *GIANTS)))
    elif kind == "field":
        fields[rng.randrange(5)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    chunks[0][1] = struct.pack(">IIBBBBB", width, height, *fields)
    if kind == "swap":
        chunks[i], chunks[j] = chunks[j], chunks[i]
    elif kind == "drop":
        del chunks[i]
    elif kind == "double":
        chunks.insert(i, list(chunks[j]))
    elif kind == "name":
        chunks[i][0] = rng.choice((b"PLTE", b"tRNS", b"iCCP", b"acTL", b"fdAT", b"CgBI", b"abcd", b"IEND", b"eXIf"))
    elif kind in ("bomb", "more"):
        inner = _zeros(2**27) if kind == "bomb" else rng.randbytes(40)
        text = rng.choice(((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"IDAT", b"")))
        chunks.insert(rng.randrange(1, len(chunks)), [text[0], text[1] + inner])
    elif kind == "pixels":
        for chunk in chunks:
            chunk[1] = _zeros(rng.choice((0, 9, 10**6))) if chunk[0] == b"IDAT" else chunk[1]
    return {name: _png(chunks)}


def png_giants(files: Files, rng: random.Random, canary: Path) -> Changes:
    """One picture alone, of a size that its few bytes claim: with none of its pixels, some, or all of them in zeros."""
    name = one(files, rng)
    side, rows = rng.choice(
        ((3_000, 3_000), (9_500, 9_500), *((s, r) for s in (9_000, 30_000, 2**31 - 1) for r in (0, 9)))
    )
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", _zeros(rows * (1 + 3 * side))))
    return dict.fromkeys(files) | {name: _png([*chunks, (b"IEND", b"")])}


def _png(chunks: Iterable[Sequence[bytes]]) -> bytes:
    made = (len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@functools.cache
def _zeros(length: int) -> bytes:
    """So many zeros, compressed; at most those of a picture of 9,500 by 9,500."""
    squeeze, left, parts = zlib.compressobj(1), min(length, 3 * 9_501**2), []
    while left > 0:
        parts.append(squeeze.compress(bytes(min(left, 2**24))))
        left -= 2**24
    return b"".join(parts) + squeeze.flush()


def jpeg_markers(files: Files, rng: random.Random, canary: Path) -> Changes:
    """A JPEG file whose segments are changed: sizes, numbers of components, tables, lengths, places."""
    name = one(files, rng)
    data = bytearray(files[name])
    at = [i for i in range(len(data) - 9) if data[i] == 0xFF and 0xC0 <= data[i + 1] < 0xFF]
    frames = [i for i in at if data[i + 1] in (0xC0, 0xC1, 0xC2)]
    i, j = rng.choice(at), rng.choice(at)
    kind = rng.choice(("size", "size", "components", "length", "marker", "swap", "drop", "double"))
    if kind == "size":
        data[frames[0] + 5 : frames[0] + 9] = b"".join(
            rng.choice((8, 9, *GIANTS)).to_bytes(4, "big")[2:] for _ in range(2)
        )
    elif kind == "components":
        data[frames[0] + 9] = rng.choice((0, 1, 2, 4, 255))
    elif kind == "length":
        data[i + 2 : i + 4] = rng.choice((0, 1, 2, 3, 2**16 - 1)).to_bytes(2, "big")
    elif kind == "marker":
        data[i + 1] = rng.randrange(0xC0, 0xFF)
    elif kind == "swap":
        a, b = sorted((i, j))
        data[a : a + 20], data[b : b + 20] = data[b : b + 20], data[a : a + 20]
    elif kind == "drop":
        del data[min(i, j) : max(i, j)]
    else:
        data[i:i] = data[min(i, j) : max(i, j)] * rng.choice((1, 1, 1000))
    return {name: bytes(data)}


# ---- PyTorch files from before there were archives


def legacy_opcodes(files: Files, rng: random.Random, canary: Path) -> Changes:
    """One of the pickles that follow each other in such a file, with its opcodes changed."""
    name = one(files, rng)
    stream, parts = io.BytesIO(files[name]), []
    for _ in range(5):
        begin = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(files[name][begin : stream.tell()])
    at = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 4))
    parts[at] = opcodes_of(parts[at], rng, canary)
    return {name: b"".join(parts) + files[name][stream.tell() :]}
