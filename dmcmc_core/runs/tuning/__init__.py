"""Settings found by trial, on seeds that no run uses: ``auto`` chooses a sampler, ``dlg+auto`` settings of chains.

All that a user has may be a checkpoint and a budget, so the model is its own judge. Plain integrators are compared by
their paired error, to the accurate solution from the same noise (:mod:`.plain`): a few dozen images tell them apart. A
chain has no such solution: chains are compared by how far their images are from slow ones (:mod:`.chains`).
"""

from __future__ import annotations

from dmcmc_core.runs.tuning.chains import choices
from dmcmc_core.runs.tuning.result import Tuned, surely_less
from dmcmc_core.runs.tuning.search import AUTO, AUTO_OR_PLAIN, auto
from dmcmc_core.runs.tuning.slow import slow_images

__all__ = ["AUTO", "AUTO_OR_PLAIN", "Tuned", "auto", "choices", "slow_images", "surely_less"]
