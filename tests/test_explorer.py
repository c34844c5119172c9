"""The explorer without a browser: runs that are looked at, cancelled, compared and made again elsewhere."""

from __future__ import annotations

import shlex
import threading
import time

import numpy as np
import pytest
import torch

from dmcmc_core import load_model
from dmcmc_core.errors import LOG, UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs.sampling import sample
from dmcmc_core.workbench.explorer import theory
from dmcmc_core.workbench.explorer.choice import BadChoice, Choice, samplers_of
from dmcmc_core.workbench.explorer.session import CANCELLED, DONE, FAILED, Models, Session
from dmcmc_core.workbench.explorer.watching import Cancelled, Log, Watched

CHAINS = {"chains": 6, "n_skip": 2, "eta": 0.3}


@pytest.fixture(scope="module")
def models():
    return Models()


def made(models, choice):
    session = Session(models)
    session.start(choice)
    assert session.wait(120) == DONE, session.problem
    return session


@pytest.mark.parametrize(
    "choice",
    [
        Choice(nfe=4, n=5, seed=2),
        Choice(sampler="dlg+heun", nfe=16, n=12, settings=CHAINS),
        Choice(sampler="dlg+euler", nfe=40, n=6, settings=CHAINS | {"posterior": "residual"}),
        Choice(sampler="heun_churn", nfe=5, n=4, settings={"start": "zero"}),
        Choice(model="digits-cld", sampler="gddim", nfe=4, n=3),
    ],
    ids=lambda choice: choice.sampler,
)
def test_watched_images_are_those_of_everybody_bit_for_bit(models, choice):
    session = made(models, choice)
    bare = sample(choice.model, choice.sampler, choice.nfe, choice.n, choice.seed, **choice.settings)
    assert torch.equal(torch.as_tensor(session.images), torch.as_tensor(bare))
    assert session.images.manifest == bare.manifest
    assert session.log.rows == sum(bare.manifest["rows"].values())


def test_frames_are_what_the_network_was_asked_and_what_it_said(models):
    session = made(models, Choice(sampler="heun", nfe=5, n=3))
    frames = session.log.frames
    assert [frame.call for frame in frames] == [1, 2, 3, 4, 5] and {frame.phase for frame in frames} == {"images"}
    sigmas = [float(frame.sigma[0]) for frame in frames]
    grid = session.images.manifest["sigmas"]
    assert sigmas == pytest.approx([grid[0], grid[1], grid[1], grid[2], grid[2]], rel=1e-6)
    model = models.get("digits")
    images = (np.asarray(session.images) * 255).round().astype(int)
    low, high = model.data_range
    assert (low, high) == (0.0, 1.0)
    assert frames[-1].denoised.shape == (3, 1, 8, 8)
    assert np.abs(frames[-1].denoised.astype(int) - images).mean() < 10 < np.abs(frames[0].denoised - images).mean()


def test_frames_of_chains_come_before_those_of_images_and_windows_tell_where_these_start(models):
    session = made(models, Choice(sampler="dlg+euler", nfe=12, n=12, settings=CHAINS))
    phases = [frame.phase for frame in session.log.frames]
    assert phases == sorted(phases) and set(phases) == {"chains", "images"}
    windows = session.windows()
    assert [window["sigmas"].shape for window in windows] == [(3, 6)] * 2
    first = next(frame for frame in session.log.frames if frame.phase == "images")
    assert first.sigma == pytest.approx(np.concatenate([window["start_sigma"] for window in windows]))


def test_memory_is_bounded_and_the_newest_call_is_always_there():
    model = load_model("digits")
    log = Log()
    watched = log.around(model)
    x = torch.zeros(2, 1, 8, 8)
    for k in range(1300):
        log.called(model, x, torch.tensor(1.0 + k), x)
    assert isinstance(watched, Watched) and fingerprint(watched) == fingerprint(model)
    assert len(log.frames) <= 512 and log.newest.call == 1300 and log.calls == 1300 and log.rows == 2600
    calls = [frame.call for frame in log.frames]
    assert calls == sorted(calls) and calls[0] <= 4 and calls[-1] >= 1296


