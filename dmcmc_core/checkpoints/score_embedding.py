"""Files of score embedding (Na, Gao & Wan 2024): ``model.pth`` of the method and of its baselines, with configuration.

The networks are those of score_sde's DDPM, and so are their tensors' names. A file also holds the metrics of its run,
numbers of NumPy, which are passed over; nothing of the file is executed.
"""

from __future__ import annotations

from typing import Any

import torch

from dmcmc_core.checkpoints import score_sde
from dmcmc_core.checkpoints.torch_files import TorchFile, whole
from dmcmc_core.errors import UserError
from dmcmc_core.nets.scalings import ScaledUNet, ddpm_levels
from dmcmc_core.score_embedding import std
from dmcmc_core.score_embedding.diffusion import EPSILON

SECTIONS = ("data_loader", "diffusion", "training", "model")


def is_one(content: Any) -> bool:
    """Tell whether the content of a PyTorch file is one of score embedding: by its configuration."""
    config = content.get("config") if isinstance(content, dict) else None
    return isinstance(config, dict) and all(isinstance(config.get(name), dict) for name in SECTIONS)


def read(file: TorchFile) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network of a file, for baselines with their averaged weights, and its card.

    Raises:
        UserError: for a file that is damaged or does not fit its own configuration.
    """
    config, state, ema = (file.content.get(name) for name in ("config", "model", "ema"))
    if not isinstance(state, dict):
        raise UserError(f"{file.path} is not a file of score embedding: it holds no configuration and tensors")
    averaged = ema.get("shadow_params") if isinstance(ema, dict) else None
    if ema is not None and not (isinstance(averaged, list) and whole(averaged)):
        raise UserError(f"{file.path} holds an 'ema' without a list of tensors 'shadow_params'")
    net, card = score_sde.filled(lambda: build(config), state, averaged, file)
    name = config.get("name")
    return net, card | ({"name": name} if isinstance(name, str) else {})


@score_sde.config_errors()
def build(config: dict[str, Any]) -> tuple[ScaledUNet, dict[str, Any]]:
    """Return the network that a configuration describes, its weights untrained, and the card of its checkpoint.

    Raises:
        UserError: for a section or field that is missing, or a value that makes no network.
    """
    data, diffusion, training, model = (score_sde.section(config, name) for name in SECTIONS)
    linear = score_sde.choice(model, "embedding_method", {"linear": True, "fourier": False})
    convolved = score_sde.choice(model, "resample_with_conv", {True: True, False: False})
    need = score_sde.need
    net = {
        "size": need(data, "image_size", "data_loader"),
        "in_channels": need(model, "in_channels", "model"),
        "out_channels": need(model, "out_channels", "model"),
        "width": need(model, "ch", "model"),
        "multipliers": need(model, "ch_mult", "model"),
        "blocks": need(model, "num_res_blocks", "model"),
        "attention": need(model, "attention_resolutions", "model"),
        "waves": "constant" if linear else "positional",
        "period": float(model.get("max_positions", 10_000)),
        "convolved": convolved,
        "plain": not convolved,
        "rescale": False,
        "min_group": 1,
        "dropout": float(model.get("dropout", 0.0)),
    }
    card: dict[str, Any] = {"architecture": "preconditioned", "data": data.get("dataset")}
    if "sigma" not in diffusion:
        scales = need(diffusion, "num_timesteps", "diffusion")
        betas = {name: float(need(diffusion, name, "diffusion")) * scales for name in ("beta_min", "beta_max")}
        low, high = ddpm_levels(**betas, scales=scales)[[0, -1]].tolist()
        card |= {"sigma_min": low, "sigma_max": high, "data_range": [-1.0, 1.0]}
        return ScaledUNet("ddpm", betas | {"scales": scales}, net, centre=True), card
    base = float(diffusion["sigma"])
    low, high = std(torch.tensor([EPSILON, 1.0], dtype=torch.float64, device="cpu"), base).tolist()
    card |= {"sigma_min": low, "sigma_max": high, "data_range": [0.0, 1.0]}
    own = {"base": base, "embedding": "linear" if linear else "fourier", "images": data.get("num_images", 1)}
    own |= {"multiplier": float(training.get("timestep_multiplier", 1))}
    return ScaledUNet("score_embedding", own, net, centre=True), card
