"""The documentation, taken apart: code blocks, tables, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "anchors", "blocks", "links", "prose", "rows"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which that begins."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the reader is told to put it in: a comment in its first line, ``# proj.py``."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named else None


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> Iterator[Block]:
    """Yield the fenced blocks of one language."""
    for match in _FENCE.finditer(text):
        if match[1] == language:
            yield Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1)


def prose(text: str) -> str:
    """Return a page without its blocks."""
    return _FENCE.sub("", text)


def rows(text: str, *heads: str) -> list[list[str]]:
    """Return the rows of the one table of a page whose first headings are these."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in prose(text).splitlines()]
    starts = [i for i, cells in enumerate(lines) if tuple(cells[: len(heads)]) == heads]
    assert len(starts) == 1, f"{len(starts)} tables begin with {heads}"
    found = []
    for cells in lines[starts[0] + 2 :]:
        if len(cells) < len(heads):
            break
        found.append(cells)
    return found


def anchors(text: str) -> set[str]:
    """Return the names under which a page's headings can be linked to, as hosting sites make them."""
    heads = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(text: str) -> list[str]:
    """Return the targets of a page's links."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))
