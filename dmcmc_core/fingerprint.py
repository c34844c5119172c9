"""The identity of a model: a hash over what decides its answers, whatever its file or name."""

from __future__ import annotations

import copy
import hashlib
import uuid
from typing import Any

import torch

from dmcmc_core.errors import UserError
from dmcmc_core.structure import structure

ALWAYS = "always"
"""In the place of the versions of tensors: the name is given, and stays."""
UNNAMED = "unnamed-"
"""What the name of a model begins with that no weights name, and of which nothing is kept."""


def named(model: Any) -> Any:
    """Return a model that has a name: itself, or a copy with one of its own where no weights could name it."""
    try:
        fingerprint(model)
    except UserError:
        model = copy.copy(model)
        model._fingerprint = f"{UNNAMED}{uuid.uuid4().hex}", ALWAYS
    return model


def fingerprint(model: Any) -> str:
    """Return the SHA-256 over a model's tensors, be they weights, images or a mixture; its class, gains, diffusion.

    For a network or a function of one's own, also over what it is made of: see :func:`structure`.
    """
    known, seen = getattr(model, "__dict__", {}).get("_fingerprint", (None, None))  # its own, not that of one inside
    if seen == ALWAYS:
        return known
    if hasattr(model, "identity"):
        models, more = model.identity()
        parts = (*map(fingerprint, models), *more)
        return parts[0] if len(parts) == 1 else hashlib.sha256(repr(parts).encode()).hexdigest()
    linear = isinstance(model, torch.nn.Module) and hasattr(model, "sde")
    net = model if linear else getattr(model, "net", None)
    parts = list(net.state_dict().values()) if net is not None else []
    names = ("images", "means", "weights", "variances", "axes", "noise_variances")
    parts += [getattr(model, n, None) for n in names]
    parts = [t for t in parts if t is not None]
    if not parts:
        raise UserError(
            "a run is named by the hash of its model, and this one has no weights: set adapter.net to the "
            "torch.nn.Module behind it"
        )
    versions = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in parts]
    if known is None or seen != versions:  # weights that are trained on change in place
        facts: Any = model
        ends = (model.config,) if linear else (model.sigma_min, model.sigma_max)
        digest = hashlib.sha256(repr((tuple(facts.shape), tuple(facts.data_range), *ends)).encode())
        for tensor in parts:
            digest.update(_bytes(tensor))
        if getattr(facts, "predicts", "x0") != "x0":
            digest.update(facts.predicts.encode())
        digest.update(structure(net, getattr(facts, "function", None)).encode())
        known = digest.hexdigest()
        facts._fingerprint = known, versions
    return known


def _bytes(tensor: torch.Tensor) -> bytes:
    """Return the numbers of a tensor in memory, of formats that numpy does not know too."""
    if tensor.is_meta:
        raise UserError("the network's weights are on the device meta, where no numbers are: load them first")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
