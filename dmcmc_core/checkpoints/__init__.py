"""Networks on disk, ours and others': a checkpoint is data, never code.

Ours are safetensors with the model card (JSON) in the file's metadata. Files of score_sde and EDM are read by
:mod:`dmcmc_core.checkpoints.score_sde`, :mod:`dmcmc_core.checkpoints.flax` and :mod:`dmcmc_core.checkpoints.edm`, and
:func:`convert` makes ours of them. Folders of diffusers are read by :mod:`dmcmc_core.checkpoints.diffusers`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dmcmc_core.checkpoints.content import ENDS, check_card, check_finite, check_numbers, sentence, without_memory
from dmcmc_core.denoiser import BLOCK, Adapter, Denoiser, InBlocks
from dmcmc_core.errors import Absent, UserError, unknown
from dmcmc_core.nets import features, linear, noise_level, unet
from dmcmc_core.nets.preconditioning import NO_CLASS, Preconditioned

NETS = Path(__file__).resolve().parents[2] / "exp" / "nets"
"""Where the shipped networks lie."""

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": unet.Denoiser,
    "noise-level-published": noise_level.PublishedClassifier,
    "noise-level-light": noise_level.LightClassifier,
    "digits-cnn": features.DigitsCNN,
    "glyphs-cnn": features.GlyphsCNN,
    "preconditioned": Preconditioned,
    "epsilon": linear.EpsilonNet,
    "epsilon-published": linear.PublishedEpsilonNet,
}
_DIFFUSERS = "UNet2DModel"
"""Architecture of what was a folder of diffusers; that library makes it."""
_SCORE_NETWORKS = ("unet", "preconditioned", _DIFFUSERS)
_EPSILON = ("epsilon", "epsilon-published")
_FOREIGN = {
    ".pth": "a PyTorch file",
    ".pt": "a PyTorch file",
    ".pkl": "a pickle",
    ".ckpt": "a PyTorch Lightning file",
    ".bin": "a PyTorch file of diffusers",
}


def save(module: nn.Module, path: str | Path, card: dict) -> None:
    """Write a network and its card; a file of that name is only replaced once the new one is whole.

    Args:
        module: of one of ``ARCHITECTURES``, with a ``config`` that makes it again.
        path: ends in .safetensors.
        card: what is known about it (JSON); ``architecture``, ``config`` and ``parameters`` are added.
    """
    from safetensors.torch import save_file

    name = next((key for key, made in ARCHITECTURES.items() if type(module) is made), _DIFFUSERS)
    parameters = sum(p.numel() for p in module.parameters())
    card = {**card, "architecture": name, "config": module.config, "parameters": parameters}
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    temporary = Path(f"{path}.part")
    save_file(tensors, temporary, metadata={"card": json.dumps(card)})
    temporary.chmod(0o644)
    os.replace(temporary, path)


def read_card(path: str | Path) -> dict:
    """The model card of a safetensors file, without reading the tensors.

    Raises:
        UserError: for a file that is missing, truncated, of another kind, or carries no card.
    """
    return _read(Path(path), tensors=False)[0]


def load_model(name_or_path: str | Path, device: str = "cpu", config: str | Path | dict | None = None) -> Denoiser:
    """A denoiser by name (``digits``, ``glyphs32``, ``glyphs32-exact``) or from a file.

    Args:
        name_or_path: a name of ``MODELS``, or the path of a safetensors file written by :func:`save`, of a checkpoint
            of score_sde (``.pth``, or Flax's without an ending), of a pickle of EDM (``.pkl``), or of a folder of
            diffusers (see :func:`dmcmc_core.checkpoints.diffusers.read`).
        device: where to compute.
        config: for a checkpoint of score_sde, which carries none, its configuration: a name of
            :data:`dmcmc_core.checkpoints.published.CONFIGS`, or a dict, a JSON or a YAML file of its sections; by
            default the file of the same name that ends in ``.json``, or the published one of the file's place (see
            :data:`dmcmc_core.checkpoints.published.FILES`). For a safetensors file without a card the card:
            ``architecture``, ``config``, ``sigma_min``, ``sigma_max``, ``data_range``, and optionally ``name``.
            For a folder of diffusers the configuration of its scheduler, if not the one in it.

    Returns:
        A denoiser with ``shape``, ``data_range``, ``sigma_min``, ``sigma_max``, ``mean`` (*shape; None where the file
        does not tell), ``card``, ``name``. A network is in eval mode, without gradients for its weights, and evaluated
        in blocks of 64 rows; one with ``classes`` takes ``labels``, and :class:`dmcmc_core.guidance.Conditioned` holds
        it to one of them.

    Raises:
        UserError: for an unknown name, and for a file that is missing, truncated, of another format, or whose tensors
            do not fit the architecture that its card names.
    """
    from dmcmc_core.checkpoints import published

    check_device(device)
    name = str(name_or_path)
    if name in MODELS:
        if config is not None:
            raise UserError(f"config is for files without a card; the model {name!r} has one")
        return MODELS[name](device)
    if name in published.FILES:
        name = str(published.place_of(name))
    if Path(name).is_dir():
        from dmcmc_core.checkpoints import diffusers

        net, card = diffusers.read(name, config)
        check_card(card, Path(name))
        return _denoiser(_ready(net, device), card)
    path = _shipped_epsilon(name) or _file(name, [*MODELS, *published.FILES], "model")
    foreign = _is_foreign(path)
    held = None if foreign else _read(path, tensors=False)[0].get("architecture")
    if held in tuple(ARCHITECTURES) and held not in _SCORE_NETWORKS:
        why = ": dmcmc_core.checkpoints.load_epsilon takes it" if held in _EPSILON else ""
        raise UserError(f"{name} holds {held!r}, which is no score network{why}")
    net, card = (_foreign if foreign else _network)(path, device, config)
    if card["architecture"] not in _SCORE_NETWORKS:
        raise UserError(f"{name} holds {card['architecture']!r}, which is no score network")
    return _denoiser(net, card)


def check_device(name: str | torch.device) -> None:
    """UserError for a device that torch does not know or that is not here."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(name)!r} cannot be used here: {sentence(error)}") from None


