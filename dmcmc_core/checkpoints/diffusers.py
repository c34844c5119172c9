"""Folders of diffusers: ``UNet2DModel`` and its scheduler, built and filled by that library, from safetensors only.

A folder is a pipeline (``model_index.json``, ``unet/``, ``scheduler/``) or a network alone (``config.json``,
``diffusion_pytorch_model.safetensors``) with its ``scheduler_config.json`` in it or in ``../scheduler``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmcmc_core.checkpoints import diffusers_folder
from dmcmc_core.checkpoints.card import UNET_2D
from dmcmc_core.checkpoints.configurations import read_mapping
from dmcmc_core.checkpoints.diffusers_config import (
    CONSISTENCY,
    EDM,
    EXPLODING,
    OLD_NETWORK_KEYS,
    PARTICULAR,
    PRESERVING,
    check_index,
    check_network,
    edm_options,
    family,
    levels_of,
    prediction,
    renewed,
    scheduler_of,
)
from dmcmc_core.checkpoints.diffusers_folder import Weights, json_object
from dmcmc_core.checkpoints.weights import check_finite, check_numbers, without_memory
from dmcmc_core.denoiser import like, per_row
from dmcmc_core.errors import UserError, check_whole, unknown
from dmcmc_core.nets.scalings import PREDICTIONS, edm
from dmcmc_core.variance_preserving import Scalings, denoised, index_of

OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0", "op": "conv", "Conv2d_0": "conv"}
"""Layers in the library's first versions -> their names since."""
OLDER_BLOCKS = {"mid": "mid_block", "downsample_blocks": "down_blocks", "upsample_blocks": "up_blocks"}
"""The same of the parts that a network is made of."""


def score(sigma: Tensor, c_in: Tensor, time: Tensor) -> Scalings:
    """Return the scalings of a variance-exploding network: it takes sigma and answers with the score."""
    one = torch.ones_like(sigma)
    return Scalings(one, sigma**2, one, sigma)


def edm_target(sigma: Tensor, c_in: Tensor, time: Tensor, sigma_data: float) -> Scalings:
    """Return the scalings of Karras et al. 2022, which the library calls ``epsilon`` with its EDM schedulers."""
    return edm(sigma, sigma_data)


def edm_velocity(sigma: Tensor, c_in: Tensor, time: Tensor, sigma_data: float) -> Scalings:
    """Return those of a network that answers with the negative target, the library's ``v_prediction`` with them."""
    c = edm(sigma, sigma_data)
    return c._replace(c_out=-c.c_out)


EDM_PREDICTIONS: dict[str, Callable[..., Scalings]] = {"epsilon": edm_target, "v_prediction": edm_velocity}
"""The same of a network of an EDM scheduler, which takes log(sigma) / 4 as its time."""
SCALINGS = {made.__name__: made for made in (score, *PREDICTIONS.values(), *EDM_PREDICTIONS.values())}
"""By the names that converted files have of them, beside those of :data:`PREDICTIONS`."""


