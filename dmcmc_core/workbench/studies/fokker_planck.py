"""The study of score embedding's solve: its passes, cost and error, and what a score in closed form samples."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from dmcmc_core import score_embedding as embedding
from dmcmc_core.metrics.similarity import mse, ssim
from dmcmc_core.score_embedding.stencil import flat_difference
from dmcmc_core.streams import Streams


def solver_rows(images: Mapping[int, Tensor], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how the solve fares at each size, pixels -> (C, H, H): passes, seconds and its distance to the exact one.

    ``error``: root mean square of the field at the last time against the closed form of the equation, relative to that;
    ``shift``: root mean square of the whole shift of the picture. ``direct`` is :func:`direct_solve`.
    """
    rows, sigma, steps = [], float(config["sigma"]), int(config["times"])
    how: dict[str, Any] = {"sigma": sigma, "steps": steps, "tol": config["tol"]}
    tau = embedding.training_times(torch.full((steps,), 0.5, dtype=torch.float64))
    for size, image in images.items():
        began = time.perf_counter()
        m0 = embedding.initial_field(image)
        density = time.perf_counter() - began
        truth = embedding.closed_form(m0, sigma=sigma, steps=steps)[-1]
        for mode in ("as_published", "consistent", "direct"):
            began = time.perf_counter()
            field = direct_solve(m0, **how) if mode == "direct" else embedding.solve(m0, **how, mode=mode)
            seconds = time.perf_counter() - began
            shift = embedding.embed(image.double(), field.score, sigma=sigma, tau=tau)[-1] - image
            rows.append(
                {
                    "size": size,
                    "mode": mode,
                    "passes": field.passes,
                    "residuals": field.residuals.tolist(),
                    "density_seconds": density,
                    "seconds": seconds,
                    "error": float((field.m[-1] - truth).square().mean().sqrt() / truth.square().mean().sqrt()),
                    "shift": float(shift.square().mean().sqrt()),
                }
            )
    return rows


def direct_solve(m0: Tensor, *, sigma: float, steps: int, tol: float, dh: float = 1.0) -> embedding.Field:
    """Solve as published in every respect: a sparse matrix and a direct solve for each channel, time and pass.

    It has no limit of passes; what :func:`dmcmc_core.score_embedding.solve` is compared with.
    """
    (channels, size, _), dt = m0.shape, 1 / steps
    t = embedding.times(steps)
    m = np.repeat(m0.numpy()[None], steps, 0)
    score, before, residuals = np.ones_like(m), np.ones_like(m), []
    while not residuals or residuals[-1] > tol:
        for i in range(1, steps):
            g2 = sigma ** (2 * t[i].item())
            for c in range(channels):
                s = score[i, c].ravel()
                drift, spread = g2 * s * dt / (4 * dh), g2 * dt / (2 * dh**2)
                upper, lower, middle = spread - drift, -spread - drift, np.full(len(s), 1 + 4 * spread)
                bands = [middle, upper[1:], upper[size:], lower[:-1], lower[:-size]]
                a = sparse.diags(bands, [0, 1, size, -1, -size], format="csc")
                m[i, c] = spsolve(a, m[i - 1, c].ravel()).reshape(size, size)
        score = flat_difference(m, dh)
        residuals.append(float(np.linalg.norm(m - before) / np.linalg.norm(before)))
        before = m.copy()
    passes = torch.tensor(residuals, dtype=torch.float64)
    return embedding.Field(torch.from_numpy(m), torch.from_numpy(score), len(residuals), passes, t, True)


def residuals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the relative change of the field in each pass of :func:`solver_rows`, a panel for each size."""
    return [
        {"panel": f"{row['size']} pixels", "arm": row["mode"], "x": number, "y": change}
        for row in rows
        for number, change in enumerate(row["residuals"], 1)
    ]


def exact(images: Tensor, config: Mapping[str, Any], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Return what the score of each picture in closed form samples, without any training, a row per seed and mean.

    ``arm`` tells what it is the score of: the picture, or the shifted picture that training with the embedding has for
    its optimum, at the time in the middle of each interval.
    """
    sigma, rows = float(config["sigma"]), []
    fields = embedding.solve_many(
        torch.stack([embedding.initial_field(image) for image in images]),
        sigma=sigma,
        steps=config["times"],
        tol=config["tol"],
    )
    for seed in seeds:
        z = Streams(seed, "closed form", range(len(images)))(images)
        for name in ("closed form", "closed form of the shifted picture"):
            found = []
            for image, field, start in zip(images, fields, z, strict=True):
                shifted = _shifted(image, field, sigma) if "shifted" in name else None
                score = embedding.exact_score(image, sigma) if shifted is None else _moving_score(*shifted, sigma)
                sample = embedding.sample(score, start[None], sigma=sigma).samples[0]
                found.append((ssim(image, sample), mse(image, sample)))
            means = [sum(values) / len(values) for values in zip(*found, strict=True)]
            rows.append({"arm": name, "seed": seed, "step": 0, "ssim": means[0], "mse": means[1]})
    return rows


def _shifted(image: Tensor, field: embedding.Field, sigma: float) -> tuple[Tensor, Tensor]:
    tau = embedding.training_times(torch.full((len(field.t),), 0.5, dtype=torch.float64))
    return tau, embedding.embed(image.double(), field.score, sigma=sigma, tau=tau)


def _moving_score(tau: Tensor, means: Tensor, sigma: float) -> embedding.Score:
    """Return the score of one point that moves through ``means`` (N, C, H, W) at times ``tau`` (N,), linear between."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        at = t[0].double().clamp(tau[0], tau[-1])
        after = int(torch.searchsorted(tau, at).clamp(1, len(tau) - 1))
        share = (at - tau[after - 1]) / (tau[after] - tau[after - 1])
        mean = means[after - 1] + share * (means[after] - means[after - 1])
        return (mean.to(x) - x) / embedding.std(t, sigma).square().reshape(-1, 1, 1, 1)

    return score
