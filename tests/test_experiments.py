"""The runner: what runs, what does not, and what is left behind when it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MEET
from forks import Forks

from dmcmc_core.errors import UserError
from dmcmc_core.report import tables
from dmcmc_core.workbench import cli, experiments
from dmcmc_core.workbench.experiments import (
    Failure,
    Project,
    declared_parameters,
    imported_modules,
    read_cells,
    read_yaml,
)

ROOT = Path(__file__).resolve().parents[1]
SLOW = """
import os, time
from pathlib import Path
Path(out_dir, "c.csv").write_text("half of it")
Path(cache_dir, "started").write_text(str(os.getpid()))
while not Path(cache_dir, "go").exists():
    time.sleep(0.05)
"""


def reproduce(toy, **options):
    """The outcomes by id, and everything that was said."""
    said: list[str] = []
    outcomes = experiments.reproduce(project=toy.project, say=said.append, **options)
    return {o.item.id: o for o in outcomes}, "\n".join(said)


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_runs_once_and_again_only_what_changed(toy):
    toy.add("a", before=MEET.format(me="a", other="b"))
    toy.add("b", before=MEET.format(me="b", other="a"), core=False)
    outcomes, said = reproduce(toy, jobs=2)  # they meet: two at a time
    assert [o.verdict for o in outcomes.values()] == ["1 of 2 claims hold"] * 2
    assert not any(o.failed or o.unchanged for o in outcomes.values())
    assert "a: does not hold: false; here 0, published 1 (found to be so)" in said
    assert (toy.root / "figures" / "a.csv").read_text() == "0\n2\n4\n6\n"
    folder = outcomes["a"].folder
    assert {"run.ipynb", "metrics.json", "provenance.json", "log.txt", "a.csv"} == {p.name for p in folder.iterdir()}
    numbers = json.loads((folder / "metrics.json").read_text())["numbers"]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert numbers == {"threads": str(share), "cwd": str(toy.root), "executable": sys.executable}
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["parameters"] == {"n": 4, "profile": "local", "seed": 0} and origin["seconds"] > 0
    assert origin["key"].startswith(folder.name) and "toy_core/deeper.py" in origin["inputs"]

    outcomes, _ = reproduce(toy, executor=Forks())
    assert all(o.unchanged for o in outcomes.values()) and (toy.runs("a"), toy.runs("b")) == (1, 1)

    (toy.root / "figures" / "a.csv").unlink()
    (toy.root / "figures" / "b.csv").write_text("tampered with")
    leave_traces_of_a_run(toy.root / "notebooks" / "a.ipynb")
    (toy.root / "toy_core" / "unrelated.py").write_text("CHANGED = True\n")
    outcomes, _ = reproduce(toy, executor=Forks())
    assert all(o.unchanged for o in outcomes.values())
    for name in "ab":
        assert (toy.root / "figures" / f"{name}.csv").read_text() == "0\n2\n4\n6\n"

    toy.write_notebook("b", before=MEET.format(me="b", other="a"), core=False, after="# one more cell")
    outcomes, said = reproduce(toy, executor=Forks())
    assert outcomes["a"].unchanged and not outcomes["b"].unchanged
    assert "b: to run, notebooks/b.ipynb changed" in said

    (toy.root / "toy_core" / "deeper.py").write_text("VALUE = 3\n")  # imported by what a imports; b imports none of it
    outcomes, said = reproduce(toy, executor=Forks())
    assert outcomes["b"].unchanged and not outcomes["a"].unchanged
    assert "a: to run, toy_core/deeper.py changed" in said
    assert (toy.root / "figures" / "a.csv").read_text() == "0\n3\n6\n9\n"
    assert (toy.runs("a"), toy.runs("b")) == (2, 2)


def leave_traces_of_a_run(path: Path) -> None:
    """What opening and running a notebook changes in its file: outputs, counts and metadata, not the cells."""
    notebook = json.loads(path.read_text())
    notebook["metadata"]["kernelspec"] = {"name": "other", "display_name": "Other"}
    output = {"output_type": "stream", "name": "stdout", "text": "x"}
    notebook["cells"][0] |= {"execution_count": 7, "outputs": [output]}
    path.write_text(json.dumps(notebook))


@pytest.mark.slow
def test_interrupted_or_killed_it_goes_on_and_ends_as_undisturbed(toy, tmp_path_factory):
    toy.add("a")
    toy.add("c", before=SLOW)
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(toy.root, undisturbed, dirs_exist_ok=True)

    started = toy.root / "exp" / "cache" / "started"
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen(toy.command("--jobs", "1"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: started.is_file() and started.read_text())
        kernel = int(started.read_text())
        os.kill(process.pid, number)
        assert process.wait(timeout=30) == status
        if status == 130:
            assert process.stderr.read().strip().startswith("interrupted: finished items are kept")
        wait_until(lambda kernel=kernel: not alive(kernel), 15)  # nothing goes on computing in the background
        process.stderr.close()
        started.unlink()
        assert not (toy.root / "figures" / "c.csv").exists()
        assert not list((toy.root / "exp" / "runs" / "c").glob("[0-9a-f]*"))

    first = subprocess.Popen(toy.command(), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(started.is_file)
    second = subprocess.Popen(toy.command(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert [second.stdout.readline() for _ in range(3)] == [
        "a: unchanged, 1 of 2 claims hold\n",
        "c: to run\n",
        "c: started\n",
    ]
    time.sleep(1)  # lets it come to the lock; it is right either way
    (toy.root / "exp" / "cache" / "go").touch()
    said = second.communicate(timeout=120)[0]
    assert said.count("1 of 2 claims hold") == 3 and f"figures and tables are in {toy.root / 'figures'}\n" in said
    assert first.wait(timeout=120) == 0 and second.returncode == 0
    assert toy.runs("a") == 1 and toy.runs("c") == 1  # two at once made it once
    (folder,) = [p for p in (toy.root / "exp" / "runs" / "c").iterdir() if not p.name.endswith(".lock")]

    (undisturbed / "exp" / "cache").mkdir()
    (undisturbed / "exp" / "cache" / "go").touch()
    other = Project(undisturbed, "toy_core")
    (other,) = experiments.reproduce(only=["c"], project=other, say=lambda line: None, executor=Forks(2))
    assert folder.name == other.folder.name
    for name in ("c.csv", "metrics.json"):
        expected = (other.folder / name).read_text().replace(str(undisturbed), str(toy.root))
        assert (folder / name).read_text() == expected
    assert (toy.root / "figures" / "c.csv").read_bytes() == (undisturbed / "figures" / "c.csv").read_bytes()


@pytest.mark.slow
def test_a_failure_is_told_and_keeps_nothing_else_from_running(toy, capsys):
    toy.add("raises", "n = n + 1", "raise ValueError('it cannot be')")
    assert cli.main(toy.command()[3:]) == 1
    done = capsys.readouterr()
    assert done.err == "" and "raises: failed: ValueError: it cannot be (cell 3)" in done.out
    (failed,) = (toy.root / "exp" / "runs" / "raises").glob("failed-*")
    assert "it cannot be" in (failed / "run.ipynb").read_text() and f"raises: see {failed}/run.ipynb" in done.out

    toy.add("changes", before="open('toy_core/base.py', 'w').write('VALUE = 5')")
    toy.add("fine", core=False)
    _, said = reproduce(toy, executor=Forks(2))
    assert "raises: failed: ValueError: it cannot be (cell 3)" in said
    assert "changes: failed: toy_core/base.py, toy_core/deeper.py changed while it ran: run again" in said
    assert "fine: 1 of 2 claims hold" in said
    assert "failed" in experiments.overview(project=toy.project)
    assert not (toy.root / "figures" / "raises.csv").exists()

    toy.write_notebook("raises")  # put right, it runs; what was fine is not repeated
    outcomes, _ = reproduce(toy, only=["raises", "fine"], executor=Forks())
    assert not outcomes["raises"].failed and outcomes["fine"].unchanged


LAUNCHER = """
import sys
from ipykernel import kernelapp
with open("tries.txt", "a") as file:
    file.write("x")
    number = file.tell()
