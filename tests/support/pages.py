"""The pages of the documentation, and what stands in their fences."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = [ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING", "CHANGELOG")]
PAGES = [*TOP, *sorted(DOCS.rglob("*.md"))]
CARDS = sorted((ROOT / "model_cards").rglob("*.md"))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: the file it stands in.
        line: of its first line, from 1.
        language: "python", "bash", "json" or "".
        text: what stands in it, without its indentation.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language, on all pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent, language, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        found.append(Block(page, text[: match.start(3)].count("\n") + 1, language, "\n".join(lines) + "\n"))
    return found


def prose(page: Path) -> str:
    """A page without its fenced and indented blocks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def commands(block: Block) -> list[list[str]]:
    """The calls of `sae-unlearn` in a block of shell, each as its arguments."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["sae-unlearn"]:
                found.append(words[1:])
    return found
