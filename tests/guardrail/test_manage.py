"""Several guardrails on one model: list, enable, stack and detach them by name."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import (
    GuardrailError,
    attach_guardrail,
    detach_guardrail,
    enable_guardrails,
    list_guardrails,
    record_firings,
)
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.weights import PARTS


IDS = token_ids(24, 12)
logits = partial(logits_of, input_ids=IDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three guardrails, two of them at one layer."""
    root = tmp_path_factory.mktemp("sets")
    for seed, (name, layer) in enumerate({"biology": 1, "person": 2, "books": 1}.items()):
        guarded("llama", layer=layer, threshold=0.3 + 0.1 * seed).save_pretrained(root / name)
    return root


@pytest.fixture
def model(folders):
    found = base_model("llama")
    for name in ("biology", "person", "books"):
        found = attach_guardrail(found, folders / name, adapter_name=name)
    return found


def alone(folders, *names):
    found = base_model("llama")
    for name in names:
        found = attach_guardrail(found, folders / name, adapter_name=name)
    return logits(found)


def at_work(model):
    with record_firings(model) as firings:
        logits(model)
    return {f.adapter for f in firings}


def test_they_are_listed_with_where_they_came_from(model, folders):
    assert [(s.name, s.layer, s.active, s.action) for s in list_guardrails(model)] == [
        ("biology", 1, True, "clamp"),
        ("books", 1, True, "clamp"),
        ("person", 2, True, "clamp"),
    ]
    assert {s.name: s.source for s in list_guardrails(model)} == {
        name: str(folders / name) for name in ("biology", "person", "books")
    }
    assert [s.threshold for s in list_guardrails(model)] == [0.3, 0.5, 0.4]
    assert list_guardrails(base_model("llama")) == []


def test_a_layer_gives_config_encoder_and_decoder_of_each_guardrail(model):
    layers = guard_layers(model)
    assert [layer.index for layer in layers] == [1, 2]
    for layer in layers:
        for name in layer.guard_config:
            config, encoder, decoder = layer.guardrail(name)
            assert config is model.peft_config[name]
            assert encoder.weight.shape == decoder.weight.shape == (config.num_features, config.width)
            stored = get_peft_model_state_dict(model, adapter_name=name)
            found = layer.guardrail(name).tensors()
            assert sorted(found) == sorted(PARTS)
            for key, path in PARTS.items():
                assert torch.equal(found[key], stored[f"base_model.model.model.layers.{layer.index}.guardrail.{path}"])
    with pytest.raises(GuardrailError, match="name='person'"):
        layers[0].guardrail("person")


@pytest.mark.parametrize(
    "names", [["biology"], ["person"], ["books", "biology"], ["person", "books"], ["biology", "person", "books"]]
)
def test_exactly_those_that_are_named_are_in_force(model, folders, names):
    enable_guardrails(model, names)
    assert at_work(model) == set(names)
    assert {s.name for s in list_guardrails(model) if s.active} == set(names)
    assert torch.allclose(logits(model), alone(folders, *names), atol=1e-5)


def test_one_name_is_enough_and_none_puts_all_at_rest(model):
    enable_guardrails(model, "person")
    assert at_work(model) == {"person"}
    enable_guardrails(model, [])
    assert torch.equal(logits(model), logits(base_model("llama")))
    enable_guardrails(model, ["biology", "biology"])
    assert at_work(model) == {"biology"}


def test_generation_follows_the_switch(model, folders):
    settings = {"max_new_tokens": 5, "do_sample": False}
    for name in ("biology", "person"):
        enable_guardrails(model, name)
        one = attach_guardrail(base_model("llama"), folders / name)
        assert torch.equal(model.generate(IDS, **settings), one.generate(IDS, **settings))


def test_a_set_that_joins_leaves_those_at_rest_at_rest(model, folders):
    enable_guardrails(model, "person")
    attach_guardrail(model, folders / "books", adapter_name="again")
    assert at_work(model) == {"person", "again"}


def test_one_is_taken_off_by_name_and_the_rest_stay(model, folders):
    detach_guardrail(model, "biology")
    assert [s.name for s in list_guardrails(model)] == ["books", "person"]
    assert torch.allclose(logits(model), alone(folders, "person", "books"), atol=1e-5)


def test_a_name_that_is_not_there_changes_nothing(model):
    enable_guardrails(model, "person")
    with pytest.raises(GuardrailError, match=r"names='chemistry'.*\['biology', 'books', 'person'\]"):
        enable_guardrails(model, ["biology", "chemistry"])
    assert at_work(model) == {"person"}


def test_a_lora_beside_them_stays_active(folders):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    plain = logits(lora)
    model = attach_guardrail(lora, folders / "biology", adapter_name="biology")
    model = attach_guardrail(model, folders / "person", adapter_name="person")
    enable_guardrails(model, "person")
    assert at_work(model) == {"person"}
    enable_guardrails(model, [])
    assert torch.equal(logits(model), plain)


def test_what_peft_disables_is_listed_as_not_active(model):
    with model.disable_adapter():
        assert not any(s.active for s in list_guardrails(model))
    assert all(s.active for s in list_guardrails(model))