def test_a_run_stops_at_the_next_call(models):
    models.get("digits")
    session = Session(models)
    session.start(Choice(nfe=100_000, n=2))
    while session.log.calls < 3:
        time.sleep(0.01)
    with pytest.raises(UserError, match="a run goes on"):
        session.start(Choice())
    session.cancel()
    assert session.wait(30) == CANCELLED and session.images is None and session.problem is None
    assert session.log.calls < 100_000
    assert made(models, Choice(nfe=2, n=2)).images.shape == (2, 1, 8, 8)


def test_no_call_is_made_once_it_is_to_stop():
    stop, asked = threading.Event(), []
    watched = Log(stop).around(lambda x, sigma: asked.append(1) or x)
    watched(torch.zeros(1), torch.ones(1)) if False else stop.set()
    with pytest.raises(Cancelled):
        watched(torch.zeros(1, 1, 2, 2), torch.ones(1))
    assert not asked


@pytest.mark.parametrize(
    ("choice", "control", "words"),
    [
        (Choice(nfe=0), "nfe", "at least 1, not 0"),
        (Choice(nfe=2.5), "nfe", "whole number"),
        (Choice(n=0), "n", "at least 1"),
        (Choice(seed=-1), "seed", "at least 0"),
        (Choice(sampler="heum"), "sampler", "did you mean 'heun'"),
        (Choice(model="nowhere"), "model", "unknown model 'nowhere'"),
        (Choice(sampler="dlg+heun", nfe=2, n=4), "nfe", "too few"),
        (Choice(sampler="fitted", nfe=1), "nfe", "at least 2"),
        (Choice(sampler="dlg+heun", nfe=20, settings={"eta": -1.0}), "eta", "above 0"),
        (Choice(sampler="dlg+heun", nfe=20, settings={"n_skip": 0}), "n_skip", "at least 1"),
        (Choice(settings={"start": "up"}), "start", "'zero', 'mean'"),
        (Choice(sampler="dlg+heun", nfe=20, settings={"preconditioner": "frequency"}), "statistics", "gains need"),
        (Choice(settings={"preconditioner": "frequency", "statistics": "digits-train"}), "preconditioner", "knows no"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_beside_its_control(models, choice, control, words):
    models.get("digits")
    session = Session(models)
    try:
        session.start(choice)
        assert session.wait(60) == FAILED
        problem = session.problem
    except BadChoice as error:
        problem = error.problem
    assert problem.control == control and words in problem.message
    if control != "model":  # that needs a disk to be looked at, the others are told before anything begins
        assert session.check(choice) == problem


def test_what_breaks_on_the_thread_is_a_sentence_and_no_traceback(capfd):
    def broken(x, sigma):
        raise RuntimeError("a wire is loose")

    models = Models(broken, shape=(1, 4, 4))
    session = Session(models)
    session.start(Choice(model=models.own, nfe=2, n=1))
    assert session.wait(30) == FAILED
    assert "a wire is loose" in session.problem.message and session.problem.control == ""
    assert "Traceback" not in capfd.readouterr().err


def test_what_a_run_says_goes_to_the_panel_and_no_handler_stays(models, capfd):
    filters = [len(handler.filters) for handler in LOG.handlers]
    session = made(models, Choice(nfe=3, n=2))
    assert any("only filled its blocks" in note for note in session.notes)
    assert "only filled" not in capfd.readouterr().err
    assert [len(handler.filters) for handler in LOG.handlers] == filters


def test_a_model_of_ones_own_needs_no_name():
    models = Models(lambda x, sigma: 0 * x + 0.5, shape=(1, 4, 4))
    session = made(models, Choice(model=models.own, sampler="euler", nfe=3, n=2))
    assert session.images.shape == (2, 1, 4, 4) and (session.images - 0.5).abs().max() < 0.01


def test_a_choice_is_made_again_from_its_command_and_from_its_parameters(models, tmp_path):
    import yaml

    from dmcmc_core.runs import folder
    from dmcmc_core.workbench.cli import main

    settings = {"start": "zero", "s_churn": 1e-05, "cast": "truncate"}
    choice = Choice(sampler="heun_churn", nfe=5, n=3, seed=4, settings=settings)
    words = shlex.split(choice.command(str(tmp_path / "a b")))
    assert words[:3] == ["python", "-m", "dmcmc_core"]
    main(words[3:])
    assert torch.equal(folder.load_images(tmp_path / "a b"), torch.as_tensor(made(models, choice).images))
    assert Choice(**yaml.safe_load(choice.yaml())) == choice


def test_samplers_are_those_that_a_model_has(models):
    assert "fitted" in samplers_of(models.get("digits")) and "heun" in samplers_of(models.get("digits"))
    assert samplers_of(models.get("digits-cld"))[0] == "gddim"


def test_the_plane_shows_the_density_the_score_and_where_ways_end():
    view = theory.view("four modes", 0.4, ways=40, chains=2, steps=30)
    model = theory.MIXTURES["four modes"]()
    line = np.linspace(*view.extent, theory.PIXELS)
    row, column = np.unravel_index(view.density.argmax(), view.density.shape)
    assert abs(line[column] + 1.5) < 0.1 and abs(line[row] + 1.5) < 0.1  # the heaviest mode, x across and y up
    points, arrows = view.score
    near = np.abs(points - [2.0, 1.5]).sum(1).argmin()
    assert arrows[near, 0] < 0  # towards the mode at (1.5, 1.5)
    ends = torch.tensor(np.stack([way[-1] for way in view.ways]))
    assert (torch.cdist(ends, model.means).min(1).values < 1.0).all()
    assert len(view.chains) == 2 and view.chains[0][0].shape == (31, 2) and (view.chains[0][1] > 0).all()
    with pytest.raises(UserError, match="sigma"):
        theory.view("four modes", 100.0)
    with pytest.raises(UserError, match="mixture"):
        theory.view("five modes", 1.0)


# Two side by side, control, and the panels without a browser


def test_two_samplers_are_compared_on_the_same_noise(models):
    from dmcmc_core import metrics
    from dmcmc_core.workbench.explorer.compare import Comparison

    a, b = (Choice(sampler=name, nfe=7, n=4, seed=3) for name in ("heun", "dpmpp_2m"))
    comparison = Comparison(models)
    comparison.start(a, b)
    assert comparison.wait(120) == DONE, comparison.problem
    pair = comparison.pair
    one, other = (torch.as_tensor(made(models, choice).images) for choice in (a, b))
    accurate = torch.as_tensor(sample("digits", "unipc", 60, 4, 3))
    assert torch.equal(torch.as_tensor(pair.a.images), one) and torch.equal(pair.difference, other - one)
    assert pair.between == metrics.paired_error(other, one) and pair.b.error == metrics.paired_error(other, accurate)
    assert pair.a.distance is None and "more than" in pair.a.why and (pair.a.nfe, pair.b.nfe) == (7, 7)


def test_the_curve_falls_and_tells_from_where_two_are_the_same(models):
    from dmcmc_core.workbench.explorer.compare import Comparison

    a, b = (Choice(sampler=name, nfe=7, n=3) for name in ("heun", "euler"))
    comparison = Comparison(models)
    comparison.start_curve(a, b, (3, 9, 30))
    assert comparison.wait(120) == DONE, comparison.problem
    errors = [row["between"] for row in comparison.rows]
    assert errors == sorted(errors, reverse=True) and comparison.same_from() is None
    assert "still differ" in comparison.verdict() and "at 30 evaluations" in comparison.verdict()
    comparison.rows = [{"nfe": 5, "between": 1.0}, {"nfe": 9, "between": 1e-4}, {"nfe": 12, "between": 1e-5}]
    assert comparison.same_from() == 9 and "from 9 evaluations on" in comparison.verdict()
    comparison.rows.append({"nfe": 20, "between": 1.0})
    assert comparison.same_from() is None


@pytest.mark.parametrize(
    ("names", "control", "words"),
    [
        (("heun", "heum"), "b", "did you mean"),
        (("ancestral", "heun"), "a", "adds noise"),
        (("heun", "dlg+heun"), "b", ""),
    ],
)
def test_a_side_that_cannot_be_paired_is_told_beside_its_sampler(models, names, control, words):
    from dmcmc_core.workbench.explorer.compare import Comparison

    settings = {"chains": 2, "n_skip": 1}
    sides = [Choice(sampler=name, nfe=30, n=2, settings=settings if "+" in name else {}) for name in names]
    comparison = Comparison(models)
    try:
        comparison.start_curve(*sides, (30,))
        assert comparison.wait(120) == FAILED
        problem = comparison.problem
    except BadChoice as error:
        problem = error.problem
    assert problem.control == control and words in problem.message


def test_images_are_moved_across_boundaries_and_strength_zero_moves_nothing():
    from dmcmc_core.workbench.explorer.control import BEDS, Steering

    steering = Steering()
    steering.ask("digits", [0.0, 0.0])
    assert steering.wait(120) == DONE, steering.problem
    still = (steering.edited - steering.source).square().mean().sqrt()
    steering.ask("digits", [6.0, 0.0])
    steering.ask("digits", [5.0, 1.0])
    assert steering.wait(120) == DONE and steering.strengths == (5.0, 1.0)
    assert (steering.edited - steering.source).square().mean().sqrt() > 3 * still
    assert set(steering.accuracies) == set(BEDS["digits"].boundaries) and min(steering.accuracies.values()) > 0.8
    with pytest.raises(UserError, match="2 boundaries"):
        steering.ask("digits", [1.0])


@pytest.fixture
def explorer():
    pytest.importorskip("ipywidgets")
    from dmcmc_core.workbench.explorer import explore

    opened = explore(n=4, nfe=5)
    yield opened
    opened.close()


def first(explorer):
    return explorer.panels["One sampler"]


def finished(panel, start):
    start()
    panel.follower.wait(120)


def test_the_panel_runs_shows_every_step_and_saves(explorer, tmp_path):
    panel = first(explorer)
    finished(panel, panel.run)
    assert panel.session.status == DONE and panel.step.max == 6 and "finished" in panel.about.value
    last = panel.x.value
    panel.step.value = 2
    assert "call 2" in panel.about.value and panel.x.value != last != panel.denoised.value
    panel.folder.value = str(tmp_path / "kept")
    for button in panel.savers:
        button.click()
    kept = {path.suffix for path in (tmp_path / "kept").iterdir()}
    assert kept == {".png", ".npz", ".yaml", ".sh"}
    with np.load(next((tmp_path / "kept").glob("*.npz"))) as file:
        assert file["arr_0"].shape == (4, 8, 8, 1) and file["arr_0"].dtype == np.uint8
    panel.folder.value = " "
    panel.savers[0].click()
    assert "name a folder" in panel.saved.value


def test_the_panel_says_what_is_wrong_beside_the_control_and_takes_it_away(explorer):
    panel = first(explorer)
    panel.fields.controls["nfe"].value = 0
    panel.soon.wait(10)
    assert "at least 1, not 0" in panel.fields.errors["nfe"].value
    finished(panel, panel.run)
    assert not panel.bar.buttons[0].disabled and panel.session.images is None
    panel.fields.controls["nfe"].value = 5
    panel.soon.wait(10)
    assert not any(error.value for error in panel.fields.errors.values())


def test_the_panel_offers_what_a_model_has(explorer):
    panel = first(explorer)
    shown = lambda name: panel.fields.rows[name].layout.display != "none"  # noqa: E731
    assert not shown("eta") and shown("dlg")
    panel.fields.controls["dlg"].value = True
    assert shown("eta") and panel.choice().sampler == "dlg+dpmpp_2m" and panel.choice().settings["n_skip"] == 4
    panel.fields.controls["model"].value = "digits-cld"
    assert panel.fields.controls["sampler"].value == "gddim" and not shown("dlg") and not shown("eta")
    assert panel.choice() == Choice("digits-cld", "gddim", 5, 4)
    panel.fields.controls["model"].value = "digits"
    assert "heun" in panel.fields.controls["sampler"].options


def test_chains_are_shown_when_they_have_walked(explorer):
    panel = first(explorer)
    for name, value in (("dlg", True), ("nfe", 30), ("chains", 2), ("n_skip", 3)):
        panel.fields.controls[name].value = value
    finished(panel, panel.run)
    assert panel.session.status == DONE, panel.session.problem
    assert panel.chains.layout.display == "" and panel.chain.max == 1
    before = panel.along.value
    panel.chain.value = 1
    assert before.startswith("<div") and panel.along.value != before and "var(--jp-ui-font-color1" in panel.trace.value


def test_all_panels_open_and_nothing_stays_of_one_that_is_opened_again(explorer):
    from ipywidgets.widgets.widget import _instances

    from dmcmc_core.workbench.explorer import explore
    from dmcmc_core.workbench.explorer.panel import PANELS

    threads = threading.active_count()
    counts = []
    for _ in range(3):
        again = explore()
        for name in PANELS:
            again.open(name)
        again.panels[PANELS[3]].soon.wait(60)
        assert again.panels[PANELS[3]].picture.value.startswith("<svg")
        counts.append(len(_instances))
    assert len(set(counts)) == 1
    again.close()
    assert not _instances and threading.active_count() <= threads


def test_a_model_in_memory_is_the_one_argument():
    pytest.importorskip("ipywidgets")
    import dmcmc_core

    opened = dmcmc_core.explore(lambda x, sigma: 0 * x + 0.5, shape=(1, 4, 4), sampler="euler", n=2, nfe=3)
    panel = first(opened)
    finished(panel, panel.run)
    assert panel.session.status == DONE and panel.session.images.shape == (2, 1, 4, 4)
    opened.close()


def test_a_picture_of_images_is_as_small_as_they_are():
    import io

    from PIL import Image

    from dmcmc_core.workbench.explorer import pictures

    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 1, 4, 4)
    made = pictures.sheet(images, 2)
    assert made.shape == (9, 9, 4) and made[5:, 5:, 3].max() == 0
    assert (made[:4, 5:, 0] == images[1, 0]).all() and (made[:4, 5:, 2] == images[1, 0]).all()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(made)))), made)


