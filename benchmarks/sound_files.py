"""Sound files in every format that can be read, of small random networks: what benchmarks/mutations.py breaks."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dmcmc_core.checkpoints import ddpm, openai, published, save, score_sde
from dmcmc_core.checkpoints import edm as edm_reader
from dmcmc_core.checkpoints import edm2 as edm2_reader
from dmcmc_core.nets.edm2 import MagnitudePreservingNet
from dmcmc_core.nets.noise_level_classifier import PublishedClassifier
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.unet import DenoisingUNet

SMALL = {"nf": 8, "num_res_blocks": 1, "ch_mult": [1, 2], "attn_resolutions": [8]}


def small_config(**model: Any) -> dict[str, Any]:
    """A network of score_sde for 16 x 16 images."""
    made = copy.deepcopy(published.CONFIGS["ve_cifar10_ncsnpp_continuous"])
    made["model"] |= SMALL | model
    made["data"]["image_size"] = 16
    return made


def score_sde_content(config: dict[str, Any], prefix: str = "module.") -> dict[str, Any]:
    """What score_sde saves."""
    torch.manual_seed(0)
    net = score_sde.build(config)[0].net
    own, state, averaged = net.state_dict(), {f"{prefix}sigmas": torch.ones(7)}, []
    for e in score_sde.entries(net):
        value = own[e.own] if e.part is None else own[e.own].chunk(3)[e.part]
        value = value[:, :, 0, 0].T.contiguous() if e.matrix else value.clone()
        state[prefix + e.name] = value
        averaged += [value.clone()] if e.trained else []
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": averaged}
    return {"model": state, "ema": ema, "optimizer": {"state": {}, "param_groups": []}, "step": 3}


def write_score_sde(folder: Path) -> Path:
    torch.save(score_sde_content(small_config()), folder / "a.pth")
    (folder / "a.json").write_text(json.dumps(small_config()))
    return folder / "a.pth"


OPENAI = {
    "family": "guided-diffusion",
    "flags": {"image_size": 8, "num_head_channels": 16, "diffusion_steps": 20, "attention_resolutions": "4"},
}
DDPM = {
    "data": {"image_size": 8, "rescaled": True},
    "model": {"in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4]},
    "diffusion": {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.2, "num_diffusion_timesteps": 20},
}


def openai_content() -> dict[str, torch.Tensor]:
    """What guided-diffusion saves: a bare state."""
    told = {"in_channels": 3, "out_channels": 6, "width": 32, "multipliers": [1, 1], "blocks": 1, "adaptive": True}
    told |= {"embedding": 4, "resampling": True, "attending": [1], "labels": 3, "learned": True, "conditional": True}
    with torch.device("meta"):
        net = ScaledUNet(**openai.arguments(told, OPENAI)[0]).net
    return _random(openai.entries(net), net)


def ddpm_content() -> list[Any]:
    """What a training of the PyTorch port of DDPM saves."""
    with torch.device("meta"):
        net = ddpm.build(DDPM)[0].net
    state = _random(ddpm.entries(net), net)
    return [{f"module.{k}": v for k, v in state.items()}, {"state": {}, "param_groups": []}, 1, 3, state]


def _random(entries: Iterable[Any], net: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    own = net.state_dict()
    return {e.name: 0.1 * torch.randn(e.shape(own[e.own])) for e in entries}


def write_openai(folder: Path) -> Path:
    torch.save(openai_content(), folder / "a.pt")
    (folder / "a.json").write_text(json.dumps(OPENAI))
    return folder / "a.pt"


def write_ddpm(folder: Path) -> Path:
    torch.save(ddpm_content(), folder / "a.ckpt")
    (folder / "a.json").write_text(json.dumps(DDPM))
    return folder / "a.ckpt"


class Kept:
    """An object pickled by reference to ``torch_utils.persistence``, as EDM's are."""

    def __init__(self, name: str, **state: Any) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "# source\n", "class_name": name, "state": state}

    def __deepcopy__(self, memo: dict) -> Kept:
        made = Kept("")
        made.meta = copy.deepcopy(self.meta, memo)
        return made

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


SMALL_EDM = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 16, "num_blocks": 1}
SMALL_EDM |= {"channel_mult": [1, 2], "attn_resolutions": [8]}


def edm_net(arguments: dict[str, Any]) -> ScaledUNet:
    """Our network for the arguments of a SongUNet, at random."""
    return ScaledUNet("edm", {}, edm_reader._network(edm_reader.Inert("SongUNet", {"_init_kwargs": arguments}), Path()))


def edm_content(arguments: dict[str, Any] = SMALL_EDM, trained: ScaledUNet | None = None) -> dict[str, Any]:
    """What EDM saves, for a SongUNet: that of a network made by :func:`edm_net`, or a random one."""
    torch.manual_seed(0)
    inner = Kept("SongUNet", _init_args=(), _init_kwargs=dict(arguments), _parameters={}, _buffers={}, _modules={})
    net = (trained or edm_net(arguments)).net
    own = net.state_dict()
    for theirs, mine in edm_reader.names(net):
        into, *parts = inner.meta["state"]["_modules"], *theirs.split(".", 1)
        if len(parts) == 2:
            into = into.setdefault(parts[0], nn.ModuleDict())._modules
        found = {p: own[f"{mine}.{p}"] for p in ("weight", "bias") if f"{mine}.{p}" in own}
        at = into
        *middle, last = parts[-1].split(".")
        for name in middle:
            at = at.setdefault(name, Kept("UNetBlock", _parameters={}, _buffers={}, _modules={})).meta["state"][
                "_modules"
            ]
        at[last] = Kept("Conv2d", _parameters=found, _buffers={}, _modules={})
    outer = Kept("EDMPrecond", sigma_min=0, sigma_max=float("inf"), sigma_data=0.5, _init_args=(), _init_kwargs={})
    outer.meta["state"] |= {"_parameters": {}, "_buffers": {}, "_modules": {"model": inner}}
    return {"ema": outer}


