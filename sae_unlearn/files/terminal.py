"""Text for a terminal: tables, wrapped columns, and strings from files that nobody vouches for."""

import textwrap
from collections.abc import Sequence


def printable(value: object, limit: int = 300) -> str:
    """`value` as one line that a terminal shows as it is.

    Control characters, escape sequences, and characters that turn the direction of writing are shown by their escapes,
    so that a string from a downloaded file cannot move the cursor, recolour or hide what else is printed.

    Args:
        limit: longer texts are cut, and end in three dots.
    """
    text = str(value)
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def table(rows: Sequence[Sequence[str]], indent: int = 2) -> str:
    """Rows of cells as aligned columns, a rule below the first row; the first column is left-aligned, others right."""
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
    """Two texts in two wrapped columns below their titles."""
    column = (width - indent - 3) // 2
    columns = [[title, *textwrap.wrap(text, column)] for title, text in zip(titles, (left, right), strict=True)]
    height = max(map(len, columns))
    padded = [lines + [""] * (height - len(lines)) for lines in columns]
    return "\n".join((" " * indent + f"{a:<{column}} | {b}").rstrip() for a, b in zip(*padded, strict=True))