def test_claims_of_the_notebook_can_fail(models):
    from dmcmc_core.workbench.studies import explorer as study

    session = study.watched(Choice(nfe=5, n=3), models)
    assert study._of_runs(session)[0]["holds"] and study._of_ways(session)["holds"]
    assert [row["call"] for row in study.way_rows(session)] == [1, 2, 3, 4, 5]
    session.log.rows += 1
    assert not study._of_runs(session)[0]["holds"]
    session.log.rows -= 1
    session.images[0] = 1 - session.images[0]
    assert not study._of_runs(session)[0]["holds"] and not study._of_ways(session)["holds"]
    with pytest.raises(UserError, match="at least 1"):
        study.watched(Choice(nfe=0), models)


# What was tried to break it


def shown(panel):
    """Return what is told beside controls, by the name of the control."""
    return {name: error.value for name, error in panel.fields.errors.items() if error.value}


def test_the_chain_view_fills_while_the_chains_walk(explorer):
    panel = first(explorer)
    for name, value in (("dlg", True), ("nfe", 30), ("n", 24), ("chains", 2), ("n_skip", 3)):
        panel.fields.controls[name].value = value
    seen = []
    panel.trace.observe(lambda change: seen.append((panel.session.status, len(panel.session._windows))), names="value")
    finished(panel, panel.run)
    assert panel.session.status == DONE, panel.session.problem
    assert seen[0][0] == "running" and seen[0][1] < 12 == seen[-1][1]
    assert panel.trace.value.count("<polyline") == 2 and panel.trace.value.count("<circle") == 24
    assert panel.along.value.count("data:image/png") == 24 and "<span>class</span>" in panel.along.value


