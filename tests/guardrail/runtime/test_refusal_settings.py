"""Settings of a refusal: saved, changed by name, refused, and removed with the guardrail."""

import pytest
import torch
from peft import get_peft_model
from refusing import MESSAGE, fired_rows, generate, refusing, told
from tiny_topic import tiny_tokenizer
from zoo import EOS, base_model, plant, planted_config

from sae_unlearn import GuardrailError, attach_guardrail, set_action
from sae_unlearn.guardrail import guard_layers


def test_it_is_saved_and_attached_with_its_message(tmp_path):
    model = refusing()
    model.save_pretrained(tmp_path)
    again = attach_guardrail(base_model("llama"), tmp_path)
    assert again.peft_config["default"].refusal == "w40 w41 w40 w42"
    assert torch.equal(generate(again), generate(model))


def test_two_that_refuse_give_the_message_of_the_first_layer():
    model = refusing(threshold=0.0)
    model.add_adapter("second", planted_config(layer=2, threshold=0.0, action="refuse", refusal_ids=[95, EOS]))
    plant(model, "second", seed=1)
    for layer in guard_layers(model):
        layer.set_adapter(["default", "second"])
    assert {tuple(told(row)) for row in generate(model)} == {tuple(MESSAGE)}
    model.set_adapter("second")
    assert {tuple(told(row)) for row in generate(model)} == {(95, EOS)}


def test_the_action_of_a_set_can_be_changed_by_name(tmp_path):
    model, tokenizer = refusing(action="clamp", message=None), tiny_tokenizer()
    clamped = generate(model)
    fired = fired_rows(model)
    set_action(model, "default", "refuse", message="w7 w8", tokenizer=tokenizer)
    found = generate(model)
    assert all(told(found[row]) == [7, 8, EOS] for row in fired.nonzero().flatten())
    set_action(model, "default", "record")
    assert torch.equal(generate(model), generate(base_model("llama")))
    set_action(model, "default", "clamp")
    assert torch.equal(generate(model), clamped)
    set_action(model, "default", "refuse")
    assert torch.equal(generate(model), found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("other", "clamp", {}), "name='other'.*'default'"),
        (("default", "forget", {}), "action='forget'"),
        (("default", "refuse", {}), "needs `refusal_ids`"),
        (("default", "refuse", {"message": "w7"}), "tokenizer=None"),
        (("default", "refuse", {"message": " ", "tokenizer": tiny_tokenizer()}), "refusal=' '"),
    ],
)
def test_an_action_that_cannot_be_set_is_refused_and_nothing_changes(arguments, message):
    model = refusing(action="clamp", message=None)
    before = generate(model)
    name, action, options = arguments
    with pytest.raises(GuardrailError, match=message):
        set_action(model, name, action, **options)
    assert model.peft_config["default"].action == "clamp"
    assert torch.equal(generate(model), before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"refusal_ids": None}, "needs `refusal_ids`"),
        ({"refusal_ids": []}, "refusal_ids.*1 to 512"),
        ({"refusal_ids": [1] * 600}, "refusal_ids.*1 to 512"),
        ({"refusal_ids": ["w"]}, "refusal_ids"),
        ({"refusal": 5, "refusal_ids": [5]}, "refusal=5"),
        ({"sticky": False, "refusal_ids": [5]}, "sticky=True"),
    ],
)
def test_a_config_that_cannot_refuse_is_refused(fields, message):
    with pytest.raises(GuardrailError, match=message):
        planted_config(action="refuse", **fields)


def test_taken_off_it_leaves_no_hook():
    model = get_peft_model(base_model("llama"), planted_config(action="refuse", refusal_ids=MESSAGE))
    plant(model)
    base = model.unload()
    assert not base._forward_hooks
    assert not base._forward_pre_hooks


def test_the_message_goes_to_the_device_once():
    model = refusing()
    made = guard_layers(model)[0].tables.made
    generate(model)
    [first] = [table for key, table in made.items() if key[0] == "message"]
    generate(model)
    assert [table is first for key, table in made.items() if key[0] == "message"] == [True]
    assert first.tolist() == [*MESSAGE, EOS]
