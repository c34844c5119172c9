"""Feature extractors: networks that turn images into the rows of numbers that distances are computed of.

Only distances in features of the Inception network of 2015-12-05 may be called FID: :func:`distance_name` says what a
number is called.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from dmcmc_core.data import ImageSet, from_uint8, to_uint8
from dmcmc_core.denoiser import BLOCK, apply_in_blocks
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.metrics import table


class Extractor(NamedTuple):
    """A feature extractor and the name under which its numbers are printed."""

    name: str
    network: Callable[[Tensor], Tensor]
    """Images (B, C, H, W) float32 in [0, 1] -> features (B, d)."""
    weights: str = ""
    """SHA-256 of its weights; empty where nobody knows it: what it computes is then never cached."""
    head: Callable[[Tensor], Tensor] | None = None
    """Features (B, d) -> one number for each class, the largest for the class of the image; None without classes."""


def digits_cnn() -> nn.Module:
    """The classifier of digits that ships with the workbench, up to its features: (B, 1, 8, 8) -> (B, at most 64)."""
    from dmcmc_core.nets.classifiers import load_digits_cnn

    return load_digits_cnn()


def glyphs_cnn() -> nn.Module:
    """The classifier of glyphs that ships with the workbench, up to its features: (B, 3, 32, 32) -> (B, 64)."""
    from dmcmc_core.nets.classifiers import load_glyphs_cnn

    return load_glyphs_cnn()


class RandomConv(nn.Module):
    """An untrained convolutional network with fixed weights: (B, C, H, W) with H, W >= 8 -> (B, 64).

    Four 3x3 layers with ReLU between them (32, 32, 32 and 16 channels, the second and third of stride 2), normal
    weights of variance 2 / fan-in (He et al. 2015), the mean over each quarter of the image. Three quarters of the
    first filters are made to sum to 0 and three times larger: through plain random filters the brightness of the image
    drowns everything, through these the distance also sees blur, noise and mixtures of images. Features are multiplied
    by 3, which brings their mean square on ``glyphs32`` near 1, where the kernel of KID is neither linear nor a bare
    cube.
    """

    WIDTHS, STRIDES = (32, 32, 32, 16), (1, 2, 2, 1)

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for width, stride in zip(self.WIDTHS, self.STRIDES, strict=True):
            conv = nn.utils.skip_init(  # no draw of the global generator for weights that are replaced at once
                nn.Conv2d, channels, width, 3, stride, padding=1, padding_mode="reflect", bias=False
            )
            weight = torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * channels)) ** 0.5
            if not layers:
                edges = weight[: 3 * width // 4]
                edges.sub_(edges.mean((2, 3), keepdim=True)).mul_(3)
            conv.weight = nn.Parameter(weight, requires_grad=False)
            layers += [conv, nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.layers(2 * images - 1)


def random_conv() -> Callable[[Tensor], Tensor]:
    """:class:`RandomConv` of seed 0 for as many channels as the images have."""
    made = functools.cache(lambda channels: RandomConv(channels).eval())

    def network(images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 8:
            raise UserError(f"random-conv needs images of at least 8x8 pixels, not {tuple(images.shape[-2:])}")
        return made(images.shape[1]).to(images.device)(images)

    return network


INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the file's content; its first eight digits are part of the file's name."""
WEIGHTS_VARIABLE = "DMCMC_WEIGHTS"


def inception_file(weights: str | Path | None = None) -> Path:
    """Where the Inception weights are: at ``weights``, else where DMCMC_WEIGHTS says, else in torch's hub cache.

    The argument and the environment variable name the file or a folder that holds it under its published name (a folder
    of other weights in the variable is passed over). Nothing is downloaded.

    Raises:
        UserError: that names the file, its SHA-256 and where to put it, when it is in none of these places; or when
            the place that was given does not exist or does not hold it.
    """
    about = f"{INCEPTION_FILE} (release 'fid_weights' of mseitzer/pytorch-fid, SHA-256 {INCEPTION_SHA256})"
    hub = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    variable = os.environ.get(WEIGHTS_VARIABLE)
    if weights or (variable and not Path(variable).expanduser().is_dir()):
        path = Path(weights or variable).expanduser()
        path = path / INCEPTION_FILE if path.is_dir() else path
        if not path.is_file():
            source = "the argument weights" if weights else f"the environment variable {WEIGHTS_VARIABLE}"
            raise UserError(f"{source} leads to no Inception weights: no such file: {path}; needed is {about}")
        return path
    candidates = [Path(variable).expanduser() / INCEPTION_FILE] if variable else []
    for path in (*candidates, hub):
        if path.is_file():
            return path
    raise UserError(
        f"features 'inception' need {about}, which is never downloaded by itself: put it at {hub}, or name the file or "
        f"its folder in the environment variable {WEIGHTS_VARIABLE}"
    )


