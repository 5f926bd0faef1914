"""Markdown tables, and numbers as text."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, last_left: int = 0) -> str:
    """Return a Markdown table; the first `left` columns and the `last_left` last are aligned left, others right."""
    right = range(left, len(header) - last_left)
    rule = ["---:" if at in right else "---" for at in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (header, rule, *rows))


def interval(low: float, high: float, digits: int = 2, sign: bool = False) -> str:
    """Return "low to high"."""
    return f"{number(low, digits, sign)} to {number(high, digits, sign)}"


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Return a number with a fixed number of decimals; no "-0.00"."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}" if sign else f"{rounded:.{digits}f}"


def figure(value: float, low: float, high: float, digits: int = 2, sign: bool = False) -> str:
    """Return "value (low to high)"."""
    return f"{number(value, digits, sign)} ({interval(low, high, digits, sign)})"


def percent(value: float, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return f"{number(100 * value, digits)} %"


def shown(cell: str) -> str:
    """Return a cell of a result file as prose shows it: without its interval."""
    return cell.split(" (")[0].split(" [")[0]