if number <= {dead}:
    sys.exit(3)
kernelapp.launch_new_instance()
"""


@pytest.mark.slow
def test_a_kernel_that_dies_before_its_first_answer_gets_a_second_try(toy):
    (toy.root / "ipykernel_launcher.py").write_text(LAUNCHER.format(dead=1))  # found before the installed one
    toy.add("a", core=False)
    outcomes, said = reproduce(toy)
    assert not outcomes["a"].failed, said
    assert (toy.root / "tries.txt").read_text() == "xx" and toy.runs("a") == 1

    (toy.root / "ipykernel_launcher.py").write_text(LAUNCHER.format(dead=9))
    toy.add("b", core=False)
    _, said = reproduce(toy, only=["b"])
    assert "b: failed: RuntimeError: Kernel died before replying to kernel_info" in said
    assert (toy.root / "tries.txt").read_text() == "xxxx", "twice, and not for ever"
    (failed,) = (toy.root / "exp" / "runs" / "b").glob("failed-*")
    assert experiments.cells_done(failed / "run.ipynb") == (0, 3), "papermill calls all three completed"


@pytest.mark.slow
def test_a_cell_that_ends_its_kernel_is_not_done_and_is_not_tried_again(toy):
    toy.add("a", "open('tries.txt', 'a').write('x')", "", "import os; os._exit(3)", "after = 1")
    _, said = reproduce(toy)
    assert "a: failed: DeadKernelError: Kernel died" in said and (toy.root / "tries.txt").read_text() == "x"
    (failed,) = (toy.root / "exp" / "runs" / "a").glob("failed-*")
    assert experiments.cells_done(failed / "run.ipynb") == (3, 5)


@pytest.mark.slow
def test_a_cell_that_shows_an_error_fails_by_its_number(toy):
    toy.add("a", "n = n + 1", "try:\n    1 / 0\nexcept ZeroDivisionError:\n    get_ipython().showtraceback()")
    _, said = reproduce(toy)
    assert "a: failed: ZeroDivisionError: division by zero (cell 3)" in said


def test_cells_are_counted_while_a_notebook_runs(tmp_path):
    states = [("completed", False), ("completed", False), ("running", False), ("pending", None)]
    cells = [
        {"cell_type": "code", "metadata": {"papermill": {"status": status, "exception": exception}}}
        for status, exception in states
    ]
    cells.insert(0, {"cell_type": "markdown", "metadata": cells[0]["metadata"]})
    cells[1]["metadata"]["execution"] = {"iopub.execute_input": "t", "shell.execute_reply": "t"}
    path = tmp_path / "run.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert experiments.cells_done(path) == (2, 4)
    path.write_text("{")  # while it is written
    assert experiments.cells_done(path) == experiments.cells_done(tmp_path / "none.ipynb") == (0, 0)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "wrote no metrics.json"),
        ("{", "not JSON"),
        ('{"claims": []}', "'claims' and 'numbers'"),
        ('{"claims": [{"claim": "x"}], "numbers": {}}', "each claim in metrics.json has"),
        (
            json.dumps(
                {
                    "claims": [dict(claim="x", holds="yes", here="", published=None, source=None, note="")],
                    "numbers": {},
                }
            ),
            "'holds' true or false",
        ),
    ],
)
def test_metrics_keep_their_form(tmp_path, written, message):
    if written is not None:
        (tmp_path / "metrics.json").write_text(written)
    with pytest.raises(Failure, match=message):
        experiments.read_metrics(tmp_path)


def test_unknown_names_are_refused_before_anything_runs(toy):
    toy.add("a")
    for options, message in (
        (dict(profile="locl"), "unknown profile 'locl': did you mean 'local'"),
        (dict(only=["b"]), "unknown item 'b'"),
        (dict(jobs=0), "jobs must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            reproduce(toy, **options)
    toy.entries[0]["parameters"]["local"] = {"m": 5, "n": 4}
    toy.write_manifest(toy.entries)
    with pytest.raises(UserError, match="unknown parameter of notebooks/a.ipynb 'm'.*known are cache_dir, n, out_dir"):
        reproduce(toy)
    toy.entries[0]["parameters"]["local"] = {"sed": 1}
    toy.write_manifest(toy.entries)
    with pytest.raises(UserError, match="'sed': did you mean 'seed'"):
        reproduce(toy)
    assert toy.runs("a") == 0


def test_a_notebook_must_declare_what_the_runner_fills(toy):
    toy.add("a")
    path = toy.root / "notebooks" / "a.ipynb"
    path.write_text(path.read_text().replace("cache_dir = ", "cash_dir = "))
    with pytest.raises(UserError, match="must declare 'cache_dir'"):
        reproduce(toy)
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a notebook"):
        reproduce(toy)
    path.unlink()
    with pytest.raises(UserError, match="there is no notebook"):
        reproduce(toy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(notebok="x"), "unknown key in manifest.yaml, item 1 \\(a\\) 'notebok': did you mean 'notebook'"),
        (dict(id="a b"), "id must consist of"),
        (dict(outputs="a.csv"), "outputs must be a list of file names"),
        (dict(parameters={"lokal": {}}), "unknown profile .* 'lokal': did you mean 'local'"),
        (dict(parameters={"local": 3}), "must be a mapping"),
        (dict(parameters={"local": {"out_dir": "x"}}), "'out_dir' is set by the runner"),
        (dict(published=[{"what": "x", "value": 1}]), "published: key 'source' is missing"),
        (dict(files=[{"path": "x", "what": "y", "source": "z", "sha": 1}]), "unknown key .* 'sha'"),
    ],
)
def test_manifest_refuses_what_it_does_not_know(toy, change, message):
    toy.add("a", **change)
    with pytest.raises(UserError, match=message):
        _ = toy.project.items


def test_manifest_refuses_repeats_and_gaps(toy):
    toy.add("a")
    toy.write_manifest(toy.entries * 2)
    with pytest.raises(UserError, match="id 'a' appears twice"):
        _ = toy.project.items
    del toy.entries[0]["title"]
    toy.write_manifest(toy.entries)
    with pytest.raises(UserError, match="key 'title' is missing"):
        _ = toy.project.items
    (toy.root / "exp" / "manifest.yaml").write_text("items:\n- id: a\n  id: b\n")
    with pytest.raises(UserError, match="key 'id' is given twice"):
        _ = toy.project.items


def test_paper_profile_lists_each_missing_file(toy):
    files = [
        dict(path="exp/paper/one.pth", what="the score net", source="its page", sha256="0" * 64),
        dict(path="exp/paper/two.npz", what="reference statistics", source="another page"),
    ]
    toy.add("a", files=files, models=["exp/nets/small.safetensors"])
    with pytest.raises(UserError) as stopped:
        reproduce(toy, profile="paper")
    lines = str(stopped.value).splitlines()[1:]
    assert lines == [
        "  exp/nets/small.safetensors: a checkpoint that ships with the project, needed by a",
        f"  exp/paper/one.pth: the score net; from its page; SHA-256 {'0' * 64}",
        "  exp/paper/two.npz: reference statistics; from another page; SHA-256 not known",
    ]
    for name in ("exp/nets/small.safetensors", "exp/paper/one.pth", "exp/paper/two.npz"):
        (toy.root / name).parent.mkdir(exist_ok=True)
        (toy.root / name).write_text(name)
    (line,) = experiments.missing_files(toy.project, toy.project.items[0], "paper")
    assert line.startswith("exp/paper/one.pth: the score net is there with SHA-256 ")


def test_key_depends_on_parameters_checkpoints_and_profile(toy):
    toy.add("a", models=["exp/net"])
    (toy.root / "exp" / "net").write_text("weights")
    (item,) = toy.project.items

    def key(profile="local"):
        return experiments.run_key(experiments.ingredients(toy.project, toy.project.items[0], profile))

    before = key()
    assert key() == before != key("smoke")
    (toy.root / "exp" / "net").write_text("other weights")
    assert key() != before
    (toy.root / "exp" / "net").write_text("weights")
    toy.entries[0]["parameters"]["local"]["n"] = 5
    toy.write_manifest(toy.entries)
    assert experiments.run_key(experiments.ingredients(Project(toy.root, "toy_core"), _only(toy), "local")) != before


def _only(toy):
    return toy.project.items[0]


def test_imports_are_followed_without_running_anything(tmp_path):
    package = tmp_path / "pack"
    (package / "sub").mkdir(parents=True)
    for name, text in {
        "__init__.py": "raise RuntimeError('executed')",
        "a.py": "def f():\n    from pack.sub import b\n",
        "c.py": "LAZY = {'load': 'pack.e'}\n",
        "d.py": "",
        "e.py": "from .sub import nothing\n",
        "sub/__init__.py": "",
        "sub/b.py": "from .. import c\nfrom ..d import x\n",
        "sub/other.py": "",
    }.items():
        (package / name).write_text(text)

    def names(*sources):
        return [p.relative_to(package).as_posix() for p in imported_modules(sources, tmp_path, "pack")]

    assert names("import numpy") == []
    assert names("import pack.d as d") == ["__init__.py", "d.py"]
    assert names("%matplotlib inline\nif True:\n    !ls\nimport pack.d") == ["__init__.py", "d.py"]
    assert names("from pack import a") == ["__init__.py", "a.py", "c.py", "d.py", "e.py", "sub/__init__.py", "sub/b.py"]
    assert len(names("neither is this Python")) == 8


def test_declared_parameters_are_those_that_papermill_sees(toy):
    from papermill import inspect_notebook

    toy.add("a")
    path = toy.root / "notebooks" / "a.ipynb"
    inspected = inspect_notebook(str(path))
    assert declared_parameters(read_cells(path)) == set(inspected) == {"profile", "seed", "out_dir", "cache_dir", "n"}


def test_yaml_numbers_are_numbers():
    values = read_yaml("[1e-4, -2E5, 1.5e3, 3, 0.5, e4, 1e, '1e-4']")
    assert values == [1e-4, -2e5, 1500.0, 3, 0.5, "e4", "1e", "1e-4"]


def test_provenance_names_the_commit_and_whether_sources_differ(toy):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=toy.root, check=True)

    toy.add("a")

    def origin():
        item = _only(toy)
        return experiments.provenance(toy.project, item, "local", experiments.ingredients(toy.project, item, "local"))

    assert origin()["commit"] is None
    (toy.root / "figures").mkdir()
    (toy.root / "figures" / "a.csv").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=toy.root, capture_output=True, text=True).stdout.strip()
    (toy.root / "figures" / "a.csv").write_text("2")  # a result that was made again
    (toy.root / "exp" / "runs").mkdir()
    (toy.root / "exp" / "runs" / "x").touch()
    assert (origin()["commit"], origin()["dirty"]) == (head, False)
    (toy.root / "toy_core" / "base.py").write_text("VALUE = 7\n")
    assert (origin()["commit"], origin()["dirty"]) == (head, True)


def test_overview_and_list_of_items_are_generated(toy):
    toy.add("a")
    toy.add("b", parameters={"smoke": {"n": 1}})
    text = experiments.overview(project=toy.project)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["a", "b"]
    assert "not run" in text and "only under smoke" in text
    toy.project.published("local").mkdir(parents=True)
    (toy.project.published("local") / "a.csv").write_text("x\n")
    experiments.write_items(toy.project)
    page = (toy.root / "docs" / "reproduce.md").read_text()
    assert page.startswith("# Toy\n<!-- items -->\n| Item |") and page.endswith("<!-- items -->\nend\n")
    link = "[a.csv](../figures/published/local/a.csv)"
    assert f"| `a`: Toy a | Figure 0 | [a.ipynb](../notebooks/a.ipynb) | not run |  | {link} |" in page
    assert "b.csv" not in page, "no link to what is not there"
    (toy.root / "docs" / "reproduce.md").write_text("no markers")
    with pytest.raises(UserError, match="marker <!-- items --> exactly twice"):
        experiments.write_items(toy.project)


def test_every_claim_is_in_one_table(toy):
    toy.add("a")
    toy.add("b")
    experiments.reproduce(project=toy.project, say=lambda line: None, executor=Forks(2))
    text = (toy.root / "figures" / "claims.md").read_text()
    assert "2 of 4 hold here" in text and text.count("| a | true |") == text.count("| b | false | 1 | a paper |") == 1
    shutil.rmtree(toy.root / "exp" / "runs")
    experiments.reproduce(only=["a"], project=toy.project, say=lambda line: None, executor=Forks())
    assert (toy.root / "figures" / "claims.md").read_text() == text, "those of b stay, as its figures do"


MEASURES = """
import sys
sys.path.insert(0, {root!r})
from dmcmc_core.report import tables
cells = [dict(bed="toy", method="m", seed=s, nfe=5.0, frechet=float(n + s)) for s in (0, 1)]
tables.write_results(cells, out_dir)
"""


def test_every_measured_cell_is_in_one_table(toy):
    measures = MEASURES.format(root=str(ROOT))
    toy.add("a", before=measures)
    toy.add("b", before=measures)
    toy.add("c", core=False)  # measures nothing
    experiments.reproduce(project=toy.project, say=lambda line: None, executor=Forks(3))
    path = toy.root / "figures" / "results.csv"
    rows = tables.read_csv(path)
    assert [(r["item"], r["seed"], r["frechet"]) for r in rows] == [
        (item, str(seed), f"{4.0 + seed}") for item in "ab" for seed in (0, 1)
    ]
    assert list(rows[0]) == [*tables.RESULT, "frechet"]
    lines = (toy.root / "exp" / "runs" / "local.jsonl").read_text().splitlines()
    assert {"c/claims": 2, "c/claims that hold": 1}.items() <= {
        k: v for x in lines for k, v in json.loads(x).items()
    }.items()
    text = path.read_text()
    shutil.rmtree(toy.root / "exp" / "runs")
    experiments.reproduce(only=["b"], project=toy.project, say=lambda line: None, executor=Forks())
    assert path.read_text() == text, "those of a stay, as its figures do"


def test_clock_and_columns():
    assert [experiments.clock(s) for s in (0.4, 59.4, 185, 7800)] == ["0 s", "59 s", "3 min 05 s", "2 h 10 min"]
    assert experiments.columns([("a", "b"), ("long", "x")]) == "a     b\n-------\nlong  x"


def test_the_manifest_of_this_project_is_sound():
    project = Project(ROOT)
    for item in project.items:
        assert not experiments.missing_files(project, item, "local")
        for profile in item.parameters:
            if profile != "all":
                experiments.check_parameters(project, item, profile)
