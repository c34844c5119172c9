"""The published checkpoints: where each goes and comes from, and the configurations, which their files do not carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmcmc_core import files
from dmcmc_core.checkpoints.card import sentence
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
"""Name -> where this project looks for its file, without a published SHA-256; :func:`origin_of` tells its origin."""


_EDM2 = {
    "edm2-img512-xs-fid": "edm2-img512-xs-2147483-0.135",
    "edm2-img512-xs-dino": "edm2-img512-xs-2147483-0.200",
    "edm2-img512-s-fid": "edm2-img512-s-2147483-0.130",
    "edm2-img512-s-dino": "edm2-img512-s-2147483-0.190",
    "edm2-img512-m-fid": "edm2-img512-m-2147483-0.100",
    "edm2-img512-m-dino": "edm2-img512-m-2147483-0.155",
    "edm2-img512-l-fid": "edm2-img512-l-1879048-0.085",
    "edm2-img512-l-dino": "edm2-img512-l-1879048-0.155",
    "edm2-img512-xl-fid": "edm2-img512-xl-1342177-0.085",
    "edm2-img512-xl-dino": "edm2-img512-xl-1342177-0.155",
    "edm2-img512-xxl-fid": "edm2-img512-xxl-0939524-0.070",
    "edm2-img512-xxl-dino": "edm2-img512-xxl-0939524-0.150",
    "edm2-img64-s-fid": "edm2-img64-s-1073741-0.075",
    "edm2-img64-m-fid": "edm2-img64-m-2147483-0.060",
    "edm2-img64-l-fid": "edm2-img64-l-1073741-0.040",
    "edm2-img64-xl-fid": "edm2-img64-xl-0671088-0.040",
}
_EDM2_GUIDED = {
    "edm2-img512-xs-guid-fid": ("edm2-img512-xs-2147483-0.045", "edm2-img512-xs-uncond-2147483-0.045", 1.4),
    "edm2-img512-xs-guid-dino": ("edm2-img512-xs-2147483-0.150", "edm2-img512-xs-uncond-2147483-0.150", 1.7),
    "edm2-img512-s-guid-fid": ("edm2-img512-s-2147483-0.025", "edm2-img512-xs-uncond-2147483-0.025", 1.4),
    "edm2-img512-s-guid-dino": ("edm2-img512-s-2147483-0.085", "edm2-img512-xs-uncond-2147483-0.085", 1.9),
    "edm2-img512-m-guid-fid": ("edm2-img512-m-2147483-0.030", "edm2-img512-xs-uncond-2147483-0.030", 1.2),
    "edm2-img512-m-guid-dino": ("edm2-img512-m-2147483-0.015", "edm2-img512-xs-uncond-2147483-0.015", 2.0),
    "edm2-img512-l-guid-fid": ("edm2-img512-l-1879048-0.015", "edm2-img512-xs-uncond-2147483-0.015", 1.2),
    "edm2-img512-l-guid-dino": ("edm2-img512-l-1879048-0.035", "edm2-img512-xs-uncond-2147483-0.035", 1.7),
    "edm2-img512-xl-guid-fid": ("edm2-img512-xl-1342177-0.020", "edm2-img512-xs-uncond-2147483-0.020", 1.2),
    "edm2-img512-xl-guid-dino": ("edm2-img512-xl-1342177-0.030", "edm2-img512-xs-uncond-2147483-0.030", 1.7),
    "edm2-img512-xxl-guid-fid": ("edm2-img512-xxl-0939524-0.015", "edm2-img512-xs-uncond-2147483-0.015", 1.2),
    "edm2-img512-xxl-guid-dino": ("edm2-img512-xxl-0939524-0.015", "edm2-img512-xs-uncond-2147483-0.015", 1.7),
    "edm2-img512-s-autog-fid": ("edm2-img512-s-2147483-0.070", "edm2-img512-xs-0134217-0.125", 2.1),
    "edm2-img512-s-autog-dino": ("edm2-img512-s-2147483-0.120", "edm2-img512-xs-0134217-0.165", 2.45),
    "edm2-img512-xxl-autog-fid": ("edm2-img512-xxl-0939524-0.075", "edm2-img512-m-0268435-0.155", 2.05),
    "edm2-img512-xxl-autog-dino": ("edm2-img512-xxl-0939524-0.130", "edm2-img512-m-0268435-0.205", 2.3),
    "edm2-img512-s-uncond-autog-fid": (
        "edm2-img512-s-uncond-2147483-0.070",
        "edm2-img512-xs-uncond-0134217-0.110",
        2.85,
    ),
    "edm2-img512-s-uncond-autog-dino": (
        "edm2-img512-s-uncond-2147483-0.090",
        "edm2-img512-xs-uncond-0134217-0.125",
        2.9,
    ),
    "edm2-img64-s-autog-fid": ("edm2-img64-s-1073741-0.045", "edm2-img64-xs-0134217-0.110", 1.7),
    "edm2-img64-s-autog-dino": ("edm2-img64-s-1073741-0.105", "edm2-img64-xs-0134217-0.175", 2.2),
}
GUIDES = {name: (guide, guidance) for name, (_, guide, guidance) in _EDM2_GUIDED.items()}
"""Name -> the ``guide`` that the network was published with, named as its file, and the ``guidance``."""
EDM2: dict[str, str] = {
    name: f"exp/paper/edm2/{file}.pkl"
    for name, file in [
        *_EDM2.items(),
        *((name, file) for name, (file, _, _) in _EDM2_GUIDED.items()),
        *((guide, guide) for guide, _ in GUIDES.values()),
    ]
}
"""Name -> where a network of EDM2 is looked for: images seen, in thousands, and EMA length stand in its file's name."""
FILES |= EDM2
KARRAS = "the post-hoc reconstructions that the README of NVlabs/edm2 links to"


def origin_of(name: str) -> str:
    """Return where the file of a published checkpoint comes from."""
    return KARRAS if name in EDM2 else SONG


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
            f"the published checkpoint {name} is not here: it goes to {path}, and comes from {origin_of(name)}"
        )
    return path


def config_of(path: Path, config: str | Path | dict | None = None) -> dict[str, Any]:
    """Return the configuration of a checkpoint: what is given, the JSON file beside it, or that of its place.

    Args:
        path: of the checkpoint.
        config: sections, the name of one of :data:`CONFIGS`, or a JSON or YAML file.

    Raises:
        UserError: where there is none, or a file that is no mapping.
    """
    if isinstance(config, dict):
        return config
    beside = path.with_suffix(".json")
    if config is None and not beside.is_file():
        config = at_place(path)
    if config is None and not beside.is_file():
        raise UserError(
            f"{path} carries no configuration and there is no {beside.name} beside it: name one by config= in Python "
            f"or convert --config, a file or one of {', '.join(CONFIGS)}"
        )
    named = str(config).replace("/", "_").removesuffix(".py")
    if config is not None and named in CONFIGS:
        return CONFIGS[named]
    file = Path(config or beside)
    if not file.is_file():
        raise unknown("configuration", str(config), CONFIGS)
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except Exception as error:  # whatever a broken file brings about
        raise UserError(f"the configuration {file} cannot be read: {sentence(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"the configuration {file} must hold a mapping of names to values")
    return content
