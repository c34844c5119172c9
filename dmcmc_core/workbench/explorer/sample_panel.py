"""The panel of one sample: what to run, images as they form, the way back through the steps, chains, and saving."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as w
import numpy as np

from dmcmc_core.checkpoints.catalogue import EXACT, SHIPPED, epsilon_names
from dmcmc_core.errors import UserError
from dmcmc_core.samplers import FITTED
from dmcmc_core.workbench.explorer import fields, figures, pictures, saving, walks
from dmcmc_core.workbench.explorer.choice import Choice, Problem, problem_of, samplers_of
from dmcmc_core.workbench.explorer.classes import classes_of
from dmcmc_core.workbench.explorer.session import DONE, FAILED, Models, Session
from dmcmc_core.workbench.explorer.watching import Frame

STARTS = {"as the model knows": "", "data mean": "mean", "zero": "zero"}
GAINS = {"none": "", "frequency": "frequency", "pixel": "pixel", "both": "both"}
OF_CHAINS, OF_DENOISERS = ("eta", "n_skip", "chains"), ("start", "dlg", "preconditioner")


def model_names(own: str | None = None) -> list[str]:
    """Return the names that a person can choose from: their own model first."""
    return [*([own] if own else []), *SHIPPED, *EXACT, *epsilon_names()]


def is_linear(models: Models, name: str) -> bool:
    """Tell whether a model is the network of a linear diffusion, which has samplers of its own."""
    return name in epsilon_names() or hasattr(models.loaded(name), "sde")


def statistics_of(model: str) -> str:
    """Return images that gains for a model may come from, where such are known."""
    known = {"digits": "digits-train", "glyphs32": "glyphs32"}
    return next((images for begin, images in known.items() if model.startswith(begin)), "")


def _others(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that no control has: they are kept for the sampler that they came with."""
    shown = set(OF_CHAINS)
    shown |= {"start"} if settings.get("start") in STARTS.values() else set()
    shown |= {"preconditioner", "statistics"} if settings.get("preconditioner", "") in GAINS.values() else set()
    return {name: value for name, value in settings.items() if name not in shown}


