"""A guardrail from a folder guards bit for bit as it was saved; a model that it does not fit is left untouched."""

import json
import warnings

import pytest
import torch
from attached import IDS, assert_untouched, logits
from peft import LoraConfig, PeftConfig, get_peft_model
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail, record_firings


def test_from_a_folder_it_guards_bit_for_bit_as_it_was_saved(fitted, folder):
    plain = logits(base_model("llama"))
    for source in (folder, str(folder), f"{folder}/"):
        found = logits(attach_guardrail(base_model("llama"), source))
        assert torch.equal(found, fitted[1])
        assert not torch.equal(found, plain)


def test_saved_again_the_folder_is_the_same(folder, tmp_path):
    attach_guardrail(base_model("llama"), folder).save_pretrained(tmp_path / "again")
    for name in ("adapter_model.safetensors", "README.md"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    first, second = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path / "again"))
    assert first == second


def test_from_a_subfolder(fitted, folder):
    found = attach_guardrail(base_model("llama"), folder.parent, subfolder="guard")
    assert torch.equal(logits(found), fitted[1])


def test_generation_after_attaching_is_generation_before_saving(fitted, folder):
    settings = {"max_new_tokens": 8, "do_sample": False}
    again = attach_guardrail(base_model("llama"), folder)
    assert torch.equal(again.generate(input_ids=IDS, **settings), fitted[0].generate(input_ids=IDS, **settings))


def shorter():
    model = base_model("llama")
    model.config.num_hidden_layers = 3
    model.model.layers = model.model.layers[:3]
    return model


def wider():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 8, "vocab_size": 97}
    return LlamaForCausalLM(LlamaConfig(hidden_size=64, **shape))


def other_weights():
    model = base_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    return model


WRONG = [
    (lambda: base_model("qwen2"), r"'qwen2'.*'llama'"),
    (shorter, "layers 4,.* 3"),
    (wider, "hidden size 32,.* 64"),
    (other_weights, r"sampled embedding weights differ"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=["type", "layers", "width", "weights"])
def test_another_model_is_refused_untouched(build, message, folder):
    model = build()
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, folder)
    assert_untouched(model)


def test_a_descendant_is_taken_with_a_warning_when_asked(folder):
    with pytest.warns(UserWarning, match="another model"):
        model = attach_guardrail(other_weights(), folder, check_base=False)
    with record_firings(model) as firings:
        logits(model)
    assert len(firings) == len(IDS)


def test_check_base_false_does_not_excuse_another_shape(folder):
    for build, message in WRONG[1:3]:
        with pytest.raises(GuardrailError, match=message):
            attach_guardrail(build(), folder, check_base=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_is_known_again_in_another_precision(dtype, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attach_guardrail(base_model("llama").to(dtype), folder)


def test_peft_reads_a_sealed_config_without_a_warning_and_saves_it_without_the_seal(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = PeftConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    assert "weights_sha256" in json.loads((folder / "adapter_config.json").read_text())
    assert "sha256" not in (tmp_path / "adapter_config.json").read_text().replace('"sha256"', "")


def test_the_model_is_known_again_with_a_longer_vocabulary_and_a_lora(fitted, folder):
    model = base_model("llama")
    model.resize_token_embeddings(130, mean_resizing=False)
    attach_guardrail(model, folder)
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"))
    assert torch.equal(logits(attach_guardrail(lora, folder).eval()), fitted[1])
