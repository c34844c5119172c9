"""The option ``--track``, which verbs that write numbers share."""

from __future__ import annotations

import argparse


def track_argument(p: argparse.ArgumentParser, default: list[str], what: str) -> None:
    """Add ``--track``, which names places that numbers go to as well; ``what`` says which numbers."""
    from dmcmc_core.training.trackers import TRACKERS

    text = f"any of {', '.join(TRACKERS)} (default: {' '.join(default) or 'none'}): {what}"
    p.add_argument("--track", nargs="+", default=default, metavar="T", help=text)
