"""The published half of figures/: what it has, how it comes there, and how far a run is from it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ToyProject
from PIL import Image

from dmcmc_core.errors import UserError
from dmcmc_core.report import plots
from dmcmc_core.report.compare import Difference, difference, is_time, relative, without_times
from dmcmc_core.workbench import cli, experiments
from dmcmc_core.workbench.experiments import Project, gallery, published, runner

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("same_numbers", ROOT / "benchmarks" / "same_numbers.py")
same_numbers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(same_numbers)

# What is committed


def test_the_published_half_is_small_and_of_files_that_a_browser_shows():
    files = [path for path in (ROOT / "figures" / "published").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".png", ".csv", ".md", ".json"}
    assert sum(path.stat().st_size for path in files) < 6e6 - (ROOT / "figures" / "README.md").stat().st_size


@pytest.mark.parametrize("profile", ["local", "full", "readme"])
def test_every_published_file_has_an_item_that_says_where_it_comes_from(profile):
    project = Project(ROOT)
    folder, entries = project.published(profile), project.published_items(profile)
    of_items = [name for entry in entries.values() for name in entry["files"]]
    of_all = (
        {"provenance.json"} if profile == "readme" else {"claims.csv", "claims.md", "provenance.json", "results.csv"}
    )
    assert sorted({*of_items, *of_all}) == sorted(path.name for path in folder.iterdir())
    assert len(set(of_items)) == len(of_items)
    for entry in entries.values():
        assert re.fullmatch("[0-9a-f]{40}", entry["commit"]) and entry["versions"]["torch"] and entry["device"]
        assert entry["command"].startswith(("python -m dmcmc_core ", "python benchmarks/"))
    for name in of_items:
        assert not name.endswith(".md") or "provenance" not in (folder / name).read_text()


def test_the_gallery_is_of_what_is_published():
    assert (ROOT / "figures" / "README.md").read_text(encoding="utf-8") == gallery.markdown(Project(ROOT))


@pytest.mark.parametrize("page", ["README.md", "figures/README.md"])
def test_links_to_figures_work_in_a_fresh_checkout(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    listed = subprocess.run(["git", "ls-files", "figures"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for link in links:
        if "://" not in link:
            target = (path.parent / link).resolve()
            assert target.exists(), link
            name = target.relative_to(ROOT).as_posix()
            assert not listed or not name.startswith("figures/") or name in listed, f"{link} is not committed"


def test_the_list_of_items_has_the_verdicts_that_are_published():
    """A checkout without runs would write the same table as one that has them."""
    table = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8").split("<!-- items -->")[1]
    for id, entry in Project(ROOT).published_items("local").items():
        took = experiments.clock(entry["seconds"]) if entry["seconds"] else ""  # none where the machine was busy
        assert re.search(rf"^\| `{id}`: .* \| {entry['verdict']} \| {took} \|", table, re.M)


# How it comes there

WRITES = """
import json
from PIL import Image, PngImagePlugin
text = PngImagePlugin.PngInfo()
text.add_text("Provenance", "{}")
Image.linear_gradient("L").resize((1200, 300)).convert("RGBA").save(f"{out_dir}/a-plot.png", pnginfo=text)
Path(out_dir, "a-plot.pdf").write_text("PDF")
Path(out_dir, "a-plot.csv").write_text("x,y,seconds\\n1,0.5,0.1\\n")
Path(out_dir, "a-table.csv").write_text(f"x,y,holds\\n1,{base.VALUE},True\\n")
Path(out_dir, "a-table.md").write_text("A table.\\n\\n| x |\\n|---|\\n| 1 |\\n\\n<!-- provenance: {} -->\\n")
Path(out_dir, "a-table.tex").write_text("TeX")
"""


def add(toy):
    """Items ``a``, which has a figure and a table, and ``b``, which has a CSV alone."""
    code = f"from pathlib import Path\nfrom toy_core import base\n{WRITES}"
    named = {"outputs": ["a.csv"], "figures": {"a-plot": "A ramp."}, "tables": ["a-table"]}
    toy.add("a", before=code, **named)
    toy.add("b", core=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose two items have run, and what was said."""
    toy, said = ToyProject(tmp_path_factory.mktemp("made")), []
    add(toy)
    experiments.reproduce(project=toy.project, say=said.append)
    return toy.root, "\n".join(said)


