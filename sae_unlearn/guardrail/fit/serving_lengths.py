"""Held-out rows at the length of a deployment, for the threshold of a service's guardrail.

A gate with `gate_scope="prefix"` compares the largest statistic of any prefix with the threshold. It can only grow with
the row, so a threshold from short rows fires too often on long ones.
"""

from collections.abc import Collection, Sequence


def joined_rows(rows: Sequence[list[int]], length: int, special: Collection[int] = ()) -> list[list[int]]:
    """Return for each row a row of at most `length` tokens: it and those after it, around the end.

    Args:
        rows (Sequence[list[int]]): Rows of token ids.
        length (int): Largest number of tokens of a row.
        special (Collection[int], *optional*, defaults to ()): Special tokens. Those that begin a row are left out if
            another row precedes it.
    """
    bare = [_without_beginning(row, special) for row in rows]
    found = []
    for start, first in enumerate(rows):
        joined = list(first[:length])
        for offset in range(1, len(rows)):
            if len(joined) >= length:
                break
            joined += bare[(start + offset) % len(rows)][: length - len(joined)]
        found.append(joined)
    return found


def _without_beginning(row: list[int], special: Collection[int]) -> list[int]:
    """Return a row without the special token that it begins with."""
    return row[1:] if row and row[0] in special else row
