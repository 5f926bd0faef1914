"""The real card that lies in `model_cards` is what the library writes from the config and the audit beside it."""

import re

import pytest
from hub_metadata import metadata

from benchmarks.forget.demo_card import SHIPPED, write_demo_card
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


CARD = (SHIPPED / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_is_what_is_written_from_the_config_and_the_audit(tmp_path):
    write_demo_card(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == CARD, "run python -m benchmarks.forget.demo_card"
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", CARD)
    assert pictures == ["calibration.png", "audit/audit.png"]
    for name in (*pictures, "audit/audit.md"):
        assert (tmp_path / name).is_file(), name
        assert (SHIPPED / name).is_file(), name
    written, shipped = (folder / "audit" / "audit.md" for folder in (tmp_path, SHIPPED))
    assert written.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")


def test_it_holds_every_row_of_the_audit_beside_it():
    rows = [line for line in (SHIPPED / "audit" / "audit.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    assert len(rows) > 80
    assert not set(rows) - set(CARD.splitlines())


def test_it_names_its_model_on_the_hub_its_sae_and_the_licences_of_both():
    config = GuardrailFolder.open(SHIPPED).config()
    found = metadata(CARD)
    assert (found["base_model"], found["license"]) == ("google/gemma-3-270m", "gemma")
    assert config.sae_source["id"] == "gemma-3-270m-sae-l9"
    assert "- Base model: `google/gemma-3-270m`, licence `gemma`." in CARD
    assert "- Sparse autoencoder: `gemma-3-270m-sae-l9`, licence `gemma`." in CARD
    assert 'from_pretrained("' not in CARD
    assert "this repository" not in CARD
