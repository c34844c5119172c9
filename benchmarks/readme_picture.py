"""The picture at the head of README.md: one network and the same noise, by many network calls and by five.

``python benchmarks/readme_picture.py`` writes ``figures/published/readme``: the picture, a CSV of the numbers beside
its rows, and their provenance. A number is the root mean square distance, in units of the data, to the row at the top.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import dmcmc_core
from dmcmc_core.files import write_json
from dmcmc_core.report.plots import image_rows, save_figure
from dmcmc_core.workbench.experiments import here, origin
from dmcmc_core.workbench.experiments.published import copy_small

NAME = "samplers"
ROWS = (("Heun", "heun", 50), ("fitted", "fitted", 5), ("DPM-Solver++(2M)", "dpmpp_2m", 5), ("Heun", "heun", 5),
        ("DLG + Heun", "dlg+heun", 20))  # fmt: skip
"""What a row is called, its sampler and its budget; the first is what the others are measured against."""
SHOWN, N, SEED = 12, 64, 0


def measure(model: str) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """Return the images of each row by its label, and the rows of the CSV; chains draw images of their own."""
    images, rows = {}, []
    for name, sampler, nfe in ROWS:
        drawn = dmcmc_core.sample(model, sampler, nfe=nfe, n=N, seed=SEED)
        accurate = next(iter(images.values()), drawn)
        error = None if sampler.startswith("dlg") else float((drawn - accurate).double().square().mean().sqrt())
        distance = f"error {error:.3f}" if error else "other noise" if error is None else "accurate"
        images[f"{name}, {drawn.nfe:.0f} calls\n{distance}"] = drawn
        rows.append({"model": model, "sampler": sampler, "nfe": drawn.nfe, "n": N, "seed": SEED, "error": error})
    return images, rows


def main() -> None:
    """Draw the picture and write it with its numbers and its origin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glyphs32")
    model = parser.parse_args().model
    project, (images, rows) = here(), measure(model)
    entry = {
        "title": f"One network ({model}), the same noise: five network calls and many",
        "command": "python benchmarks/readme_picture.py",
        **origin(project),
        "seed": SEED,
        "files": [f"{NAME}.png", f"{NAME}.csv"],
    }
    folder = project.published("readme")
    with tempfile.TemporaryDirectory() as made:
        save_figure(image_rows({"": {k: v[:SHOWN] for k, v in images.items()}}), made, NAME, rows, entry)
        for name in entry["files"]:
            copy_small(Path(made, name), folder / name)
    write_json(folder / "provenance.json", {"profile": "readme", "items": {NAME: entry}})


if __name__ == "__main__":
    main()
