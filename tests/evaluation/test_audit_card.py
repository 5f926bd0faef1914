"""The section "Audit" of an adapter's card."""

import pytest
import torch

from sae_unlearn.evaluation import AuditReport, AuditRow, put_into_card
from sae_unlearn.evaluation.audit_row import RECALL
from sae_unlearn.evaluation.figure import figure_of_rows
from sae_unlearn.guardrail import SAEGuardrailConfig
from sae_unlearn.guardrail.card import write_card


def report(recalled):
    hits = torch.tensor([1.0] * recalled + [0.0] * (10 - recalled))
    figure = figure_of_rows("forget", "facts", RECALL, "share", hits, [""] * 10, "r")
    return AuditReport("Audit", (AuditRow("none", "", 0, (figure,)), AuditRow("wrappers", "play", 1, (figure,))))


@pytest.mark.parametrize("recalled", [0, 10])
def test_the_card_takes_results_whichever_way_they_come_out(tmp_path, recalled):
    config = SAEGuardrailConfig(layer=1, num_features=2, feature_ids=[3, 4], threshold=0.5, clamp_value=-1.0)
    write_card(tmp_path, config, torch.nn.Linear(1, 1))
    card = tmp_path / "README.md"
    before = card.read_text()
    assert put_into_card(report(recalled), tmp_path) == card
    after = card.read_text()
    start, end = after.index("## Audit"), after.index("## What it does not protect against")
    assert start < end
    assert f"| wrappers | play | {10 * recalled}.0 % (" in after[start:end]
    rest = (after[:start].rstrip() + "\n\n" + after[end:]).splitlines()
    assert [line for line in rest if line] == [line for line in before.splitlines() if line]


def test_a_second_audit_takes_the_place_of_the_first(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# A LoRA\n\nText.\n\n## Audit\n\nOld.\n\n### Old too\n\n## Licence\n\nFree.\n")
    put_into_card(report(3), tmp_path)
    once = card.read_text()
    put_into_card(report(3), tmp_path)
    assert card.read_text() == once
    assert "Old" not in once
    assert once.count("## Audit") == 1
    assert once.startswith("# A LoRA\n\nText.\n\n## Audit\n")
    assert once.endswith("\n\n## Licence\n\nFree.\n")


def test_a_card_without_sections_gets_one_at_its_end(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# A LoRA\n")
    put_into_card(report(3), tmp_path)
    assert card.read_text().startswith("# A LoRA\n\n## Audit\n")
    assert card.read_text().endswith("|\n")


def test_no_card_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no card README.md"):
        put_into_card(report(3), tmp_path)
