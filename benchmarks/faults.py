"""What may happen to a run of ``sample`` on disk: tried, and survived or not.

    python benchmarks/faults.py same [--num N] [--nfe N] [--kills N] [--samplers S ...]
    python benchmarks/faults.py campaign [--num N] [--times N]

``same`` makes the same images of the digits in one process, in shards of 100 and of 512, by three ranks of torchrun, as
an array of three jobs, and in a run that is killed at random moments and begun again, and compares them bit for bit.
``campaign`` kills, truncates, flips bytes, fills disks and more. A fault counts as survived when nothing that was
finished is made again, nothing wrong is believed, and the same command then ends with the right images. Where it can,
it mounts small and read-only disks (as root), and says what it leaves out elsewhere. Status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dmcmc_core.errors import UserError
from dmcmc_core.runs.folder import load_images, read_about, read_manifest, read_whole
from dmcmc_core.workbench import cli

SAMPLERS = ("heun", "heun_churn", "dlg+heun")


class Command:
    """``sample`` into a folder, in a process of its own that is a copy of this one: it starts at once."""

    def __init__(self, out: Path, words: str, before: Callable[[], object] = lambda: None) -> None:
        self.out, self.log = out, out.with_name(f"{out.name}.log")
        self.pid = os.fork()
        if not self.pid:
            log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            before()
            os._exit(cli.main(["sample", *words.split(), "--out", str(out)]))

    def end(self) -> int:
        """Its exit status, -9 and so on where a signal ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @property
    def said(self) -> str:
        """The last line that it printed."""
        return (self.log.read_text().splitlines() or [""])[-1]


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)


def images(out: Path) -> torch.Tensor:
    return load_images(out)


def same_images(
    num: int, nfe: int, kills: int, samplers: list[str], work: Path, seed: int = 0, ranks: int = 3
) -> Iterator[tuple]:
    """(sampler, way of making them, whether they are the images of one process, and at the same cost) for each."""
    rng = random.Random(seed)
    for sampler in samplers:
        words = f"--model digits --sampler {sampler} --nfe {nfe} -n {num}"
        begun = time.monotonic()
        one = Command(work / f"{sampler}-one", words)
        assert one.end() == 0, one.said
        took, reference, cost = time.monotonic() - begun, images(one.out), read_manifest(one.out)["rows"]

        def told(way: str, out: Path, sampler=sampler, reference=reference, cost=cost) -> tuple:
            equal = torch.equal(images(out), reference)
            return sampler, way, equal and read_manifest(out)["rows"] == cost

        for size in (100, 512):
            out = work / f"{sampler}-{size}"
            assert Command(out, f"{words} --shard-size {size}").end() == 0
            yield told(f"shards of {size}", out)
        out = work / f"{sampler}-ranks"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        subprocess.run([*launch, "dmcmc_core", "sample", *words.split(), "--out", str(out)], check=True)
        yield told(f"{ranks} ranks under torchrun", out)
        out = work / f"{sampler}-array"
        for i in (2, 0, 1):
            assert Command(out, f"{words} --shard {i}/3").end() == 0
        yield told("an array of three jobs", out)
        out, done = work / f"{sampler}-killed", 0
        total = len(list(one.out.glob("shard-*.npz")))
        for many in sorted(rng.choices(range(max(1, total - 1)), k=kills)):  # a run may not be over before its last
            run = Command(out, words)
            until(lambda out=out, many=many: len(list(out.glob("shard-*.npz"))) >= many)
            time.sleep(rng.uniform(0, took / total))
            os.kill(run.pid, signal.SIGKILL)
            done += run.end() == -signal.SIGKILL
        assert Command(out, words).end() == 0
        yield told(f"killed {done} times", out)


# The campaign


