"""The real card that lies in `model_cards` is what the library writes from the config and the audit beside it."""

import re

import pytest
import torch
from hub_metadata import metadata

from benchmarks.forget.demo_card import SHIPPED, write_demo_card
from sae_unlearn import attach_guardrail, guardrail_status
from sae_unlearn.demo import load_demo_model, load_demo_sae
from sae_unlearn.evaluation import AuditReport
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


CARD = (SHIPPED / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_is_what_is_written_from_the_config_and_the_audit(tmp_path):
    write_demo_card(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == CARD, "run python -m benchmarks.forget.demo_card"
    files = re.findall(r"\]\(([^:)]*?)\)", CARD)
    assert files == ["audit/audit.json", "audit/audit.md", "audit/audit.png", "calibration.png"]
    for name in files:
        assert (tmp_path / name).is_file(), name
        assert (SHIPPED / name).is_file(), name
    written, shipped = (folder / "audit" / "audit.md" for folder in (tmp_path, SHIPPED))
    assert written.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")


def test_its_weights_are_those_of_the_config_and_of_the_demos_sae():
    artefact = GuardrailFolder.open(SHIPPED).artefact()
    assert artefact.damage is None
    config, sae = artefact.config, load_demo_sae()
    part = sae.slice([*config.feature_ids, *config.gate_feature_ids])
    assert torch.equal(artefact.tensors["encoder.weight"], part.W_enc.T)
    assert torch.equal(artefact.tensors["decoder.weight"], part.W_dec[: config.num_features])


@pytest.mark.slow
def test_it_is_attached_as_its_card_says(monkeypatch):
    model, _ = load_demo_model()
    monkeypatch.chdir(SHIPPED.parent)
    guarded = attach_guardrail(model, SHIPPED.name)
    assert guardrail_status(guarded).verdict == "guarded"


def test_it_sums_up_the_audit_in_a_dozen_rows():
    section = CARD.split("\n## Audit\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")][2:]
    audited = AuditReport.load(SHIPPED / "audit")
    assert rows == [*dict.fromkeys(row.attack for row in audited.rows), "best of all tries"]
    assert len(rows) <= 12


def test_it_says_in_one_screen_how_it_is_attached_and_what_it_does_and_does_not_do():
    lines = re.sub(r"<details>.*?</details>", "", CARD, flags=re.DOTALL).split("---\n", 2)[2].splitlines()
    for heading in ("## What it does", "## What it does not do"):
        assert heading in lines[:40]
    assert len(lines[: lines.index("## Audit")]) <= 45
    assert len(lines) <= 60


def test_it_names_its_model_on_the_hub_its_sae_and_the_licenses_of_both():
    config = GuardrailFolder.open(SHIPPED).config()
    found = metadata(CARD)
    assert (found["base_model"], found["license"]) == ("google/gemma-3-270m", "gemma")
    assert config.sae_source["id"] == "gemma-3-270m-sae-l9"
    assert "- Base model: `google/gemma-3-270m`, license `gemma`." in CARD
    assert "- Sparse autoencoder: `gemma-3-270m-sae-l9`, license `gemma`." in CARD
    assert 'from_pretrained("' not in CARD
    assert "this repository" not in CARD
