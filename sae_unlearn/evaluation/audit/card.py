"""The section "Audit" in the card of a saved adapter."""

import os
from pathlib import Path

from sae_unlearn.cards.card import CARD_NAME, report_section
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path


SECTION = "## Audit"
_BEFORE = "## How it was made"


def add_to_card(report: AuditReport, folder: str | os.PathLike[str]) -> Path:
    """Write or replace the section "Audit" of a card, and save the report's files into `audit`.

    The rest of the card is not changed. Saving the adapter again writes a new card: then pass `audit=report` to the
    guardrail's `save_pretrained` or `push_to_hub`. Each file is replaced as a whole, and none if one cannot be written.

    Args:
        report (AuditReport): The report.
        folder (str or PathLike): Folder of a saved guardrail or LoRA.

    Returns:
        Path: The card.

    Raises:
        FileNotFoundError: If the folder has no card.
        UnlearnError: If the folder cannot be written.
    """
    path = as_path(folder) / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r}: expected a folder with {CARD_NAME}. Pass the folder of a saved adapter."
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _section(lines)
    before, after = "\n".join(lines[:start]).rstrip(), "\n".join(lines[end:]).strip("\n")
    with staged(path.parent) as stage:
        parts = [before, SECTION, report_section(report, stage, "audit").rstrip(), after]
        (stage / CARD_NAME).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _section(lines: list[str]) -> tuple[int, int]:
    """First line of the section and of the next one. Without a section, both are its place."""
    start = next((i for i, line in enumerate(lines) if line == SECTION), None)
    if start is None:
        place = next((i for i, line in enumerate(lines) if line == _BEFORE), len(lines))
        return place, place
    return start, next((i for i in range(start + 1, len(lines)) if lines[i].startswith(("# ", "## "))), len(lines))