class Unet(nn.Module):
    """A denoiser that is a network of diffusers: x (B, C, H, W), sigma () or (B,), and labels (B,) -> E[x0 | x, sigma].

    What a variance-preserving network knows as x_t = alpha (x0 + sigma n) is alpha x here, with
    sigma = sqrt(1 - abar) / sqrt(abar) and alpha = 1 / sqrt(1 + sigma^2): exact at every level. Its timestep is that of
    the scheduler at the scheduler's own levels; between two of them log sigma is linear in the timestep, which is then
    no whole number, and beyond the first and the last it stays at theirs.

    Args:
        unet: a ``UNet2DModel``.
        scalings: one of :data:`SCALINGS`.
        levels: (T,) float64, sigma at the timesteps 0 to T - 1, rising; empty where the network takes sigma itself.
        options: of the scalings.
        recipe: what else makes this function, as JSON; by default it is put together here.
    """

    def __init__(
        self,
        unet: nn.Module,
        scalings: Callable[..., Scalings],
        levels: Tensor,
        options: dict[str, float] | None = None,
        recipe: str | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.scalings = unet, partial(scalings, **options or {})
        self.register_buffer("log_levels", levels.log())
        # A run is named by the hash of its tensors; what else makes this function is therefore one of them.
        parts = [scalings.__name__, dict(unet.config), *([options] if options else [])]
        recipe = recipe or json.dumps(parts, sort_keys=True, default=str)
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
        return denoised(answer, x, c)

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
    name, about, *options = json.loads(recipe)
    unet = _library("the file", "made of a folder of diffusers").UNet2DModel.from_config(about).float()
    return Unet(
        unet, (PREDICTIONS | SCALINGS)[name], torch.ones(timesteps, dtype=torch.float64), *options, recipe=recipe
    )


def files(path: str | Path) -> list[Path]:
    """Return the files of a folder that make its denoiser."""
    path = Path(path)
    folder = diffusers_folder.network_folder(path)
    weights = diffusers_folder.weights_of(folder)
    found = [path / "model_index.json", folder / "config.json", *([weights.index] if weights.index else [])]
    found += [*weights.files, diffusers_folder.scheduler_file(path, folder)]
    return [file for file in found if file.is_file()]


def read(path: str | Path, config: str | Path | dict[str, Any] | None = None) -> tuple[Unet, dict[str, Any]]:
    """Return the network of a folder in float32, and its card.

    The card's levels are the scheduler's; its data_range is (0, 1) with ``ScoreSdeVeScheduler`` and (-1, 1) with all
    others. What a scheduler does when it samples (clipping, thresholding, spacing) is no part of the denoiser.

    Args:
        path: the folder; of weights in several forms :mod:`dmcmc_core.checkpoints.diffusers_folder` takes one.
        config: the configuration of the scheduler, a dict or a JSON or YAML file, instead of the one found with the
            folder.

    Raises:
        UserError: for a folder without what is named above, a file that is truncated or no JSON, a network, scheduler,
            prediction or time embedding that is not known here, tensors that do not fit, or a missing library.
    """
    path = Path(path)
    if (path / "model_index.json").is_file():
        _check_pipeline(path)
    folder = diffusers_folder.network_folder(path)
    about = renewed(json_object(folder / "config.json"), OLD_NETWORK_KEYS, str(folder / "config.json"))
    _known("network", about.get("_class_name"), [UNET_2D], folder / "config.json")
    steps, place = _steps(path, folder, config)
    kind = steps.get("_class_name")
    _known("scheduler", kind, [EXPLODING, *EDM, *PRESERVING, *PARTICULAR], place)
    weights = diffusers_folder.weights_of(folder)
    held = diffusers_folder.shapes(weights)  # whether they are whole
    library = _library(path)
    scheduler = scheduler_of(steps, library, path, _by_library)
    check_network(about, steps, library, str(folder / "config.json"))
    if config is None and (path / "model_index.json").is_file():
        check_index(json_object(path / "model_index.json"), steps, str(path / "model_index.json"))
    where, levels, options = f"the scheduler of {path}", torch.empty(0, dtype=torch.float64), {}
    if family(kind) == "preserving":
        scalings, levels = PREDICTIONS[prediction(scheduler, PREDICTIONS, where)], levels_of(scheduler, path)
        low, high = levels[0].item(), levels[-1].item()
    else:
        low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
        scalings = score
        if kind in EDM:
            scalings = EDM_PREDICTIONS[prediction(scheduler, EDM_PREDICTIONS, where)]
            options = edm_options(scheduler, path)
    shape_alone = _check_size(library, about, folder, weights, held)
    unet = _network(library, about, folder, weights, shape_alone)
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
    net = Unet(unet, scalings, levels, options)
    with without_memory():  # arguments that the library takes and then cannot compute with
        _by_library(lambda unet: _ask(unet, net.shape), shape_alone, f"an answer of the network of {folder}")
    return net, card


def _steps(path: Path, folder: Path, config: str | Path | dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return the configuration of the scheduler, and what errors call its place."""
    if isinstance(config, dict):
        return config, "config"
    if config is not None:
        return read_mapping(config, f"config {config}"), str(config)
    file = diffusers_folder.scheduler_file(path, folder)
    return json_object(file), str(file)


def _ask(unet: nn.Module, shape: tuple[int, int, int]) -> Any:
    labels = None if unet.config.num_class_embeds is None else torch.zeros(1, dtype=torch.int64)
    return unet(torch.ones(1, *shape), torch.ones(1), labels)


def _check_pipeline(path: Path) -> None:
    """Raise UserError for a pipeline that makes its images from more than a network and a scheduler."""
    parts = {k: v for k, v in json_object(path / "model_index.json").items() if not k.startswith("_")}
    known = (*diffusers_folder.AVERAGED, "scheduler")
    more = sorted(k for k, v in parts.items() if k not in known and isinstance(v, list) and any(v))
    if not parts.keys() & {*diffusers_folder.AVERAGED} or more:
        found = f"has a part {more[0]!r}" if more else "has no 'unet'"
        raise UserError(f"the pipeline {path} {found}; pipelines of a unet and a scheduler alone can be read")


def _known(what: str, name: Any, names: list[str], where: Any) -> None:
    """Raise UserError for a class that is not among those of ``names``; one that the library has is no misspelling."""
    if isinstance(name, str) and name in names:
        return
    if name in CONSISTENCY:
        raise UserError(f"{where} names {name}, which goes with consistency models: they answer with no posterior mean")
    raise unknown(f"{what} in {where},", name, names, guess=not _has(name))


def _has(name: Any) -> bool:
    try:
        import diffusers
    except ImportError:
        return False
    return isinstance(name, str) and hasattr(diffusers, name)


def _library(path: Path | str, what: str = "a folder of diffusers") -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"{path} is {what}, and that library is missing: pip install 'dmcmc-core[diffusers]'"
        ) from error
    return diffusers


def _by_library(make: Callable[..., Any], given: Any, what: str) -> Any:
    """Return what the library makes of ``given``; its errors, of any type, become a UserError of one sentence."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of keys that it ignores: check_network and scheduler_of have seen to them
    try:
        return make(given)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} cannot be made by diffusers: {why[:300]}") from error
    finally:
        logger.setLevel(level)


def _check_size(
    library: Any, about: dict[str, Any], folder: Path, weights: Weights, held: dict[str, tuple[int, ...]]
) -> nn.Module:
    """Return the network without numbers; UserError for one of more numbers than the file of its weights has."""
    layers = about.get("layers_per_block", 2)
    for number in layers if isinstance(layers, list) else [layers]:
        check_whole(f"layers_per_block in {folder / 'config.json'}", number, 1, 64)
    with without_memory():
        unet = _by_library(library.UNet2DModel.from_config, about, f"the network of {folder}")
    numbers = sum(math.prod(shape) for shape in held.values())
    needed = sum(tensor.numel() for tensor in unet.state_dict().values())
    if needed > 2 * numbers + 10**6:
        raise UserError(f"{weights.name} holds {numbers:,} numbers, the network of its config.json {needed:,}")
    return unet


def _network(library: Any, about: dict[str, Any], folder: Path, weights: Weights, shape_alone: nn.Module) -> nn.Module:
    """Return the filled network, in float32."""
    wanted = shape_alone.state_dict()
    tensors = _renamed(diffusers_folder.tensors(weights), wanted, weights)
    for fault, names in (("missing", wanted.keys() - tensors.keys()), ("unexpected", tensors.keys() - wanted.keys())):
        for name in sorted(names):
            raise UserError(f"{weights.name} does not fit its config.json: tensor {name!r} is {fault}")
    for name, tensor in tensors.items():
        check_numbers(tensor, name, weights.name)
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"the network of {folder} cannot be made: tensor {name!r} of {weights.name} has shape "
                f"{tuple(tensor.shape)}, its config.json needs {tuple(wanted[name].shape)}"
            )
    unet = _by_library(library.UNet2DModel.from_config, about, f"the network of {folder}").float()
    unet.load_state_dict(tensors)
    for name, tensor in unet.state_dict().items():
        check_finite(tensor, name, weights.name)
    about = unet.config
    if about.sample_size is None:
        raise UserError(f"{folder / 'config.json'} does not tell the size of the images: give it as sample_size")
    if about.out_channels not in (about.in_channels, 2 * about.in_channels):
        raise UserError(f"the network of {folder} makes {about.out_channels} channels of {about.in_channels}")
    if about.time_embedding_type == "learned" or about.class_embed_type is not None:
        raise UserError(f"the network of {folder} has a learned time embedding or class_embed_type, which is not known")
    return unet.eval()


def _renamed(found: dict[str, Tensor], wanted: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """Return tensors by the names that the library has for them today; UserError for two of one name that differ."""
    tensors: dict[str, Tensor] = {}
    for old, tensor in found.items():
        name = _name(old, wanted)
        kept = tensors.setdefault(name, tensor)
        if kept is not tensor and not _same(kept, tensor):
            raise UserError(f"{weights.name} holds tensor {name!r} under an old name too, with other numbers")
    return tensors


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same bytes, of dtypes that are never compared too."""
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))


def _name(name: str, wanted: dict[str, Tensor]) -> str:
    """Return the name that a tensor has in the library today."""
    *parts, leaf = name.split(".")
    first, layers = (OLDER_BLOCKS.get(part, part) for part in parts[:1]), (OLDER.get(part, part) for part in parts[1:])
    newer = ".".join([*first, *layers, leaf])
    return newer if name not in wanted and newer in wanted else name