@pytest.fixture
def ran(made, tmp_path):
    """A copy of that project."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    toy = ToyProject(tmp_path)
    add(toy)
    return toy


def publish(toy, *words):
    return cli.main(["publish", *words, "--root", str(toy.root), "--package", "toy_core"])


def content(folder):
    """Name -> bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_has_run_is_published_and_its_origin_stands_once(ran):
    assert publish(ran) == 0
    folder, runs = ran.project.published("local"), ran.root / "exp" / "runs"
    names = ["a-plot.png", "a-plot.csv", "a-table.csv", "a-table.md", "a.csv", "b.csv"]
    assert sorted(content(folder)) == sorted([*names, "claims.csv", "claims.md", "provenance.json", "results.csv"])
    for name in (name for name in names if name.endswith(".csv")):
        (made,) = runs.glob(f"{name[0]}/*/{name}")
        assert (folder / name).read_bytes() == made.read_bytes(), "CSVs of few digits are the bytes of the run"
    assert (folder / "a-table.md").read_text() == "A table.\n\n| x |\n|---|\n| 1 |\n"
    assert "provenance" not in (folder / "claims.md").read_text()

    entries = ran.project.published_items("local")
    assert list(entries) == ["a", "b"]
    entry = entries["a"]
    assert entry["command"] == "python -m dmcmc_core reproduce --profile local --only a"
    assert entry["verdict"] == "1 of 2 claims hold" and entry["seconds"] > 0 and entry["files"] == names[:5]
    assert {"commit", "dirty", "notebook", "seed", "parameters", "key", "versions", "device"} <= set(entry)

    page = (ran.root / "figures" / "README.md").read_text()
    assert (
        "![A ramp.](published/local/a-plot.png)" in page and "*A ramp.* ([numbers](published/local/a-plot.csv))" in page
    )
    assert "[table](published/local/a-table.md) ([CSV](published/local/a-table.csv))" in page
    assert "Figure 0" in page and "1 of 2 claims hold" in page and entry["command"] in page
    assert not list(ran.root.glob("figures/**/*.part"))


def test_a_published_picture_looks_as_it_did(ran):
    from PIL import Image, ImageChops

    publish(ran)
    with Image.open(ran.project.published("local") / "a-plot.png") as small:
        assert small.size == (600, 150) and small.mode == "P" and not small.info.get("Provenance")
        shown = small.convert("RGB")
    with Image.open(ran.root / "figures" / "a-plot.png") as drawn:
        halved = drawn.convert("RGB").reduce(2)
    assert max(high for _, high in ImageChops.difference(shown, halved).getextrema()) <= 8


def test_the_list_of_items_takes_verdicts_from_what_is_published_where_nothing_has_run(ran):
    publish(ran)
    experiments.write_items(ran.project)
    before = (ran.root / "docs" / "reproduce.md").read_text()
    assert "| 1 of 2 claims hold | " in before and "(../figures/published/local/a-plot.png)" in before
    shutil.rmtree(ran.root / "exp" / "runs")
    assert experiments.items_table(ran.project) in before
    assert "not run" in experiments.overview(project=ran.project), "the list is of this machine"


def test_docs_take_tables_and_origins_from_what_is_published(ran, capsys):
    publish(ran)
    command = ["docs", "--root", str(ran.root), "--package", "toy_core"]
    page, other = ran.root / "docs" / "a" / "page.md", ran.root / "docs" / "b.md"
    page.parent.mkdir()
    page.write_text(
        "Told.\n<!-- table\nfrom: local/a-table\n-->\nold\n<!-- end -->\n<!-- origin local/a -->\n<!-- end -->\n"
    )
    assert cli.main(command) == 0 and f"wrote {page}" in capsys.readouterr().out
    made = page.read_text()
    assert made.startswith("Told.\n<!-- table") and "old\n" not in made and "| x |\n| --- |\n| 1 |\n" in made
    assert "](../../figures/published/local/a-table.csv)" in made and "`python -m dmcmc_core reproduce" in made
    assert cli.main(command) == 0 and page.read_text() == made, "what is up to date stays"
    page.write_text(made.replace("| 1 |", "| 2 |"))
    other.write_text("<!-- table\nfrom: local/gone\n-->\n<!-- end -->\n")
    assert cli.main(command) == 2 and "b.md, table" in capsys.readouterr().err
    assert "| 2 |" in page.read_text(), "all pages or none"