class SamplePanel:
    """A view of a :class:`Session`."""

    def __init__(self, session: Session, choice: Choice) -> None:
        self.session, self._lock, self._quiet, self._walked = session, threading.RLock(), False, 0
        self.fields = fields.Fields(self._controls(choice))
        self.first, self.others = choice.sampler, _others(choice.settings)
        self.bar = fields.Bar(("Run", self.run), cancel=self.cancel)
        self.follower = fields.Follower(session, self.draw, self._failed, self._draw_chains)
        self.soon = fields.Soon(self._check)
        self.x, self.denoised = fields.pixels(), fields.pixels()
        self.step = w.IntSlider(min=1, max=1, description="step", layout=w.Layout(width="100%"), disabled=True)
        self.step.observe(lambda _: self._moved(), names="value")
        self.about = fields.quiet("Press Run: every network evaluation becomes a step that you can go back to.")
        self.notes, self.command, self.saved = fields.quiet(), w.HTML(), fields.quiet()
        self.chain = w.IntSlider(min=0, max=0, description="chain", layout=w.Layout(width="100%"))
        self.chain.observe(lambda _: self._draw_chain(), names="value")
        self.trace, self.along = w.HTML(), w.HTML()
        self.chains = fields.titled("Chains: noise level and images", self.trace, self.chain, self.along)
        self.chains.layout.display = "none"
        self.folder, self.savers = fields.text("folder", "explorer"), self._savers()
        self.box = self._layout()
        self.fields.observe(self._changed)
        self._fit_controls()
        self._changed()

    def _controls(self, choice: Choice) -> dict[str, Any]:
        settings, plain = choice.settings, choice.sampler.removeprefix("dlg+")
        own, f = self.session.models.own, fields
        names = model_names(own)
        names += [] if choice.model in names else [choice.model]
        gains, start = settings.get("preconditioner", ""), settings.get("start", "")
        return {
            "model": f.dropdown("model", names, choice.model, "a network or an exact model"),
            "sampler": f.dropdown("sampler", [plain], plain, "integrator; fitted is fitted once to the model"),
            "nfe": f.whole("NFE", choice.nfe, "network evaluations per image, everything counted"),
            "start": f.dropdown("start", STARTS.items(), start if start in STARTS.values() else ""),
            "dlg": w.Checkbox(value=choice.sampler.startswith("dlg+"), description="DLG chains first", style=f.WIDE),
            "eta": f.real("η", settings.get("eta", 0.3), "step size of the chains, in units of σ²"),
            "n_skip": f.whole("n_skip", settings.get("n_skip", 4), "chain steps between two images"),
            "chains": f.whole("chains", settings.get("chains", 16), "chains side by side"),
            "seed": f.whole("seed", choice.seed),
            "n": f.whole("images", choice.n, "how many; the first 64 are shown"),
            "preconditioner": f.dropdown("preconditioner", GAINS.items(), gains if gains in GAINS.values() else "",
                                         "M of the chains, of predictor_corrector and of reverse_diffusion"),
            "statistics": f.text("gains from", settings.get("statistics", statistics_of(choice.model))),
        }  # fmt: skip

    def _layout(self) -> w.HBox:
        asked = fields.titled("x, what the network is asked", self.x)
        said = fields.titled("x̂0, what it answers", self.denoised)
        images = w.HBox([asked, said], layout=w.Layout(grid_gap="24px", flex_flow="row wrap"))
        save = w.HBox([self.folder, *self.savers], layout=w.Layout(align_items="center", flex_flow="row wrap"))
        shown = [self.bar.box, images, self.step, self.about, self.chains, self.notes]
        shown += [fields.titled("The same images, bit for bit", self.command), save, self.saved]
        return fields.beside(self.fields.box, w.VBox(shown, layout=w.Layout(grid_gap="6px")))

    def _savers(self) -> list[w.Button]:
        session = self.session
        what: dict[str, Callable[[], Any]] = {
            "Save picture": lambda: saving.picture(session.images, session.choice, self.folder.value),
            "Save samples": lambda: saving.samples(session.images, session.choice, self.folder.value),
            "Save settings": lambda: saving.settings(self.choice(), self.folder.value),
        }
        made = []
        for name, write in what.items():
            button = w.Button(description=name, layout=w.Layout(width="auto"))
            button.on_click(lambda _, write=write: self._save(write))
            made.append(button)
        return made

    def _save(self, write: Callable[[], Any]) -> None:
        try:
            paths = write()
            paths = paths if isinstance(paths, list) else [paths]
            self.saved.value = "wrote " + ", ".join(html.escape(str(path)) for path in paths)
        except (UserError, OSError) as error:
            self.saved.value = f'<span class="dmcmc-problem" role="alert">{html.escape(str(error))}</span>'

    # What is chosen

    def choice(self) -> Choice:
        """Return what the controls say."""
        f, settings = self.fields, {}
        linear, sampler = self._linear(), f["sampler"]
        if self.first == (f"dlg+{sampler}" if f["dlg"] and not linear else sampler):
            settings |= self.others
        if not linear:
            settings |= {"start": f["start"]} if f["start"] else {}
            if f["dlg"]:
                sampler = f"dlg+{sampler}"
                settings |= {name: f[name] for name in OF_CHAINS}
            if f["preconditioner"]:
                settings |= {"preconditioner": f["preconditioner"]}
                settings |= {"statistics": f["statistics"]} if f["statistics"] else {}
        return Choice(f["model"], sampler, f["nfe"], f["n"], f["seed"], settings)

    def _linear(self) -> bool:
        return is_linear(self.session.models, self.fields["model"])

    def _fit_controls(self) -> None:
        """Offer the samplers of the model, and show the controls that mean something."""
        f, linear = self.fields, self._linear()
        names = samplers_of(type("Linear", (), {"sde": None}) if linear else None)
        chosen = f.controls["sampler"]
        if list(chosen.options) != names:
            before = chosen.value
            chosen.options = names
            chosen.value = before if before in names else names[0] if linear else "dpmpp_2m"
        for name in OF_DENOISERS:
            f.show(name, not linear)
        for name in OF_CHAINS:
            f.show(name, f["dlg"] and not linear)
        f.show("statistics", bool(f["preconditioner"]) and not linear)

    def _changed(self) -> None:
        with self._lock:
            if self._quiet:
                return
            self._quiet = True
            try:
                self._fit_controls()
                choice = self.choice()
                in_memory = choice.model == self.session.models.own
                line = "explore(model) makes them of your model" if in_memory else choice.command()
                self.command.value = f'<div class="dmcmc-code">{html.escape(line)}</div>'
            finally:
                self._quiet = False
        self.soon.ask()

    def _check(self) -> None:
        """Tell what is wrong with what the controls say, unless they say something else by then."""
        choice = self.choice()
        problem = self.session.check(choice)
        with self._lock:
            if choice == self.choice():
                self.fields.tell(problem)

    # What runs

    def run(self) -> None:
        """Begin what the controls say."""
        with self._lock:
            self.bar.running(True)
            self.bar.line.value, self.notes.value = "starting", ""
            self.chains.layout.display, self._walked = "none", 0
        self.follower.follow(self._start)

    def _start(self) -> None:
        self.session.start(self.choice())
        with self._lock:
            self.fields.tell(None)

    def _failed(self, error: UserError) -> None:
        with self._lock:
            self.bar.running(False)
            self.bar.line.value = ""
            self.fields.tell(problem_of(error))

    def cancel(self) -> None:
        """End what runs."""
        self.session.cancel()
        self.bar.line.value = "cancelling"

    def draw(self, ended: bool) -> None:
        """Show how far the run is; at its end all that it left."""
        with self._lock:
            session, frames = self.session, self.session.log.frames
            positions = len(frames) + (session.images is not None)
            follows = self.step.value == self.step.max or self.step.max > positions
            self._quiet = True
            try:
                self.step.disabled, self.step.max = not positions, max(1, positions)  # max before value: JupyterLab
                if follows or ended and session.status == DONE:  # answers both in one message with the old value
                    self.step.value = self.step.max
            finally:
                self._quiet = False
            self._show(frames)
            if ended or not session.stop.is_set():
                fits = session.choice.sampler.endswith(FITTED.name) and not session.log.calls
                self.bar.show(session.progress(), "fitting a solver to this model, once" if fits else "")
            if ended:
                self._ended()

    def _ended(self) -> None:
        session = self.session
        self.bar.running(False)
        self.notes.value = fields.told(session.notes)
        if session.status == FAILED:
            self.fields.tell(session.problem or Problem("", "the run failed"))
        self._draw_chains()

    # What is shown

    def _moved(self) -> None:
        if not self._quiet:
            with self._lock:
                self._show(self.session.log.frames)

    def _show(self, frames: list[Frame]) -> None:
        """Show the step of the slider."""
        session, place = self.session, self.step.value
        if not frames:
            return
        if place > len(frames) and session.images is not None:
            images = session.images
            made = pictures.png(pictures.sheet(pictures.uint8(images[:64], images.data_range)))
            self._set(made, made, f"{len(images)} images, {images.nfe:.2f} NFE each: finished")
            return
        newest = session.log.newest if place >= len(frames) and session.running else None
        frame = newest or frames[max(0, min(place, len(frames)) - 1)]
        low, high = float(frame.sigma.min()), float(frame.sigma.max())
        level = f"σ = {high:.3g}" if np.isclose(low, high) else f"σ from {low:.3g} to {high:.3g}"
        level = level if not self._linear() else f"t = {high:.3g}"
        what = "chains walk" if frame.phase == "chains" else "images form"
        x, denoised = (pictures.png(pictures.sheet(images)) for images in (frame.x, frame.denoised))
        self._set(x, denoised, f"call {frame.call} · {level} · {what}")

    def _set(self, x: bytes, denoised: bytes, about: str) -> None:
        for image, value in ((self.x, x), (self.denoised, denoised)):
            if image.value != value:
                image.value = value
        self.about.value = html.escape(about)

    def _chain_frames(self) -> list[Frame]:
        """Return the frames of the chains themselves, without those of calibration."""
        windows = self.session.windows()
        rows = windows[0]["sigmas"].shape[1] if windows else 0
        return [f for f in self.session.log.frames if f.phase == "chains" and len(f.x) == min(rows, 64)]

    def _draw_chains(self) -> None:
        """Show the chains as far as they have walked, where that is farther than what is shown."""
        with self._lock:
            frames, windows = self._chain_frames(), len(self.session.windows())
            if not frames or windows == self._walked:
                return
            self._walked, self._quiet = windows, True
            try:
                self.chain.max = len(frames[0].x) - 1
            finally:
                self._quiet = False
            self._draw_chain()
            self.chains.layout.display = ""

    def _draw_chain(self) -> None:
        """Draw the chain of the slider, and the levels of others beside its own."""
        with self._lock:
            frames, windows, chain = self._chain_frames(), self.session.windows(), self.chain.value
            if self._quiet or not frames or not windows:
                return
            model = self.session.models.loaded(self.session.choice.model)
            ends = (model.sigma_min, model.sigma_max) if model is not None else None
            chosen = [frames[i].denoised[chain : chain + 1] for i in figures.spread(len(frames))]
            classes = classes_of(self.session.choice.model, chosen)
            self.trace.value = walks.trace(windows, ends, chain)
            self.along.value = walks.along(frames, chain, classes and [one for (one,) in classes])
