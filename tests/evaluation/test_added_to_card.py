"""The sections with results of an adapter's card."""

import pytest
import torch

from sae_unlearn import UnlearnError
from sae_unlearn.evaluation import AuditReport, AuditRow, Comparison, Report, add_to_card, compare
from sae_unlearn.evaluation.audit import report as audit_report
from sae_unlearn.evaluation.audit.row import RECALL
from sae_unlearn.evaluation.report.figure import figure_of_rows
from sae_unlearn.guardrail import SAEGuardrailConfig
from sae_unlearn.guardrail.storage.card import CardDetails, write_card


def report(recalled):
    hits = torch.tensor([1.0] * recalled + [0.0] * (10 - recalled))
    figure = figure_of_rows("forget", "facts", RECALL, "share", hits, [""] * 10, "r")
    return AuditReport("Audit", (AuditRow("none", "", 0, (figure,)), AuditRow("wrappers", "play", 1, (figure,))))


@pytest.mark.parametrize("recalled", [0, 10])
def test_the_card_takes_results_whichever_way_they_come_out(tmp_path, recalled):
    config = SAEGuardrailConfig(layer=1, feature_ids=[3, 4], threshold=0.5, clamp_value=-1.0)
    write_card(tmp_path, config, torch.nn.Linear(1, 1))
    card = tmp_path / "README.md"
    before = card.read_text()
    assert "No audit was saved with this guardrail." in before
    assert add_to_card(report(recalled), tmp_path) == card
    after = card.read_text()
    start, end = after.index("## Audit"), after.index("## How it was made")
    assert f"| wrappers | play | {10 * recalled}.0 % (" in after[start:end]
    assert "[tables](audit/audit.md), [picture](audit/audit.png)" in after[start:end]
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {"audit.json", "audit.md", "audit.png"}
    assert AuditReport.load(tmp_path / "audit") == report(recalled)
    rest = after[:start] + before[before.index("## Audit") : before.index("## How it was made")] + after[end:]
    assert rest == before


def test_it_is_what_saving_with_the_audit_writes(tmp_path):
    config = SAEGuardrailConfig(layer=1, feature_ids=[3, 4], threshold=0.5, clamp_value=-1.0)
    for name in "ab":
        (tmp_path / name).mkdir()
    write_card(tmp_path / "a", config, torch.nn.Linear(1, 1), CardDetails(audit=report(3)))
    write_card(tmp_path / "b", config, torch.nn.Linear(1, 1))
    add_to_card(report(3), tmp_path / "b")
    assert (tmp_path / "a" / "README.md").read_text() == (tmp_path / "b" / "README.md").read_text()


def test_a_second_audit_takes_the_place_of_the_first(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# A LoRA\n\nText.\n\n## Audit\n\nOld.\n\n### Old too\n\n## License\n\nFree.\n")
    add_to_card(report(3), tmp_path)
    once = card.read_text()
    add_to_card(report(3), tmp_path)
    assert card.read_text() == once
    assert "Old" not in once
    assert once.count("\n## Audit\n") == 1
    assert once.startswith("# A LoRA\n\nText.\n\n## Audit\n")
    assert once.endswith("\n\n## License\n\nFree.\n")


def test_a_card_without_sections_gets_one_at_its_end(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# A LoRA\n")
    add_to_card(report(3), tmp_path)
    assert card.read_text().startswith("# A LoRA\n\n## Audit\n\n### ")
    assert card.read_text().count("\n## Audit\n") == 1


def test_a_disk_that_is_full_leaves_card_and_report_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# A LoRA\n")
    add_to_card(report(3), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_report, "draw_audit", full)
    for write in (add_to_card, lambda found, folder: found.save(folder / "audit")):
        with pytest.raises(UnlearnError, match="Errno 28"):
            write(report(5), tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_rest_of_the_card_keeps_its_lines(tmp_path):
    (tmp_path / "README.md").write_text("# A LoRA\n\nOne\u2028line\x0cof text.\n", encoding="utf-8")
    add_to_card(report(3), tmp_path)
    assert "One\u2028line\x0cof text.\n" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_no_card_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder=.*README\.md"):
        add_to_card(report(3), tmp_path)


def measured(kind):
    figure = report(3).rows[0].audited[0]
    one = Report("Measured", (figure,))
    return one if kind is Report else compare(one, one)


@pytest.mark.parametrize("kind", [Report, Comparison])
@pytest.mark.parametrize("audited", [False, True])
def test_what_was_measured_is_added_as_saving_with_it_writes_it(tmp_path, kind, audited):
    config = SAEGuardrailConfig(layer=1, feature_ids=[3, 4], threshold=0.5, clamp_value=-1.0)
    audit = report(3) if audited else None
    for name in "ab":
        (tmp_path / name).mkdir()
    write_card(tmp_path / "a", config, torch.nn.Linear(1, 1), CardDetails(evaluation=measured(kind), audit=audit))
    write_card(tmp_path / "b", config, torch.nn.Linear(1, 1), CardDetails(audit=audit))
    assert "## What was measured" not in (tmp_path / "b" / "README.md").read_text()
    for _ in range(2):  # the second takes the place of the first
        add_to_card(measured(kind), tmp_path / "b")
        assert (tmp_path / "a" / "README.md").read_text() == (tmp_path / "b" / "README.md").read_text()
    assert kind.load(tmp_path / "b" / "evaluation") == measured(kind)


def test_what_is_not_a_report_is_refused_and_the_card_stays(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# A LoRA\n")
    for wrong in ({"title": "x"}, "report", None):
        with pytest.raises(UnlearnError) as caught:
            add_to_card(wrong, tmp_path)
        assert caught.value.subject == "report"
    assert card.read_text() == "# A LoRA\n"
