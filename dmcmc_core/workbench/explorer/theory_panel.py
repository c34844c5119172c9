"""The panel of exact mixtures in the plane: density and score at a noise level, ways from noise, chains."""

from __future__ import annotations

import ipywidgets as w
import numpy as np

from dmcmc_core.errors import UserError, sentence
from dmcmc_core.samplers import INTEGRATORS
from dmcmc_core.workbench.explorer import fields, figures, pictures, theory
from dmcmc_core.workbench.explorer.choice import Problem, problem_of


class TheoryPanel:
    """A view of :func:`dmcmc_core.workbench.explorer.theory.view`, drawn anew when a control changes."""

    def __init__(self) -> None:
        f = fields
        self.soon = fields.Soon(self._draw)
        low, high = (float(np.log10(end)) for end in theory.ENDS)
        sigma = w.FloatLogSlider(
            value=0.5, base=10, min=low, max=high, step=0.05, description="σ", continuous_update=False,
            readout_format=".3g", style=f.WIDE, layout=w.Layout(width="300px"),
        )  # fmt: skip
        self.fields = f.Fields(
            {
                "mixture": f.dropdown("mixture", theory.MIXTURES, next(iter(theory.MIXTURES))),
                "sigma": sigma,
                "arrows": w.Checkbox(value=True, description="score field", style=f.WIDE),
                "sampler": f.dropdown("sampler", INTEGRATORS, "heun"),
                "levels": f.whole("levels", 12, "noise levels of the sampler"),
                "ways": f.whole("ways", 12, "trajectories from noise"),
                "chains": f.whole("chains", 2, "chains on (x, σ)"),
                "steps": f.whole("chain steps", 60),
                "eta": f.real("η", 0.3, "step size of the chains, in units of σ²"),
                "seed": f.whole("seed", 0),
            }
        )
        self.picture = w.HTML(layout=w.Layout(min_height="360px", width="100%"))
        about = f.quiet(
            "Left: density and score of the noisy data at σ, with trajectories of the sampler from noise to data. "
            "Right: chains move in x and change their noise level, and so go from mode to mode."
        )
        self.box = fields.beside(self.fields.box, w.VBox([self.picture, about]))
        self.fields.observe(self.soon.ask)

    def ask(self) -> None:
        """Draw what the controls say, soon."""
        self.soon.ask()

    def _draw(self) -> None:
        try:
            view = theory.view(**{name: self.fields[name] for name in self.fields.controls})
            self.picture.value = pictures.svg(figures.plane(view))
            self.fields.tell(None)
        except UserError as error:
            self.fields.tell(problem_of(error, controls=self.fields.controls))
        except Exception as error:  # an integrator may fail on levels that make no sense
            self.fields.tell(Problem("", f"it cannot be drawn: {sentence(error)}"))
