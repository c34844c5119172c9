"""Networks of EDM2 (Karras et al. 2024), out of what :mod:`dmcmc_core.checkpoints.persistent` reads of their pickles.

Published files hold float16 weights. They become float32 before anything is computed, as in post-hoc reconstruction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmcmc_core.checkpoints import persistent
from dmcmc_core.checkpoints.persistent import Inert, averaged
from dmcmc_core.checkpoints.weights import check_finite, without_memory
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.nets.edm2 import MagnitudePreservingNet

POSITIONAL = "img_resolution img_channels label_dim use_fp16 sigma_data logvar_channels"
ARGUMENTS = {
    "img_resolution": "size",
    "img_channels": "channels",
    "label_dim": "classes",
    "model_channels": "width",
    "channel_mult": "multipliers",
    "channel_mult_noise": "wave_multiplier",
    "channel_mult_emb": "embedding_multiplier",
    "num_blocks": "blocks",
    "attn_resolutions": "attention",
    "channels_per_head": "head",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "residual_balance",
    "attn_balance": "attention_balance",
    "clip_act": "clip",
    "resample_filter": "taps",
    "dropout": "dropout",
    "sigma_data": "sigma_data",
    "logvar_channels": "logvar",
}
"""Argument of their network -> that of ours."""
BESIDE = ("use_fp16", "label_dropout")
"""Arguments that change no answer; the second tells that the network was trained without labels too."""
PIXELS = "StandardRGBEncoder"
"""Class of the encoder of networks that make images; any other's make latents."""
LATENTS = (-2.0, 2.0)
"""Four standard deviations of latents, which have no ends of their own."""


def is_one(content: Any) -> bool:
    """Tell whether what a pickle holds is a network of EDM2."""
    outer = averaged(content)
    return outer is not None and outer.name == "Precond"


def read(content: Any, path: Path) -> tuple[MagnitudePreservingNet, dict[str, Any]]:
    """Return the averaged network in the content of a pickle, and its card.

    The card of a network of latents names their ``encoder``.

    Raises:
        UserError: for arguments that are not known, or tensors that do not fit them; arguments of another kind bring
            about other errors too, see :func:`dmcmc_core.checkpoints.persistent.using`.
    """
    outer = averaged(content)
    if outer is None:
        raise UserError(f"{path} holds no network of EDM2 under 'ema'")
    given = outer.arguments(POSITIONAL)
    for name in given:
        if name not in ARGUMENTS and name not in BESIDE:
            raise unknown(f"argument of the network in {path},", name, ARGUMENTS)
    config = {ARGUMENTS[name]: value for name, value in given.items() if name in ARGUMENTS}
    tensors = dict(outer.tensors())
    with without_memory():  # so that arguments of another network, however large, take no memory
        wanted = MagnitudePreservingNet(**config).state_dict()
    persistent.check(wanted, [(name, name) for name in wanted], tensors, path)
    net = MagnitudePreservingNet(**config)
    with torch.no_grad():
        for name, own in net.state_dict().items():
            own.copy_(tensors[name])
            check_finite(own, name, path)
    card = {"architecture": "edm2", "sigma_min": 0.002, "sigma_max": 80.0}
    encoder = _encoder(content, net)
    card |= {"data_range": [-1.0, 1.0]} if encoder is None else {"data_range": list(LATENTS), "encoder": encoder}
    return net, card | ({"label_dropout": float(given.get("label_dropout", 0))} if net.classes else {})


def _encoder(content: Any, net: MagnitudePreservingNet) -> str | None:
    """Return the class of the encoder whose latents a network makes; None for one of images."""
    encoder = content.get("encoder") if isinstance(content, dict) else None
    if isinstance(encoder, Inert):
        return None if encoder.name == PIXELS else encoder.name
    return "an encoder that the file does not name" if net.shape[0] == 4 else None
