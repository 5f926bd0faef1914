"""KL of a tuned model to its base."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.text import row_divergences


TEXTS = [*topic_texts("forget", 3), "w3 w4 <eos> w5"]


def tuned_model(name="llama"):
    model = get_peft_model(base_model(name), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return model.eval()


def plain(tuned, base, tokenizer, text):
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        p, q = (model(ids).logits[0, :-1].double().log_softmax(dim=-1) for model in (base, tuned))
    each = (p.exp() * (p - q)).sum(dim=-1)
    special = torch.isin(ids[0, 1:], torch.tensor(tokenizer.all_special_ids))
    return float(each[~special].mean())


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_divergence_is_the_plain_one(name):
    tuned, base, tokenizer = tuned_model(name), base_model(name), tiny_tokenizer()
    expected = torch.tensor([plain(tuned, base, tokenizer, text) for text in TEXTS], dtype=torch.float64)
    for batch_size in (1, 3):
        found = row_divergences(tuned, tokenizer, TEXTS, batch_size=batch_size)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (expected > 1e-3).all()


def test_a_second_model_is_the_same_as_the_adapter_disabled():
    tuned, base, tokenizer = tuned_model(), base_model("llama"), tiny_tokenizer()
    found = row_divergences(tuned, tokenizer, TEXTS, base=base)
    torch.testing.assert_close(found, row_divergences(tuned, tokenizer, TEXTS))
    assert row_divergences(base, tokenizer, TEXTS, base=base).abs().max() == 0


def test_a_bare_model_needs_a_base():
    with pytest.raises(UnlearnError, match=r"base=None: .*LlamaForCausalLM"):
        row_divergences(base_model("llama"), tiny_tokenizer(), TEXTS)
