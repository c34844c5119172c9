"""Every block of code and every command of README.md and docs/ runs as it stands, with fewer images."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from dmcmc_core.workbench import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import prose  # noqa: E402
import sound_files  # noqa: E402

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
UNTESTED = re.compile(r"# untested: \w.+$")
ELSEWHERE = {"fitted-elsewhere.md"}
"""Pages whose code other tests run: tests/test_fitted_export.py."""
PROGRAM = "python -m dmcmc_core "
FEW, ENOUGH = 8, 66
"""Images that a command makes at most, and where chains share their warm-up or features of 64 numbers need as many."""


def blocks(page):
    return [(language or "sh", code) for language, code in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(code):
    """The lines of a block of commands, each that continues with what follows it."""
    return [line.strip() for line in code.replace("\\\n", " ").splitlines() if line.strip()]


PAGES = [page for page in prose.pages() if blocks(page) and page.name not in ELSEWHERE]


def photos(folder, side, channels):
    """A folder of PNG files that are no model's."""
    from PIL import Image

    folder.mkdir()
    shape = (ENOUGH, side, side, channels)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for n, image in enumerate(pixels):
        Image.fromarray(image.squeeze(-1) if channels == 1 else image).save(folder / f"{n}.png")


class Net(torch.nn.Module):
    """A network of somebody else's: of images, and of noise levels or times."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, at):
        return self.layer(x) / (1 + at[:, None, None, None].to(x))


def given(page):
    """The names that the code of a page takes from its reader."""
    if page.name != "your-own.md":
        return {}
    torch.manual_seed(0)
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    return {"my_net": Net(), "my_unet": Net(), "alphas_cumprod": kept, "my_images": torch.rand(9, 3, 32, 32) * 2 - 1}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder like a checkout, whose cache is empty, to be in."""
    for name in ("exp/nets", "exp/score_embedding", "exp/manifest.yaml", "notebooks", "figures"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    small = {**sound_files.SMALL_EDM, "img_resolution": 8}
    (tmp_path / "edm.pkl").write_bytes(sound_files.edm_bytes(sound_files.edm_content(small)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fewer(line, most=ENOUGH):
    """A command with so many images, seeds and budgets that it takes seconds."""
    line = re.sub(r"(--num|-n) (\d+)", lambda found: f"{found[1]} {min(int(found[2]), most)}", line)
    line = re.sub(r"^(fit .*--nfe \d+)( \d+)+", r"\1", line)
    line += f" --nfe 5 --num {FEW} --seeds 2" * line.startswith("compare --model")
    return line + " --steps 5" * line.startswith("boundary fit")


def run_command(line, most=ENOUGH):
    if UNTESTED.search(line):
        return
    words = shlex.join(shlex.split(line, comments=True))
    assert words.startswith(PROGRAM), f"{line!r} is run by no test and says no reason: # untested: ..."
    assert cli.main(shlex.split(fewer(words.removeprefix(PROGRAM), most))) == 0, line


def run_code(page, number, code, names):
    few = re.sub(r"\bnum=\d{3,}", f"num={ENOUGH}", code)
    exec(compile(few, f"block {number} of {page.name}", "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page, desk):
    photos(desk / "photos", *{"README.md": (8, 3), "your-own.md": (32, 3)}.get(page.name, (8, 1)))
    names, measured = given(page), "--reference" in page.read_text(encoding="utf-8")
    for number, (language, code) in enumerate(blocks(page)):
        if language == "python":
            run_code(page, number, code, names)
        else:
            for line in commands(code):
                run_command(line, ENOUGH if "dlg+" in line or measured else FEW)


def test_a_command_that_nothing_runs_says_why():
    run_command("make reproduce  # untested: takes minutes")
    for line in ("make reproduce", "make reproduce  # untested:", "rm -r x  # takes minutes"):
        with pytest.raises(AssertionError, match="says no reason"):
            run_command(line)


def test_commands_run_with_fewer_images():
    assert fewer("sample --num 600 --nfe 10") == f"sample --num {ENOUGH} --nfe 10"
    assert fewer("sample -n 8 --nfe 4 5") == "sample -n 8 --nfe 4 5"
    assert fewer("fit --model digits --nfe 4 5 6 --out x") == "fit --model digits --nfe 4 --out x"
    assert fewer("compare --model digits --nfe 4 5 --num 256").endswith("--nfe 5 --num 8 --seeds 2")


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_ask_nobody(tmp_path):
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'dmcmc-core[docs]'")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings: pip install 'dmcmc-core[docs]'")
    import os
    import subprocess

    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    asked = re.compile(r'<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)="(?:https?:)?//')
    for page in pages:
        assert not asked.search(page.read_text(encoding="utf-8")), page
