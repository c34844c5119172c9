"""The panel of semantic control: a slider for each boundary, and the images that they make."""

from __future__ import annotations

import html
import threading

import ipywidgets as w
import torch

from dmcmc_core.errors import UserError
from dmcmc_core.workbench.explorer import fields, pictures
from dmcmc_core.workbench.explorer.choice import Problem
from dmcmc_core.workbench.explorer.control import BEDS, Steering
from dmcmc_core.workbench.explorer.session import DONE, FAILED


class ControlPanel:
    """A view of a :class:`Steering`."""

    def __init__(self, steering: Steering) -> None:
        self.steering, self._lock, self._quiet = steering, threading.RLock(), False
        self.fields = fields.Fields({"bed": fields.dropdown("images", BEDS, next(iter(BEDS)))})
        most = max(len(bed.boundaries) for bed in BEDS.values())
        layout = w.Layout(width="100%")
        self.sliders = [
            w.FloatSlider(value=0, continuous_update=False, layout=layout, style={"description_width": "140px"})
            for _ in range(most)
        ]
        self.bar = fields.Bar(("Fit and edit", self.ask), cancel=steering.cancel)
        self.follower = fields.Follower(steering, self.draw, self._failed)
        self.before, self.after = (self._strip() for _ in range(2))
        self.about = fields.quiet("Linear boundaries in the latents of a frozen network: nothing is trained.")
        self.box = self._layout()
        self._fit_sliders()
        self.fields.observe(self._fit_sliders)
        for slider in self.sliders:
            slider.observe(lambda _: self._moved(), names="value")

    def _strip(self) -> w.Image:
        image = fields.pixels("96px")
        image.layout.width, image.layout.max_width, image.layout.object_position = "100%", "760px", "left"
        return image

    def _layout(self) -> w.HBox:
        right = [self.bar.box, *self.sliders, fields.titled("before", self.before), fields.titled("after", self.after)]
        return fields.beside(self.fields.box, w.VBox([*right, self.about], layout=w.Layout(grid_gap="8px")))

    def _fit_sliders(self) -> None:
        bed = BEDS[self.fields["bed"]]
        low, high = bed.strengths
        self._quiet = True
        try:
            for slider, name in zip(self.sliders, bed.boundaries, strict=True):
                slider.min, slider.max = min(low, slider.min), max(high, slider.max)
                slider.value, slider.min, slider.max, slider.step = 0.0, low, high, (high - low) / 40
                slider.description = name
        finally:
            self._quiet = False

    def _moved(self) -> None:
        if not self._quiet and (self.steering.bed == self.fields["bed"] or self.steering.running):
            self.ask()

    def ask(self) -> None:
        """Ask for the images at the strengths of the sliders."""
        if self.steering.running:
            self._ask()
            return
        with self._lock:
            self.fields.tell(None)
            self.bar.running(True)
            self.bar.buttons[0].disabled = False
        self.follower.follow(self._ask)

    def _ask(self) -> None:
        self.steering.ask(self.fields["bed"], [slider.value for slider in self.sliders])

    def _failed(self, error: UserError) -> None:
        with self._lock:
            self.bar.running(False)
            self.fields.tell(Problem("", str(error)))

    def draw(self, ended: bool) -> None:
        """Show the newest images."""
        with self._lock:
            s = self.steering
            fitting = s.bed != self.fields["bed"] and not ended
            self.bar.line.value = "fitting boundaries" if fitting else "editing" if not ended else html.escape(s.status)
            done = s.status == DONE and ended
            self.bar.bar.value, self.bar.bar.bar_style = (1.0, "success") if done else (0.5, "")
            self.bar.running(not ended)
            self.bar.buttons[0].disabled = False
            if ended and s.status == FAILED:
                self.fields.tell(s.problem)
            if s.edited is None or s.source is None:
                return
            for image, shown in ((self.before, s.source), (self.after, s.edited)):
                value = strip(shown)
                if image.value != value:
                    image.value = value
            facts = ", ".join(f"{name}: {share:.0%}" for name, share in s.accuracies.items())
            self.about.value = html.escape(f"images held out that lie on their side of the boundary: {facts}")


def strip(images: torch.Tensor) -> bytes:
    """Return images (n, C, H, W) in [0, 1] as one row of PNG."""
    return pictures.png(pictures.sheet(pictures.uint8(images, (0.0, 1.0)), len(images)))
