"""A bundle from anybody: whatever is wrong with it, there is a typed error, and nothing of it is left on the model."""

import shutil
from functools import partial

import pytest
import torch
from attached import fitted_by_hand, state_of
from lies import trace_of
from malicious_bundles import BUNDLES, LORA
from peft import LoraConfig, get_peft_model
from zoo import base_model, logits_of, token_ids

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, save_bundle


IDS = token_ids(8, 10)
logits = partial(logits_of, input_ids=IDS)


@pytest.fixture(scope="module")
def sound_bundle(tmp_path_factory):
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    lora = get_peft_model(base_model("llama"), config, adapter_name=LORA).eval()
    root = tmp_path_factory.mktemp("bundle")
    fitted_by_hand().save_pretrained(root / "guard")
    folder = root / "sound"
    save_bundle(attach_guardrail(lora, root / "guard", adapter_name="topic"), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "message"), BUNDLES.values(), ids=BUNDLES)
def test_a_bundle_that_lies_is_refused_and_nothing_is_left_of_it(lie, message, sound_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(sound_bundle, folder)
    attach_bundle(base_model("llama"), folder)
    lie(folder)
    model = base_model("llama")
    before, plain = state_of(model), logits(model)
    with pytest.raises(GuardrailError, match=message):
        attach_bundle(model, folder)
    assert not trace_of(folder).exists()
    assert state_of(model) == before
    assert torch.equal(logits(model), plain)
