"""Sections with results in the card of a saved adapter."""

import os
from pathlib import Path

from sae_unlearn.cards.card import CARD_NAME, report_section
from sae_unlearn.checks import check_is
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.evaluation.report.files import StoredReport
from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path


_MEASURED, _AUDIT, _MADE = "## What was measured", "## Audit", "## How it was made"


def add_to_card(report: StoredReport, folder: str | os.PathLike[str]) -> Path:
    """Write or replace a section of a card, and save the report's files next to it.

    An audit goes into the section "Audit" and the folder `audit`, any other report into "What was measured" and the
    folder `evaluation`. The rest of the card is not changed. Saving the adapter again writes a new card: then pass
    `audit=report` or `evaluation=report` to the guardrail's `save_pretrained` or `push_to_hub`. Each file is replaced
    as a whole, and none if one cannot be written.

    Args:
        report (AuditReport, Report or Comparison): From `audit`, `evaluate`, `interference` or `compare`.
        folder (str or PathLike): Folder of a saved guardrail or LoRA.

    Returns:
        Path: The card.

    Raises:
        FileNotFoundError: If the folder has no card.
        UnlearnError: If `report` is not a report, or the folder cannot be written.
    """
    check_is(report, StoredReport, "report")
    audited = isinstance(report, AuditReport)
    title, name = (_AUDIT, "audit") if audited else (_MEASURED, "evaluation")
    path = as_path(folder) / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r}: expected a folder with {CARD_NAME}. Pass the folder of a saved adapter."
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _section(lines, title, (_MADE,) if audited else (_AUDIT, _MADE))
    before, after = "\n".join(lines[:start]).rstrip(), "\n".join(lines[end:]).strip("\n")
    with staged(path.parent) as stage:
        parts = [before, title, report_section(report, stage, name).rstrip(), after]
        (stage / CARD_NAME).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _section(lines: list[str], title: str, later: tuple[str, ...]) -> tuple[int, int]:
    """First line of the section and of the next one; without a section, twice its place, before `later`."""
    start = next((i for i, line in enumerate(lines) if line == title), None)
    if start is None:
        place = next((i for i, line in enumerate(lines) if line in later), len(lines))
        return place, place
    return start, next((i for i in range(start + 1, len(lines)) if lines[i].startswith(("# ", "## "))), len(lines))
