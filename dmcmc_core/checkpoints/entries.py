"""From the tensors of a file to those of a network: one entry for each, by name, with the layout that the file has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmcmc_core.checkpoints.torch_files import is_tensor
from dmcmc_core.checkpoints.weights import check_finite, check_numbers, without_memory
from dmcmc_core.errors import UserError


class Form(NamedTuple):
    """How a file lays out a tensor: what makes the network's of it, and the file's shape for the network's."""

    read: Callable[[Tensor], Tensor]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


SAME = Form(lambda tensor: tensor, lambda own: own)
MATRIX = Form(lambda tensor: tensor.T[:, :, None, None], lambda own: (own[1], own[0]))
"""(in, out), where the network has a 1x1 convolution (out, in, 1, 1)."""
TRANSPOSED = Form(lambda tensor: tensor.T, lambda own: own[::-1])
"""A table of embeddings (classes, width), where the network has a matrix (width, classes)."""
CONV1D = Form(lambda tensor: tensor[..., None], lambda own: own[:3])
"""A convolution (out, in, 1) over a row of pixels, where the network has one over an image."""


def by_head(heads: int, form: Form = SAME) -> Form:
    """Return the form of queries, keys and values by (head, which, channel); ours are by (which, head, channel)."""

    def read(tensor: Tensor) -> Tensor:
        return form.read(tensor).unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    return Form(read, form.shape)


class Entry(NamedTuple):
    """A tensor of the file and its place in the network: the whole of ``own``, or its third of number ``part``."""

    name: str
    own: str
    form: Form = SAME
    part: int | None = None
    trained: bool = True

    @property
    def matrix(self) -> bool:
        """Whether the file has a matrix for a 1x1 convolution."""
        return self.form is MATRIX

    def shape(self, own: Tensor) -> tuple[int, ...]:
        """Return the shape that the file has, for the network's own tensor."""
        rows = len(own) // (1 if self.part is None else 3)
        return self.form.shape((rows, *own.shape[1:]))


def pair(name: str, own: str, form: Form = SAME, part: int | None = None) -> Iterable[Entry]:
    """Return the entries of a layer, its weight of some form and its bias."""
    bias = SAME if form in (MATRIX, CONV1D) else form
    return Entry(f"{name}.weight", f"{own}.weight", form, part), Entry(f"{name}.bias", f"{own}.bias", bias, part)


def check(entries: Iterable[Entry], own: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
    """Raise UserError for the first tensor of a file that is unknown, missing or of another shape.

    Args:
        own: the network's tensors, which need no numbers.
        state: the file's, read or not.
    """
    entries = list(entries)
    unknown = sorted(map(str, state.keys() - {entry.name for entry in entries}))
    if unknown:
        raise UserError(f"{path} does not fit its configuration: it holds the unknown tensor {unknown[0]!r}")
    for entry in entries:
        fits(state.get(entry.name), entry, own, path)


def fits(found: Any, entry: Entry, own: dict[str, Tensor], path: Path) -> None:
    """Raise UserError unless what a file has for an entry is a tensor of its shape."""
    shape = entry.shape(own[entry.own])
    if not is_tensor(found) or tuple(found.shape) != shape:
        has = f"has shape {tuple(found.shape)}" if is_tensor(found) else "is missing"
        raise UserError(
            f"{path} does not fit its configuration: tensor {entry.name!r} {has}, the network needs {shape}"
        )


def fill(
    make: Callable[[], nn.Module],
    entries: Collection[Entry],
    state: dict[str, Any],
    path: Path,
    numbers: Callable[[Any], Tensor] = lambda tensor: tensor,
    inside: str = "",
) -> nn.Module:
    """Return what ``make`` makes, filled, in the memory that its numbers need and that of one tensor more.

    Args:
        make: what makes a network, or what holds it.
        entries: of all tensors that are in the file.
        state: those tensors by name, for which :func:`check` has passed.
        numbers: what reads one of them.
        inside: what the names of the network's tensors begin with in what is made.

    Raises:
        UserError: for a tensor that is not of finite floating-point numbers.
    """
    with without_memory():
        made = make()
    loaded: dict[str, Tensor] = {}
    own = made.state_dict()
    for entry in entries:
        tensor, name = numbers(state[entry.name]), inside + entry.own
        check_numbers(tensor, entry.name, path)
        if entry.part is None:
            target = loaded[name] = entry.form.read(tensor).to(own[name].dtype).contiguous()
        else:
            whole = loaded.setdefault(name, torch.empty(own[name].shape, dtype=own[name].dtype, device="cpu"))
            target = whole.chunk(3)[entry.part]
            target.copy_(entry.form.read(tensor))
        check_finite(target, entry.name, path)
    made.load_state_dict(loaded, assign=True)
    return made
