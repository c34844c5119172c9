"""Sound images and statistics as other programs write them: what benchmarks/mutations.py breaks beside networks."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core.data import ImageSet, open_generated, open_images
from dmcmc_core.metrics import Extractor, published_statistics

SIZE, WIDTH = 8, 6
"""Pixels of a side, and features."""
FEATURES = Extractor("pixels", lambda x: x.flatten(1)[:, :WIDTH], "no weights")
"""Stands for the network that statistics are of: nothing here asks it for an answer."""


def pixels(n: int = 5, channels: int = 3) -> np.ndarray:
    """(n, H, W, C) uint8, smooth enough that JPEG files of them are small."""
    rows = np.arange(SIZE)[:, None, None] * 20 + np.arange(SIZE)[None, :, None] * np.arange(1, channels + 1)
    return (rows[None] + 9 * np.arange(n)[:, None, None, None]).astype(np.uint8)


def write_png(folder: Path) -> Path:
    """Nested files, one of them grey, one with text that is compressed."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_itxt("parameters", "steps: 20, sampler: heun " * 9, zip=True)
    for i, image in enumerate(pixels()):
        path = folder / ("ab"[i % 2]) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(image[..., 0] if i == 4 else image)
        picture.save(path, pnginfo=about if i == 1 else None)
    return folder


def write_jpeg(folder: Path) -> Path:
    """Files of several kinds: grey, progressive, with notes of a camera, of full and of halved colours."""
    from PIL import Image

    notes = Image.Exif()
    notes[0x010E] = "a camera"
    for i, image in enumerate(pixels()):
        how: dict[str, Any] = {"progressive": i == 1, "subsampling": 2 * (i == 2)} | ({"exif": notes} if i == 3 else {})
        Image.fromarray(image[..., 0] if i == 4 else image).save(folder / f"{i}.jpg", **how)
    return folder


def npz_content() -> dict[str, Tensor]:
    """What guided-diffusion writes: images and classes."""
    return {"arr_0": torch.from_numpy(pixels()), "arr_1": torch.arange(5)}


def statistics_content() -> dict[str, Tensor]:
    """What pytorch-fid writes: mean and covariance."""
    rows = torch.randn(40, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"mu": rows.mean(0), "sigma": rows.T.cov()}


def features_content() -> dict[str, Tensor]:
    """What score_sde writes."""
    rows = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
    return {"pool_3": rows, "logits": torch.zeros(40, 3)}


def arrays_content() -> dict[str, np.ndarray]:
    """What torch-fidelity saves: arrays of NumPy, by torch."""
    return {name: tensor.numpy() for name, tensor in statistics_content().items()}


def pickle_content() -> dict[str, dict[str, Tensor]]:
    """What EDM2 pickles: statistics by the name of their network."""
    return {"fid": statistics_content(), "fd_dinov2": statistics_content()}


def of_numpy(content: Any) -> Any:
    """Return nested content with arrays in the place of tensors."""
    if isinstance(content, dict):
        return {name: of_numpy(value) for name, value in content.items()}
    return content.numpy() if isinstance(content, Tensor) else content


def npz_bytes(content: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **{str(name): np.asarray(value) for name, value in of_numpy(content).items()})
    return out.getvalue()


def npy_bytes(content: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(of_numpy(content)["arr_0"]))
    return out.getvalue()


def pickle_bytes(content: Any) -> bytes:
    return pickle.dumps(of_numpy(content))


def legacy_bytes(content: Any) -> bytes:
    """As torch saved before there were archives."""
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def write_run(folder: Path) -> Path:
    """A folder as ``sample`` writes it, by another program: its manifest has no checksum."""
    (folder / "manifest.json").write_text(json.dumps({"num": 10, "encoding": "lossless"}))
    for i in range(2):
        (folder / f"shard-{5 * i:08d}.npz").write_bytes(npz_bytes(npz_content()))
    return folder


def images(path: Path) -> dict[str, Tensor]:
    """Read images from both sides of ``evaluate``, block by block as that does: the last block's mean, and classes."""
    generated = open_generated(path).images
    read = {}
    for side, opened in (("images", generated), ("reference", open_images(path))):
        assert isinstance(opened, ImageSet)
        for block in opened.split(64):
            read[side] = block.mean()
            del block  # before the next one is read
    return read | ({"labels": generated.labels} if generated.read_labels else {})


def reference(path: Path) -> dict[str, Tensor]:
    """Read a file as ``evaluate`` reads its reference: of statistics or features, or else of images."""
    found = published_statistics(path, FEATURES)
    if found is None:
        return images(path)
    rows = {} if found.features is None else {"features": found.features[:]}
    return {"mu": found.mu, "cov": found.cov} | rows
