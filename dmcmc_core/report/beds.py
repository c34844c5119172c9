"""The test-beds of a notebook, with the images and seeds of each of their cells, and how captions speak of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmcmc_core import metrics
from dmcmc_core.report import testbed
from dmcmc_core.report.tables import Spread, in_words
from dmcmc_core.report.testbed import Testbed


class Beds(NamedTuple):
    """Test-beds by their names.

    Attributes:
        loaded: name -> test-bed.
        n: name -> images of a cell.
        seeds: of each cell.
        floor: name -> :meth:`Testbed.floor`, the distance of as many images that nothing is wrong with.
    """

    loaded: dict[str, Testbed]
    n: Mapping[str, int]
    seeds: range
    floor: dict[str, Spread]

    def __str__(self) -> str:
        lines = []
        for name, bed in self.loaded.items():
            model = bed.model
            lines.append(f"{name}: {bed.name}, {model.shape}, sigma {model.sigma_min} to {model.sigma_max}")
            lines[-1] += f"; {bed.distance}"
            lines.append(f"  n = {self.n[name]} against {bed.reference.name} (n = {bed.reference.n}); {self._seeds}")
            lines.append(f"  same-n floor: {in_words(self.floor[name])}")
        return "\n".join(lines)

    @property
    def _seeds(self) -> str:
        return f"{len(self.seeds)} seeds"

    @property
    def caption(self) -> str:
        """What distances are, of how many images, and the floor of each: for a caption, without its end."""
        return "; ".join(
            f"{name}: {bed.distance}, n = {self.n[name]} against {bed.reference.name} (n = {bed.reference.n}), "
            f"same-n floor {in_words(self.floor[name])}"
            for name, bed in self.loaded.items()
        )

    @property
    def sizes(self) -> str:
        """Images of a cell, by test-bed."""
        return ", ".join(f"{name} n = {self.n[name]}" for name in self.loaded)

    @property
    def title(self) -> str:
        """Sizes and seeds, above a figure."""
        return f"{self.sizes}; {self._seeds}"

    @property
    def features(self) -> str:
        """The features of each test-bed's distance."""
        return " and ".join(f"{bed.reference.extractor.name} features ({name})" for name, bed in self.loaded.items())

    @property
    def ylabels(self) -> dict[str, str]:
        """Name -> what its distance is."""
        return {name: bed.distance for name, bed in self.loaded.items()}

    @property
    def floors(self) -> dict[str, float]:
        """Name -> mean of its floor."""
        return {name: floor.mean for name, floor in self.floor.items()}

    def where(self, name: str) -> str:
        """Return test-bed, images of a cell and seeds, for a claim."""
        return f"{name}, n = {self.n[name]}, {self._seeds}"

    def check(self, rows: list[dict[str, Any]], adaptive: bool = False) -> None:
        """Raise AssertionError for rows that spend more than their budget, or are of another n or reference.

        Args:
            rows: as of :meth:`Testbed.row`.
            adaptive: rows with a tolerance take what the images need, as it was set on other seeds.
        """
        for row in rows:
            spent = f"{row['bed']}, {row['sampler']}: {row['nfe']} NFE of {row['budget']}"
            assert (adaptive and row["tol"]) or row["nfe"] <= row["budget"] + 1e-9, spent
            assert row["nfe_paper"] <= row["nfe"] and row["reference_n"] == self.loaded[row["bed"]].reference.n
            metrics.require_equal_n(row, self.n[row["bed"]])


def load(
    beds: Mapping[str, Mapping[str, Any]],
    n: Mapping[str, int],
    seeds: range,
    cache_dir: str | Path,
    shown: bool = False,
) -> Beds:
    """Load test-beds, with the floor of each.

    Args:
        beds: name -> arguments of :func:`dmcmc_core.report.testbed.load`.
        n, seeds: images of a cell, by name, and its seeds.
        cache_dir: where samples and measurements are kept.
        shown: whether figures show their images.

    Raises:
        UserError: see :func:`dmcmc_core.report.testbed.load`; where shown, for latents and for images of other channels
            than 1 or 3, before the first of them is made.
    """
    from dmcmc_core.report import plots

    loaded = {name: testbed.load(**about, cache_dir=cache_dir) for name, about in beds.items()}
    for bed in loaded.values() if shown else ():
        plots.check_shown(bed.model)
    return Beds(loaded, n, seeds, {name: bed.floor(n[name], seeds) for name, bed in loaded.items()})