def test_what_has_not_run_is_not_published(ran, capsys):
    publish(ran)
    before = content(ran.project.published("local"))
    ran.add("c", core=False)
    (ran.root / "toy_core" / "deeper.py").write_text("VALUE = 3\n")
    capsys.readouterr()
    assert publish(ran) == 2
    assert capsys.readouterr().err == (
        "error: nothing is published, as runs under local are missing (not run: c; out of date: a): "
        "python -m dmcmc_core reproduce --profile local makes them\n"
    )
    assert content(ran.project.published("local")) == before
    assert publish(ran, "--profile", "smoke") == 2 and "shown nowhere" in capsys.readouterr().err
    assert publish(ran, "--only", "d") == 2 and "unknown item 'd'" in capsys.readouterr().err
    assert publish(ran, "--profile", "full", "--only", "b") == 2 and not ran.project.published("full").exists()


def test_one_item_is_published_and_the_others_stay(ran):
    publish(ran)
    before = content(ran.project.published("local"))
    path = ran.project.published("local") / "provenance.json"
    known = json.loads(path.read_text())
    known["items"]["extra"] = {"title": "By hand", "command": "x", "files": ["extra.png"]}
    known["items"]["a"]["files"].append("a-old.csv")  # an output that the item no longer has
    path.write_text(json.dumps(known))
    for name in ("extra.png", "a-old.csv"):
        (path.parent / name).write_bytes(before["a-plot.png"])
    shutil.rmtree(ran.root / "exp" / "runs" / "b")
    assert publish(ran, "--only", "a") == 0
    after = content(path.parent)
    assert after.keys() == {*before, "extra.png"}
    assert all(after[name] == before[name] for name in before if name != "provenance.json")
    assert list(ran.project.published_items("local")) == ["a", "b", "extra"]
    assert "By hand" in (ran.root / "figures" / "README.md").read_text()


def full_disk(*_):
    raise OSError(28, "No space left on device", "a file")


@pytest.mark.parametrize("fails", ["copy_small", "write_results", "rename"])
def test_it_is_published_whole_or_not_at_all(ran, monkeypatch, capsys, fails):
    publish(ran)
    folder, rename, once = ran.project.published("local"), os.replace, iter([True])
    before = content(folder)

    def replace(source, target):
        if Path(target) == folder and next(once, False):  # the first time: then the old folder comes back
            full_disk()
        rename(source, target)

    if fails == "rename":
        monkeypatch.setattr(os, "replace", replace)
    else:
        monkeypatch.setattr(published, fails, full_disk)
    assert publish(ran) == 2 and "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert content(folder) == before and not list(ran.root.glob("figures/**/*.part"))


