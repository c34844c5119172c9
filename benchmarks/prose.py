"""Sentences of more than 25 words in README.md and docs/: ``python benchmarks/prose.py [FILE ...]`` lists them.

A sentence ends with a full stop, a question or exclamation mark, or with its paragraph, list item or table cell.
Code in a line and the text of links count as their words; code blocks, comments and addresses do not count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 25
ABBREVIATIONS = re.compile(r"\b(et al|e\.g|i\.e|vs|cf|eq|Fig|No)\.")
END = re.compile(r"(?<=[.!?])[)\"'*_]*\s+")


def pages() -> list[Path]:
    """Return README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def without_code(markdown: str) -> str:
    """Return Markdown without its code blocks and comments; lines stay where they are."""
    hidden = re.compile(r"^( *)(```|~~~).*?^\1\2 *$|<!--.*?-->", re.M | re.S)
    return hidden.sub(lambda found: "\n" * found[0].count("\n"), markdown)


def blocks(markdown: str) -> Iterator[str]:
    """Yield paragraphs, list items, headings and table cells as one line each, links as their text."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", without_code(markdown))
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)|\n(?=#)|\n(?=\s*\|)", text):
        line = " ".join(paragraph.split())
        cells = re.split(r"(?<!\\)\|", line) if line.startswith("|") else [line]
        yield from (cell for cell in map(str.strip, cells) if re.search(r"\w", cell))


def sentences(markdown: str) -> Iterator[str]:
    """Yield the sentences of a page."""
    for block in blocks(markdown):
        safe = ABBREVIATIONS.sub(lambda found: found[0].replace(".", "\0"), block)
        yield from (sentence.replace("\0", ".") for sentence in END.split(safe))


def words(sentence: str) -> int:
    """Count words and numbers; a span of code without spaces is one, signs alone are none."""
    return sum(1 for word in sentence.split() if re.search(r"\w", word))


def too_long(markdown: str) -> list[str]:
    """Return the sentences of more than 25 words."""
    return [sentence for sentence in sentences(markdown) if words(sentence) > MOST]


def main() -> int:
    """Print what is too long; the status is 1 where there is any."""
    count = 0
    for path in [Path(name) for name in sys.argv[1:]] or pages():
        for sentence in too_long(path.read_text(encoding="utf-8")):
            count += 1
            print(f"{path}: {words(sentence)} words: {sentence}")
    print(f"{count} sentences of more than {MOST} words")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
