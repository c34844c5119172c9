"""The file of a search: what was asked, measured so far, and found at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError
from dmcmc_core.files import write_json
from dmcmc_core.runs.settings import SEARCHES


class Notes:
    """``content``: ``asked``, ``paired`` and ``compared`` so far, ``tuned`` at the end; kept in a file, if any.

    Raises:
        UserError: for a file that answers another question, or is none of a search.
    """

    def __init__(self, path: str | Path | None, asked: dict[str, Any]) -> None:
        asked = json.loads(json.dumps(asked))
        self.path, self.content = path and Path(path), {"asked": asked}
        if self.path and self.path.is_file():
            try:
                content = json.loads(self.path.read_text())
                other = [name for name in asked if content["asked"][name] != asked[name]]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} is not a file of {SEARCHES[0]}: choose another place") from None
            if other:
                was, now = content["asked"][other[0]], asked[other[0]]
                raise UserError(
                    f"{path} is of another search: its {other[0]} is {was!r}, not {now!r}; choose a new folder"
                )
            self.content = content
        self.paired: dict[str, Any] = self.content.setdefault("paired", {})
        self.compared: dict[str, Any] = self.content.setdefault("compared", {})

    def keep(self, **more: Any) -> None:
        """Add to the content, and write it."""
        self.content |= more
        if self.path:
            write_json(self.path, self.content)
