"""A LoRA and inputs of the tests that take the guardrail as a PEFT method."""

from functools import partial

from peft import LoraConfig
from zoo import logits_of, token_ids


IDS = token_ids(32, 12)
logits = partial(logits_of, input_ids=IDS)
TARGETS = ["q_proj", "down_proj"]


def lora_config(**kwargs):
    fields = {"target_modules": TARGETS} | kwargs
    return LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **fields)


def query_lora(**kwargs):
    """A LoRA on one matrix of each layer."""
    return lora_config(target_modules=["q_proj"], **kwargs)


def loaded(model):
    model.eval()
    return logits(model)
