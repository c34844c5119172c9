"""The Inception network of 2015-12-05, whose features alone make a Fréchet distance a FID: its file, its network."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from dmcmc_core.errors import UserError
from dmcmc_core.files import sha256

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the file's content; its first eight digits are part of the file's name."""
WEIGHTS_VARIABLE = "DMCMC_WEIGHTS"


def inception_file(weights: str | Path | None = None) -> Path:
    """Find the Inception weights: at ``weights``, else where DMCMC_WEIGHTS says, else in torch's hub cache.

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
    """Build pytorch-fid's InceptionV3 up to its last pooling: (B, 1 or 3, H, W) in [0, 1] -> (B, 2048).

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
        found = sha256(path)
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
    """A network that takes the only output of pytorch-fid's, for one channel or three."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise UserError(f"features 'inception' are of images of 1 or 3 channels, not {images.shape[1]}")
        return self.network(images.expand(-1, 3, -1, -1))[0].flatten(1)
