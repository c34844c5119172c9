"""Every engine runs the same command: the same keys and outputs, nothing made twice, one run for one deleted output."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MEET, ToyProject

from dmcmc_core.errors import UserError
from dmcmc_core.workbench import cli, experiments
from dmcmc_core.workbench.experiments import executors, workflow
from dmcmc_core.workbench.experiments.executors import Command, Dask, Finished, Processes, parse_gpus, visible_gpus

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("engines", ROOT / "benchmarks" / "engines.py")
engines = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(engines)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two items and what the embedded runner makes of them."""
    toy = ToyProject(tmp_path_factory.mktemp("made"))
    toy.add("a-1")
    toy.add("b", core=False)
    experiments.reproduce("smoke", project=toy.project, say=lambda line: None)
    return toy.project


@pytest.fixture(scope="module", params=["snakemake", "dask"])
def engine(request):
    package = {"dask": "distributed"}.get(request.param, request.param)
    pytest.importorskip(package, reason=f"needs {package}: pip install 'dmcmc-core[{request.param}]'")
    return request.param


@pytest.mark.slow
def test_an_engine_does_as_the_embedded_runner(engine, made, tmp_path):
    shutil.copytree(made.root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs", "cache"))
    both = made, experiments.Project(tmp_path, "toy_core")
    row = engines.examine(engine, both[1], "smoke", ["a-1", "b"], 2)
    assert row["right"], f"2 are to be made, then 0, then 1 for one deleted output: {row}"
    assert engines.differences(both, "smoke", ["a-1", "b"]) == []
    next(tmp_path.glob("exp/runs/b/*/b.csv")).write_text("other")
    assert len(engines.differences(both, "smoke", ["a-1", "b"])) == 1


@pytest.mark.slow
def test_the_snakefile_of_paper_runs_one_item_at_a_time_as_its_head_says(tmp_path):
    pytest.importorskip("snakemake", reason="needs snakemake: pip install 'dmcmc-core[snakemake]'")
    toy = ToyProject(tmp_path / "user's {data} $HOME")  # whatever a folder is called
    toy.add("a", core=False)
    toy.add("b", core=False)
    file = toy.root / "Snakefile"
    words = ["--root", str(toy.root), "--package", "toy_core", "--profile", "paper"]
    assert cli.main(["export", "snakemake", *words, "--out", str(file)]) == 0
    (line,) = [line for line in file.read_text().splitlines() if "--cores 4" in line]
    options = line.removeprefix("# snakemake -s FILE ").split()
    assert options[:2] == ["--cores", "4"] and options[4] == "--resources"

    def run(options):
        engines.call([sys.executable, "-m", "snakemake", "-s", str(file), "-d", str(toy.root), "-F", *options])

    run(options)
    ends = {path: path.stat().st_mtime for path in toy.root.glob("exp/runs/*/*/provenance.json")}
    spans = sorted((end - json.loads(path.read_text())["seconds"], end) for path, end in ends.items())
    assert len(spans) == 2 and spans[0][1] < spans[1][0], "one after the other, though there are cores for both"
    assert (toy.root / "figures" / "paper" / "b.csv").is_file()

    toy.write_notebook("a", before=MEET.format(me="a", other="b"), core=False)
    toy.write_notebook("b", before=MEET.format(me="b", other="a"), core=False)
    for more in ([], ["--resources", "gpu=0"]):  # what the head says limits nothing: they meet, or fail
        for path in toy.root.glob("exp/cache/*-here"):
            path.unlink()
        run([*options[:4], *more])


def test_the_snakefile_is_python_and_asks_for_what_is_now(toy, capsys):
    toy.add("a-1")
    out = toy.root / "Snakefile"
    words = ["--root", str(toy.root), "--package", "toy_core"]
    assert cli.main(["export", "snakemake", *words, "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out and "rule a_1:" in out.read_text()
    assert not list(toy.root.glob("*.part"))

    def table():
        assert cli.main(["export", "keys", *words]) == 0
        return json.loads(capsys.readouterr().out)

    first = table()
    key = experiments.run_key(experiments.ingredients(toy.project, toy.project.items[0], "local"))
    assert first["a-1"]["key"] == key and first["shown"] == ["figures/a-1.csv"]
    assert f"exp/runs/a-1/{key[:20]}/a-1.csv" in first["a-1"]["outputs"]
    (toy.root / "toy_core" / "deeper.py").write_text("VALUE = 9\n")  # what Snakemake itself would not see
    assert table()["a-1"]["key"] != key
    assert workflow.run_table(toy.project, "smoke")["shown"] == ["exp/runs/results-smoke.csv"]

    out.write_text("rule mine: ...")
    assert cli.main(["export", "snakemake", *words, "--out", str(out)]) == 2
    assert "no Snakefile of this command" in capsys.readouterr().err and out.read_text() == "rule mine: ..."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "--executor", "dsak"], "unknown executor 'dsak': did you mean 'dask'"),
        (["reproduce", "--executor", "dask"], "needs --scheduler ADDRESS"),
        (["reproduce", "--scheduler", "tcp://x:1"], "it needs --executor dask"),
        (["reproduce", "--executor", "dask", "--scheduler", "x:1", "--gpus", "0"], "--gpus is of this machine's"),
        (["reproduce", "--gpus", "0,0"], "named once each"),
        (["reproduce", "--gpus", "first"], "named once each"),
        (["reproduce", "--track", "wandbb"], "unknown tracker 'wandbb': did you mean 'wandb'"),
        (["export", "snakefile"], "did you mean 'snakemake'"),
        (["export", "keys", "--out", "x"], "export keys prints"),
    ],
)
def test_what_cannot_be_is_one_sentence(toy, capsys, words, message):
    toy.add("a")
    assert cli.main([*words, "--root", str(toy.root), "--package", "toy_core"]) == 2
    assert message in capsys.readouterr().err and toy.runs("a") == 0


