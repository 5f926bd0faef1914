"""The text of a refusal is what its tokens say, wherever a tokenizer can show it, and is called unchecked elsewhere."""

import pytest
from edited_json import edited_json
from tiny_topic import tiny_tokenizer
from zoo import EOS, base_model, guarded, planted_config

from sae_unlearn import GuardrailError, attach_guardrail, set_action
from sae_unlearn.cli.show import describe
from sae_unlearn.guardrail.check.check import check_guardrail
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


TEXT, IDS = "w40 w41 w42", [40, 41, 42, EOS]


def saved(folder, refusal=TEXT, ids=IDS):
    guarded("llama", action="refuse", refusal=refusal, refusal_ids=ids).save_pretrained(folder)
    return folder


def model_beside_its_tokenizer(folder):
    model = base_model("llama")
    tiny_tokenizer().save_pretrained(folder)
    model.config.save_pretrained(folder)
    model.name_or_path = str(folder)
    return model


def test_the_tokens_are_compared_where_the_tokenizer_lies_beside_the_model(tmp_path):
    model = model_beside_its_tokenizer(tmp_path / "base")
    guarded_model = attach_guardrail(model, saved(tmp_path / "same"))
    assert guarded_model.peft_config["default"].refusal_compared
    other = saved(tmp_path / "other", refusal="w50 w51")
    with pytest.raises(GuardrailError, match=r"refusal_ids .*got 'w40 w41 w42'"):
        attach_guardrail(model_beside_its_tokenizer(tmp_path / "base"), other)


def test_the_card_says_so_of_a_text_that_was_not_compared(tmp_path):
    model = attach_guardrail(base_model("llama"), saved(tmp_path / "first"))
    assert not model.peft_config["default"].refusal_compared
    model.save_pretrained(tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "tokens 40, 41, 42, 96" in card
    assert "(not compared)" in card
    set_action(model, "default", "refuse", message=TEXT, tokenizer=tiny_tokenizer())
    model.save_pretrained(tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    assert f'is answered with "{TEXT}"; its' in card


def test_a_change_that_is_refused_leaves_the_comparison_as_it_was(tmp_path):
    model = attach_guardrail(base_model("llama"), saved(tmp_path))
    model.peft_config["default"].sticky = False
    with pytest.raises(GuardrailError, match="sticky"):
        set_action(model, "default", "refuse", message=TEXT, tokenizer=tiny_tokenizer())
    assert not model.peft_config["default"].refusal_compared


def test_show_prints_the_text_and_the_tokens(tmp_path):
    told = describe(GuardrailFolder.open(saved(tmp_path)))
    assert f'refusal       "{TEXT}"  (not compared with the tokens)' in told
    assert "refusal ids   40, 41, 42, 96" in told
    guarded("llama").save_pretrained(tmp_path / "none")
    assert "refusal" not in describe(GuardrailFolder.open(tmp_path / "none"))


@pytest.mark.parametrize(
    ("refusal", "tokenizer", "status"),
    [(TEXT, True, "ok"), ("w50 w51", True, "problem"), (TEXT, False, "warning"), (f"  {TEXT} ", True, "ok")],
)
def test_check_compares_them(refusal, tokenizer, status, tmp_path):
    folder = saved(tmp_path, refusal=refusal)
    report = check_guardrail(base_model("llama"), folder, tiny_tokenizer() if tokenizer else None)
    assert [each.status for each in report.findings if each.subject == "refusal"] == [status]


def test_check_says_nothing_of_a_refusal_that_is_not_there(tmp_path):
    guarded("llama").save_pretrained(tmp_path)
    report = check_guardrail(base_model("llama"), tmp_path, tiny_tokenizer())
    assert not [each for each in report.findings if each.subject == "refusal"]


@pytest.mark.parametrize("action", ["clamp", "refuse"])
def test_a_text_of_a_megabyte_is_refused(action, tmp_path):
    with pytest.raises(GuardrailError, match=r"^refusal: .* 8192 .*got 1000000"):
        planted_config(action=action, refusal="a" * 1_000_000, refusal_ids=IDS)
    assert planted_config(action=action, refusal="a" * 8192, refusal_ids=IDS).refusal
    saved(tmp_path)
    edited_json("adapter_config.json", refusal="a" * 100_000)(tmp_path)
    with pytest.raises(GuardrailError, match=r"refusal: .* 8192 "):
        attach_guardrail(base_model("llama"), tmp_path)