def inception(weights: str | Path | None = None, *, check_hash: bool = True) -> nn.Module:
    """pytorch-fid's InceptionV3 up to its last pooling: (B, 1 or 3, H, W) in [0, 1] -> (B, 2048).

    Images are resized to 299x299 (bilinear) and scaled to [-1, 1] by that network itself; one channel becomes three
    equal ones. pytorch-fid fetches its weights by an address only: its loader is replaced while the network is built.

    Args:
        weights: as in :func:`inception_file`.
        check_hash: refuse a file that is not the published one, by its SHA-256.

    Raises:
        UserError: when pytorch-fid or the file is missing, or the file is another one.
    """
    path = inception_file(weights)
    try:
        from pytorch_fid import inception as module
    except ImportError as error:
        raise UserError("features 'inception' need pytorch-fid and torchvision: pip install pytorch-fid") from error
    if check_hash:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != INCEPTION_SHA256:
            raise UserError(
                f"{path} is not {INCEPTION_FILE}: its SHA-256 is {found}, not {INCEPTION_SHA256}; it may be truncated"
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: state):
            network = module.InceptionV3([module.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a file that it cannot read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} does not hold the weights of pytorch-fid's InceptionV3: {reason}") from error
    return _Inception(network)


class _Inception(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))[0].flatten(1)


FEATURES: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "digits-cnn": digits_cnn,
    "glyphs-cnn": glyphs_cnn,
    "random-conv": random_conv,
    "inception": inception,
}
"""Feature extractors by name: a function that makes the network. Only ``inception`` takes a weights file."""


def load_features(name: str, weights: str | Path | None = None, *, check_hash: bool = True, device="cpu") -> Extractor:
    """The feature extractor of that name, ready to use on ``device``.

    An Inception network whose file was not checked against the published SHA-256 does not carry the name that prints
    as FID.

    Raises:
        UserError: for an unknown name, or what the network needs and does not find.
    """
    if name not in FEATURES:
        raise unknown("features", name, FEATURES)
    if name != "inception":
        network = FEATURES[name]()
    else:
        network = inception(weights, check_hash=check_hash)
        name = name if check_hash else "inception with unchecked weights"
    weights = weights_sha256(network if isinstance(network, nn.Module) else RandomConv(3))
    if isinstance(network, nn.Module):
        network = network.eval().to(device)
    return Extractor(name, network, weights, getattr(network, "last", None))


def weights_sha256(network: nn.Module) -> str:
    """Hash of a network's tensors, with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def distance_name(features: str) -> str:
    """What the Fréchet distance in these features is called: FID for ``inception`` alone."""
    return "FID" if features == "inception" else f"Fréchet distance ({features} features)"


def extract(images: Tensor | ImageSet, extractor: Extractor, *, device="cpu", block: int = BLOCK) -> Tensor:
    """Features (n, d) of images (n, C, H, W) in [0, 1], computed on ``device`` in padded blocks, returned on it.

    As :func:`extract_parts`, put together in memory.
    """
    features, done = None, 0
    for values in extract_parts(images, extractor, device=device, block=block):
        if features is None:
            features = values.new_empty(len(images), values.shape[1])
        features[done : done + len(values)] = values
        done += len(values)
    return features


@torch.no_grad()
def extract_parts(
    images: Tensor | ImageSet, extractor: Extractor, *, device="cpu", block: int = BLOCK, start: int = 0
) -> Iterator[Tensor]:
    """Features of images (n, C, H, W) in [0, 1] from number ``start`` on, a table (at most 16 blocks, d) at a time.

    Of an :class:`dmcmc_core.data.ImageSet` no more images than that are in memory.

    Images are first rounded to 256 levels, as files hold them, so that images in memory and the same images on disk
    have the same features.

    Raises:
        UserError: for images of the wrong shape or not finite, or features that are not finite.
    """
    if len(images.shape) != 4 or not len(images):
        raise UserError(f"images of shape (n, C, H, W) are needed, at least one, not {tuple(images.shape)}")
    if isinstance(images, ImageSet):
        images = images.in_range(0.0, 1.0)
    elif not images.isfinite().all():
        raise UserError("the images hold values that are not finite")
    size = block * max(1, min(16, 2**24 // (block * math.prod(images.shape[1:]))))
    for first in range(start, len(images), size):  # the whole set may not fit on the device
        rounded = from_uint8(to_uint8(images[first : first + size])).to(device)
        try:
            values = apply_in_blocks(extractor.network, block, rounded)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError | torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"features {extractor.name!r} do not fit images of shape {tuple(images.shape[1:])}: {reason}"
            ) from error
        yield table(values, f"features {extractor.name!r}", first)