class Campaign:
    """A finished run to compare with, and folders to break."""

    def __init__(self, work: Path, num: int, times: int, seed: int = 0) -> None:
        self.work, self.num, self.times, self.rng = work, num, times, random.Random(seed)
        self.words = f"--model digits --sampler dlg+heun_churn --nfe 8 --num {num} --set chains=32 --set n_skip=2"
        self.words += " --shard-size 32"
        begun = time.monotonic()
        self.whole = self.command("whole")
        assert self.whole.end() == 0, self.whole.said
        self.took, self.reference = time.monotonic() - begun, images(self.whole.out)

    def command(self, name: str, more: str = "", **options) -> Command:
        return Command(self.work / name, f"{self.words} {more}", **options)

    def copy(self, name: str) -> Path:
        """The finished run again, in a folder of its own."""
        subprocess.run(["cp", "-a", str(self.whole.out), str(self.work / name)], check=True)
        return self.work / name

    def recovers(self, out: Path, kept: dict[str, int] | None = None) -> bool:
        """Whether the command ends with the right images, and what was whole was not made again."""
        kept = self.finished(out) if kept is None else kept
        run = self.command(str(out.relative_to(self.work)))
        ended = run.end() == 0 and torch.equal(images(out), self.reference)
        now = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.npz")}
        return ended and not list(out.rglob("*.part")) and kept.items() <= now.items()

    def finished(self, out: Path) -> dict[str, int]:
        """The whole shards of a folder, with their times."""
        return {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.npz") if read_about(p)}

    def interrupted(self, name: str, signal_: int) -> tuple[Path, int, str]:
        """A run that a signal ended at a random moment."""
        run = self.command(name)
        time.sleep(self.rng.uniform(0.1, 0.9) * self.took)
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal_)
        return run.out, run.end(), run.said

    # Each yields whether a trial was survived.

    def killed(self) -> Iterator[bool]:
        for i in range(self.times):
            out, _, _ = self.interrupted(f"killed-{i}", signal.SIGKILL)
            yield self.recovers(out)

    def terminated(self) -> Iterator[bool]:
        for i in range(self.times):
            out, status, said = self.interrupted(f"terminated-{i}", signal.SIGTERM)
            clean = status == 0 or (status == 130 and "the same command goes on from here" in said)
            clean |= status == -signal.SIGTERM and not out.exists()  # it had not begun
            yield clean and not list(out.rglob("*.part")) and self.recovers(out)

    def truncated_shard(self) -> Iterator[bool]:
        path = sorted(self.copy("truncated").glob("shard-*.npz"))[1]
        content = path.read_bytes()
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            yield read_about(path) is None
        yield self.recovers(path.parent)

    def flipped_shard(self) -> Iterator[bool]:
        """Every byte of the file: headers, arrays, what it tells of itself, directory."""
        path = sorted(self.copy("flipped").glob("shard-*.npz"))[1]
        content, whole = path.read_bytes(), read_whole(path)
        for at in range(len(content)):
            path.write_bytes(flipped(content, at))
            data = read_whole(path)
            yield data is None or all((data[name] == whole[name]).all() for name in whole)
        for at in (10, len(content) // 3, len(content) - 5):
            path.write_bytes(flipped(content, at))
            yield self.recovers(path.parent)

    def flipped_manifest(self) -> Iterator[bool]:
        path = self.copy("manifest") / "manifest.json"
        content, whole = path.read_bytes(), read_manifest(path.parent)
        for at in range(len(content)):
            path.write_bytes(flipped(content, at))
            try:
                yield read_manifest(path.parent) == whole
            except UserError:
                yield True
        for broken in (flipped(content, 5), content[: len(content) // 2], b""):
            path.write_bytes(broken)
            yield self.recovers(path.parent) and read_manifest(path.parent) == whole

    def flipped_chain(self) -> Iterator[bool]:
        for name in ("warmup.npz", "window-000001.npz"):
            out = self.copy(f"chain-{name}")
            (path,) = out.rglob(name)
            path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))
            for shard in sorted(out.glob("shard-*.npz"))[1:]:
                shard.unlink()  # else nothing would ask for the chains
            yield self.recovers(out)

    def of_another_run(self) -> Iterator[bool]:
        """A shard of another seed, and of another place in the same run, under the name of one of ours."""
        other = self.command("other", "--seed 1")
        assert other.end() == 0
        for i, folder in enumerate((other.out, self.whole.out)):
            out = self.copy(f"another-{i}")
            mine, theirs = sorted(out.glob("shard-*.npz"))[1], sorted(folder.glob("shard-*.npz"))[2 * i]
            mine.write_bytes(theirs.read_bytes())
            kept = self.finished(out)
            del kept[mine.name]
            yield self.recovers(out, kept)
        out = self.copy("another-manifest")
        (out / "manifest.json").unlink()
        run = self.command("another-manifest", "--seed 1")
        yield run.end() == 2 and "is of another run" in run.said and self.recovers(out)

    def full_disk(self) -> Iterator[bool]:
        """A small disk that is made larger afterwards; and a limit on the size of files, which needs no mount."""
        with mounted(self.work / "disk", "-t", "tmpfs", "-o", "size=60k", "none") as disk:
            if disk:
                out = disk / "run"
                run = self.command("disk/run")
                stopped = run.end() == 2 and "is full" in run.said and not list(out.rglob("*.part"))
                subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
                yield stopped and self.recovers(out)

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))

        run = self.command("limit", before=limit)
        stopped = run.end() == 2 and "is full" in run.said and not list(run.out.rglob("*.part"))
        yield stopped and self.recovers(run.out)

    def read_only(self) -> Iterator[bool]:
        """A finished run is still found finished; one that is not stops with a sentence, and goes on afterwards."""
        folder = self.copy("read-only")
        with mounted(folder, "--bind", str(folder)) as disk:
            if not disk:
                return
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            run = self.command("read-only")
            yield run.end() == 0 and "nothing was computed" in run.said
        max(folder.glob("shard-*.npz")).unlink()
        with mounted(folder, "--bind", str(folder)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            run = self.command("read-only")
            stopped = run.end() == 2 and "cannot be written to" in run.said and "images are safe" in run.said
        yield stopped and self.recovers(folder)

    def second_writer(self) -> Iterator[bool]:
        """The whole run, or the same share, twice; two shares are no fault."""
        for i, (first, second) in enumerate((("", ""), ("", "--shard 1/2"), ("--shard 0/2", "--shard 0/2"))):
            out = self.work / f"second-{i}"
            one = self.command(out.name, first)
            until(lambda out=out: (out / "manifest.json").exists())
            os.kill(one.pid, signal.SIGSTOP)
            two = Command(out, f"{self.words} {second}")
            refused = two.end() == 2 and f"in use by process {one.pid}" in two.said
            os.kill(one.pid, signal.SIGCONT)
            yield one.end() == 0 and refused and self.recovers(out)
        out = self.work / "second-shares"
        shares = [Command(out, f"{self.words} --shard {i}/2") for i in range(2)]
        yield [s.end() for s in shares] == [0, 0] and torch.equal(images(out), self.reference)

    def clock_backwards(self) -> Iterator[bool]:
        """Files from the year 2100, and a clock that runs backwards while the run goes on."""

        def backwards() -> None:
            moments = iter(range(10**6, 0, -1))
            time.time = lambda: float(next(moments))

        for i in range(self.times):
            out, _, _ = self.interrupted(f"clock-{i}", signal.SIGKILL)
            for path in out.rglob("*"):
                os.utime(path, (4102444800, 4102444800))
            kept = self.finished(out)
            run = self.command(out.name, before=backwards)
            yield run.end() == 0 and self.recovers(out, kept)


FAULTS = {
    "SIGKILL at a random moment": Campaign.killed,
    "SIGTERM at a random moment": Campaign.terminated,
    "a shard cut short": Campaign.truncated_shard,
    "a byte of a shard flipped": Campaign.flipped_shard,
    "a byte of the manifest flipped, half of it or all gone": Campaign.flipped_manifest,
    "a byte of a chain's state flipped": Campaign.flipped_chain,
    "a shard of another run or place, no manifest": Campaign.of_another_run,
    "a full disk": Campaign.full_disk,
    "a folder that is read only": Campaign.read_only,
    "a second writer": Campaign.second_writer,
    "a clock that goes backwards": Campaign.clock_backwards,
}


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@contextlib.contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path | None]:
    """A file system at a folder, taken away afterwards; None where this process may not mount."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *words, str(folder)], capture_output=True).returncode:
        print(f"(no mounts here: part of {folder.name} is left out)")
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("same", "campaign"))
    p.add_argument("--num", type=int, help="images (2000 for same, 256 for campaign)")
    p.add_argument("--nfe", type=int, default=8)
    p.add_argument("--kills", type=int, default=10)
    p.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    p.add_argument("--times", type=int, default=5, help="of each fault at a random moment")
    p.add_argument("--only", nargs="+", default=[""], help="faults with one of these words in their name")
    p.add_argument("--out", type=Path, help="a JSON file for what was found")
    a = p.parse_args()
    torch.set_num_threads(1)
    found, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        if a.what == "same":
            for sampler, way, equal in same_images(a.num or 2000, a.nfe, a.kills, a.samplers, Path(folder)):
                print(f"{sampler:<12} {way:<28} {'the same' if equal else 'DIFFERENT'}", flush=True)
                found.append({"sampler": sampler, "way": way, "same": equal})
                failed += not equal
        else:
            campaign = Campaign(Path(folder), a.num or 256, a.times)
            for name, fault in FAULTS.items():
                if any(word in name for word in a.only):
                    trials = list(fault(campaign))
                    print(f"{name:<56} tried {len(trials):>5}   survived {sum(trials):>5}", flush=True)
                    found.append({"fault": name, "tried": len(trials), "survived": sum(trials)})
                    failed += len(trials) - sum(trials)
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
