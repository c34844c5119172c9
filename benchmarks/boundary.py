"""What a boundary costs beside scikit-learn, and what an edit costs beside its network calls.

    python benchmarks/boundary.py fit [--latents N] [--size D] [--pairs N]
    python benchmarks/boundary.py edit [--model M] [--batch B] [--steps K] [--pairs N] [--threads N]

``fit`` makes N latents of D numbers of two kinds in processes of its own, and fits them by dmcmc_core.boundary.fit and
by SVC(kernel="linear") alternately. A process prints its seconds, those of the processor (which a busy machine
stretches less), and the peak of its memory above that before the latents were made; the latents are part of it. The
length of the difference of both unit normals is the agreement.

``edit`` inverts a batch, moves it in pixels and in the bottleneck, and goes back with full noise; a pair is that and as
many calls of the bare torch module on what it saw there, alternately in one process. Reported: the median of the
ratios, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FASTER, MEMORY, APART, TARGET = 0.1, 2.0, 1e-2, 1.05
SIDES = ("ours", "usual")


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fit_one(kind: str, latents: int, size: int, out: Path) -> None:
    """Fit in this process and print what it took; the normal goes to a file."""
    import numpy as np
    import torch
    from sklearn.svm import SVC

    from dmcmc_core import boundary

    before, generator = peak(), torch.Generator().manual_seed(0)
    labels = torch.arange(latents) % 2
    shift = torch.randn(size, generator=generator) * (3 / size**0.5)
    z = torch.randn(latents, size, generator=generator)
    for row, label in zip(z, labels.tolist(), strict=True):
        row.add_(shift, alpha=label - 0.5)
    begin, busy = time.perf_counter(), time.process_time()
    if kind == "ours":
        normal = boundary.fit(z, labels).normal.numpy()
    else:
        machine = SVC(kernel="linear").fit(z.numpy(), labels.numpy())
        normal = machine.coef_[0] / np.linalg.norm(machine.coef_[0])
    took = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - busy}
    np.save(out, normal.astype("float32"))
    print(json.dumps(took | {"memory": (peak() - before) / (z.numel() * z.element_size())}))


def fit(a: argparse.Namespace) -> None:
    """Print time, memory and agreement of both sides, each in a process of its own, alternated."""
    found: dict[str, list[dict]] = {kind: [] for kind in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(a.pairs):
            for kind in SIDES if i % 2 == 0 else SIDES[::-1]:
                words = [
                    "--latents",
                    str(a.latents),
                    "--size",
                    str(a.size),
                    "--kind",
                    kind,
                    "--to",
                    f"{folder}/{kind}.npy",
                ]
                run = subprocess.run(
                    [sys.executable, __file__, "one", *words], check=True, stdout=subprocess.PIPE, text=True
                )
                found[kind].append(json.loads(run.stdout))
                print(i, kind, found[kind][-1], flush=True)
        import numpy as np  # only here: a peak is inherited

        apart = np.linalg.norm(np.load(f"{folder}/ours.npy").astype(float) - np.load(f"{folder}/usual.npy"))
    pairs = list(zip(*(found[kind] for kind in SIDES), strict=True))
    share, cpu = (statistics.median(a[what] / b[what] for a, b in pairs) for what in ("seconds", "cpu"))
    memory = max(one["memory"] for one in found["ours"])
    print(f"{a.latents:,} latents of {a.size:,} numbers, {a.pairs} pairs")
    for what, value, most in (
        ("time of that of SVC, median", share, FASTER),
        ("processor time of that of SVC, median", cpu, FASTER),
        ("peak memory in latents", memory, MEMORY),
        ("distance of the normals", apart, APART),
    ):
        print(f"{what}: {value:.2g}, at most {most:g}: {'yes' if value <= most else 'no'}")


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the wall and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - busy


def edit(a: argparse.Namespace) -> None:
    """Print the time of an edit over that of its bare network calls."""
    import torch

    from dmcmc_core import load_model
    from dmcmc_core.boundary import Boundary, grid
    from dmcmc_core.workbench.studies import boundary as study

    torch.set_num_threads(a.threads)
    model, times = load_model(a.model), grid(a.time, a.steps)
    images = torch.rand(a.batch, *model.shape, generator=torch.Generator().manual_seed(0))
    net = model.net

    def boundary_of(latents: torch.Tensor, level: str) -> Boundary:
        card = {"time": a.time, "count": a.steps, "level": level}
        return Boundary(
            torch.nn.functional.normalize(latents[0].flatten(), dim=0).reshape(latents.shape[1:]), 0, 1, card
        )

    z = study.latents(model, images, times)
    boundaries = [boundary_of(z, "z"), boundary_of(study.bottleneck(model, z, times), "h")]

    def whole() -> None:
        z = study.latents(model, images, times)
        study.edited(model, z, boundaries, 3.0, study.bottleneck(model, z, times))

    asked: list[tuple] = []
    handle = net.register_forward_pre_hook(lambda module, given: asked.append(given))
    whole()
    handle.remove()

    @torch.no_grad()
    def bare() -> None:
        for given in asked:
            net(*given)

    bare()
    ratios, of_processor, of_bare = [], [], []
    for i in range(a.pairs):
        first, second = (whole, bare) if i % 2 == 0 else (bare, whole)
        times_of = {first: seconds(first), second: seconds(second)}
        (wall, busy), (bare_wall, bare_busy) = times_of[whole], times_of[bare]
        ratios.append(wall / bare_wall)
        of_processor.append(busy / bare_busy)
        of_bare.append(bare_wall / len(asked))
    low, median, high = statistics.quantiles(ratios, n=4)
    call = 1000 * statistics.median(of_bare)
    print(
        f"{a.model}: {a.batch} images, {len(asked)} calls of {call:.2f} ms, {a.pairs} pairs: "
        f"ratio {median:.3f} ({low:.3f}-{high:.3f}), at most {TARGET}: {'yes' if median <= TARGET else 'no'}; "
        f"of the processor {statistics.median(of_processor):.3f}"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = p.add_subparsers(dest="job", required=True)
    of_fit, of_edit, one = jobs.add_parser("fit"), jobs.add_parser("edit"), jobs.add_parser("one")
    for job in (of_fit, one):
        job.add_argument("--latents", type=int, default=1000)
        job.add_argument("--size", type=int, default=3 * 256 * 256)
    of_fit.add_argument("--pairs", type=int, default=3)
    one.add_argument("--kind", choices=SIDES, required=True)
    one.add_argument("--to", type=Path, required=True)
    of_edit.add_argument("--model", default="digits")
    of_edit.add_argument("--batch", type=int, default=64)
    of_edit.add_argument("--time", type=int, default=400)
    of_edit.add_argument("--steps", type=int, default=40)
    of_edit.add_argument("--pairs", type=int, default=20, help="at least 2")
    of_edit.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    if a.job == "one":
        fit_one(a.kind, a.latents, a.size, a.to)
    else:
        {"fit": fit, "edit": edit}[a.job](a)


if __name__ == "__main__":
    main()
