"""Readers of the files in `benchmarks/results`."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).parents[1] / "results"
_RULE = re.compile(r" *-+(?: +-+)+")
_ESTIMATE = re.compile(r"([+-]?[\d.]+)(?: %)?(?: [(\[]([+-]?[\d.]+)(?: %)?(?:,| to) ([+-]?[\d.]+)(?: %)?[)\]])?")

Row = dict[str, str]
Estimate = tuple[float, float, float]


@cache
def read_json(name: str) -> Any:
    """Return the content of a JSON file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@cache
def text_tables(name: str) -> dict[str, list[Row]]:
    """Return the tables of a text file by the line above each; "" for a table without such a line.

    A table has a header, a line of dashes that gives the columns' places, and rows up to the next blank line. A name
    that stands twice in a header has " (2)" after it the second time.
    """
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    found: dict[str, list[Row]] = {}
    for at, line in enumerate(lines):
        if not _RULE.fullmatch(line):
            continue
        spans = [(match.start(), match.end()) for match in re.finditer("-+", line)]
        header = _distinct([lines[at - 1][start:end].strip() for start, end in spans])
        above = [text for text in lines[: at - 1] if text.strip()]
        rows = []
        for row in lines[at + 1 :]:
            if not row.strip():
                break
            rows.append(dict(zip(header, [row[start:end].strip() for start, end in spans], strict=True)))
        title = above[-1].strip() if above and at >= 2 and not lines[at - 2].strip() else ""
        found[title] = rows
    return found


@cache
def markdown_tables(name: str) -> dict[str, list[Row]]:
    """Return the tables of a Markdown file by the heading above each; "" for one without a heading."""
    found: dict[str, list[Row]] = {}
    title, header = "", []
    for line in (RESULTS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        if not line.startswith("|"):
            header = []
        elif not header:
            header = _distinct(_cells(line))
            found[title] = []
        elif not re.fullmatch(r"[| -]+", line):
            found[title].append(dict(zip(header, _cells(line), strict=True)))
    return found


def estimate(cell: str) -> Estimate:
    """Return value, low and high of a cell such as "+0.69 (+0.46 to +0.92)" or "12.5 % (4.3 to 31.0)".

    The bounds of a cell without an interval are its value.

    Raises:
        ValueError: If the cell does not begin with a number.
    """
    match = _ESTIMATE.match(cell)
    if match is None:
        raise ValueError(f"cell={cell!r}: expected a number with or without an interval.")
    value = float(match[1])
    return value, float(match[2] or value), float(match[3] or value)


def one(rows: list[Row], column: str, value: str) -> Row:
    """Return the only row that has `value` in `column`.

    Raises:
        LookupError: If there is no such row, or more than one.
    """
    found = [row for row in rows if row[column] == value]
    if len(found) != 1:
        raise LookupError(f"{column}={value!r}: expected one row, got {len(found)}.")
    return found[0]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _distinct(names: list[str]) -> list[str]:
    return [name if name not in names[:at] else f"{name} (2)" for at, name in enumerate(names)]