def test_no_scheduler_is_told(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs distributed: pip install 'dmcmc-core[dask]'")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, **rest: client(address, **rest | {"timeout": "1s"}))
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        with pytest.raises(UserError, match="no Dask scheduler answers at"):
            Dask(address)


def test_each_process_has_a_gpu_of_its_own_and_gives_it_back(tmp_path):
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    two = Processes(gpus=["0", "GPU-f00"])
    assert two.slots == 2
    seen = []
    for turn in range(2):
        for name in "ab":
            two.submit(f"{name}{turn}", Command(("-c", code), str(tmp_path), ()))
        seen.append(sorted(ended.output for ended in all_ended(two, 2)))
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert seen == [[f"0 {threads}", f"GPU-f00 {threads}"]] * 2
    assert Processes(jobs=3, gpus=["0", "1"]).slots == 3 and Processes(gpus=[]).gpus == [""]


def test_cancelling_ends_what_runs(tmp_path):
    engine = Processes(jobs=1, gpus=[])
    engine.submit("slow", Command(("-c", "import time; time.sleep(60)"), str(tmp_path), ()))
    engine.cancel()
    assert all_ended(engine, 1) == [Finished("slow", -15, "")]


def all_ended(engine, count):
    ended, end = [], time.monotonic() + 30
    while len(ended) < count:
        assert time.monotonic() < end, "waited in vain"
        ended += engine.wait(0.05)
    return ended


def test_gpus_are_those_that_are_visible(tmp_path):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, str(tmp_path)) == ["0", "1"] and visible_gpus({}, str(tmp_path / "none")) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-ab"}) == ["3", "GPU-ab"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert parse_gpus("none") == [] and parse_gpus("1, 0") == ["1", "0"]


def test_fewer_items_than_slots_have_more_cores_each():
    engine = Processes(jobs=4)
    engine.limit(1)
    assert engine.slots == 1 and engine.free == [0]
    engine.limit(0)
    assert engine.slots == 1


def test_an_engine_with_other_files_is_told_from_one_that_fails(toy):
    toy.add("a")

    class Elsewhere:
        slots = 1

        def submit(self, name, command):
            self.name = name

        def wait(self, seconds):
            return [Finished(self.name, 0, "/elsewhere/exp/runs/a/1")]

        def cancel(self):
            pass

    (outcome,) = experiments.reproduce(project=toy.project, say=lambda line: None, executor=Elsewhere())
    assert outcome.failed and "its engine has other files or versions" in outcome.verdict


def test_workers_need_nothing_of_this_project(tmp_path):
    """What is sent to a Dask worker is read by a Python that cannot import the package."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs distributed: pip install 'dmcmc-core[dask]'")
    cloudpickle.register_pickle_by_value(executors)
    try:
        sent = cloudpickle.dumps((executors._on_worker, Command(("-c", "pass"), ".", ())))
    finally:
        cloudpickle.unregister_pickle_by_value(executors)
    (tmp_path / "sent").write_bytes(sent)
    code = "import sys, pickle; sys.modules['dmcmc_core'] = None; print(pickle.load(open('sent', 'rb'))[1].words)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "('-c', 'pass')\n", done.stderr
