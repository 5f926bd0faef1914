"""PEFT's own two functions for an adapter's tensors, called directly: what they save and load of a guardrail."""

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import GuardrailError
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.weights import PARTS


IDS = token_ids(4, 10)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_all_tensors_of_a_guardrail_are_given(named, bare):
    """Under a name that is a part of the path, too."""
    model = guarded("llama")
    model.add_adapter("guardrail", model.peft_config["default"])
    name = "guardrail" if named else "default"
    of = model.get_base_model() if bare else model
    of.peft_config = model.peft_config
    found = peft.get_peft_model_state_dict(of, None, name, save_embedding_layers=False)
    assert len(found) == len(PARTS)
    assert {key for key in PARTS for path in found if path.endswith(PARTS[key])} == set(PARTS)


@pytest.mark.parametrize("home", [peft, peft.utils, peft.utils.save_and_load, peft.peft_model])
def test_tensors_are_loaded_and_not_into_a_name_that_is_taken(home):
    given, empty = guarded("llama"), guarded("llama")
    for parameter in guard_layers(empty)[0].parameters():
        parameter.data.fill_(torch.nan)
    state = home.get_peft_model_state_dict(given, save_embedding_layers=False)
    home.set_peft_model_state_dict(empty, peft_model_state_dict=state)
    assert torch.equal(logits_of(empty, IDS), logits_of(given, IDS))
    with pytest.raises(GuardrailError, match="adapter_name='default'"):
        home.set_peft_model_state_dict(empty, state, "default")


def test_other_adapters_are_left_to_peft():
    model = get_peft_model(base_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert len(state) == 2 * model.config.num_hidden_layers
    assert not peft.set_peft_model_state_dict(model, state).unexpected_keys
