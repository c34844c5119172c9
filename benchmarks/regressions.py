"""Whether the tests still see the bugs that this project has had: each is put back, one at a time.

    python benchmarks/regressions.py [--only NAME ...] [--list]

A bug is a line of the package as it was before it was mended, or as the test that came with it was to see it. It is put
into a temporary copy of the package, found by the line that took its place wherever that now lies. Then the tests of
the file that should notice run until one fails; that test must pass again without the bug. Prints a table of bugs and
the tests that saw them; the exit status is 1 where none did. All of them take a quarter of an hour.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
COPIED = ("dmcmc_core", "tests", "benchmarks", "pyproject.toml")  # what tests find by their own place
LINKED = ("exp", "notebooks", "README.md", "../shared")  # the last: published outputs, where there are any


class Bug(NamedTuple):
    """``new`` takes the place of ``old``, which is in the package once; ``test`` is the file that should notice."""

    name: str
    what: str
    test: str
    old: str
    new: str


BUGS = (
    Bug(
        "seeds-collide",
        "image 1 of seed 0 is image 0 of seed 1",
        "test_streams",
        '"key": np.array([self._name, index], dtype=np.uint64)',
        '"key": np.array([len(self.purpose), abs(index + self.seed)], dtype=np.uint64)',
    ),
    Bug(
        "uniform-is-1",
        "a uniform number rounds to 1",
        "test_streams",
        "out.clamp(max=1 - torch.finfo(out.dtype).eps / 2)",
        "out",
    ),
    Bug(
        "padding-counts",
        "rows that only pad a block count as evaluations",
        "test_denoiser",
        "self.rows += x.shape[0] * ",
        'self.rows += -(-x.shape[0] // getattr(self, "block", 1)) * getattr(self, "block", 1) * ',
    ),
    Bug(
        "guidance-is-free",
        "the second half of a guided call is not counted",
        "test_denoiser",
        'x.shape[0] * getattr(self.denoiser, "rows_per_image", 1)',
        "x.shape[0]",
    ),
    Bug(
        "gibbs-level",
        "the Gibbs step answers with the level beside the one that it drew",
        "test_mcmc",
        "levels.to(level.device)[level].to(",
        "levels.to(level.device)[(level + 1).clamp(max=len(levels) - 1)].to(",
    ),
    Bug(
        "impossible-level",
        "a level without probability can be drawn",
        "test_mcmc",
        "(1 - rng.uniform(total)) * total",
        "rng.uniform(total) * total",
    ),
    Bug(
        "unadjusted",
        "a kernel that should test its proposals accepts all of them",
        "test_mcmc",
        "(log_density(y, q, sigma) - before).clamp(max=0).exp().nan_to_num(0.0)",
        "torch.ones_like(e)",
    ),
    Bug(
        "momentum-kept",
        "a rejected step goes on in the direction that was rejected",
        "test_mcmc",
        "torch.where(accepted, q, -p)",
        "torch.where(accepted, q, p)",
    ),
    Bug(
        "window-twice",
        "the last state of a window, emitted, is emitted by the next one again",
        "test_dmcmc",
        "candidates[0, emitted] = torch.inf",
        "candidates[0, emitted] *= 1",
    ),
    Bug(
        "resumed-otherwise",
        "chains that go on from a saved state draw their first numbers again",
        "test_dmcmc",
        "rng.state = chain.drawn",
        "rng.state = type(chain.drawn)()",
    ),
    Bug(
        "churn-in-float32",
        "the churned level is rounded to float32 where the state is float64",
        "test_integrators",
        "churned = torch.where((s_tmin <= now) & (now <= s_tmax), now * (1 + share), now)",
        "churned = torch.where((s_tmin <= now) & (now <= s_tmax), now * (1 + share), now).float()",
    ),
    Bug(
        "multistep-ratio",
        "DPM-Solver++ extrapolates by the inverse of the ratio of its steps",
        "test_integrators",
        "d + like(h / (2 * h_last), x) * (d - d_last)",
        "d + like(h_last / (2 * h), x) * (d - d_last)",
    ),
    Bug(
        "grid-turned-round",
        "a sigma_max below sigma_min takes its place without a word",
        "test_schedules",
        "if start.ndim == 0 and start < 0.999 * sigma_min:",
        "if start.ndim == 7:",
    ),
    Bug(
        "bdm-sign",
        "blurring enters the drift of BDM with the wrong sign",
        "test_linear_sde",
        "[..., None, None] + rate / blur",
        "[..., None, None] - rate / blur",
    ),
    Bug(
        "cld-turned-back",
        "R of CLD is turned by the angle the other way",
        "test_linear_sde",
        "_matrix(theta.cos(), theta.sin(), -theta.sin(), theta.cos())",
        "_matrix(theta.cos(), -theta.sin(), theta.sin(), theta.cos())",
    ),
    Bug(
        "skew-forgotten",
        "the way back of a preconditioned proposal forgets the skew term S",
        "test_preconditioning",
        "back = -(z + h / 2 * m.inverse(m.drift(both)))",
        "back = -(z + h / 2 * m.inverse(m.squared(both)))",
    ),
    Bug(
        "norms-in-float32",
        "norms of corrections are taken in single precision, where large gains overflow",
        "test_preconditioning",
        "torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)",
        "x.flatten(1).square().sum(1).sqrt()",
    ),
    Bug(
        "continuous-times",
        "networks trained at discrete times are told continuous ones",
        "test_networks",
        'if sde == "vp" and not training.get("continuous", True):',
        'if sde == "vp" and not training:',
    ),
    Bug(
        "fourier-without-log",
        "Fourier embeddings see times, not their logarithm",
        "test_networks",
        '{"log": True} if net["waves"] == "fourier" else {}',
        "{}",
    ),
    Bug(
        "kid-of-oneself",
        "the kernel distance counts pairs of a row with itself",
        "test_metrics",
        "return (_kernel_sum(x, x, rows) - itself) / (len(x) * (len(x) - 1))",
        "return _kernel_sum(x, x, rows) / len(x) ** 2",
    ),
    Bug(
        "warm-up-twice",
        "warm-up is paid for twice",
        "test_sampling_run",
        ".warmup_calls(residual) + ",
        ".warmup_calls(residual) * 2 + ",
    ),
    Bug(
        "corrections-are-free",
        "a plan of the predictor-corrector ignores its corrections",
        "test_sampling_run",
        'return n * (1 + number("corrections", corrections, least=0, whole=True))',
        'return n * (1 + number("corrections", corrections, least=0, whole=True) ** 0)',
    ),
    Bug(
        "same-name",
        "mixtures whose covariances differ in their axes alone have one fingerprint",
        "test_sampling_run",
        '("images", "means", "weights", "variances", "axes")',
        '("images", "means", "weights", "variances")',
    ),
    Bug(
        "early-windows",
        "a tolerance is tried on the first window of chains that climb",
        "test_sampling_run",
        "PILOT) * windows // ",
        "PILOT) * 0 // ",
    ),
    Bug(
        "imports-of-imports",
        "a run's key does not know what the modules import that it imports",
        "test_experiments",
        'todo += _names(path.read_text(encoding="utf-8"), package, parent)',
        "pass",
    ),
)


def put_in(bug: Bug, package: Path) -> tuple[Path, str]:
    """Write the bug into the one file of the package that holds its line; the file, and what it was."""
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    found = [path for path, text in texts.items() for _ in range(text.count(bug.old))]
    if len(found) != 1:
        raise SystemExit(f"{bug.name}: its line must be in the package once, not {len(found)} times: {bug.old}")
    (path,) = found
    path.write_text(texts[path].replace(bug.old, bug.new), encoding="utf-8")
    return path, texts[path]


def copied(root: Path) -> None:
    """A checkout of its own in ``root``."""
    for name in COPIED:
        source, ignored = CHECKOUT / name, shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copyfile(source, root / name)
    for name in LINKED:
        (root / name).symlink_to((CHECKOUT / name).resolve())


def failing(root: Path, test: str) -> tuple[str | None, str]:
    """The first test that fails, None where none does; and all that pytest said."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider", "--tb=line", test]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    named = re.search(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - |$)", done.stdout, re.MULTILINE)
    return (named[1] if named else None), done.stdout


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", nargs="+", metavar="NAME", choices=[bug.name for bug in BUGS], help="names of bugs")
    p.add_argument("--list", action="store_true", help="the bugs alone, nothing is run")
    a = p.parse_args()
    chosen = [bug for bug in BUGS if not a.only or bug.name in a.only]
    if a.list:
        print("\n".join(f"{bug.name}: {bug.what} ({bug.test})" for bug in chosen))
        return 0
    missed = []
    with tempfile.TemporaryDirectory(prefix="regressions-") as temporary:
        root = Path(temporary) / "checkout"
        root.mkdir()
        copied(root)
        print("| bug | what it does | test that fails | seconds |\n|---|---|---|---|", flush=True)
        for bug in chosen:
            began = time.monotonic()
            path, sound = put_in(bug, root / "dmcmc_core")
            test, said = failing(root, f"tests/{bug.test}.py")
            path.write_text(sound, encoding="utf-8")
            if test and failing(root, test)[0]:
                print(f"{bug.name}: {test} fails without the bug too:\n{said}", file=sys.stderr)
                test = None
            ran = test or " passed" in said
            missed += [bug.name] if ran and not test else []
            seen = test or ("NONE" if ran else f"all of {bug.test} is skipped here")
            print(f"| {bug.name} | {bug.what} | {seen} | {time.monotonic() - began:.0f} |", flush=True)
    if missed:
        print(f"\nno test sees {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