def test_lines_of_long_walks_are_thinned_and_levels_lie_where_they_belong():
    import xml.etree.ElementTree as ET

    from dmcmc_core.workbench.explorer import walks

    sigmas = np.geomspace(0.01, 50, 2001)[:, None].repeat(9, 1)
    made = walks.trace([{"sigmas": sigmas, "chosen": np.zeros(9, int)}], (0.01, 50.0), 8)
    lines = [node for node in ET.fromstring(made).iter() if node.tag.endswith("polyline")]
    assert len(lines) == 9
    points = [tuple(map(float, point.split(","))) for point in lines[-1].get("points").split()]
    assert len(points) <= 2 + walks.POINTS and points[0] == (walks.LEFT, walks.HEIGHT - walks.BOTTOM)
    assert points[-1] == (walks.WIDTH - walks.RIGHT, walks.TOP) and lines[-1].get("stroke-width") == "2"
    assert walks._decades(0.01, 50) == pytest.approx([0.01, 0.1, 1, 10])
    assert walks._decades(2, 30) == pytest.approx([2, 5, 10, 20])


@pytest.mark.parametrize(
    "change", [{"nfe": 10**9}, {"n": 10**12}, {"sampler": "dlg+heun", "settings": {"chains": 10**9}}]
)
def test_numbers_that_no_memory_holds_are_refused_before_anything_begins(models, change):
    models.get("digits")
    problem = Session(models).check(Choice(**({"nfe": 40} | change)))
    assert problem.control in {"nfe", "n", "chains"} and "at most" in problem.message


