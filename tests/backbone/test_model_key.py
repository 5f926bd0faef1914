"""The key of a model changes with its weights, precision and adapters."""

from peft import LoraConfig, get_peft_model
from zoo import base_model

from sae_unlearn.backbone.identity import model_key


def test_the_key_of_a_model():
    base = base_model("llama")
    key = model_key(base)
    assert model_key(base_model("llama")) == key
    changed = base_model("llama")
    changed.model.layers[3].mlp.down_proj.weight.data.mul_(1.01)
    assert model_key(changed) != key
    assert model_key(base_model("llama").bfloat16()) != key
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    on = model_key(tuned)
    with tuned.disable_adapter():
        assert model_key(tuned) != on
