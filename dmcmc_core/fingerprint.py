"""The identity of a model: a hash over what decides its answers, whatever its file or name."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from dmcmc_core.errors import UserError


def fingerprint(model: Any) -> str:
    """Return the SHA-256 over a model's tensors, be they weights, images or a mixture; its class, gains, diffusion."""
    if hasattr(model, "identity"):
        models, more = model.identity()
        parts = (*map(fingerprint, models), *more)
        return parts[0] if len(parts) == 1 else hashlib.sha256(repr(parts).encode()).hexdigest()
    known: Any = getattr(model, "_fingerprint", None)
    if known is None:
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
        facts: Any = model
        ends = (model.config,) if linear else (model.sigma_min, model.sigma_max)
        digest = hashlib.sha256(repr((tuple(facts.shape), tuple(facts.data_range), *ends)).encode())
        for tensor in parts:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if getattr(facts, "predicts", "x0") != "x0":
            digest.update(facts.predicts.encode())
        known = digest.hexdigest()
        model._fingerprint = known
    return known
