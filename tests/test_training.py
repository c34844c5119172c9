"""Training: what is interrupted continues to the same bits, what is written down is checked."""

import json
import os
import signal

import pytest
import torch
import yaml
from forks import status_of_fork
from safetensors.torch import load_file

from dmcmc_core import training
from dmcmc_core.checkpoints import NETS, load_model, load_noise_level, read_card
from dmcmc_core.data import digits, glyphs32
from dmcmc_core.errors import UserError
from dmcmc_core.training import datasets, loop, noise_level_classifier, score

SCORE = {
    "name": "tiny",
    "net": {"channels": [4, 8], "blocks": [1, 1], "embedding": 8, "dropout": 0.2},
    "augment": {"probability": 0.5, "shift": 0.5, "rotate": 10},
    "steps": 8,
    "batch": 8,
    "log_every": 4,
    "save_every": 0.0,
}
NOISE_LEVEL = {
    "name": "tiny-noise-level",
    "net": {"width": 8},
    "steps": 8,
    "batch": 8,
    "log_every": 4,
    "save_every": 0.0,
}
FEATURES = {"name": "tiny-cnn", "net": {"width": 32}, "steps": 8, "batch": 8, "log_every": 4, "save_every": 0.0}
DISCRETE = {"name": "tiny-ddpm", "net": {"width": 8, "multipliers": [1, 1], "blocks": 1}}
DISCRETE |= {"steps": 8, "batch": 8, "log_every": 4}
KINDS = {"score": SCORE, "discrete": DISCRETE, "noise-level": NOISE_LEVEL, "features": FEATURES}


def write(folder, config):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch):
    """The exact posterior of 10,000 images is not what is tested here."""
    monkeypatch.setattr(noise_level_classifier, "_exact_cross_entropy", lambda *_: 4.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return load_file(training.train("score", write(folder, SCORE), progress=False))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_tracker_gets_the_numbers_of_the_log(tmp_path, undisturbed):
    result = training.train("score", write(tmp_path, SCORE), progress=False, track=["jsonl"])
    assert same(load_file(result), undisturbed), "a tracker draws no random number"
    logged, tracked = (
        [json.loads(x) for x in (tmp_path / f"tiny.{end}").read_text().splitlines()] for end in ("log", "jsonl")
    )
    assert tracked == logged[1:] and [row["step"] for row in tracked] == [4, 8]
    with pytest.raises(UserError, match="unknown tracker"):
        training.train("score", write(tmp_path, SCORE), progress=False, track=["tensorbord"])


def test_ctrl_c_saves_and_the_same_command_continues_to_the_same_bits(tmp_path, undisturbed, monkeypatch, capsys):
    config, calls, draw = write(tmp_path, SCORE), [], score.draw_sigma

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 7:  # two of the calls belong to the measurements
            os.kill(os.getpid(), signal.SIGINT)
        return draw(*arguments)

    monkeypatch.setattr(score, "draw_sigma", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train("score", config, progress=False)
    assert "stopped at step 5 of 8; the same command continues" in capsys.readouterr().err
    assert (tmp_path / "tiny.state").is_file() and not (tmp_path / "tiny.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    before = torch.get_rng_state()
    assert same(load_file(training.train("score", config, progress=False)), undisturbed)
    assert torch.equal(before, torch.get_rng_state()), "training leaves the caller's random numbers alone"
    rows = [json.loads(line) for line in (tmp_path / "tiny.log").read_text().splitlines()[1:]]
    assert [row["step"] for row in rows] == [4, 8]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "tiny.log", "tiny.safetensors"]


def test_sigkill_in_the_middle_changes_nothing(tmp_path, undisturbed):
    config = write(tmp_path, SCORE)
    calls, draw = [], score.draw_sigma

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(*arguments)

    def train():
        score.draw_sigma = killed  # in the fork alone
        training.train("score", config, progress=False)

    assert status_of_fork(train) == -signal.SIGKILL and (tmp_path / "tiny.state").is_file()
    assert same(load_file(training.train("score", config, progress=False)), undisturbed)


def test_the_config_of_glyphs32_continues_to_the_same_bits(tmp_path, monkeypatch):
    """Its network on a few glyphs and for three steps, stopped after the second."""
    images = glyphs32(12).images
    few = tuple(datasets.Labelled(part, None) for part in (images, images[:4]))
    monkeypatch.setattr(datasets, "seen_and_unseen", lambda _: few)
    config = yaml.safe_load((NETS / "glyphs32.yaml").read_text())
    config |= {"name": "tiny", "steps": 3, "batch": 4, "warmup": 1, "exact_above": 0.1, "save_every": 0.0}
    config = write(tmp_path, config)
    whole = load_file(training.train("score", config, progress=False))
    assert torch.allclose(whole["mean"], images.mean(0)) and all(t.isfinite().all() for t in whole.values())
    assert whole["net.up.3.out.2.weight"].abs().max() > 0, "the image begins at zero and is learned at once"

    save, states = loop.Run.save, []

    def stop_after_the_second(run, path):
        save(run, path)
        states.append(path)
        if len(states) == 2:
            raise RuntimeError("stop here")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="stop here"):
        patched.setattr(loop.Run, "save", stop_after_the_second)
        training.train("score", config, progress=False)
    assert torch.load(tmp_path / "tiny.state", weights_only=True)["step"] == 2
    (tmp_path / "tiny.safetensors").unlink()
    assert same(load_file(training.train("score", config, progress=False)), whole)


def test_another_config_does_not_continue_a_state(tmp_path, monkeypatch):
    config, save = write(tmp_path, SCORE), loop.Run.save

    def stop_after_state(run, path):
        save(run, path)
        raise RuntimeError("stop here")

    monkeypatch.setattr(loop.Run, "save", stop_after_state)
    with pytest.raises(RuntimeError, match="stop here"):
        training.train("score", config, progress=False)
    with pytest.raises(UserError, match="lr = 0.001, not 0.5"):
        training.train("score", write(tmp_path, {**SCORE, "lr": 0.5}), progress=False)
    (tmp_path / "tiny.state").write_bytes(b"cut")
    with pytest.raises(UserError, match="delete it"):
        training.train("score", config, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_leaves_a_file_that_can_be_read(tmp_path, kind):
    path = training.train(kind, write(tmp_path, KINDS[kind]), progress=False)
    card = read_card(path)
    assert card["seed"] == 0 and kind in card["training"] and card["versions"]["torch"] == torch.__version__
    if kind == "score":
        model = load_model(path)
        assert torch.allclose(model.mean, digits("train").images.mean(0)) and model.sigma_max == 10
        assert model(torch.zeros(3, 1, 8, 8), torch.ones(())).shape == (3, 1, 8, 8)
    if kind == "discrete":
        model = load_model(path)
        assert model.data_range == (-1, 1) and abs(model.sigma_max / 157.407 - 1) < 1e-5
        x0, z = torch.full((2, 1, 8, 8), 0.25), torch.zeros(2, 1, 8, 8)
        assert torch.allclose(model(x0 + z, torch.full((2,), 0.01)), x0, atol=0.1)
    if kind == "features":
        assert card["architecture"] == "digits-cnn"
    if kind == "noise-level":
        net, levels, _ = load_noise_level(path)
        assert net(torch.zeros(3, 1, 8, 8)).shape == (3, len(levels)) == (3, 1000)
        assert levels[0] == 10 and 0.01 < levels[-1] < levels[-2]


@pytest.mark.slow
def test_training_lowers_the_held_out_loss(tmp_path):
    config = {**SCORE, "steps": 120, "warmup": 10, "lr": 0.01, "batch": 32, "log_every": 60, "save_every": 1e9}
    training.train("score", write(tmp_path, config), progress=False)
    first, last = (json.loads(line)["held_out_loss"] for line in (tmp_path / "tiny.log").read_text().splitlines()[1:])
    assert last < first < 1.0  # 1 is the loss of predicting nothing: F = 0 against a target of unit variance


def test_bad_configs_are_one_sentence(tmp_path):
    cases = [
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"augment": {"rotation": 3}}, "did you mean 'rotate'"),
        ({"steps": "many"}, "steps in the score config must be int"),
        ({"batch": 0}, "batch .* at least 1"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"net": {"chanels": [1]}}, "chanels"),
        ({"net": {"kind": "ncsnp"}}, "did you mean 'ncsnpp'"),
        ({"net": {"kind": "ncsnpp"}}, "'ncsnpp' takes square images and no augment"),
        ({"net": {"kind": "ncsnpp", "wide": 8}, "augment": {}}, "wide"),
        ({"validation": 1197}, "below the 1197"),
    ]
    for change, words in cases:
        with pytest.raises(UserError, match=words):
            training.train("score", write(tmp_path, {**SCORE, **change}), progress=False)
    with pytest.raises(UserError, match="augment is not for the kind discrete"):
        training.train("discrete", write(tmp_path, {**DISCRETE, "augment": {"shift": 1}}), progress=False)
    with pytest.raises(UserError, match="lacks steps"):
        training.train("score", write(tmp_path, {"name": "x"}), progress=False)
    with pytest.raises(UserError, match="did you mean 'score'"):
        training.train("scores", write(tmp_path, SCORE), progress=False)
    with pytest.raises(UserError, match="cannot be read"):
        training.train("score", tmp_path / "none.yaml", progress=False)


