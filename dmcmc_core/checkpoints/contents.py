"""What PyTorch files hold: the state of a network in one, averaged where it has been, and a file in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from dmcmc_core.checkpoints.torch_files import is_state, is_tensor

AVERAGED = ("ema", "ema_state_dict", "model_ema", "ema_model")
"""Where a dictionary has the averaged state of its network."""
RAW = ("model", "state_dict", "model_state_dict", "net", "network", "params")
"""Where it has the state as training left it."""


class State(NamedTuple):
    """Tensors of a network by name, and whether a training has averaged them; None where the file does not tell."""

    tensors: dict[str, Any]
    averaged: bool | None


def states(content: Any) -> Iterator[State]:
    """Yield the states that a file's content may mean, averaged ones first."""
    if is_state(content):
        yield State(content, None)
    if isinstance(content, dict):
        for averaged, names in ((True, AVERAGED), (False, RAW)):
            yield from (State(content[name], averaged) for name in names if is_state(content.get(name)))
    if isinstance(content, list) and content and is_state(content[0]):  # of a training of ermongroup/ddim
        yield from (State(last, True) for last in content[-1:] if len(content) > 1 and is_state(last))
        yield State(content[0], False)


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
            inner = next((s.tensors for s in states(content)), None)
            held = ", ".join(itertools.islice(map(str, content), 6)) or "nothing"
            return f"a dictionary of {held}{_first(inner)}"[:200]
        found = next((words for names, words in DESCRIPTIONS if names <= keys), "")
        return found or f"a bare state of {len(content)} tensors{_first(content)}"
    if is_tensor(content):
        return "one tensor"
    if isinstance(content, list | tuple):
        inner = next((s.tensors for s in states(content)), None)
        return f"a list of {len(content)} entries{_first(inner)}"
    return f"a {type(content).__name__}"


def _first(state: Any) -> str:
    """Return which tensor a state begins with, in brackets."""
    return f" ({next(iter(state))!s:.60}, ...)" if isinstance(state, dict) and state else ""
