"""What a guardrail needs beyond its own weights while it works: bytes of tensors, counted and not sampled."""

import gc

import pytest
import torch
from decoding import Decoding
from peft import get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from zoo import BOS, EOS, PAD, plant, planted_config, token_ids

from benchmarks.speed.inference import peak_bytes


ALLOWED = 1_000_000  # bytes
CONFIG = {  # the widths of Gemma 3 1B, two layers of it
    "vocab_size": 1000,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


@pytest.fixture(scope="module")
def models():
    """The base model, and the same one with a guardrail of 200 features."""
    base = Gemma3ForCausalLM(Gemma3TextConfig(**CONFIG)).eval()
    other = Gemma3ForCausalLM(Gemma3TextConfig(**CONFIG)).eval()
    guarded = get_peft_model(other, planted_config(layer=0, num_features=200, threshold=0.1))
    plant(guarded)
    for model in (base, guarded):
        Decoding(model).step()  # the first call makes what later ones find
    return {"base": base, "guarded": guarded}


def peak_of(call):
    """Bytes in use at most during a call, beyond those before it; nothing else is let go of meanwhile."""
    gc.collect()
    gc.disable()
    try:
        return peak_bytes(call, "cpu")
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_decoding_step_peaks_at_most_a_megabyte_higher(models):
    peaks = {}
    for name, model in models.items():
        decoding = Decoding(model, prompt=32)
        decoding.step()
        peaks[name] = peak_of(decoding.step)
    assert peaks["base"] > 10_000
    assert peaks["guarded"] <= peaks["base"] + ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "tokens"), [(1, 192), (8, 24)])
def test_a_prompt_peaks_at_most_a_megabyte_higher(models, batch, tokens):
    ids, peaks = token_ids(batch, tokens), {}
    for name, model in models.items():
        with torch.no_grad():
            peaks[name] = peak_of(lambda model=model: model(input_ids=ids, logits_to_keep=1))
    assert peaks["base"] > 1_000_000
    assert peaks["guarded"] <= peaks["base"] + ALLOWED