class EasyDict(dict):
    """A dict pickled by reference to ``dnnlib.util``, as EDM2's are."""


EasyDict.__module__ = "dnnlib.util"
SMALL_EDM2 = {"img_resolution": 16, "img_channels": 4, "label_dim": 5, "use_fp16": True, "logvar_channels": 8}
SMALL_EDM2 |= {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
SMALL_EDM2 |= {"channels_per_head": 8}


def edm2_content() -> EasyDict:
    """What EDM2 saves: a network with float16 weights, and what training needs beside it."""
    torch.manual_seed(0)
    net = MagnitudePreservingNet(**{edm2_reader.ARGUMENTS[k]: v for k, v in SMALL_EDM2.items() if k != "use_fp16"})
    for name, parameter in net.named_parameters():
        parameter.data.fill_(0.5) if name.endswith("gain") else None
    outer = _kept("Precond", net.half())
    outer.meta["state"] |= {"_init_args": (), "_init_kwargs": dict(SMALL_EDM2)}
    about = EasyDict(class_name="training.dataset.ImageFolderDataset", path="a.zip", use_labels=True)
    loss = Kept("EDM2Loss", P_mean=-0.4, P_std=np.float64(1.0), sigma_data=0.5)
    return EasyDict(encoder=Kept("StandardRGBEncoder"), dataset_kwargs=about, loss_fn=loss, ema=outer)


def _kept(name: str, module: nn.Module) -> Any:
    """A module as EDM2 pickles it; what has neither parameters nor modules in its files is left out."""
    inner = {key: _kept(type(part).__name__, part) for key, part in module._modules.items() if part is not None}
    inner = {key: part for key, part in inner.items() if not (isinstance(part, Kept) and part.meta["class_name"] in
             ("Resample", "Dropout"))}  # fmt: skip
    if isinstance(module, nn.ModuleDict):
        made = nn.ModuleDict()
        made._modules.update(inner)
        return made
    buffers = {key: b for key, b in module._buffers.items() if key not in module._non_persistent_buffers_set}
    return Kept(name, _parameters=dict(module._parameters), _buffers=buffers, _modules=inner)


def kept_modules(kept: Any) -> Iterator[dict[str, Any]]:
    """The state of a module and of all in it."""
    if isinstance(kept, Kept):
        yield kept.meta["state"]
    for part in (kept.meta["state"]["_modules"] if isinstance(kept, Kept) else kept._modules).values():
        yield from kept_modules(part)


def edm_bytes(content: Any) -> bytes:
    module, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    exec("def _reconstruct_persistent_obj(meta): raise NotImplementedError", module.__dict__)
    module._reconstruct_persistent_obj.__module__ = module.__name__
    util.EasyDict = EasyDict
    named = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")} | {
        m.__name__: m for m in (module, util)
    }
    sys.modules |= named
    try:
        return pickle.dumps(content)
    finally:
        for name in named:
            del sys.modules[name]


def write_edm(folder: Path) -> Path:
    (folder / "a.pkl").write_bytes(edm_bytes(edm_content()))
    return folder / "a.pkl"


def write_edm2(folder: Path) -> Path:
    (folder / "a.pkl").write_bytes(edm_bytes(edm2_content()))
    return folder / "a.pkl"


def write_diffusers(folder: Path) -> Path:
    """A network alone and the scheduler of DDPM."""
    import diffusers

    return _folder(folder, diffusers.DDPMScheduler())


def write_shards(folder: Path) -> Path:
    """The network in shards of half precision, with an index, and a scheduler of EDM."""
    import diffusers

    return _folder(folder, diffusers.EDMEulerScheduler(), variant="fp16", max_shard_size="20KB")


def _folder(folder: Path, scheduler: Any, **how: Any) -> Path:
    import diffusers

    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    net.save_pretrained(folder, **how)
    scheduler.save_pretrained(folder)
    return folder


class ForClassifier:
    """The model that a classifier of the authors serves."""

    shape, sigma_min, sigma_max = (3, 32, 32), 0.01, 50.0


def classifier_content() -> dict[str, Any]:
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in PublishedClassifier().state_dict().items()}
    return {"epoch": 3, "opt": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "net": state}


def write_classifier(folder: Path) -> Path:
    torch.save(classifier_content(), folder / "a.pth")
    return folder / "a.pth"


def write_own(folder: Path) -> Path:
    torch.manual_seed(0)
    net = DenoisingUNet((1, 8, 8), 0.3, channels=(8, 16), blocks=(1, 1), embedding=16)
    card = {"name": "tiny", "data_range": [0.0, 1.0], "sigma_min": 0.01, "sigma_max": 10.0}
    save(net, folder / "a.safetensors", card)
    return folder / "a.safetensors"


def write_converted(folder: Path) -> Path:
    torch.manual_seed(0)
    net, card = score_sde.build(small_config())
    save(net, folder / "a.safetensors", card | {"name": "a"})
    return folder / "a.safetensors"
