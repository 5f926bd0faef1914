"""The pages of `docs/evidence` and `docs/speed` are what `benchmarks/results` gives, and have the agreed form."""

import re

import pytest
from pages import DOCS, ROOT


pytest.importorskip("jinja2")

from benchmarks.site_pages import alignment_pooled, attacks, forget, generate, results
from benchmarks.site_pages.index import HEADER


TEMPLATES = generate.pages()
FOLDERS = ("evidence", "speed")
LARGEST, WIDEST = 8192, 100


def in_prose(text: str) -> list[str]:
    """The lines of a page outside of code, tables, pictures and headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if not re.match(r" *(\||!\[|#)", line)]


def test_no_page_is_stale() -> None:
    assert not [str(page.relative_to(ROOT)) for page in generate.stale()], "run python -m benchmarks.site_pages"


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_figure_is_typed_by_hand(template) -> None:
    text = template.read_text(encoding="utf-8")
    assert not generate.bare_numbers(text)
    assert not generate.unused_settings(text)


@pytest.mark.parametrize("page", TEMPLATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_page_answers_one_question_on_eight_kilobytes(page) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) <= LARGEST
    assert not [line for line in in_prose(text) if len(line) > WIDEST and " " in line.strip()]
    if page.name != "index.md":
        headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
        assert headings[0].endswith("?")
        assert headings[-2:] == ["Limits", "Command"]
        assert re.match(r"# .*\?\n\n\*\*", text), "the answer, in bold, comes first"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_index_names_every_page(folder) -> None:
    index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(HEADER)} |" in index
    rows = re.findall(r"^\|.*\[([\w-]+)\]\(\1\.md\) \|$", index, re.MULTILINE)
    assert sorted(rows) == sorted(page.stem for page in (DOCS / folder).glob("*.md") if page.stem != "index")


def test_another_result_makes_pages_stale(monkeypatch) -> None:
    found = results.text_tables(forget.BASELINES)
    changed = {topic: [dict(row) for row in rows] for topic, rows in found.items()}
    next(row for row in changed["nutrition"] if row["method"] == forget.DEFAULT)["fires"] = "0.11 (n=40)"
    monkeypatch.setattr(
        forget, "text_tables", lambda name: changed if name == forget.BASELINES else results.text_tables(name)
    )
    assert generate.stale() == [DOCS / "evidence" / "same-damage-topics.md"]


def test_a_page_without_a_template_is_found(monkeypatch) -> None:
    kept = {page: template for page, template in TEMPLATES.items() if page.stem != "cold-start"}
    monkeypatch.setattr(generate, "pages", lambda: kept)
    assert generate.stale() == [DOCS / "speed" / "cold-start.md"]


def test_a_sentence_that_the_results_no_longer_show_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(attacks, "share", lambda *args, **kwargs: 12.5)
    with pytest.raises(generate.StaleClaimError, match="recovered plainly"):
        generate.render(generate.TEMPLATES / "evidence" / "attacks.md.in")


def test_numbers_by_hand_are_found_and_settings_are_not() -> None:
    template = "{# settings: 16; 97.5 #}\nOf 16 rows at 97.5, {{ x(3) }} and `f(4)` and 12.5 % of [it](p5.md) fire.\n"
    assert generate.bare_numbers(template) == ["12.5"]
    assert generate.unused_settings(template) == set()
    assert generate.unused_settings(template.replace("97.5, ", "")) == {"97.5"}


def test_paragraphs_and_items_are_wrapped_and_tables_are_not() -> None:
    row = "| " + "long cell " * 20 + "|"
    text = f"# H\n\n{'word ' * 40}\n\n- {'word ' * 40}\n  end\n\n{row}\n\n```\n{'code ' * 40}\n```\n"
    wrapped = generate.wrap(text).splitlines()
    assert row in wrapped
    assert ("code " * 40) in wrapped
    assert max(len(line) for line in in_prose("\n".join(wrapped))) <= WIDEST
    assert [line for line in wrapped if line.startswith("- ")] == [wrapped[wrapped.index("") + 4]]
    assert wrapped[wrapped.index("") + 5].startswith("  word")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("+0.69 (+0.46 to +0.92)", (0.69, 0.46, 0.92)),
        ("12.5 % (4.3 to 31.0)", (12.5, 4.3, 31.0)),
        ("4.2 % (1.2 % to 14.0 %)", (4.2, 1.2, 14.0)),
        ("0.05 [0.02, 0.08] (n=198)", (0.05, 0.02, 0.08)),
        ("-0.1", (-0.1, -0.1, -0.1)),
    ],
)
def test_cells_are_read(cell, expected) -> None:
    assert results.estimate(cell) == expected


def test_a_cell_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number"):
        results.estimate("none within")


def test_recipes_are_compared_only_over_enough_shared_sets(monkeypatch) -> None:
    row = {"first": 0.2, "second": 0.6, "value": -0.4, "low": -0.5, "high": -0.004}
    measured = alignment_pooled.read_json(alignment_pooled.RESULTS)
    found = {**measured["against"]["gradient"], "targets unseen": row}
    found["sets"] = list(range(alignment_pooled.ENOUGH))
    results_ = {"against": {"gradient": found}, "cells": measured["cells"]}
    monkeypatch.setattr(alignment_pooled, "read_json", lambda name: results_)
    said = alignment_pooled.beside_training()
    assert "| picks the country | 0.200 | 0.600 | -0.400 (-0.500 to -0.004) |" in said
    assert "0.400 (0.004 to 0.500) fewer" in said
    assert "committed before, yes" in said
    row["high"] = 0.001
    assert "committed before, no" in alignment_pooled.beside_training()
    found["sets"].pop()
    assert "|" not in alignment_pooled.beside_training()
