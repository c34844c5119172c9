"""Published files that are bare states of OpenAI's projects and of the PyTorch port of DDPM: their configurations.

A file tells neither its schedule nor its heads, see :mod:`dmcmc_core.checkpoints.openai`: what the projects say in
READMEs and YAML files is kept here.
"""

from __future__ import annotations

from typing import Any

IMPROVED, GUIDED = "improved-diffusion", "guided-diffusion"
SIZES = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Pixels of a side -> multipliers of the width of each level in OpenAI's projects."""
CLASSES = 1000
"""Of all their networks that have classes."""


def _improved(size: int, width: int, blocks: int = 3, **flags: Any) -> dict[str, Any]:
    """Return a configuration of improved-diffusion by its differences from unconditional cosine networks."""
    shared = {"image_size": size, "num_channels": width, "num_res_blocks": blocks, "num_heads": 4, "dropout": 0.0}
    shared |= {"attention_resolutions": "16,8", "learn_sigma": True, "class_cond": False, "use_scale_shift_norm": True}
    shared |= {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
    return {"family": IMPROVED, "flags": shared | flags}


def _guided(size: int, classes: bool = False, **flags: Any) -> dict[str, Any]:
    """Return a configuration of guided-diffusion by its differences from the large linear networks."""
    shared = {"image_size": size, "num_channels": 256, "num_res_blocks": 2, "num_head_channels": 64, "dropout": 0.0}
    shared |= {"attention_resolutions": "32,16,8", "learn_sigma": True, "class_cond": classes, "diffusion_steps": 1000}
    shared |= {"noise_schedule": "linear", "rescale_timesteps": False, "use_scale_shift_norm": True}
    return {"family": GUIDED, "flags": shared | {"resblock_updown": True, "use_new_attention_order": False} | flags}


_BEDROOM = _improved(
    256,
    128,
    2,
    num_heads=1,
    attention_resolutions="16",
    use_scale_shift_norm=False,
    diffusion_steps=1000,
    noise_schedule="linear",
    rescale_timesteps=False,
)
_COND = {"class_cond": True, "rescale_timesteps": False}
OPENAI: dict[str, dict[str, Any]] = {
    "cifar10_uncond_50M_500K": _improved(32, 128, dropout=0.3),
    "cifar10_uncond_vlb_50M_500K": _improved(32, 128, dropout=0.3),
    "imagenet64_uncond_100M_1500K": _improved(64, 128),
    "imagenet64_uncond_vlb_100M_1500K": _improved(64, 128),
    "imagenet64_cond_270M_250K": _improved(64, 192, **_COND),
    "lsun_uncond_100M_1200K_bs128": _BEDROOM,
    "lsun_uncond_100M_2400K_bs64": _BEDROOM,
    "64x64_diffusion": _guided(
        64, True, num_channels=192, num_res_blocks=3, dropout=0.1, noise_schedule="cosine", use_new_attention_order=True
    ),
    "128x128_diffusion": _guided(128, True, num_heads=4, num_head_channels=-1),
    "256x256_diffusion": _guided(256, True),
    "256x256_diffusion_uncond": _guided(256),
    "512x512_diffusion": _guided(512, True),
    "lsun_bedroom": _guided(256, dropout=0.1),
    "lsun_cat": _guided(256, dropout=0.1),
    "lsun_horse": _guided(256, dropout=0.1),
    "lsun_horse_nodropout": _guided(256),
    "afhqdog_4m": _guided(256, num_channels=128, num_res_blocks=1, attention_resolutions="16"),
}
"""Name of a file, without its ending -> ``family`` and ``flags`` of :func:`dmcmc_core.checkpoints.openai.read`."""


def _ddpm(size: int, *multipliers: int, dataset: str = "LSUN", dropout: float = 0.0) -> dict[str, Any]:
    model = {"type": "simple", "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": list(multipliers)}
    model |= {"num_res_blocks": 2, "attn_resolutions": [16], "dropout": dropout, "resamp_with_conv": True}
    diffusion = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_diffusion_timesteps": 1000}
    return {"data": {"dataset": dataset, "image_size": size, "rescaled": True}, "model": model, "diffusion": diffusion}


_256 = (256, 1, 1, 2, 2, 4, 4)
DDPM: dict[str, dict[str, Any]] = {
    "ddpm_cifar10": _ddpm(32, 1, 2, 2, 2, dataset="CIFAR10", dropout=0.1),
    "ddpm_celeba": _ddpm(64, 1, 2, 2, 2, 4, dataset="CELEBA", dropout=0.1),
    "ddpm_celeba_hq": _ddpm(*_256, dataset="CelebA-HQ"),
    "ddpm_bedroom": _ddpm(*_256),
    "ddpm_church": _ddpm(*_256),
    "ddpm_cat": _ddpm(*_256),
}
"""Name -> sections of :func:`dmcmc_core.checkpoints.ddpm.build`."""

ORIGINS = {
    IMPROVED: "the README of openai/improved-diffusion",
    GUIDED: "the README of openai/guided-diffusion",
    "ddpm": "ermongroup/ddim and the projects that build on it",
}
"""Whose files they are."""
FILES = {name: f"exp/paper/{name}.pt" for name in OPENAI} | {name: f"exp/paper/{name}.ckpt" for name in DDPM}
"""Name -> where this project looks for its file."""


def origin(name: str) -> str:
    """Return where a file comes from."""
    if name == "afhqdog_4m":
        return "the README of Boundary Diffusion"
    return ORIGINS[OPENAI[name]["family"] if name in OPENAI else "ddpm"]
