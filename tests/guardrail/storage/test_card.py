"""The card of a guardrail: what it says, what the Hub makes of its metadata, and what it keeps to itself."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from hub_metadata import metadata_errors
from hub_requests import OWNER
from huggingface_hub import HfApi, ModelCard
from tiny_report import report
from tiny_topic import WORDS, tiny_parts, topic_texts
from zoo import base_model, guarded, planted_config, random_sae

from sae_unlearn import attach_guardrail, fit_guardrail
from sae_unlearn.evaluation import Report
from sae_unlearn.guardrail import GuardedModel
from sae_unlearn.guardrail.storage.card import write_card


@pytest.fixture(scope="module")
def fitted():
    model, tokenizer, sae = tiny_parts()
    sae.source |= {"id": "org/sae", "revision": "f" * 40, "architecture": "jumprelu"}
    forget, retain = (topic_texts(side, 60) for side in WORDS)
    return fit_guardrail(model, tokenizer, sae, forget, retain, progress=False)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    return tmp_path


def card_of(folder):
    return ModelCard.load(Path(folder) / "README.md")


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card.text, re.DOTALL | re.MULTILINE)[1]


def test_the_card_tells_how_it_was_fitted_and_what_was_measured(fitted, folder):
    config, card = fitted.peft_config["default"], card_of(folder)
    made, does = section(card, "How it was made"), section(card, "What it does")
    assert ", ".join(map(str, config.feature_ids)) in made
    assert f"exceeds {config.threshold}" in made
    assert "60 documents of forget text" in made
    assert "60 documents of retain text" in made
    assert "`org/sae`" in made
    found = config.calibration["fire_rate_forget"]
    assert f"| fires on forget text | {found['rate']:.1%} | {found['low']:.1%} to {found['high']:.1%} |" in does
    assert made.count("\n| 9") >= 4, "the curve of thresholds"
    assert "{{" not in card.content


def test_the_card_shows_the_picture_that_lies_beside_it(folder):
    picture = re.search(r"!\[.*?\]\((.*?)\)", section(card_of(folder), "How it was made"))[1]
    assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_card_has_no_picture(fitted, tmp_path, monkeypatch):
    def missing(*_):
        raise ImportError

    monkeypatch.setattr("sae_unlearn.guardrail.storage.card.draw_calibration", missing)
    fitted.save_pretrained(tmp_path)
    assert "![" not in card_of(tmp_path).text


def test_its_metadata_is_what_the_hub_accepts(fitted, folder, tmp_path):
    fitted.save_pretrained(tmp_path / "licensed", license="gemma")
    for card in (card_of(folder), card_of(tmp_path / "licensed")):
        assert metadata_errors(card.content) == ([], [])
        assert (card.data.base_model, card.data.base_model_relation) == ("tiny-llama", "adapter")
        assert card.data.library_name == "peft"
        assert {"sae-guardrail", "unlearning"} <= set(card.data.tags)
    assert card_of(tmp_path / "licensed").data.license == "gemma"
    assert card_of(folder).data.license is None


@pytest.mark.parametrize("name", ["/models/llama", "../models/llama", "models\\llama", "a/b/c", ""])
def test_a_path_is_no_base_model(tmp_path, name):
    model = guarded("llama")
    model = attach_guardrail(base_model("llama"), saved(model, tmp_path / "first"))
    model.peft_config["default"].base_model_name_or_path = name
    model.get_base_model().name_or_path = name
    model.save_pretrained(tmp_path / "second")
    card = card_of(tmp_path / "second")
    assert card.data.base_model is None
    assert metadata_errors(card.content) == ([], [])
    assert not name or name not in card.content


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def test_the_folder_of_a_base_model_that_lies_here_is_no_base_model(tmp_path, monkeypatch):
    model = attach_guardrail(base_model("llama"), saved(guarded("llama"), tmp_path / "first"))
    (tmp_path / "my" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model.peft_config["default"].base_model_name_or_path = "my/llama"
    model.save_pretrained(tmp_path / "second")
    assert card_of(tmp_path / "second").data.base_model is None


def test_no_word_of_the_forget_text_is_in_the_folder_unless_it_was_asked_for(fitted, folder, tmp_path):
    card = card_of(folder)
    assert "Text in this folder: none" in card.text
    assert not re.search(r"\bw\d+\b", card.content)
    assert "probe" not in json.loads((folder / "adapter_config.json").read_text())["calibration"]
    model, tokenizer, sae = tiny_parts()
    texts = [topic_texts(side, 60) for side in WORDS]
    asked = fit_guardrail(model, tokenizer, sae, *texts, progress=False, store_probe=True)
    asked.save_pretrained(tmp_path / "asked")
    assert "four rows of the fit" in card_of(tmp_path / "asked").text
    assert not re.search(r"\bw\d+\b", card_of(tmp_path / "asked").content)


def test_reports_are_shown_and_saved_beside_the_card(fitted, tmp_path):
    fitted.save_pretrained(tmp_path, evaluation=report("What it knows"), audit=report("What an attacker gets"))
    card = card_of(tmp_path)
    assert "### What it knows" in section(card, "What was measured")
    assert "| forget | facts | recall, canonical answer | 25.0 % | 10.0 % to 40.0 % | 40 |" in section(card, "Audit")
    for name in ("evaluation", "audit"):
        assert Report.load(tmp_path / name).find("exact_recall", "forget").estimate.value == 0.25
        assert f"]({name}/report.png)" in card.text
        assert (tmp_path / name / "report.png").is_file()


def test_without_an_audit_the_card_says_so(folder):
    assert section(card_of(folder), "Audit").strip() == "No audit was saved with this guardrail."


def test_the_license_of_the_sae_is_named_where_it_is_known(fitted, folder, tmp_path):
    assert "`org/sae`, license not recorded" in section(card_of(folder), "Licenses")
    source = fitted.peft_config["default"].sae_source
    source["license"] = "cc-by-4.0"
    try:
        fitted.save_pretrained(tmp_path / "known")
    finally:
        del source["license"]
    assert "`org/sae`, license `cc-by-4.0`" in section(card_of(tmp_path / "known"), "Licenses")


def test_a_push_looks_up_the_licenses_on_the_hub_and_sends_pictures_and_reports(stand_in, fitted):
    api = HfApi(token=OWNER)
    api.create_repo("me/sae")
    card = b"---\nlicense: cc-by-4.0\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/sae")
    fitted.peft_config["default"].sae_source["id"] = "me/sae"
    try:
        fitted.push_to_hub("me/forget", token=OWNER, audit=report("What an attacker gets"))
    finally:
        fitted.peft_config["default"].sae_source["id"] = "org/sae"
    files = stand_in.repositories["me/forget"].at("main").files
    text = files["README.md"].decode()
    assert "`me/sae`, license `cc-by-4.0`" in text
    assert "`tiny-llama`, license not recorded" in text
    assert 'attach_guardrail(model, "me/forget", revision=' in text
    assert {"calibration.png", "audit/report.json", "audit/report.md", "audit/report.png"} <= files.keys()


def test_every_guardrail_of_a_model_gets_its_card(fitted, tmp_path):
    model = attach_guardrail(base_model("llama"), saved(guarded("llama"), tmp_path / "first"))
    model = attach_guardrail(model, tmp_path / "first", adapter_name="second")
    model.peft_config["second"].threshold = 0.125
    model.save_pretrained(tmp_path / "both")
    assert "exceeds 0.4" in card_of(tmp_path / "both").text
    assert "exceeds 0.125" in card_of(tmp_path / "both" / "second").text
    shutil.rmtree(tmp_path / "both")
    model.save_pretrained(tmp_path / "both", selected_adapters=["second"])
    assert isinstance(model, GuardedModel)
    assert [p.relative_to(tmp_path / "both").as_posix() for p in (tmp_path / "both").rglob("*.md")] == [
        "second/README.md"
    ]


def test_braces_in_a_value_are_not_filled_in(tmp_path):
    model = attach_guardrail(base_model("llama"), saved(guarded("llama"), tmp_path / "first"))
    model.peft_config["default"].sae_source = {"id": "{{ licenses }}"}
    model.save_pretrained(tmp_path / "second")
    assert card_of(tmp_path / "second").text.count("{{ licenses }}") == 2


def test_a_dose_given_by_hand_is_named(tmp_path):
    config = planted_config(feature_ids=[3, 8], clamp_value=-6.0)
    attach_guardrail(base_model("llama"), config, sae=random_sae(40)).save_pretrained(tmp_path)
    assert "features are set to -6.0" in section(card_of(tmp_path), "How it was made")


@pytest.mark.parametrize(
    "value", ["x", [1], {"a": 1}, pytest.param(10**400, id="huge"), float("inf"), float("nan"), True, None]
)
def test_a_calibration_of_anything_gives_a_card(fitted, tmp_path, value):
    config = copy.deepcopy(fitted.peft_config["default"])
    names = ("corpora", "fire_rate_forget", "auroc", "curve", "warnings", "edit_to_residual", "probe", "threshold")
    rate = dict.fromkeys(("rate", "low", "high", "n"), value)
    point = dict.fromkeys(("percentile", "threshold", "forget_rate", "retain_rate"), value)
    counts = {"corpora": {"forget": dict.fromkeys(("documents", "tokens"), value)}}
    nested = {"fire_rate_forget": rate, "curve": [value, point], "statistic_forget": [value, 0.3], "threshold": value}
    for calibration in (dict.fromkeys(names, value), counts | nested):
        config.calibration = calibration
        write_card(tmp_path, config, fitted.get_base_model())
        assert "{{" not in card_of(tmp_path).content