def test_two_that_show_one_figure_at_once_leave_it_whole(tmp_path, monkeypatch):
    """Each has written its half when the other one goes on, and neither renames the file of the other."""
    item = dataclasses.replace(Project(ROOT).items[0], outputs=("a.csv",))
    texts, both, errors = {"one": "1" * 1000, "two": "2" * 2000}, threading.Barrier(2, timeout=30), []
    for run, text in texts.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "a.csv").write_text(text)

    def copy_in_halves(source, target):
        text = Path(source).read_text()
        with Path(target).open("w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            both.wait()
            file.write(text[len(text) // 2 :])
        both.wait()

    def show(run):
        try:
            runner._show(tmp_path / run, item, tmp_path / "figures")
        except (OSError, threading.BrokenBarrierError) as error:
            errors.append(error)

    monkeypatch.setattr(runner.shutil, "copyfile", copy_in_halves)
    threads = [threading.Thread(target=show, args=(run,)) for run in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["a.csv"]
    assert (tmp_path / "figures" / "a.csv").read_text() in texts.values()


# How far a run is from it


def test_reproduce_says_how_far_each_table_is_from_the_published_one(made, ran):
    assert re.search(r"^a +table +not published yet$", made[1], re.M) and "largest difference" in made[1]
    publish(ran)
    folder = ran.project.published("local")
    (folder / "a-table.csv").write_text("x,y,holds\n1,2.5,False\n")
    (folder / "a-plot.csv").write_text("x,y,seconds\n1,0.5,77\n")
    (folder / "b.csv").write_text("0\n2\n4\n")
    said: list[str] = []
    outcomes = experiments.reproduce(project=ran.project, say=said.append)
    assert all(outcome.unchanged and not outcome.failed for outcome in outcomes)
    lines = said[-1].strip().splitlines()
    assert "figures/published/local, times left out" in lines[0]
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in lines[3:]}
    assert rows == {
        ("a", "plot"): ["0", "0"],  # its time differs
        ("a", "table"): ["0.2", "1"],
        ("a", "a"): ["0", "0"],
        ("b", "b"): "rows: 3, not 2".split(),
    }
    (folder / "b.csv").write_bytes(b"\xff\xfe0")
    (folder / "a-table.csv").unlink()
    text = experiments.beside_published(ran.project, outcomes, "local")
    assert "cannot be compared" in text and "not published yet" in text


def test_the_checkout_stays_clean(ran):
    shutil.copy(ROOT / ".gitignore", ran.root)
    publish(ran)

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(
            ["git", *identity, *words], cwd=ran.root, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    committed = git("ls-files", "figures").split()
    assert {Path(name).suffix for name in committed} == {".png", ".csv", ".md", ".json"}
    assert "figures/README.md" in committed and "figures/published/local/a-plot.png" in committed
    assert all(name.startswith("figures/published/") for name in committed if name != "figures/README.md")
    for name in ("a-plot.png", "claims.csv"):
        (ran.root / "figures" / name).unlink()
    experiments.reproduce(project=ran.project, say=lambda line: None)
    assert (ran.root / "figures" / "a-plot.pdf").is_file() and (ran.root / "figures" / "claims.csv").is_file()
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ("x,holds\n1.5,True\n", "x,holds\n1.5,True\n", Difference()),
        ("x,holds\n1.5,True\n", "x,holds\n2.0,False\n", Difference(0.25, 1)),
        ("x,note\n1,a\n", "x,note\n1,b\n", Difference(words=1)),
        ("x\n\n1e-14\n", "x\n\n-1e-14\n", Difference()),
        ("x,ms\n1,5.0\n", "x,ms\n1,7.0\n", Difference()),
        ("x\nnan\n", "x\nnan\n", Difference()),
        ("x\nnan\n", "x\n1\n", Difference(float("inf"))),
        ("x\n1\n", "x\n\n", Difference(shape="other columns")),
        ("x\n1\n2\n", "x\n1\n", Difference(shape="rows: 2, not 1")),
        ("x\n1\n", "y\n1\n", Difference(shape="other columns")),
        ("", "", Difference()),
    ],
)
def test_the_difference_of_two_tables(tmp_path, here, there, expected):
    (tmp_path / "here.csv").write_text(here)
    (tmp_path / "there.csv").write_text(there)
    assert difference(tmp_path / "here.csv", tmp_path / "there.csv") == expected


def test_times_are_told_from_other_columns():
    times = ["ms", "ms_spread", "seconds", "seconds_chains", "seconds_integrator", "seconds_integrator_spread"]
    others = ["nfe", "steps", "sigma", "n", "columns", "millions", "frechet_spread", "ms per image?"]
    assert [is_time(column) for column in [*times, *others]] == [True] * 6 + [False] * 8
    assert without_times([["a", "ms", "b"], ["1", "2", "3"], []]) == [["a", "b"], ["1", "3"], []]
    assert relative(0.0, 0.0) == 0 and relative(1.0, -1.0) == 2 and relative(3.0, 4.0) == 0.25


def write(folder, **files):
    """Files of a figures folder; ``__`` in a name stands for /, and all are CSV."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("after", "status", "said"),
    [
        ({}, 0, "3 files in both folders, 1 of them compared without the columns that hold times:\n3 the same, 0 diff"),
        ({"a": "x,y\n1,2\n"}, 0, "3 the same"),
        ({"a": "x,y\n1,3\n"}, 1, "local/a: line 2, y: 2 before, 3 after"),
        ({"a": "x,y\n1,2\n1,2\n"}, 1, "local/a: line 3, x: nothing before, 1 after"),
        ({"a": "x,y\n1,2"}, 1, "only in line ends or quotes"),
        ({"published__local__c": "x\n1\n"}, 1, "1 only in one folder"),
        ({"published__local__b": "x,ms\n1,2\n"}, 0, "3 the same"),
        ({"published__local__b": "x,ms\n2,2\n"}, 1, "line 2, x: 1 before, 2 after"),
        ({"paper__d": "x\n1\n"}, 1, "paper/d.csv: only in"),
    ],
)
def test_checkouts_with_the_same_numbers(tmp_path, monkeypatch, capsys, after, status, said):
    """The older checkout publishes where the newer one makes; what was made goes before what is published."""
    before = write(tmp_path / "old", a="x,y\n1,2\n", b="x,ms\n1,1\n", full__a="x\n1\n")
    newer = {"published__local__a": "x,y\n1,2\n", "published__local__b": "x,ms\n1,1\n", "published__full__a": "x\n1\n"}
    monkeypatch.setattr(sys, "argv", ["same_numbers", str(before), str(write(tmp_path / "new", **newer | after))])
    assert same_numbers.main() == status
    assert said.replace("local/a:", "local/a.csv:") in capsys.readouterr().out


def test_a_folder_without_tables_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["same_numbers", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        same_numbers.main()
    assert ended.value.code == 2 and "no tables of any profile" in capsys.readouterr().err


# The manifest


def test_figures_and_tables_name_the_files_that_they_are(toy):
    toy.add("a", figures={"a-f": "What it shows."}, tables=["a-t"], outputs=["a.txt"])
    toy.add("b", figures=["b"], tables=["b-t"], outputs=[])
    del toy.entries[1]["outputs"]
    toy.write_manifest(toy.entries)
    a, b = toy.project.items
    assert a.outputs == ("a-f.png", "a-f.pdf", "a-f.csv", "a-t.csv", "a-t.md", "a-t.tex", "a.txt")
    assert a.figures == {"a-f": "What it shows."} and b.figures == {"b": ""}
    assert b.outputs == ("b.png", "b.pdf", "b.csv", "b-t.csv", "b-t.md", "b-t.tex")


@pytest.mark.parametrize("other", ["a", "b"])
def test_a_figure_and_a_table_of_one_name_are_refused_as_one_would_overwrite_the_numbers_of_the_other(toy, other):
    toy.add("a", figures=["drawn"], **({"tables": ["drawn"]} if other == "a" else {}))
    toy.add("b", **({"tables": ["drawn"]} if other == "b" else {}))
    with pytest.raises(UserError, match=f"'drawn' names the figure of item 'a' and the table of item '{other}'"):
        _ = toy.project.items


def test_an_item_has_what_the_defaults_say_unless_it_says_otherwise(toy):
    toy.add("a")
    toy.add("b", tolerance="none")
    path = toy.root / "exp" / "manifest.yaml"
    path.write_text("defaults: {tolerance: five percent}\n" + path.read_text())
    assert [item.tolerance for item in toy.project.items] == ["five percent", "none"]
    for defaults, message in (
        ("{tolerances: x}", "unknown key in manifest.yaml, defaults 'tolerances': did you mean 'tolerance'"),
        ("{title: x}", "unknown key in manifest.yaml, defaults 'title'"),
        ("[x]", "defaults must be a mapping"),
    ):
        toy.write_manifest(toy.entries)
        path.write_text(f"defaults: {defaults}\n" + path.read_text())
        with pytest.raises(UserError, match=message):
            _ = toy.project.items
    path.write_text("other: 1\n" + path.read_text())
    with pytest.raises(UserError, match="must have the one key 'items' at the top"):
        _ = toy.project.items


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(figures="a"), "figures must be a list of names, or map names to captions, not 'a'"),
        (dict(figures={"a": 1}), "figures must be a list of names"),
        (dict(tables="a"), "tables must be a list of names"),
        (dict(figures=["a"], outputs=["a.png"]), "output 'a.png' appears twice"),
    ],
)
def test_manifest_refuses_other_figures_and_tables(toy, change, message):
    toy.add("a", **change)
    with pytest.raises(UserError, match=message):
        _ = toy.project.items


def test_an_item_without_outputs_is_refused(toy):
    toy.add("a")
    del toy.entries[0]["outputs"]
    toy.write_manifest(toy.entries)
    with pytest.raises(UserError, match="item 1 \\(a\\): key 'outputs' is missing"):
        _ = toy.project.items


def test_published_numbers_have_seven_digits(tmp_path):
    text = "name,a,b\nx 1.23456789012345,0.123456789012,-1.5000161947870311e-05\nshort,0.25,12345678901\n"
    (tmp_path / "a.csv").write_text(text)
    published.copy_small(tmp_path / "a.csv", tmp_path / "b.csv")
    wanted = "name,a,b\nx 1.234568,0.1234568,-1.500016e-05\nshort,0.25,12345678901\n"
    assert (tmp_path / "b.csv").read_text() == wanted


def test_thin_lines_of_two_colours_stay_two_colours(tmp_path):
    rows = [dict(panel="p", arm=arm, x=x, y=x + k / 9) for k, arm in enumerate("abcd") for x in range(9)]
    path = plots.save_figure(plots.curve_panels(rows, "x", "y"), tmp_path, "f", rows, {})[0]
    published.copy_small(path, tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as image:
        seen = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    for wanted in plots.COLOURS[:4]:
        rgb = tuple(int(wanted[k : k + 2], 16) for k in (1, 3, 5))
        assert min(max(abs(a - b) for a, b in zip(rgb, colour, strict=True)) for colour in seen) < 24, wanted
