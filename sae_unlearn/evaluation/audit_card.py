"""The results of an audit in the card of an adapter, whichever way they came out."""

import os
from pathlib import Path

from sae_unlearn.evaluation.audit_report import AuditReport
from sae_unlearn.evaluation.audit_tables import BEST, attack_table, best_table, neighbour_table
from sae_unlearn.evaluation.report import cell


CARD_NAME = "README.md"
SECTION = "## Audit"
_BEFORE = "## What it does not protect against"


def put_into_card(report: AuditReport, folder: str | os.PathLike[str]) -> Path:
    """Write the section "Audit" into the card of a guardrail or of a LoRA, in the place of one that is there.

    The rest of the card stays as it is. Saving the adapter anew writes a card without the section.

    Returns:
        The card.

    Raises:
        FileNotFoundError: there is no card in the folder.
    """
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(f"There is no card {CARD_NAME} in {folder}; give the folder of a saved adapter.")
    lines = path.read_text(encoding="utf-8").splitlines()
    start, end = _section(lines, SECTION)
    if start is None:
        start = end = next((i for i, line in enumerate(lines) if line == _BEFORE), len(lines))
    before, after = "\n".join(lines[:start]).rstrip(), "\n".join(lines[end:]).lstrip("\n")
    text = f"{before}\n\n{card_section(report)}" + (f"\n{after}\n" if after else "")
    path.write_text(text, encoding="utf-8")
    return path


def card_section(report: AuditReport) -> str:
    """The section as Markdown; no question and no answer is in it."""
    lines = [SECTION, ""]
    lines += ["Attacks that were tried on this adapter (`sae_unlearn.evaluation.audit`), with 95 % intervals:", ""]
    lines += [*attack_table(report), "", f"With the best of all tries. {BEST}", "", *best_table(report)]
    if report.neighbours is not None:
        lines += ["", "Harmless rows near the topic, and others:", "", *_tables_only(neighbour_table(report))]
    if report.notes:
        lines += ["", *(f"- {cell(note)}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _section(lines: list[str], title: str) -> tuple[int | None, int]:
    """Where a section begins and where the next one does."""
    start = next((i for i, line in enumerate(lines) if line == title), None)
    if start is None:
        return None, len(lines)
    return start, next((i for i in range(start + 1, len(lines)) if lines[i].startswith(("# ", "## "))), len(lines))


def _tables_only(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("|")]
