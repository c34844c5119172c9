"""Folders of diffusers: ``UNet2DModel`` and its scheduler, built and filled by that library, from safetensors only.

A folder is a pipeline (``model_index.json``, ``unet/``, ``scheduler/``) or a network alone (``config.json``,
``diffusion_pytorch_model.safetensors``) with its ``scheduler_config.json`` in it or in ``../scheduler``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core.checkpoints.card import UNET_2D, read_card, sentence
from dmcmc_core.checkpoints.catalogue import DIFFUSERS_WEIGHTS as WEIGHTS
from dmcmc_core.checkpoints.weights import check_finite, without_memory
from dmcmc_core.denoiser import like, per_row
from dmcmc_core.errors import UserError, check_whole, unknown
from dmcmc_core.nets.scalings import PREDICTIONS, Scalings, index_of

EXPLODING = "ScoreSdeVeScheduler"
PRESERVING = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
)


def score(sigma: Tensor, c_in: Tensor, time: Tensor) -> Scalings:
    """Return the scalings of a variance-exploding network: it takes sigma and answers with the score."""
    one = torch.ones_like(sigma)
    return Scalings(one, sigma**2, one, sigma)


class Unet(nn.Module):
    """A denoiser that is a network of diffusers: x (B, C, H, W), sigma () or (B,), and labels (B,) -> E[x0 | x, sigma].

    What a variance-preserving network knows as x_t = alpha (x0 + sigma n) is alpha x here, with
    sigma = sqrt(1 - abar) / sqrt(abar) and alpha = 1 / sqrt(1 + sigma^2): exact at every level. Its timestep is that of
    the scheduler at the scheduler's own levels; between two of them log sigma is linear in the timestep, which is then
    no whole number, and beyond the first and the last it stays at theirs.

    Args:
        unet: a ``UNet2DModel``.
        scalings: :func:`score` or one of :data:`PREDICTIONS`.
        levels: (T,) float64, sigma at the timesteps 0 to T - 1, rising; empty where the network takes sigma itself.
        recipe: what else makes this function, as JSON; by default it is put together here.
    """

    def __init__(
        self, unet: nn.Module, scalings: Callable[..., Scalings], levels: Tensor, recipe: str | None = None
    ) -> None:
        super().__init__()
        self.unet, self.scalings = unet, scalings
        self.register_buffer("log_levels", levels.log())
        # A run is named by the hash of its tensors; what else makes this function is therefore one of them.
        recipe = recipe or json.dumps([scalings.__name__, dict(unet.config)], sort_keys=True, default=str)
        self.config = {"recipe": recipe, "timesteps": len(levels)}
        self.register_buffer("recipe", torch.tensor(list(recipe.encode()), dtype=torch.uint8))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, *((side, side) if isinstance(side, int) else side)

    @property
    def classes(self) -> int:
        """The number of classes that labels choose from, 0 for none."""
        return self.unet.config.num_class_embeds or 0

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the real-valued timestep (B,), float64, of noise levels (B,)."""
        return index_of(sigma, self.log_levels)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return E[x0 | x, sigma] for x (B, C, H, W), sigma () or (B,).

        ``labels``: (B,) whole numbers, for a network with classes, which cannot do without.

        Raises:
            UserError: for labels that are missing, out of range, or of a network without classes.
        """
        sigma = per_row(sigma, x)
        time = self.timestep(sigma).to(x) if len(self.log_levels) else sigma
        c = self.scalings(sigma, 1 / (1 + sigma**2).sqrt(), time)
        answer = self.unet(like(c.c_in, x) * x, c.c_noise, self._checked(labels, x), return_dict=False)[0]
        return like(c.c_skip, x) * x + like(c.c_out, x) * answer[:, : x.shape[1]]

    def _checked(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if labels is not None:
                raise UserError("this network has no classes: leave labels out")
            return None
        if labels is None:
            raise UserError(
                f"this network needs labels (sample: label=), a whole number from 0 to {classes - 1} for each image"
            )
        if labels.shape != (len(x),):
            raise UserError(f"labels must be ({len(x)},), not {tuple(labels.shape)}")
        if labels.is_floating_point() or not ((labels >= 0) & (labels < classes)).all():
            wrong = (labels < 0) | (labels >= classes) | labels.is_floating_point()
            raise UserError(f"labels must be whole numbers from 0 to {classes - 1}, not {labels[wrong][0].item()}")
        return labels.long()


def from_recipe(recipe: str, timesteps: int) -> Unet:
    """Return the network of a converted file by the ``config`` of a :class:`Unet`, weights and levels to be filled in.

    Raises:
        UserError: without the library.
    """
    check_whole("timesteps", timesteps, 0, 10**5)
    name, about = json.loads(recipe)
    unet = _library("the file", "made of a folder of diffusers").UNet2DModel.from_config(about).float()
    return Unet(unet, (PREDICTIONS | {"score": score})[name], torch.ones(timesteps, dtype=torch.float64), recipe)


def files(path: str | Path) -> list[Path]:
    """Return the files of a folder that make its denoiser."""
    path = Path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    found = [path / "model_index.json", folder / "config.json", folder / WEIGHTS, _beside(path, folder)]
    return [file for file in found if file.is_file()]


def read(path: str | Path, config: str | Path | dict[str, Any] | None = None) -> tuple[Unet, dict[str, Any]]:
    """Return the network of a folder in float32, and its card.

    The card's levels are the scheduler's; its data_range is (0, 1) with ``ScoreSdeVeScheduler`` and (-1, 1) with all
    others. What a scheduler does when it samples (clipping, thresholding, spacing) is no part of the denoiser.

    Args:
        path: the folder.
        config: the configuration of the scheduler, a dict or a JSON file, instead of the one found with the folder.

    Raises:
        UserError: for a folder without what is named above, a file that is truncated or no JSON, a network, scheduler,
            prediction or time embedding that is not known here, tensors that do not fit, or a missing library.
    """
    path = Path(path)
    if (path / "model_index.json").is_file():
        _check_pipeline(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} is no folder of diffusers: it holds neither unet/config.json nor config.json")
    about = _json(folder / "config.json")
    _known("network", about.get("_class_name"), [UNET_2D], folder / "config.json")
    steps = config if isinstance(config, dict) else _json(Path(config) if config else _beside(path, folder))
    kind = steps.get("_class_name")
    _known("scheduler", kind, [EXPLODING, *PRESERVING], config or _beside(path, folder))
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}: convert its weights, pickles (.bin) are not read")
    read_card(folder / WEIGHTS)  # whether it is whole
    library = _library(path)
    for name, most in (("num_train_timesteps", 10**5), ("solver_order", 16)):
        check_whole(f"{name} in the scheduler of {path}", steps.get(name, 1), 1, most)
    scheduler = _by_library(getattr(library, kind).from_config, steps, f"the scheduler of {path}")
    if kind == EXPLODING:
        scalings, levels = score, torch.empty(0, dtype=torch.float64)
        low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
    else:
        scalings, levels = _prediction(scheduler, path), _levels(scheduler, path)
        low, high = levels[0].item(), levels[-1].item()
    shape_alone = _check_size(library, about, folder)
    unet = _network(library, folder)
    if kind != EXPLODING and unet.config.time_embedding_type == "fourier":
        raise UserError(f"{folder} embeds log sigma (fourier), which goes with {EXPLODING} and not with {kind}")
    card = {
        "architecture": UNET_2D,
        "scheduler": kind,
        "prediction": scalings.__name__,
        "library": library.__version__,
    }
    card |= {"sigma_min": low, "sigma_max": high, "data_range": [0.0, 1.0] if kind == EXPLODING else [-1.0, 1.0]}
    card |= {"name": path.resolve().name, "parameters": sum(p.numel() for p in unet.parameters())}
    net = Unet(unet, scalings, levels)
    with without_memory():  # arguments that the library takes and then cannot compute with
        _by_library(lambda unet: _ask(unet, net.shape), shape_alone, f"an answer of the network of {folder}")
    return net, card


def _ask(unet: nn.Module, shape: tuple[int, int, int]) -> Any:
    labels = None if unet.config.num_class_embeds is None else torch.zeros(1, dtype=torch.int64)
    return unet(torch.ones(1, *shape), torch.ones(1), labels)


def _check_pipeline(path: Path) -> None:
    """Raise UserError for a pipeline that makes its images from more than a network and a scheduler."""
    parts = {k: v for k, v in _json(path / "model_index.json").items() if not k.startswith("_")}
    more = sorted(k for k, v in parts.items() if k not in ("unet", "scheduler") and isinstance(v, list) and any(v))
    if "unet" not in parts or more:
        found = f"has a part {more[0]!r}" if more else "has no 'unet'"
        raise UserError(f"the pipeline {path} {found}; pipelines of a unet and a scheduler alone can be read")


def _beside(path: Path, folder: Path) -> Path:
    """Return the file of the scheduler's configuration."""
    for place in (path / "scheduler", path, folder.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            return place / "scheduler_config.json"
    raise UserError(
        f"{path} holds no scheduler/scheduler_config.json, without which the noise levels of its network are unknown: "
        f"name one by config"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {sentence(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _known(what: str, name: Any, names: list[str], where: Any) -> None:
    if not isinstance(name, str) or name not in names:
        raise unknown(f"{what} in {'config' if isinstance(where, dict) else where},", name, names)


def _library(path: Path | str, what: str = "a folder of diffusers") -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"{path} is {what}, and that library is missing: pip install 'dmcmc-core[diffusers]'"
        ) from error
    return diffusers


def _by_library(make: Callable[..., Any], given: Any, what: str, **options: Any) -> Any:
    """Return what the library makes of ``given``; its errors, of any type, become a UserError of one sentence."""
    try:
        return make(given, **options)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} cannot be made by diffusers: {why[:300]}") from error


def _prediction(scheduler: Any, path: Path) -> Callable[..., Scalings]:
    name = scheduler.config.get("prediction_type", "epsilon")
    if not isinstance(name, str) or name not in PREDICTIONS:
        raise unknown(f"prediction_type in the scheduler of {path},", name, PREDICTIONS)
    if scheduler.config.get("timestep_type", "discrete") != "discrete" or scheduler.config.get("use_flow_sigmas"):
        raise UserError(
            f"the scheduler of {path} tells its network other times than its timesteps: these are not known"
        )
    return PREDICTIONS[name]


def _levels(scheduler: Any, path: Path) -> Tensor:
    """Return sigma at every timestep, (T,) float64, without a last one that is all noise, where sigma is infinite."""
    kept = scheduler.alphas_cumprod.double().reshape(-1)
    levels = ((1 - kept) / kept).sqrt()
    levels = levels[:-1] if levels[-1:].isinf().any() else levels
    if len(levels) < 2 or not levels.isfinite().all() or levels[0] <= 0 or not (levels.diff() > 0).all():
        raise UserError(
            f"the betas of the scheduler of {path} must give two or more noise levels that rise from above 0"
        )
    return levels


def _check_size(library: Any, about: dict[str, Any], folder: Path) -> nn.Module:
    """Return the network without numbers; UserError for one of more numbers than the file of its weights has."""
    from safetensors import safe_open

    layers = about.get("layers_per_block", 2)
    for number in layers if isinstance(layers, list) else [layers]:
        check_whole(f"layers_per_block in {folder / 'config.json'}", number, 1, 64)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        held = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    with without_memory():
        unet = _by_library(library.UNet2DModel.from_config, about, f"the network of {folder}")
    needed = sum(tensor.numel() for tensor in unet.state_dict().values())
    if needed > 2 * held + 10**6:
        raise UserError(f"{folder / WEIGHTS} holds {held:,} numbers, the network of its config.json {needed:,}")
    return unet


def _network(library: Any, folder: Path) -> nn.Module:
    """Return the filled network, in float32."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of weights left over or made up: those are refused below
    try:
        unet, found = _by_library(
            library.UNet2DModel.from_pretrained,
            folder,
            f"the network of {folder}",
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    finally:
        logger.setLevel(level)
    for what in ("missing", "unexpected"):
        for name in sorted(found[f"{what}_keys"]):
            raise UserError(f"{folder / WEIGHTS} does not fit its config.json: tensor {name!r} is {what}")
    about = unet.config
    for name, tensor in unet.float().state_dict().items():
        check_finite(tensor, name, folder / WEIGHTS)
    if about.sample_size is None:
        raise UserError(f"{folder / 'config.json'} does not tell the size of the images: give it as sample_size")
    if about.out_channels not in (about.in_channels, 2 * about.in_channels):
        raise UserError(f"the network of {folder} makes {about.out_channels} channels of {about.in_channels}")
    if about.time_embedding_type == "learned" or about.class_embed_type is not None:
        raise UserError(f"the network of {folder} has a learned time embedding or class_embed_type, which is not known")
    return unet.float()