@pytest.mark.parametrize("shape", [(7,), (1, 4, 4, 4)])
def test_a_model_of_no_images_is_refused_by_a_sentence(shape):
    with pytest.raises(UserError, match=r"images of a shape \(C, H, W\)"):
        Models(lambda x, sigma: x, shape=shape)


def test_a_network_that_ends_the_process_ends_the_run_alone():
    def leaves(x, sigma):
        raise SystemExit("bye")

    models = Models(leaves, shape=(1, 4, 4))
    session = Session(models)
    session.start(Choice(model=models.own, nfe=2, n=1))
    assert session.wait(30) == FAILED and "SystemExit: bye" in session.problem.message


def test_a_view_that_cannot_be_drawn_is_told_and_the_next_run_can_begin(explorer, monkeypatch, capfd):
    panel = first(explorer)

    def torn(*what):
        raise ValueError("the paper tore")

    with monkeypatch.context() as patch:
        patch.setattr(panel, "_show", torn)
        finished(panel, panel.run)
    assert "the paper tore" in shown(panel)[""] and not panel.bar.buttons[0].disabled
    assert "Traceback" not in capfd.readouterr().err
    finished(panel, panel.run)
    assert panel.session.status == DONE and not shown(panel)


def test_images_that_gains_come_from_are_told_beside_their_control(models):
    models.get("digits")
    settings = {"preconditioner": "pixel", "statistics": "nowhere"}
    problem = Session(models).check(Choice(sampler="predictor_corrector", nfe=8, settings=settings))
    assert problem.control == "statistics" and "nowhere" in problem.message


