"""The training loop: Adam, a learning rate, averaged weights, and the state on disk from which it continues.

It leaves NAME.safetensors (the averaged weights and their card) and NAME.log (JSON lines), and while it goes on
NAME.state, from which it continues bit for bit after any interruption.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmcmc_core import checkpoints
from dmcmc_core.errors import UserError
from dmcmc_core.files import replacing, write_text
from dmcmc_core.training.config import Config
from dmcmc_core.training.trackers import tracking


def learning_rate(config: Config, step: int) -> float:
    """Return the rate of Adam at a step: a linear rise over ``warmup`` steps, and a half cosine to 0 at ``steps``."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    return config.lr * rise * (1 + math.cos(math.pi * step / config.steps)) / 2


class Task(NamedTuple):
    """A network that the loop trains, and how."""

    module: nn.Module
    loss: Callable[[nn.Module, int], Tensor]
    """Draws the batch of a step, from 0, and returns its loss; all randomness is from torch's global generator."""
    measure: Callable[[nn.Module], dict[str, float]]
    """Returns numbers for the log; uses no global randomness."""
    card: dict
    """What the model card tells beside what is the same for all."""
    rate: Callable[[Config, int], float] = learning_rate
    """The rate of Adam at a step, from 0."""
    between: Callable[[Run], None] | None = None
    """Gets the run after each step, while its clock stands still; uses no global randomness."""


