"""The command line: verbs reach their functions, and every bad input is answered by one sentence and status 2."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmcmc_core import schedules
from dmcmc_core.data.samples import open_samples
from dmcmc_core.errors import UserError
from dmcmc_core.workbench import cli
from dmcmc_core.workbench.cli.sample import settings

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "sample --model digits --sampler heun --nfe 9 --num 4 --out /nowhere/x"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "the following arguments are required: VERB"),
        ("reprodce", "unknown verb 'reprodce': did you mean 'reproduce'?"),
        ("reproduce --profile smok", "unknown profile 'smok': did you mean 'smoke'?"),
        ("reproduce --profile smok --list", "unknown profile 'smok': did you mean 'smoke'?"),
        ("reproduce --only figure33", "unknown item 'figure33'"),
        ("reproduce --jobs two", "argument --jobs: invalid int value: 'two'"),
        ("reproduce --job 2 --colour", "unrecognized arguments: --colour"),
        ("sample --model digits", "the following arguments are required: --sampler, --nfe, -n/--num, --out"),
        (SAMPLE + " --set eta", "--set takes key=value, such as eta=0.01, not 'eta'"),
        (SAMPLE + " --set eta=1 --set eta=2", "--set eta is given twice"),
        (SAMPLE + " --set eta=[1", "--set eta: '[1' is not a YAML value"),
        (SAMPLE.replace("9", "0"), "--nfe must be at least 1, not 0"),
        (SAMPLE.replace("--num 4", "--num -4"), "--num must be at least 1, not -4"),
        (SAMPLE + " --seed -1", "--seed must be at least 0, not -1"),
        (SAMPLE.replace("heun", "dlg+aut"), "unknown sampler 'dlg+aut': did you mean 'dlg+auto'?"),
        (SAMPLE + " --set tweedie=abc", "tweedie must be a finite number, at least 0.01 and at most 10, not 'abc'"),
        (SAMPLE.replace("heun", "dlg+heun") + " --set eta=abc", "eta must be a finite number, above 0, not 'abc'"),
        (SAMPLE + " --set label=3", "this model has no classes: leave label out"),
        (SAMPLE + " --set guidance=2", "this model has no classes: leave guidance out"),
        (SAMPLE.replace("heun", "gddim"), "gddim asks a denoiser through a linear diffusion: choose one by sde"),
        (SAMPLE.replace("digits", "digits-cld"), "this model is of the linear diffusion CLD, on which heun does not"),
        (SAMPLE.replace("digits", "digits-cld").replace("heun", "dlg+auto"), "digits-cld holds 'epsilon', which is no"),
        (SAMPLE + " --device gpu", "device 'gpu' cannot be used here: "),
        ("train noise-levels --config x", "unknown kind of training 'noise-levels': did you mean 'noise-level'?"),
        ("train score --config /nowhere/x.yaml", "--config /nowhere/x.yaml is not a file"),
        ("reproduce --root /nowhere", "there is no manifest at /nowhere/exp/manifest.yaml"),
    ],
)
def test_bad_input_is_answered_by_one_sentence(capsys, words, sentence):
    assert cli.main(words.split()) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith(f"error: {sentence}")


def test_in_a_process_of_its_own_too():
    done = subprocess.run([sys.executable, "-m", "dmcmc_core", "sampel"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown verb 'sampel': did you mean 'sample'?")


@pytest.mark.parametrize(("eta", "ended"), [("1e6", "choose a smaller eta\n"), ("nan", "above 0, not 'nan'\n")])
def test_a_step_that_no_chain_survives_leaves_no_folder(capsys, tmp_path, eta, ended):
    words = "sample --model digits --sampler dlg+heun --nfe 60 --num 2 --set chains=2 --set n_skip=20"
    assert cli.main([*words.split(), "--set", f"eta={eta}", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert error.startswith("error: ") and error.endswith(ended), error
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("verb", [name for name, line in cli.VERBS.items() if line])
def test_every_verb_has_help(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    output = capsys.readouterr().out
    assert ended.value.code == 0 and output.startswith(f"usage: {cli.PROGRAM} {verb}")
    assert "run-one" not in output


def test_help_on_sample_has_every_setting_with_its_default(capsys):
    """Made from the code: a setting that is added and not described is missed here."""
    from dmcmc_core import chains, dmcmc, gddim, integrators
    from dmcmc_core.runs.settings import LINEAR_SAMPLERS, LINEAR_SETTINGS, POSTERIORS, SETTINGS

    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(dmcmc.ChainSettings):
        assert f" {field.name} " in text, field.name
    for name in (*SETTINGS, *schedules.SCHEDULES, *POSTERIORS, *chains.KERNELS):
        assert name in text, name
    for option in (*integrators.OPTIONS, *gddim.options_of("gddim") - {"last"}):
        assert f"{option} (" in text, option
    for name in (*LINEAR_SETTINGS, *LINEAR_SAMPLERS):
        assert f" {name} " in text, name
    assert "chains C, chains side by side; at least 1 (64)" in text and "kernel langevin (the paper's), mala" in text
    assert "warmup_eta eta of the first half of them, above 0; null is eta itself (null)" in text
    assert "``" not in text and ":mod:" not in text


def test_settings_are_yaml_values():
    pairs = ["eta=1e-4", "n_skip=5", "published=true", "pick=last", "levels=[1, 0.5]", "name=a=b", "end=null"]
    assert settings(pairs) == dict(
        eta=1e-4, n_skip=5, published=True, pick="last", levels=[1, 0.5], name="a=b", end=None
    )


def replaced(monkeypatch, run):
    """The command with another function in the place of the run."""
    from dmcmc_core.runs import make

    monkeypatch.setattr(make, "run", run)


def test_sample_passes_its_arguments_on(monkeypatch):
    seen = {}
    made = {"images": 4, "complete": False}
    replaced(monkeypatch, lambda **given: seen.update(given) or made)
    assert cli.main(f"{SAMPLE} --seed 3 --set eta=1e-2 --set chains=20 --device cpu:0".split()) == 0
    assert seen == dict(
        model="digits",
        sampler="heun",
        nfe=9,
        num=4,
        seed=3,
        out=Path("/nowhere/x"),
        settings={"eta": 0.01, "chains": 20},
        device="cpu:0",
    )


def test_what_the_core_refuses_is_one_sentence(monkeypatch, capsys):
    def refuse(**arguments):
        raise UserError("unknown sampler 'hun': did you mean 'heun'?")

    replaced(monkeypatch, refuse)
    assert cli.main(SAMPLE.split()) == 2
    assert capsys.readouterr().err == "error: unknown sampler 'hun': did you mean 'heun'?\n"


def test_interrupted_it_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(**arguments):
        raise KeyboardInterrupt

    replaced(monkeypatch, interrupt)
    assert cli.main(SAMPLE.split()) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "--sampler heun --nfe 9",
            "4 images in {out}, 9.00 NFE each in full (warm-up included), 9.00 on the paper's count; "
            "5 levels for the integrator",
        ),
        ("--sampler rk45 --nfe 9 --set tol=0.5", "on the paper's count; tol 0.5"),
        ("--sampler heun --nfe 2", "; only 1 level left to the integrator, too few for good images: a larger --nfe"),
        (
            "--sampler dlg+heun --nfe 12 --set n_skip=3",
            "on the paper's count; n_skip 3; only 2 levels left to the integrator, too few for good images: "
            "more images, fewer chains or a larger --nfe gives it more",
        ),
    ],
)
def test_sample_ends_with_its_plan_and_repeated_says_that_nothing_was_done(more, said, tmp_path, capsys):
    out = tmp_path / "x"
    words = ["sample", "--model", "digits", "--num", "4", *more.split(), "--out", str(out)]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    assert said.format(out=out) in first and first.count("\n") == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"already complete, nothing was computed: {first}"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_evaluate_prints_json_or_a_table(monkeypatch, capsys):
    import numpy as np

    seen = []

    def evaluate(*where, **options):
        seen.append((where, options))
        return {
            "features": where[2],
            "n": 4,
            "frechet": np.float64(1.5),
            "name": "Fréchet distance (digits-cnn features)",
            "same_n_floor": 1.25,
            "histogram": np.array([1, 3]),
            "blocks": {"n": 1, "kid": None},
        }

    from dmcmc_core.metrics import evaluation

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    words = "evaluate d --reference digits-heldout --features digits-cnn".split()
    assert cli.main([*words, "--json", "--weights", "w"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "features": "digits-cnn",
        "n": 4,
        "frechet": 1.5,
        "name": "Fréchet distance (digits-cnn features)",
        "same_n_floor": 1.25,
        "histogram": [1, 3],
        "blocks": {"n": 1, "kid": None},
    }
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Fréchet distance (digits-cnn features) 1.5, same-n floor 1.25, n 4",
        "features      digits-cnn",
        "n             4",
        "frechet       1.5",
        "name          Fréchet distance (digits-cnn features)",
        "same_n_floor  1.25",
        "histogram     [1, 3]",
        "blocks.n      1",
        "blocks.kid    -",
    ]
    assert (
        cli.main([*words, *"--bootstrap 7 --protocol dmcmc --allow-mixed-encodings --first 3 --against a.json".split()])
        == 0
    )
    where = (Path("d"), "digits-heldout", "digits-cnn")
    plain = {
        "weights": None,
        "bootstrap": None,
        "protocol": "lossless",
        "allow_mixed_encodings": False,
        "first": None,
        "against": None,
        "paired_with": None,
    }
    chosen = {"bootstrap": 7, "protocol": "dmcmc", "allow_mixed_encodings": True, "first": 3}
    chosen |= {"against": Path("a.json")}
    assert seen == [(where, plain | {"weights": Path("w")}), (where, plain), (where, plain | chosen)]


def test_train_passes_kind_and_file_on(monkeypatch, tmp_path):
    seen = []
    from dmcmc_core import training

    monkeypatch.setattr(training, "train", lambda kind, path, track: seen.append((kind, path, track)))
    config = tmp_path / "c.yaml"
    config.write_text("name: x")
    assert cli.main(["train", "noise-level", "--config", str(config)]) == 0
    assert cli.main(["train", "score", "--config", str(config), "--track", "tensorboard", "jsonl"]) == 0
    assert seen == [("noise-level", config, []), ("score", config, ["tensorboard", "jsonl"])]


def test_doctor_says_what_each_missing_thing_costs(toy, monkeypatch, capsys):
    from dmcmc_core.workbench import doctor

    files = [dict(path="exp/paper/one.pth", what="the score net", source="its page")]
    toy.add("a", files=files, models=["exp/nets/small.safetensors"])
    monkeypatch.setattr(doctor, "here", lambda: toy.project)
    monkeypatch.setattr(doctor, "LIBRARIES", (("no_such_module", "no-such", "nothing is drawn"), *doctor.LIBRARIES[:1]))
    weights = toy.root / "weights.pth"
    assert cli.main(["doctor", "--json", "--weights", str(weights)]) == 0
    found = {f["name"]: f for findings in json.loads(capsys.readouterr().out).values() for f in findings}
    assert not found["no-such"]["found"] and found["no-such"]["cost"] == "nothing is drawn"
    assert found["numpy"]["found"] and found["numpy"]["cost"] == ""
    assert (
        not found["exp/nets/small.safetensors"]["found"]
        and "a cannot run" in found["exp/nets/small.safetensors"]["cost"]
    )
    assert "its page" in found["exp/paper/one.pth"]["detail"] and not found["exp/paper/one.pth"]["found"]
    assert not found["Inception weights"]["found"] and str(weights) in found["Inception weights"]["detail"]

    weights.write_text("something else")
    assert cli.main(["doctor", "--weights", str(weights)]) == 0
    text = capsys.readouterr().out
    assert "is another file: SHA-256 differs" in text and "without it: nothing is drawn" in text


def test_the_core_needs_no_notebook_package():
    """The verbs that compute are imported where papermill, Jupyter, matplotlib and scikit-learn are not installed."""
    code = (
        "import sys\n"
        "for name in ('papermill', 'jupyter_client', 'ipykernel', 'nbformat', 'nbclient', 'ipywidgets', 'matplotlib',"
        " 'sklearn', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from dmcmc_core import metrics, sampling_run, training\n"
        "from dmcmc_core.metrics import evaluation\n"
        "from dmcmc_core.report import tables\n"
        "from dmcmc_core.workbench import cli, doctor, experiments\n"
        "sys.exit(cli.main(['doctor', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {f["name"]: f for findings in json.loads(done.stdout).values() for f in findings}
    assert not found["matplotlib"]["found"] and found["torch"]["found"]


# sample --sampler dlg+auto


@pytest.fixture
def auto(monkeypatch, tmp_path):
    """The command on the digits net with short trials; what was really made: (sampler, seed, images)."""
    from dmcmc_core.runs import cache, make
    from dmcmc_core.runs.tuning import chains, paired, search, slow

    monkeypatch.setattr(search, "_place", lambda *_: tmp_path / "answers" / "tuning.json")
    for module, name, value in ((chains, "IMAGES", 66), (chains, "REFERENCE", 66), (slow, "SMOOTH", 2)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(chains, "choices", lambda *_: {"eta": ([0.3, 1.0], 0)})
    monkeypatch.setattr(paired, "ACCURATE", 2)
    made, run = [], make.run

    def counted(*arguments, **named):
        asked = inspect.signature(run).bind(*arguments, **named).arguments
        made.append((asked["sampler"], asked["seed"], asked["num"]))
        return run(*arguments, **named)

    def command(*more, nfe=9):
        made.clear()
        words = f"sample --model digits --sampler dlg+auto --nfe {nfe} --num 70 --out {tmp_path / 'run'}".split()
        words += (
            "--set integrator=dpmpp_2m --set chains=35 --set warmup_levels=4 --set renoise=2 --set n_skip=1".split()
        )
        return cli.main([*words, *more])

    monkeypatch.setattr(make, "run", counted)
    monkeypatch.setattr(cache, "run", counted)
    return command, made, tmp_path / "run"


def test_auto_finds_its_settings_once_and_says_what_that_cost(auto, capsys):
    command, made, out = auto
    assert command() == 0
    assert made[-1] == ("dlg+dpmpp_2m", 0, 70) and [seed for _, seed, _ in made[:-1]] == [-1, -1, -3, -3]
    said = capsys.readouterr()
    assert "chosen: dlg+dpmpp_2m with" in said.out and "tuning cost" in said.out and "70 images in" in said.out
    assert said.out.split()[:5] == ["sampler", "settings", "measured", "value", "chosen"]
    assert said.err.count("distance") == 4 and said.err.count("paired error") >= 3
    first = (out / "shard-00000000.npz").read_bytes()
    assert command() == 0 and made == [("dlg+dpmpp_2m", 0, 70)]
    assert "chosen: dlg+dpmpp_2m with" in capsys.readouterr().out
    assert (out / "shard-00000000.npz").read_bytes() == first
    for more, message in (
        ({"nfe": 10}, "is of another search: its nfe is 9, not 10"),
        ({}, "holds another run: its seed is 0, not 3"),
    ):
        assert command(*(() if more else ("--seed", "3")), **more) == 2
        assert message in capsys.readouterr().err


def test_auto_interrupted_goes_on(auto, capsys, monkeypatch):
    from dmcmc_core.runs import cache, make

    command, made, out = auto
    run = make.run

    def interrupted(*arguments, **more):
        if len(made) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **more)

    monkeypatch.setattr(make, "run", interrupted)
    monkeypatch.setattr(cache, "run", interrupted)
    assert command() == 130 and [p.name for p in out.iterdir()] == ["tuning.json"]
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(make, "run", run)
    monkeypatch.setattr(cache, "run", run)
    assert command() == 0 and len(made) == 3, made


def test_auto_begins_in_a_folder_of_its_own(auto, capsys):
    command, made, out = auto
    assert command("--set", "etta=1") == 2 and "did you mean 'eta'" in capsys.readouterr().err.splitlines()[-1]
    assert command(nfe=2) == 2 and "2 NFE are too few" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert command() == 2 and capsys.readouterr().err.endswith("is not empty: dlg+auto begins in a new folder\n")
    assert not made


def test_make_clean_takes_no_part_of_a_path_for_another(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("needs make")
    (tmp_path / "user's data of mine" / "__pycache__").mkdir(parents=True)
    (tmp_path / "of").write_text("a file that only a path cut at its spaces would name")
    command = ["make", "-f", str(Path(__file__).resolve().parents[1] / "Makefile"), "clean"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["of", "user's data of mine"]


def test_a_command_that_a_message_tells_to_run_has_its_paths_quoted(tmp_path):
    folder = tmp_path / "user's data"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"num": 3}')
    np.savez(folder / "shard-00000.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(UserError) as refused:
        open_samples(folder)
    words = str(refused.value).partition("--out ")[2].partition(", and")[0]
    assert shlex.split(words) == [str(folder)]
