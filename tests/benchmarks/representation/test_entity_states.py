"""States at the last token of a name, against a plain forward pass."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_tokenizer
from zoo import base_model

from benchmarks.representation.states import entity_states
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.errors import UnlearnError


LAYER = 1
TEMPLATES = ("w3 {entity} w4", "{entity} w5 w6", "w7 w8 w9 {entity}")
PLACES = {"w20 w21": (3, 2, 5), "w30": (2, 1, 4)}  # of the name's last token, after the BOS
ENTITIES = EntitySet([{"entity": name, "entity_type": "thing"} for name in PLACES])


def plain(model, tokenizer):
    found = []
    for name, places in PLACES.items():
        rows = [tokenizer(t.format(entity=name)).input_ids for t in TEMPLATES]
        with torch.no_grad():
            hidden = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[LAYER + 1][0] for row in rows]
        found.append(torch.stack([h[place] for h, place in zip(hidden, places, strict=True)]))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "falcon_h1"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_states_are_those_of_a_plain_pass(name, batch_size):
    model, tokenizer = base_model(name), tiny_tokenizer()
    found = entity_states(model, tokenizer, ENTITIES, LAYER, TEMPLATES, batch_size=batch_size)
    assert found.shape == (2, 3, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(model, tokenizer), atol=1e-4, rtol=1e-4)


def test_adapters_in_force_and_disabled():
    base, tokenizer = base_model("llama"), tiny_tokenizer()
    tuned = get_peft_model(base_model("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tuned.train()
    before = entity_states(base, tokenizer, ENTITIES, LAYER, TEMPLATES)
    after = entity_states(tuned, tokenizer, ENTITIES, LAYER, TEMPLATES)
    assert tuned.training
    torch.testing.assert_close(after, plain(tuned.eval(), tokenizer), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entity_states(tuned, tokenizer, ENTITIES, LAYER, TEMPLATES, adapters=False), before)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(entity_states(tuned, tokenizer, ENTITIES, LAYER, TEMPLATES), after)  # in force again


def test_the_types_own_templates_and_those_held_out():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    cities = EntitySet([{"entity": "w20", "entity_type": "city"}, {"entity": "w21", "entity_type": "city"}])
    assert entity_states(model, tokenizer, cities, LAYER).shape[:2] == (2, 4)
    assert entity_states(model, tokenizer, cities, LAYER, held_out=True).shape[:2] == (2, 2)
    given = {"city": ("w3 {entity}",)}
    assert entity_states(model, tokenizer, cities, LAYER, given).shape[:2] == (2, 1)


def test_types_with_different_numbers_of_templates_are_refused():
    mixed = EntitySet([{"entity": "w20", "entity_type": "city"}, {"entity": "w21", "entity_type": "song"}])
    with pytest.raises(UnlearnError, match=r"^templates=\{'city': 4, 'song': 3\}"):
        entity_states(base_model("llama"), tiny_tokenizer(), mixed, LAYER)


def test_no_entities_are_refused():
    with pytest.raises(UnlearnError, match=r"^entities=\[\]"):
        entity_states(base_model("llama"), tiny_tokenizer(), EntitySet(), LAYER)