def make_task(
    config: Config,
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, int], Tensor],
    measure: Callable[[nn.Module], dict[str, float]],
    card: dict,
    **more: Any,
) -> Task:
    """Return the task of a network that ``make`` draws by the config's seed; ``more`` are further fields of the task.

    Raises:
        UserError: where the config's arguments do not make a network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return Task(make(), loss, measure, card, **more)
        except TypeError as error:
            raise UserError(f"net in the config {config.name!r} does not make a network: {error}") from error


class Run:
    """All that changes while a network is trained, and its way to disk and back.

    ``recipe`` is the kind of training and its config: a state on disk continues no other. ``profile`` is a list that
    the task's ``between`` may add rows to.
    """

    def __init__(self, module: nn.Module, config: Config, recipe: dict) -> None:
        self.module, self.config, self.recipe = module.train(), config, recipe
        self.average = copy.deepcopy(module).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.step, self.rows, self.seconds, self.profile = 0, [], 0.0, []
        self.devices = sorted({p.device.index or 0 for p in module.parameters() if p.is_cuda})

    def update(self, loss: Tensor, rate: float) -> None:
        """Make one step down the gradient of the loss, and follow it with the averaged weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        if self.config.ema:
            self._follow(min(self.config.ema, (1 + self.step) / (10 + self.step)))

    def averaged(self) -> nn.Module:
        """Return the network with the averaged weights (those of now without averaging), in evaluation mode."""
        if not self.config.ema:
            self._follow(0.0)
        return self.average

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)

    def wait(self) -> None:
        """Return when the devices have done what they were given, so that a clock can be read."""
        for device in self.devices:
            torch.cuda.synchronize(device)

    def save(self, path: Path) -> None:
        """Write the state, with that of torch's global generators."""
        nets = {name: getattr(self, name).state_dict() for name in ("module", "average", "optimizer")}
        facts = {name: getattr(self, name) for name in ("step", "rows", "seconds", "profile")}
        rng = {"rng": torch.get_rng_state(), "cuda_rng": [torch.cuda.get_rng_state(d) for d in self.devices]}
        with replacing(path) as part:
            torch.save({"config": self.recipe, **rng, **nets, **facts}, part)

    def load(self, path: Path) -> None:
        """Continue from a state; UserError for one that cannot be read or belongs to another run."""
        state = _load_state(path, self.recipe)
        self.step, self.rows, self.seconds = state["step"], state["rows"], state["seconds"]
        self.profile = state.get("profile", [])
        for name in ("module", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        for device, rng in zip(self.devices, state.get("cuda_rng", []), strict=True):
            torch.cuda.set_rng_state(rng, device)


def fit(kind: str, config: Config, task: Task, out_dir: Path, progress: bool, track: Sequence[str]) -> Path:
    """Train the network of a task, or continue; return the finished file.

    Raises:
        UserError: for a state that belongs to another run, or an unknown tracker.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    from tqdm.auto import tqdm

    out_dir.mkdir(parents=True, exist_ok=True)
    state_file, log_file, result = (out_dir / f"{config.name}.{end}" for end in ("state", "log", "safetensors"))
    recipe = {"kind": kind, **dataclasses.asdict(config)}
    run = Run(task.module, config, recipe)
    with torch.random.fork_rng(devices=run.devices), _interrupts() as interrupted, contextlib.ExitStack() as opened:
        torch.manual_seed(config.seed)
        if state_file.is_file():
            run.load(state_file)
        tracker = opened.enter_context(tracking(track, out_dir, config.name, recipe, run.step + 1))
        clock = saved = time.monotonic()
        bar = tqdm(total=config.steps, initial=run.step, desc=config.name, unit="step", disable=not progress)
        while run.step < config.steps:
            loss = task.loss(run.module, run.step)
            run.update(loss, task.rate(config, run.step))
            run.wait()
            bar.update()
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            if run.step % config.log_every == 0 or run.step == config.steps:
                with torch.no_grad():
                    measured = task.measure(run.averaged())
                numbers = {"seconds": round(run.seconds, 1), "loss": loss.item(), **measured}
                run.rows.append({"step": run.step, **numbers})
                tracker.log(run.step, **numbers)
                _write_log(log_file, {"config": recipe, **task.card}, run.rows)
                shown = "held_out_loss" if measured else "loss"
                bar.set_postfix({shown: f"{numbers[shown]:.4f}"})
            if task.between:
                with torch.no_grad():
                    task.between(run)
            if interrupted() or now - saved > config.save_every:
                run.save(state_file)
                saved = now
            if interrupted():
                bar.close()
                message = f"stopped at step {run.step} of {config.steps}; the same command continues from there"
                print(message, file=sys.stderr)
                raise KeyboardInterrupt
            clock = time.monotonic() if task.between else clock
        bar.close()
    checkpoints.save(run.averaged(), result, _card(kind, config, task, run.rows[-1]))
    state_file.unlink(missing_ok=True)
    return result


def rise(config: Config, step: int) -> float:
    """Return the rate of Adam as in the published comparison: from 0 over ``warmup`` steps, and then as it is."""
    return config.lr * min(1.0, step / config.warmup if config.warmup else 1.0)


def _load_state(path: Path, recipe: dict) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as the state of a training run; delete it to start again") from error
    otherwise = "restore the config to continue that run, or delete the state to start again"
    check_same(path, state["config"], recipe, otherwise)
    return state


def continues(kind: str, config: Config, out_dir: Path) -> bool:
    """Tell whether there is a state to continue from; UserError for one of another run, as :func:`fit` has it."""
    path = out_dir / f"{config.name}.state"
    return path.is_file() and bool(_load_state(path, {"kind": kind, **dataclasses.asdict(config)}))


def check_same(path: Path, found: dict, recipe: dict, otherwise: str) -> None:
    """Raise UserError, ending in what to do, where a file tells of another recipe."""
    for key in recipe:
        if found.get(key) != recipe[key]:
            was = found.get(key)
            raise UserError(f"{path} belongs to a run with {key} = {was!r}, not {recipe[key]!r}: {otherwise}")


def _write_log(path: Path, facts: dict, rows: list[dict]) -> None:
    lines = [json.dumps(facts), *(json.dumps(row) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def _card(kind: str, config: Config, task: Task, last: dict) -> dict:
    return {
        "name": config.name,
        **task.card,
        "data": task.card.get("data", config.data),
        "seed": config.seed,
        "training": f"python -m dmcmc_core train {kind} --config {shlex.quote(f'{config.name}.yaml')}",
        "training_config": dataclasses.asdict(config),
        "last_log": last,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()},
    }


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch compute with this number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed, instead of breaking a step in the middle; a second one breaks at once."""
    seen = []

    def note(number, frame) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
