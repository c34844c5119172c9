"""Windows of chains on disk: each is kept when it is walked, and taken from there by whoever needs it later.

A process that makes some of a group's shards so walks through windows that others may be at too; what they cost is told
by the files, once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmcmc_core import dmcmc
from dmcmc_core.chains import CALIBRATION
from dmcmc_core.denoiser import CountNFE, count_nfe
from dmcmc_core.dmcmc import AnyPosterior, Chain, Share, Window
from dmcmc_core.files import key, write_npz
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import of_images
from dmcmc_core.mcmc import ChainState
from dmcmc_core.noise_level import ResidualPosterior
from dmcmc_core.runs.folder import read_whole
from dmcmc_core.runs.kinds import ChainedPlan
from dmcmc_core.runs.model import Model, device_of
from dmcmc_core.streams import Drawn, Streams

Visit = tuple[Window | None, Chain]


class WindowFiles(MutableMapping[int, Visit]):
    """Windows of a group of chains by number, -1 being warm-up, in a file each; with the rows and seconds they took.

    Args:
        folder: of the group.
        counted: the model that the chains ask; what it counts from one window to the next belongs to the later one.
    """

    def __init__(self, folder: Path, counted: CountNFE, device: torch.device) -> None:
        self.folder, self.counted, self.device = folder, counted, device
        self.newest: tuple[int, dict[str, np.ndarray]] = (-2, {})
        self.costs: dict[int, tuple[int, float]] = {}
        self.restart()

    def restart(self) -> None:
        """Count rows and seconds from now on."""
        self.counted.reset()
        self.started = time.perf_counter()

    def path(self, number: int) -> Path:
        """Return the file of a window."""
        return self.folder / (f"window-{number:06d}.npz" if number >= 0 else "warmup.npz")

    def arrays(self, number: int) -> dict[str, np.ndarray] | None:
        """Return what the file of a window holds, None where it is missing or damaged."""
        return self.newest[1] if self.newest[0] == number else read_whole(self.path(number))

    def __getitem__(self, number: int) -> Visit:
        arrays = self.arrays(number)
        if arrays is None:
            self.restart()  # it is walked now
            raise KeyError(number)
        self._remember(number, arrays)
        return _window(arrays, self.device), _chain(arrays, self.device)

    def __setitem__(self, number: int, visit: Visit) -> None:
        window, chain = visit
        tensors = _chain_arrays(chain) | ({} if window is None else _window_arrays(window))
        arrays = {name: t.cpu().numpy() if isinstance(t, Tensor) else t for name, t in tensors.items()}
        arrays |= {"rows": np.array(self.counted.rows), "seconds": np.array(time.perf_counter() - self.started)}
        write_npz(self.path(number), **arrays)
        self._remember(number, arrays)
        self.restart()

    def _remember(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        self.newest = number, arrays
        self.costs[number] = int(arrays["rows"]), float(arrays["seconds"])

    def __delitem__(self, number: int) -> None:
        self.path(number).unlink()

    def __iter__(self) -> Iterator[int]:
        return (number for number in itertools.count(-1) if self.path(number).is_file())

    def __len__(self) -> int:
        return len(list(self.folder.glob("w*.npz")))

    def cost(self, numbers: range) -> tuple[int, float]:
        """Return the rows and seconds that windows took, whoever walked them; they have to be there."""
        for number in numbers:
            if number not in self.costs:
                self[number]
        rows, seconds = zip(*(self.costs[number] for number in numbers), strict=True)
        return sum(rows), sum(seconds)


def _chain_arrays(chain: Chain) -> dict[str, Any]:
    state = {name: value for name, value in chain.state._asdict().items() if value is not None}
    return state | {"emitted": chain.emitted, "drawn": np.array(chain.drawn)}


def _window_arrays(window: Window) -> dict[str, Any]:
    return {
        "start_x": window.start.x,
        "start_sigma": window.start.sigma,
        "chosen": window.chosen,
        "sigmas": window.sigmas,
        "acceptance": window.acceptance,
    }


def _chain(data: dict[str, np.ndarray], device: torch.device) -> Chain:
    state = {n: torch.from_numpy(data[n]).to(device) for n in ChainState._fields if n in data}
    return Chain(ChainState(**state), torch.from_numpy(data["emitted"]).to(device), Drawn(*data["drawn"].tolist()))


def _window(data: dict[str, np.ndarray], device: torch.device) -> Window | None:
    if "start_x" not in data:
        return None
    names = ("start_x", "start_sigma", "chosen", "sigmas", "acceptance")
    x, sigma, *rest = (torch.from_numpy(data[name]).to(device) for name in names)
    return Window(ChainState(x, sigma), *rest)


def chain_folder(model: Model, plan: ChainedPlan, seed: int, where: Path) -> Path:
    """Return where the chains of (model, settings, seed) are kept; the integrator has no part in its name."""
    return Path(where) / key({"model": fingerprint(model), "seed": seed} | plan.chains_about())


def group_folder(model: Model, plan: ChainedPlan, seed: int, chains: range, where: Path) -> Path:
    """Return where the windows of a group of chains are kept."""
    return chain_folder(model, plan, seed, where) / f"{chains.start:06d}-{chains.stop:06d}"


def calibrated(counted: CountNFE, plan: ChainedPlan, seed: int, path: Path) -> tuple[ResidualPosterior, int, float]:
    """Return the posterior from the denoiser's residual; the rows and seconds that its calibration took, once."""
    data = read_whole(path)
    if data is None:
        counted = of_images(counted, Streams(seed, "calibration", range(CALIBRATION)))
        counted.reset()
        started = time.perf_counter()
        posterior = dmcmc.calibrated(counted, plan.chain, seed, device_of(counted))
        data = {"levels": posterior.levels.cpu().numpy(), "expected": posterior.expected.cpu().numpy()}
        data |= {"rows": np.array(counted.rows), "seconds": np.array(time.perf_counter() - started)}
        write_npz(path, **data)
    levels, expected = (torch.from_numpy(data[n]).to(device_of(counted)) for n in ("levels", "expected"))
    return ResidualPosterior(levels, expected), int(data["rows"]), float(data["seconds"])


def starts(
    model: Model, plan: ChainedPlan, posterior: AnyPosterior | None, seed: int, chains: range, where: Path
) -> Iterator[ChainState]:
    """Yield the starting points of one window after the other, from disk as far as they are there, else walked."""
    counted = of_images(count_nfe(model), Streams(seed, "chain", chains))
    if posterior is None:
        posterior, *_ = calibrated(counted, plan, seed, chain_folder(model, plan, seed, where) / "posterior.npz")
    visits = WindowFiles(group_folder(model, plan, seed, chains, where), counted, device_of(model))
    share = Share(chains, ([number] for number in itertools.count()), float("inf"), visits)
    walk = dmcmc.walk_windows(counted, posterior, plan.chain, seed, share, device_of(model))
    return (window.start for _, [(window, _)] in walk)