@pytest.mark.parametrize("name", ["levels", "ways", "steps"])
def test_the_plane_tells_what_is_wrong_beside_its_control(explorer, name):
    from dmcmc_core.workbench.explorer.panel import PANELS

    panel = explorer.open(PANELS[3])
    panel.fields.controls[name].value = -1
    panel.soon.wait(60)
    assert set(shown(panel)) == {name}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sampler": "heum"}, "did you mean 'heun'"),
        ({"sampler": "gddim"}, "unknown sampler"),
        ({"model": "digits-cld", "sampler": "heun"}, "unknown sampler"),
        ({"nfe": "ten"}, "nfe must be a whole number"),
        ({"seed": "zero"}, "seed must be a whole number"),
        ({"sampler": "dlg+heun", "settings": {"eta": "x"}}, "eta must be"),
    ],
)
def test_what_no_control_can_show_is_refused_by_a_sentence(how, words):
    pytest.importorskip("ipywidgets")
    from dmcmc_core.workbench.explorer import explore

    with pytest.raises(UserError, match=words):
        explore(**how)


def test_settings_without_a_control_are_kept_for_their_sampler():
    pytest.importorskip("ipywidgets")
    from dmcmc_core.workbench.explorer import explore

    settings = {"s_churn": 3.0, "start": "zero"}
    opened = explore(sampler="heun_churn", nfe=5, n=2, settings=settings)
    panel = first(opened)
    assert panel.choice() == Choice("digits", "heun_churn", 5, 2, 0, settings)
    panel.fields.controls["sampler"].value = "heun"
    assert panel.choice().settings == {"start": "zero"}
    again = explore(sampler="heun_churn", nfe=5, n=2, settings={"s_churnn": 3.0})
    finished(first(again), first(again).run)
    assert "s_churnn" in " ".join(shown(first(again)).values())
    again.close()


