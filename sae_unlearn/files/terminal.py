"""Text for a terminal: tables, wrapped columns, and strings from untrusted files."""

import textwrap
from collections.abc import Sequence


def printable(value: object, limit: int = 300) -> str:
    """Return `value` as one line that a terminal shows unchanged.

    Control characters, escape sequences and bidirectional marks are escaped, so a string from a downloaded file cannot
    move the cursor, change colors or hide other output.

    Args:
        value (object): The value to show.
        limit (int, *optional*, defaults to 300): Length in characters above which the text is cut and ends in "...".
    """
    text = str(value)
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def table(rows: Sequence[Sequence[str]], indent: int = 2) -> str:
    """Return rows of cells as aligned columns: the first to the left, the others to the right.

    A line of dashes separates the first row, the heading, from the others.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + "   ".join(cells).rstrip())
        if number == 0:
            lines.append(" " * indent + "   ".join("-" * w for w in widths))
    return "\n".join(lines)


def side_by_side(left: str, right: str, titles: tuple[str, str], width: int = 100, indent: int = 2) -> str:
    """Return two texts in two wrapped columns below their titles, `width` characters wide in all."""
    column = (width - indent - 3) // 2
    columns = [[title, *textwrap.wrap(text, column)] for title, text in zip(titles, (left, right), strict=True)]
    height = max(map(len, columns))
    padded = [lines + [""] * (height - len(lines)) for lines in columns]
    return "\n".join((" " * indent + f"{a:<{column}} | {b}").rstrip() for a, b in zip(*padded, strict=True))
