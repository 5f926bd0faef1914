"""The results of an audit in the card of an adapter that is saved already, whichever way they came out."""

import os
from pathlib import Path

from sae_unlearn.cards.card import CARD_NAME, report_section
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.files.atomic import staged


SECTION = "## Audit"
_BEFORE = "## How it was made"


def add_to_card(report: AuditReport, folder: str | os.PathLike[str]) -> Path:
    """Write the section "Audit" of the card of a guardrail or of a LoRA, in the place of one that is there, and the
    report's files into `audit` beside it. The rest of the card stays as it is.

    Saving the adapter anew writes the card anew: pass `audit=report` to `save_pretrained` of a guardrail then, or to
    `push_to_hub`.

    Each file is replaced as a whole, and none if one cannot be written.

    Returns:
        The card.

    Raises:
        FileNotFoundError: there is no card in the folder.
        UnlearnError: the folder cannot be written.
    """
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(f"There is no card {CARD_NAME} in {folder}; give the folder of a saved adapter.")
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _section(lines)
    before, after = "\n".join(lines[:start]).rstrip(), "\n".join(lines[end:]).strip("\n")
    with staged(path.parent) as stage:
        parts = [before, SECTION, report_section(report, stage, "audit").rstrip(), after]
        (stage / CARD_NAME).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _section(lines: list[str]) -> tuple[int, int]:
    """Where the section begins and where the next one does; where it should be, if there is none."""
    start = next((i for i, line in enumerate(lines) if line == SECTION), None)
    if start is None:
        place = next((i for i, line in enumerate(lines) if line == _BEFORE), len(lines))
        return place, place
    return start, next((i for i in range(start + 1, len(lines)) if lines[i].startswith(("# ", "## "))), len(lines))
