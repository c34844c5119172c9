"""Networks on disk, ours and others': a checkpoint is data, never code.

Ours are safetensors with the model card (JSON) in the file's metadata. Files of score_sde, EDM, EDM2 and score
embedding are read by :mod:`dmcmc_core.checkpoints.score_sde`, :mod:`dmcmc_core.checkpoints.flax`,
:mod:`dmcmc_core.checkpoints.edm`, :mod:`dmcmc_core.checkpoints.edm2` (after
:mod:`dmcmc_core.checkpoints.persistent`) and :mod:`dmcmc_core.checkpoints.score_embedding`; states of OpenAI's U-Nets
and of DDPM's port by :mod:`dmcmc_core.checkpoints.openai` and :mod:`dmcmc_core.checkpoints.ddpm`; folders of diffusers
by :mod:`dmcmc_core.checkpoints.diffusers`. :func:`convert` makes ours of them. Snapshots of EDM2 are joined by
:mod:`dmcmc_core.checkpoints.posthoc_ema`.

A name is imported when it is asked for: the catalogue and the cards are then had without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmcmc_core.checkpoints.card import read_card
    from dmcmc_core.checkpoints.catalogue import NETS, known
    from dmcmc_core.checkpoints.conversion import convert
    from dmcmc_core.checkpoints.loader import MODELS, load, load_epsilon, load_model, load_network
    from dmcmc_core.checkpoints.noise_level_classifier import load_noise_level
    from dmcmc_core.checkpoints.safetensors import ARCHITECTURES, load_weights, save
    from dmcmc_core.checkpoints.weights import check_device

__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "NETS",
    "check_device",
    "convert",
    "known",
    "load",
    "load_epsilon",
    "load_model",
    "load_network",
    "load_noise_level",
    "load_weights",
    "read_card",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import the module that a name of this package is of."""
    if name == "read_card":
        from dmcmc_core.checkpoints import card as module
    elif name in ("NETS", "known"):
        from dmcmc_core.checkpoints import catalogue as module
    elif name == "convert":
        from dmcmc_core.checkpoints import conversion as module
    elif name in ("MODELS", "load", "load_epsilon", "load_model", "load_network"):
        from dmcmc_core.checkpoints import loader as module
    elif name == "load_noise_level":
        from dmcmc_core.checkpoints import noise_level_classifier as module
    elif name in ("ARCHITECTURES", "load_weights", "save"):
        from dmcmc_core.checkpoints import safetensors as module
    elif name == "check_device":
        from dmcmc_core.checkpoints import weights as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