def test_augmentation_leaves_what_it_labels_zero_and_moves_as_labelled():
    images = digits("train").images[:256]
    torch.manual_seed(0)
    moved, labels = training.Augmentation(probability=0.2, shift=1.0, rotate=10, scale=0.1, shear=0.1)(images)
    untouched = (labels == 0).all(1)
    assert 0.1 < untouched.float().mean() < 0.45 and torch.equal(moved[untouched], images[untouched])
    assert (moved[~untouched] != images[~untouched]).flatten(1).any(1).all()
    moved, labels = training.Augmentation(probability=1.0, shift=1.0)(images)
    columns = torch.arange(8.0)
    middle = lambda x: (x.sum((1, 2)) * columns).sum(1) / x.sum((1, 2, 3))  # noqa: E731
    shift = middle(moved) - middle(images)
    assert torch.corrcoef(torch.stack([shift, labels[:, 0]]))[0, 1] < -0.9  # the grid moves right, the digit left


def test_noise_levels_of_score_training_follow_their_law():
    config = training.make_config("score", {**SCORE, "p_mean": -2.0, "p_std": 0.5, "p_uniform": 0.5})
    torch.manual_seed(0)
    log_sigma = training.draw_sigma(config, 40_000).log()
    assert log_sigma.min() >= torch.tensor(0.01).log() - 1e-6 and log_sigma.max() <= torch.tensor(10.0).log() + 1e-6
    middle_of_range = (torch.tensor(0.01).log() + torch.tensor(10.0).log()) / 2
    assert abs(log_sigma.mean() - (0.5 * -2.0 + 0.5 * middle_of_range)) < 0.04  # four standard errors
