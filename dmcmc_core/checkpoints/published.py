"""The published checkpoints: where each goes and comes from, and the configurations, which their files do not carry."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dmcmc_core import files
from dmcmc_core.checkpoints import published_edm2, published_states
from dmcmc_core.checkpoints.configurations import read_mapping
from dmcmc_core.errors import UserError, unknown


def _config(dataset: str, size: int, sde: str = "vesde", continuous: bool = True, **model: Any) -> dict[str, Any]:
    """Return a configuration by its differences from the network for CIFAR-10."""
    shared = {
        "name": "ncsnpp",
        "nf": 128,
        "ch_mult": [1, 2, 2, 2],
        "num_res_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "fourier",
        "fourier_scale": 16,
        "fir": True,
        "fir_kernel": [1, 3, 3, 1],
        "progressive": "none",
        "progressive_input": "residual",
        "progressive_combine": "sum",
        "resblock_type": "biggan",
        "skip_rescale": True,
        "scale_by_sigma": sde == "vesde",
        "dropout": 0.1,
        "conditional": True,
        "sigma_min": 0.01,
        "sigma_max": 50,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "num_scales": 1000,
    }
    data = {"dataset": dataset, "image_size": size, "num_channels": 3, "centered": sde != "vesde"}
    return {"model": shared | model, "data": data, "training": {"sde": sde, "continuous": continuous}}


_DEEP = {"num_res_blocks": 8}
_NCSNPP = {"embedding_type": "positional"}
_DDPMPP = _NCSNPP | {"fir": False, "progressive_input": "none"}
_DDPM = {"name": "ddpm", "num_res_blocks": 2}
_LARGE = {"dropout": 0.0, "progressive": "output_skip", "progressive_input": "input_skip", "num_scales": 2000}
_256 = _LARGE | {"ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2}
_1024 = _LARGE | {"nf": 16, "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32], "num_res_blocks": 1, "sigma_max": 1348}
_DDPM_256 = _DDPM | {"dropout": 0.0, "ch_mult": [1, 1, 2, 2, 4, 4]}
CONFIGS: dict[str, dict[str, Any]] = {
    "ve_cifar10_ncsnpp_continuous": _config("CIFAR10", 32),
    "ve_cifar10_ncsnpp_deep_continuous": _config("CIFAR10", 32, **_DEEP),
    "ve_cifar10_ncsnpp": _config("CIFAR10", 32, continuous=False, **_NCSNPP),
    "ve_cifar10_ddpm": _config("CIFAR10", 32, continuous=False, **_DDPM),
    "ve_bedroom_ncsnpp_continuous": _config("LSUN", 256, sigma_max=378, **_256),
    "ve_church_ncsnpp_continuous": _config("LSUN", 256, sigma_max=380, **_256),
    "ve_celebahq_256_ncsnpp_continuous": _config("CelebAHQ", 256, sigma_max=348, **_256),
    "ve_ffhq_256_ncsnpp_continuous": _config("FFHQ", 256, sigma_max=348, **_256),
    "ve_celebahq_ncsnpp_continuous": _config("CelebAHQ", 1024, **_1024),
    "ve_ffhq_1024_ncsnpp_continuous": _config("FFHQ", 1024, **_1024),
    "vp_cifar10_ddpmpp_continuous": _config("CIFAR10", 32, "vpsde", **_DDPMPP),
    "vp_cifar10_ddpmpp_deep_continuous": _config("CIFAR10", 32, "vpsde", **_DDPMPP | _DEEP),
    "vp_cifar10_ncsnpp_continuous": _config("CIFAR10", 32, "vpsde", **_NCSNPP),
    "vp_cifar10_ncsnpp_deep_continuous": _config("CIFAR10", 32, "vpsde", **_NCSNPP | _DEEP),
    "vp_ddpm_cifar10": _config("CIFAR10", 32, "vpsde", continuous=False, **_DDPM),
    "vp_ddpm_cifar10_continuous": _config("CIFAR10", 32, "vpsde", **_DDPM),
    "vp_ddpm_celebahq": _config("CelebAHQ", 256, "vpsde", continuous=False, **_DDPM_256),
    "vp_ddpm_church": _config("LSUN", 256, "vpsde", continuous=False, **_DDPM_256),
    "subvp_cifar10_ddpmpp_continuous": _config("CIFAR10", 32, "subvpsde", **_DDPMPP),
    "subvp_cifar10_ddpmpp_deep_continuous": _config("CIFAR10", 32, "subvpsde", **_DDPMPP | _DEEP),
    "subvp_cifar10_ncsnpp_continuous": _config("CIFAR10", 32, "subvpsde", **_NCSNPP),
    "subvp_cifar10_ncsnpp_deep_continuous": _config("CIFAR10", 32, "subvpsde", **_NCSNPP | _DEEP),
    "subvp_cifar10_ddpm_continuous": _config("CIFAR10", 32, "subvpsde", **_DDPM),
}
"""Name -> sections ``model``, ``data`` and ``training``; the names are those of the published files, / being _."""


SONG = "the checkpoint folder linked in the README of yang-song/score_sde_pytorch"
FILES: dict[str, str] = {name: f"exp/paper/{name}/checkpoint.pth" for name in CONFIGS} | {
    "ve_cifar10_ncsnpp_continuous": "exp/paper/cifar10_ncsnpp_continuous/checkpoint_24.pth",
    "ve_celebahq_256_ncsnpp_continuous": "exp/paper/celebahq_256_ncsnpp_continuous/checkpoint_48.pth",
    "ve_ffhq_1024_ncsnpp_continuous": "exp/paper/ffhq_1024_ncsnpp_continuous/checkpoint.pth",
    "vp_cifar10_ddpmpp_continuous": "exp/paper/cifar10_ddpmpp_continuous/checkpoint.pth",
}
FILES |= published_states.FILES | published_edm2.FILES
"""Name -> where this project looks for its file, which has no published SHA-256; see :func:`origin`."""


def origin(name: str) -> str:
    """Return where the file of a published checkpoint comes from."""
    if name in published_edm2.FILES:
        return published_edm2.ORIGIN
    return SONG if name in CONFIGS else published_states.origin(name)


CLASSIFIERS: dict[str, str] = {
    "ve_cifar10_ncsnpp_continuous": "exp/paper/cifar10-noise-level.pth",
    "ve_celebahq_256_ncsnpp_continuous": "exp/paper/celebahq-noise-level.pth",
}
"""Name -> where the noise-level classifier of the DMCMC authors is looked for that serves the model."""
AUTHORS = "the folders that issue 2 of the repository of Denoising MCMC links to"


def at_place(path: Path) -> str | None:
    """Return the name of the published checkpoint whose place in a checkout this is; None where it is none's."""
    return next((name for name, place in FILES.items() if path.resolve().as_posix().endswith(f"/{place}")), None)


