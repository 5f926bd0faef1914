"""`sae-unlearn fit`: named data sets and files of questions, what is drawn, what happens on firing, and the upload."""

import json
import random

import pytest
from hub_requests import OWNER
from tiny_topic import save_corpora, save_parts, tiny_parts, topic_texts

from sae_unlearn import attach_guardrail, fit_guardrail
from sae_unlearn.cli.data_sets import as_text, texts_in
from sae_unlearn.cli.main import main
from sae_unlearn.evaluation import Choice, Fact
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, `sae` and texts."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    save_corpora(folder)
    return folder


def fit(parts, output, *more, forget=("forget.txt",), retain=("retain.json",)):
    call = ["fit", "--model", parts / "model", "--sae", parts / "sae", "--output", output, "--no-progress"]
    call += ["--ratio-percentile=95", "--forget", *(parts / name for name in forget)]
    return main([str(x) for x in [*call, "--retain", *(parts / name for name in retain), *more]])


def fitted(**given):
    model, tokenizer, sae = tiny_parts()
    texts = {"forget": topic_texts("forget", 40), "retain": topic_texts("retain", 80)} | given
    return fit_guardrail(model, tokenizer, sae, **texts, ratio_percentile=95.0, progress=False).peft_config["default"]


def test_questions_are_read_with_their_answers(parts, tmp_path):
    assert as_text(Fact("w3 w4", ("w5", "w6"))) == "w3 w4 w5"
    assert as_text(Choice("w3", ("w7", "w8"), 1)) == "w3\nAnswer: w8"
    rows = [{"question": text, "answer": "w3 w4"} for text in topic_texts("forget", 40)]
    (tmp_path / "forget10.json").write_text(json.dumps(rows))
    texts = texts_in([f"tofu:forget10@{tmp_path}"])
    assert texts == [f"Question: {row['question']}\nAnswer: w3 w4" for row in rows]
    facts = [{"prompt": text, "answers": ["w3 w4"]} for text in topic_texts("forget", 40)]
    (parts / "facts.json").write_text(json.dumps(facts))
    assert texts_in([str(parts / "facts.json")]) == [f"{row['prompt']} w3 w4" for row in facts]


def test_a_named_data_set_is_fitted_as_its_texts_are(parts, tmp_path):
    rows = [{"question": text, "answer": "w3 w4"} for text in topic_texts("forget", 40)]
    (tmp_path / "forget10.json").write_text(json.dumps(rows))
    call = ["fit", "--model", parts / "model", "--sae", parts / "sae", "--output", tmp_path / "out", "--no-progress"]
    call += ["--ratio-percentile=95", "--forget", f"tofu:forget10@{tmp_path}", "--retain", parts / "retain.json"]
    assert main([str(x) for x in call]) == 0
    expected = fitted(forget=texts_in([f"tofu:forget10@{tmp_path}"]))
    found = GuardrailFolder.open(tmp_path / "out").artefact().config
    assert (found.feature_ids, found.threshold) == (expected.feature_ids, expected.threshold)
    assert found.calibration["corpora"] == expected.calibration["corpora"]


def test_several_sources_are_one_corpus_and_the_limit_is_drawn_by_the_seed(parts, tmp_path):
    more = topic_texts("forget", 12, seed=5)
    (parts / "more.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in more))
    assert fit(parts, tmp_path / "all", forget=("forget.txt", "more.jsonl")) == 0
    texts = topic_texts("forget", 40) + more
    assert GuardrailFolder.open(tmp_path / "all").artefact().config.calibration == fitted(forget=texts).calibration
    assert fit(parts, tmp_path / "few", "--limit=32", "--seed=3", forget=("forget.txt", "more.jsonl")) == 0

    def drawn(rows):
        return [rows[i] for i in sorted(random.Random(3).sample(range(len(rows)), 32))]

    expected = fitted(forget=drawn(texts), retain=drawn(topic_texts("retain", 80)))
    assert GuardrailFolder.open(tmp_path / "few").artefact().config.calibration == expected.calibration


def test_the_action_and_its_message_are_kept(parts, tmp_path):
    assert fit(parts, tmp_path, "--action=refuse", "--refusal", "w3 w4") == 0
    config = GuardrailFolder.open(tmp_path).artefact().config
    assert (config.action, config.refusal) == ("refuse", "w3 w4")


def test_what_is_fitted_can_be_uploaded(parts, tmp_path, stand_in, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", OWNER)
    assert fit(parts, tmp_path, "--push-to-hub=me/forget", "--private") == 0
    commit = stand_in.repositories["me/forget"].at("main").oid
    assert f"Uploaded to me/forget, commit {commit}" in capsys.readouterr().out
    assert stand_in.repositories["me/forget"].private
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    model, _, _ = tiny_parts()
    guarded = attach_guardrail(model, "me/forget", token=OWNER)
    assert guarded.peft_config["default"].feature_ids == GuardrailFolder.open(tmp_path).artefact().config.feature_ids


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--private"], "Pass --push-to-hub"),
        (["--push-to-hub=a/b/c"], "a/b/c"),
        (["--limit=0"], "--limit=0"),
        (["--action=refuse"], "action='refuse'"),
        (["--preset=faithful", "--clamp-mode=fired"], "clamp_mode='fired'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parts, tmp_path, capsys, more, said):
    assert fit(parts, tmp_path, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae-unlearn")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_data_set_whose_name_is_nearly_right_is_named(parts, tmp_path, capsys):
    call = ["fit", "--model", parts / "model", "--sae", parts / "sae", "--output", tmp_path]
    assert main([str(x) for x in [*call, "--forget", "tofuu:forget10", "--retain", parts / "retain.json"]]) == 2
    assert "Did you mean 'tofu'" in capsys.readouterr().err
