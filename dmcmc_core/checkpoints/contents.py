"""What PyTorch files hold: the state of a network in one, averaged where it has been, and a file in words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from dmcmc_core.checkpoints.torch_files import is_state, is_tensor
from dmcmc_core.checkpoints.weights import without_prefix
from dmcmc_core.errors import UserError

AVERAGED = re.compile(r"(^|_)(ema|averaged|shadow)(_|$)")
"""What the name of an entry is like that holds the averaged state of a network."""
INSIDE = ("state_dict", "model", "module", "shadow", "params", "network")
"""Where such an entry has it, if it is not the state itself."""
RAW = ("model", "state_dict", "model_state_dict", "net", "network", "params")
"""Where it has the state as training left it."""


class State(NamedTuple):
    """Tensors of a network by name, and whether a training has averaged them; None where the file does not tell."""

    tensors: dict[str, Any]
    averaged: bool | None


def states(content: Any) -> Iterator[State]:
    """Yield the states that a file's content may mean, averaged ones first.

    Raises:
        UserError: for an entry of averaged weights in a form that is not known, which raw ones do not replace.
    """
    if is_state(content):
        yield State(content, None)
    if isinstance(content, dict):
        for name, value in content.items():
            if AVERAGED.search(str(name)) and not isinstance(value, int | float | str | None):
                yield State(_averaged(value, f"{name!r}"), True)
        yield from (State(content[name], False) for name in RAW if is_state(content.get(name)))
    if isinstance(content, list | tuple) and content and is_state(content[0]):  # of a training of ermongroup/ddim
        if len(content) > 4 and content[4] is not None:
            yield State(_averaged(content[4], "entry 4"), True)
        yield State(content[0], False)


def is_known(content: Any, tells: Iterable[Callable[[dict[str, Any]], bool]]) -> bool:
    """Tell whether a state within a file's content, two levels down at most, is one of those that ``tells`` know."""
    near = list(_inside(content))
    states = [d for d in (content, *near, *(far for one in near for far in _inside(one))) if isinstance(d, dict)]
    prefix = re.compile(r"^(ema|online)_model\.")
    return any(
        tell(without_prefix({prefix.sub("", str(k)): v for k, v in d.items()})) for d in states for tell in tells
    )


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


def _averaged(value: Any, name: str) -> dict[str, Any]:
    """Return the averaged state in an entry; UserError for a form that is not known."""
    inner = value if isinstance(value, dict) else {}
    found = {key.removeprefix("ema_model."): t for key, t in inner.items() if str(key).startswith("ema_model.")}
    if found and all(map(is_tensor, found.values())):
        return found
    for state in (inner, *(inner.get(key) for key in INSIDE)):
        if is_state(state):
            return state
    raise UserError(
        f"its {name} holds averaged weights in a form that is not known here, and raw ones do not replace them"
    )


DESCRIPTIONS = (
    ({"input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"}, "a state of improved- or guided-diffusion"),
    (
        {"input_blocks.0.0.weight", "time_embed.0.weight"},
        "a classifier or another network of guided-diffusion's blocks",
    ),
    ({"conv_in.weight", "temb.dense.0.weight"}, "a state of the PyTorch port of DDPM"),
    ({"model.diffusion_model.input_blocks.0.0.weight"}, "a latent diffusion model of CompVis"),
    ({"model.enc.64x64_conv.weight"}, "a network of EDM without its arguments"),
)
"""Names of tensors -> what has them."""


def describe(content: Any) -> str:
    """Say what a file holds, in words that a sentence goes on with."""
    if isinstance(content, dict):
        keys = set(map(str, content))
        if {"optimizer_state", "net"} <= keys:
            return "EDM's training state: take network-snapshot-*.pkl, which lies beside it"
        if {"param_groups", "state"} <= keys:
            return "an optimizer's state and no network"
        if "pytorch-lightning_version" in keys:
            return f"a checkpoint of PyTorch Lightning{_first(content.get('state_dict'))}"
        if is_state(content.get("ema")) and any(str(name).startswith("ema_model.") for name in content["ema"]):
            return "a checkpoint of denoising-diffusion-pytorch"
        if not is_state(content):
            inner = next((content[name] for name in RAW if is_state(content.get(name))), None)
            held = ", ".join(itertools.islice(map(str, content), 6)) or "nothing"
            return f"a dictionary of {held}{_first(inner)}"[:200]
        found = next((words for names, words in DESCRIPTIONS if names <= keys), "")
        return found or f"a bare state of {len(content)} tensors{_first(content)}"
    if is_tensor(content):
        return "one tensor"
    if isinstance(content, list | tuple):
        inner = content[0] if content and is_state(content[0]) else None
        return f"a list of {len(content)} entries{_first(inner)}"
    return f"a {type(content).__name__}"


def _first(state: Any) -> str:
    """Return which tensor a state begins with, in brackets."""
    return f" ({next(iter(state))!s:.60}, ...)" if isinstance(state, dict) and state else ""