def place_of(name: str) -> Path:
    """Return where the file of a published checkpoint lies; UserError with its place and origin where it does not."""
    path = files.root() / FILES[name]
    if not path.is_file():
        raise UserError(
            f"the published checkpoint {name} is not here: it goes to {path}, and comes from {origin(name)}"
        )
    return path


def config_of(
    path: Path,
    config: str | Path | dict | None = None,
    known: dict[str, dict[str, Any]] = CONFIGS,
    fitting: Callable[[], Collection[str]] = list,
) -> dict[str, Any]:
    """Return the configuration of a checkpoint: what is given, the JSON file beside it, that of its place or shapes.

    Args:
        path: of the checkpoint.
        config: a configuration, the name of one of ``known``, or a JSON or YAML file.
        known: published configurations of the file's family.
        fitting: which of them have the shapes of the file's tensors, and are not all the same network.

    Raises:
        UserError: where there is none or more than one, or a file that is no mapping.
    """
    if isinstance(config, dict):
        return config
    beside = path.with_suffix(".json")
    if config is None and not beside.is_file() and (config := at_place(path)) not in known:
        config = next(iter(fits := fitting()), None)
        if len(fits) > 1:
            raise UserError(
                f"{path} has the shapes of more than one published network: name by config one of {', '.join(fits)}"
            )
    if config is None and not beside.is_file():
        raise UserError(
            f"{path} carries no configuration and there is no {beside.name} beside it: name one by config= in Python "
            f"or convert --config, a file or one of {', '.join(known)}"
        )
    named = str(config).replace("/", "_").removesuffix(".py").removesuffix(".pt")
    if config is not None and named in known and not Path(config).is_file():
        return known[named]
    file = Path(config or beside)
    if not file.is_file():
        raise unknown("configuration", str(config), known)
    return read_mapping(file, f"the configuration {file}")
