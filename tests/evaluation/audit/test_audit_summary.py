"""The tables of an audit: which rows show nothing, and which row of an attack the summary takes."""

import pytest
import torch

from sae_unlearn.evaluation import AuditReport, AuditRow, Report
from sae_unlearn.evaluation.audit.row import ANSWERABLE, RECALL
from sae_unlearn.evaluation.audit.tables import NOT_ANSWERED, attack_table, worst_rows, worst_table
from sae_unlearn.evaluation.report.figure import figure_of_rows
from sae_unlearn.stats import wilson_interval


N = 24


def share(hits, metric=RECALL, side="forget", data="facts"):
    values = torch.tensor([1.0] * hits + [0.0] * (N - hits))
    return figure_of_rows(side, data, metric, "share", values, [""] * N, "rows")


def row(attack, variant, audited, base=None, strength=1.0, **options):
    figures = () if base is None else (share(base),)
    return AuditRow(attack, variant, strength, (share(audited),), figures, **options)


@pytest.mark.parametrize("hits", range(8))
def test_a_row_shows_nothing_if_the_interval_of_the_base_s_recall_reaches_below_five_percent(hits):
    low, _ = wilson_interval(hits, N)
    assert row("spelling", "spacing", 0, hits).answerable == (low >= ANSWERABLE)
    assert row("spelling", "spacing", 0, 0).answerable is False
    assert row("spelling", "spacing", 0, N).answerable is True


def test_without_a_base_and_in_a_control_there_is_nothing_to_mark():
    assert row("removal", "adapters off", 3).answerable
    assert row("relearning", "LoRA, base on unknown facts", 0, 0, control=True).answerable


ROWS = (
    row("none", "", 0, 16, strength=0.0),
    row("wrappers", "play", 7, 16),
    row("wrappers", "begun answer", 9, 0),  # more, but the base answers nothing in this form
    row("wrappers", "teacher", 5, 16),
    row("direction", "after layer 9", 0, strength=1.0),
    row("direction", "after layer 9", 0, strength=4.0),
    row("direction", "random direction", 8, control=True),
    row("rephrasing", "quiz", 0, 0),
)


def test_the_worst_row_of_an_attack_is_the_one_that_recalls_most_in_a_form_that_the_base_can_answer():
    found = [(row.attack, row.variant, row.strength) for row in worst_rows(ROWS)]
    assert found == [("none", "", 0.0), ("wrappers", "play", 1.0), ("direction", "after layer 9", 4.0)]


def test_of_equal_rows_the_one_is_taken_whose_form_the_base_answers_best():
    rows = [row("rounding", "", 0, 16, strength=8.0), row("rounding", "", 0, 8, strength=4.0)]
    assert [row.strength for row in worst_rows(rows)] == [8.0]
    rows.append(row("rounding", "", 1, 8, strength=3.0))
    assert [row.strength for row in worst_rows(rows)] == [3.0]


def test_a_card_says_in_one_line_what_plain_questions_and_all_tries_recall():
    line = AuditReport("Audit", ROWS).to_card().splitlines()[2]
    assert line.startswith("Asked plainly, 0.0 % (")
    assert "without the adapter 66.7 % (" in line
    assert "With the best of 5 tries on the text, 37.5 % (" in line
    assert AuditReport("Audit", (row("none", "", 3),)).to_card().splitlines()[2].endswith("facts are recalled.")


def test_the_summary_leaves_out_what_shows_nothing_and_the_whole_table_marks_it():
    report = AuditReport("Audit", ROWS)
    marked = [line for line in attack_table(ROWS) if NOT_ANSWERED in line]
    assert [line.split(" | ")[1] for line in marked] == ["begun answer", "quiz"]
    assert "begun answer" not in report.to_card()
    assert "Left out: 2 of 8 rows" in report.to_card()
    assert f"{NOT_ANSWERED} The base itself" in report.to_markdown()
    best = worst_table(ROWS)[-1]
    assert best.startswith("| best of all tries | 5 tries on the text | 37.5 % (")


def test_the_summary_names_the_worst_harmless_set_near_the_topic():
    rates = {"near: a": 4, "near: b": 5, "far": 9}
    fires = [share(hits, "fires:default", "retain", data) for data, hits in rates.items()]
    card = AuditReport("Audit", ROWS, neighbors=Report("near", tuple(fires))).to_card()
    assert "- b: gate fires (default) 20.8 % (9.2 to 40.5), n = 24" in card
    assert "near: a" not in card
    assert "far" not in card.split("Harmless")[1]


def test_the_part_of_a_card_is_a_report_without_its_settings():
    report = Report("Facts", (share(3),), {"model": "m"}, ("A note.",))
    assert report.to_card() in report.to_markdown()
    assert "| model | m |" in report.to_markdown().removeprefix(report.to_card())
