"""Images in one call: of a network in memory, a name or a file, by any sampler, with cost and recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import checkpoints
from dmcmc_core.denoiser import Adapter
from dmcmc_core.errors import LOG, UserError, native, number
from dmcmc_core.fingerprint import UNNAMED, fingerprint, named
from dmcmc_core.runs import folder
from dmcmc_core.runs.fitting import solver_file
from dmcmc_core.runs.kinds import split
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import Model, check_model, device_of
from dmcmc_core.runs.pictures import check_pictures, save_png, side_by_side
from dmcmc_core.runs.settings import ELSEWHERE, LINEAR_SAMPLERS, SEARCHES
from dmcmc_core.runs.tuning import AUTO_OR_PLAIN, auto
from dmcmc_core.samplers import FITTED
from dmcmc_core.shapes import check_image_shape

IN_A_GRID = 64
"""Images of a grid at most."""
HERE = {"nfe": "nfe, the budget in network evaluations", "num": "n"}
NOT_HERE = {name: HERE.get(own, own) for name, own in (*ELSEWHERE.items(), ("num", "num"))}
"""Names that others, the command line among them, have for arguments of :func:`sample` -> what they are here."""


class Images(Tensor):
    """Images (n, C, H, W) float32 in ``data_range``, of 256 levels as files hold them; what is computed of them is a
    plain tensor.

    Attributes:
        data_range: smallest and largest value of clean data.
        manifest: of the run: its recipe, ``plan``, ``nfe_full``, ``rows``, versions.
    """

    data_range: tuple[float, float]
    manifest: dict[str, Any]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def nfe(self) -> float:
        """Network evaluations of an image, everything counted."""
        return self.manifest["nfe_full"]

    @property
    def recipe(self) -> dict[str, Any]:
        """What makes these images again: ``sample(**images.recipe)``, for a model that has a name."""
        manifest, asked = self.manifest, self.manifest["asked"]
        about = {"model": manifest["model"], "sampler": asked["sampler"], "nfe": manifest["nfe"]}
        return about | {"n": manifest["num"], "seed": manifest["seed"]} | asked["settings"]

    def __getitem__(self, index: Any) -> Tensor:
        """Return some of the images, as ``Images``, or what else is asked for, as a plain tensor."""
        some = self.as_subclass(Tensor)[index]
        return self._with(some) if some.ndim == self.ndim and some.shape[1:] == self.shape[1:] else some

    def __deepcopy__(self, memo: dict[int, Any]) -> Images:
        return self._with(self.as_subclass(Tensor).clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What is pickled, and saved by ``torch.save``, is a plain tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def _with(self, images: Tensor) -> Images:
        some = images.as_subclass(Images)
        some.data_range, some.manifest = self.data_range, self.manifest
        return some

    def grid(self) -> np.ndarray:
        """Return the first images side by side, (H, W, C) uint8, at least 512 pixels wide or high.

        Raises:
            UserError: for latents, and channels that make no picture.
        """
        check_pictures(self.shape[1], self.manifest.get("encoder"))
        low, high = self.data_range
        unit = (torch.as_tensor(self[:IN_A_GRID]) - low) / (high - low)
        return side_by_side(list((unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()))

    def save(self, path: str | Path) -> Path:
        """Write the grid as a PNG file, which is replaced only once the new one is whole; return its path."""
        if not isinstance(path, str | Path):
            raise UserError(f"images are saved to a path, such as 'x.png', not {path!r:.60}")
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UserError(f"images are saved as PNG: name a file that ends in .png, not {str(path)!r}")
        save_png(path, self.grid())
        return path

    def show(self) -> Any:
        """Show the grid in a notebook; elsewhere return it as a picture of Pillow."""
        from PIL import Image

        grid = self.grid()
        picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            return picture
        if get_ipython() is None:
            return picture
        display(picture)
        return None


def sample(  # noqa: PLR0913  all that a run may be told
    model: Any,
    sampler: str,
    nfe: float = 10,
    n: int = 16,
    seed: int = 0,
    *,
    shape: tuple[int, ...] | None = None,
    data_range: tuple[float, float] | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    **settings: Any,
) -> Images:
    """Return images, the same ones as the command ``sample`` writes.

    Args:
        model: a name or a file, as of :func:`dmcmc_core.load_model`; a denoiser; a pipeline of diffusers; or, with
            ``shape``, a network or function (x, sigma) -> x0.
        sampler: a name, ``fitted``, ``auto``, ``dlg+NAME``, ``dlg+auto``, or one of a linear diffusion.
        nfe: network evaluations per image at most, everything counted.
        n: images.
        seed: at least 0; image i of a recipe and a seed is always the same.
        shape, data_range: of one image and of clean data, for a bare network or function; data_range is (0, 1) there
            unless told.
        device: of a model that is named ("cpu" unless told); one in memory is where it is.
        progress: whether a bar is shown.
        settings: as ``--set`` of the command: options of the integrator and of chains, class, guidance, levels.

    Raises:
        UserError: as :func:`dmcmc_core.runs.make.run`; for a model that is none of these.
    """
    n, seed, nfe = number("n", n, least=1, whole=True), number("seed", seed, least=0, whole=True), native(nfe)
    if sampler not in (*SEARCHES, *LINEAR_SAMPLERS):
        split(sampler)  # a wrong name should not wait for the model
    for name in settings:
        if name in NOT_HERE:
            raise UserError(f"{name} is no argument here: use {NOT_HERE[name]}")
    if shape is not None:
        check_image_shape(shape)
        if len(shape) != 3:
            raise UserError(
                f"images have three numbers, channels, height and width: shape must be like (3, 32, 32), not {shape}"
            )
    ends = {name: settings.pop(name) for name in ("sigma_min", "sigma_max") if name in settings and shape is not None}
    model = denoiser_of(model, shape, data_range, device, ends)
    return drawn(model, sampler, nfe, n, seed, settings, progress=progress)


def drawn(  # noqa: PLR0913  a recipe
    model: Model, sampler: str, nfe: float, n: int, seed: int, settings: dict[str, Any], **how: Any
) -> Images:
    """Return the images of a recipe; see :func:`sample`.

    Args:
        model: of :func:`denoiser_of`.
        how: ``progress``, ``watch`` and ``chains_dir`` of :func:`dmcmc_core.runs.make.run`, of which no image depends.
    """
    with tempfile.TemporaryDirectory() as temporary:
        kept = {"cache_dir": temporary} if fingerprint(model).startswith(UNNAMED) else {}
        sampler, settings = settled(model, sampler, nfe, n, settings, say=LOG.info, **kept)
        out = Path(temporary) / "run"
        manifest = run(model, sampler, nfe, n, seed, out, settings, alone=True, **{"progress": False} | how)
        images = folder.load_images(out).as_subclass(Images)
    images.data_range = tuple(manifest["data_range"])
    images.manifest = manifest
    return images


def settled(  # noqa: PLR0913  a run as it is asked for
    model: Model,
    sampler: str,
    nfe: float,
    num: int,
    settings: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    **kept: Any,
) -> tuple[str, dict[str, Any]]:
    """Return sampler and settings once what has to be found for them is found: by trial, or by a fit.

    ``kept`` is ``cache_dir`` of a search and of a fit, and ``path`` of a search, see :func:`tuning.auto`.
    """
    if sampler in SEARCHES:
        tuned = auto(model, nfe, num, settings, plain=sampler == AUTO_OR_PLAIN, say=say, **kept)
        say(str(tuned))
        return tuned.sampler, tuned.settings
    if sampler in (FITTED.name, f"dlg+{FITTED.name}") and "file" not in settings:
        where = {"sampler": sampler, "num": num, "cache_dir": kept.get("cache_dir")}
        return sampler, settings | {"file": str(solver_file(model, nfe, settings, say=say, **where))}
    return sampler, settings


def denoiser_of(
    model: Any,
    shape: Any = None,
    data_range: Any = None,
    device: str | None = None,
    ends: dict[str, float] | None = None,
) -> Any:
    """Return the denoiser that a model is, or that is made of it; arguments as of :func:`sample`."""
    if isinstance(model, str | Path):
        model = checkpoints.load(model, device or "cpu")
    elif hasattr(model, "save_pretrained") and hasattr(model, "scheduler"):
        with tempfile.TemporaryDirectory() as temporary:  # one reader for what is in memory and on disk
            folder_of_it = Path(temporary) / type(model).__name__  # which names its runs
            model.save_pretrained(folder_of_it)
            model = checkpoints.load_model(folder_of_it, device or "cpu")
    elif hasattr(model, "save_pretrained") and not hasattr(model, "sigma_max"):
        raise UserError(
            f"the model, a {type(model).__name__} of diffusers, does not tell its diffusion: give its pipeline, or "
            "Adapter.from_ddpm(unet, scheduler.alphas_cumprod, predicts=, shape=)"
        )
    elif shape is not None and not hasattr(model, "sigma_max"):
        model = Adapter(model, tuple(shape), (0.0, 1.0) if data_range is None else data_range, **(ends or {}))
        _check_here(model, device)
        return named(model)
    else:
        check_model(model)
        _check_here(model, device)
    if shape is not None or data_range is not None:
        raise UserError("this model knows its shape and its data_range: leave them out")
    check_model(model)
    return named(model)


def _check_here(model: Any, device: Any) -> None:
    """Raise UserError for a device that a model in memory is not on."""
    if device is None:
        return
    checkpoints.check_device(device)
    asked, own = torch.device(device), device_of(model)
    if asked.type != own.type or asked.index not in (None, own.index):
        raise UserError(f"this model computes on {own}, where its weights are, not on {asked}: move those, by to()")