def test_a_curve_tells_where_the_two_still_differ_and_whose_notes_are_whose(models):
    from dmcmc_core.workbench.explorer.compare import Comparison

    comparison = Comparison(models)
    comparison.rows = [{"nfe": 5, "between": 1.0}, {"nfe": 9, "between": 1e-4}]
    comparison.names, comparison.rounding = ("heun", "unipc"), 0.002
    assert "from 9 evaluations on, and not yet at 5" in comparison.verdict()
    comparison.start_curve(Choice(sampler="heun", n=2), Choice(sampler="euler", n=2), (4,))
    assert comparison.wait(60) == DONE and comparison.notes
    assert all(note.startswith(("heun at", "euler at", "unipc at")) for note in comparison.notes)


class Tiny(torch.nn.Module):
    """A network of few weights: what it makes of images does not matter."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, sigma):
        return self.layer(x) / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.fixture
def fitted_here(tmp_path, monkeypatch):
    """Fit to few trajectories, and keep the solvers in a folder of the test."""
    from dmcmc_core.runs import fitting

    monkeypatch.setattr(fitting, "TRAJECTORIES", 8)
    monkeypatch.setattr(fitting, "_folder", lambda cache_dir: tmp_path / "fitted")
    return tmp_path / "fitted"


def test_a_solver_is_fitted_from_the_panel_and_gives_the_images_of_everybody(fitted_here):
    pytest.importorskip("ipywidgets")
    from dmcmc_core.workbench.explorer import explore
    from dmcmc_core.workbench.explorer.panel import PANELS

    torch.manual_seed(0)
    opened = explore(network := Tiny(), shape=(1, 4, 4), sampler="fitted", n=3, nfe=3)
    panel, said = first(opened), []
    panel.bar.line.observe(lambda change: said.append(change["new"]), names="value")
    finished(panel, panel.run)
    assert panel.session.status == DONE, panel.session.problem
    assert [path.suffix for path in fitted_here.glob("*-3*")] == [".safetensors"]
    assert any("fitting a solver to this model, once" in line for line in said)
    bare = sample(network, "fitted", 3, 3, 0, shape=(1, 4, 4))
    assert torch.equal(torch.as_tensor(panel.session.images), torch.as_tensor(bare))
    assert panel.step.max == 4 and "3.00 NFE each" in panel.about.value
    two = opened.open(PANELS[1])
    for name, value in (("b", "fitted"), ("nfe", 3), ("n", 2)):
        two.fields.controls[name].value = value
    finished(two, two.compare)
    assert two.comparison.status == DONE and "B: fitted" in two.table.value, two.comparison.problem
    opened.close()


def test_a_fit_is_cancelled_at_its_next_call(fitted_here):
    models = Models(Tiny(), shape=(1, 4, 4))
    session = Session(models)
    session.start(Choice(model=models.own, sampler="fitted", nfe=4, n=2))
    session.cancel()
    assert session.wait(30) == CANCELLED and not list(fitted_here.glob("*.safetensors"))
