"""What gDDIM extrapolates: trajectories of linear diffusions and epsilon along them, with exact scores alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmcmc_core import data, gddim, schedules
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.linear_sde import CLD, VP, LinearSDE
from dmcmc_core.streams import Streams

F64, BEGIN, END = torch.float64, 1.0, 1e-3
Rows = list[dict[str, Any]]


def walk(sde: LinearSDE, model: gddim.Epsilon, u: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield time, state and epsilon along a probability-flow trajectory, before each of many small steps."""
    grid = schedules.power(steps, BEGIN, END)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        yield t, u, model(u, t)
        u = gddim.sample(sde, model, u, torch.stack([t, s]), degree=0)


def atoms(points: Tensor, sigma_max: float = 200.0) -> EmpiricalData:
    """Return the exact score of some points (K, C, 1, 1) in the range of -1 to 1."""
    model = EmpiricalData(points, sigma_max=sigma_max)
    model.data_range = (-1.0, 1.0)
    return model


def cld_trajectory(seed: int, steps: int = 240) -> tuple[Rows, dict[str, float]]:
    """Return one pixel of a CLD trajectory from noise to a digit, and how far epsilon travels in either coordinates.

    The pixel is that which varies most over the digits; epsilon is that of the coordinates R, and of the Cholesky ones
    L. The way is the total variation of a pixel, its mean over all of them.
    """
    sde, images = CLD(), data.load_images("digits-train")
    model = gddim.from_denoiser(sde, EmpiricalData(images, sigma_max=50.0))
    noise = Streams(seed, "gddim figure 1", range(1))(torch.empty(1, 2, 8, 8, dtype=F64))
    times, states, of_R, of_L = [], [], [], []
    for t, u, epsilon in walk(sde, model, sde.apply(sde.prior, noise), steps):
        times.append(float(t))
        states.append(u.flatten())
        of_R.append(epsilon.flatten())
        of_L.append(sde.apply(sde.L(t).mT @ torch.linalg.inv(sde.R(t)).mT, epsilon).flatten())
    pixel, size = images.flatten(1).std(0).argmax().item(), images[0].numel()
    rows = [
        {"panel": panel, "arm": arm, "x": t, "y": float(value[pixel + at])}
        for panel, trail in (("state", states), ("epsilon of R", of_R), ("epsilon of L", of_L))
        for arm, at in (("position", 0), ("velocity", size))
        for t, value in zip(times, trail, strict=True)
    ]
    ways = {root: torch.stack(trail).diff(dim=0).abs().sum(0).mean() for root, trail in (("R", of_R), ("L", of_L))}
    return rows, {root: float(way) for root, way in ways.items()}


def two_atoms(steps: int = 200) -> tuple[Rows, tuple[Tensor, Tensor, Tensor]]:
    """Return trajectories of a VP diffusion of two points of the line, epsilon along them, and the density behind.

    The density is times (T,), places (X,) and the mixture's values (X, T), each time's divided by its largest, square
    root.
    """
    sde, centres = VP(), torch.tensor([-0.5, 0.5], dtype=F64)
    model = gddim.from_denoiser(sde, atoms(centres.reshape(2, 1, 1, 1)))
    starts = torch.linspace(-1.5, 1.5, 7, dtype=F64)
    rows = [
        {"panel": panel, "arm": f"from {start:+.1f}", "x": float(t), "y": float(value[i])}
        for t, u, epsilon in walk(sde, model, starts.reshape(-1, 1, 1, 1), steps)
        for i, start in enumerate(starts.tolist())
        for panel, value in (("trajectory", u), ("epsilon", epsilon))
    ]
    times, line = torch.linspace(END, BEGIN, 240, dtype=F64), torch.linspace(-2.2, 2.2, 240, dtype=F64)
    means, spread = sde.gain(times)[:, None] * centres, sde.R(times)[:, None]
    density = sum(((-(((line - m[:, None]) / spread) ** 2) / 2).exp() for m in means.unbind(1)), torch.zeros(()))
    return rows, (times, line, (density / density.amax(1, keepdim=True)).sqrt().T)


class Plane(NamedTuple):
    """Four points in the plane under CLD: the diffusion, its exact epsilon, and noise to begin with."""

    sde: CLD
    model: gddim.Epsilon
    noise: Tensor


def plane(seed: int, rows: int) -> Plane:
    """Return the four atoms with so many rows of noise."""
    sde, corners = CLD(), torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    model = gddim.from_denoiser(sde, atoms(0.5 * corners.reshape(4, 2, 1, 1)))
    noise = Streams(seed, "four atoms", range(rows))(torch.empty(rows, 4, 1, 1).double())
    return Plane(sde, model, sde.apply(sde.prior, noise))


def errors_by_degree(of: Plane, steps: Sequence[int], degrees: Sequence[int] = range(4), tol: float = 1e-7) -> Rows:
    """Return the root mean square distance of positions from the exact flow's: a row for each polynomial degree.

    Its values stand under ``R 20`` for 20 steps in the coordinates R and so on. ``tol``: of the flow.
    """
    flow = gddim.rk45(of.sde, of.model, of.noise, torch.tensor([BEGIN, END], dtype=F64), tol=tol)
    table = []
    for degree in degrees:
        row: dict[str, Any] = {"degree": degree}
        for root in ("R", "L"):
            for count in steps:
                grid = schedules.power(count, BEGIN, END)
                end = gddim.sample(of.sde, of.model, of.noise, grid, degree=degree, root=root)
                row[f"{root} {count}"] = float(of.sde.position(end - flow).square().mean().sqrt())
        table.append(row)
    return table
