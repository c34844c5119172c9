"""Trackers: what is logged can be read back; what is not installed or unknown is one sentence."""

from __future__ import annotations

import json
import os
import sys
import types

import pytest

from dmcmc_core.errors import UserError
from dmcmc_core.training.trackers import open_tracker, tracking


def test_json_lines_are_added_at_once(tmp_path):
    for value in (0.5, 0.25):
        with tracking(["jsonl"], tmp_path / "new", "run") as tracker:
            tracker.log(3, loss=value)
            last = (tmp_path / "new" / "run.jsonl").read_text().splitlines()[-1]
            assert json.loads(last) == {"step": 3, "loss": value}
    assert len((tmp_path / "new" / "run.jsonl").read_text().splitlines()) == 2


def test_tensorboard_reads_it_and_a_run_that_goes_on_replaces_what_it_repeats(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs tensorboard: pip install 'dmcmc-core[tensorboard]'",
    )
    for first, losses in ((1, {1: 3.0, 2: 2.0, 3: 9.0}), (3, {3: 1.0, 4: 0.5})):
        with tracking(["tensorboard"], tmp_path, "run", first=first) as tracker:
            for step, loss in losses.items():
                tracker.log(step, loss=loss)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]


class Shaped(types.ModuleType):
    """A module with the calls that wandb and trackio share."""

    def init(self, project, name, config):
        self.calls = [("init", project, name, config)]
        return self

    def log(self, numbers, step):
        self.calls.append(("log", numbers, step))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_whatever_is_shaped_like_wandb_is_told_offline(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, library := Shaped(kind))
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    with pytest.raises(ValueError), tracking([kind, "jsonl"], tmp_path, "run", {"lr": 0.1}) as tracker:
        tracker.log(1, loss=0.5)
        raise ValueError("a run that fails is closed too")
    assert library.calls == [("init", "dmcmc", "run", {"lr": 0.1}), ("log", {"loss": 0.5}, 1), ("finish",)]
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("offline", str(tmp_path))
    assert json.loads((tmp_path / "run.jsonl").read_text()) == {"step": 1, "loss": 0.5}


def test_what_is_not_there_is_told(tmp_path, monkeypatch):
    for kind, absent in (("wandb", ["wandb"]), ("tensorboard", ["torch.utils.tensorboard", "tensorboardX"])):
        for name in absent:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=f"{kind}.* needs its package: pip install"):
            open_tracker(kind, tmp_path, "run")
    with pytest.raises(UserError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        open_tracker("tensorbord", tmp_path, "run")
    assert list(tmp_path.iterdir()) == []