def convert(source: str | Path, path: str | Path, config: str | Path | dict | None = None) -> dict:
    """Write a checkpoint of score_sde, EDM or diffusers as safetensors, its card and the source's SHA-256 inside.

    The SHA-256 of a folder is that of one line ``digest  name`` for each of the files that make its denoiser.

    Args:
        source, config: as for :func:`load_model`.
        path: ends in .safetensors; a file of that name is only replaced once the new one is whole.

    Returns:
        The card.

    Raises:
        UserError: for what :func:`load_model` refuses, or another ending; nothing is written then.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"the converted file must end in .safetensors, not {str(path)!r}")
    if Path(source).is_dir():
        from dmcmc_core.checkpoints import diffusers

        source = Path(source)
        net, card = diffusers.read(source, config)
        check_card(card, source)
        lines = [f"{_sha256(file)}  {os.path.relpath(file, source)}\n" for file in diffusers.files(source)]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    else:
        source = _file(str(source), MODELS, "model")
        if not _is_foreign(source):
            raise UserError(
                f"{source} is no checkpoint to convert: a .pth, a .pkl, a file of Flax or a folder of diffusers is"
            )
        net, card = _foreign(source, "cpu", config)
        digest = _sha256(source)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save(net, path, card | {"name": Path(path).stem, "source": source.name, "source_sha256": digest})
    return read_card(path)


def _is_foreign(path: Path) -> bool:
    return path.suffix in _FOREIGN or _is_flax(path)


def _is_flax(path: Path) -> bool:
    """Flax's files have no ending (``checkpoint_15``)."""
    from dmcmc_core.checkpoints import flax

    return path.suffix not in (".safetensors", *_FOREIGN) and flax.is_one(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known(root: Path) -> list[dict]:
    """Models that ship, files under ``root``/exp, and published ones: rows of ``name``, ``here`` and ``about``."""
    from dmcmc_core.checkpoints import published

    rows = [{"name": name, "here": True, "about": "ships with this project"} for name in MODELS]
    ours = [path.stem for path in sorted(NETS.glob("*.safetensors")) if _is_epsilon(path)]
    rows += [
        {"name": name, "here": True, "about": "ships, of a linear diffusion: load_epsilon, sample --sampler gddim"}
        for name in ours
    ]
    waiting = {str(root / path) for path in [*published.FILES.values(), *published.CLASSIFIERS.values()]}
    for path in sorted((root / "exp").rglob("*")):
        own = (
            path.suffix == ".safetensors"
            and NETS not in path.parents
            and path.name != "diffusion_pytorch_model.safetensors"
        )
        if (own or path.suffix in (".pth", ".pkl")) and str(path) not in waiting:
            about = read_card(path).get("architecture", "without a card") if own else _FOREIGN[path.suffix]
            rows.append({"name": str(path.relative_to(root)), "here": True, "about": about})
    for path in sorted((root / "exp").rglob("diffusion_pytorch_model.safetensors")):
        folder = path.parent.parent if path.parent.name == "unet" else path.parent
        rows.append({"name": str(folder.relative_to(root)), "here": True, "about": "a folder of diffusers"})
    for name, path in published.FILES.items():
        here = (root / path).is_file()
        about = path if here else f"goes to {path}, comes from {published.SONG}"
        rows.append({"name": name, "here": here, "about": about})
    for name, path in published.CLASSIFIERS.items():
        here = (root / path).is_file()
        about = path if here else f"goes to {path}, comes from {published.AUTHORS}"
        rows.append({"name": f"noise-level classifier of {name}", "here": here, "about": about})
    return rows


def load(name_or_path: str | Path, device: str = "cpu") -> Denoiser | linear.EpsilonNet | linear.PublishedEpsilonNet:
    """What :func:`load_model` loads, or :func:`load_epsilon` where the name or file is of a linear diffusion."""
    path = _shipped_epsilon(str(name_or_path)) or Path(name_or_path)
    ours = path.suffix == ".safetensors" and path.is_file() and path.stat().st_size
    return (load_epsilon if ours and _is_epsilon(path) else load_model)(name_or_path, device)


def _shipped_epsilon(name: str) -> Path | None:
    path = NETS / f"{name}.safetensors"
    return path if name not in MODELS and path.is_file() and _is_epsilon(path) else None


def load_epsilon(
    name_or_path: str | Path, device: str = "cpu", config: str | Path | dict | None = None
) -> linear.EpsilonNet | linear.PublishedEpsilonNet:
    """The network of a linear diffusion, by name (``digits-cld``, ``digits-bdm``, ``digits-vp``) or from a file.

    Args:
        config: of a checkpoint of Flax, see :func:`dmcmc_core.checkpoints.flax.build`; else the file beside it.

    Returns:
        (u, t) -> epsilon in eval mode, evaluated in blocks of 64 rows, with ``sde``, ``shape`` (C, H, W) of its images,
        ``state_shape``, ``data_range`` and ``card``.

    Raises:
        UserError: as :func:`load_model`.
    """
    check_device(device)
    known = [path.stem for path in sorted(NETS.glob("*.safetensors")) if _is_epsilon(path)]
    name = str(name_or_path)
    path = NETS / f"{name}.safetensors" if name in known else _file(name, known, "network of a linear diffusion")
    net, card = (_foreign if _is_flax(path) else _network)(path, device, config)
    if card["architecture"] not in _EPSILON:
        raise UserError(f"{path} holds {card['architecture']!r}, which is no network of a linear diffusion")
    net.card, net.data_range = card, tuple(card["data_range"])
    return net


def _is_epsilon(path: Path) -> bool:
    return read_card(path).get("architecture") in _EPSILON


def load_noise_level(
    name_or_path: str | Path, device: str = "cpu", like: Denoiser | None = None
) -> tuple[nn.Module, Tensor, dict]:
    """A noise-level classifier by the name of its model (``digits``), from a safetensors file, or one of the authors'.

    Args:
        like: the model that it serves, whose shape and noise levels a file of the authors (``.pth``) does not tell;
            that file is also found by the name of a published model.

    Returns:
        The network (B, *shape) -> (B, 1000) logits in eval mode; the levels (1000,) float64, descending from sigma_max;
        and the card.

    Raises:
        UserError: as :func:`load_model`.
    """
    from dmcmc_core import data
    from dmcmc_core.checkpoints import published

    name = str(name_or_path)
    path = NETS / f"{name}-noise-level.safetensors"
    if name in published.CLASSIFIERS:
        path = data.root() / published.CLASSIFIERS[name]
        if not path.is_file():
            origin = published.AUTHORS
            raise Absent(f"the noise-level classifier of {name} is not here: it goes to {path}, comes from {origin}")
    elif not path.is_file() or os.sep in name:
        known = [p.name.removesuffix("-noise-level.safetensors") for p in NETS.glob("*-noise-level.safetensors")]
        path = _file(name, known, "noise-level classifier")
    net, card = _published_classifier(path, device, like) if path.suffix == ".pth" else _network(path, device, None)
    if not card["architecture"].startswith("noise-level"):
        raise UserError(f"{path} holds {card['architecture']!r}, which is no noise-level classifier")
    return net, noise_level.log_levels(card["sigma_max"], card["sigma_min"], net.config["n_levels"]).to(device), card


def _published_classifier(path: Path, device: str, like: Denoiser | None) -> tuple[nn.Module, dict]:
    """The authors' file: ``epoch``, ``opt`` and ``net``, whose ten tensors come in the order of the layers."""
    from dmcmc_core.checkpoints import score_sde

    strides = {32: (2, 2, 2, 2), 256: (4, 4, 4, 2)}.get(like.shape[-1] if like is not None else None)
    if strides is None:
        raise UserError(
            f"{path} does not tell for images of which size it is: give the model that it serves, of 32 or 256 pixels"
        )
    content = score_sde.load(path)
    found = content.get("net") if isinstance(content, dict) else None
    net = noise_level.PublishedClassifier(like.shape, strides=strides)
    own = net.state_dict()
    tensors = list(found.values()) if isinstance(found, dict) else []
    if [getattr(t, "shape", None) for t in tensors] != [t.shape for t in own.values()]:
        raise UserError(f"{path} is not a noise-level classifier of DMCMC: it needs {len(own)} tensors under 'net'")
    for key, name, tensor in zip(own, found, tensors, strict=True):
        check_numbers(tensor, str(name), path)
        own[key].copy_(tensor)
        check_finite(own[key], str(name), path)
    card = {"architecture": "noise-level-published", "sigma_min": like.sigma_min, "sigma_max": like.sigma_max}
    card |= {"name": path.stem, "epoch": content.get("epoch")}
    return net.to(device).eval().requires_grad_(False), card


def _file(name: str, names, kind: str) -> Path:
    """The path meant by ``name``, or the error that says what was looked for."""
    path = Path(name)
    if path.is_file():
        if not path.stat().st_size:
            raise UserError(f"{name} is an empty file")
        return path
    if path.suffix in {".safetensors", *_FOREIGN} or os.sep in name:
        raise Absent(f"no such file: {name}")
    raise Absent(str(unknown(kind, name, names)))


def _read(path: Path, tensors: bool = True) -> tuple[dict, dict[str, Tensor]]:
    """Card (empty if there is none) and tensors of a safetensors file."""
    from safetensors import safe_open

    if path.suffix in _FOREIGN:
        raise UserError(f"{path} is {_FOREIGN[path.suffix]}, and a safetensors file is needed here")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118
    except Exception as error:  # whatever a broken file brings about
        raise UserError(
            f"{path} cannot be read as safetensors, it is truncated or of another format: {sentence(error)}"
        ) from error
    try:
        card = json.loads(metadata.get("card", "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the model card inside {path} is not JSON: {sentence(error)}") from error
    if not isinstance(card, dict):
        raise UserError(f"the model card inside {path} must be a JSON object, not a {type(card).__name__}")
    return card, content


def _network(path: Path, device: str, config) -> tuple[nn.Module, dict]:
    """The network of a file on ``device``, in eval mode and without gradients; and its card."""
    card, tensors = _read(path)
    if card and config is not None:
        raise UserError(f"{path} carries its own card; config is for files without one")
    if not card and config is None:
        raise UserError(
            f"{path} carries no model card; name architecture, sigma_min, sigma_max and data_range by config"
        )
    card = card or _read_config(config)
    card.setdefault("name", path.stem)
    ends = ENDS[card.get("architecture") in _EPSILON]
    missing = [key for key in ("architecture", "config", *ends, "data_range") if key not in card]
    if missing:
        raise UserError(f"the model card of {path} lacks {', '.join(missing)}")
    check_card(card, path)
    known = ARCHITECTURES | {_DIFFUSERS: _diffusers}
    if str(card["architecture"]) not in known:
        raise unknown(f"architecture in the card of {path},", card["architecture"], known)
    make, arguments = known[str(card["architecture"])], card["config"]
    try:
        with without_memory():  # so that a card of another network, however large, takes no memory
            wanted = make(**arguments).state_dict()
    except Exception as error:  # whatever arguments of another type or size bring about
        raise UserError(f"the card of {path} does not make a {card['architecture']!r}: {sentence(error)}") from error
    _check(tensors, wanted, path, card["architecture"])
    net = make(**arguments)
    _fill(net, tensors, path)
    return _ready(net, device), card


def _foreign(path: Path, device: str, config) -> tuple[nn.Module, dict]:
    """The network of a checkpoint of score_sde or EDM on ``device``, in eval mode and without gradients; its card."""
    from dmcmc_core.checkpoints import edm, flax, published, score_sde

    if path.suffix == ".pkl":
        if config is not None:
            raise UserError(f"{path} describes itself; config is for files that do not")
        net, card = edm.read(path)
    elif path.suffix in (".pth", ".pt"):
        with path.open("rb") as file:
            if not file.read(2).startswith((b"PK", b"\x80")):  # before a configuration is asked for
                raise UserError(f"{path} is no file of PyTorch: it begins like no archive and no pickle")
        net, card = score_sde.read(path, published.config_of(path, config))
        card.setdefault("name", published.at_place(path) or path.stem)
    elif path.suffix not in _FOREIGN:
        net, card = flax.read(path, published.config_of(path, config))
    else:
        raise UserError(f"{path} is {_FOREIGN[path.suffix]}; .pth files of score_sde and .pkl files of EDM can be read")
    card.setdefault("name", path.stem)
    check_card(card, path)
    return _ready(net, device), card


def _diffusers(**config) -> nn.Module:
    from dmcmc_core.checkpoints import diffusers

    return diffusers.made_again(**config)


def _ready(net: nn.Module, device: str) -> nn.Module:
    try:
        return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the network does not fit in the memory of {device}: free some of it, or choose another device"
        ) from error


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Fill a network with the tensors of a safetensors file; UserError where they do not fit it."""
    tensors = _read(Path(path))[1]
    _check(tensors, net.state_dict(), Path(path), type(net).__name__)
    _fill(net, tensors, Path(path))


def _fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    net.load_state_dict(tensors)
    for key, tensor in net.state_dict().items():
        check_finite(tensor, key, path)


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, architecture: str) -> None:
    for key in wanted:
        if key not in found:
            raise UserError(f"{path} is not a {architecture!r} as its card says: tensor {key!r} is missing")
        if found[key].shape != wanted[key].shape:
            raise UserError(
                f"{path} does not fit its architecture {architecture!r}: tensor {key!r} has shape "
                f"{tuple(found[key].shape)}, the network needs {tuple(wanted[key].shape)}"
            )
        if wanted[key].is_floating_point():
            check_numbers(found[key], key, path)
    extra = sorted(found.keys() - wanted.keys())
    if extra:
        raise UserError(f"{path} is not a {architecture!r} as its card says: it holds the unknown tensor {extra[0]!r}")


_CONFIG_KEYS = ("architecture", "config", "sigma_min", "sigma_max", "data_range", "name")


def _read_config(config: str | Path | dict) -> dict:
    if not isinstance(config, dict):
        import yaml

        try:
            config = yaml.safe_load(Path(config).read_text())  # JSON is YAML
        except Exception as error:  # whatever a broken file brings about
            raise UserError(f"config {config} cannot be read: {sentence(error)}") from error
        if not isinstance(config, dict):
            raise UserError("config must hold a mapping of names to values")
    for key in config:
        if key not in _CONFIG_KEYS:
            raise unknown("key of config", key, _CONFIG_KEYS)
    return dict(config)


def _denoiser(net: nn.Module, card: dict) -> Denoiser:
    mean = getattr(net, "mean", None)
    adapter = Adapter(
        net,
        shape=tuple(net.shape if mean is None else mean.shape),
        data_range=tuple(card["data_range"]),
        sigma_min=card["sigma_min"],
        sigma_max=card["sigma_max"],
        mean=mean,
        classes=getattr(net, "classes", 0),
        unconditional=NO_CLASS if card.get("label_dropout") else None,
    )
    adapter.card, adapter.name, adapter.net = card, card["name"], net
    return InBlocks(adapter, BLOCK)


def _shipped(name: str) -> Callable[[str], Denoiser]:
    def load(device: str) -> Denoiser:
        path = NETS / f"{name}.safetensors"
        if not path.is_file():
            raise UserError(
                f"the network {name!r} is not in {NETS}: train it with train score --config {path.with_suffix('.yaml')}"
            )
        return _denoiser(*_network(path, device, None))

    return load


def _glyphs32_exact(device: str) -> Denoiser:
    from dmcmc_core.analytic import EmpiricalData
    from dmcmc_core.data import glyphs32

    images = glyphs32(4000).images.to(device)
    model = EmpiricalData(images, sigma_min=0.01, sigma_max=50.0)
    model.name = "glyphs32-exact"
    model.card = {"name": model.name, "architecture": "exact", "data": "glyphs32(n=4000, seed=0)"}
    return model


MODELS: dict[str, Callable[[str], Denoiser]] = {
    "digits": _shipped("digits"),
    "glyphs32": _shipped("glyphs32"),
    "glyphs32-exact": _glyphs32_exact,
}
