"""What mkdocs does beside its own: files of the checkout that a page links to become part of the site.

A page of ``docs/`` links ``../figures/README.md``, as in the checkout; the site has ``figures/README.md`` for it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def _outside(page: Path, link: str) -> Path | None:
    """Return the file of the checkout, not of ``docs/``, that a link of a page leads to; None for every other link."""
    if "://" in link:
        return None
    path = Path(os.path.normpath(page.parent / link))
    return path if path.is_file() and ROOT in path.parents and ROOT / "docs" not in path.parents else None


def on_files(files: Files, config) -> Files:
    """Add what pages link to, and what those link to, under its path in the checkout."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages()]
    added: set[Path] = set()
    while waiting:
        page = waiting.pop()
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            path = _outside(page, link[1])
            if path is None or path in added:
                continue
            added.add(path)
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
            if path.suffix == ".md":
                waiting.append(path)
    return files


def on_page_content(html: str, page, config, files: Files) -> str:
    """Show names that docstrings mark for Sphinx, such as :func:`heun`, as code alone."""
    return re.sub(r":(?:mod|func|class|data|meth|attr|exc):(?=<code>)", "", html)


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn links that leave ``docs/``, or come into it, into those of the site."""
    source = Path(page.file.abs_src_path)
    here = posixpath.dirname(page.file.src_uri)

    def place(found: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / found[2]))
        inside = ROOT / "docs" in source.parents and ROOT / "docs" in path.parents
        if "://" in found[2] or inside or not path.is_file() or ROOT not in path.parents:
            return found[0]
        base = ROOT / "docs" if ROOT / "docs" in path.parents else ROOT
        return f"{found[1]}{posixpath.relpath(path.relative_to(base).as_posix(), here or '.')}{found[3]}"

    return LINK.sub(place, markdown)
