"""The catalogue: which networks ship, lie below exp/ or are published, and where these go. It needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmcmc_core.checkpoints.card import EPSILON, FOREIGN, read_card
from dmcmc_core.nets.shipped import NETS

SHIPPED = {"digits": "score", "glyphs32": "score", "digits-ddpm": "discrete", "glyphs32-ddpm": "discrete"}
"""Score networks that ship, and the kind of their training."""
EXACT = ("glyphs32-exact", "digits-mixture", "glyphs32-mixture")
"""Exact models, computed from images: the ideal denoiser of the glyphs, and mixtures of low-rank Gaussians."""
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file of a folder of diffusers that holds the weights; those of variants and shards begin and end like it."""
DIFFUSERS_STEM = DIFFUSERS_WEIGHTS.removesuffix(".safetensors")


def is_epsilon(path: Path) -> bool:
    """Tell whether a safetensors file holds the network of a linear diffusion."""
    return read_card(path).get("architecture") in EPSILON


def epsilon_names() -> list[str]:
    """Return the names of the networks of linear diffusions that ship, sorted."""
    return [path.stem for path in sorted(NETS.glob("*.safetensors")) if is_epsilon(path)]


def shipped_epsilon(name: str) -> Path | None:
    """Return the file of the network of a linear diffusion of this name, if one ships."""
    path = NETS / f"{name}.safetensors"
    return path if name not in (*SHIPPED, *EXACT) and path.is_file() and is_epsilon(path) else None


def known(root: Path) -> list[dict[str, Any]]:
    """Return models that ship, files under ``root``/exp, and published ones: rows of ``name``, ``here`` and ``about``.

    Raises:
        UserError: for a safetensors file of ours under ``root``/exp that is truncated or whose card is damaged.
    """
    return [*_shipped(), *_files(root), *_folders(root), *_published(root)]


def _row(name: str, about: str, here: bool = True) -> dict[str, Any]:
    return {"name": name, "here": here, "about": about}


def _shipped() -> list[dict[str, Any]]:
    rows = [_row(name, "ships with this project") for name in (*SHIPPED, *EXACT)]
    about = "ships, of a linear diffusion: load_epsilon, sample --sampler gddim"
    return rows + [_row(name, about) for name in epsilon_names()]


def _files(root: Path) -> list[dict[str, Any]]:
    """Return single files that are not at the place of a published one."""
    from dmcmc_core.checkpoints import published  # here, as what ships loads without its configurations

    places = {str(root / path) for path in [*published.FILES.values(), *published.CLASSIFIERS.values()]}
    rows = []
    for path in sorted((root / "exp").rglob("*")):
        own = path.suffix == ".safetensors" and NETS not in path.parents and not _of_diffusers(path)
        if (own or path.suffix in FOREIGN) and str(path) not in places:
            about = read_card(path).get("architecture", "without a card") if own else FOREIGN[path.suffix]
            rows.append(_row(str(path.relative_to(root)), about))
    return rows


def _folders(root: Path) -> list[dict[str, Any]]:
    folders = {}
    for path in sorted((root / "exp").rglob(f"{DIFFUSERS_STEM}*.safetensors")):
        folder = path.parent.parent if path.parent.name in ("unet", "unet_ema") else path.parent
        folders[folder] = _row(str(folder.relative_to(root)), "a folder of diffusers")
    return list(folders.values())


def _of_diffusers(path: Path) -> bool:
    return path.name.startswith(DIFFUSERS_STEM)


def _published(root: Path) -> list[dict[str, Any]]:
    from dmcmc_core.checkpoints import published, published_edm2

    rows = []
    for names, title, origin in (
        (published.FILES, "{}", published.origin),
        (published.CLASSIFIERS, "noise-level classifier of {}", lambda _: published.AUTHORS),
    ):
        for name, path in names.items():
            here = (root / path).is_file()
            about = path if here else f"goes to {path}, comes from {origin(name)}"
            if name in published_edm2.GUIDES:
                about += "; with guide={} and guidance={:g}".format(*published_edm2.GUIDES[name])
            rows.append(_row(title.format(name), about, here))
    return rows
