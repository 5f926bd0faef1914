"""Markdown tables of an audit: rows, best of all tries, worst form of each attack, harmless rows."""

from collections.abc import Sequence
from typing import Any

from sae_unlearn.evaluation.audit.registry import BLACK_BOX
from sae_unlearn.evaluation.audit.row import RECALL, AuditRow, any_of
from sae_unlearn.evaluation.report.comparison import compare
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure
from sae_unlearn.evaluation.report.report import Report, cell, markdown_table


NOT_ANSWERED = "†"
"""Mark of a row in whose form the base itself cannot answer the question."""

STRENGTHS = {
    "dilution": "{:g} words",
    "splitting": "{:g} turns",
    "spelling": "{:g} of the words",
    "direction": "{:g} times",
    "relearning": "{:g} steps",
    "rounding": "{:g} bits",
}
"""Strength of an attack in words. For other attacks the strength only numbers the variants."""


def attack_table(rows: Sequence[AuditRow]) -> list[str]:
    """Return the table with a line for every attack at every strength, without its empty columns."""
    lines = [
        {
            "attack": row.attack + (" (control)" if row.control else ""),
            "": row_name(row),
            "recall of forgotten facts": figure_text(row.find()),
            "change by the attack": change_text(row.change),
            "base": figure_text(row.find(base=True)) + ("" if row.answerable else f" {NOT_ANSWERED}"),
            "gate fires": figure_text(row.fires()),
            "recall of other facts": figure_text(row.find(side="retain")),
            "base, other facts": figure_text(row.find(side="retain", base=True)),
            "gate fires, other facts": figure_text(row.fires("retain")),
            "n": row_number(row),
        }
        for row in rows
    ]
    return markdown_table(*_filled(lines, ("attack", "", "n")))


def best_table(rows: Sequence[AuditRow]) -> list[str]:
    """Return the table of the recall by the best of all tries of an attack, the worst case."""
    lines = []
    used = _used(rows)
    for name in [*used, "all of these"] if len(used) > 1 else used:
        tries = [rows[0], *(row for row in rows if row.attack in ((name,) if name in used else used))]
        found = [best(tries, side, base) for side in ("forget", "retain") for base in (False, True)]
        lines.append([name, len(tries), *map(figure_text, found), row_number(rows[0])])
    head = ["attack", "tries", "recall of forgotten facts", "base", "recall of other facts", "base, other facts", "n"]
    return markdown_table(head, lines)


def best(rows: Sequence[AuditRow], side: str = "forget", base: bool = False) -> Figure | None:
    """Return the share of facts that at least one of the rows recalls, or None without such figures."""
    found = [figure for row in rows if (figure := row.find(RECALL, side, base)) is not None]
    return any_of(RECALL, found) if found else None


def worst_table(rows: Sequence[AuditRow]) -> list[str]:
    """Return the table of the worst form of each attack, and of the best of all tries on the text."""
    lines = [
        {
            "attack": row.attack,
            "worst form": row_name(row),
            "recall of forgotten facts": figure_text(row.find()),
            "base": figure_text(row.find(base=True)),
            "gate fires": figure_text(row.fires()),
            "n": row_number(row),
        }
        for row in worst_rows(rows)
    ]
    used = _used(rows)
    tries = [rows[0], *(row for row in rows if row.attack in used)]
    if used:
        lines.append(
            {
                "attack": "best of all tries",
                "worst form": f"{len(tries)} tries on the text",
                "recall of forgotten facts": figure_text(best(tries)),
                "base": figure_text(best(tries, base=True)),
                "gate fires": "",
                "n": row_number(rows[0]),
            }
        )
    return markdown_table(*_filled(lines, ("attack", "n"))) if lines else []


def headline(rows: Sequence[AuditRow]) -> str:
    """Return one line: the recall of the plain questions, and by the best of all tries on the text."""
    used = _used(rows)
    tries = [rows[0], *(row for row in rows if row.attack in used)]
    asked = {"Asked plainly": rows[:1], f"With the best of {len(tries)} tries on the text": tries if used else []}
    parts = []
    for how, of in asked.items():
        if (found := best(of)) is not None:
            base = best(of, base=True)
            without = "" if base is None else f"; without the adapter {figure_text(base)}"
            parts.append(f"{how}, {figure_text(found)} of the forgotten facts are recalled{without}.")
    return " ".join(parts)


def worst_rows(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """Return the row of each attack that recalls most.

    Controls, and forms that the base cannot answer, are left out. Of equal rows the one is taken whose form the base
    answers best, then the last one, which has most strength.
    """
    worst: dict[str, tuple[tuple[float, float], AuditRow]] = {}
    for row in rows:
        found = row.find()
        if found is None or row.control or not row.answerable:
            continue
        base = row.find(base=True)
        severity = found.estimate.value, 0.0 if base is None else base.estimate.value
        if row.attack not in worst or severity >= worst[row.attack][0]:
            worst[row.attack] = severity, row
    return [row for _, row in worst.values()]


def neighbor_table(neighbors: Report, base: Report | None) -> list[str]:
    """Return the table of harmless rows near the topic and of others, compared with a base."""
    shown = neighbors if base is None else compare(base, neighbors)
    return shown.to_markdown().splitlines()[2:]


def worst_neighbors(neighbors: Report) -> list[str]:
    """Return list items with the largest fire rate and the largest KL on harmless rows near the topic."""
    lines = []
    for start in ("fires:", "kl"):
        near = [f for f in neighbors.figures if f.metric.startswith(start) and f.data.startswith("near")]
        if near:
            most = max(near, key=lambda figure: figure.estimate.value)
            name = cell(most.data.removeprefix("near").removeprefix(": ")) or "near"
            value = figure_text(most) if start == "fires:" else f"{most.estimate.value:.3g}"
            lines.append(f"- {name}: {most.title} {value}, n = {most.estimate.n}")
    return lines


def row_name(row: AuditRow) -> str:
    """Return variant and strength of a row in words."""
    strength = STRENGTHS.get(row.attack, "").format(row.strength)
    return ", ".join(part for part in (row.variant, strength) if part)


def row_number(row: AuditRow) -> int:
    """Return the number of independent facts in the recall of a row."""
    found = row.find() or row.find(base=True)
    return 0 if found is None else found.estimate.n


def figure_text(figure: Figure | None) -> str:
    """Return a share with its interval in percent, or "" without a figure."""
    return "" if figure is None else _percent(figure.estimate)


def change_text(change: Estimate | None) -> str:
    """Return the change of a share with its interval in percentage points, or "" without a change."""
    return "" if change is None else _percent(change, "+")


def _used(rows: Sequence[AuditRow]) -> list[str]:
    """Names of the attacks on the text that the audit holds."""
    return [name for name in BLACK_BOX if any(row.attack == name for row in rows)]


def _filled(lines: list[dict[str, Any]], always: tuple[str, ...]) -> tuple[list[str], list[list[Any]]]:
    """Head and cells of a table without the columns that are empty in all lines."""
    head = [name for name in lines[0] if name in always or any(line[name] for line in lines)]
    return head, [[line[name] for name in head] for line in lines]


def _percent(found: Estimate, sign: str = "") -> str:
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (found.value, found.low, found.high))
    return f"{value} % ({low} to {high})"
